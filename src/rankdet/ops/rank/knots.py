"""The knots: the 2P scores at which the ramps of the positives begin and end.

Between two knots, the row sums of K and K^T w are linear in a score. All that either needs of
a negative is its bin (how many knots lie below it) and its distance to the knot just below.
The small arrays here have one entry per knot; the work over the negatives is elsewhere.

Arrays are numpy's or torch's, see `rankdet.ops.rank.arrays`: what comes in decides.
"""

from __future__ import annotations

from typing import NamedTuple

from rankdet.ops.rank.arrays import Array, double, library_of, put, quiet, sum_from_top, zeros

# A ramp that is narrower than the spacing of numbers at its score cannot be resolved in float64:
# it is treated as what it is at that resolution, a step that is worth 1/2 at a tie.
_RESOLUTION = 2.0**-52


class Knots(NamedTuple):
    """Where the ramps begin and end.

    Attributes:
        values: [2P] float64, ascending; equal values are harmless.
        base: [2P + 1] float64, the knot just below each bin; bin 0 has none (0).
        order: [2P] int64, which end each knot is: i where ramp i begins, P + i where it ends.
        ends: [2, P] int64, the indices in ``values`` at which ramp i begins and ends.
        width: [P] float64, length of ramp i; 1 for a step, which has none.
        step: [P] bool, whether i is a step: half of it happens at either end.
        gap: [2P] float64, distance to the next knot, 0 where it is too wide to lie on a ramp.
            Leaving such stretches out keeps far outliers from costing any precision.
    """

    values: Array
    base: Array
    order: Array
    ends: Array
    width: Array
    step: Array
    gap: Array


class Pieces(NamedTuple):
    """K^T w as a function of the score: value + slope (s - knot just below) in each bin."""

    value: Array  # [..., 2P + 1] float64
    slope: Array  # [..., 2P + 1] float64


@quiet
def make_knots(pos: Array, delta: float) -> Knots:
    """Sort the ends of the ramps of ``pos`` [P], any floating dtype."""
    xp, pos = library_of(pos), double(pos)
    step = (xp.abs(pos) * _RESOLUTION > delta) | (delta == 0)
    before = xp.nextafter(pos, xp.full_like(pos, -xp.inf))  # s > before  <=>  s >= pos
    low = xp.where(step, before, pos - delta)
    high = xp.where(step, pos if delta > 0 else before, pos + delta)
    both = xp.concatenate([low, high])
    order = xp.argsort(both)
    values = both[order]
    gap = xp.concatenate([values[1:] - values[:-1], xp.full_like(values[:1], xp.inf)])
    return Knots(
        values=values,
        base=xp.concatenate([zeros(values, 1), values]),
        order=order,
        ends=xp.argsort(order).reshape(2, -1),
        width=put(high - low, step, 1.0),
        step=step,
        # Twice the width of a ramp, so that rounding cannot cut one out.
        gap=put(gap, gap > 4 * delta, 0.0),
    )


@quiet
def counts_from_bins(knots: Knots, number: Array, beyond: Array) -> Array:
    """Return the row sums of K from the contents of the bins.

    Args:
        knots: the knots.
        number: [..., 2P + 1] int64 or float64, how many scores (which weight) each bin holds.
        beyond: [..., 2P + 1] float64, sum of (weight times) distance to the knot just below.

    Returns:
        [..., P] float64; exactly 0 where no score lies above the beginning of the ramp.
    """
    xp = library_of(beyond)
    higher = sum_from_top(double(number))  # how many lie in this bin or above
    # From the top down, the sum of (s - knot)+ over the stretches that may lie on a ramp. The
    # stretch above the last knot is none.
    steps = xp.where(knots.gap == 0, 0.0, beyond[..., 1:])
    steps[..., :-1] += higher[..., 2:] * knots.gap[:-1]
    begin, end = _at_ends(sum_from_top(steps), knots)
    above_begin, above_end = _at_ends(higher[..., 1:], knots)
    on_step = (above_begin + above_end) / 2
    counts = xp.where(knots.step, on_step, (begin - end) / knots.width)
    return put(counts, above_begin == 0, 0.0)


@quiet
def pieces(knots: Knots, per_pos: Array) -> Pieces:
    """Return K^T w, w = ``per_pos`` [..., P] float64, as a function of the score.

    Weights that are not finite make the value NaN in every bin.
    """
    xp = library_of(per_pos)
    rise = put(per_pos / knots.width, knots.step, 0.0)
    jump = put(per_pos / 2, ~knots.step, 0.0)
    # What happens at each knot; nothing does at the beginning of bin 0.
    nothing = 0 * per_pos.sum(-1)[..., None]
    slope = xp.concatenate([rise, -rise], -1)[..., knots.order].cumsum(-1)
    slope = xp.concatenate([nothing, put(slope, knots.gap == 0, 0.0)], -1)
    value = xp.concatenate([nothing, xp.concatenate([jump, jump], -1)[..., knots.order]], -1)
    value[..., 2:] += slope[..., 1:-1] * knots.gap[:-1]
    return Pieces(value.cumsum(-1), slope)


def _at_ends(values: Array, knots: Knots) -> tuple[Array, Array]:
    """Return what values [..., 2P] say at the beginning and at the end of each ramp, [..., P]."""
    both = values[..., knots.ends]
    return both[..., 0, :], both[..., 1, :]
