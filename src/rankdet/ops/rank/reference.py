"""The definition: the P x N matrix of smoothed steps, in float64. Slow, short, trusted."""

from __future__ import annotations

import torch
from torch import Tensor


def smoothed_step(difference: Tensor, delta: float) -> Tensor:
    """Return H(x): 0 below -delta, 1 above delta, x / (2 delta) + 1/2 between.

    With ``delta = 0`` it is the step with H(0) = 1.
    """
    if delta == 0:
        return (difference >= 0).to(difference.dtype)
    return (difference / (2 * delta) + 0.5).clamp(0, 1)


class ReferenceOperator:
    """K_ij = H(neg_j - pos_i), held as a matrix. See `rankdet.ops.rank.rank_operator`."""

    def __init__(self, pos: Tensor, neg: Tensor, delta: float, skip: Tensor | None) -> None:
        """Build the matrix. Skipped columns are zero; one that is not finite is NaN."""
        self._dtype = torch.promote_types(neg.dtype, torch.float32)
        pos, neg = pos.double(), neg.double()
        self._bad = ~neg.isfinite()
        if skip is not None:
            self._bad = self._bad.index_fill(0, skip, False)
        matrix = smoothed_step(neg[None, :] - pos[:, None], delta)  # [P, N]
        matrix = matrix.masked_fill(~neg.isfinite(), torch.nan)
        if skip is not None:
            matrix = matrix.index_fill(1, skip, 0.0)
        self._matrix = matrix.masked_fill(~pos.isfinite().all(), torch.nan)

    def counts(self, per_neg: Tensor | None) -> Tensor:
        """Return K v, [P] float64."""
        return self._matrix.sum(1) if per_neg is None else self._matrix @ per_neg.double()

    def spread(self, per_pos: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return K^T w, [N] in ``dtype``, by default that of the scores, float32 at least."""
        # Without positives there is no row that would say which negatives are NaN.
        shares = (per_pos @ self._matrix).masked_fill_(self._bad, torch.nan)
        return shares.to(dtype or self._dtype)
