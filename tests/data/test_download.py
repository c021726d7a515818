"""One file over HTTP, from a server that cuts off, forgets, changes its mind and lies."""

from __future__ import annotations

import errno
import hashlib
import random
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_server import Server

from rankdet.data import download as module
from rankdet.data.disk import disk_faults, size_text
from rankdet.data.download import download
from rankdet.data.errors import DataError

CONTENT = random.Random(0).randbytes(1_000_003)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = random.Random(1).randbytes(len(CONTENT))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({"/file.bin": CONTENT}) as running:
        yield running


def fetch(server: Server, folder: Path, **settings: Any) -> Path:
    target = folder / "file.bin"
    assert download(f"{server.url}/file.bin", target, **settings)
    return target


def statuses(server: Server) -> list[int]:
    return [request.status for request in server.requests]


def begun(server: Server, folder: Path, received: int, **settings: Any) -> Path:
    """Receive so many bytes of the file, and be interrupted."""

    def leave(_sentence: str) -> None:
        raise KeyboardInterrupt

    server.cuts = [received]
    with pytest.raises(KeyboardInterrupt):
        fetch(server, folder, note=leave, **settings)
    server.requests.clear()
    part = folder / "file.bin.part"
    assert part.read_bytes() == CONTENT[:received]
    return part


def is_clean(folder: Path) -> bool:
    return [path.name for path in folder.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("known", [{}, {"size": len(CONTENT)}, {"sha256": SHA256.upper()}])
def test_a_file_is_fetched_whole(
    server: Server, tmp_path: Path, known: dict[str, Any], lengths: bool
) -> None:
    server.lengths = lengths
    calls: list[tuple[int, int | None]] = []
    folder = tmp_path / "deep" / "folder"
    target = fetch(server, folder, **known, progress=lambda *call: calls.append(call))
    assert target.read_bytes() == CONTENT
    assert is_clean(folder)
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert calls[-1] == (len(CONTENT), len(CONTENT) if lengths else None)


def test_an_empty_file_is_a_file(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = b""
    assert fetch(server, tmp_path).read_bytes() == b""
    assert not download(f"{server.url}/file.bin", tmp_path / "file.bin", size=0)


def test_cut_off_transfers_go_on_within_a_call(server: Server, tmp_path: Path) -> None:
    server.cuts = [0, 300_000, 5, 500_000]
    notes: list[str] = []
    target = fetch(server, tmp_path, sha256=SHA256, retries=1, note=notes.append)
    assert target.read_bytes() == CONTENT
    assert statuses(server) == [200, 200, 206, 206, 206]
    assert sum(request.sent for request in server.requests) == len(CONTENT)
    assert [request.range for request in server.requests[2:]] == [
        "bytes=300000-",
        "bytes=300005-",
        "bytes=800005-",
    ]
    assert "cut off after 300 kB of 1.0 MB; trying again in 1 s" in notes[1]


@pytest.mark.parametrize("known", [{}, {"sha256": SHA256}, {"size": len(CONTENT)}])
def test_a_later_call_goes_on(server: Server, tmp_path: Path, known: dict[str, Any]) -> None:
    begun(server, tmp_path, 400_000, **known)
    calls: list[tuple[int, int | None]] = []
    target = fetch(server, tmp_path, **known, progress=lambda *call: calls.append(call))
    assert target.read_bytes() == CONTENT
    assert is_clean(tmp_path)
    assert [(r.status, r.sent) for r in server.requests] == [(206, len(CONTENT) - 400_000)]
    assert server.requests[0].headers["If-Range"] == '"one"'
    # With a checksum, what is there already is read again, and shown.
    assert ((400_000, None) in calls) == ("sha256" in known)


def test_a_server_without_ranges_makes_it_start_anew(server: Server, tmp_path: Path) -> None:
    begun(server, tmp_path, 400_000, sha256=SHA256)
    server.ranges = False
    notes: list[str] = []
    assert fetch(server, tmp_path, sha256=SHA256, note=notes.append).read_bytes() == CONTENT
    assert statuses(server) == [200]
    assert "starting anew" in notes[0]


def test_a_server_without_ranges_that_cuts_off_comes_to_an_end(
    server: Server, tmp_path: Path
) -> None:
    server.ranges = False
    server.cuts = [100_000] * 50
    with pytest.raises(DataError, match=r"cut off after 100 kB of 1\.0 MB; 4 attempts in a row"):
        fetch(server, tmp_path, retries=3)
    assert len(server.requests) == 5


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("by_date", [True, False])
def test_a_file_that_changed_in_between_is_not_mixed(
    server: Server, tmp_path: Path, if_range: bool, by_date: bool
) -> None:
    if by_date:
        server.etag, server.modified = 'W/"x"', "Mon, 01 Jan 2024 00:00:00 GMT"
    begun(server, tmp_path, 400_000)
    server.files["/file.bin"] = OTHER
    server.if_range = if_range
    if by_date:
        server.modified = "Tue, 02 Jan 2024 00:00:00 GMT"
    else:
        server.etag = '"two"'
    assert fetch(server, tmp_path).read_bytes() == OTHER
    assert statuses(server) == ([200] if if_range else [206, 200])


def test_a_part_of_unknown_version_needs_a_checksum(server: Server, tmp_path: Path) -> None:
    server.etag = None
    begun(server, tmp_path, 400_000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert statuses(server) == [200]
    (tmp_path / "file.bin").unlink()
    begun(server, tmp_path, 400_000, sha256=SHA256)
    assert fetch(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert statuses(server) == [206]
    # The same for what something else received, or another server.
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")
    with (tmp_path / "file.bin.part").open("r+b") as file:
        file.truncate(10)
    (tmp_path / "file.bin.part.json").write_text("{ not json")
    assert fetch(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert statuses(server) == [206, 206]


def test_a_whole_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    for known in ({"size": len(CONTENT), "sha256": SHA256}, {"sha256": SHA256}):
        server.requests.clear()
        (tmp_path / "file.bin.part").write_bytes(CONTENT)
        assert fetch(server, tmp_path, **known).read_bytes() == CONTENT
        assert statuses(server) == ([] if "size" in known else [416])
        (tmp_path / "file.bin").unlink()


def test_a_part_that_is_too_long_is_dropped(server: Server, tmp_path: Path) -> None:
    for known in ({"size": len(CONTENT), "sha256": SHA256}, {"sha256": SHA256}):
        server.requests.clear()
        (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
        assert fetch(server, tmp_path, **known).read_bytes() == CONTENT
        assert statuses(server) == ([200] if "size" in known else [416, 200])
        (tmp_path / "file.bin").unlink()


def test_a_range_other_than_asked_is_not_taken(server: Server, tmp_path: Path) -> None:
    begun(server, tmp_path, 400_000)
    server.shift = 1
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert statuses(server) == [206, 200]


def test_a_wrong_checksum_deletes_what_came_and_says_so(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = OTHER
    with pytest.raises(DataError, match=r"checksum is wrong.*is deleted; run the same") as caught:
        fetch(server, tmp_path, size=len(CONTENT), sha256=SHA256)
    assert f"{server.url}/file.bin" in str(caught.value)
    assert SHA256 in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    # One bit in the part of an earlier call is enough.
    server.files["/file.bin"] = CONTENT
    part = begun(server, tmp_path, 400_000, sha256=SHA256)
    with part.open("r+b") as file:
        file.write(bytes([CONTENT[0] ^ 1]))
    with pytest.raises(DataError, match="checksum is wrong"):
        fetch(server, tmp_path, sha256=SHA256)
    assert fetch(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused_before_it_comes(server: Server, tmp_path: Path) -> None:
    part = begun(server, tmp_path, 400_000, size=len(CONTENT))
    server.files["/file.bin"] = b"<html>Please log in</html>"
    server.etag = '"page"'
    with pytest.raises(DataError, match=f"has 26 bytes, expected {len(CONTENT)}"):
        fetch(server, tmp_path, size=len(CONTENT))
    assert part.stat().st_size == 400_000
    server.lengths = False
    with pytest.raises(DataError, match="26 bytes came, expected"):
        fetch(server, tmp_path, size=len(CONTENT))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept_if_right(server: Server, tmp_path: Path) -> None:
    target = fetch(server, tmp_path)
    url, known = f"{server.url}/file.bin", {"size": len(CONTENT), "sha256": SHA256}
    server.requests.clear()
    assert not download(url, target, **known)  # type: ignore[arg-type]
    target.write_bytes(CONTENT[:500])
    with pytest.raises(DataError, match=r"500 bytes .* rename it to file.bin.part"):
        download(url, target, **known)  # type: ignore[arg-type]
    target.write_bytes(OTHER)
    with pytest.raises(DataError, match=r"its SHA-256 is .* delete it"):
        download(url, target, **known)  # type: ignore[arg-type]
    assert target.read_bytes() == OTHER
    assert server.requests == []
    with pytest.raises(DataError, match="this is a folder"):
        download(url, tmp_path)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_failures_that_may_pass_are_tried_again(
    server: Server, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.failures = [status, status]
    assert fetch(server, tmp_path, retries=2).read_bytes() == CONTENT
    assert pauses == [1, 2]
    (tmp_path / "file.bin").unlink()
    server.failures = [status] * 9
    with pytest.raises(DataError, match=rf"HTTP {status}.*; 9 attempts in a row.*Try again later"):
        fetch(server, tmp_path, retries=8)
    assert pauses[2:] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(404, "no such file"), (403, "access is refused"), (407, "proxy"), (400, "check the address")],
)
def test_failures_that_stay_end_at_once(
    server: Server, tmp_path: Path, status: int, remedy: str
) -> None:
    part = begun(server, tmp_path, 400_000)
    server.failures = [status]
    with pytest.raises(DataError, match=rf"{server.url}/file.bin: .*HTTP {status}.*{remedy}") as c:
        fetch(server, tmp_path)
    assert f"400 kB are kept in {part}" in str(c.value)
    assert len(server.requests) == 1
    # The part is still good.
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match=r"cannot be reached .*refused.*; 3 attempts"):
        download(f"http://127.0.0.1:{port}/x", tmp_path / "x", retries=2)
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(DataError, match=r"127\.0\.0\.1:.* cannot be reached .*timed out"):
            download(url, tmp_path / "x", retries=0, timeout=0.05)


def test_a_name_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(code: int) -> None:
        def fail(*_: object, **__: object) -> None:
            raise socket.gaierror(code, "no")

        monkeypatch.setattr(socket, "getaddrinfo", fail)

    resolve(socket.EAI_NONAME)
    with pytest.raises(
        DataError, match=r"the name images\.invalid is not known; check the address"
    ):
        download("http://images.invalid/x", tmp_path / "x")
    resolve(socket.EAI_AGAIN)
    with pytest.raises(DataError, match=r"cannot be reached .*; 2 attempts"):
        download("http://images.invalid/x", tmp_path / "x", retries=1)


def test_a_certificate_that_is_not_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        fault = ssl.SSLCertVerificationError(1, "certificate verify failed")
        fault.verify_message = "Hostname mismatch"
        raise urllib.error.URLError(fault)

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"certificate of a\.b is not valid \(Hostname mismatch"):
        download("https://a.b/x", tmp_path / "x")


@pytest.mark.parametrize("url", ["ftp://a/b", "file:///etc/passwd", "a.zip", "http://a/b c", "x:"])
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="expected an address that begins with http"):
        download(url, tmp_path / "x")


def test_no_room_is_told_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 0, 600_000))
    with pytest.raises(DataError, match=r"needs 1\.0 MB, but only 600 kB are free; free 400 kB"):
        fetch(server, tmp_path)
    assert (tmp_path / "file.bin.part").stat().st_size == 0
    # What is there already needs no room.
    begun_at = len(CONTENT) - 600_000
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:begun_at])
    assert fetch(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_keeps_the_part(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write = module._write
    left = 600_000

    def fill(file: Any, chunk: bytes) -> None:
        nonlocal left
        write(file, chunk[:left])
        if len(chunk) > left:
            raise OSError(code, "No space left on device")
        left -= len(chunk)

    monkeypatch.setattr(module, "_write", fill)
    with pytest.raises(DataError, match=r"file\.bin\.part: the disk is full; free some space"):
        fetch(server, tmp_path, sha256=SHA256)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:600_000]
    monkeypatch.setattr(module, "_write", write)
    assert fetch(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert [r.range for r in server.requests] == [None, "bytes=600000-"]


def test_folders_that_cannot_be_written_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note").write_text("a file")
    with pytest.raises(DataError, match=r"note/file\.bin: cannot be written \(.+\); name another"):
        fetch(server, tmp_path / "note")

    def forbid(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", forbid)
    with pytest.raises(DataError, match="no permission to write; name another folder"):
        fetch(server, tmp_path)


def test_ctrl_c_leaves_a_part_to_go_on_from(server: Server, tmp_path: Path) -> None:
    def stop(done: int, _total: int | None) -> None:
        if done >= 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, progress=stop)
    received = (tmp_path / "file.bin.part").stat().st_size
    assert 500_000 <= received < len(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[1].range == f"bytes={received}-"


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    size=st.integers(0, 3000),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    ranges=st.lists(st.booleans(), min_size=8, max_size=8),
    versions=st.lists(st.sampled_from([0, 0, 0, 1]), min_size=8, max_size=8),
    if_range=st.booleans(),
)
def test_whatever_happens_the_file_is_whole_and_of_one_version(
    tmp_path: Path,
    size: int,
    cuts: list[int],
    ranges: list[bool],
    versions: list[int],
    if_range: bool,
) -> None:
    contents = [CONTENT[:size], OTHER[:size]]
    target = tmp_path / "x"
    for path in tmp_path.iterdir():
        path.unlink()
    with Server({}, if_range=if_range) as server:
        for ranged, version in zip(ranges, versions, strict=True):
            server.files["/x"], server.etag = contents[version], f'"{version}"'
            server.ranges, server.cuts = ranged, cuts[:1]
            del cuts[:1]
            try:
                download(f"{server.url}/x", target, retries=0)
            except DataError as fault:
                assert "attempts in a row" in str(fault)  # noqa: PT017
            else:
                break
    assert target.read_bytes() == contents[version]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_disk_faults_say_what_to_do(tmp_path: Path) -> None:
    for code, remedy in ((errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"),
                         (errno.EFBIG, "too large")):  # fmt: skip
        with pytest.raises(DataError, match=remedy), disk_faults(tmp_path):
            raise OSError(code, "File too large")
    with pytest.raises(KeyError), disk_faults(tmp_path):
        raise KeyError("passed on")


def test_sizes_in_words() -> None:
    assert [size_text(10**power) for power in (0, 3, 5, 8, 9, 11)] == [
        "1 bytes", "1.0 kB", "100 kB", "100 MB", "1.0 GB", "100 GB"
    ]  # fmt: skip
