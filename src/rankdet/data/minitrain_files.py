"""The files of a subset: where the splits of the source lie, which images a list names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from rankdet.data.errors import DataError
from rankdet.data.files import MISSING_ALLOWED, Listing, read_file, report_missing
from rankdet.data.layouts import CocoFile, coco_files, describe_search, split_of
from rankdet.data.minitrain import ObjectTable, count_objects
from rankdet.data.minitrain_json import ImageId, Instances, is_id, no_json

_SAMPLE = 500


@dataclass(frozen=True, eq=False)
class Candidates:
    """The images that a subset may be drawn from: those with an object, by rising id."""

    ids: tuple[ImageId, ...]
    table: ObjectTable

    def mask(self, chosen: AbstractSet[ImageId]) -> NDArray[np.bool_]:
        """Return [I] which of the images have one of these ids."""
        return np.array([image_id in chosen for image_id in self.ids], np.bool_)


@dataclass(frozen=True)
class Split:
    """Where a split of the source lies, and what it is called in the subset."""

    file: Path
    image_dir: Path
    folder: str
    """Name of the folder of its images in the subset."""

    @property
    def annotations(self) -> str:
        """Return the path of its annotations in the subset."""
        return f"annotations/instances_{self.folder}.json"


def candidates(source: Instances, absent: AbstractSet[ImageId] = frozenset()) -> Candidates:
    """Return the images with at least one object that is no crowd region and has an area.

    Args:
        source: the whole.
        absent: ids to leave out, those of images that are not on the disk.

    Raises:
        DataError: no image has an object.
    """
    listed = {image_id for image_id, _ in source.images} - absent
    counted = (~source.crowd & np.isfinite(source.areas)).tolist()
    kept = [
        (place, image_id)
        for place, (image_id, use) in enumerate(zip(source.annotated, counted, strict=True))
        if use and image_id is not None and image_id in listed
    ]
    # By id, not by place: a file in another order is the same data set.
    ids = sorted({image_id for _, image_id in kept}, key=lambda each: (isinstance(each, str), each))
    if not ids:
        raise DataError(
            f"{source.path}: none of the {len(source.images)} images has an object; there is"
            " nothing to match. Check that annotations and images belong together"
        )
    place_of = {image_id: place for place, image_id in enumerate(ids)}
    chosen = [place for place, _ in kept]
    table = count_objects(
        np.array([place_of[image_id] for _, image_id in kept], np.int64),
        source.labels[chosen],
        source.areas[chosen],
        images=len(ids),
        classes=len(source.classes),
    )
    return Candidates(tuple(ids), table)


def find_splits(folder: Path, listing: Listing) -> dict[str, CocoFile]:
    """Return the instances files of a folder by split, "train" among them.

    Raises:
        DataError: there is no such folder, none in it, or none of a training split.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise DataError(
            f"{folder}: {what}; name the folder that holds annotations/instances_train2017.json"
            " and train2017/"
        )
    files = {file.split: file for file in coco_files(folder, listing)}
    if not files:
        raise DataError(describe_search(folder, listing))
    if "train" not in files:
        raise DataError(
            f"{folder}: has annotations of {', '.join(files)}, none of train; a subset is drawn"
            " from annotations/instances_train2017.json"
        )
    return files


def place_split(file: CocoFile, names: Sequence[str], listing: Listing) -> Split:
    """Return where the images of a split lie: in the first folder that holds nearly all.

    Args:
        file: its annotations.
        names: the file names in it.
        listing: of the folders.
    """
    sample = names[:: max(1, len(names) // _SAMPLE)]
    held = {
        place: sum(find_image(place, name, listing) is not None for name in sample)
        for place in file.image_dirs
    }
    enough = (place for place in held if held[place] >= (1 - MISSING_ALLOWED) * len(sample))
    image_dir = next(enough, None) or max(held, key=lambda place: held[place])
    folder = image_dir.name if split_of(image_dir.name) == file.split else file.split
    return Split(file.path, image_dir, folder)


def find_image(folder: Path, name: str, listing: Listing) -> PurePosixPath | None:
    """Return the path of an image below a folder, or None where it is not."""
    path = PurePosixPath(name.replace("\\", "/"))
    for candidate in (path, PurePosixPath(path.name)):
        if listing.has(folder / candidate):
            return candidate
    return None


def absent_images(source: Instances, split: Split, listing: Listing) -> set[ImageId]:
    """Return the ids of images that are listed but not on the disk.

    Raises:
        DataError: more than a tenth of them is missing.
    """
    missing = {
        image_id: name
        for image_id, name in source.images
        if find_image(split.image_dir, name, listing) is None
    }
    report_missing(list(missing.values()), len(source.images), source.path, [split.image_dir])
    return set(missing)


def read_list(path: Path) -> list[ImageId]:
    """Read a list of images: ids or file names, one on each line or as a JSON list.

    Args:
        path: of the list; empty lines are passed over.

    Raises:
        DataError: it cannot be read, holds something else, or is empty.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise DataError(f"{path}: is no text in UTF-8 ({fault}); save it as such") from fault
    if text.lstrip().startswith(("[", "{")):
        try:
            entries = json.loads(text)
        except json.JSONDecodeError as fault:
            raise no_json(path, fault) from fault
        if not isinstance(entries, list):
            raise DataError(
                f"{path}: expected a list of image ids or file names, found an object; an"
                " annotation file is given with --annotations"
            )
        for index, entry in enumerate(entries):
            if not is_id(entry):
                raise DataError(
                    f"{path}: entry {index} is {str(entry)[:40]!r}, expected an image id or a"
                    " file name"
                )
    else:
        entries = [line.strip() for line in text.splitlines() if line.strip()]
    if not entries:
        raise DataError(f"{path}: names no image")
    return entries


def resolve(entries: Sequence[ImageId], source: Instances, given: Path) -> set[ImageId]:
    """Return the ids of images that are given by id, number or file name.

    A text stands for the first that fits: an id, a file name, a number ("000000000009" is 9), the
    last part of a file name ("train2017/000000000009.jpg") if only one image has it.

    Args:
        entries: as they stand in the list.
        source: where the images are.
        given: the list, for messages.

    Raises:
        DataError: an image is not in the source; the message names those.
    """
    ids = {image_id for image_id, _ in source.images}
    names: dict[str, ImageId] = {}
    last: dict[str, set[ImageId]] = {}
    for image_id, name in source.images:
        name = name.replace("\\", "/")
        names[name] = image_id
        last.setdefault(PurePosixPath(name).name, set()).add(image_id)
    found: set[ImageId] = set()
    unknown: list[str] = []
    for entry in entries:
        text = str(entry).replace("\\", "/")
        number = int(text) if text.isascii() and text.isdigit() else None
        same = last.get(PurePosixPath(text).name, set()) if text else set()
        if entry in ids:
            found.add(entry)
        elif text in names:
            found.add(names[text])
        elif number is not None and number in ids:
            found.add(number)
        elif len(same) == 1:
            found |= same
        else:
            unknown.append(repr(entry) + (f" ({len(same)} files have this name)" if same else ""))
    if unknown:
        few = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise DataError(
            f"{given}: {len(unknown)} of {len(entries)} images are not in {source.path}: {few};"
            " give the list that belongs to this data set and split"
        )
    return found


def match_images(given: Instances, source: Instances) -> set[ImageId]:
    """Return the ids of the images of another instances file, which must be the same images here.

    Raises:
        DataError: it lists none, an id is not in the source, or stands for another file there.
    """
    names = dict(source.images)
    wrong = [
        f"{image_id} ({name})"
        for image_id, name in given.images
        if PurePosixPath(names.get(image_id, "").replace("\\", "/")).name
        != PurePosixPath(name.replace("\\", "/")).name
    ]
    if wrong:
        few = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise DataError(
            f"{given.path}: {len(wrong)} of {len(given.images)} images are not in {source.path}"
            f" under this id and name: {few}; give the file that belongs to this data set and split"
        )
    if not given.images:
        raise DataError(f"{given.path}: lists no image")
    return {image_id for image_id, _ in given.images}
