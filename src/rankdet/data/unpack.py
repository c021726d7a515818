"""Zip archives: members that are not there yet, checked, each written whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from rankdet.data.disk import disk_faults, refuse_full_disk
from rankdet.data.errors import DataError
from rankdet.data.files import Listing


def unpack(
    archive: Path,
    out: Path,
    wanted: Callable[[str], bool],
    *,
    replace: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> int:
    """Unpack what is not there yet from a zip archive.

    A member that is there with the right size and CRC-32 is left alone. Each member is written
    under another name and renamed once its CRC-32 is found right, so that no interruption leaves
    half a file under its own name.

    Args:
        archive: zip file.
        out: folder that the names of the members are relative to; need not exist.
        wanted: which members, by name.
        replace: write over files with other content; False: refuse.
        progress: called with bytes done and bytes in all.

    Returns:
        The number of files written.

    Raises:
        DataError: no zip file, or damaged; a name that leads out of ``out``, or a link; nothing
            that is wanted in it; a file with other content; no room, or no permission.
    """
    remedy = "delete it and run the same again"
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                _refuse_escape(archive, member)
            members = [m for m in opened.infolist() if not m.is_dir() and wanted(m.filename)]
            if not members:
                raise DataError(
                    f"{archive}: nothing that is looked for is in this archive; {remedy}"
                )
            return _unpack(opened, members, out, replace, progress or (lambda _done, _total: None))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as fault:
        raise DataError(
            f"{archive}: is cut off, damaged, or no zip archive ({fault}); {remedy}"
        ) from fault
    except OSError as fault:
        raise DataError(f"{archive}: cannot be read ({fault}); {remedy}") from fault


def _unpack(
    opened: zipfile.ZipFile,
    members: list[zipfile.ZipInfo],
    out: Path,
    replace: bool,
    progress: Callable[[int, int | None], None],
) -> int:
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
    listing = Listing()
    absent = sum(m.file_size for m in members if not listing.has(out / m.filename))
    refuse_full_disk(out, absent, f"unpacking {opened.filename}")
    done, written, total = 0, 0, sum(member.file_size for member in members)
    for member in members:
        target = out / member.filename
        there = listing.has(target)
        if not (there and _is_same(target, member)):
            if there and not replace:
                raise DataError(
                    f"{target}: is there with other content than in {opened.filename}; move it"
                    " away, or name another folder"
                )
            _write_member(opened, member, target)
            written += 1
        done += member.file_size
        progress(done, total)
    return written


def _write_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    made = target.with_name(f".{target.name}.part")
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with opened.open(member) as source, made.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                if member.file_size > 1 << 20:  # few; so many small ones would take hours
                    file.flush()
                    os.fsync(file.fileno())
            made.replace(target)
        except BaseException:
            made.unlink(missing_ok=True)
            raise


def _is_same(path: Path, member: zipfile.ZipInfo) -> bool:
    crc = 0
    try:
        if path.stat().st_size != member.file_size:
            return False
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                crc = zlib.crc32(block, crc)
    except OSError:  # what cannot be read is not what is wanted
        return False
    return crc == member.CRC


def _refuse_escape(archive: Path, member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename)
    link = stat.S_ISLNK(member.external_attr >> 16)
    # Backslash and colon are harmless here, but lead out of the folder on Windows.
    if name.is_absolute() or ".." in name.parts or set("\\:") & set(member.filename) or link:
        kind = "a link" if link else "a path that leads out of the folder"
        raise DataError(
            f"{archive}: holds {member.filename!r}, {kind}. No official archive does: nothing was"
            " unpacked; delete it and use another server"
        )
