"""The first pass as a Triton kernel: one read of the scores, the same bits in any order.

A tile of scores below every ramp is skipped. One that lies within a single bin, which is every
tile at the start of a training, adds two sums that stay in registers until the bin changes. In
any other tile, each score goes to its cell of the grid: its distance to the upper edge, in units
of 2^-23 of the width, is a whole number for float32 and anything narrower, so number and sum of
distances are kept in one 64-bit integer and added by one atomic operation. The few scores that
share a cell with a knot, and those next to zero, are searched for and go to their bins.

Only integers are ever added across tiles. Their sums do not depend on the order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdet.ops.rank.triton_bins import (
    BIN_COPIES,
    ONE_SCORE,
    PARTS,
    Layout,
    finish,
    layout,
    processors,
)
from rankdet.ops.rank.triton_grid import (
    ENTRY_ROUNDED,
    ENTRY_SHIFT,
    ENTRY_STEPS,
    DeviceGrid,
    ceil_log2,
    count_below,
    find_cells,
    find_two_bins,
    power_of_two,
)
from rankdet.ops.rank.triton_launch import cdiv, launch

# Scores that a program looks at in one go, to find out whether one bin holds them all; and those
# that it then takes one by one: with more, too few programs would fit on a multiprocessor.
TILE = 4096
PART = 512
_PROGRAMS_PER_PROCESSOR = 4
_WARPS = 8


def fill(
    base: Tensor, scores: Tensor, skip: Tensor, grid: DeviceGrid, *, tile: int, programs: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the first pass over N scores.

    Each distance to the knot below is exact, for float32 scores and narrower ones, in the cells
    without knots; elsewhere it is kept to 2^-2k of the width of its bin, k = 62 - log2(N) rounded
    down: 2^-74 at N = 3e7.

    Args:
        base: [K + 1] float64, the knot just below each bin, K >= 1.
        scores: [N] any floating dtype, contiguous.
        skip: [S] int64, ascending, the scores to leave out.
        grid: over the knots, for the scores' dtype.
        tile: how many scores a program looks at in one go, a power of two.
        programs: how many work at a time.

    Returns:
        number: [K + 1] int64, how many scores each bin holds; 0 for bin 0, which nobody needs.
        beyond: [K + 1] float64, the sum of their distances to the knot just below; 0 for the
            first and the last bin, which have no end.
        finite: 0-d bool, whether every score was finite that was not to be left out. If not,
            what the bins hold is of no use.
    """
    total, device, bins = scores.numel(), scores.device, base.numel()
    tiles = cdiv(total, tile)
    shape = layout(scores, grid, tile)
    sums = torch.zeros(shape.sums(bins), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.int8, device=device)
    cuts = skip
    if skip.numel():
        cuts = torch.searchsorted(skip, torch.arange(tiles + 1, device=device) * tile)
    add_scores(base, scores, skip, cuts, grid, sums, finite, shape, programs)
    number, beyond = finish(base, grid, sums, shape, digits_for(total))
    return number, beyond, finite.view(torch.bool)


def add_scores(
    base: Tensor,
    scores: Tensor,
    skip: Tensor,
    cuts: Tensor,
    grid: DeviceGrid,
    sums: Tensor,
    finite: Tensor,
    shape: Layout,
    programs: int | None,
) -> None:
    """Add all scores to ``sums``, zeros before; note in ``finite``, 1 before, what is not finite.

    Args:
        base: see `fill`; so are scores, skip, grid and programs.
        scores: [N].
        skip: [S].
        cuts: [tiles + 1] int64, how many entries of skip lie before each tile; of any content
            where S is 0.
        grid: over the knots.
        sums: see `Layout`, int64.
        finite: 0-d int8.
        shape: of the sums.
        programs: how many work at a time.
    """
    total, bins = scores.numel(), base.numel()
    tiles = cdiv(total, shape.tile)
    if programs is None:
        programs = _PROGRAMS_PER_PROCESSOR * processors(scores.device)
    if tiles:
        launch(
            fill_kernel,
            (min(programs, tiles),),
            scores,
            skip,
            cuts,
            base,
            grid.entries,
            grid.geometry,
            sums,
            sums[shape.copies * shape.cells :],
            finite,
            total,
            tiles,
            bins,
            digits_for(total),
            shape.spread,
            EXACT=scores.dtype != torch.float64,
            HAS_SKIP=skip.numel() > 0,
            CELLS=shape.cells,
            TILE=shape.tile,
            PART=min(shape.tile, PART),
            PER_COPY=shape.per_copy,
            BIN_COPIES=BIN_COPIES,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )


def digits_for(total: int) -> int:
    """Return how many binary digits of each distance fit, so that the sum stays in 63 bits."""
    return 62 - total.bit_length()


@triton.jit
def _split(distance: tl.tensor, gap: tl.tensor, digits: tl.tensor) -> tl.tensor:
    """Return a distance in units of 2^-digits of a bin's width: whole units, and of their parts.

    Both are int64; the parts in units of 2^-digits of a unit. Nothing where the bin has no end.
    """
    exponent = ceil_log2(gap)
    bounded = exponent <= 900
    shift = digits - tl.maximum(tl.minimum(exponent, 900), -900)
    scaled = tl.where(bounded, distance * power_of_two(shift), 0.0)
    whole = tl.floor(scaled)
    rest = (scaled - whole) * power_of_two(digits)
    return whole.to(tl.int64), rest.to(tl.int64)


@triton.jit
def _add(
    sums: tl.tensor,
    bins: tl.tensor,
    bin_: tl.tensor,
    number: tl.tensor,
    whole: tl.tensor,
    rest: tl.tensor,
    mask: tl.tensor,
) -> None:
    tl.atomic_add(sums + bin_, number, mask=mask, sem="relaxed")
    tl.atomic_add(sums + bins + bin_, whole, mask=mask, sem="relaxed")
    tl.atomic_add(sums + 2 * bins + bin_, rest, mask=mask, sem="relaxed")


@triton.jit
def _is_left_out(
    lane: tl.tensor, start: tl.tensor, skip: tl.tensor, begin: tl.tensor, end: tl.tensor
) -> tl.tensor:
    """Tell which places (start, int64, + lane, int32) are among the entries begin .. end - 1."""
    steps = 0
    while ((end - begin) >> steps) > 0:
        steps += 1
    place = lane * 0
    mine = skip + begin
    count = (end - begin).to(tl.int32)
    for i in range(steps):
        step = 1 << (steps - 1 - i)
        ahead = place + (step - 1)
        inside = ahead < count
        found = tl.load(mine + ahead, mask=inside, other=0) - start
        place += tl.where(inside & (found < lane), step, 0)
    return (tl.load(mine + place, mask=place < count, other=-1) - start) == lane


@triton.jit
def _part(
    scores: tl.tensor,
    skip: tl.tensor,
    start: tl.tensor,
    total: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    wide: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    PART: tl.constexpr,
) -> tl.tensor:
    """Read some scores, and tell which are there and not among entries begin .. end - 1 of skip."""
    lane = tl.arange(0, PART)
    keep = lane < tl.minimum(total - start, PART).to(tl.int32)
    score = tl.load(scores + start + lane, mask=keep, other=0).to(wide)
    if HAS_SKIP:  # noqa: SIM102 - known when compiling, the other is not
        if end > begin:
            keep = keep & (_is_left_out(lane, start, skip, begin, end) == 0)
    return score, keep


@triton.jit
def _add_one_by_one(
    scores: tl.tensor,
    skip: tl.tensor,
    base: tl.tensor,
    entries: tl.tensor,
    cell_sums: tl.tensor,
    my_bins: tl.tensor,
    start: tl.tensor,
    total: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    tile: tl.tensor,
    first_copy: tl.tensor,
    spread: tl.tensor,
    inverse: tl.tensor,
    lowest: tl.tensor,
    knots: tl.tensor,
    digits: tl.tensor,
    EXACT: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    CELLS: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Add a part of a tile of finite scores, each to its cell or, where it has to be, its bin."""
    wide: tl.constexpr = tl.float32 if EXACT else tl.float64
    lane = tl.arange(0, PART)
    score, keep = _part(scores, skip, start, total, begin, end, wide, HAS_SKIP, PART)
    score = tl.where(keep, score, 0)
    cell, part = find_cells(score, inverse, lowest, CELLS)
    entry = tl.load(entries + cell, mask=keep, other=0)
    steps = entry & ENTRY_STEPS
    bin_ = entry >> ENTRY_SHIFT
    search = keep
    if EXACT:
        search = keep & ((entry & (ENTRY_STEPS | ENTRY_ROUNDED)) != 0)
        copy = first_copy + ((tile + lane) & (spread - 1))
        packed = ((1 - part) * PARTS).to(tl.int64) + ONE_SCORE
        tl.atomic_add(
            cell_sums + copy.to(tl.int64) * CELLS + cell,
            packed,
            mask=keep & (search == 0) & (bin_ > 0),
            sem="relaxed",
        )
    if tl.max(search.to(tl.int32)) > 0:
        most = tl.max(tl.where(search, steps, 0))
        steps = tl.where(search, steps, 0)
        fine = score.to(tl.float64)
        bin_ = count_below(fine, base + 1, bin_, steps, most, knots)
        search = search & (bin_ > 0)
        knot = tl.load(base + bin_, mask=search, other=0.0)
        upper = tl.load(base + bin_ + 1, mask=search & (bin_ < knots), other=float("inf"))
        whole, rest = _split(tl.where(search, fine - knot, 0.0), upper - knot, digits)
        one = tl.full([PART], 1, tl.int64)
        _add(my_bins, knots + 1, bin_, one, whole, rest, search)


# Each thread takes single scores, not four neighbours in one access as alignment would allow: the
# scatter needs them so, and to rearrange them would cost more than wide reads save.
@triton.jit(
    do_not_specialize=["total", "tiles", "bins", "digits", "spread"],
    do_not_specialize_on_alignment=["scores"],
)
def fill_kernel(
    scores: tl.tensor,
    skip: tl.tensor,
    cuts: tl.tensor,
    base: tl.tensor,
    entries: tl.tensor,
    geometry: tl.tensor,
    cell_sums: tl.tensor,
    bin_sums: tl.tensor,
    finite: tl.tensor,
    total: tl.tensor,
    tiles: tl.tensor,
    bins: tl.tensor,
    digits: tl.tensor,
    spread: tl.tensor,
    EXACT: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    CELLS: tl.constexpr,
    TILE: tl.constexpr,
    PART: tl.constexpr,
    PER_COPY: tl.constexpr,
    BIN_COPIES: tl.constexpr,
) -> None:
    """Add the scores of every n-th tile to the sums of cells and bins; see `fill`."""
    wide: tl.constexpr = tl.float32 if EXACT else tl.float64
    program = tl.program_id(0)
    knots = bins - 1
    digits = digits.to(tl.int64)
    my_bins = bin_sums + (program % BIN_COPIES) * 3 * bins
    first_knot = tl.load(base + 1)
    inverse = tl.load(geometry).to(wide)
    lowest = tl.load(geometry + 2).to(wide)
    # Tiles within one bin add up here: that between these two knots.
    held_bin = 0
    held_low, held_high = tl.cast(float("inf"), tl.float64), tl.cast(float("-inf"), tl.float64)
    held_number, held_whole, held_rest = (
        tl.cast(0, tl.int64),
        tl.cast(0, tl.int64),
        tl.cast(0, tl.int64),
    )
    for tile in range(program, tiles, tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * TILE
        begin, end = 0, 0
        if HAS_SKIP:
            begin, end = tl.load(cuts + tile), tl.load(cuts + tile + 1)
        highest = tl.full([PART], float("-inf"), wide)
        lowest_here = tl.full([PART], float("inf"), wide)
        for part in tl.static_range(TILE // PART):
            score, keep = _part(
                scores, skip, start + part * PART, total, begin, end, wide, HAS_SKIP, PART
            )
            # What is not finite becomes the highest of all and is seen there.
            bounded = tl.where(tl.abs(score) < float("inf"), score, float("inf"))
            highest = tl.maximum(highest, tl.where(keep, bounded, float("-inf")))
            lowest_here = tl.minimum(lowest_here, tl.where(keep, bounded, float("inf")))
        high, low = tl.max(highest), tl.min(lowest_here)
        if high == float("inf"):
            tl.store(finite, 0)
        elif high.to(tl.float64) > first_knot:
            low_bin, high_bin = held_bin, held_bin
            if (low.to(tl.float64) <= held_low) | (high.to(tl.float64) > held_high):
                low_bin, high_bin = find_two_bins(
                    low, high, base, entries, inverse, lowest, knots, CELLS
                )
            if low_bin == high_bin:
                if high_bin != held_bin:
                    _add(my_bins, bins, held_bin, held_number, held_whole, held_rest, held_bin > 0)
                    held_bin = high_bin
                    held_number, held_whole, held_rest = (
                        held_number * 0,
                        held_whole * 0,
                        held_rest * 0,
                    )
                    held_low = tl.load(base + high_bin)
                    held_high = tl.load(
                        base + high_bin + 1, mask=high_bin < knots, other=float("inf")
                    )
                knot, gap = held_low, held_high - held_low
                distances = tl.zeros([PART], tl.float64)
                numbers = tl.zeros([PART], tl.int32)
                for part in tl.static_range(TILE // PART):
                    score, keep = _part(
                        scores, skip, start + part * PART, total, begin, end, wide, HAS_SKIP, PART
                    )
                    distances += tl.where(keep, score.to(tl.float64) - knot, 0.0)
                    numbers += keep.to(tl.int32)
                whole, rest = _split(tl.sum(distances), gap, digits)
                held_number += tl.sum(numbers).to(tl.int64)
                held_whole += whole
                held_rest += rest
            else:
                # Neighbours often have equal scores: each adds to another copy.
                first_copy = (tile // (PER_COPY * spread)) * spread
                for number in range(TILE // PART):
                    _add_one_by_one(
                        scores, skip, base, entries, cell_sums, my_bins,
                        start + number * PART, total, begin, end, tile, first_copy, spread,
                        inverse, lowest, knots, digits, EXACT, HAS_SKIP, CELLS, PART,
                    )  # fmt: skip
    _add(my_bins, bins, held_bin, held_number, held_whole, held_rest, held_bin > 0)
