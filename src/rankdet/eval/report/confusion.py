"""What became of each detection and each object at the thresholds, and the table of confusions.

Right detections are those of COCO's matching, so that the table agrees with LRP. What is left over
on both sides is then brought together across classes: a wrong detection on an object that nobody
found was taken for another class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankdet.eval.instances import Bools, Floats, Instances, Ints
from rankdet.eval.matching import Matches, box_iou

RIGHT, OTHER_CLASS, SECOND, LOOSE, NOTHING = range(5)
"""Kinds of detections: right; on an unfound object of another class; on an object that was found
already; near an object of its class but below the IoU asked for; on nothing."""

# Below this IoU a box is on nothing rather than off its object.
_NEAR = 0.1


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The detections at or above the thresholds, and the objects: N detections, G objects.

    Detections that COCO ignores (on crowd regions) are left out.
    """

    kept: Ints
    """[N] places in the matches."""
    kind: NDArray[np.int8]
    """[N] one of `RIGHT` to `NOTHING`."""
    truth: Ints
    """[N] index of the object that the detection is about, -1 for `NOTHING`."""
    iou: Floats
    """[N] overlap with it, 0 for `NOTHING`."""
    found: Bools
    """[G] whether a right detection is kept."""
    taken_for: Ints
    """[G] class of the detection of another class that took it, or -1."""
    sought: Bools
    """[G] whether it is to be found: no crowd."""
    table: Ints
    """[K + 1, K + 1] true class by class detected. The last row is no object to be found, the last
    column is missed. Rows sum to the objects, columns to the detections kept."""

    @property
    def right(self) -> int:
        """Detections that are right."""
        return int((self.kind == RIGHT).sum())


def outcomes(
    instances: Instances,
    matches: Matches,
    thresholds: Sequence[float | None],
    *,
    tau: float = 0.5,
) -> Outcomes:
    """Say what became of each detection and object if each class has its threshold.

    A detection of another class takes an object if nobody found the object and their IoU is tau or
    more; the detections choose in order of their score, across classes, each the largest IoU.

    Args:
        instances: from `read_instances`.
        matches: made from them with tau among the IoU thresholds; its first area range is used.
        thresholds: [K] scores; a detection is kept at or above that of its class, None keeps none.
        tau: IoU from which on a box is right.

    Raises:
        ValueError: the number of thresholds is not that of the classes, or tau has no matches.
    """
    classes = matches.classes
    if len(thresholds) != classes:
        raise ValueError(
            f"expected {classes} thresholds, one for each class, got {len(thresholds)}"
        )
    at = matches.threshold_index(tau)
    klass = np.repeat(np.arange(classes), np.diff(matches.starts))
    least = np.array([np.inf if t is None else t for t in thresholds], dtype=np.float64)
    kept = np.flatnonzero((matches.score >= least[klass]) & ~matches.ignored[0, at])
    # Best score first, whatever the class.
    kept = kept[np.argsort(-matches.score[kept], kind="stable")]
    truth = matches.matched[0, at, kept].astype(np.int64)
    iou = matches.iou[0, at, kept]
    kind = np.where(truth >= 0, RIGHT, NOTHING).astype(np.int8)
    sought = ~instances.gt_crowd
    found = np.zeros(len(sought), dtype=np.bool_)
    found[truth[truth >= 0]] = True
    taken_for = np.full(len(sought), -1, dtype=np.int64)

    wrong = np.flatnonzero(truth < 0)
    in_image = _groups(matches.image[kept[wrong]], len(instances.image_ids))
    truths_in_image = _groups(instances.gt_image, len(instances.image_ids))
    for image in np.unique(matches.image[kept[wrong]]).tolist():
        near = truths_in_image[image]
        near = near[sought[near]]
        if not len(near):
            continue
        here = wrong[in_image[image]]
        boxes = instances.dt_boxes[matches.source[kept[here]]]
        first, second = np.divmod(np.arange(len(here) * len(near)), len(near))
        overlap = box_iou(
            boxes[first], instances.gt_boxes[near][second], np.zeros(len(first), np.bool_)
        ).reshape(len(here), len(near))
        for place, row in zip(here.tolist(), overlap, strict=True):
            own = int(klass[kept[place]])
            same = instances.gt_class[near] == own
            free = (row >= tau) & ~found[near] & (taken_for[near] < 0) & ~same
            loose = same & (row >= _NEAR)
            for possible, name in ((free, OTHER_CLASS), (row >= tau, SECOND), (loose, LOOSE)):
                if possible.any():
                    best = int(np.argmax(np.where(possible, row, -1.0)))
                    kind[place], truth[place], iou[place] = name, near[best], row[best]
                    if name == OTHER_CLASS:
                        taken_for[near[best]] = own
                    break

    table = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    about = (kind == RIGHT) | (kind == OTHER_CLASS)
    rows = np.where(about, np.append(instances.gt_class, classes)[truth], classes)
    np.add.at(table, (rows, klass[kept]), 1)
    missed = sought & ~found & (taken_for < 0)
    table[:classes, classes] = np.bincount(instances.gt_class[missed], minlength=classes)
    return Outcomes(kept, kind, truth, iou, found, taken_for, sought, table)


def _groups(values: Ints, number: int) -> list[Ints]:
    """Return for each value from 0 up the places where it stands."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.searchsorted(values[order], np.arange(1, number)))
