"""The second pass as a Triton kernel: one read of the scores, one write of the result.

In a tile within one bin, which is every tile at the start of a training, the function is one
straight line. Elsewhere a table holds the line of each cell of the grid; a line is fetched by one
look-up, and only scores that share a cell with a knot are searched for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdet.ops.rank.knots import Pieces
from rankdet.ops.rank.triton_bins import processors
from rankdet.ops.rank.triton_grid import (
    ENTRY_SHIFT,
    ENTRY_STEPS,
    DeviceGrid,
    count_below,
    find_cells,
    find_two_bins,
)
from rankdet.ops.rank.triton_launch import cdiv, launch

_TABLE_BLOCK = 256
_WARPS = 4
_PROGRAMS_PER_PROCESSOR = 16
_PART = 1024


def read_off(
    base: Tensor,
    function: Pieces,
    scores: Tensor,
    grid: DeviceGrid,
    result: Tensor,
    *,
    tile: int,
    scale: Tensor | None = None,
    programs: int | None = None,
) -> None:
    """Evaluate a piecewise linear function at each score.

    The arithmetic is float64 where scores or result are, else float32.

    Args:
        base: [K + 1] float64, the knot just below each bin, K >= 1.
        function: of K + 1 bins.
        scores: [N] any floating dtype, contiguous.
        grid: over the knots, for the scores' dtype.
        result: [N] any floating dtype, written; NaN where a score is NaN or infinite.
        tile: how many scores a program looks at in one go, a power of two.
        scale: 0-d, any floating dtype, a factor of the function; None: 1.
        programs: how many work side by side, by default enough for the device.
    """
    total, cells = scores.numel(), grid.entries.numel()
    if total == 0:
        return
    fine = torch.float64 in (scores.dtype, result.dtype)
    scaled, factor = scale is not None, base if scale is None else scale
    table = torch.empty(2 if fine else 1, cells, dtype=torch.int64, device=scores.device)
    launch(
        tabulate_kernel,
        (cdiv(cells, _TABLE_BLOCK),),
        base,
        function.value,
        function.slope,
        grid.entries,
        grid.geometry,
        factor,
        table,
        CELLS=cells,
        FINE=fine,
        SCALED=scaled,
        BLOCK=_TABLE_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    tiles = cdiv(total, tile)
    if programs is None:
        programs = _PROGRAMS_PER_PROCESSOR * processors(scores.device)
    launch(
        read_off_kernel,
        (min(tiles, programs),),
        scores,
        base,
        function.value,
        function.slope,
        grid.entries,
        grid.geometry,
        factor,
        table,
        result,
        total,
        tiles,
        base.numel() - 1,
        EXACT=scores.dtype != torch.float64,
        FINE=fine,
        SCALED=scaled,
        CELLS=cells,
        TILE=tile,
        PART=min(tile, _PART),
        num_warps=_WARPS,
        enable_fp_fusion=True,
    )


@triton.jit
def tabulate_kernel(
    base: tl.tensor,
    value: tl.tensor,
    slope: tl.tensor,
    entries: tl.tensor,
    geometry: tl.tensor,
    scale: tl.tensor,
    table: tl.tensor,
    CELLS: tl.constexpr,
    FINE: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Note for each cell the value at its lower edge and the rise over its width.

    The value is NaN where the cell holds knots, or has no end and the function is not constant.
    In float32 both stand in one integer, so that one look-up fetches them.
    """
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < CELLS
    entry = tl.load(entries + cell, mask=inside, other=0)
    bin_ = entry >> ENTRY_SHIFT
    factor = tl.load(scale).to(tl.float64) if SCALED else 1.0
    height = tl.load(value + bin_, mask=inside, other=0.0) * factor
    steepness = tl.load(slope + bin_, mask=inside, other=0.0) * factor
    width, lowest = tl.load(geometry + 1), tl.load(geometry + 2)
    endless = (cell == 0) | (cell == CELLS - 1)
    edge = tl.where(
        endless, 0.0, (cell + lowest) * width - tl.load(base + bin_, mask=inside, other=0.0)
    )
    of_no_use = ((entry & ENTRY_STEPS) != 0) | (endless & (steepness != 0))
    height = tl.where(of_no_use, float("nan"), height + steepness * edge)
    rise = tl.where(endless, 0.0, steepness * width)
    if FINE:
        tl.store(table + cell, height.to(tl.int64, bitcast=True), mask=inside)
        tl.store(table + CELLS + cell, rise.to(tl.int64, bitcast=True), mask=inside)
    else:
        low = height.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        high = rise.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64) << 32
        tl.store(table + cell, high | low, mask=inside)


@triton.jit(do_not_specialize=["tiles", "knots"])
def read_off_kernel(
    scores: tl.tensor,
    base: tl.tensor,
    value: tl.tensor,
    slope: tl.tensor,
    entries: tl.tensor,
    geometry: tl.tensor,
    scale: tl.tensor,
    table: tl.tensor,
    result: tl.tensor,
    total: tl.tensor,
    tiles: tl.tensor,
    knots: tl.tensor,
    EXACT: tl.constexpr,
    FINE: tl.constexpr,
    SCALED: tl.constexpr,
    CELLS: tl.constexpr,
    TILE: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Write the function's value at each score of every n-th tile; see `read_off`."""
    wide: tl.constexpr = tl.float32 if EXACT else tl.float64
    kind: tl.constexpr = tl.float64 if FINE else tl.float32
    inverse = tl.load(geometry).to(wide)
    lowest = tl.load(geometry + 2).to(wide)
    # The straight line of one bin, between these two knots; at first that of the lowest.
    held_low, held_high = tl.cast(float("-inf"), tl.float64), tl.load(base + 1)
    near = tl.cast(0.0, kind)
    held_slope = tl.cast(0.0, kind)
    factor = tl.load(scale).to(tl.float64) if SCALED else tl.cast(1.0, tl.float64)
    held_height = (tl.load(value) * factor).to(kind)
    lane = tl.arange(0, PART)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * TILE
        highest = tl.full([PART], float("-inf"), wide)
        lowest_here = tl.full([PART], float("inf"), wide)
        for part in tl.static_range(TILE // PART):
            inside = lane < tl.minimum(total - start - part * PART, PART).to(tl.int32)
            score = tl.load(scores + start + part * PART + lane, mask=inside, other=0).to(wide)
            bounded = tl.where(tl.abs(score) < float("inf"), score, float("inf"))
            highest = tl.maximum(highest, tl.where(inside, bounded, float("-inf")))
            lowest_here = tl.minimum(lowest_here, tl.where(inside, bounded, float("inf")))
        high, low = tl.max(highest), tl.min(lowest_here)
        single = high < float("inf")
        if single & ((low.to(tl.float64) <= held_low) | (high.to(tl.float64) > held_high)):
            low_bin, high_bin = find_two_bins(
                low, high, base, entries, inverse, lowest, knots, CELLS
            )
            single = low_bin == high_bin
            if single:
                held_low = tl.where(high_bin > 0, tl.load(base + high_bin), -float("inf"))
                held_high = tl.load(base + high_bin + 1, mask=high_bin < knots, other=float("inf"))
                steepness = tl.load(slope + high_bin) * factor
                # Measured from the nearest number of this dtype, differences lose no digits.
                knot = tl.where(high_bin > 0, held_low, 0.0)
                near = knot.to(kind)
                offset = steepness * (knot - near.to(tl.float64))
                held_height = (tl.load(value + high_bin) * factor - offset).to(kind)
                held_slope = steepness.to(kind)
        if single:
            for part in tl.static_range(TILE // PART):
                place = start + part * PART
                inside = lane < tl.minimum(total - place, PART).to(tl.int32)
                score = tl.load(scores + place + lane, mask=inside, other=0).to(wide)
                straight = held_height + held_slope * (score.to(kind) - near)
                found = tl.where(held_slope == 0, held_height, straight)
                tl.store(result + place + lane, found, mask=inside)
        else:
            for number in range(TILE // PART):
                _read_one_by_one(
                    scores, base, value, slope, entries, table, result, factor,
                    start + number * PART, total, inverse, lowest, knots,
                    EXACT, FINE, CELLS, PART,
                )  # fmt: skip


@triton.jit
def _read_one_by_one(
    scores: tl.tensor,
    base: tl.tensor,
    value: tl.tensor,
    slope: tl.tensor,
    entries: tl.tensor,
    table: tl.tensor,
    result: tl.tensor,
    factor: tl.tensor,
    start: tl.tensor,
    total: tl.tensor,
    inverse: tl.tensor,
    lowest: tl.tensor,
    knots: tl.tensor,
    EXACT: tl.constexpr,
    FINE: tl.constexpr,
    CELLS: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Write the function's value at each score of a part of a tile."""
    wide: tl.constexpr = tl.float32 if EXACT else tl.float64
    kind: tl.constexpr = tl.float64 if FINE else tl.float32
    lane = tl.arange(0, PART)
    inside = lane < tl.minimum(total - start, PART).to(tl.int32)
    score = tl.load(scores + start + lane, mask=inside, other=0).to(wide)
    finite = tl.abs(score) < float("inf")
    cell, part = find_cells(score, inverse, lowest, CELLS)
    known = inside & finite
    if FINE:
        height = tl.load(table + cell, mask=known, other=0).to(tl.float64, bitcast=True)
        rise = tl.load(table + CELLS + cell, mask=known, other=0).to(tl.float64, bitcast=True)
    else:
        line = tl.load(table + cell, mask=known, other=0)
        height = line.to(tl.int32).to(tl.float32, bitcast=True)
        rise = (line >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    found = height + rise * part.to(kind)
    search = known & (height != height)
    if tl.max(search.to(tl.int32)) > 0:
        entry = tl.load(entries + cell, mask=search, other=0)
        steps = entry & ENTRY_STEPS
        score64 = score.to(tl.float64)
        bin_ = count_below(score64, base + 1, entry >> ENTRY_SHIFT, steps, tl.max(steps), knots)
        distance = score64 - tl.load(base + bin_, mask=search, other=0.0)
        steepness = tl.load(slope + bin_, mask=search, other=0.0) * factor
        exact = tl.load(value + bin_, mask=search, other=0.0) * factor
        exact = tl.where(steepness == 0, exact, exact + steepness * distance)
        found = tl.where(search, exact.to(kind), found)
    tl.store(result + start + lane, tl.where(finite, found, float("nan")), mask=inside)
