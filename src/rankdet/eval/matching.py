"""COCO's matching of detections with ground truth.

Lin, Maire, Belongie, Hays, Perona, Ramanan, Dollár, Zitnick, "Microsoft COCO: Common Objects in
Context", ECCV 2014; the rules of its matching are those of its evaluation program.

The matching is greedy: inside an image and a class the detections choose in order of their score.
It is done for all images and classes at once: first everybody's best detection chooses, then
everybody's second, so that the number of steps is the longest list and not the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rankdet.eval.instances import Bools, Floats, Instances, Ints

AREA_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""COCO's ranges of object area in px²; both ends belong to a range."""
IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""COCO's ten thresholds, .5 to .95."""

# Pairs of a detection and a ground truth whose overlap is worked out at a time: bounds the memory.
_PAIRS = 1 << 20


@dataclass(frozen=True, eq=False)
class Matches:
    """Which ground truth each detection has found, for A area ranges and T IoU thresholds.

    Detections stand in the order of evaluation: by class, then by falling score; equal scores by
    image id, then as in the given list. Those beyond the limit per image and class are left out.
    """

    iou_thresholds: tuple[float, ...]
    area_ranges: tuple[tuple[float, float], ...]
    max_detections: int
    source: Ints
    """[D] place of the detection in the given list."""
    image: Ints
    """[D] index of the image."""
    rank: Ints
    """[D] place among the detections of its image and class, 0 the best score."""
    score: Floats
    """[D]."""
    starts: Ints
    """[K + 1]: the detections of class k are starts[k] up to starts[k + 1]."""
    matched: NDArray[np.int32]
    """[A, T, D] index of the ground truth, or -1."""
    iou: Floats
    """[A, T, D] IoU with it, 0 where there is none; intersection / own area where it is crowd."""
    ignored: Bools
    """[A, T, D] neither right nor wrong: matched to crowd or to an object outside the area range,
    or unmatched and itself outside of it."""
    objects: Ints
    """[A, K] ground truths to be found."""
    gt_image: Ints
    """[G] image of each ground truth."""
    gt_class: Ints
    """[G] class of each ground truth."""
    gt_ignored: Bools
    """[A, G] crowd, or outside the area range."""

    @property
    def classes(self) -> int:
        """K."""
        return int(self.objects.shape[1])

    def threshold_index(self, iou: float) -> int:
        """Return the place of an IoU threshold.

        Raises:
            ValueError: no matching was made at this threshold.
        """
        for index, threshold in enumerate(self.iou_thresholds):
            if abs(threshold - iou) < 1e-12:
                return index
        known = ", ".join(f"{t:g}" for t in self.iou_thresholds)
        raise ValueError(
            f"no matching at an IoU of {iou:g}, only at {known}: "
            f"call match with iou_thresholds=({iou:g},)"
        )

    def in_area(self, area: int) -> Matches:
        """Return the matches of one area range only.

        Args:
            area: index of the area range.
        """
        only = slice(area, area + 1)
        return replace(
            self,
            area_ranges=self.area_ranges[only],
            matched=self.matched[only],
            iou=self.iou[only],
            ignored=self.ignored[only],
            objects=self.objects[only],
            gt_ignored=self.gt_ignored[only],
        )

    def on_images(self, keep: Bools) -> Matches:
        """Return the matches of some images only; matching never looks beyond an image.

        Args:
            keep: [I] bool.
        """
        chosen = keep[self.image]
        before = np.concatenate([[0], np.cumsum(chosen)])
        here = keep[self.gt_image]
        gt_class = self.gt_class[here]
        gt_ignored = self.gt_ignored[:, here]
        # `matched` keeps the indices of the whole set: they are names, not places.
        return replace(
            self,
            source=self.source[chosen],
            image=self.image[chosen],
            rank=self.rank[chosen],
            score=self.score[chosen],
            starts=before[self.starts],
            matched=self.matched[..., chosen],
            iou=self.iou[..., chosen],
            ignored=self.ignored[..., chosen],
            objects=_count_objects(gt_class, gt_ignored, self.classes),
            gt_image=self.gt_image[here],
            gt_class=gt_class,
            gt_ignored=gt_ignored,
        )


def match(
    instances: Instances,
    *,
    iou_thresholds: Sequence[float] = (0.5,),
    area_ranges: Sequence[tuple[float, float]] = AREA_RANGES,
    max_detections: int = 100,
) -> Matches:
    """Match detections with ground truth as COCO does.

    Inside an image and a class, the detections choose in order of falling score (equal scores: as
    listed). Each takes the ground truth of largest IoU that is still free, if that IoU is at least
    min(threshold, 1 - 1e-10); of equal ones the last listed. Objects to be found come before
    those that are ignored, whatever the IoU. A crowd region is never used up, and its overlap is
    intersection / area of the detection. Smaller limits of detections need no other matching:
    nobody's choice depends on a lower score, so keep ``rank < limit``.

    Args:
        instances: from `read_instances`.
        iou_thresholds: T values in (0, 1].
        area_ranges: A pairs of least and largest object area in px².
        max_detections: per image and class, 1 or more.

    Returns:
        The matches.

    Raises:
        ValueError: a threshold is not in (0, 1], a range is empty, or the limit is below 1.
    """
    _check_settings(iou_thresholds, area_ranges, max_detections)
    images, classes = len(instances.image_ids), len(instances.category_ids)
    source, rank = _order(instances, max_detections)
    image, klass = instances.dt_image[source], instances.dt_class[source]
    boxes = instances.dt_boxes[source]
    ranges = np.array(area_ranges, dtype=np.float64).reshape(-1, 2)
    thresholds = np.minimum(np.array(iou_thresholds, dtype=np.float64), 1 - 1e-10)

    low, high = ranges[:, :1], ranges[:, 1:]
    outside = (instances.gt_areas < low) | (instances.gt_areas > high)
    gt_ignored = outside | instances.gt_crowd
    areas = boxes[:, 2] * boxes[:, 3]

    shape = (len(ranges), len(thresholds), len(source))
    matched = np.full(shape, -1, dtype=np.int32)
    iou = np.zeros(shape)
    # Unmatched until further notice.
    ignored = np.repeat(((areas < low) | (areas > high))[:, None], len(thresholds), axis=1)

    group = klass * images + image
    gt_group = instances.gt_class * images + instances.gt_image
    pairs = _overlapping(
        boxes, group, instances.gt_boxes, gt_group, instances.gt_crowd, float(thresholds.min())
    )
    for area in range(len(ranges)):
        threshold, detection, truth, overlap = _choose(
            pairs, rank, gt_ignored[area], instances.gt_crowd, thresholds
        )
        matched[area, threshold, detection] = truth
        iou[area, threshold, detection] = overlap
        ignored[area, threshold, detection] = gt_ignored[area, truth]

    return Matches(
        iou_thresholds=tuple(float(t) for t in iou_thresholds),
        area_ranges=tuple((float(a), float(b)) for a, b in area_ranges),
        max_detections=max_detections,
        source=source,
        image=image,
        rank=rank,
        score=instances.dt_scores[source],
        starts=np.searchsorted(klass, np.arange(classes + 1)),
        matched=matched,
        iou=iou,
        ignored=ignored,
        objects=_count_objects(instances.gt_class, gt_ignored, classes),
        gt_image=instances.gt_image,
        gt_class=instances.gt_class,
        gt_ignored=gt_ignored,
    )


def box_iou(first: Floats, second: Floats, second_is_crowd: Bools) -> Floats:
    """Return the overlap of each pair of boxes, [N], in COCO's own order of operations.

    Args:
        first: [N, 4] x, y, width, height.
        second: [N, 4] likewise.
        second_is_crowd: [N] bool: divide by the area of the first box instead of the union.
    """
    right_bottom = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    sides = np.maximum(right_bottom - np.maximum(first[:, :2], second[:, :2]), 0.0)
    shared = sides[:, 0] * sides[:, 1]
    area = first[:, 2] * first[:, 3]
    union = np.where(second_is_crowd, area, area + second[:, 2] * second[:, 3] - shared)
    overlap: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return overlap


def _check_settings(
    iou_thresholds: Sequence[float],
    area_ranges: Sequence[tuple[float, float]],
    max_detections: int,
) -> None:
    if not iou_thresholds or not all(0 < t <= 1 for t in iou_thresholds):
        raise ValueError(f"iou_thresholds must lie in (0, 1], got {tuple(iou_thresholds)}")
    if not area_ranges or not all(low <= high for low, high in area_ranges):
        raise ValueError(f"area_ranges must be pairs of low <= high, got {tuple(area_ranges)}")
    if max_detections < 1:
        raise ValueError(f"max_detections must be 1 or more, got {max_detections}")


def _order(instances: Instances, limit: int) -> tuple[Ints, Ints]:
    """Return the places of the detections in the order of evaluation, and their ranks."""
    image, klass, scores = instances.dt_image, instances.dt_class, instances.dt_scores
    source = np.lexsort((-scores, image, klass))
    group = klass[source] * len(instances.image_ids) + image[source]
    rank = np.arange(len(source)) - np.searchsorted(group, group)
    source, rank = source[rank < limit], rank[rank < limit]
    order = np.lexsort((-scores[source], klass[source]))
    return source[order], rank[order]


def _overlapping(
    boxes: Floats, group: Ints, gt_boxes: Floats, gt_group: Ints, crowd: Bools, least: float
) -> tuple[Ints, Ints, Floats]:
    """Return all pairs of one image and class with enough overlap: detection, truth, IoU."""
    by_group = np.argsort(gt_group, kind="stable")
    first = np.searchsorted(gt_group[by_group], group)
    count = np.searchsorted(gt_group[by_group], group, side="right") - first
    ends = np.cumsum(count)
    found: list[tuple[Ints, Ints, Floats]] = []
    start = 0
    while start < len(count):
        done = ends[start] - count[start]
        stop = max(int(np.searchsorted(ends, done + _PAIRS, side="right")), start + 1)
        detection = np.repeat(np.arange(start, stop), count[start:stop])
        step = np.arange(len(detection)) - (ends - count)[detection] + done
        truth = by_group[first[detection] + step]
        overlap = box_iou(boxes[detection], gt_boxes[truth], crowd[truth])
        enough = overlap >= least
        found.append((detection[enough], truth[enough], overlap[enough]))
        start = stop
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    detections, truths, overlaps = zip(*found, strict=True)
    return np.concatenate(detections), np.concatenate(truths), np.concatenate(overlaps)


def _choose(
    pairs: tuple[Ints, Ints, Floats],
    rank: Ints,
    gt_ignored: Bools,
    crowd: Bools,
    thresholds: Floats,
) -> tuple[Ints, Ints, Ints, Floats]:
    """Return who chooses whom: index of the threshold, detection, truth, IoU."""
    detection, truth, overlap = pairs
    # By rank, then each detection's own order of preference.
    order = np.lexsort((-truth, -overlap, gt_ignored[truth], detection, rank[detection]))
    detection, truth, overlap = detection[order], truth[order], overlap[order]
    enough = overlap >= thresholds[:, None]  # [T, pairs]
    taken = np.zeros((len(thresholds), len(gt_ignored)), dtype=np.bool_)
    new = np.flatnonzero(np.diff(detection, prepend=-1))
    chosen: list[tuple[Ints, Ints]] = []
    bounds = np.flatnonzero(np.diff(rank[detection], prepend=-1, append=-1))
    for start, stop in pairwise(bounds.tolist()):
        here = truth[start:stop]
        free = enough[:, start:stop] & (~taken[:, here] | crowd[here])
        place = np.where(free, np.arange(start, stop), len(truth))
        heads = new[np.searchsorted(new, start) : np.searchsorted(new, stop)]
        best = np.minimum.reduceat(place, heads - start, axis=1)  # [T, detections]
        threshold, column = np.nonzero(best < len(truth))
        pair = best[threshold, column]
        taken[threshold, truth[pair]] = True
        chosen.append((threshold, pair))
    if not chosen:
        nobody = np.zeros(0, np.int64)
        return nobody, nobody, nobody, np.zeros(0)
    threshold = np.concatenate([t for t, _ in chosen])
    pair = np.concatenate([p for _, p in chosen])
    return threshold, detection[pair], truth[pair], overlap[pair]


def _count_objects(gt_class: Ints, gt_ignored: Bools, classes: int) -> Ints:
    counts = [np.bincount(gt_class[~row], minlength=classes) for row in gt_ignored]
    return np.stack(counts).astype(np.int64)
