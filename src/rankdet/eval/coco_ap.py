"""COCO's files as columns, and COCO's AP from a tested library.

Lin, Maire, Belongie, Hays, Perona, Ramanan, Dollár, Zitnick, "Microsoft COCO: Common Objects in
Context", ECCV 2014. The twelve numbers and their names are those of its evaluation program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

STATS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
"""Names of COCO's twelve numbers, in COCO's order."""


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


@dataclass(frozen=True, eq=False)
class CocoAP:
    """COCO's numbers; -1 where there is no object to be found, as in COCO's own program."""

    stats: Floats
    """[12] in the order of `STATS`."""
    ap_per_class: Floats
    """[K] AP at IoU .5 to .95, all areas, 100 detections per image and class."""
    ap50_per_class: Floats
    """[K] AP at IoU .5."""
    ar_per_class: Floats
    """[K] AR at IoU .5 to .95, 100 detections per image and class."""


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
    images, categories, annotations = _sections(ground_truth)
    if isinstance(detections, (str, bytes, Mapping)) or not isinstance(detections, Sequence):
        raise TypeError(
            "detections must be a list of COCO results (one dictionary for each box), "
            f"got {type(detections).__name__}"
        )
    image_ids, image_order = _ids(images, "images")
    category_ids, category_order = _ids(categories, "categories")
    if any("id" in a for a in annotations if isinstance(a, Mapping)):
        _ids(annotations, "annotations")
    image_index = {int(v): i for i, v in enumerate(image_ids)}
    category_index = {int(v): i for i, v in enumerate(category_ids)}

    gt_boxes = _boxes(annotations, "annotations")
    areas = [a.get("area") for a in annotations]
    filled = [w * h if a is None else a
              for a, (w, h) in zip(areas, gt_boxes[:, 2:].tolist(), strict=True)]  # fmt: skip
    sizes = [[_side(images[j].get("width")), _side(images[j].get("height"))] for j in image_order]
    return Instances(
        image_ids=image_ids,
        image_sizes=np.array(sizes, dtype=np.float64).reshape(-1, 2),
        category_ids=category_ids,
        names=_names([categories[j] for j in category_order]),
        gt_image=_lookup(annotations, "annotations", "image_id", image_index),
        gt_class=_lookup(annotations, "annotations", "category_id", category_index),
        gt_boxes=gt_boxes,
        gt_areas=_numbers(filled, "annotations", "area"),
        gt_crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=np.bool_),
        dt_image=_lookup(detections, "detections", "image_id", image_index),
        dt_class=_lookup(detections, "detections", "category_id", category_index),
        dt_boxes=_boxes(detections, "detections"),
        dt_scores=_numbers(_column(detections, "detections", "score"), "detections", "score"),
    )


def coco_ap(instances: Instances) -> CocoAP:
    """Compute COCO's average precision and recall of boxes.

    Args:
        instances: from `read_instances`.

    Returns:
        The twelve numbers and those of each class. A class with objects but without detections
        has AP 0; one without objects -1, and it takes no part in the means.
    """
    classes = len(instances.category_ids)
    if not (~instances.gt_crowd).any():
        absent = np.full(classes, -1.0)
        return CocoAP(np.full(12, -1.0), absent, absent.copy(), absent.copy())
    # Imported here: it takes a third of a second, and reading this module should not.
    from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]

    truth, results = _as_coco(instances)
    evaluation = COCOeval_faster(COCO(truth), COCO(results), iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision: Floats = evaluation.eval["precision"]  # [IoU, recall, class, area, limit]
    recall: Floats = evaluation.eval["recall"]  # [IoU, class, area, limit]
    stats = [
        present_mean(precision[..., 0, 2]),
        present_mean(precision[0, ..., 0, 2]),
        present_mean(precision[5, ..., 0, 2]),
        *(present_mean(precision[..., area, 2]) for area in (1, 2, 3)),
        *(present_mean(recall[..., 0, limit]) for limit in (0, 1, 2)),
        *(present_mean(recall[..., area, 2]) for area in (1, 2, 3)),
    ]
    each = range(classes)
    return CocoAP(
        stats=np.array(stats),
        ap_per_class=np.array([present_mean(precision[:, :, k, 0, 2]) for k in each]),
        ap50_per_class=np.array([present_mean(precision[0, :, k, 0, 2]) for k in each]),
        ar_per_class=np.array([present_mean(recall[:, k, 0, 2]) for k in each]),
    )


def present_mean(values: Floats) -> float:
    """Return the mean of what is there: neither -1 nor NaN; -1 if nothing is.

    Example:
        >>> present_mean(np.array([0.5, -1.0, 1.0]))
        0.75
    """
    there = values[values > -1]
    return float(there.mean()) if there.size else -1.0


def _as_coco(instances: Instances) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return fresh dictionaries with all that the library asks for."""
    images = [{"id": i} for i in instances.image_ids.tolist()]
    categories = [{"id": i, "name": str(i)} for i in instances.category_ids.tolist()]
    # Numbered from 1: in COCO's program a match with number 0 is none.
    truth = [
        {"id": n, "image_id": i, "category_id": k, "bbox": b, "area": a, "iscrowd": c}
        for n, (i, k, b, a, c) in enumerate(
            zip(
                instances.image_ids[instances.gt_image].tolist(),
                instances.category_ids[instances.gt_class].tolist(),
                instances.gt_boxes.tolist(),
                instances.gt_areas.tolist(),
                instances.gt_crowd.astype(int).tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    results = [
        {"id": n, "image_id": i, "category_id": k, "bbox": b, "area": a, "score": s, "iscrowd": 0}
        for n, (i, k, b, a, s) in enumerate(
            zip(
                instances.image_ids[instances.dt_image].tolist(),
                instances.category_ids[instances.dt_class].tolist(),
                instances.dt_boxes.tolist(),
                (instances.dt_boxes[:, 2] * instances.dt_boxes[:, 3]).tolist(),
                instances.dt_scores.tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    return (
        {"images": images, "categories": categories, "annotations": truth},
        {"images": images, "categories": categories, "annotations": results},
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
            raise ValueError(f"ground truth: {key!r} {state}; COCO instances need a list of {key}")
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
                raise ValueError(f"{where}[{number}] has no {key!r}: {dict(record)!r}") from None
        raise


def _ids(records: Sequence[Any], where: str) -> tuple[Ints, Ints]:
    """Return the ids ascending, and the places of the records in that order."""
    values = _column(records, where, "id")
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{where}[{number}]: id must be a whole number, got {value!r}")
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
            f"{where}[{bad[0]}]: {key} is {numbers[bad[0]]:g} ({bad.size} such in all); "
            "it must be finite"
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
                f"({int(bad.sum())} such in all); a box is x, y, width, height in pixels"
            )
    return boxes


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
    names = [str(c.get("name", f"class {c['id']}")) for c in categories]
    count = Counter(names)
    return tuple(
        f"{name} ({category['id']})" if count[name] > 1 else name
        for name, category in zip(names, categories, strict=True)
    )
