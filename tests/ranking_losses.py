"""The ranking losses alike, for tests that hold each of them to the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pretend_gpu import on_cpu
from torch import Tensor

from rankdet.losses import alrp_loss, ap_loss, rank_sort_loss

# The terms of a loss, given logits, targets and a number for each positive.
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "aLRP": lambda x, t, e: torch.stack(alrp_loss(x, t, e)),
    "aLRP, hard": lambda x, t, e: torch.stack(alrp_loss(x, t, e, loc_ranking="hard")),
    "AP": lambda x, t, _: ap_loss(x, t)[None],
    "AP as it is": lambda x, t, _: ap_loss(x, t, interpolated=False)[None],
    "Rank & Sort": lambda x, t, e: torch.stack(rank_sort_loss(x, t, e)),
}


def outcome(loss: str, logits: Tensor, targets: Tensor, each: Tensor) -> list[Tensor]:
    """Return the terms, and the gradients of logits and numbers where there are any.

    No two terms weigh alike in the gradients. All is returned on the CPU.
    """
    leaves = [x.detach().clone().requires_grad_() for x in (logits, each)]
    terms = LOSSES[loss](leaves[0], targets, leaves[1])
    (terms[0] + 3 * terms[-1]).backward()
    return [on_cpu(terms), *(on_cpu(x.grad) for x in leaves if x.grad is not None)]
