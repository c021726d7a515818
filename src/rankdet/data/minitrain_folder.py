"""The folder of a subset: links to the images of the whole, or copies of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rankdet.data.errors import DataError
from rankdet.data.files import Listing
from rankdet.data.layouts import coco_files
from rankdet.data.minitrain_files import Split, find_image

Progress = Callable[[int, int], None]


def link_splits(folder: Path, out: Path, splits: Sequence[Split]) -> None:
    """Link the folders of images, and the annotations of all splits but the first.

    The links are relative: whole and subset can be moved together.

    Args:
        folder: to put the links into, beside ``out``.
        out: where the folder will be in the end.
        splits: the first is the one whose annotations are written apart.

    Raises:
        OSError: links cannot be made there.
    """
    for number, split in enumerate(splits):
        _link(folder, out, split.folder, split.image_dir)
        if number:
            _link(folder, out, split.annotations, split.file)


def copy_splits(
    folder: Path,
    splits: Sequence[Split],
    names: Sequence[Sequence[str]],
    listing: Listing,
    progress: Progress | None = None,
) -> None:
    """Copy the images of the splits, and the annotations of all but the first.

    Args:
        folder: to copy to.
        splits: as for `link_splits`.
        names: for each split the file names of its images; those that are not there are left out.
        listing: of the folders they are in.
        progress: called with the images done and their total, after each.

    Raises:
        OSError: the disk is full, or a file cannot be read or written.
    """
    done, total = 0, sum(map(len, names))
    for number, split in enumerate(splits):
        for name in names[number]:
            found = find_image(split.image_dir, name, listing)
            if found is not None:
                path = folder / split.folder / found
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(split.image_dir / found, path)
            done += 1
            if progress is not None:
                progress(done, total)
        if number:
            shutil.copyfile(split.file, folder / split.annotations)


def check_readable(folder: Path, out: Path, splits: Sequence[Split]) -> None:
    """Check that what reads data sets finds in the folder what was put there, and no more.

    Raises:
        DataError: it does not, because a linked folder holds annotations as well.
    """
    wanted = {split.folder: (folder / split.annotations, folder / split.folder) for split in splits}
    try:
        found = {file.path: file.image_dirs[0] for file in coco_files(folder, Listing())}
    except DataError:
        found = {}
    if found != dict(wanted.values()):
        linked = ", ".join(str(split.image_dir) for split in splits)
        raise DataError(
            f"{out}: cannot link to {linked}, as annotations are found there too and would be"
            " taken for those of the subset; copy the images instead (--copy)"
        )


def put_in_place(folder: Path, out: Path) -> None:
    """Rename a finished folder to its final name; what was there before is removed.

    Raises:
        OSError: it cannot be renamed.
    """
    if not out.exists():
        folder.replace(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    out.replace(old / out.name)
    folder.replace(out)
    # Links are removed, never what they point to.
    shutil.rmtree(old)


def _link(folder: Path, out: Path, name: str, target: Path) -> None:
    place = out.resolve() / name
    relative = os.path.relpath(target.resolve(), place.parent)
    (folder / name).symlink_to(relative, target_is_directory=target.is_dir())
