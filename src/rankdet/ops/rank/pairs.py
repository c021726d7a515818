"""The operator among the positives themselves: K_ik = H(p_k - p_i), the pair (i, i) included."""

from __future__ import annotations

from typing import Protocol

from rankdet.ops.rank.arrays import Array, double, library_of, of_kind, quiet, to_tensor
from rankdet.ops.rank.knots import Knots, counts_from_bins, pieces
from rankdet.ops.rank.ordered import ordered_counts, ordered_spread
from rankdet.ops.rank.reference import smoothed_step
from rankdet.ops.rank.vectorised import read_off, weigh_bins

# Up to here the matrix of all pairs costs less than the bookkeeping that avoids it.
_MATRIX_UP_TO = 320


class PairSums(Protocol):
    """A sum over pairs of positives, or its adjoint; see `Pairs`."""

    def __call__(self, values: Array, keys: Array | None = None) -> Array:
        """Return the sums, of pairs whose keys are in order if there are keys."""
        ...


class Pairs:
    """Counts and their adjoint among positives; reuses the knots made for the negatives."""

    def __init__(self, pos: Array, knots: Knots, delta: float) -> None:
        """Prepare ``pos`` [P], finite, whose ramps ``knots`` describes."""
        self._pos = double(pos)
        self._knots = knots
        self._delta = delta
        self._matrix: Array | None = None
        if len(pos) <= _MATRIX_UP_TO:
            scores = to_tensor(self._pos)
            matrix = smoothed_step(scores[None, :] - scores[:, None], delta)
            self._matrix = of_kind(matrix, self._pos)

    @quiet
    def counts(self, values: Array, keys: Array | None = None) -> Array:
        """Return the sum over k of H(p_k - p_i) v_k for T sets of values, [T, P] float64.

        With keys [P], over those k whose key is below that of i.
        """
        if keys is not None:
            return ordered_counts(self._pos, keys, values, self._delta)
        if self._matrix is not None:
            return values @ self._matrix.T
        number, beyond = weigh_bins(self._knots.base, self._pos, values)
        return counts_from_bins(self._knots, number, beyond)

    @quiet
    def spread(self, values: Array, keys: Array | None = None) -> Array:
        """Return the adjoint, the sum over i of H(p_k - p_i) v_i for one set, [P] float64.

        With keys [P], over those i whose key is above that of k.
        """
        if keys is not None:
            return ordered_spread(self._pos, keys, values[None], self._delta)[0]
        if self._matrix is not None:
            return values @ self._matrix
        base = self._knots.base
        bins = library_of(base).searchsorted(base[1:], self._pos)
        return read_off(base, pieces(self._knots, values), self._pos, bins)
