"""What the first pass added up, as Triton kernels: from sums of cells to contents of bins."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdet.ops.rank.triton_grid import DeviceGrid, ceil_log2, find_cells, power_of_two
from rankdet.ops.rank.triton_launch import cdiv, launch

# In one integer: how many scores (20 bits and the sign), and the sum of their distances.
PARTS = tl.constexpr(float(1 << 23))
ONE_SCORE = tl.constexpr(1 << 43)
_NUMBER_SHIFT = tl.constexpr(43)
_MOST_SCORES = tl.constexpr((1 << 21) - 1)
_COPY_HOLDS = 1 << 20
# Several sets of sums, so that fewer programs meet at one address.
_CELL_COPIES = 32
BIN_COPIES = 8
SUM_BLOCK = 128
_SUM_ROWS = 16
_FINISH_BLOCK = 128


@functools.cache
def processors(device: torch.device) -> int:
    """Return how many programs a device runs side by side; 1 where it is the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


class Layout(NamedTuple):
    """Where the sums of cells and bins stand: `copies` x `cells` of them, then those of bins."""

    tile: int
    cells: int
    copies: int
    spread: int
    """How many copies neighbouring scores share out among themselves, a power of two."""
    per_copy: int
    """How many tiles one copy holds without overflow."""

    def sums(self, bins: int) -> int:
        """Return how many integers there are in all."""
        return self.copies * self.cells + BIN_COPIES * 3 * bins


def layout(scores: Tensor, grid: DeviceGrid, tile: int) -> Layout:
    """Choose how many copies of the sums there are."""
    tiles, cells = cdiv(scores.numel(), tile), grid.entries.numel()
    per_copy = _COPY_HOLDS // tile
    if scores.dtype == torch.float64:
        return Layout(tile, cells, copies=1, spread=1, per_copy=per_copy)
    spread = 1 << (max(min(_CELL_COPIES, tiles // 8), 1).bit_length() - 1)
    return Layout(tile, cells, cdiv(tiles, per_copy * spread) * spread, spread, per_copy)


def add_copies(sums: Tensor, shape: Layout) -> tuple[Tensor, Tensor]:
    """Add up the copies of the sums of cells.

    Returns:
        running: [3, cells] int64, for each cell the sums over it and those before it in its block
            of `SUM_BLOCK`: of the number of scores, this times the number of the cell, and their
            parts.
        totals: [3, blocks] int64, the sums of each block.
    """
    blocks = cdiv(shape.cells, SUM_BLOCK)
    running = sums.new_empty(3, shape.cells)
    totals = sums.new_empty(3, blocks)
    launch(
        sum_cells_kernel,
        (blocks,),
        sums,
        running,
        totals,
        shape.copies,
        CELLS=shape.cells,
        ROWS=_SUM_ROWS,
        BLOCK=SUM_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return running, totals


def finish(
    base: Tensor, grid: DeviceGrid, sums: Tensor, shape: Layout, digits: int
) -> tuple[Tensor, Tensor]:
    """Return what each bin holds, number [K + 1] int64 and distances [K + 1] float64."""
    bins = base.numel()
    running, totals = add_copies(sums, shape)
    number = torch.empty(bins, dtype=torch.int64, device=base.device)
    beyond = torch.empty(bins, dtype=torch.float64, device=base.device)
    launch(
        finish_kernel,
        (cdiv(bins, _FINISH_BLOCK),),
        base,
        grid.geometry,
        running,
        totals.cumsum(1) - totals,
        sums[shape.copies * shape.cells :],
        number,
        beyond,
        bins,
        digits,
        CELLS=shape.cells,
        SUM_BLOCK=SUM_BLOCK,
        BIN_COPIES=BIN_COPIES,
        BLOCK=_FINISH_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return number, beyond


@triton.jit(do_not_specialize=["copies"])
def sum_cells_kernel(
    cell_sums: tl.tensor,
    running: tl.tensor,
    totals: tl.tensor,
    copies: tl.tensor,
    CELLS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add up the copies, and the cells of a block as they come; see `add_copies`."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    cell = block * BLOCK + tl.arange(0, BLOCK)
    inside = cell < CELLS
    number, parts = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64)
    for begin in range(0, copies, ROWS):
        row = begin + tl.arange(0, ROWS)
        packed = tl.load(
            cell_sums + row[:, None].to(tl.int64) * CELLS + cell[None, :],
            mask=(row < copies)[:, None] & inside[None, :],
            other=0,
        )
        # A full copy of one cell sets the sign: hence the mask.
        number += tl.sum((packed >> _NUMBER_SHIFT) & _MOST_SCORES, axis=0)
        parts += tl.sum(packed & (ONE_SCORE - 1), axis=0)
    places = number * cell
    tl.store(running + cell, tl.cumsum(number, 0), mask=inside)
    tl.store(running + CELLS + cell, tl.cumsum(places, 0), mask=inside)
    tl.store(running + 2 * CELLS + cell, tl.cumsum(parts, 0), mask=inside)
    tl.store(totals + block, tl.sum(number, 0))
    tl.store(totals + blocks + block, tl.sum(places, 0))
    tl.store(totals + 2 * blocks + block, tl.sum(parts, 0))


@triton.jit
def _between(
    running: tl.tensor,
    before: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    row: tl.constexpr,
    mask: tl.tensor,
    CELLS: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the sums over the cells begin .. end - 1, in one of the three rows."""
    blocks: tl.constexpr = (CELLS + SUM_BLOCK - 1) // SUM_BLOCK
    last, ahead = end - 1, begin - 1
    upper = tl.load(running + row * CELLS + last, mask=mask, other=0)
    upper += tl.load(before + row * blocks + last // SUM_BLOCK, mask=mask, other=0)
    lower = tl.load(running + row * CELLS + ahead, mask=mask, other=0)
    lower += tl.load(before + row * blocks + ahead // SUM_BLOCK, mask=mask, other=0)
    return upper - lower


@triton.jit
def contents(
    bin_: tl.tensor,
    bins: tl.tensor,
    base: tl.tensor,
    geometry: tl.tensor,
    running: tl.tensor,
    before: tl.tensor,
    bin_sums: tl.tensor,
    digits: tl.tensor,
    CELLS: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    BIN_COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Put together what the cells between two knots hold and what went to the bin itself.

    Returns how many scores each bin holds, the sum of their distances to the knot just below (0 in
    the last bin), this knot, and the next (infinity above the last). 0 for bin 0 and below.
    """
    knots = bins - 1
    inside = (bin_ > 0) & (bin_ < bins)
    ends = inside & (bin_ < knots)
    knot = tl.load(base + bin_, mask=inside, other=0.0)
    upper = tl.load(base + bin_ + 1, mask=ends, other=float("inf"))

    inverse, width = tl.load(geometry), tl.load(geometry + 1)
    lowest = tl.load(geometry + 2)
    # The cells above that of the knot below, up to that of the knot above, belong to the bin; this
    # last one only if the knot stands at its edge.
    begin = find_cells(knot, inverse, lowest, CELLS)[0] + 1
    last = find_cells(upper, inverse, lowest, CELLS)[0]
    place = upper * inverse
    end = tl.where(ends, last + (tl.ceil(place) == place).to(tl.int32), CELLS)
    some = inside & (end > begin)
    count = _between(running, before, begin, end, 0, some, CELLS, SUM_BLOCK)
    places = _between(running, before, begin, end, 1, some, CELLS, SUM_BLOCK)
    parts = _between(running, before, begin, end, 2, some, CELLS, SUM_BLOCK)
    # Widths of cells from the lower edge of the first of them, then on to the knot.
    widths = (places - count * (begin - 1)).to(tl.float64) - parts.to(tl.float64) / PARTS
    sum_ = widths * width + count.to(tl.float64) * ((begin + lowest) * width - knot)

    whole, rest = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64)
    for copy in range(BIN_COPIES):
        own = bin_sums + copy * 3 * bins + bin_
        count += tl.load(own, mask=inside, other=0)
        whole += tl.load(own + bins, mask=inside, other=0)
        rest += tl.load(own + 2 * bins, mask=inside, other=0)
    digits = digits.to(tl.int64)
    exponent = tl.maximum(tl.minimum(ceil_log2(upper - knot), 900), -900)
    units = whole.to(tl.float64) + rest.to(tl.float64) * power_of_two(-digits)
    sum_ += units * power_of_two(exponent - digits)
    return count, tl.where(ends, sum_, 0.0), knot, upper


@triton.jit(do_not_specialize=["bins", "digits"])
def finish_kernel(
    base: tl.tensor,
    geometry: tl.tensor,
    running: tl.tensor,
    before: tl.tensor,
    bin_sums: tl.tensor,
    number: tl.tensor,
    beyond: tl.tensor,
    bins: tl.tensor,
    digits: tl.tensor,
    CELLS: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    BIN_COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the contents of a block of bins."""
    bin_ = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count, sum_, _knot, _upper = contents(
        bin_, bins, base, geometry, running, before, bin_sums, digits,
        CELLS, SUM_BLOCK, BIN_COPIES, BLOCK,
    )  # fmt: skip
    tl.store(number + bin_, count, mask=bin_ < bins)
    tl.store(beyond + bin_, sum_, mask=bin_ < bins)
