"""COCO's files as columns: ground truth and detections, checked once.

Lin, Maire, Belongie, Hays, Perona, Ramanan, Dollár, Zitnick, "Microsoft COCO: Common Objects in
Context", ECCV 2014.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


_NEEDED = {
    "annotations": ("image_id", "category_id", "bbox"),
    "detections": ("image_id", "category_id", "bbox", "score"),
}


@dataclass(frozen=True, eq=False)
class Instances:
    """Ground truth and detections of one data set, as columns.

    I images, K classes, G ground truths, D detections. Boxes are x, y, width, height in pixels.
    """

    image_ids: Ints
    """[I] ascending."""
    image_sizes: Floats
    """[I, 2] width and height in pixels, NaN where the ground truth does not say."""
    category_ids: Ints
    """[K] ascending."""
    names: tuple[str, ...]
    """K names of classes, as written; a name that two classes share has the id behind it."""
    gt_image: Ints
    """[G] index into `image_ids`."""
    gt_class: Ints
    """[G] index into `category_ids`."""
    gt_boxes: Floats
    """[G, 4]."""
    gt_areas: Floats
    """[G] px²: decides the range of sizes; of a mask where the ground truth has one."""
    gt_crowd: Bools
    """[G] a region of many objects: neither to be found nor wrong to find."""
    dt_image: Ints
    """[D] index into `image_ids`; in the order of the given list, like all `dt_`."""
    dt_class: Ints
    """[D] index into `category_ids`."""
    dt_boxes: Floats
    """[D, 4]."""
    dt_scores: Floats
    """[D] any finite number; only the order counts."""


def read_instances(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> Instances:
    """Turn COCO's dictionaries into columns, and check them.

    Args:
        ground_truth: COCO instances: "images" with "id" (and "width", "height" in pixels),
            "categories" with "id" (and "name"), "annotations" with "image_id", "category_id",
            "bbox" (x, y, width, height in pixels; sides of 0 or more), and, if there, "id",
            "area" (else width * height), "iscrowd" (else 0). Everything else is left alone.
        detections: COCO results: "image_id", "category_id", "bbox", "score" (any finite number).

    Returns:
        The columns. The arguments are not changed.

    Raises:
        TypeError: one of the two is no mapping or no list.
        ValueError: a record is incomplete, twice there, of an unknown image or category, or holds
            a number that is not finite or a box of negative size; the record is named.
    """
    return add_detections(read_truth(ground_truth), detections)


def read_truth(ground_truth: Mapping[str, Any]) -> Instances:
    """Turn COCO's ground truth into columns, and check it.

    Args:
        ground_truth: as for `read_instances`.

    Returns:
        The columns, without detections. The argument is not changed.

    Raises:
        TypeError: it is no mapping.
        ValueError: as `read_instances`.
    """
    images, categories, annotations = _sections(ground_truth)
    image_ids, image_order = _ids(images, "images")
    category_ids, category_order = _ids(categories, "categories")
    if any("id" in a for a in annotations if isinstance(a, Mapping)):
        _ids(annotations, "annotations")
    image_index = {int(v): i for i, v in enumerate(image_ids)}
    category_index = {int(v): i for i, v in enumerate(category_ids)}

    boxes = _boxes(annotations, "annotations")
    areas = [a.get("area") for a in annotations]
    filled = [w * h if a is None else a
              for a, (w, h) in zip(areas, boxes[:, 2:].tolist(), strict=True)]  # fmt: skip
    sizes = [[_side(images[j].get("width")), _side(images[j].get("height"))] for j in image_order]
    nothing = np.zeros(0, dtype=np.int64)
    return Instances(
        image_ids=image_ids,
        image_sizes=np.array(sizes, dtype=np.float64).reshape(-1, 2),
        category_ids=category_ids,
        names=_names([categories[j] for j in category_order]),
        gt_image=_lookup(annotations, "annotations", "image_id", image_index),
        gt_class=_lookup(annotations, "annotations", "category_id", category_index),
        gt_boxes=boxes,
        gt_areas=_numbers(filled, "annotations", "area"),
        gt_crowd=_flags(annotations, "annotations", "iscrowd"),
        dt_image=nothing,
        dt_class=nothing,
        dt_boxes=np.zeros((0, 4)),
        dt_scores=np.zeros(0),
    )


def add_detections(truth: Instances, detections: Sequence[Mapping[str, Any]]) -> Instances:
    """Return ground truth with these detections in place of any it has.

    Args:
        truth: from `read_truth`.
        detections: as for `read_instances`.

    Raises:
        TypeError: they are no list.
        ValueError: as `read_instances`.
    """
    if isinstance(detections, (str, bytes, Mapping)) or not isinstance(detections, Sequence):
        raise TypeError(
            "detections must be a list of COCO results (one dictionary for each box), "
            f"got {type(detections).__name__}"
        )
    images = {int(v): i for i, v in enumerate(truth.image_ids)}
    categories = {int(v): i for i, v in enumerate(truth.category_ids)}
    return replace(
        truth,
        dt_image=_lookup(detections, "detections", "image_id", images),
        dt_class=_lookup(detections, "detections", "category_id", categories),
        dt_boxes=_boxes(detections, "detections"),
        dt_scores=_numbers(_column(detections, "detections", "score"), "detections", "score"),
    )


def _sections(
    ground_truth: Mapping[str, Any],
) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    if not isinstance(ground_truth, Mapping):
        raise TypeError(
            "ground_truth must be a dictionary of COCO instances, "
            f"got {type(ground_truth).__name__}"
        )
    found = []
    for key in ("images", "categories", "annotations"):
        section = ground_truth.get(key)
        if not isinstance(section, list | tuple):
            state = "is missing" if section is None else f"is a {type(section).__name__}"
            raise ValueError(
                f"ground truth: {key!r} {state}; COCO instances need a list of {key}, each with "
                f"{', '.join(('id', 'name') if key == 'categories' else _NEEDED.get(key, ('id',)))}"
            )
        found.append(section)
    return found[0], found[1], found[2]


def _column(records: Sequence[Any], where: str, key: str) -> list[Any]:
    try:
        return [record[key] for record in records]
    except (KeyError, TypeError, IndexError):
        for number, record in enumerate(records):
            if not isinstance(record, Mapping):
                raise ValueError(
                    f"{where}[{number}] must be a dictionary, got {type(record).__name__}"
                ) from None
            if key not in record:
                needed = ", ".join(_NEEDED.get(where, ("id",)))
                raise ValueError(
                    f"{where}[{number}] has no {key!r}, only {_few(list(record))}; each of the "
                    f"{where} needs {needed}"
                ) from None
        raise


def _ids(records: Sequence[Any], where: str) -> tuple[Ints, Ints]:
    """Return the ids ascending, and the places of the records in that order."""
    values = _column(records, where, "id")
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            hint = f": write {value}" if isinstance(value, str) and value.isdecimal() else ""
            raise ValueError(f"{where}[{number}]: id must be a whole number, got {value!r}{hint}")
        if not -(2**63) <= int(value) < 2**63:
            raise ValueError(f"{where}[{number}]: id {value} is too large; number them from 1")
    ids = np.array(values, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(np.diff(ids[order]) == 0)
    if twice.size:
        first, second = order[twice[0]], order[twice[0] + 1]
        raise ValueError(
            f"{where}: id {ids[first]} is there more than once, first in {where}[{first}] and "
            f"{where}[{second}] ({twice.size} repeated in all); give each its own"
        )
    return ids[order], order


def _lookup(records: Sequence[Any], where: str, key: str, index: dict[int, int]) -> Ints:
    values = _column(records, where, key)
    try:
        found = np.array([index.get(value, -1) for value in values], dtype=np.int64)
    except TypeError:  # something that cannot be a key, such as a list
        found = np.array([-1 if not isinstance(v, int) else index.get(v, -1) for v in values])
    bad = np.flatnonzero(found < 0)
    if bad.size:
        value = values[bad[0]]
        what = key.removesuffix("_id")
        hint = f"; write it as the number {value}" if isinstance(value, str) else ""
        raise ValueError(
            f"{where}: {bad.size} of {len(values)} have an unknown {what}, first "
            f"{where}[{bad[0]}] with {key} {value!r}{hint}. The ground truth knows {len(index)} "
            f"{what} ids; are both of the same data set and split?"
        )
    return found


def _numbers(values: list[Any], where: str, key: str) -> Floats:
    """Return finite numbers, [N]."""
    numbers = _as_array(values, (len(values),))
    if numbers is None:
        for number, value in enumerate(values):
            if _as_array([value], (1,)) is None:
                raise ValueError(f"{where}[{number}]: {key} must be a number, got {value!r}")
        raise ValueError(f"{where}: {key} must be numbers")
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        raise ValueError(
            f"{where}[{bad[0]}]: {key} is {numbers[bad[0]]:g} ({bad.size} such in all); it must "
            "be a finite number: leave these records out, or mend what wrote them"
        )
    return numbers


def _boxes(records: Sequence[Any], where: str) -> Floats:
    """Return finite boxes of no negative size, [N, 4]."""
    values = _column(records, where, "bbox")
    boxes = _as_array(values, (len(values), 4))
    if boxes is None:
        for number, value in enumerate(values):
            if _as_array([value], (1, 4)) is None:
                raise ValueError(
                    f"{where}[{number}]: bbox must be four numbers (x, y, width, height), "
                    f"got {value!r}"
                )
        raise ValueError(f"{where}: bbox must be four numbers each")
    for bad, problem in (
        (~np.isfinite(boxes).all(axis=1), "is not finite"),
        ((boxes[:, 2:] < 0).any(axis=1), "has a negative width or height"),
    ):
        if bad.any():
            number = int(np.argmax(bad))
            raise ValueError(
                f"{where}[{number}]: bbox {boxes[number].tolist()} {problem} "
                f"({int(bad.sum())} such in all); a box is x, y, width, height in pixels (from "
                "corners: x1, y1, x2 - x1, y2 - y1)"
            )
    return boxes


def _flags(records: Sequence[Any], where: str, key: str) -> Bools:
    """Return 0, 1, false, true, or nothing as booleans, [N]."""
    values = [record.get(key) or 0 for record in records]
    for number, value in enumerate(values):
        if value not in (0, 1):
            raise ValueError(f"{where}[{number}]: {key} must be 0 or 1, got {value!r}")
    return np.array(values, dtype=np.bool_)


def _few(keys: list[Any], most: int = 8) -> str:
    more = ", ..." if len(keys) > most else ""
    return ", ".join(repr(key) for key in keys[:most]) + more if keys else "nothing"


def _as_array(values: list[Any], shape: tuple[int, ...]) -> Floats | None:
    """Return numbers as an array of this shape, or None: text and lists of other lengths too."""
    if not values:
        return np.zeros(shape)
    try:
        array = np.array(values)
    except ValueError:
        return None
    if array.shape != shape or array.dtype.kind not in "iuf":
        return None
    return array.astype(np.float64)


def _side(value: object) -> float:
    """Return the side of an image; it serves a warning only, so anything odd is unknown."""
    return float(value) if isinstance(value, int | float) and value > 0 else np.nan


def _names(categories: Sequence[Any]) -> tuple[str, ...]:
    given = [(c.get("name"), c["id"]) for c in categories]
    names = [f"class {number}" if name is None else str(name) for name, number in given]
    count = Counter(names)
    return tuple(
        f"{name} ({category['id']})" if count[name] > 1 else name
        for name, category in zip(names, categories, strict=True)
    )
