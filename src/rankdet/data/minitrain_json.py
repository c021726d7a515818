"""A large COCO instances file, read and written piece by piece.

A subset keeps what the source says of its images to the letter: the text of each record is copied,
not written anew, so that keys, order and digits stay. It also spares most of the memory, as masks
never become Python numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from rankdet.data.errors import DataError
from rankdet.data.files import read_file

ImageId = int | str
Span = tuple[int, int]
_SPACE = re.compile(r"[ \t\n\r]*")
_LISTS = ("images", "annotations")


@dataclass(frozen=True, eq=False)
class Instances:
    """A COCO instances file; records stay text."""

    path: Path
    text: str
    sha256: str
    """Of the file."""
    head: tuple[tuple[str, Span], ...]
    """Keys in the order of the file, each with where its value stands."""
    images: tuple[tuple[ImageId, str], ...]
    """Id and file name of each image, in the order of the file."""
    image_spans: tuple[Span, ...]
    annotated: tuple[ImageId | None, ...]
    """The image id of each annotation; None where it has none."""
    annotation_spans: tuple[Span, ...]
    labels: NDArray[np.int64]
    """[N] place of the class of each annotation in `classes`."""
    areas: NDArray[np.float64]
    """[N] annotated area in square pixels, else that of the box; NaN where the box has none."""
    crowd: NDArray[np.bool_]
    """[N] whether the annotation is a region of objects nobody boxed one by one."""
    classes: tuple[str, ...]
    """C names by rising category id."""


def read_instances(path: Path, *, progress: Callable[[int, int], None] | None = None) -> Instances:
    """Read an instances file without building its records.

    Args:
        path: of the file.
        progress: called with the characters read and their total, now and then.

    Raises:
        DataError: the file cannot be read, is cut off or no instances file; a record lacks what
            is needed here (ids, file names, categories).
    """
    raw = read_file(path)
    digest = hashlib.sha256(raw).hexdigest()
    try:
        text = raw.decode(json.detect_encoding(raw))
    except UnicodeDecodeError as fault:
        raise DataError(f"{path}: no valid json: {fault}; export it again as UTF-8") from fault
    del raw
    head: list[tuple[str, Span]] = []
    images: list[tuple[ImageId, str]] = []
    spans: dict[str, list[Span]] = {key: [] for key in _LISTS}
    annotated: list[ImageId | None] = []
    categories: list[Any] = []
    kinds: list[object] = []
    areas: list[float] = []
    crowd: list[bool] = []
    for key, index, entry, span in _records(path, text):
        if index is None:
            head.append((key, span))
            if key == "categories":
                categories = entry
            continue
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {key}[{index}] is {str(entry)[:40]!r}, expected an object")
        spans[key].append(span)
        if key == "images":
            images.append(_image(path, index, entry))
        else:
            image_id = entry.get("image_id")
            annotated.append(image_id if is_id(image_id) else None)
            kinds.append(entry.get("category_id"))
            areas.append(_area(entry))
            crowd.append(bool(entry.get("iscrowd", 0)))
        if progress is not None and index % 5000 == 0:
            progress(span[1], len(text))
    missing = [key for key in (*_LISTS, "categories") if key not in dict(head)]
    _refuse_shared_ids(path, images)
    if missing:
        raise DataError(
            f"{path}: has no list {missing[0]!r}; a COCO instances file has images, annotations"
            " and categories"
        )
    labels, classes = _labels(path, categories, kinds)
    return Instances(
        path=path,
        text=text,
        sha256=digest,
        head=tuple(head),
        images=tuple(images),
        image_spans=tuple(spans["images"]),
        annotated=tuple(annotated),
        annotation_spans=tuple(spans["annotations"]),
        labels=labels,
        areas=np.array(areas, np.float64),
        crowd=np.array(crowd, np.bool_),
        classes=classes,
    )


def subset_text(source: Instances, chosen: AbstractSet[ImageId]) -> Iterator[str]:
    """Yield the instances file of some images, in pieces.

    Records and everything else the source holds keep text and order; annotations are those of the
    chosen images, crowd regions and faulty boxes included.
    """
    kept = {
        "images": (
            span
            for span, (image_id, _) in zip(source.image_spans, source.images, strict=True)
            if image_id in chosen
        ),
        "annotations": (
            span
            for span, image_id in zip(source.annotation_spans, source.annotated, strict=True)
            if image_id in chosen
        ),
    }
    yield "{"
    for number, (key, (start, end)) in enumerate(source.head):
        yield f"{', ' if number else ''}{json.dumps(key, ensure_ascii=False)}: "
        if key not in kept:
            yield source.text[start:end]
            continue
        yield "["
        for place, (first, last) in enumerate(kept[key]):
            yield f"{', ' if place else ''}{source.text[first:last]}"
        yield "]"
    yield "}"


def no_json(path: Path, fault: json.JSONDecodeError) -> DataError:
    """Return the error that says where a file stops being json."""
    cut = len(fault.doc.rstrip()) - fault.pos < 5 or fault.msg.startswith("Unterminated")
    hint = "the file seems to be cut off; copy it again" if cut else "correct the file there"
    return DataError(
        f"{path}: no valid json at line {fault.lineno}, column {fault.colno}: {fault.msg}; {hint}"
    )


def is_id(value: object) -> TypeGuard[ImageId]:
    """Return whether a value can be the id of an image."""
    return type(value) is int or isinstance(value, str)


def _records(path: Path, text: str) -> Iterator[tuple[str, int | None, Any, Span]]:
    """Yield the records of the two long lists, and with None each key of the file as it ends."""
    decode = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        found = _SPACE.match(text, at)
        return found.end() if found else at

    def expect(at: int, allowed: str) -> int:
        if text[at : at + 1] not in tuple(allowed):
            raise json.JSONDecodeError(f"Expecting one of {allowed}", text, at)
        return at

    def value_at(at: int) -> tuple[Any, int]:
        try:
            value, end = decode(text, at)
        except RecursionError as fault:
            raise DataError(f"{path}: no valid json: {fault}; export it again") from fault
        return value, end

    try:
        at = skip(0)
        if text[at : at + 1] == "[":
            raise DataError(
                f"{path}: expected an object with images, annotations and categories, found a list,"
                " perhaps of detections; a COCO instances file is needed"
            )
        at = skip(expect(at, "{") + 1)
        seen: set[str] = set()
        while text[at : at + 1] != "}":
            key, at = value_at(expect(at, '"'))
            if key in seen:
                raise DataError(f"{path}: the key {key!r} is there twice; remove one")
            seen.add(key)
            start = at = skip(expect(skip(at), ":") + 1)
            value: Any = None
            if key in _LISTS:
                at, index = skip(expect(at, "[") + 1), 0
                while text[at : at + 1] != "]":
                    entry, end = value_at(at)
                    yield key, index, entry, (at, end)
                    at, index = expect(skip(end), ",]"), index + 1
                    if text[at] == ",":
                        at = skip(at + 1)
                        if text[at : at + 1] == "]":
                            raise json.JSONDecodeError("Expecting value", text, at)
                at += 1
            else:
                value, at = value_at(at)
            yield key, None, value, (start, at)
            at = expect(skip(at), ",}")
            if text[at] == ",":
                at = expect(skip(at + 1), '"')
        if (end := skip(at + 1)) != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as fault:
        raise no_json(path, fault) from fault


def _image(path: Path, index: int, entry: dict[str, Any]) -> tuple[ImageId, str]:
    image_id, name = entry.get("id"), entry.get("file_name")
    if not is_id(image_id):
        raise DataError(
            f"{path}: images[{index}] has the id {image_id!r}; a whole number is needed"
        )
    if not isinstance(name, str) or not name:
        raise DataError(f"{path}: image {image_id!r} has the file_name {name!r}; a text is needed")
    return image_id, name


def _refuse_shared_ids(path: Path, images: list[tuple[ImageId, str]]) -> None:
    names: dict[ImageId, str] = {}
    for image_id, name in images:
        if names.setdefault(image_id, name) != name:
            raise DataError(
                f"{path}: image id {image_id!r} is given to {names[image_id]} and to {name}, so it"
                " is unknown whose boxes are whose; give each image its own id"
            )


def _area(entry: dict[str, Any]) -> float:
    box, area = entry.get("bbox"), entry.get("area")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return np.nan
    # A box without area is left out of training as well.
    if not (box[2] > 0 and box[3] > 0):
        return np.nan
    return float(area) if _is_number(area) and area > 0 else float(box[2] * box[3])


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < 1e150


def _labels(
    path: Path, categories: Any, kinds: list[object]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    names: dict[int, str] = {}
    for index, entry in enumerate(categories if isinstance(categories, list) else [categories]):
        category_id = entry.get("id") if isinstance(entry, dict) else None
        if type(category_id) is not int:
            raise DataError(
                f"{path}: categories[{index}] has the id {category_id!r}; a whole number is needed"
            )
        names[category_id] = str(entry.get("name"))
    ordered = sorted(names)
    place_of: dict[object, int] = {category_id: place for place, category_id in enumerate(ordered)}
    labels = np.empty(len(kinds), np.int64)
    for index, kind in enumerate(kinds):
        if type(kind) is not int or kind not in place_of:
            raise DataError(
                f"{path}: annotations[{index}] has the category_id {kind!r}, which is not among"
                f" the {len(names)} categories; add the category, or correct the annotation"
            )
        labels[index] = place_of[kind]
    return labels, tuple(names[category_id] for category_id in ordered)
