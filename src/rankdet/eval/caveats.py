"""What to know before one believes a number: few objects, absent classes, suspicious boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rankdet.eval.instances import Bools, Floats, Instances, Ints

# Boxes of detectors reach a little beyond the border; this far in bulk is another format.
_BEYOND = 1.05
_BULK = 0.2


class Counted(Protocol):
    """A number's name for people, and how many objects it rests on."""

    @property
    def label(self) -> str:
        """Name of the class, size or bin."""
        ...

    @property
    def objects(self) -> int:
        """Objects to be found."""
        ...


def caveats(
    instances: Instances,
    classes: Sequence[Counted],
    others: Sequence[Counted],
    *,
    few: int,
    limit: int = 100,
) -> list[str]:
    """Return sentences about what weakens the numbers, the most important first.

    Args:
        instances: that were scored.
        classes: the classes.
        others: sizes and bins of counts.
        few: numbers that rest on fewer objects are named.
        limit: of detections per image and class.
    """
    found = []
    if not len(instances.dt_scores):
        found.append("There are no detections.")
    found += _format_of_boxes(instances)
    scarce = [f"{c.label} ({c.objects})" for c in (*classes, *others) if 0 < c.objects < few]
    if scarce:
        found.append(f"Rests on fewer than {few} objects: {_some(scarce)}.")
    absent = [c.label for c in classes if c.objects == 0]
    if absent:
        found.append(f"No objects, so left out of all means: {_some(absent)}.")
    found += _over_the_limit(instances, limit)
    for where, boxes in (("objects", instances.gt_boxes), ("detections", instances.dt_boxes)):
        empty = int((boxes[:, 2:] == 0).any(axis=1).sum())
        if empty:
            found.append(f"{empty} of {len(boxes)} {where} have a width or height of 0.")
    return found


def _format_of_boxes(instances: Instances) -> list[str]:
    """Return whether boxes look like corners, or like shares of the image's sides."""
    found = []
    extent = (instances.gt_boxes[:, :2] + instances.gt_boxes[:, 2:]).max(axis=0, initial=0.0)
    sides = (
        ("objects", instances.gt_boxes, instances.gt_image),
        ("detections", instances.dt_boxes, instances.dt_image),
    )
    for where, boxes, image in sides:
        size = instances.image_sizes[image]
        known: Bools = np.asarray(np.isfinite(size).all(axis=1))
        if where == "detections" and len(instances.gt_boxes):
            # Where the size of an image is not given, no object lies beyond this.
            size = np.where(known[:, None], size, extent)
            known = np.ones_like(known)
        beyond = ((boxes[:, :2] + boxes[:, 2:]) > _BEYOND * size + 1).any(axis=1) & known
        if beyond.sum() > _BULK * max(known.sum(), 1):
            first = int(np.argmax(beyond))
            found.append(
                f"{int(beyond.sum())} of {int(known.sum())} boxes of {where} reach beyond their "
                f"image, the first {_written(boxes[first])}: a box is x, y, width, height in "
                "pixels; are these two corners? Write x1, y1, x2 - x1, y2 - y1."
            )
    detected = instances.dt_boxes
    if len(detected) and detected.max() <= 2 and extent.max() > 10:
        found.append(
            f"All boxes of detections lie within 2 pixels of the corner, the first "
            f"{_written(detected[0])}: are they shares of the image's sides? Multiply them by its "
            "width and height."
        )
    return found


def _over_the_limit(instances: Instances, limit: int) -> list[str]:
    """Return what COCO's limit of detections per image and class leaves out."""
    found = []
    objects = ~instances.gt_crowd
    crowded = _group_sizes(instances, instances.gt_image[objects], instances.gt_class[objects])
    over = int((crowded > limit).sum())
    if over:
        found.append(
            f"{over} times an image holds more than {limit} objects of one class (at most "
            f"{int(crowded.max())}), but COCO counts only the best {limit} detections of each."
        )
    given = _group_sizes(instances, instances.dt_image, instances.dt_class)
    dropped = int(np.maximum(given - limit, 0).sum())
    if dropped:
        found.append(
            f"{dropped} of {len(instances.dt_scores)} detections are beyond the best {limit} of "
            "their image and class, and do not count."
        )
    return found


def _group_sizes(instances: Instances, image: Ints, klass: Ints) -> Ints:
    sizes: Ints = np.unique(klass * len(instances.image_ids) + image, return_counts=True)[1]
    return sizes


def _written(box: Floats) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box.tolist()) + "]"


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
