"""What is done for each positive, as Triton kernels: a handful of launches for some 150 of torch.

On a GPU the passes over the scores take microseconds, and so does anything about the P positives;
what takes time is to launch it. So everything between two passes is put into few kernels. They
start from the positives in ascending order: the beginnings of the ramps and their ends are then two
ascending lists, and the place of a knot among all knots is found by a search in the other list.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rankdet.ops.rank.triton_bins import contents
from rankdet.ops.rank.triton_grid import count_below, edges, geometry_of, write_entry

_RESOLUTION = tl.constexpr(2.0**-52)
_LOWEST = tl.constexpr(-(1 << 63))


@triton.jit
def _ramp(score: tl.tensor, delta: tl.tensor) -> tl.tensor:
    """Return where the ramps of scores (float64) begin and end, and which are steps.

    The same as in `rankdet.ops.rank.knots.make_knots`, to the bit.
    """
    step = tl.abs(score) * _RESOLUTION > tl.where(delta == 0, -1.0, delta)
    bits = score.to(tl.int64, bitcast=True)
    before = tl.where(score > 0, bits - 1, tl.where(score < 0, bits + 1, _LOWEST + 1))
    before = before.to(tl.float64, bitcast=True)
    low = tl.where(step, before, score - delta)
    high = tl.where(step, tl.where(delta > 0, score, before), score + delta)
    return low, high, step


@triton.jit
def ramp_between(
    scores: tl.tensor, ends: tl.tensor, i: tl.tensor, positives: tl.tensor, delta: tl.tensor
) -> tl.tensor:
    """Return the bins above the two ends of ramps i, which are steps, and their widths (1 then)."""
    inside = i < positives
    low, high, step = _ramp(tl.load(scores + i, mask=inside, other=0).to(tl.float64), delta)
    begin = tl.load(ends + i, mask=inside, other=0) + 1
    end = tl.load(ends + positives + i, mask=inside, other=0) + 1
    return begin, end, step, tl.where(step, 1.0, high - low)


@triton.jit
def _count_ends(
    x: tl.tensor,
    scores: tl.tensor,
    positives: tl.tensor,
    steps: tl.tensor,
    delta: tl.tensor,
    HIGH: tl.constexpr,
    TIES: tl.constexpr,
) -> tl.tensor:
    """Return how many ramps begin (HIGH: end) below x; TIES: at x too. int32, shaped as x."""
    place = tl.zeros_like(x).to(tl.int32)
    for i in range(steps):
        step = 1 << (steps - 1 - i)
        ahead = place + (step - 1)
        inside = ahead < positives
        score = tl.load(scores + ahead, mask=inside, other=0).to(tl.float64)
        low, high, _step = _ramp(score, delta)
        end = high if HIGH else low
        found = (end <= x) if TIES else (end < x)
        place += tl.where(inside & found, step, 0).to(tl.int32)
    return place


@triton.jit
def _count_knots(
    x: tl.tensor,
    scores: tl.tensor,
    positives: tl.tensor,
    steps: tl.tensor,
    delta: tl.tensor,
    TIES: tl.constexpr,
) -> tl.tensor:
    """Return how many knots lie below x; TIES: at x too."""
    begins = _count_ends(x, scores, positives, steps, delta, HIGH=False, TIES=TIES)
    return begins + _count_ends(x, scores, positives, steps, delta, HIGH=True, TIES=TIES)


@triton.jit(
    do_not_specialize=[
        "positives", "skipped", "tiles", "zeros", "delta_bits", "steps", "skip_steps",
    ]
)  # fmt: skip
def prepare_kernel(
    scores: tl.tensor,
    skip: tl.tensor,
    base: tl.tensor,
    ends: tl.tensor,
    entries: tl.tensor,
    geometry: tl.tensor,
    cuts: tl.tensor,
    sums: tl.tensor,
    finite: tl.tensor,
    positives: tl.tensor,
    skipped: tl.tensor,
    tiles: tl.tensor,
    zeros: tl.tensor,
    delta_bits: tl.tensor,
    steps: tl.tensor,
    skip_steps: tl.tensor,
    TILE: tl.constexpr,
    CELLS_LOG2: tl.constexpr,
    DIGITS: tl.constexpr,
    WIDEST: tl.constexpr,
    BLOCK: tl.constexpr,
    ZERO_BLOCK: tl.constexpr,
) -> None:
    """Lay knots and grid, cut the list of what is left out by tile, and write zeros.

    The programs share out four kinds of work, one kind after the other: knots, cells, cuts, zeros.

    Args:
        scores: [P] the positives, ascending.
        skip: [S] int64, ascending.
        base: [2P + 1] float64, written: 0 and the knots.
        ends: [2, P] int32, written: the places of the ends of each ramp among the knots.
        entries: of the grid, written.
        geometry: of the grid, written.
        cuts: [tiles + 1] int64, written: how many entries of skip lie before each tile.
        sums: [zeros] int64, written: zeros.
        finite: int8, written: whether the positives are finite.
        positives: P.
        skipped: S.
        tiles: number of tiles, or -1 where there is nothing to leave out.
        zeros: number of sums.
        delta_bits: half-width of the ramp, the bits of a float64.
        steps: number of digits of P.
        skip_steps: number of digits of S.
        TILE: scores in a tile.
        CELLS_LOG2: see `rankdet.ops.rank.triton_grid.lay_grid`; so are DIGITS and WIDEST.
        DIGITS: see there.
        WIDEST: see there.
        BLOCK: how many of a kind a program does; of zeros ZERO_BLOCK.
        ZERO_BLOCK: see BLOCK.
    """
    CELLS: tl.constexpr = (1 << CELLS_LOG2) + 3
    delta = delta_bits.to(tl.int64).to(tl.float64, bitcast=True)
    lane = tl.arange(0, BLOCK)
    job = tl.program_id(0)
    of_knots, of_cells = tl.cdiv(positives, BLOCK), (CELLS + BLOCK - 1) // BLOCK
    of_cuts = tl.cdiv(tiles + 1, BLOCK)
    if job < of_knots:
        i = job * BLOCK + lane
        inside = i < positives
        score = tl.load(scores + i, mask=inside, other=0).to(tl.float64)
        low, high, _step = _ramp(score, delta)
        begin = i + _count_ends(low, scores, positives, steps, delta, HIGH=True, TIES=False)
        end = i + _count_ends(high, scores, positives, steps, delta, HIGH=False, TIES=True)
        tl.store(base + 1 + begin, low, mask=inside)
        tl.store(base + 1 + end, high, mask=inside)
        tl.store(ends + i, begin, mask=inside)
        tl.store(ends + positives + i, end, mask=inside)
        if job == 0:
            tl.store(base, 0.0)
    elif job < of_knots + of_cells:
        first, last = tl.load(scores).to(tl.float64), tl.load(scores + positives - 1).to(tl.float64)
        low, _high, _step = _ramp(first, delta)
        _low, high, _step = _ramp(last, delta)
        width, inverse, lowest = geometry_of(low, high, CELLS_LOG2, DIGITS, WIDEST)
        if job == of_knots:
            tl.store(geometry, inverse)
            tl.store(geometry + 1, width)
            tl.store(geometry + 2, lowest)
            # Where one is not a number it stands last.
            sound = (tl.abs(first) < float("inf")) & (tl.abs(last) < float("inf"))
            tl.store(finite, sound.to(tl.int8))
        cell = (job - of_knots) * BLOCK + lane
        number = cell + lowest
        edge, upper_edge = edges(number, width)
        lower = _count_knots(edge, scores, positives, steps, delta, TIES=True)
        upper = _count_knots(upper_edge, scores, positives, steps, delta, TIES=False)
        upper = tl.maximum(tl.where(cell == CELLS - 1, 2 * positives, upper), lower)
        write_entry(entries, cell, lower, upper, number, steps + 1, CELLS)
    elif job < of_knots + of_cells + of_cuts:
        tile = (job - of_knots - of_cells) * BLOCK + lane
        start = tile.to(tl.int64) * TILE
        nothing = tl.zeros_like(start)
        cut = count_below(start, skip, nothing, nothing + skip_steps, skip_steps, skipped)
        tl.store(cuts + tile, cut, mask=tile <= tiles)
    else:
        begin = (job - of_knots - of_cells - of_cuts).to(tl.int64) * ZERO_BLOCK
        place = begin + tl.arange(0, ZERO_BLOCK)
        tl.store(sums + place, tl.zeros([ZERO_BLOCK], tl.int64), mask=place < zeros)


@triton.jit(do_not_specialize=["positives", "digits", "delta_bits"])
def count_kernel(
    scores: tl.tensor,
    order: tl.tensor,
    base: tl.tensor,
    ends: tl.tensor,
    geometry: tl.tensor,
    running: tl.tensor,
    totals: tl.tensor,
    bin_sums: tl.tensor,
    finite: tl.tensor,
    before: tl.tensor,
    above: tl.tensor,
    excess: tl.tensor,
    counts: tl.tensor,
    positives: tl.tensor,
    digits: tl.tensor,
    delta_bits: tl.tensor,
    CELLS: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    SUM_BLOCKS: tl.constexpr,
    BIN_COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Count the negatives above each positive, from the sums of cells and bins; one program.

    As `rankdet.ops.rank.knots.counts_from_bins` does.

    Args:
        scores: [P] the positives, ascending.
        order: [P] int64, which positive each of these is.
        base: see `prepare_kernel`; so are ends and geometry.
        ends: see there.
        geometry: see there.
        running: see `rankdet.ops.rank.triton_bins.add_copies`; so are totals.
        totals: see there.
        bin_sums: sums of the bins themselves.
        finite: int8, whether all scores are finite; if not, all counts are NaN.
        before: [3, SUM_BLOCKS] int64, room for what it notes; so are above and excess.
        above: [2P + 1] int64.
        excess: [2P + 1] float64.
        counts: [P] float64, written.
        positives: P.
        digits: see `rankdet.ops.rank.triton_fill.digits_for`.
        delta_bits: half-width of the ramp, the bits of a float64.
        CELLS: of the grid.
        SUM_BLOCK: cells in a block of running sums.
        SUM_BLOCKS: a power of two, not less than there are such blocks.
        BIN_COPIES: copies of the sums of bins.
        BLOCK: how many bins or positives at a time.
    """
    delta = delta_bits.to(tl.int64).to(tl.float64, bitcast=True)
    bins = 2 * positives + 1
    blocks: tl.constexpr = (CELLS + SUM_BLOCK - 1) // SUM_BLOCK
    block = tl.arange(0, SUM_BLOCKS)
    for row in tl.static_range(3):
        total = tl.load(totals + row * blocks + block, mask=block < blocks, other=0)
        tl.store(before + row * blocks + block, tl.cumsum(total, 0) - total, mask=block < blocks)
    tl.debug_barrier()  # what one thread wrote, others read

    lane = tl.arange(0, BLOCK)
    higher_number, higher_excess = tl.cast(0, tl.int64), tl.cast(0.0, tl.float64)
    for top in range(bins - 1, 0, -BLOCK):
        bin_ = top - lane
        number, beyond, knot, upper = contents(
            bin_, bins, base, geometry, running, before, bin_sums, digits,
            CELLS, SUM_BLOCK, BIN_COPIES, BLOCK,
        )  # fmt: skip
        gap = upper - knot
        gap = tl.where((gap > 4 * delta) | (bin_ < 1), 0.0, gap)
        so_far = higher_number + tl.cumsum(number, 0)
        stretch = tl.where(gap == 0, 0.0, beyond) + (so_far - number).to(tl.float64) * gap
        tl.store(above + bin_, so_far, mask=bin_ > 0)
        tl.store(excess + bin_, higher_excess + tl.cumsum(stretch, 0), mask=bin_ > 0)
        higher_number += tl.sum(number, 0)
        higher_excess += tl.sum(stretch, 0)
    tl.debug_barrier()

    sound = tl.load(finite) != 0
    for start in range(0, positives, BLOCK):
        i = start + lane
        inside = i < positives
        begin, end, step, width = ramp_between(scores, ends, i, positives, delta)
        above_begin = tl.load(above + begin, mask=inside, other=0)
        above_end = tl.load(above + end, mask=inside, other=0)
        excess_begin = tl.load(excess + begin, mask=inside, other=0)
        excess_end = tl.load(excess + end, mask=inside, other=0)
        count = tl.where(
            step, (above_begin + above_end).to(tl.float64) / 2, (excess_begin - excess_end) / width
        )
        count = tl.where(above_begin == 0, 0.0, count)
        place = tl.load(order + i, mask=inside, other=0)
        tl.store(counts + place, tl.where(sound, count, float("nan")), mask=inside)
