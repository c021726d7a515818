"""One file over HTTP to the disk: goes on where it was cut off, verified, put in place whole.

A file under way is called NAME.part. NAME.part.json beside it remembers which version of the file
the server had, so that pieces of two versions never become one file.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from io import FileIO
from pathlib import Path

from rankdet import __version__
from rankdet.data.disk import disk_faults, refuse_full_disk, size_text
from rankdet.data.errors import DataError

Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 18
_LONGEST_PAUSE = 60.0
# Without "identity" a server may compress, and then no byte is where a resumed transfer wants it.
_HEADERS = {"User-Agent": f"rankdet/{__version__}", "Accept-Encoding": "identity"}
_VALIDATORS = ("ETag", "Last-Modified")


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    retries: int = 5,
    wait: float = 1.0,
    timeout: float = 60.0,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> bool:
    """Fetch a file, going on from what an earlier call received of it.

    What arrives is written to ``target`` + ``.part``, hashed on its way, and renamed once it is
    whole and right. An interruption, a full disk or a lost connection leaves the part, and the next
    call asks the server for the rest only. It starts anew where the server cannot do that, where
    the file there has another ETag or date than the one begun, and where neither a date, an ETag
    nor ``sha256`` could tell that the pieces belong together.

    Args:
        url: http or https.
        target: file to write; its folder is made where it does not exist.
        size: of the file in bytes, if known.
        sha256: checksum of the file in hexadecimal, if known.
        retries: how many attempts in a row may bring no new byte, beside the first.
        wait: seconds before the second attempt; doubled from one to the next, at most 60.
        timeout: seconds without a byte after which a connection counts as lost.
        progress: called with bytes done and bytes in all (None if unknown). Bytes of an earlier
            call are read again for the checksum and count as they are read.
        note: is told a sentence before each new attempt.

    Returns:
        Whether anything was fetched; False where ``target`` was there and is right.

    Raises:
        DataError: the server refuses, has another file or stays out of reach; the checksum is
            wrong (the part is deleted then); there is no room or no permission to write.
    """
    _check_url(url)
    shown = progress or (lambda _done, _total: None)
    told = note or (lambda _sentence: None)
    if target.exists():
        _check_present(target, size, sha256, shown)
        return False
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(url, target, hashed=sha256 is not None)
    part.load(size, shown)
    furthest, failed = part.done, 0
    while size is None or part.done < size:
        try:
            _attempt(url, part, size, timeout, shown, told)
            break
        except _PassingError as fault:
            # Only bytes never seen before count, so that a server that always starts anew and is
            # always cut off comes to an end.
            failed = 0 if part.done > furthest else failed + 1
            furthest = max(furthest, part.done)
            if failed > retries:
                raise DataError(
                    f"{url}: {fault}; {failed} attempts in a row brought nothing new."
                    f" {part.kept()}Try again later, or from another server"
                ) from fault
            pause = min(wait * 2 ** max(failed - 1, 0), _LONGEST_PAUSE)
            told(f"{url}: {fault}; trying again in {pause:g} s")
            time.sleep(pause)
    _verify(url, part, size, sha256)
    part.finish(target)
    return True


class _PassingError(Exception):
    """A fault of the transfer that may be gone at the next attempt."""


class _Part:
    """What has been received of a file, and of which version of it."""

    def __init__(self, url: str, target: Path, *, hashed: bool) -> None:
        self.url = url
        self.path = target.with_name(f"{target.name}.part")
        self.record = target.with_name(f"{target.name}.part.json")
        self.hashed = hashed
        self.digest = hashlib.sha256()
        self.done = 0
        self.validators: dict[str, str] = {}

    def load(self, size: int | None, progress: Progress) -> None:
        """Take up what an earlier call left, unless it cannot be told to belong to this file."""
        if not self.path.exists():
            return
        with disk_faults(self.path):
            there = self.path.stat().st_size
        known = _read_record(self.record)
        if known.pop("url", None) == self.url:
            self.validators = known
        # From another server, or of an unknown version: the checksum would tell, if there is one.
        if (size is not None and there > size) or not (self.validators or self.hashed):
            self.restart({})
            return
        if self.hashed:
            self.digest = _hash(self.path, size, progress)
        self.done = there

    def headers(self) -> dict[str, str]:
        """Return the headers that ask for the bytes that are missing."""
        if not self.done:
            return {}
        etag, date = (self.validators.get(name) for name in _VALIDATORS)
        # A weak ETag does not promise equal bytes, and may not stand in If-Range.
        version = etag if etag and not etag.startswith("W/") else date
        wanted = {"Range": f"bytes={self.done}-"}
        return wanted | ({"If-Range": version} if version else {})

    def restart(self, validators: dict[str, str]) -> None:
        """Forget what was received, and note which version begins now."""
        with disk_faults(self.path):
            self.path.write_bytes(b"")
            self.record.write_text(json.dumps({"url": self.url, **validators}), encoding="utf-8")
        self.digest, self.done, self.validators = hashlib.sha256(), 0, validators

    def append(self, file: FileIO, chunk: bytes) -> None:
        """Write what came."""
        with disk_faults(self.path):
            _write(file, chunk)
        if self.hashed:
            self.digest.update(chunk)
        self.done += len(chunk)

    def kept(self) -> str:
        """Say what there is to go on from."""
        return f"{size_text(self.done)} are kept in {self.path}. " if self.done else ""

    def remove(self) -> None:
        """Delete what was received."""
        with disk_faults(self.path):
            self.path.unlink(missing_ok=True)
            self.record.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Put the whole file in its place."""
        with disk_faults(target):
            with self.path.open("ab") as file:
                os.fsync(file.fileno())
            self.path.replace(target)
            self.record.unlink(missing_ok=True)


def _attempt(
    url: str,
    part: _Part,
    size: int | None,
    timeout: float,
    progress: Progress,
    note: Callable[[str], None],
) -> None:
    """Fetch what is missing, as far as it comes."""
    response = _open(url, part, timeout)
    if response is None:
        return
    with response:
        total = _begin(response, url, part, size, note)
        if total is not None:
            refuse_full_disk(part.path.parent, total - part.done, f"the rest of {url}")
        with disk_faults(part.path):
            # Without a buffer: what is written is known, and closing writes nothing more.
            file = part.path.open("ab", buffering=0)
        with file:
            while chunk := _receive(response):
                part.append(file, chunk)
                progress(part.done, total)
    if total is not None and part.done < total:
        raise _PassingError(f"cut off after {size_text(part.done)} of {size_text(total)}")


def _open(url: str, part: _Part, timeout: float) -> http.client.HTTPResponse | None:
    """Ask for what is missing; None where the server says that nothing is."""
    request = urllib.request.Request(url, headers=_HEADERS | part.headers())
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                if _range_of(error.headers)[1] == part.done:
                    return None
                part.restart({})
                raise _PassingError(
                    "the part received does not fit the file on the server"
                ) from error
            raise _refusal(url, part, error) from error
    except urllib.error.URLError as error:
        raise _unreachable(url, error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from error
    return response


def _begin(
    response: http.client.HTTPResponse,
    url: str,
    part: _Part,
    size: int | None,
    note: Callable[[str], None],
) -> int | None:
    """Make the part ready for what the server is about to send; return the bytes of the file."""
    version = {name: value for name in _VALIDATORS if (value := response.headers.get(name))}
    if response.status == 206:
        first, total = _range_of(response.headers)
        other = any(part.validators.get(name, now) != now for name, now in version.items())
        if first != part.done or other:
            part.restart({})
            raise _PassingError("the server has another version of the file than the one begun")
    elif response.status == 200:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
    else:
        raise DataError(f"{url}: the server answered HTTP {response.status}; check the address")
    if None not in (size, total) and size != total:
        # A page to log in, or another file: what was received before is not touched.
        raise DataError(
            f"{url}: the file there has {total} bytes, expected {size}; it is another file, or a"
            " page that something on the way sends in its place. Open the address in a browser, or"
            " use another server"
        )
    if response.status == 200:
        if part.done:
            note(f"{url}: the server sends the file from its beginning; starting anew")
        part.restart(version)
    return total


def _receive(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as fault:
        raise _PassingError(f"connection lost ({_words(fault)})") from fault


def _write(file: FileIO, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]


def _verify(url: str, part: _Part, size: int | None, sha256: str | None) -> None:
    """Check the whole file, and delete it if it is wrong."""
    found, expected = part.digest.hexdigest(), (sha256 or "").lower()
    if size is not None and part.done != size:
        wrong = f"{part.done} bytes came, expected {size}"
    elif sha256 is not None and found != expected:
        wrong = f"the checksum is wrong: SHA-256 {found}, expected {expected}"
    else:
        return
    part.remove()
    raise DataError(
        f"{url}: {wrong}. What was received is deleted; run the same again. If this happens again,"
        " the file on the server is damaged or is another one: use another server"
    )


def _check_present(target: Path, size: int | None, sha256: str | None, progress: Progress) -> None:
    """Refuse a file that is there already but is not the one that is wanted."""
    if not target.is_file():
        raise DataError(f"{target}: this is a folder; move it away, a file is to be written there")
    found = target.stat().st_size
    if size is not None and found != size:
        short = found < size and sha256 is not None
        remedy = f"rename it to {target.name}.part to go on from it, or " if short else ""
        raise DataError(
            f"{target}: is there already, but with {found} bytes instead of {size};"
            f" {remedy}delete it, and run the same again"
        )
    if sha256 is None:
        return
    digest = _hash(target, found, progress).hexdigest()
    if digest != sha256.lower():
        raise DataError(
            f"{target}: is there already, but its SHA-256 is {digest}, expected {sha256.lower()};"
            " delete it and run the same again"
        )


def _hash(path: Path, total: int | None, progress: Progress) -> hashlib._Hash:
    digest, done = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                done += len(block)
                progress(done, total)
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault}); delete it and run again") from fault
    return digest


def _read_record(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = ("url", *_VALIDATORS)
    return {k: v for k, v in content.items() if k in known} if isinstance(content, dict) else {}


def _range_of(headers: Message) -> tuple[int | None, int | None]:
    """Return first byte and size of the file from a Content-Range header."""
    match = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip()
    )
    if match is None:
        return None, None
    first, total = match.groups()
    return int(first) if first else None, None if total == "*" else int(total)


def _check_url(url: str) -> None:
    if not re.fullmatch(r"https?://[!-~]+", url):
        raise DataError(f"{url}: expected an address that begins with http:// or https://")


def _refusal(url: str, part: _Part, error: urllib.error.HTTPError) -> Exception:
    """Return the error for an answer that is not the file."""
    answer = f"the server answered HTTP {error.code} ({error.reason})"
    if error.code in (408, 425, 429) or error.code >= 500:
        return _PassingError(answer)
    if error.code in (404, 410):
        remedy = "there is no such file; check the address"
    elif error.code in (401, 403, 407):
        remedy = "access is refused, by the server or by a proxy (http_proxy, https_proxy)"
    else:
        remedy = "check the address"
    return DataError(f"{url}: {answer}: {remedy}, or use another server. {part.kept()}".rstrip())


def _unreachable(url: str, reason: object) -> Exception:
    """Return the error for a connection that did not come about."""
    host = urllib.request.Request(url).host
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DataError(
            f"{url}: the certificate of {host} is not valid ({reason.verify_message}); check the"
            " clock of this machine and the address, or use another server"
        )
    if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN:
        return DataError(
            f"{url}: the name {host} is not known; check the address, the network, and whether a"
            " proxy is needed (http_proxy, https_proxy)"
        )
    return _PassingError(f"{host} cannot be reached ({_words(reason)})")


def _words(fault: object) -> str:
    text = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
    return text or type(fault).__name__
