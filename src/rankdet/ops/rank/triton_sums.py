"""Sums over the positives, as Triton kernels: over pairs of them, and K^T w as a function.

They start from the positives in ascending order, as `rankdet.ops.rank.triton_positives` does.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rankdet.ops.rank.triton_positives import ramp_between


@triton.jit
def smoothed_step(x: tl.tensor, delta: tl.tensor) -> tl.tensor:
    """Return H(x) in float64; NaN where x is."""
    # Where delta is 0 the ratio is no number, and the comparison decides.
    ratio = x / (2 * delta) + 0.5
    ratio = tl.where(ratio < 0, 0.0, tl.where(ratio > 1, 1.0, ratio))
    hard = tl.where(x >= 0, 1.0, tl.where(x < 0, 0.0, float("nan")))
    return tl.where(delta == 0, hard, ratio)


@triton.jit(do_not_specialize=["positives", "delta_bits"])
def pairs_kernel(
    scores: tl.tensor,
    order: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    result: tl.tensor,
    positives: tl.tensor,
    delta_bits: tl.tensor,
    ADJOINT: tl.constexpr,
    KEYED: tl.constexpr,
    BLOCK: tl.constexpr,
    OTHERS: tl.constexpr,
) -> None:
    """Sum H(p_k - p_i) v_k over k (ADJOINT: H(p_i - p_k) v_k), a block of i in each program.

    Args:
        scores: [P] the positives, ascending.
        order: [P] int64, which positive each of these is.
        keys: [P] any floating dtype, in the positives' own order; not used unless KEYED.
        values: [T, P] any floating dtype, likewise.
        result: [T, P] float64, in the same order, written.
        positives: P.
        delta_bits: half-width of the ramp, the bits of a float64.
        ADJOINT: see above.
        KEYED: whether only pairs count in which the key of k is the lower (ADJOINT: the higher).
        BLOCK: positives in a program.
        OTHERS: how many k at a time.
    """
    delta = delta_bits.to(tl.int64).to(tl.float64, bitcast=True)
    sets = tl.program_id(1).to(tl.int64) * positives
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < positives
    mine = tl.load(scores + i, mask=inside, other=0).to(tl.float64)
    own_place = tl.load(order + i, mask=inside, other=0)
    own_key = tl.load(keys + own_place, mask=inside, other=0)
    sum_ = tl.zeros([BLOCK], tl.float64)
    for start in range(0, positives, OTHERS):
        k = start + tl.arange(0, OTHERS)
        there = k < positives
        other = tl.load(scores + k, mask=there, other=0).to(tl.float64)
        place = tl.load(order + k, mask=there, other=0)
        value = tl.load(values + sets + place, mask=there, other=0).to(tl.float64)
        x = other[None, :] - mine[:, None]
        share = smoothed_step(-x if ADJOINT else x, delta)
        counts = there[None, :]
        if KEYED:
            key = tl.load(keys + place, mask=there, other=0)[None, :]
            counts = counts & (own_key[:, None] < key if ADJOINT else key < own_key[:, None])
        sum_ += tl.sum(tl.where(counts, share * value[None, :], 0.0), axis=1)
    tl.store(result + sets + own_place, sum_, mask=inside)


@triton.jit(do_not_specialize=["positives", "delta_bits"])
def pieces_kernel(
    scores: tl.tensor,
    order: tl.tensor,
    base: tl.tensor,
    ends: tl.tensor,
    weights: tl.tensor,
    value: tl.tensor,
    slope: tl.tensor,
    positives: tl.tensor,
    stride: tl.tensor,
    delta_bits: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write K^T w as a function of the score, one program for each of T sets of weights.

    As `rankdet.ops.rank.knots.pieces` does.

    Args:
        scores: [P] the positives, ascending.
        order: [P] int64, which positive each of these is.
        base: see `prepare_kernel`; so are ends.
        ends: see there.
        weights: [T, P] float64, in the positives' own order.
        value: [T, 2P + 1] float64, written.
        slope: [T, 2P + 1] float64, written.
        positives: P.
        stride: from one set to the next in value and in slope.
        delta_bits: half-width of the ramp, the bits of a float64.
        BLOCK: how many bins or positives at a time.
    """
    delta = delta_bits.to(tl.int64).to(tl.float64, bitcast=True)
    set_ = tl.program_id(0).to(tl.int64)
    write_pieces(
        scores, order, base, ends, weights + set_ * positives, value + set_ * stride,
        slope + set_ * stride, positives, delta, BLOCK,
    )  # fmt: skip


@triton.jit
def write_pieces(
    scores: tl.tensor,
    order: tl.tensor,
    base: tl.tensor,
    ends: tl.tensor,
    weights: tl.tensor,
    value: tl.tensor,
    slope: tl.tensor,
    positives: tl.tensor,
    delta: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write what `pieces_kernel` does, of one set of weights; one program."""
    bins = 2 * positives + 1
    lane = tl.arange(0, BLOCK)
    total = tl.cast(0.0, tl.float64)
    # Each knot is the beginning or the end of one ramp: so every bin but the first is written.
    for start in range(0, positives, BLOCK):
        i = start + lane
        inside = i < positives
        begin, end, step, width = ramp_between(scores, ends, i, positives, delta)
        weight = tl.load(weights + tl.load(order + i, mask=inside, other=0), mask=inside, other=0)
        total += tl.sum(tl.where(inside, weight, 0.0), 0)
        rise = tl.where(step, 0.0, weight / width)
        jump = tl.where(step, weight / 2, 0.0)
        tl.store(slope + begin, rise, mask=inside)
        tl.store(slope + end, -rise, mask=inside)
        tl.store(value + begin, jump, mask=inside)
        tl.store(value + end, jump, mask=inside)
    tl.debug_barrier()

    so_far = tl.cast(0.0, tl.float64)
    for start in range(1, bins, BLOCK):
        bin_ = start + lane
        inside = bin_ < bins
        gap = _gap(base, bin_, bins, delta)
        change = tl.load(slope + bin_, mask=inside, other=0)
        steep = so_far + tl.cumsum(change, 0)
        tl.store(slope + bin_, tl.where(gap == 0, 0.0, steep), mask=inside)
        so_far += tl.sum(change, 0)
    tl.store(slope, 0.0)
    tl.debug_barrier()

    # Weights that are not finite make the function NaN everywhere.
    so_far = 0 * total
    tl.store(value, so_far)
    for start in range(1, bins, BLOCK):
        bin_ = start + lane
        inside = bin_ < bins
        steep = tl.load(slope + bin_ - 1, mask=inside & (bin_ > 1), other=0)
        gap = tl.where(bin_ > 1, _gap(base, bin_ - 1, bins, delta), 0.0)
        rise = tl.load(value + bin_, mask=inside, other=0) + steep * gap
        height = so_far + tl.cumsum(rise, 0)
        so_far += tl.sum(rise, 0)
        tl.store(value + bin_, height, mask=inside)


@triton.jit
def _gap(base: tl.tensor, bin_: tl.tensor, bins: tl.tensor, delta: tl.tensor) -> tl.tensor:
    """Return how wide bins (from 1 on) are, 0 where too wide to lie on a ramp."""
    knot = tl.load(base + bin_, mask=bin_ < bins, other=0)
    upper = tl.load(base + bin_ + 1, mask=bin_ + 1 < bins, other=float("inf"))
    gap = upper - knot
    return tl.where(gap > 4 * delta, 0.0, gap)
