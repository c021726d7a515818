"""Classification whose target is how well the predicted box fits, and box losses weighted alike.

Li, Wang, Wu, Chen, Hu, Li, Tang, Yang, "Generalized Focal Loss: Learning Qualified and
Distributed Bounding Boxes for Dense Object Detection", NeurIPS 2020.
Zhang, Wang, Dayoub, Sünderhauf, "VarifocalNet: An IoU-aware Dense Object Detector", CVPR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankdet.losses.quality import quality_focal_loss, varifocal_loss
from rankdet.ops.checks import require_exponent, require_positive

if TYPE_CHECKING:
    from rankdet.criteria.matching import Matches

# A target of 0 would make a positive a negative to varifocal loss.
_LEAST_IOU = 1e-6


@dataclass(frozen=True)
class QualityFocalClassification:
    """Quality focal loss, summed over everything not ignored, per positive.

    The target of a positive at the class of its object is the IoU of its predicted box with that
    object, a constant to the gradient. The positives are those of all processes, divided by the
    number of processes; at least 1. In its paper box losses are weighted by `ScoreWeighting`.
    """

    beta: float = 2.0
    """0, or 1 and more."""

    def __post_init__(self) -> None:
        require_exponent("beta", self.beta)

    def __call__(self, logits: Tensor, matches: Matches, normaliser: float | Tensor) -> Tensor:
        """Return the loss of a batch; see `Classification`. An ordinary derivative."""
        targets = _targets(logits, matches, matches.ious())
        return quality_focal_loss(
            logits.reshape(-1), targets, normaliser=normaliser, beta=self.beta
        )


@dataclass(frozen=True)
class VarifocalClassification:
    """Varifocal loss, summed over everything not ignored, per positive.

    The target of a positive is as in `QualityFocalClassification`, but 1e-6 at least: with a
    target of 0 it would be a negative. In its paper box losses are weighted by `IoUWeighting`.
    """

    alpha: float = 0.75
    """Weight of the negatives, 0 or more."""
    gamma: float = 2.0
    """0, or 1 and more."""
    iou_weighted: bool = True
    """Whether a positive is weighted by its target."""

    def __post_init__(self) -> None:
        require_positive("alpha", self.alpha, zero_allowed=True)
        require_exponent("gamma", self.gamma)

    def __call__(self, logits: Tensor, matches: Matches, normaliser: float | Tensor) -> Tensor:
        """Return the loss of a batch; see `Classification`. An ordinary derivative."""
        targets = _targets(logits, matches, matches.ious().clamp_(min=_LEAST_IOU))
        return varifocal_loss(
            logits.reshape(-1),
            targets,
            normaliser=normaliser,
            alpha=self.alpha,
            gamma=self.gamma,
            iou_weighted=self.iou_weighted,
        )


@dataclass(frozen=True)
class ScoreWeighting:
    """Weigh a box loss by the largest class probability at its place, as with quality focal loss.

    Any class counts, not only that of the object, as in the authors' code.
    """

    def __call__(self, logits: Tensor, matches: Matches) -> Tensor:
        """Return the weight of each positive; see `Weighting`."""
        at_positives = logits.detach().flatten(0, 1).index_select(0, matches.places)
        return at_positives.amax(1).to(matches.codes.dtype).sigmoid()


@dataclass(frozen=True)
class IoUWeighting:
    """Weigh a box loss by the IoU of its predicted box, as with varifocal loss."""

    def __call__(self, _logits: Tensor, matches: Matches) -> Tensor:
        """Return the weight of each positive; see `Weighting`."""
        return matches.ious()


def _targets(logits: Tensor, matches: Matches, qualities: Tensor) -> Tensor:
    """Return [B * A * C]: the quality of each positive at its class, else 0, or -1 if ignored."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return matches.targets.to(dtype).index_copy_(0, matches.entries, qualities.to(dtype))
