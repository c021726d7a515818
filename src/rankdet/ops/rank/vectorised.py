"""The operator without kernels: O((N + P) log P), the negatives neither sorted nor copied.

Two passes over the scores. `fill_bins` sorts them into the bins between the knots, from which
the counts follow; `evaluate` reads K^T w, a piecewise linear function, off at every score.

Two ways to find the bin of a score. The exact one is a binary search among the knots
(`torch.bucketize`, 40-60 ns for each score on a CPU). On a CPU, large inputs go through a
uniform grid of cells first (see `rankdet.ops.rank.grid`), and chunks whose scores all lie in
one bin, which is every chunk at the start of a training, need neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankdet.ops.rank.arrays import Array, add_up, library_of, pick, quiet
from rankdet.ops.rank.grid import Grid, find_cells, find_offsets, lay_grid, tabulate
from rankdet.ops.rank.knots import Pieces

# Scores per chunk: on a CPU a handful of temporaries of this size stay in the cache and are
# long enough to be shared between threads; on a GPU it only bounds the memory.
_CHUNK_CPU = 1 << 18
_CHUNK_GPU = 1 << 24
# Below this many scores the search costs less than laying the grid.
_GRID_FROM = 1 << 13


class Notes(NamedTuple):
    """What the first pass notes for the second: all empty where it did without a grid.

    Attributes:
        within: [chunks] int64, the bin in which all scores of a chunk lie; -1 if in several.
        cells: [N] int32, the cell of each score; of no use in a chunk that lies in one bin.
        below: of the grid.
        geometry: of the grid.
        searched: [m] int64, the scores of mixed cells.
        searched_bins: [m] int64, the bins that the search found for them.
    """

    within: Tensor
    cells: Tensor
    below: Tensor
    geometry: Tensor
    searched: Tensor
    searched_bins: Tensor


class Bins(NamedTuple):
    """What the first pass finds.

    Attributes:
        number: [2P + 1] int64, how many scores each bin holds.
        beyond: [2P + 1] float64, sum of their distances to the knot just below.
        finite: 0-d bool, whether every score was finite that was not to be left out.
        notes: for the second pass.
    """

    number: Tensor
    beyond: Tensor
    finite: Tensor
    notes: Notes


def compute_dtype(scores: Tensor) -> torch.dtype:
    """Return the dtype in which scores are compared: float64 for float64, else float32."""
    return torch.promote_types(scores.dtype, torch.float32)


def fill_bins(base: Tensor, scores: Tensor, skip: Tensor) -> Bins:
    """Make the first pass.

    Args:
        base: [2P + 1] float64, the knot just below each bin; the first entry is no knot.
        scores: [N] any floating dtype.
        skip: [S] int64, ascending, the scores to leave out.
    """
    if _streams(base, scores):
        return _fill_by_grid(base, scores, skip)
    number = torch.zeros(base.numel(), dtype=torch.int64, device=scores.device)
    beyond = torch.zeros(base.numel(), dtype=torch.float64, device=scores.device)
    finite = torch.ones((), dtype=torch.bool, device=scores.device)
    for _, part, out in _chunks(scores, skip, torch.float64):
        if out is not None:
            part = part.index_fill(0, out, 0.0)
        finite = finite & part.isfinite().all()
        bin_ = torch.bucketize(part, base[1:])
        if out is not None:
            bin_.index_fill_(0, out, 0)
        number.scatter_add_(0, bin_, torch.ones_like(bin_))
        beyond.scatter_add_(0, bin_, part - base.index_select(0, bin_))
    return Bins(number, beyond, finite, _no_notes(scores))


def weigh_bins(base: Array, scores: Array, weights: Array) -> tuple[Array, Array]:
    """Return the contents of the bins for T sets of weights, by search; small inputs.

    Args:
        base: [2P + 1] float64, the knot just below each bin; the first entry is no knot.
        scores: [N] float64.
        weights: [T, N] float64.

    Returns:
        Weight and weighted distance to the knot just below in each bin, both [T, 2P + 1].
    """
    bin_ = library_of(base).searchsorted(base[1:], scores)
    distance = scores - pick(base, bin_)
    return add_up(bin_, weights, len(base)), add_up(bin_, weights * distance, len(base))


def evaluate(
    base: Tensor,
    function: Pieces,
    scores: Tensor,
    skip: Tensor,
    notes: Notes,
    dtype: torch.dtype,
) -> Tensor:
    """Make the second pass: a piecewise linear function at each score.

    Args:
        base: [2P + 1] float64, the knot just below each bin; the first entry is no knot.
        function: of 2P + 1 bins.
        scores: [N] any floating dtype.
        skip: [S] int64, ascending, the scores to leave out.
        notes: from the first pass over the same scores.
        dtype: of the result.

    Returns:
        [N] in ``dtype``. 0 where left out; NaN where a score is NaN or infinite.
    """
    result = torch.empty_like(scores, dtype=dtype)
    if _streams(base, scores):
        _evaluate_by_grid(base, function, scores, skip, notes, result)
        if notes.searched.numel():
            few = scores.index_select(0, notes.searched).double()
            found = read_off(base, function, few, notes.searched_bins)
            result.index_copy_(0, notes.searched, found.to(dtype))
    else:
        for place, part, _ in _chunks(scores, skip, torch.float64):
            result[place] = read_off(base, function, part, torch.bucketize(part, base[1:]))
    return result.index_fill_(0, skip, 0.0)


def read_off(base: Array, function: Pieces, scores: Array, bin_: Array) -> Array:
    """Return a piecewise linear function at scores [n] float64 of known bins [n] int64."""
    offset = scores - pick(base, bin_)
    offset *= pick(function.slope, bin_)
    offset += pick(function.value, bin_)
    return offset


def _streams(base: Tensor, scores: Tensor) -> bool:
    """Tell whether the grid serves: a CPU, enough scores, and finite knots to lay it over."""
    if not scores.is_cpu or scores.numel() < _GRID_FROM or base.numel() == 1:
        return False
    knots = base.numpy()
    return math.isfinite(knots[1]) and math.isfinite(knots[-1])


def _chunks(
    scores: Tensor, skip: Tensor, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield place, scores in ``dtype`` and the indices among them to leave out."""
    size, total = _CHUNK_CPU if scores.is_cpu else _CHUNK_GPU, scores.numel()
    if 0 < total <= size:  # as below, with fewer steps
        yield slice(0, total), scores.to(dtype).contiguous(), skip if skip.numel() else None
        return
    begins = range(0, total, size)
    cuts = [0, skip.numel()]
    if len(begins) > 1:
        ends = torch.tensor([*begins, total], device=skip.device)
        cuts = torch.searchsorted(skip, ends).tolist()
    for begin, first, last in zip(begins, cuts[:-1], cuts[1:], strict=False):
        place = slice(begin, min(begin + size, total))
        out = skip[first:last] - begin if first < last else None
        # Searching in a table of knots copies what is not contiguous, and warns of it.
        yield place, scores[place].to(dtype).contiguous(), out


def _bin_of_all(knots: Array, part: Tensor) -> int:
    """Return the bin in which all scores of a chunk lie, all of them finite; -1 if in several."""
    # Three scores tell most chunks of several bins without a look at all the others.
    probe = knots.searchsorted(part.numpy()[:: max(part.numel() // 2, 1)]).tolist()
    if probe[0] == probe[-1]:
        lowest, highest = (end.item() for end in part.aminmax())
        first, last = knots.searchsorted((lowest, highest)).tolist()
        if first == last and math.isfinite(highest - lowest):
            return int(first)
    return -1


def _no_notes(scores: Tensor) -> Notes:
    def none(dtype: torch.dtype) -> Tensor:
        return torch.empty(0, dtype=dtype, device=scores.device)

    return Notes(
        within=none(torch.int64),
        cells=none(torch.int32),
        below=none(torch.int32),
        geometry=none(torch.float64),
        searched=none(torch.int64),
        searched_bins=none(torch.int64),
    )


@quiet
def _fill_by_grid(base: Tensor, scores: Tensor, skip: Tensor) -> Bins:
    """Make the first pass on a CPU.

    A chunk within one bin needs two sums. Any other goes through the cells of the grid, and
    the few scores in mixed cells through the search.
    """
    bins, knots = base.numel(), base.numpy()
    in_bin = np.zeros(bins + 1, np.int64)  # one more bin than there are: mixed
    total = np.zeros(bins + 1)  # sums of scores
    notes = _no_notes(scores)
    grid: Grid | None = None
    within, mixed = [], []
    for place, part, out in _chunks(scores, skip, compute_dtype(scores)):
        only = _bin_of_all(knots[1:], part)
        within.append(only)
        if only == 0:
            continue
        if only > 0:
            sum_, count = float(part.sum(dtype=torch.float64)), part.numel()
            if out is not None:
                left_out = part.numpy()[out.numpy()]
                sum_, count = sum_ - left_out.sum(dtype=np.float64), count - len(left_out)
            in_bin[only] += count
            total[only] += sum_
            continue
        if grid is None:
            grid = lay_grid(knots[1:], part.dtype, scores.numel())
            cells = torch.empty_like(scores, dtype=torch.int32)
            # Made once: memory that is new to the process costs as much as the work on it.
            scratch = torch.empty_like(part)
            wides = torch.empty_like(part, dtype=torch.float64)
            places = torch.empty_like(part, dtype=grid.bins.dtype)
            notes = notes._replace(cells=cells, below=grid.below, geometry=grid.geometry)
        size = part.numel()
        find_cells(grid, part, out, cells[place], scratch[:size])
        bin_ = torch.index_select(grid.bins, 0, cells[place], out=places[:size])
        wide = wides[:size].copy_(part)
        if out is not None:  # in bin 0 now, which takes no part; but NaN must not stay there
            wide.index_fill_(0, out, 0.0)
        in_bin += torch.bincount(bin_, minlength=bins + 1).numpy()
        total += torch.bincount(bin_, weights=wide, minlength=bins + 1).numpy()
        mixed.append(np.flatnonzero(bin_.numpy() == bins) + place.start)
    number = in_bin[:-1]
    beyond = total[:-1] - number * knots
    if mixed:
        searched = torch.from_numpy(np.concatenate(mixed))
        # There may be many of them: torch searches with all threads.
        few = scores.index_select(0, searched).double()
        few_bins = torch.bucketize(few, base[1:])
        few -= base.index_select(0, few_bins)
        number += torch.bincount(few_bins, minlength=bins).numpy()
        beyond += torch.bincount(few_bins, weights=few, minlength=bins).numpy()
        notes = notes._replace(searched=searched, searched_bins=few_bins)
    notes = notes._replace(within=torch.from_numpy(np.array(within)))
    # A NaN or an infinity is in the sums of the lowest or the highest bin.
    finite = torch.from_numpy(np.isfinite(total.sum(keepdims=True)))[0]
    return Bins(torch.from_numpy(number), torch.from_numpy(beyond), finite, notes)


@quiet
def _evaluate_by_grid(
    base: Tensor, function: Pieces, scores: Tensor, skip: Tensor, notes: Notes, result: Tensor
) -> None:
    """Make the second pass on a CPU, but for the scores in mixed cells."""
    dtype = torch.promote_types(compute_dtype(scores), result.dtype)
    table: Tensor | None = None
    chunks = _chunks(scores, skip, dtype)
    for (place, wide, _), only in zip(chunks, notes.within.tolist(), strict=True):
        # Written where it belongs, unless it must be narrowed first.
        there = result[place] if result.dtype == dtype else torch.empty_like(wide)
        if only >= 0:
            value, slope, knot = (x[only].item() for x in (function.value, function.slope, base))
            if slope == 0:
                there.fill_(value)
            else:
                torch.sub(wide, knot, out=there).mul_(slope).add_(value)
        else:
            if table is None:
                table = tabulate(notes.below, notes.geometry, base, function, dtype)
                entries = table.new_empty(wide.numel())
                offsets = torch.empty_like(wide)
            cells, size = notes.cells[place], wide.numel()
            entry = torch.index_select(table, 0, cells, out=entries[:size])
            offset = offsets[:size]
            find_offsets(notes.geometry, wide, cells, offset)
            torch.addcmul(entry.real, entry.imag, offset, out=there)
        if result.dtype != dtype:
            result[place] = there
