"""Finding a subset of images that stands for the whole: random draws, then swaps.

What is sought is defined in `rankdet.data.minitrain`. Everything that decides is computed in
integers or in single operations of float64, so that a seed stands for one subset everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankdet.data.minitrain import (
    SIZES,
    Match,
    ObjectTable,
    Target,
    compare,
    misfits,
    statistics,
    worst_ratio,
)
from rankdet.data.sampling import random_bits

# Larger than any misfit; what must not be chosen costs as much.
_NEVER = np.int64(1) << np.int64(62)
_MORE = 1 << 20


@dataclass(frozen=True, eq=False)
class Drawn:
    """The best of some random draws."""

    chosen: NDArray[np.bool_]
    """[I] the images of the best draw."""
    match: Match
    worsts: tuple[float, ...]
    """The score of each draw."""


@dataclass(frozen=True, eq=False)
class Improved:
    """A subset after swaps."""

    chosen: NDArray[np.bool_]
    """[I] as many images as before."""
    match: Match
    swaps: int
    """Images that were exchanged for others, up to the best subset."""
    tries: int
    """Images that were tried to be exchanged."""


def draw(images: int, count: int, *, seed: int, number: int) -> NDArray[np.bool_]:
    """Return one random draw: the first images of `rankdet.data.sampling.epoch_order`.

    Args:
        images: I, to draw from.
        count: of images to draw, 1 .. images.
        seed: of all draws.
        number: of this one, 0 or more; it stands for the epoch.

    Returns:
        [I] which images are in it.
    """
    bits = random_bits(images, seed, number)
    # All bits differ, so this is the set of the first of the sorted order without sorting.
    chosen: NDArray[np.bool_] = bits <= np.partition(bits, count - 1)[count - 1]
    return chosen


def draw_best(
    table: ObjectTable,
    count: int,
    target: Target,
    *,
    draws: int,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
) -> Drawn:
    """Draw at random many times and keep the best: by the worst ratio, then by the misfit.

    Args:
        table: the images and their objects.
        count: of images to draw, 1 .. I.
        target: for as many images.
        draws: at least 1.
        seed: another seed, other draws. More draws begin with the same ones.
        progress: called with the draws done and the best worst ratio, after each.

    Raises:
        ValueError: a number is out of its range.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if not 1 <= count <= table.images:
        raise ValueError(f"count must be in 1 .. {table.images}, got {count}")
    best: tuple[NDArray[np.bool_], Match] | None = None
    worsts: list[float] = []
    for number in range(draws):
        chosen = draw(table.images, count, seed=seed, number=number)
        match = compare(statistics(table, chosen), target)
        worsts.append(match.worst)
        if best is None or _key(match) < _key(best[1]):
            best = chosen, match
        if progress is not None:
            progress(number + 1, best[1].worst)
    assert best is not None
    return Drawn(*best, tuple(worsts))


def improve(
    table: ObjectTable,
    chosen: NDArray[np.bool_],
    target: Target,
    *,
    swaps: int = 20_000,
    patience: int = 1000,
    progress: Callable[[int, float], None] | None = None,
) -> Improved:
    """Exchange images of a subset for others as long as the misfit falls.

    Each step takes out the image that leaves the least misfit, puts in the one of all others that
    then leaves the least, and keeps the exchange if the misfit is less than before and the worst
    ratio no more than that of the first subset; otherwise the next image is tried. The changes that
    all images would make are computed at once, from a table of the changes by kind (statistic and
    number of objects): a step takes milliseconds for a hundred thousand images. It ends when the
    misfit is 0, when no image is left to try, or after ``patience`` tries in a row without success.

    Args:
        table: the images and their objects.
        chosen: [I] the subset to begin with, at least one image.
        target: for as many images.
        swaps: at most so many.
        patience: see above.
        progress: called with the swaps done and the worst ratio, after each.

    Returns:
        The best subset on the way by the worst ratio, then by the misfit: never worse than the
        first.
    """
    moves = Moves(table, target)
    chosen, counts = chosen.copy(), statistics(table, chosen)
    best, best_match = chosen.copy(), compare(counts, target)
    best_swaps = done = tries = 0
    misfit, worst = best_match.misfit, best_match.worst
    limit = worst
    # A try that failed is not repeated before all others have failed too.
    failed = np.zeros(table.images, np.bool_)
    fresh = False
    while misfit and done < swaps and not chosen.all():
        fallen = False
        for image in _cheapest(moves.changes(counts, -1), chosen & ~failed, patience):
            tries += 1
            left = moves.after(counts, image, -1)
            gain = moves.changes(left, 1)
            gain[chosen] = _NEVER
            other = int(gain.argmin())
            now = moves.misfit(left) + int(gain[other])
            after = moves.after(left, other, 1)
            if now < misfit and (worst := worst_ratio(after, target)) <= limit:
                misfit, counts, fallen = now, after, True
                chosen[image], chosen[other] = False, True
                break
            failed[image] = True
        if fallen:
            done, fresh = done + 1, True
            if (worst, misfit) < _key(best_match):
                best, best_match, best_swaps = chosen.copy(), compare(counts, target), done
            if progress is not None:
                progress(done, worst)
        elif fresh:
            failed[:], fresh = False, False
        else:
            break
    return Improved(best, best_match, best_swaps, tries)


class Moves:
    """What taking an image out of a subset or putting one in changes.

    Args:
        table: the images and their objects.
        target: what the subset should have.
    """

    def __init__(self, table: ObjectTable, target: Target) -> None:
        self._target = target
        self._every = np.arange(len(target.whole))
        self._start, place, count = _all_levels(table)
        kinds, self._kind = np.unique(place * _MORE + count, return_inverse=True)
        self._place, self._count = kinds // _MORE, kinds % _MORE

    def changes(self, counts: NDArray[np.int64], sign: int) -> NDArray[np.int64]:
        """Return [I] how the misfit changes if each image alone is put in (1) or out (-1)."""
        moved = np.maximum(counts[self._place] + sign * self._count, 0)
        change = misfits(moved, self._target, self._place)
        change -= misfits(counts, self._target, self._every)[self._place]
        each: NDArray[np.int64] = np.add.reduceat(change[self._kind], self._start[:-1])
        return each

    def after(self, counts: NDArray[np.int64], image: int, sign: int) -> NDArray[np.int64]:
        """Return the statistics after one image was put in or out."""
        kinds = self._kind[self._start[image] : self._start[image + 1]]
        counts = counts.copy()
        counts[self._place[kinds]] += sign * self._count[kinds]
        return counts

    def misfit(self, counts: NDArray[np.int64]) -> int:
        """Return the misfit of a subset."""
        return int(misfits(counts, self._target, self._every).sum())


def _all_levels(
    table: ObjectTable,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the statistics of every image as a sparse matrix: start, place and count."""
    rows = np.repeat(np.arange(table.images), np.diff(table.start))
    label, size = np.divmod(table.cell, len(SIZES))
    first = 1 + len(SIZES)
    total = first + table.classes * (1 + len(SIZES))
    places = (0 * label, 1 + size, first + label, first + table.classes + table.cell)
    keys, where = np.unique(
        np.concatenate([rows * total + place for place in places]), return_inverse=True
    )
    counts = np.bincount(where, weights=np.tile(table.count, len(places))).astype(np.int64)
    start = np.searchsorted(keys // total, np.arange(table.images + 1))
    return start, keys % total, counts


def _cheapest(costs: NDArray[np.int64], allowed: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """Return at most so many of the allowed places, cheapest first, of equals the first first."""
    places = np.flatnonzero(allowed)
    costs = costs[places]
    if len(places) > most:
        # The partition alone would leave open which of equals are taken.
        kept = costs <= np.partition(costs, most - 1)[most - 1]
        places, costs = places[kept], costs[kept]
    return places[np.argsort(costs, kind="stable")][:most]


def _key(match: Match) -> tuple[float, int]:
    return match.worst, match.misfit
