"""Where annotations and images lie in a folder, told by names alone."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rankdet.data.errors import DataError
from rankdet.data.files import Listing, is_image, read_file, report_missing
from rankdet.data.imageset import Problem

SPLITS = ("train", "val", "test")
_VAL_WORDS = frozenset(("val", "valid", "validation", "dev", "eval", "minival"))
# COCO ships these beside the instances; they hold no boxes, or the same ones again.
_OTHER_COCO = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")
# A folder with more json files than this has one per image, which is not COCO's way.
_MANY_JSON = 50
_MANY_FOLDERS = 200
_DEPTH = 3


@dataclass(frozen=True)
class CocoFile:
    """A COCO instances file and where its images may be."""

    path: Path
    split: str
    image_dirs: tuple[Path, ...]


@dataclass(frozen=True)
class VocFiles:
    """The VOC annotations of a split and where their images may be."""

    paths: tuple[Path, ...]
    split: str
    image_dirs: tuple[Path, ...]
    problems: tuple[Problem, ...]
    complete: bool
    """Whether all xml files of their folders are in some split (not so with lists of images)."""


def split_of(text: str) -> str | None:
    """Return the split that a file or folder name stands for: "train", "val", "test" or None.

    >>> split_of("instances_train2017"), split_of("valid"), split_of("test-dev"), split_of("images")
    ('train', 'val', 'test', None)
    """
    for word in re.findall("[a-z]+", text.lower()):
        if word in _VAL_WORDS:
            return "val"
        if word.startswith("train") or word.endswith("train"):
            return "train"
        if word in ("test", "testing", "minitest"):
            return "test"
    return None


def yolo_config(folder: Path, listing: Listing) -> Path | None:
    """Return the yaml that describes YOLO data in a folder, if there is one.

    Raises:
        DataError: If there are several, none of them named data.yaml.
    """
    names = sorted(n for n in listing.files(folder) if n.endswith((".yaml", ".yml")))
    for usual in ("data.yaml", "data.yml"):
        if usual in names:
            return folder / usual
    found = [folder / name for name in names if _describes_yolo(folder / name)]
    if len(found) > 1:
        raise DataError(
            f"{folder}: {' and '.join(path.name for path in found)} both describe a data set;"
            " name the one that is meant data.yaml"
        )
    return found[0] if found else None


def yolo_below(folder: Path, listing: Listing) -> Path | None:
    """Return the yaml that describes YOLO data in a folder right below, if there is one.

    Raises:
        DataError: If there are several.
    """
    below = (yolo_config(folder / name, listing) for name in listing.folders(folder))
    found = [path for path in below if path is not None]
    if len(found) > 1:
        raise DataError(
            f"{folder}: {' and '.join(str(path.relative_to(folder)) for path in found[:3])} both"
            " describe a data set; name the folder of the one that is meant"
        )
    return found[0] if found else None


def coco_files(folder: Path, listing: Listing) -> list[CocoFile]:
    """Return the COCO instances files in a folder, one for each split.

    Raises:
        DataError: If two files claim to be the same split.
    """
    found: list[Path] = []
    for place in listing.walk(folder, 2):
        files = sorted(name for name in listing.files(place) if name.endswith(".json"))
        if len(files) <= _MANY_JSON:
            found += [place / name for name in files if not name.startswith((".", *_OTHER_COCO))]
    found = [path for path in found if _is_coco(path)]
    by_split: dict[str | None, list[Path]] = {}
    for path in found:
        by_split.setdefault(_split_of_path(path, folder), []).append(path)
    # Files without a split in their name count only where no file has one.
    if len(by_split) > 1:
        by_split.pop(None, None)
    chosen = []
    for split, paths in by_split.items():
        whole = [path for path in paths if "trainval" not in path.stem.lower()] or paths
        if len(whole) > 1:
            names = " and ".join(str(path.relative_to(folder)) for path in whole[:3])
            raise DataError(
                f"{folder}: {names} could both be the annotations of '{split or 'train'}'; leave"
                " one of them in the folder, or name them train.json, val.json and test.json"
            )
        path, name = whole[0], split or "train"
        first = (path.stem.removeprefix("instances_"), path.parent)
        chosen.append(CocoFile(path, name, _image_dirs(folder, name, listing, *first)))
    return chosen


def voc_files(folder: Path, listing: Listing) -> list[VocFiles]:
    """Return the VOC annotations in a folder, by split.

    Raises:
        DataError: If a list of a split names many images without annotations.
    """
    paths: dict[str | None, list[Path]] = {}
    dirs: dict[str | None, list[Path]] = {}
    problems: dict[str | None, list[Problem]] = {}
    listed = False
    for place in listing.walk(folder, _DEPTH):
        stems = {
            Path(name).stem
            for name in listing.files(place)
            if name.endswith(".xml") and not name.startswith(".")
        }
        if not stems or not _is_voc(place / f"{min(stems)}.xml"):
            continue
        lists = _image_lists(place.parent / "ImageSets" / "Main", listing)
        listed |= bool(lists)
        for split, (source, names) in lists.items():
            missing = [name for name in names if name not in stems]
            # The challenge keeps the annotations of its later test sets to itself.
            if split == "test" and len(missing) == len(names):
                continue
            gaps = report_missing(missing, len(names), source, (place,))
            problems.setdefault(split, []).extend(gaps)
            kept = (place / f"{name}.xml" for name in names if name in stems)
            paths.setdefault(split, []).extend(kept)
            dirs.setdefault(split, []).append(place.parent / "JPEGImages")
        if not lists:
            split_name = _split_of_path(place / "x", folder)
            every = (place / f"{stem}.xml" for stem in sorted(stems))
            paths.setdefault(split_name, []).extend(every)
    if None in paths:
        unnamed = paths.pop(None)
        paths.setdefault("train", unnamed)
    return [
        VocFiles(
            paths=tuple(paths[split]),
            split=split,
            image_dirs=(*dirs.get(split, ()), *_image_dirs(folder, split, listing)),
            problems=tuple(problems.get(split, ())),
            complete=not listed,
        )
        for split in SPLITS
        if paths.get(split)
    ]


def describe_search(folder: Path, listing: Listing) -> str:
    """Return what to tell a user in whose folder nothing was found."""
    seen: dict[str, int] = {}
    for place in listing.walk(folder, _DEPTH):
        for name in listing.files(place):
            kind = "images" if is_image(name) else Path(name).suffix.lower() or "no ending"
            seen[kind] = seen.get(kind, 0) + 1
    held = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.items())) or "no files"
    hint = ""
    if ".txt" in seen and "images" in seen:
        hint = " The .txt files may be YOLO labels: add a data.yaml with train, val and names."
    return (
        f"{folder}: no annotations found. Looked for YOLO (data.yaml beside images and labels),"
        " COCO json (annotations/instances_train2017.json, annotations/train.json,"
        " train/_annotations.coco.json, or a .json beside the images) and Pascal VOC xml"
        " (VOCdevkit/VOC2007/Annotations, Annotations/*.xml, or .xml beside the images)."
        f" The folder holds: {held}.{hint} Name the folder that holds images and annotations"
    )


def _split_of_path(path: Path, root: Path) -> str | None:
    parts = [path.stem, *path.parent.relative_to(root).parts[::-1]]
    return next((split for part in parts if (split := split_of(part)) is not None), None)


def _image_dirs(
    root: Path, split: str, listing: Listing, stem: str = "", first: Path | None = None
) -> tuple[Path, ...]:
    """Return folders that may hold the images of a split, likeliest first."""

    def rank(place: Path) -> int:
        if place.name == stem:
            return 0
        if place == first and any(map(is_image, listing.files(place))):
            return 1
        named = _split_of_path(place / "x", root)
        if named == split:
            return 2
        if named is None:
            return 3 if any(map(is_image, listing.files(place))) else 4
        # A file of one split may list images kept under another's name.
        return 5

    places = list(islice(listing.walk(root, _DEPTH), _MANY_FOLDERS))
    return tuple(sorted(places, key=rank))


def _image_lists(folder: Path, listing: Listing) -> dict[str, tuple[Path, list[str]]]:
    files = listing.files(folder)
    wanted = {split: f"{split}.txt" for split in SPLITS}
    if "train.txt" not in files:
        wanted["train"] = "trainval.txt"
    found = {}
    for split, name in wanted.items():
        if name in files:
            lines = read_file(folder / name).decode("utf-8", "replace").splitlines()
            # Lists of a class have a second column.
            names = [line.split()[0] for line in lines if line.strip()]
            found[split] = folder / name, list(dict.fromkeys(names))
    return found


def _is_coco(path: Path) -> bool:
    keys = _has(path, (b'"images"', b'"annotations"'))
    if keys is None or all(keys):
        return True
    # An empty or damaged file in the usual place is to be complained about, not passed over.
    place = path.parent.name.lower() == "annotations"
    named = any(word in path.stem.lower() for word in ("annotations", "coco", "instances"))
    return (any(keys) and (place or named)) or (place and split_of(path.stem) is not None) or named


def _is_voc(path: Path) -> bool:
    keys = _has(path, (b"<annotation", b"<object"))
    return keys is None or any(keys) or path.stat().st_size == 0


def _describes_yolo(path: Path) -> bool:
    text = read_file(path).decode("utf-8", "replace") if path.stat().st_size else ""
    return all(re.search(rf"^{key}\s*:", text, re.MULTILINE) for key in ("names", "(train|val)"))


def _has(path: Path, words: Iterable[bytes]) -> list[bool] | None:
    """Return which words a file contains; None if it may not be read."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return [False for _ in words]
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return [content.find(word) >= 0 for word in words]
    except PermissionError:
        return None
