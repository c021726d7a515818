"""The first pass as a Triton kernel: one read of the scores, the same bits in any order.

A tile of scores below every ramp is skipped. One that lies within a single bin, which is every
tile at the start of a training, adds two sums that stay in registers until the bin changes. In
any other tile, each score goes to its cell of the grid: its distance to the lower edge, in units
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

from rankdet.ops.rank.triton_grid import (
    ENTRY_ROUNDED,
    ENTRY_SHIFT,
    ENTRY_STEPS,
    DeviceGrid,
    ceil_log2,
    count_below,
    find_bin,
    find_cells,
    power_of_two,
)

# In one integer: how many scores (20 bits and the sign), and the sum of their distances.
_PARTS = tl.constexpr(float(1 << 23))
_NUMBER_SHIFT = tl.constexpr(43)
_ONE_SCORE = tl.constexpr(1 << 43)
_MOST_SCORES = tl.constexpr((1 << 21) - 1)
_COPY_HOLDS = 1 << 20
# Several sets of sums, so that fewer programs meet at one address. To be measured.
_CELL_COPIES = 32
_BIN_COPIES = 8
_SUM_ROWS = 16
_SUM_BLOCK = 128
_FINISH_BLOCK = 128
_PROGRAMS_PER_PROCESSOR = 8


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
    tiles, cells = triton.cdiv(total, tile), grid.entries.numel()
    exact = scores.dtype != torch.float64
    digits = digits_for(total)
    spread = max(min(_CELL_COPIES, tiles // 8), 1) if exact else 1
    per_copy = _COPY_HOLDS // tile
    copies = triton.cdiv(tiles, per_copy * spread) * spread if exact else 1
    sums = torch.zeros(copies * cells + _BIN_COPIES * 3 * bins, dtype=torch.int64, device=device)
    cell_sums, bin_sums = sums[: copies * cells], sums[copies * cells :]
    finite = torch.ones((), dtype=torch.int8, device=device)
    cuts = skip
    if skip.numel():
        cuts = torch.searchsorted(skip, torch.arange(tiles + 1, device=device) * tile)
    if programs is None:
        programs = _PROGRAMS_PER_PROCESSOR * processors(device)
    if tiles:
        fill_kernel[(min(programs, tiles),)](
            scores,
            skip,
            cuts,
            base,
            grid.entries,
            grid.geometry,
            cell_sums,
            bin_sums,
            finite,
            total,
            tiles,
            bins,
            digits,
            spread,
            EXACT=exact,
            HAS_SKIP=skip.numel() > 0,
            CELLS=cells,
            TILE=tile,
            PER_COPY=per_copy,
            BIN_COPIES=_BIN_COPIES,
            num_warps=8,
            enable_fp_fusion=True,
        )
    per_cell = torch.empty(3, cells, dtype=torch.int64, device=device)
    sum_cells_kernel[(triton.cdiv(cells, _SUM_BLOCK),)](
        cell_sums,
        per_cell,
        copies,
        CELLS=cells,
        ROWS=_SUM_ROWS,
        BLOCK=_SUM_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    number = torch.empty(bins, dtype=torch.int64, device=device)
    beyond = torch.empty(bins, dtype=torch.float64, device=device)
    finish_kernel[(triton.cdiv(bins, _FINISH_BLOCK),)](
        base,
        grid.geometry,
        per_cell.cumsum(1),
        bin_sums,
        number,
        beyond,
        bins,
        digits,
        CELLS=cells,
        BIN_COPIES=_BIN_COPIES,
        BLOCK=_FINISH_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return number, beyond, finite.view(torch.bool)


def digits_for(total: int) -> int:
    """Return how many binary digits of each distance fit, so that the sum stays in 63 bits."""
    return 62 - total.bit_length()


def processors(device: torch.device) -> int:
    """Return how many programs a device runs side by side; 1 where it is the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


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
def _is_left_out(places: tl.tensor, skip: tl.tensor, begin: tl.tensor, end: tl.tensor) -> tl.tensor:
    """Tell which places (int64) are among the entries begin .. end - 1 of skip."""
    steps = 0
    while ((end - begin) >> steps) > 0:
        steps += 1
    none = tl.zeros_like(places)
    found = count_below(places, skip, none + begin, none + steps, steps, end)
    return (tl.load(skip + found, mask=found < end, other=-1)) == places


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
    # Tiles within one bin add up here.
    held_bin = 0
    held_number, held_whole, held_rest = (
        tl.cast(0, tl.int64),
        tl.cast(0, tl.int64),
        tl.cast(0, tl.int64),
    )
    for tile in range(program, tiles, tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * TILE
        lane = tl.arange(0, TILE)
        keep = lane < total - start
        score = tl.load(scores + start + lane, mask=keep, other=0).to(wide)
        if HAS_SKIP:
            begin, end = tl.load(cuts + tile), tl.load(cuts + tile + 1)
            if end > begin:
                keep = keep & (_is_left_out(start + lane, skip, begin, end) == 0)
        # What is not finite becomes the highest of all and is seen there.
        bounded = tl.where(tl.abs(score) < float("inf"), score, float("inf"))
        high = tl.max(tl.where(keep, bounded, -float("inf")))
        low = tl.min(tl.where(keep, bounded, float("inf")))
        if high == float("inf"):
            tl.store(finite, 0)
        elif high.to(tl.float64) > first_knot:
            low_bin = find_bin(low, base, entries, inverse, lowest, knots, CELLS)
            high_bin = find_bin(high, base, entries, inverse, lowest, knots, CELLS)
            if low_bin == high_bin:
                if high_bin != held_bin:
                    _add(my_bins, bins, held_bin, held_number, held_whole, held_rest, held_bin > 0)
                    held_bin = high_bin
                    held_number, held_whole, held_rest = (
                        held_number * 0,
                        held_whole * 0,
                        held_rest * 0,
                    )
                knot = tl.load(base + high_bin)
                gap = tl.load(base + high_bin + 1, mask=high_bin < knots, other=float("inf")) - knot
                distance = tl.sum(tl.where(keep, score.to(tl.float64) - knot, 0.0))
                whole, rest = _split(distance, gap, digits)
                held_number += tl.sum(keep.to(tl.int32)).to(tl.int64)
                held_whole += whole
                held_rest += rest
            else:
                cell, part = find_cells(score, inverse, lowest, CELLS)
                entry = tl.load(entries + cell, mask=keep, other=0)
                steps = entry & ENTRY_STEPS
                bin_ = entry >> ENTRY_SHIFT
                if EXACT:
                    search = keep & ((entry & (ENTRY_STEPS | ENTRY_ROUNDED)) != 0)
                    copy = (tile // (PER_COPY * spread)) * spread + tile % spread
                    packed = (part * _PARTS).to(tl.int64) + _ONE_SCORE
                    tl.atomic_add(
                        cell_sums + tl.cast(copy, tl.int64) * CELLS + cell,
                        packed,
                        mask=keep & (search == 0) & (bin_ > 0),
                        sem="relaxed",
                    )
                else:
                    search = keep
                if tl.max(search.to(tl.int32)) > 0:
                    most = tl.max(tl.where(search, steps, 0))
                    steps = tl.where(search, steps, 0)
                    fine = score.to(tl.float64)
                    bin_ = count_below(fine, base + 1, bin_, steps, most, knots)
                    search = search & (bin_ > 0)
                    knot = tl.load(base + bin_, mask=search, other=0.0)
                    upper = tl.load(
                        base + bin_ + 1, mask=search & (bin_ < knots), other=float("inf")
                    )
                    whole, rest = _split(tl.where(search, fine - knot, 0.0), upper - knot, digits)
                    one = tl.full([TILE], 1, tl.int64)
                    _add(my_bins, bins, bin_, one, whole, rest, search)
    _add(my_bins, bins, held_bin, held_number, held_whole, held_rest, held_bin > 0)


@triton.jit(do_not_specialize=["copies"])
def sum_cells_kernel(
    cell_sums: tl.tensor,
    per_cell: tl.tensor,
    copies: tl.tensor,
    CELLS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add up the copies: for each cell the number of scores, this times the cell, and the parts."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
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
        parts += tl.sum(packed & (_ONE_SCORE - 1), axis=0)
    tl.store(per_cell + cell, number, mask=inside)
    tl.store(per_cell + CELLS + cell, number * cell, mask=inside)
    tl.store(per_cell + 2 * CELLS + cell, parts, mask=inside)


@triton.jit(do_not_specialize=["bins", "digits"])
def finish_kernel(
    base: tl.tensor,
    geometry: tl.tensor,
    running: tl.tensor,
    bin_sums: tl.tensor,
    number: tl.tensor,
    beyond: tl.tensor,
    bins: tl.tensor,
    digits: tl.tensor,
    CELLS: tl.constexpr,
    BIN_COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Put together what the cells between two knots hold and what went to the bin itself."""
    bin_ = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    knots = bins - 1
    inside = (bin_ > 0) & (bin_ < bins)
    ends = inside & (bin_ < knots)
    knot = tl.load(base + bin_, mask=inside, other=0.0)
    upper = tl.load(base + bin_ + 1, mask=ends, other=float("inf"))

    inverse, width = tl.load(geometry), tl.load(geometry + 1)
    lowest = tl.load(geometry + 2)
    # All cells between that of the knot below and that of the knot above belong to the bin.
    begin = find_cells(knot, inverse, lowest, CELLS)[0] + 1
    end = tl.where(ends, find_cells(upper, inverse, lowest, CELLS)[0], CELLS)
    some = inside & (end > begin)
    before, last = running + begin - 1, running + end - 1
    count = tl.load(last, mask=some, other=0) - tl.load(before, mask=some, other=0)
    places = tl.load(last + CELLS, mask=some, other=0) - tl.load(before + CELLS, mask=some, other=0)
    parts = tl.load(last + 2 * CELLS, mask=some, other=0) - tl.load(
        before + 2 * CELLS, mask=some, other=0
    )
    # Widths of cells from the lower edge of the first of them, then on to the knot.
    widths = (places - count * begin).to(tl.float64) + parts.to(tl.float64) / _PARTS
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
    tl.store(number + bin_, count, mask=bin_ < bins)
    tl.store(beyond + bin_, tl.where(ends, sum_, 0.0), mask=bin_ < bins)
