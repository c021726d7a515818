"""Finding out what a folder holds: COCO json, Pascal VOC xml or YOLO txt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rankdet.data.coco import read_coco
from rankdet.data.errors import DataError
from rankdet.data.files import Listing
from rankdet.data.images import check_images
from rankdet.data.imageset import ImageSet, Problem
from rankdet.data.layouts import (
    SPLITS,
    CocoFile,
    VocFiles,
    coco_files,
    describe_search,
    voc_files,
    yolo_below,
    yolo_config,
)
from rankdet.data.voc import read_voc
from rankdet.data.yolo import list_images, read_yolo, read_yolo_config

# So many headers of a split are opened to see whether images and annotations belong together.
_SAMPLE = 32


@dataclass(frozen=True, eq=False)
class DataFolder:
    """What a folder was found to hold."""

    root: Path
    layout: str
    """"COCO json", "Pascal VOC xml" or "YOLO txt"."""
    splits: dict[str, ImageSet]
    """By "train", "val", "test", in this order; those that are there. All have the same classes."""
    notes: tuple[str, ...]
    """What a user should know of how the folder was read, a sentence each."""


def discover(folder: Path) -> DataFolder:
    """Find out what a folder holds, and read it.

    Looked for in this order: a ``data.yaml`` (YOLO), COCO instances files, VOC xml files. Splits
    are told by the words in file and folder names ("train2017", "valid", "dev", ...); a folder
    without such words is one split, "train". No validation split is made up, see
    `rankdet.data.split.hold_out`.

    Args:
        folder: the data set.

    Returns:
        What was found, with one list of classes for all splits.

    Raises:
        DataError: If nothing is found (the message lists what was looked for), if more than one
            file claims to be the same split, or if what is found cannot be read.
    """
    if not folder.exists():
        raise DataError(f"{folder}: there is no such folder; check the path")
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file; name the folder that holds images and annotations")
    listing = Listing()
    notes: list[str] = []
    config = yolo_config(folder, listing)
    coco = coco_files(folder, listing)
    voc = voc_files(folder, listing)
    if config is None and not coco and not voc:
        # An archive unpacked into a folder of its own, as is usual.
        config = yolo_below(folder, listing)
    if config is not None:
        layout, splits = "YOLO txt", _read_yolo(config, folder, listing, notes)
    elif coco:
        layout, splits = "COCO json", _read_coco(coco, folder, listing)
    elif voc:
        layout, splits = "Pascal VOC xml", _read_voc(voc, folder, listing)
    else:
        raise DataError(describe_search(folder, listing))
    also = (("COCO json", coco), ("Pascal VOC xml", voc))
    notes += [f"{kind} is there too; not read." for kind, has in also if has and kind != layout]
    splits = share_classes(splits, derived=layout == "Pascal VOC xml")
    splits = {name: _sampled(image_set) for name, image_set in splits.items()}
    if "train" in splits and not any((~r.crowd).any() for r in splits["train"].records):
        faults = splits["train"].problems
        first = f"; the first of {len(faults)} problems: {faults[0]}" if faults else ""
        raise DataError(
            f"{folder}: the {len(splits['train'])} images of train have no object; there is"
            f" nothing to learn from them. Check that annotations and images belong together{first}"
        )
    notes += _overlaps(splits)
    order = [name for name in SPLITS if name in splits]
    return DataFolder(folder, layout, {name: splits[name] for name in order}, tuple(notes))


def share_classes(splits: dict[str, ImageSet], *, derived: bool = False) -> dict[str, ImageSet]:
    """Give all splits one list of classes: the union of theirs, by name.

    Args:
        splits: by name.
        derived: whether the classes were gathered from the boxes rather than listed by a file;
            then the union is sorted by name, numbered from 1, and differences are no problem.

    Returns:
        The splits with labels renumbered. A split whose list differed has a problem that says so.

    Raises:
        DataError: If an id stands for different classes in two splits.
    """
    lists = {(s.classes, s.category_ids) for s in splits.values()}
    if len(lists) <= 1:
        return splits
    if derived:
        names = sorted({name for s in splits.values() for name in s.classes})
        union = {name: number for number, name in enumerate(names, 1)}
    else:
        union = _union(splits)
    places = {name: place for place, name in enumerate(union)}
    shared = {}
    for split, image_set in splits.items():
        new = [places[name] for name in image_set.classes]
        records = image_set.records
        if new != list(range(len(new))):
            table = np.array(new, np.int64)
            records = tuple(replace(record, labels=table[record.labels]) for record in records)
        problems = image_set.problems
        if not derived and (image_set.classes, image_set.category_ids) != (
            tuple(union),
            tuple(union.values()),
        ):
            problems += (
                Problem(
                    image_set.root,
                    f"classes of {split}",
                    "splits list different classes; all have the union of them now",
                    f"{len(image_set.classes)} of {len(union)}",
                ),
            )
        shared[split] = replace(
            image_set,
            records=records,
            classes=tuple(union),
            category_ids=tuple(union.values()),
            problems=problems,
        )
    return shared


def _union(splits: dict[str, ImageSet]) -> dict[str, int]:
    union: dict[str, int] = {}
    names: dict[int, tuple[str, str]] = {}
    for split, image_set in splits.items():
        for name, category_id in zip(image_set.classes, image_set.category_ids, strict=True):
            other, where = names.setdefault(category_id, (name, split))
            if other != name:
                raise DataError(
                    f"{image_set.root}: category id {category_id} is {other!r} in {where} but"
                    f" {name!r} in {split}; give each class the same id in all splits"
                )
            union.setdefault(name, category_id)
    return dict(sorted(union.items(), key=lambda entry: entry[1]))


def _read_yolo(path: Path, root: Path, listing: Listing, notes: list[str]) -> dict[str, ImageSet]:
    config = read_yolo_config(path, listing=listing)
    splits = {}
    for split in config.splits:
        try:
            images, problems = list_images(config, split, listing=listing)
            read = read_yolo(images, config, name=split, root=root, listing=listing)
        except DataError as fault:
            # Test images are often published without labels.
            if split != "test":
                raise
            notes.append(f"The test split was left out: {fault}.")
            continue
        splits[split] = replace(read, problems=problems + read.problems)
    return splits


def _read_coco(files: Sequence[CocoFile], root: Path, listing: Listing) -> dict[str, ImageSet]:
    return {
        file.split: read_coco(
            file.path, file.image_dirs, name=file.split, root=root, listing=listing
        )
        for file in files
    }


def _read_voc(files: Sequence[VocFiles], root: Path, listing: Listing) -> dict[str, ImageSet]:
    splits = {}
    annotated = {path.stem for file in files for path in file.paths}
    seen: set[Path] = set()
    for file in files:
        read = read_voc(file.paths, file.image_dirs, name=file.split, root=root, listing=listing)
        folders = {record.path.parent for record in read.records} - seen
        seen |= folders
        bare = [
            Problem(folder / name, "image", "image has no annotation file; left out")
            for folder in sorted(folders)
            for stem, name in sorted(listing.images(folder).items())
            if file.complete and stem not in annotated
        ]
        splits[file.split] = replace(read, problems=(*file.problems, *read.problems, *bare))
    return splits


def _sampled(image_set: ImageSet) -> ImageSet:
    problems = check_images(image_set, sample=_SAMPLE)
    if len(problems) > min(_SAMPLE, len(image_set)) / 2:
        raise DataError(
            f"{len(problems)} of {min(_SAMPLE, len(image_set))} images of {image_set.name} that"
            f" were opened cannot be used as annotated; the first: {problems[0].file}:"
            f" {problems[0].value}"
        )
    return replace(image_set, problems=image_set.problems + problems)


def _overlaps(splits: dict[str, ImageSet]) -> list[str]:
    paths = {name: {record.path for record in s.records} for name, s in splits.items()}
    train = paths.pop("train", set())
    return [
        f"{len(train & other)} images are in train and in {name}: results on {name} will look"
        " better than they are."
        for name, other in paths.items()
        if train & other
    ]
