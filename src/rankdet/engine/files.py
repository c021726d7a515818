"""Writing files so that an interruption, a full disk or a missing right never damages one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system calls a disk that takes no more, or no more of this user."""


class RunError(RuntimeError):
    """A run cannot go on; the message says what happened, where, and what to do."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file by a complete new one, or leave the old one as it is.

    The new content is written beside the file under another name, flushed to the disk, and put
    in place by one renaming. Whatever goes wrong before that removes the new content only.

    Args:
        path: the file; its folder is made where it does not exist.
        write: is given the path to write to.

    Raises:
        RunError: the disk is full, or the folder or file must not be written to.
    """
    made = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        made = Path(name)
        write(made)
        # mkstemp gives the file to its owner alone; a written file usually has the umask's rights.
        made.chmod(0o666 & ~_umask())
        with made.open("rb+") as file:
            os.fsync(file.fileno())
        made.replace(path)
        made = None
    except OSError as error:
        raise RunError(explain(path, error)) from error
    finally:
        if made is not None:
            made.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically; see `write_atomically`."""

    def write(made: Path) -> None:
        made.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def append_text(path: Path, text: str) -> None:
    """Add text to the end of a file, which is made where it does not exist.

    Raises:
        RunError: the disk is full, or the file must not be written to.
    """
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise RunError(explain(path, error)) from error


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Replace a JSON file atomically; NaN and infinity are refused, as JSON has neither."""
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def explain(path: Path, error: OSError) -> str:
    """Say in a user's words why a file cannot be written, and what to do."""
    if error.errno in FULL:
        try:
            free = f"{shutil.disk_usage(path.parent).free / 2**20:.0f} MB free"
        except OSError:
            free = "free space unknown"
        return (
            f"cannot write {path}: the disk is full ({free}). Free some space and go on with "
            f"`--resume`; what was saved before is untouched."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"cannot write {path}: no permission. Choose another folder with `--out`, or change "
            f"the rights of {path.parent}."
        )
    return f"cannot write {path}: {error.strerror or error}"
