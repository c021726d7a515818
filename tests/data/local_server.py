"""An HTTP server in a thread that serves files from memory, and misbehaves as it is told."""

from __future__ import annotations

import re
import socketserver
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Request:
    """What was asked, and what the answer was."""

    path: str
    headers: dict[str, str]
    status: int
    sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


@dataclass
class Server:
    """Use as ``with Server(files) as server``; change its attributes at any time."""

    files: dict[str, bytes]
    cuts: list[int] = field(default_factory=list)
    """For each coming answer: after how many bytes it is cut off."""
    failures: list[int] = field(default_factory=list)
    """For each coming answer: an HTTP status instead of the file."""
    ranges: bool = True
    if_range: bool = True
    """Whether If-Range is heeded, as HTTP demands."""
    lengths: bool = True
    shift: int = 0
    """Added to where a range begins: a wrong answer."""
    etag: str | None = '"one"'
    modified: str | None = None
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Server:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            def handle_error(self, *arguments: Any) -> None:
                pass  # a client that went away

        self._listener: socketserver.TCPServer = Listener(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = Request(handler.path, dict(handler.headers.items()), 200)
        self.requests.append(request)
        content = self.files.get(handler.path)
        if self.failures or content is None:
            request.status = self.failures.pop(0) if self.failures else 404
            handler.send_error(request.status)
            return
        headers = {"ETag": self.etag, "Last-Modified": self.modified}
        start, total = self._start(request), len(content)
        if start >= total > 0:
            request.status = 416
            headers["Content-Range"] = f"bytes */{total}"
            content = b""
        elif start:
            request.status = 206
            start += self.shift
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            content = content[start:]
        if self.lengths:
            headers["Content-Length"] = str(len(content))
        handler.send_response(request.status)
        for name, value in headers.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        request.sent = min([len(content), *self.cuts[:1]])
        del self.cuts[:1]
        handler.wfile.write(content[: request.sent])

    def _start(self, request: Request) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", request.range or "")
        version = request.headers.get("If-Range")
        changed = self.if_range and version not in (None, self.etag, self.modified)
        return int(asked[1]) if asked and self.ranges and not changed else 0
