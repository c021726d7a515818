"""What element-wise losses share: a sum, on a CPU in parts, over an explicit normaliser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rankdet.ops.checks import require_positive

# Entries of a part. Such a loss makes a dozen tensors of the size of its logits. On a CPU memory
# that is new to the process costs more than what is computed in it; small parts use the same again.
_PART = 1 << 18


def sum_in_parts(each: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return the sum of an element-wise function over all entries, 0-d.

    On a CPU it is computed part by part.

    Args:
        each: from tensors [n] to one.
        inputs: all of one shape, any.

    Gradient: ordinary derivative.

    Example:
        >>> sum_in_parts(torch.mul, torch.ones(2, 3), torch.full((2, 3), 2.0))
        tensor(12.)
    """
    flat = [tensor.reshape(-1) for tensor in inputs]
    # A compiled loss makes none of these tensors; and it would be compiled once for each part.
    whole = flat[0].numel() <= _PART or not flat[0].is_cpu or torch.compiler.is_compiling()
    if whole:
        return each(*flat).sum()
    parts = zip(*(tensor.split(_PART) for tensor in flat), strict=True)
    return torch.stack([each(*part).sum() for part in parts]).sum()


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
