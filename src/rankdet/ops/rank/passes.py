"""The two passes over the scores, and the one choice of how to make them.

Plain torch runs everywhere and is what the kernels are checked against. The Triton kernels are
taken on a GPU, and where they are asked for.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from rankdet.ops.rank import vectorised
from rankdet.ops.rank.arrays import Array, to_array, to_tensor
from rankdet.ops.rank.knots import Pieces, counts_from_bins, make_knots, pieces
from rankdet.ops.rank.vectorised import Bins, Notes, compute_dtype, weigh_bins

Backend = Literal["auto", "vectorised", "triton"]

# From this many scores on the kernels are taken by themselves, on a CUDA device on which they work.
_TRITON_FROM = 1 << 13


def fill_bins(base: Tensor, scores: Tensor, skip: Tensor, *, backend: Backend = "auto") -> Bins:
    """Make the first pass: sort the scores into the bins between the knots.

    Args:
        base: [2P + 1] float64, the knot just below each bin; the first entry is no knot.
        scores: [N] any floating dtype.
        skip: [S] int64, ascending, the scores to leave out.
        backend: "vectorised" (plain torch), "triton", or "auto": by device and size.

    Returns:
        What a count needs. Of what none needs, the numbers in the first bin and the sums of
        distances in the first and the last, each backend makes its own.

    Raises:
        ImportError: for "triton" where there is no Triton.
        ValueError: for "triton" and scores that are not on a CUDA device.
    """
    if _by_triton(scores, backend):
        bins: Bins = _kernels().fill_bins(base, scores, skip)
        return bins
    return vectorised.fill_bins(base, scores, skip)


def evaluate(
    base: Tensor,
    function: Pieces,
    scores: Tensor,
    skip: Tensor,
    notes: Notes,
    dtype: torch.dtype,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Make the second pass: a piecewise linear function at each score.

    Args:
        base: [2P + 1] float64, the knot just below each bin; the first entry is no knot.
        function: of 2P + 1 bins.
        scores: [N] any floating dtype.
        skip: [S] int64, ascending, the scores to leave out.
        notes: from the first pass over the same scores by the same backend.
        dtype: of the result.
        backend: as in `fill_bins`.

    Returns:
        [N] in ``dtype``. 0 where left out; NaN where a score is NaN or infinite.
    """
    if _by_triton(scores, backend):
        result: Tensor = _kernels().evaluate(base, function, scores, skip, notes, dtype)
        return result
    return vectorised.evaluate(base, function, scores, skip, notes, dtype)


class Found(NamedTuple):
    """Who is no negative.

    Attributes:
        skip: [S] int64, ascending, all that are not.
        pos_index: [P] int64, ascending, the positives among them.
        pos: [P] float32 or float64, their scores.
    """

    skip: Tensor
    pos_index: Tensor
    pos: Tensor


def find_by_triton(targets: Tensor, scores: Tensor, *, backend: Backend = "auto") -> Found | None:
    """Find the positives by kernels, where this is chosen and every target is 1, 0 or -1.

    Args:
        targets: [N] 1 positive, 0 negative, -1 ignored, any real dtype.
        scores: [N] any floating dtype.
        backend: as in `fill_bins`.
    """
    if not _by_triton(scores, backend):
        return None
    from rankdet.ops.rank.triton_find import find

    found: Found | None = find(targets, scores)
    return found


class ByTriton(Protocol):
    """A ranking made by kernels; see `rankdet.ops.rank.triton_ranked.RankedPositives`."""

    counts: Tensor
    base: Tensor
    finite: Tensor

    @property
    def notes(self) -> Notes:
        """What the first pass noted for the second."""
        ...

    def pair_counts(self, values: Array, keys: Array | None = None) -> Array:
        """Return the sum over k of H(p_k - p_i) v_k for T sets of values, [T, P] float64.

        With keys [P], over those k whose key is below that of i.
        """
        ...

    def pair_spread(self, values: Array, keys: Array | None = None) -> Array:
        """Return the adjoint for one set, [P] float64; with keys, over those above."""
        ...

    def pieces(self, weights: Array) -> Pieces:
        """Return K^T w for T sets of weights as a function of the score."""
        ...


def rank_by_triton(
    pos: Tensor, scores: Tensor, skip: Tensor, delta: float, *, backend: Backend = "auto"
) -> ByTriton | None:
    """Rank by kernels from end to end, where this is chosen and there are positives.

    Args:
        pos: [P] float32 or float64.
        scores: [N] any floating dtype.
        skip: [S] int64, ascending, the scores to leave out.
        delta: half-width of the ramp.
        backend: as in `fill_bins`.
    """
    if pos.numel() == 0 or not _by_triton(scores, backend):
        return None
    from rankdet.ops.rank.triton_ranked import MOST_POSITIVES, RankedPositives

    if pos.numel() > MOST_POSITIVES:
        return None
    ranked: ByTriton = RankedPositives(pos, scores, skip, delta)
    return ranked


class BinnedOperator:
    """K_ij = H(neg_j - pos_i), never formed. See `rankdet.ops.rank.rank_operator`."""

    def __init__(
        self, pos: Tensor, neg: Tensor, delta: float, skip: Tensor | None, backend: Backend
    ) -> None:
        """Make the first pass over the scores."""
        self._neg = neg
        self._skip = neg.new_zeros(0, dtype=torch.int64) if skip is None else skip
        self._backend = backend
        self._knots = make_knots(to_array(pos.double()), delta)
        self._base = to_tensor(self._knots.base)
        self._bins = fill_bins(self._base, neg, self._skip, backend=backend)
        self._pos_finite = pos.isfinite().all()

    def counts(self, per_neg: Tensor | None) -> Tensor:
        """Return K v, [P] float64."""
        number, beyond = to_array(self._bins.number), to_array(self._bins.beyond)
        if per_neg is not None:
            weights = to_array(per_neg.double().index_fill(0, self._skip, 0.0))
            scores = to_array(self._neg.double().index_fill(0, self._skip, 0.0))
            of_sets = weigh_bins(self._knots.base, scores, weights[None])
            number, beyond = (of_set[0] for of_set in of_sets)
        counts = to_tensor(counts_from_bins(self._knots, number, beyond))
        return counts.masked_fill_(~(self._pos_finite & self._bins.finite), torch.nan)

    def spread(self, per_pos: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return K^T w, [N] in ``dtype``."""
        per_pos = per_pos.masked_fill(~self._pos_finite, torch.nan)
        function = pieces(self._knots, to_array(per_pos))
        return evaluate(
            self._base,
            Pieces(to_tensor(function.value), to_tensor(function.slope)),
            self._neg,
            self._skip,
            self._bins.notes,
            dtype or compute_dtype(self._neg),
            backend=self._backend,
        )


def _by_triton(scores: Tensor, backend: Backend) -> bool:
    if backend != "auto":
        return backend == "triton"
    return scores.is_cuda and scores.numel() >= _TRITON_FROM and _triton_works(scores.device)


@functools.cache
def _triton_works(device: torch.device) -> bool:
    """Tell whether a kernel can be built and launched here; only a trial knows.

    Triton may be missing, or the C compiler and the headers it builds its launcher with, or the
    GPU may be too old for it.
    """
    if torch.version.hip is not None:  # never tried there
        return False
    try:
        _kernels().try_out(device)
    except Exception as error:
        warnings.warn(
            f"ranking losses run without their Triton kernels on {device}, more slowly: "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


def _kernels() -> ModuleType:
    """Import the kernels; only here, so that nobody else waits for Triton."""
    try:
        from rankdet.ops.rank import triton
    except ImportError as error:
        raise ImportError(
            f"backend 'triton' needs the package triton ({error}): install it, or choose 'auto' "
            "or 'vectorised'"
        ) from error
    return triton
