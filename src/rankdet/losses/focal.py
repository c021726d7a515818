"""Focal loss: cross-entropy in which well-classified examples count little.

Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from rankdet.losses.in_parts import sum_in_parts
from rankdet.losses.normalise import normalised_sum
from rankdet.ops.checks import (
    require_exponent,
    require_floating,
    require_fraction,
    require_kinds,
    require_same_shape,
    require_tensor,
)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    normaliser: float | Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Sigmoid focal loss, summed over all entries that are not ignored, over a normaliser.

    With p = sigmoid(logit), p_t = p for a positive and 1 - p for a negative entry, and α_t
    likewise α and 1 - α:

        loss = Σ -α_t (1 - p_t)^γ log(p_t) / normaliser

    Args:
        logits: any shape, floating; computed in float32 at least.
        targets: the same shape, any dtype: 1 positive, 0 negative, -1 ignored.
        normaliser: what the sum is divided by. Required, since papers differ: the number of
            positives (at least 1) in RetinaNet, positives plus images in FoveaBox. A number
            above zero, or a 0-d tensor on the device of the logits; a tensor is taken as a
            constant and not checked, because that would wait for the device.
        alpha: weight of the positives, in [0, 1].
        gamma: 0, or 1 and more. Between 0 and 1 the gradient of (1 - p_t)^γ is infinite where
            p_t rounds to 1, which float32 reaches at a logit of 17.

    Returns:
        0-d tensor, float32 or float64. No entries: 0, with a gradient of 0.

    Raises:
        TypeError: logits are not floating point; targets are no tensor.
        ValueError: shapes differ, a setting lies outside its range, or a target on the CPU is
            none of the three (on other devices and in compiled code the loss is NaN then).

    Gradient: ordinary derivative.

    References:
        Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017,
        equation 5.

    Example:
        >>> logits = torch.zeros(2, 3)
        >>> targets = torch.tensor([[1, 0, 0], [0, 0, -1]])
        >>> print(f"{focal_loss(logits, targets, normaliser=1.0):.4f}")
        0.5632
    """
    require_floating("logits", logits)
    require_tensor("targets", targets)
    require_same_shape("logits", logits, "targets", targets)
    require_fraction("alpha", alpha)
    require_exponent("gamma", gamma)

    require_kinds("targets", targets)

    def each(logits: Tensor, targets: Tensor) -> Tensor:
        counted = (targets == 0) | (targets == 1)
        # The mask comes before the loss too: a NaN that is ignored must not reach the gradient.
        scores = torch.where(counted, logits, 0).to(compute_dtype)
        positive = targets.to(compute_dtype).clamp(min=0)
        values = sigmoid_focal_loss(scores, positive, alpha=alpha, gamma=gamma, reduction="none")
        # What is neither counted nor ignored was let through by the check only where looking costs.
        left_out = torch.where(targets == -1, 0, torch.nan)
        return torch.where(counted, values, left_out)

    compute_dtype = torch.promote_types(logits.dtype, torch.float32)
    return normalised_sum(sum_in_parts(each, logits, targets), normaliser)


class FocalLoss(nn.Module):
    """`focal_loss` with its settings stored."""

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, logits: Tensor, targets: Tensor, *, normaliser: float | Tensor) -> Tensor:
        """Return the loss of these logits; see `focal_loss`."""
        return focal_loss(
            logits, targets, normaliser=normaliser, alpha=self.alpha, gamma=self.gamma
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"alpha={self.alpha}, gamma={self.gamma}"
