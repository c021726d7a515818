"""The last step of every element-wise loss: a sum over an explicit normaliser."""

from __future__ import annotations

from torch import Tensor

from rankdet.ops.checks import require_positive


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
