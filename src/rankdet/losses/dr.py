"""DR loss: the distribution of positive scores shall lie above that of the negative ones.

Qian, Chen, Li, Jin, "DR Loss: Improving Object Detection by Distributional Ranking", CVPR 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankdet.ops.checks import (
    require_floating,
    require_kinds,
    require_positive,
    require_same_shape,
    require_tensor,
)


def dr_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    margin: float = 0.5,
    pos_lambda: float = 1.0,
    neg_lambda: float = 0.1 / math.log(3.5),
    smoothness: float = 6.0,
    tau: float = 4.0,
) -> Tensor:
    """Rank the worst-case mean of positive probabilities above that of the negative ones.

    With p = sigmoid(logit), the two means lean towards the hard examples:

        P- = Σ_j q_j p_j over negatives, q_j ∝ exp(p_j / λ-)
        P+ = Σ_i q_i p_i over positives, q_i ∝ exp(-p_i / λ+)
        loss = (τ / L) log(1 + exp(L (P- - P+ + margin)))

    One pair of means for all entries given, so no normaliser: a call per image gives the
    paper's loss, a call on the whole batch that of its published training. Without positives
    P+ is 1 and without negatives P- is 0, their best values. The loss is never 0 where an entry
    counts.

    Args:
        logits: any shape, floating; computed in float32 at least.
        targets: the same shape, any dtype: 1 positive, 0 negative, -1 ignored.
        margin: by how much P+ shall exceed P-, as a probability.
        pos_lambda: λ+, above 0; the smaller, the more the lowest positive counts.
        neg_lambda: λ-, above 0; the smaller, the more the highest negative counts.
        smoothness: L, above 0: how sharp the logistic hinge is.
        tau: τ, above 0: scale of the loss.

    Returns:
        0-d tensor, float32 or float64. No entries, or none that counts: 0, with a gradient of 0.
        NaN where an entry that counts is NaN or infinite.

    Raises:
        TypeError: logits are not floating point; targets are no tensor.
        ValueError: shapes differ, a setting lies outside its range, or a target on the CPU is
            none of the three (on other devices and in compiled code the loss is NaN then).

    Gradient: ordinary derivative, through the weights q as well.

    References:
        Qian, Chen, Li, Jin, "DR Loss: Improving Object Detection by Distributional Ranking",
        CVPR 2020, section 3; defaults and the value without positives as in the authors' code.

    Example:
        >>> logits = torch.tensor([2.0, -1.0, 0.5])
        >>> targets = torch.tensor([1, 0, 0])
        >>> print(f"{dr_loss(logits, targets):.4f}")
        1.0937
    """
    require_floating("logits", logits)
    require_tensor("targets", targets)
    require_same_shape("logits", logits, "targets", targets)
    for name, value in (
        ("pos_lambda", pos_lambda),
        ("neg_lambda", neg_lambda),
        ("smoothness", smoothness),
        ("tau", tau),
    ):
        require_positive(name, value)

    require_kinds("targets", targets)

    dtype = torch.promote_types(logits.dtype, torch.float32)
    if logits.numel() == 0:  # there is no largest element to shift the exponents by
        return logits.to(dtype).sum()

    positive, negative = targets == 1, targets == 0
    counted = positive | negative
    # The mask comes first: a NaN under an ignored entry must not reach the gradient.
    scores = torch.where(counted, logits, 0).to(dtype)
    # A sigmoid turns an infinite logit into a plausible 0 or 1: this factor is 1, or NaN. So it
    # is for a target that the check let through because looking costs on its device.
    known = counted | (targets == -1)
    sound = (1 + (scores.detach() * 0).sum()).masked_fill(~known.all(), torch.nan)

    p = scores.sigmoid()
    above = _tilted_mean(p, negative, 1 / neg_lambda)
    below = torch.where(positive.any(), _tilted_mean(p, positive, -1 / pos_lambda), 1)
    # -logsigmoid(-x) is log(1 + exp(x)) without overflow.
    loss = -tau / smoothness * functional.logsigmoid(-smoothness * (above - below + margin))
    return torch.where(counted.any(), loss, 0) * sound


class DRLoss(nn.Module):
    """`dr_loss` with its settings stored."""

    def __init__(
        self,
        *,
        margin: float = 0.5,
        pos_lambda: float = 1.0,
        neg_lambda: float = 0.1 / math.log(3.5),
        smoothness: float = 6.0,
        tau: float = 4.0,
    ) -> None:
        super().__init__()
        self.margin, self.smoothness, self.tau = margin, smoothness, tau
        self.pos_lambda, self.neg_lambda = pos_lambda, neg_lambda

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of these logits; see `dr_loss`."""
        return dr_loss(logits, targets, **self._settings())

    def extra_repr(self) -> str:
        """Show the settings."""
        return ", ".join(f"{name}={value:g}" for name, value in self._settings().items())

    def _settings(self) -> dict[str, float]:
        names = ("margin", "pos_lambda", "neg_lambda", "smoothness", "tau")
        return {name: getattr(self, name) for name in names}


def _tilted_mean(p: Tensor, members: Tensor, slope: float) -> Tensor:
    """Mean of p over the members, weighted by exp(slope p); 0 where there is no member."""
    exponents = torch.where(members, slope * p, -torch.inf)
    # The mean does not depend on the shift, so it is a constant; -inf - -inf would be NaN.
    shift = torch.where(members.any(), exponents.detach().amax(), 0)
    weights = (exponents - shift).exp()
    return (weights * p).sum() / (weights.sum() + ~members.any())
