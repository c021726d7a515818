"""Files are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rankdet.engine.files import (
    RunError,
    append_text,
    write_atomically,
    write_json,
    write_text,
)


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_written_file_has_the_rights_the_user_gives_to_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EIO, "Input/output")],
)
def test_a_failure_keeps_the_old_file_and_says_why(tmp_path: Path, number: int, said: str) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(made: Path) -> None:
        made.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(RunError, match=said) as caught:
        write_atomically(path, fail)
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_text_is_added_to_a_file_and_a_full_disk_named(tmp_path: Path) -> None:
    append_text(tmp_path / "log", "one\n")
    append_text(tmp_path / "log", "two\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(RunError, match="cannot write /dev/full: the disk is full"):
            append_text(full, "three\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="no permission"):
        write_text(tmp_path / "a", "")
    tmp_path.chmod(0o700)


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", [float("nan")])
    assert os.listdir(tmp_path) == []
