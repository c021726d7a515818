"""The operator among the positives themselves: K_ik = H(p_k - p_i), the pair (i, i) included."""

from __future__ import annotations

import torch
from torch import Tensor

from rankdet.ops.rank.knots import Knots, counts_from_bins, pieces
from rankdet.ops.rank.reference import smoothed_step
from rankdet.ops.rank.vectorised import read_off, weigh_bins

# Up to here the matrix of all pairs costs less than the bookkeeping that avoids it.
_MATRIX_UP_TO = 192


class Pairs:
    """Counts and their adjoint among positives; reuses the knots made for the negatives."""

    def __init__(self, pos: Tensor, knots: Knots, delta: float) -> None:
        """Prepare ``pos`` [P], finite, whose ramps ``knots`` describes."""
        self._pos = pos.double()
        self._knots = knots
        self._matrix: Tensor | None = None
        if pos.numel() <= _MATRIX_UP_TO:
            self._matrix = smoothed_step(self._pos[None, :] - self._pos[:, None], delta)

    def counts(self, values: Tensor) -> Tensor:
        """Return the sum over k of H(p_k - p_i) v_k for T sets of values, [T, P] float64."""
        if self._matrix is not None:
            return values @ self._matrix.T
        number, beyond = weigh_bins(self._knots.base, self._pos, values)
        return counts_from_bins(self._knots, number, beyond)

    def spread(self, values: Tensor) -> Tensor:
        """Return the adjoint, the sum over i of H(p_k - p_i) v_i for one set, [P] float64."""
        if self._matrix is not None:
            return values @ self._matrix
        base = self._knots.base
        bins = torch.bucketize(self._pos, base[1:])
        return read_off(base, pieces(self._knots, values), self._pos, bins)
