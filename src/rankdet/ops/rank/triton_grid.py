"""The grid over the knots, on the device: the bin of most scores without a search.

Cells are a power of two wide, so the cell of a score is its exact quotient, rounded up, less one:
a cell holds its upper edge, not its lower. A knot in a lower cell lies below the score; one in a
higher cell, or at the upper edge, does not. An entry for each cell says how many knots lie in lower
cells, which is the bin of its scores where it holds no knot inside, and how many steps of a binary
search tell apart the knots that it holds. A cell may hold any number of knots, equal ones too: the
search has as many steps as their number has digits. Knots at edges need no search: scores in half
precision are few different numbers, and knots are the same numbers, shifted by one.

The geometry is worked out on the device as well, so that the host never waits for a knot.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdet.ops.rank.triton_launch import cdiv, launch
from rankdet.ops.rank.vectorised import Notes

# More cells mean fewer scores that share one with a knot, and a table that fits a cache less
# well. To be measured.
_CELLS_PER_KNOT = 8
_CELLS_MIN = 1 << 10
_CELLS_MAX = 1 << 15
_LAY_BLOCK = 256

# An entry: the number of knots in lower cells, a bit for `ROUNDED`, 5 bits for steps of a search.
ENTRY_SHIFT = tl.constexpr(6)
ENTRY_STEPS = tl.constexpr(31)
# The cells on either side of zero, where a float32 can be finer than 2^-23 of any cell.
ENTRY_ROUNDED = tl.constexpr(32)
# Scores stay below 2^DIGITS cells from zero, so that numbers of cells are exact in their dtype.
DIGITS = {torch.float32: 20, torch.float64: 45}
WIDEST = {torch.float32: 120, torch.float64: 1000}


class DeviceGrid(NamedTuple):
    """Cells 1 .. size cover the knots; cell 0 lies below all of them, cell size + 1 above.

    Attributes:
        entries: [size + 2] int32, see the top of this file.
        geometry: [3] float64: one over the width of a cell, the width, and how many widths cell
            0 begins from zero.
    """

    entries: Tensor
    geometry: Tensor


def lay_grid(base: Tensor, dtype: torch.dtype, cells: int | None = None) -> DeviceGrid:
    """Lay a grid over the knots.

    Args:
        base: [K + 1] float64, 0 and the knots, ascending, K >= 1.
        dtype: in which scores are compared, float32 or float64.
        cells: at least so many, at most twice, and 3 more; by default 8 for each knot.
    """
    knots = base.numel() - 1
    cells_log2 = cells_log2_for(knots, cells)
    entries, geometry = grid = empty_grid(cells_log2, base.device)
    launch(
        lay_kernel,
        (cdiv(entries.numel(), _LAY_BLOCK),),
        base,
        entries,
        geometry,
        knots,
        knots.bit_length(),
        CELLS_LOG2=cells_log2,
        DIGITS=DIGITS[dtype],
        WIDEST=WIDEST[dtype],
        BLOCK=_LAY_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return grid


def cells_log2_for(knots: int, cells: int | None = None) -> int:
    """Return the logarithm of how many cells suit so many knots, or of as many as wanted."""
    if cells is None:
        cells = min(max(_CELLS_PER_KNOT * knots, _CELLS_MIN), _CELLS_MAX)
    return (cells - 1).bit_length()


def empty_grid(cells_log2: int, device: torch.device) -> DeviceGrid:
    """Return room for a grid."""
    return DeviceGrid(
        torch.empty((1 << cells_log2) + 3, dtype=torch.int32, device=device),
        torch.empty(3, dtype=torch.float64, device=device),
    )


def notes_of(grid: DeviceGrid) -> Notes:
    """Return what the second pass needs to know of the first: the grid, and nothing else."""
    nothing = grid.entries.new_empty(0, dtype=torch.int64)
    return Notes(
        within=nothing.clone(),
        cells=nothing.to(torch.int32),
        below=grid.entries,
        geometry=grid.geometry,
        searched=nothing,
        searched_bins=nothing.clone(),
    )


@triton.jit
def ceil_log2(x: tl.tensor) -> tl.tensor:
    """Return the least whole e with 2^e >= x, for float64 x >= 0; -1023 or less for 0."""
    bits = x.to(tl.int64, bitcast=True)
    return (bits >> 52) - 1023 + ((bits & 0xFFFFFFFFFFFFF) != 0).to(tl.int64)


@triton.jit
def power_of_two(exponent: tl.tensor) -> tl.tensor:
    """Return 2^exponent as float64, for int64 exponents from -1022 to 1023."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def count_below(
    x: tl.tensor,
    table: tl.tensor,
    begin: tl.tensor,
    steps: tl.tensor,
    most: tl.tensor,
    end: tl.tensor,
    TIES: tl.constexpr = False,
) -> tl.tensor:
    """Return begin plus how many of the next 2^steps - 1 entries of a sorted table are below x.

    Args:
        x: scalar or block.
        table: pointer to ascending numbers.
        begin: index of the first entry to look at, shaped as x.
        steps: shaped as x.
        most: scalar, the largest of steps.
        end: how many entries the table has; there is none beyond.
        TIES: whether entries equal to x count too.
    """
    place = begin
    for i in range(most):
        shift = most - 1 - i
        step = 1 << shift
        ahead = place + (step - 1)
        inside = (steps > shift) & (ahead < end)
        found = tl.load(table + ahead, mask=inside, other=0)
        lower = (found <= x) if TIES else (found < x)
        place += tl.where(inside & lower, step, 0).to(place.dtype)
    return place


@triton.jit
def find_cells(
    scores: tl.tensor, inverse: tl.tensor, lowest: tl.tensor, CELLS: tl.constexpr
) -> tl.tensor:
    """Return the cells of scores, and the part of its cell that lies below each, in (0, 1].

    The part is 0 in the first and the last cell, which have no end, and for a NaN.
    """
    place = scores * inverse
    whole = tl.ceil(place) - 1
    cell = whole - lowest
    below = cell < CELLS - 1  # not where it is NaN
    part = tl.where(below & (cell > 0), place - whole, 0.0)
    return tl.where(below, tl.maximum(cell, 0.0), CELLS - 1.0).to(tl.int32), part


@triton.jit
def find_two_bins(
    low: tl.tensor,
    high: tl.tensor,
    base: tl.tensor,
    entries: tl.tensor,
    inverse: tl.tensor,
    lowest: tl.tensor,
    knots: tl.tensor,
    CELLS: tl.constexpr,
) -> tl.tensor:
    """Return the bins of two finite scores, low <= high, scalars; both in one search."""
    score = tl.where(tl.arange(0, 2) == 0, low, high)
    cell, _part = find_cells(score, inverse, lowest, CELLS)
    entry = tl.load(entries + cell)
    steps = entry & ENTRY_STEPS
    begin = entry >> ENTRY_SHIFT
    bin_ = count_below(score.to(tl.float64), base + 1, begin, steps, tl.max(steps), knots)
    return tl.min(bin_), tl.max(bin_)


@triton.jit
def geometry_of(
    first: tl.tensor,
    last: tl.tensor,
    CELLS_LOG2: tl.constexpr,
    DIGITS: tl.constexpr,
    WIDEST: tl.constexpr,
) -> tl.tensor:
    """Return width, one over width, and where cell 0 begins, given the first and the last knot."""
    exponent = ceil_log2(last - first) - CELLS_LOG2
    exponent = tl.maximum(exponent, ceil_log2(tl.maximum(tl.abs(first), tl.abs(last))) - DIGITS)
    exponent = tl.minimum(tl.maximum(exponent, -100), WIDEST)
    width, inverse = power_of_two(exponent), power_of_two(-exponent)
    # Knots that are not finite make every result NaN; here they only must not do harm.
    finite = tl.abs(first) < float("inf")
    return width, inverse, tl.where(finite, tl.floor(first * inverse) - 1, 0.0)


@triton.jit
def edges(number: tl.tensor, width: tl.tensor) -> tl.tensor:
    """Return the edges between which the scores of a cell lie, so many widths from zero."""
    # A GPU takes what is just above zero for zero: so the cell below zero may hold it too.
    return number * width, tl.where(number == -1, 1.0, number + 1) * width


@triton.jit
def write_entry(
    entries: tl.tensor,
    cell: tl.tensor,
    lower: tl.tensor,
    upper: tl.tensor,
    number: tl.tensor,
    most: tl.tensor,
    CELLS: tl.constexpr,
) -> None:
    """Write the entries of cells with so many knots below them (or at the edge), and inside too.

    Args:
        entries: of the grid.
        cell: which.
        lower: number of knots below or at the lower edge.
        upper: number of knots below the upper edge.
        number: of widths from zero to the cell.
        most: number of digits of the number of knots, at least.
        CELLS: of the grid.
    """
    steps = tl.zeros_like(lower)
    for i in range(most):
        steps += (((upper - lower) >> i) > 0).to(tl.int32)
    rounded = tl.where((number == 0) | (number == -1), ENTRY_ROUNDED, 0)
    tl.store(entries + cell, (lower << ENTRY_SHIFT) | rounded | steps, mask=cell < CELLS)


@triton.jit(do_not_specialize=["knots", "knots_steps"])
def lay_kernel(
    base: tl.tensor,
    entries: tl.tensor,
    geometry: tl.tensor,
    knots: tl.tensor,
    knots_steps: tl.tensor,
    CELLS_LOG2: tl.constexpr,
    DIGITS: tl.constexpr,
    WIDEST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write a block of entries; the first program writes the geometry as well."""
    first, last = tl.load(base + 1), tl.load(base + knots)
    width, inverse, lowest = geometry_of(first, last, CELLS_LOG2, DIGITS, WIDEST)
    if tl.program_id(0) == 0:
        tl.store(geometry, inverse)
        tl.store(geometry + 1, width)
        tl.store(geometry + 2, lowest)

    CELLS: tl.constexpr = (1 << CELLS_LOG2) + 3
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    none = tl.zeros([BLOCK], tl.int32)
    number = cell + lowest
    edge, upper_edge = edges(number, width)
    lower = count_below(edge, base + 1, none, none + knots_steps, knots_steps, knots, TIES=True)
    upper = count_below(upper_edge, base + 1, none, none + knots_steps, knots_steps, knots)
    upper = tl.maximum(tl.where(cell == CELLS - 1, knots, upper), lower)
    write_entry(entries, cell, lower, upper, number, knots_steps, CELLS)
