"""The published algorithm of aLRP Loss: a loop over positives, each looking at all negatives.

Written here from the paper and measured as the rival that the authors' code is: O(P N), the
gradient collected on the way, in the dtype of the logits. Tested against golden vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def alrp_loop(
    logits: Tensor,
    targets: Tensor,
    loc_errors: Tensor,
    *,
    delta: float = 1.0,
    eps: float = 1e-5,
    at_most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the classification part of aLRP Loss and its gradient for the logits.

    Args:
        logits: [M].
        targets: [M] 1 positive, 0 negative, -1 ignored.
        loc_errors: [P].
        delta: half-width of the smoothed step.
        eps: positives with a smaller false positive count share no error.
        at_most: stop after so many positives, to measure their cost; the result is partial then.
    """
    pos = logits[targets == 1]
    # Only negatives that reach the lowest positive can ever matter.
    relevant = (targets == 0) & (logits >= pos.min() - delta)
    neg = logits[relevant]
    pos_grad, neg_grad = torch.zeros_like(pos), torch.zeros_like(neg)
    value = logits.new_zeros(())
    for i in range(len(pos) if at_most is None else min(at_most, len(pos))):
        among = ((pos - pos[i]) / (2 * delta) + 0.5).clamp_(0, 1)
        among[i] = 0
        above = ((neg - pos[i]) / (2 * delta) + 0.5).clamp_(0, 1)
        false_positives = above.sum()
        rank = 1 + among.sum() + false_positives
        value += false_positives / rank
        if false_positives > eps:
            error = (false_positives + (among * loc_errors).sum()) / rank
            pos_grad[i] -= error
            neg_grad += above * (error / false_positives)
    grad = torch.zeros_like(logits)
    grad[targets == 1] = pos_grad / len(pos)
    grad[relevant] = neg_grad / len(pos)
    return value / len(pos), grad
