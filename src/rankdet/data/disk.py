"""Writing to a disk that may be full or forbidden: faults that say what to do."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from rankdet.data.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def size_text(count: int) -> str:
    """Return a number of bytes as people read it.

    >>> size_text(19336861798), size_text(815585330), size_text(12)
    ('19.3 GB', '816 MB', '12 bytes')
    """
    if count < 1000:
        return f"{count} bytes"
    power, unit = next(p for p in ((9, "GB"), (6, "MB"), (3, "kB")) if count >= 10 ** p[0])
    value = count / 10**power
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


@contextlib.contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn the errors of writing a file into `DataError` with a remedy.

    Args:
        path: the file, or the folder, that is being written.

    Raises:
        DataError: for every OSError inside.
    """
    try:
        yield
    except OSError as fault:
        if fault.errno in _FULL:
            remedy = (
                "the disk is full; free some space and run the same again, it goes on from here"
            )
        elif fault.errno in _FORBIDDEN:
            remedy = f"no permission to write; name another folder, or allow it in {path.parent}"
        else:
            remedy = f"cannot be written ({fault.strerror or fault}); name another folder"
        raise DataError(f"{path}: {remedy}") from fault


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """Stop if a disk has no room for what is about to be written.

    Args:
        folder: that is written to; exists.
        needed: bytes.
        what: is written.

    Raises:
        DataError: As said.
    """
    with disk_faults(folder):
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {what} needs {size_text(needed)}, but only {size_text(free)} are free;"
            f" free {size_text(needed - free)} more, or name a folder on another disk"
        )
