"""Reading a user's folder: one listing per folder, and files that say what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from rankdet.data.errors import DataError
from rankdet.data.imageset import Problem

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
)
# Up to this share of the images may be absent; more means a wrong folder rather than a few gaps.
MISSING_ALLOWED = 0.1


class Listing:
    """What lies in each folder, asked once: a hundred thousand `stat` calls take minutes on NFS."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[frozenset[str], tuple[str, ...]]] = {}
        self._images: dict[Path, dict[str, str]] = {}

    def files(self, folder: Path) -> frozenset[str]:
        """Return the names of the files in a folder; none where there is no such folder."""
        return self._list(folder)[0]

    def folders(self, folder: Path) -> tuple[str, ...]:
        """Return the names of the folders in a folder, sorted, hidden ones left out."""
        return self._list(folder)[1]

    def has(self, path: Path) -> bool:
        """Return whether a file is there."""
        return path.name in self.files(path.parent)

    def images(self, folder: Path) -> dict[str, str]:
        """Return the images of a folder: name without ending -> name, sorted by name."""
        if folder not in self._images:
            names = sorted(name for name in self.files(folder) if is_image(name))
            self._images[folder] = {PurePosixPath(name).stem: name for name in reversed(names)}
        return self._images[folder]

    def walk(self, folder: Path, depth: int) -> Iterator[Path]:
        """Yield a folder and those below it down to a depth, parents first."""
        yield folder
        if depth > 0:
            for name in self.folders(folder):
                yield from self.walk(folder / name, depth - 1)

    def _list(self, folder: Path) -> tuple[frozenset[str], tuple[str, ...]]:
        if folder not in self._known:
            files: list[str] = []
            folders: list[str] = []
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir():
                            folders.append(entry.name)
                        else:
                            files.append(entry.name)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except PermissionError as fault:
                raise DataError(
                    f"{folder}: no permission to list this folder; allow reading"
                    f" (chmod u+rx {folder})"
                ) from fault
            visible = (name for name in sorted(folders) if not name.startswith("."))
            self._known[folder] = frozenset(files), tuple(visible)
        return self._known[folder]


def is_image(name: str) -> bool:
    """Return whether a file name ends like that of an image; hidden files are none."""
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def read_file(path: Path) -> bytes:
    """Return the bytes of a file that must not be empty.

    Args:
        path: of the file.

    Raises:
        DataError: If the file is absent, may not be read, is a folder, or is empty.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as fault:
        raise DataError(f"{path}: there is no such file; check the path") from fault
    except PermissionError as fault:
        raise DataError(
            f"{path}: no permission to read this file; allow reading (chmod u+r {path})"
        ) from fault
    except OSError as fault:
        raise DataError(f"{path}: cannot be read: {fault}") from fault
    if not content.strip():
        raise DataError(f"{path}: the file is empty; copy or export it again")
    return content


def report_missing(
    missing: Sequence[str], total: int, file: Path, looked_in: Iterable[Path]
) -> list[Problem]:
    """Return the problems of images that are listed but not there, if they are few.

    Args:
        missing: names as the annotations have them.
        total: how many images are listed.
        file: that lists them.
        looked_in: folders that were searched.

    Raises:
        DataError: If more than a tenth of the images is missing.
    """
    if len(missing) > MISSING_ALLOWED * total:
        folders = ", ".join(str(folder) for folder in looked_in)
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{file}: {len(missing)} of {total} images are not there ({names});"
            f" looked in {folders}. Put the images into one of these folders, or correct the"
            " file names"
        )
    return [
        Problem(file, f"image {name}", "image file is not there; record left out")
        for name in missing
    ]


def refuse_many_unreadable(unreadable: Sequence[Problem], total: int, file: Path) -> None:
    """Stop if more than a tenth of the images cannot be opened.

    Args:
        unreadable: a problem for each of them.
        total: how many images are listed.
        file: that lists them.

    Raises:
        DataError: As said.
    """
    if len(unreadable) > MISSING_ALLOWED * total:
        raise DataError(
            f"{file}: {len(unreadable)} of {total} images cannot be opened; the first:"
            f" {unreadable[0].value}"
        )
