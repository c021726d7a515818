"""AP and LRP apart for images with few and with many objects.

A mean over a whole data set hides what happens in crowded images, where a ranking has more to sort.
Objects are counted without crowd regions; an image without any has 0. The matching is not done
again: it never looks beyond an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankdet.eval.coco_ap import average_precision
from rankdet.eval.instances import Bools, Floats, Ints
from rankdet.eval.lrp import optimal_lrp
from rankdet.eval.matching import Matches
from rankdet.eval.means import present_mean

Bins = tuple[tuple[int, int | None], ...]

BINS: Bins = ((0, 3), (4, 10), (11, 20), (21, 62), (63, None))
"""Least and largest number of objects of each bin; None is no limit."""


@dataclass(frozen=True, eq=False)
class CountBin:
    """The images of one bin; -1 where a number has no object to rest on."""

    low: int
    """Least number of objects in an image."""
    high: int | None
    """Largest number, or None for no limit."""
    images: Ints
    """Indices of the images, ascending."""
    objects: int
    """Objects in these images, without crowd."""
    ap: float
    """COCO's AP, IoU .5 to .95: mean over the classes that the bin has objects of."""
    ap50: float
    """AP at IoU .5."""
    olrp: tuple[float, float, float, float]
    """Means over classes of oLRP, localisation, false positive, false negative."""
    ap_per_class: Floats
    """[K] AP of each class."""


def by_count(
    matches: Matches, *, images: int, bins: Sequence[tuple[int, int | None]] = BINS
) -> tuple[CountBin, ...]:
    """Evaluate the images of each bin on their own.

    Args:
        matches: made at COCO's ten IoU thresholds, .5 to .95; its first area range is used.
        images: number of images of the data set, those without objects included.
        bins: least and largest number of objects in an image, both within the bin, ascending;
            None as the largest is no limit. They need not cover every number.

    Returns:
        One result for each bin, also for those without images. AP is the mean over the classes
        with objects in the bin; LRP is at IoU .5.

    Raises:
        ValueError: bins overlap or are empty, or there are no matches at IoU .5.
    """
    check_bins(bins)
    matches = matches.in_area(0)
    counts = objects_per_image(matches, images)
    results = []
    for low, high in bins:
        chosen = (counts >= low) & (counts <= (high if high is not None else counts.max(initial=0)))
        here = matches.on_images(chosen)
        precision = average_precision(here)
        per_class = np.array([present_mean(column) for column in precision.T])
        at_half = matches.threshold_index(0.5)
        olrp = optimal_lrp(here, max_detections=(matches.max_detections,))
        results.append(
            CountBin(
                low=low,
                high=high,
                images=np.flatnonzero(chosen),
                objects=int(counts[chosen].sum()),
                ap=present_mean(precision),
                ap50=present_mean(precision[at_half]),
                olrp=olrp.means(),
                ap_per_class=per_class,
            )
        )
    return tuple(results)


def objects_per_image(matches: Matches, images: int) -> Ints:
    """Return the number of objects in each image, crowd regions not counted: [I].

    Args:
        matches: its first area range should be that of all sizes.
        images: I, number of images of the data set.
    """
    objects: Bools = ~matches.gt_ignored[0]
    return np.bincount(matches.gt_image[objects], minlength=images).astype(np.int64)


def check_bins(bins: Sequence[tuple[int, int | None]]) -> None:
    """Refuse bins that are not ascending ranges of counts.

    Raises:
        ValueError: a bin is empty, begins below 0, or overlaps with the one before.
    """
    last: float = -1
    for low, high in bins:
        top = np.inf if high is None else high
        if low <= last or top < low:
            raise ValueError(
                "bins must be pairs (least, largest) in ascending order that do not overlap, "
                f"with None for no limit, got {tuple(bins)}"
            )
        last = top
