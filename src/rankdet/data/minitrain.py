"""How well a part of a data set stands for the whole: by class, by size, by class and size.

Samet, Hicsonmez, Akbas, "HoughNet: Integrating Near and Long-Range Evidence for Bottom-Up Object
Detection", ECCV 2020, drew a fifth of COCO's training images, "COCO minitrain", so that these three
statistics resemble those of the whole. Here is what is counted and how a subset is scored;
`rankdet.data.minitrain_search` finds one.

A statistic is a number of objects: of all, of a size, of a class, or of a class and a size. Let it
be N in the whole of I images and s in a subset of n images. Then t = N n / I objects are expected
and r = s / t is the statistic's ratio: objects per image in the subset over those in the whole. So
if all ratios are 1, the shares of classes and sizes are those of the whole too. The score of a
subset is the worst of max(r, 1 / r), where 1 would be a perfect match and s = 0 is infinitely bad.

Whole objects cannot match a small number: 1 of 1.5 expected has the ratio 0.67. A statistic of
which fewer than ``least`` objects are expected is therefore called rare and has no part in the
score; it does have a part in the misfit below, and a report lists it.

The worst ratio alone cannot guide a search, as nearly every change leaves it as it is. The misfit
can: the sum over all statistics, rare ones included, of (v - w)^2. There v is max(r, 1 / r) - 1
(for s = 0, as if half an object were there), but the distance of s from t divided by ``least`` for
a rare statistic, and at most 16 for any; w is the v of the best whole number of objects. So it is 0
where nothing could be better. It is an integer, a sum of terms in units of 2^-32, so that which
subset is better depends on no machine's order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZES = ("small", "medium", "large")
LEVELS = ("all objects", "sizes", "classes", "sizes by class")
LEAST = 10.0
"""Statistics of which fewer objects are expected are rare."""
# COCO's: small below 32 x 32 pixels, medium below 96 x 96.
_MEDIUM, _LARGE = 32.0**2, 96.0**2
_MOST = 16.0
_UNIT = 2.0**32


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """How many objects of each class and size the images have.

    A sparse [I, 3 C] matrix, row by row. The column of class c and size z is 3 c + z.
    """

    classes: int
    """C, at least 1."""
    start: NDArray[np.int64]
    """[I + 1] where the entries of each image begin; every image has one at least."""
    cell: NDArray[np.int64]
    """[E] columns, rising within an image."""
    count: NDArray[np.int64]
    """[E] objects, 1 or more."""

    @property
    def images(self) -> int:
        """The number of images, I."""
        return len(self.start) - 1


@dataclass(frozen=True, eq=False)
class Target:
    """What a subset of some number of images should have; arrays over the 4 + 4 C statistics."""

    whole: NDArray[np.int64]
    """N, objects in the whole."""
    expected: NDArray[np.float64]
    """t, objects in a subset that matches."""
    counted: NDArray[np.bool_]
    """Whether the statistic is part of the score."""
    rare: NDArray[np.bool_]
    """Whether it is there, but not part of the score."""
    nearest: NDArray[np.float64]
    """w, the deviation that whole objects do not get below."""
    least: float
    """As given: fewer expected objects are rare."""

    @property
    def limit(self) -> float:
        """The worst ratio that no subset gets below, because objects are whole; 1 or more."""
        return 1.0 + float(self.nearest[self.counted].max(initial=0.0))


@dataclass(frozen=True, eq=False)
class Match:
    """How well a subset matches."""

    counts: NDArray[np.int64]
    """[4 + 4 C] s, objects in the subset."""
    ratios: NDArray[np.float64]
    """[4 + 4 C] r; 1 where the whole has no object either."""
    worst: float
    """The score: the largest max(r, 1 / r) of what is counted; 1 if nothing is."""
    mean: float
    """Mean distance of r from 1 over what is counted; 0 if nothing is."""
    misfit: int
    """See the head of this file."""


def size_of(areas: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return COCO's size of objects: 0 small, 1 medium, 2 large.

    Args:
        areas: [N] square pixels.

    Example:
        >>> size_of(np.array([1023.9, 1024.0, 9215.9, 9216.0])).tolist()
        [0, 1, 1, 2]
    """
    return (areas >= _MEDIUM).astype(np.int64) + (areas >= _LARGE)


def count_objects(
    image: NDArray[np.int64],
    label: NDArray[np.int64],
    area: NDArray[np.float64],
    *,
    images: int,
    classes: int,
) -> ObjectTable:
    """Count the objects of each image by class and size.

    Args:
        image: [N] 0 .. images - 1; each image occurs, in any order.
        label: [N] 0 .. classes - 1.
        area: [N] square pixels.
        images: I.
        classes: C.

    Raises:
        ValueError: an image has no object, or a number is out of its range.
    """
    for name, values, end in (("image", image, images), ("label", label, classes)):
        if len(values) and not (values.min() >= 0 and values.max() < end):
            raise ValueError(f"{name} must be in 0 .. {end - 1}")
    columns = len(SIZES) * classes
    keys, counts = np.unique(
        image.astype(np.int64) * columns + len(SIZES) * label + size_of(area), return_counts=True
    )
    rows = keys // max(columns, 1)
    start = np.searchsorted(rows, np.arange(images + 1))
    if (np.diff(start) == 0).any():
        bare = int(np.flatnonzero(np.diff(start) == 0)[0])
        raise ValueError(f"image {bare} has no object; leave such images out")
    return ObjectTable(classes, start, keys % max(columns, 1), counts.astype(np.int64))


def statistics(table: ObjectTable, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return the statistics of a set of images.

    Args:
        table: of all images.
        chosen: [I] which of them; None: all.

    Returns:
        [4 + 4 C] objects: all; small, medium, large; of each class; of each class and size.

    Example:
        >>> one = np.zeros(3, np.int64)
        >>> table = count_objects(one, np.array([0, 0, 1]), np.array([9.0, 2e3, 4.0]),
        ...                       images=1, classes=2)
        >>> statistics(table).tolist()
        [3, 2, 1, 0, 2, 1, 1, 1, 0, 1, 0, 0]
    """
    cell, count = table.cell, table.count
    if chosen is not None:
        kept = np.repeat(chosen, np.diff(table.start))
        cell, count = cell[kept], count[kept]
    # Sums of whole numbers below 2^53 are exact in float64, which is all bincount weighs in.
    flat = np.bincount(cell, weights=count, minlength=len(SIZES) * table.classes).astype(np.int64)
    cells = flat.reshape(table.classes, len(SIZES))
    return np.concatenate([[cells.sum()], cells.sum(axis=0), cells.sum(axis=1), flat])


def set_target(
    whole: NDArray[np.int64], *, chosen: int, images: int, least: float = LEAST
) -> Target:
    """Return what a subset should have.

    Args:
        whole: [4 + 4 C] the statistics of all images.
        chosen: n, images of the subset, 1 .. images.
        images: I, all images.
        least: fewer expected objects make a statistic rare; above 0.

    Raises:
        ValueError: a number is out of its range.
    """
    if not 1 <= chosen <= images:
        raise ValueError(f"chosen must be in 1 .. {images}, got {chosen}")
    if not least > 0:
        raise ValueError(f"least must be above 0, got {least}")
    expected = whole.astype(np.float64) * chosen / images
    counted = expected >= least
    rare = (whole > 0) & ~counted
    below, above = np.floor(expected), np.ceil(expected)
    nearest = np.minimum(
        _deviation(below, expected, counted, least), _deviation(above, expected, counted, least)
    )
    return Target(whole, expected, counted, rare, nearest, least)


def compare(counts: NDArray[np.int64], target: Target) -> Match:
    """Score a subset.

    Args:
        counts: [4 + 4 C] its statistics.
        target: what they should be.
    """
    there = target.whole > 0
    ratios = np.ones(len(counts))
    np.divide(counts, target.expected, out=ratios, where=there)
    seen = ratios[target.counted]
    # A sum that is rounded once is the same in any order.
    mean = math.fsum(np.abs(seen - 1.0).tolist()) / len(seen) if len(seen) else 0.0
    every = np.arange(len(counts))
    return Match(
        counts, ratios, worst_ratio(counts, target), mean, int(misfits(counts, target, every).sum())
    )


def worst_ratio(counts: NDArray[np.int64], target: Target) -> float:
    """Return the score of a subset: the largest max(r, 1 / r) of what is counted, or 1."""
    found, wanted = counts[target.counted], target.expected[target.counted]
    if not len(found):
        return 1.0
    with np.errstate(divide="ignore"):
        return float(np.maximum(found / wanted, wanted / found).max())


def misfits(
    counts: NDArray[np.int64], target: Target, which: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the terms of the misfit.

    Args:
        counts: [...] numbers of objects, 0 or more.
        target: what they should be.
        which: [...] the statistic that each is a count of.

    Returns:
        [...] 0 or more, in units of 2^-32.
    """
    found = _deviation(
        counts.astype(np.float64), target.expected[which], target.counted[which], target.least
    )
    beyond = np.maximum(found - target.nearest[which], 0.0)
    terms: NDArray[np.int64] = np.rint(beyond * beyond * _UNIT).astype(np.int64)
    return terms


def describe(match: Match, target: Target) -> dict[str, Any]:
    """Return a match in numbers, as a whole and by level.

    Returns:
        Plain Python values: ``worst_ratio`` (None where it is infinite), ``mean_deviation``,
        ``largest_rare_difference`` in objects, and ``levels``: for each of `LEVELS` the two numbers
        and ``worst_at``, the place of the worst statistic (None where nothing is counted).
    """
    with np.errstate(divide="ignore"):
        folded = np.maximum(match.ratios, 1.0 / match.ratios)
    levels = []
    for name, places in zip(LEVELS, level_places(len(match.counts)), strict=True):
        seen = places[target.counted[places]]
        values = np.abs(match.ratios[seen] - 1.0).tolist()
        levels.append(
            {
                "level": name,
                "worst_ratio": _finite(folded[seen].max(initial=1.0)),
                "mean_deviation": math.fsum(values) / len(values) if values else 0.0,
                "worst_at": int(seen[folded[seen].argmax()]) if len(seen) else None,
            }
        )
    gaps = np.abs(match.counts - target.expected)[target.rare]
    return {
        "worst_ratio": _finite(match.worst),
        "mean_deviation": match.mean,
        "largest_rare_difference": float(gaps.max(initial=0.0)),
        "levels": levels,
    }


def level_places(total: int) -> tuple[NDArray[np.int64], ...]:
    """Return the places of the statistics of each of `LEVELS`, of 4 + 4 C in total."""
    classes = total // 4 - 1
    ends = np.cumsum([1, len(SIZES), classes]).tolist()
    return tuple(np.split(np.arange(total), ends))


def names_of(classes: Sequence[str]) -> list[dict[str, str | None]]:
    """Return class and size of each statistic, None for all of them.

    Example:
        >>> [each["class"] for each in names_of(["cat"])]
        [None, None, None, None, 'cat', 'cat', 'cat', 'cat']
    """
    pairs: list[tuple[str | None, str | None]] = [(None, None)]
    pairs += [(None, size) for size in SIZES]
    pairs += [(name, None) for name in classes]
    pairs += [(name, size) for name in classes for size in SIZES]
    return [{"class": name, "size": size} for name, size in pairs]


def _deviation(
    counts: NDArray[np.float64],
    expected: NDArray[np.float64],
    counted: NDArray[np.bool_],
    least: float,
) -> NDArray[np.float64]:
    found = np.maximum(counts, 0.5)
    wanted = np.where(counted, expected, 1.0)
    folded = np.maximum(found / wanted, wanted / found) - 1.0
    return np.minimum(np.where(counted, folded, np.abs(counts - expected) / least), _MOST)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
