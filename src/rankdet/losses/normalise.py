"""What element-wise losses share: a sum, on a CPU in parts, over an explicit normaliser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rankdet.ops.checks import require_positive

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


def normalised_sum(each: Tensor, normaliser: float | Tensor) -> Tensor:
    """Return Σ each / normaliser, in the dtype of ``each``.

    Args:
        each: any shape, floating.
        normaliser: a number above zero, or a 0-d tensor, taken as a constant and not checked.

    Returns:
        0-d tensor.

    Raises:
        TypeError: the normaliser is neither a number nor a tensor.
        ValueError: the number is not above zero, or the tensor is not 0-d.

    Gradient: ordinary derivative; none to the normaliser.

    Example:
        >>> import torch
        >>> normalised_sum(torch.ones(6), 3)
        tensor(2.)
    """
    if isinstance(normaliser, Tensor):
        if normaliser.dim() != 0:
            raise ValueError(f"normaliser must be a 0-d tensor, got {list(normaliser.shape)}")
        # Two 0-d tensors promote to the wider dtype; the loss keeps its own.
        return each.sum() / normaliser.detach().to(each.dtype)
    if isinstance(normaliser, bool) or not isinstance(normaliser, (int, float)):
        raise TypeError(f"normaliser must be a number or a tensor, got {type(normaliser).__name__}")
    require_positive("normaliser", normaliser)
    return each.sum() / normaliser
