"""The knots: the 2P scores at which the ramps of the positives begin and end.

Between two knots, the row sums of K and K^T w are linear in a score. All that either needs of
a negative is its bin (how many knots lie below it) and its distance to the knot just below.
The small arrays here have one entry per knot; the work over the negatives is elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A ramp narrower than this part of its own score cannot be resolved in float64 (which has
# 2^-52): it is treated as what it is at that resolution, a step that is worth 1/2 at a tie.
_RESOLUTION = 2.0**-50


class Knots(NamedTuple):
    """Where the ramps begin and end.

    Attributes:
        values: [2P] float64, ascending; equal values are harmless.
        base: [2P + 1] float64, the knot just below each bin; bin 0 has none (0).
        begin: [P] int64, index in ``values`` at which ramp i begins.
        end: [P] int64, index in ``values`` at which ramp i ends.
        width: [P] float64, length of ramp i; 1 for a step, which has none.
        step: [P] bool, whether i is a step: half of it happens at ``begin``, half at ``end``.
        gap: [2P] float64, distance to the next knot where some ramp runs, else 0. Leaving out
            the stretches without a ramp keeps far outliers from costing any precision.
    """

    values: Tensor
    base: Tensor
    begin: Tensor
    end: Tensor
    width: Tensor
    step: Tensor
    gap: Tensor


class Pieces(NamedTuple):
    """K^T w as a piecewise linear function: in bin c it is value + slope (s - knot just below)."""

    value: Tensor  # [2P + 1]
    slope: Tensor  # [2P + 1]


def make_knots(pos: Tensor, delta: float) -> Knots:
    """Sort the ends of the ramps of ``pos`` [P], any floating dtype."""
    pos = pos.double()
    count = pos.numel()
    infinity = torch.full_like(pos, torch.inf)
    step = pos.abs() * _RESOLUTION >= delta
    before = torch.nextafter(pos, -infinity)  # s > before  <=>  s >= pos
    low = torch.where(step, before, pos - delta)
    high = torch.where(step, pos if delta > 0 else before, pos + delta)

    values, order = torch.cat([low, high]).sort()
    place = torch.empty_like(order)
    place[order] = torch.arange(2 * count, device=pos.device)
    begin, end = place[:count], place[count:]

    running = torch.where(step, 0, 1)
    opened = torch.zeros_like(place).scatter_(0, begin, running).scatter_(0, end, -running)
    runs = opened.cumsum(0) > 0
    gap = torch.zeros_like(values)
    gap[:-1] = torch.where(runs[:-1], values.diff(), 0.0)
    width = torch.where(step, 1.0, high - low)
    return Knots(values, torch.cat([values.new_zeros(1), values]), begin, end, width, step, gap)


def counts_from_bins(knots: Knots, number: Tensor, beyond: Tensor) -> Tensor:
    """Return the row sums of K from the contents of the bins.

    Args:
        knots: the knots.
        number: [2P + 1] int64 or float64, how many scores (or which weight) each bin holds.
        beyond: [2P + 1] float64, sum of (weight times) distance to the knot just below the bin.

    Returns:
        [P] float64; exactly 0 where no score lies above the beginning of the ramp.
    """
    above = number[1:].flip(0).cumsum(0).flip(0)  # [2P], how many lie above knot k
    higher = torch.zeros_like(knots.gap)
    higher[:-1] = above[1:]
    # From the top down, the sum of (s - knot)+ along those stretches on which a ramp runs.
    steps = beyond[1:].where(knots.gap > 0, 0.0) + higher * knots.gap
    excess = steps.flip(0).cumsum(0).flip(0)

    on_ramp = (excess[knots.begin] - excess[knots.end]) / knots.width
    on_step = (above[knots.begin] + above[knots.end]) / 2
    counts = torch.where(knots.step, on_step, on_ramp)
    return counts.masked_fill_(above[knots.begin] == 0, 0.0)


def pieces(knots: Knots, per_pos: Tensor) -> Pieces:
    """Return K^T w, w = ``per_pos`` [P] float64, as a function of the score."""
    bins = knots.values.numel() + 1
    rise = torch.where(knots.step, 0.0, per_pos / knots.width)
    jump = torch.where(knots.step, per_pos / 2, 0.0)
    slope = per_pos.new_zeros(bins)
    slope[1:] = slope[1:].scatter(0, knots.begin, rise).scatter_add(0, knots.end, -rise).cumsum(0)
    slope[1:] = slope[1:].where(knots.gap > 0, 0.0)
    value = per_pos.new_zeros(bins)
    value[1:] = value[1:].scatter_add(0, knots.begin, jump).scatter_add(0, knots.end, jump)
    value[2:] += slope[1:-1] * knots.gap[:-1]
    return Pieces(value.cumsum(0), slope)
