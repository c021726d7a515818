"""Exact smoothed rank counts and their adjoint: the one operator under every ranking loss.

For positive scores p [P], negative scores s [N] and the smoothed step

    H(x) = 0 for x < -delta,  x / (2 delta) + 1/2 for |x| <= delta,  1 for x > delta,

the operator is the matrix K_ij = H(s_j - p_i), never formed. `RankOperator.counts` is K v and
`RankOperator.spread` is K^T w. See ``docs/maths/rank.md``.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from rankdet.ops.checks import (
    require_choice,
    require_floating,
    require_positive,
    require_shape,
)
from rankdet.ops.rank.passes import Backend, BinnedOperator
from rankdet.ops.rank.reference import ReferenceOperator

__all__ = ["BACKENDS", "RankOperator", "rank_operator"]

BACKENDS = ("auto", "reference", "vectorised", "triton")

# Up to this many pairs, a matrix is cheaper than the bookkeeping that avoids it.
_MATRIX_UP_TO = 1 << 15


class _Implementation(Protocol):
    def counts(self, per_neg: Tensor | None) -> Tensor: ...
    def spread(self, per_pos: Tensor, dtype: torch.dtype | None) -> Tensor: ...


class RankOperator:
    """The operator K for one set of scores. Made by `rank_operator`.

    Nothing here is differentiable: a ranking loss defines its own gradient with both methods.
    """

    def __init__(self, implementation: _Implementation, positives: int, negatives: int) -> None:
        """Wrap what a backend made of the scores."""
        self._implementation = implementation
        self._positives = positives
        self._negatives = negatives

    @torch.no_grad()
    def counts(self, per_neg: Tensor | None = None) -> Tensor:
        """Return, for each positive, how many negatives rank above it: K 1, or K v.

        Args:
            per_neg: [N] any floating dtype, v, a weight >= 0 for each negative; 1 if not given.

        Returns:
            [P] float64. Exactly 0 where no negative reaches the positive. NaN throughout where
            any score or weight is NaN or infinite.
        """
        if per_neg is not None:
            require_floating("per_neg", per_neg)
            require_shape("per_neg", per_neg, self._negatives)
        counts = self._implementation.counts(per_neg)
        if per_neg is not None:
            counts = counts.masked_fill_(~per_neg.isfinite().all(), torch.nan)
        return counts

    @torch.no_grad()
    def spread(self, per_pos: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return, for each negative, its share of what the positives hand out: K^T w.

        Args:
            per_pos: [P] any floating dtype, w, what each positive hands out (times H).
            dtype: of the result; by default that of the scores, float32 at least.

        Returns:
            [N]. Exactly 0 for a negative that reaches no positive, and for one that is skipped.
            NaN for a negative that is NaN or infinite; NaN throughout where a positive or a
            weight is.
        """
        require_floating("per_pos", per_pos)
        require_shape("per_pos", per_pos, self._positives)
        # One weight that is not finite makes every weight, and so every share, NaN.
        per_pos = per_pos.double() + 0 * per_pos.sum(dtype=torch.float64)
        return self._implementation.spread(per_pos, dtype)


def rank_operator(
    pos: Tensor,
    neg: Tensor,
    delta: float,
    backend: str = "auto",
    *,
    skip: Tensor | None = None,
) -> RankOperator:
    """Prepare K_ij = H(neg_j - pos_i) for these scores.

    With ``delta = 0`` the step is hard and counts ties: H(x) = 1 for x >= 0. No pair is treated
    as "the same example": with ``pos`` passed as ``neg`` too, the pair (i, i) counts H(0).

    Args:
        pos: [P] scores of the positives, any floating dtype.
        neg: [N] scores of the negatives, any floating dtype, on the same device.
        delta: half-width of the ramp, in units of the scores, >= 0.
        backend: "reference" (the P x N matrix in float64: the definition), "vectorised"
            (plain torch, O((N + P) log P) time, O(P) memory beside the result; on a CPU four
            bytes for each of many negatives), "triton" (the same as kernels for a GPU, two reads
            of the scores), or "auto": by size and device.
        skip: [S] int64, ascending indices into ``neg`` of entries that take no part, whatever
            their score: a way to leave out some entries of a large tensor without a copy.

    Returns:
        An object with ``counts()`` and ``spread(per_pos)``. Scores are read in float32 at least;
        half-precision scores are widened chunk by chunk.

    Raises:
        TypeError: for scores that are not floating point tensors.
        ValueError: for other shapes, a negative or infinite ``delta`` or NaN, tensors on different
            devices, an unknown ``backend``, "triton" without a CUDA device.
        ImportError: for "triton" where there is no Triton.

    References:
        The smoothed step and the sums over it: K. Chen et al., "Towards Accurate One-Stage
        Object Detection with AP-Loss", CVPR 2019; K. Oksuz et al., "A Ranking-based,
        Balanced Loss Function Unifying Classification and Localisation in Object Detection",
        NeurIPS 2020.

    >>> operator = rank_operator(torch.tensor([0.0]), torch.tensor([-2.0, -0.5, 3.0]), delta=1.0)
    >>> operator.counts()
    tensor([1.2500], dtype=torch.float64)
    >>> operator.spread(torch.tensor([1.0]), dtype=torch.float32)
    tensor([0.0000, 0.2500, 1.0000])
    """
    require_floating("pos", pos)
    require_floating("neg", neg)
    require_shape("pos", pos, "P")
    require_shape("neg", neg, "N")
    require_positive("delta", delta, zero_allowed=True)
    require_choice("backend", backend, BACKENDS)
    if pos.device != neg.device:
        raise ValueError(f"pos and neg must be on one device, got {pos.device} and {neg.device}")
    pos, neg = pos.detach(), neg.detach()
    if backend == "auto" and pos.numel() * neg.numel() <= _MATRIX_UP_TO:
        backend = "reference"
    implementation: _Implementation
    with torch.no_grad():
        if backend == "reference":
            implementation = ReferenceOperator(pos, neg, float(delta), skip)
        else:
            implementation = BinnedOperator(pos, neg, float(delta), skip, cast(Backend, backend))
    return RankOperator(implementation, pos.numel(), neg.numel())
