"""aLRP Loss where a ranking was made by kernels: they compute its terms and gradients as well.

Imported only where kernels were chosen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankdet.losses.error_sharing import refuse_second_derivative
from rankdet.ops.rank import triton_alrp
from rankdet.ops.rank.triton_alrp import ALRPNotes
from rankdet.ops.rank.triton_ranked import RankedPositives
from rankdet.ops.rank.vectorised import compute_dtype


class ALRPByKernels(torch.autograd.Function):
    """The two terms of the loss from a ranking by kernels, with their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        loc_errors: Tensor,
        skip: Tensor,
        pos_index: Tensor,
        ranked: RankedPositives,
        settings: tuple[float, float, bool],
    ) -> tuple[Tensor, Tensor]:
        """Return both terms, 0-d.

        Args:
            ctx: of autograd.
            logits: [M] any floating dtype.
            loc_errors: [P] any floating dtype.
            skip: [S] int64, ascending, the logits that are no negatives.
            pos_index: [P] int64, ascending, the positives among them.
            ranked: the ranking of these.
            settings: delta, eps, and whether positives rank by sorting.
        """
        classification, localisation, notes = triton_alrp.terms(
            ranked, loc_errors, *settings, compute_dtype(logits)
        )
        ctx.save_for_backward(logits, loc_errors, skip, pos_index, *notes)
        ctx.set_materialize_grads(False)
        terms = (classification, localisation)
        ctx.mark_non_differentiable(
            *(term for term, wanted in zip(terms, ctx.needs_input_grad, strict=False) if not wanted)
        )
        return terms

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        """Return the gradients of logits and loc_errors."""
        logits, loc_errors, skip, pos_index, *saved = ctx.saved_tensors
        notes = ALRPNotes(*saved)
        wanted = [
            each if needed else None
            for each, needed in zip(upstream, ctx.needs_input_grad, strict=False)
        ]
        with torch.no_grad():
            grad, error_grad = triton_alrp.gradients(
                logits, loc_errors, skip, pos_index, notes, *wanted
            )
        if torch.is_grad_enabled():
            if grad is not None:
                grad = refuse_second_derivative(upstream[0], logits, grad)
            if error_grad is not None:  # an ordinary derivative, with derivatives of its own
                error_grad = (notes.rows[4] * upstream[1]).to(loc_errors.dtype)
        return grad, error_grad, None, None, None, None
