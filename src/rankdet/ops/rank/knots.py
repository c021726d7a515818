"""The knots: the 2P scores at which the ramps of the positives begin and end.

Between two knots, the row sums of K and K^T w are linear in a score. All that either needs of
a negative is its bin (how many knots lie below it) and its distance to the knot just below.
The small arrays here have one entry per knot; the work over the negatives is elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A ramp that is narrower than the spacing of numbers at its score cannot be resolved in float64:
# it is treated as what it is at that resolution, a step that is worth 1/2 at a tie.
_RESOLUTION = 2.0**-52


class Knots(NamedTuple):
    """Where the ramps begin and end.

    Attributes:
        values: [2P] float64, ascending; equal values are harmless.
        base: [2P + 1] float64, the knot just below each bin; bin 0 has none (0).
        ends: [2, P] int64, the indices in ``values`` at which ramp i begins and ends.
        width: [P] float64, length of ramp i; 1 for a step, which has none.
        step: [P] bool, whether i is a step: half of it happens at either end.
        gap: [2P] float64, distance to the next knot, 0 where it is too wide to lie on a ramp.
            Leaving such stretches out keeps far outliers from costing any precision.
    """

    values: Tensor
    base: Tensor
    ends: Tensor
    width: Tensor
    step: Tensor
    gap: Tensor


class Pieces(NamedTuple):
    """K^T w as a function of the score: value + slope (s - knot just below) in each bin."""

    value: Tensor  # [..., 2P + 1] float64
    slope: Tensor  # [..., 2P + 1] float64


def make_knots(pos: Tensor, delta: float) -> Knots:
    """Sort the ends of the ramps of ``pos`` [P], any floating dtype."""
    pos = pos.double()
    step = (pos.abs() * _RESOLUTION > delta) | (delta == 0)
    before = torch.nextafter(pos, pos.new_tensor(-torch.inf))  # s > before  <=>  s >= pos
    low = torch.where(step, before, pos - delta)
    high = torch.where(step, pos if delta > 0 else before, pos + delta)
    values, order = torch.cat([low, high]).sort()
    gap = values.diff(append=values.new_full((1,), torch.inf))
    return Knots(
        values=values,
        base=torch.nn.functional.pad(values, (1, 0)),
        ends=order.argsort().view(2, -1),
        width=torch.where(step, 1.0, high - low),
        step=step,
        # Twice the width of a ramp, so that rounding cannot cut one out.
        gap=gap.masked_fill_(gap > 4 * delta, 0.0),
    )


def counts_from_bins(knots: Knots, number: Tensor, beyond: Tensor) -> Tensor:
    """Return the row sums of K from the contents of the bins.

    Args:
        knots: the knots.
        number: [..., 2P + 1] int64 or float64, how many scores (which weight) each bin holds.
        beyond: [..., 2P + 1] float64, sum of (weight times) distance to the knot just below.

    Returns:
        [..., P] float64; exactly 0 where no score lies above the beginning of the ramp.
    """
    higher = number.flip(-1).cumsum(-1).flip(-1)  # how many lie in this bin or above
    above, higher = higher[..., 1:], torch.nn.functional.pad(higher[..., 2:], (0, 1))
    # From the top down, the sum of (s - knot)+ over the stretches that may lie on a ramp.
    steps = torch.addcmul(beyond[..., 1:].masked_fill(knots.gap == 0, 0.0), higher, knots.gap)
    excess = steps.flip(-1).cumsum(-1).flip(-1)

    begin, end = excess[..., knots.ends].unbind(-2)
    above_begin, above_end = above[..., knots.ends].unbind(-2)
    on_step = (above_begin + above_end) / 2
    counts = torch.where(knots.step, on_step, (begin - end) / knots.width)
    return counts.masked_fill_(above_begin == 0, 0.0)


def pieces(knots: Knots, per_pos: Tensor) -> Pieces:
    """Return K^T w, w = ``per_pos`` [..., P] float64, as a function of the score.

    Weights that are not finite make the value NaN in every bin.
    """
    bins = (*per_pos.shape[:-1], knots.base.numel())
    begin, end = (knots.ends + 1).expand(*per_pos.shape[:-1], -1, -1).unbind(-2)
    rise = (per_pos / knots.width).masked_fill_(knots.step, 0.0)
    slope = per_pos.new_zeros(bins).scatter_(-1, begin, rise).scatter_(-1, end, -rise).cumsum_(-1)
    slope[..., 1:].masked_fill_(knots.gap == 0, 0.0)
    jump = (per_pos / 2).masked_fill_(~knots.step, 0.0)
    value = per_pos.new_zeros(bins).scatter_(-1, begin, jump).scatter_(-1, end, jump)
    value[..., 2:].addcmul_(slope[..., 1:-1], knots.gap[:-1])
    value[..., :1] = 0 * per_pos.sum(-1, keepdim=True)
    return Pieces(value.cumsum_(-1), slope)
