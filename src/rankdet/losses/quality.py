"""Classification losses whose target is a quality: how well the box fits its object.

Li, Wang, Wu, Chen, Hu, Li, Tang, Yang, "Generalized Focal Loss: Learning Qualified and
Distributed Bounding Boxes for Dense Object Detection", NeurIPS 2020.
Zhang, Wang, Dayoub, Sünderhauf, "VarifocalNet: An IoU-aware Dense Object Detector", CVPR 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankdet.losses.in_parts import sum_in_parts
from rankdet.losses.normalise import normalised_sum
from rankdet.ops.checks import (
    require_exponent,
    require_floating,
    require_positive,
    require_same_shape,
)


def quality_focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    normaliser: float | Tensor,
    beta: float = 2.0,
) -> Tensor:
    """Cross-entropy with a soft target, weighted by the distance from it, over a normaliser.

    With σ = sigmoid(logit) and y the target:

        loss = Σ -|y - σ|^β ((1 - y) log(1 - σ) + y log(σ)) / normaliser

    It is smallest, and 0, at σ = y.

    Args:
        logits: [..., C] or any shape, floating; computed in float32 at least.
        targets: the same shape, floating, taken as constant: the quality (IoU with the object,
            in (0, 1]) in the column of a positive's class, 0 elsewhere; below 0 is ignored.
        normaliser: what the sum is divided by; required (the paper: number of positives, at
            least 1). A number above zero, or a 0-d tensor, taken as a constant and not checked.
        beta: 0, or 1 and more (below 1 the gradient is infinite at σ = y).

    Returns:
        0-d tensor, float32 or float64. No entries: 0, with a gradient of 0.

    Raises:
        TypeError: logits or targets are not floating point.
        ValueError: shapes differ, or a setting lies outside its range.

    Gradient: ordinary derivative, the weight |y - σ|^β included; none to the targets.

    References:
        Li, Wang, Wu, Chen, Hu, Li, Tang, Yang, "Generalized Focal Loss: Learning Qualified and
        Distributed Bounding Boxes for Dense Object Detection", NeurIPS 2020, equation 2.

    Example:
        >>> logits = torch.zeros(1, 2)
        >>> targets = torch.tensor([[0.5, 0.0]])
        >>> print(f"{quality_focal_loss(logits, targets, normaliser=1.0):.4f}")
        0.1733
    """
    _check(logits, targets)
    require_exponent("beta", beta)

    def each(logits: Tensor, targets: Tensor) -> Tensor:
        scores, quality, counted = _counted_entries(logits, targets)
        entropy = functional.binary_cross_entropy_with_logits(scores, quality, reduction="none")
        weight = (quality - scores.sigmoid()).abs().pow(beta)
        return torch.where(counted, weight * entropy, 0)

    return normalised_sum(sum_in_parts(each, logits, targets), normaliser)


def varifocal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    normaliser: float | Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
) -> Tensor:
    """Cross-entropy weighted by quality for positives, focal for negatives, over a normaliser.

    With p = sigmoid(logit) and q the target:

        q > 0:  -q (q log(p) + (1 - q) log(1 - p))
        q = 0:  -α p^γ log(1 - p)

    and the loss is the sum of these over the normaliser. Only negatives are scaled down; a
    positive counts the more, the better its box, unless ``iou_weighted`` is off: then the first
    q of its line is 1.

    Args:
        logits: [..., C] or any shape, floating; computed in float32 at least.
        targets: the same shape, floating, taken as constant: the quality (IoU with the object,
            in (0, 1]) in the column of a positive's class, 0 elsewhere; below 0 is ignored.
        normaliser: what the sum is divided by; required (the paper: number of positives, at
            least 1). A number above zero, or a 0-d tensor, taken as a constant and not checked.
        alpha: weight of the negatives, 0 or more.
        gamma: 0, or 1 and more (below 1 the gradient is infinite where p rounds to 0).
        iou_weighted: whether a positive is weighted by its target.

    Returns:
        0-d tensor, float32 or float64. No entries: 0, with a gradient of 0.

    Raises:
        TypeError: logits or targets are not floating point.
        ValueError: shapes differ, or a setting lies outside its range.

    Gradient: ordinary derivative, the weight p^γ included; none to the targets.

    References:
        Zhang, Wang, Dayoub, Sünderhauf, "VarifocalNet: An IoU-aware Dense Object Detector",
        CVPR 2021, equation 2.

    Example:
        >>> logits = torch.zeros(1, 2)
        >>> targets = torch.tensor([[0.5, 0.0]])
        >>> print(f"{varifocal_loss(logits, targets, normaliser=1.0):.4f}")
        0.4765
    """
    _check(logits, targets)
    require_positive("alpha", alpha, zero_allowed=True)
    require_exponent("gamma", gamma)

    def each(logits: Tensor, targets: Tensor) -> Tensor:
        scores, quality, counted = _counted_entries(logits, targets)
        entropy = functional.binary_cross_entropy_with_logits(scores, quality, reduction="none")
        of_positives = quality if iou_weighted else 1
        weight = torch.where(quality > 0, of_positives, alpha * scores.sigmoid().pow(gamma))
        return torch.where(counted, weight * entropy, 0)

    return normalised_sum(sum_in_parts(each, logits, targets), normaliser)


class QualityFocalLoss(nn.Module):
    """`quality_focal_loss` with its settings stored."""

    def __init__(self, *, beta: float = 2.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, logits: Tensor, targets: Tensor, *, normaliser: float | Tensor) -> Tensor:
        """Return the loss of these logits; see `quality_focal_loss`."""
        return quality_focal_loss(logits, targets, normaliser=normaliser, beta=self.beta)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"beta={self.beta}"


class VarifocalLoss(nn.Module):
    """`varifocal_loss` with its settings stored."""

    def __init__(
        self, *, alpha: float = 0.75, gamma: float = 2.0, iou_weighted: bool = True
    ) -> None:
        super().__init__()
        self.alpha, self.gamma, self.iou_weighted = alpha, gamma, iou_weighted

    def forward(self, logits: Tensor, targets: Tensor, *, normaliser: float | Tensor) -> Tensor:
        """Return the loss of these logits; see `varifocal_loss`."""
        return varifocal_loss(
            logits,
            targets,
            normaliser=normaliser,
            alpha=self.alpha,
            gamma=self.gamma,
            iou_weighted=self.iou_weighted,
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"alpha={self.alpha}, gamma={self.gamma}, iou_weighted={self.iou_weighted}"


def _check(logits: Tensor, targets: Tensor) -> None:
    require_floating("logits", logits)
    require_floating("targets", targets)
    require_same_shape("logits", logits, "targets", targets)


def _counted_entries(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and qualities, both 0 where ignored, and the mask of those that count."""
    # Not `targets >= 0`: a NaN quality must reach the loss, not pass for an ignored entry.
    counted = ~(targets < 0)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # The mask comes before the loss too: a NaN under an ignored entry must not reach the gradient.
    scores = torch.where(counted, logits, 0).to(dtype)
    return scores, targets.detach().to(dtype).clamp(min=0), counted
