"""The sum of an element-wise loss, on a CPU part by part: memory is used again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Entries of a part. Such a loss makes a dozen tensors of the size of its logits, and keeps half of
# them for the gradient. On a CPU memory that is new to the process costs more than what is computed
# in it; small parts use the same again.
_PART = 1 << 18


def sum_in_parts(each: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return the sum of an element-wise function over all entries, 0-d.

    On a CPU it is computed part by part, the gradient of a part at once with its values, so that
    only the gradient is kept.

    Args:
        each: from tensors [n] to one, in a dtype that does not depend on n.
        inputs: all of one shape, any, the first of them floating.

    Gradient: ordinary derivative, for the first input alone.

    Example:
        >>> sum_in_parts(torch.mul, torch.ones(2, 3), torch.full((2, 3), 2.0))
        tensor(12.)
    """
    first, *others = (tensor.reshape(-1) for tensor in inputs)
    # A compiled loss makes none of these tensors; and it would be compiled once for each part.
    if first.numel() <= _PART or not first.is_cpu or torch.compiler.is_compiling():
        return each(first, *others).sum()
    total: Tensor = _SumInParts.apply(each, first, *others)
    return total


class _SumInParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, each: Callable[..., Tensor], first: Tensor, *others: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[1]
        slope = torch.empty_like(first) if wanted else first.new_empty(0)
        totals = []
        for begin in range(0, first.numel(), _PART):
            part = slice(begin, begin + _PART)
            with torch.set_grad_enabled(wanted):
                leaf = first[part].detach().requires_grad_(wanted)
                total = each(leaf, *(other[part] for other in others)).sum()
            if wanted:
                (slope[part],) = torch.autograd.grad(total, leaf)
            totals.append(total.detach())
        ctx.save_for_backward(slope, first, *others)
        ctx.each = each
        return torch.stack(totals).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        slope, first, *others = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to have one of its own
            total = ctx.each(first, *others).sum()
            (slope,) = torch.autograd.grad(total, first, create_graph=True)
        return (None, slope * upstream[0].to(slope.dtype), *[None] * len(others))
