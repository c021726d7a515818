"""PAA: positives that the detector itself suggests, and a branch that predicts the IoU.

Kim, Lee, "Probabilistic Anchor Assignment with IoU Prediction for Object Detection", ECCV 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankdet.criteria.dense import FocalClassification, IoUBox, branch_loss
from rankdet.criteria.matching import match, normaliser_of, require_branches
from rankdet.losses.boxes import giou_loss
from rankdet.ops.checks import require_exponent, require_fraction, require_positive
from rankdet.structures import LossTerms

if TYPE_CHECKING:
    from rankdet.criteria.dense import Box, Classification
    from rankdet.criteria.matching import PredictiveAssigner
    from rankdet.structures import Assigner, Predictions, Targets


@dataclass(frozen=True)
class FocalGIoUCost:
    """The cost of a prior to `rankdet.assign.PAAAssigner`: focal loss of all its classes + GIoU.

        cost = Σ_classes focal + box_weight * (1 - GIoU)

    The paper's score of an anchor is the exponential of minus this.
    """

    alpha: float = 0.25
    """Of focal loss: weight of the object's class, in [0, 1]."""
    gamma: float = 2.0
    """Of focal loss: 0, or 1 and more."""
    box_weight: float = 1.0
    """0 or more; 1 in the authors' code, 1.3 in mmdetection."""
    eps: float = 1e-7
    """Of GIoU, in px²."""

    def __post_init__(self) -> None:
        require_fraction("alpha", self.alpha)
        require_exponent("gamma", self.gamma)
        require_positive("box_weight", self.box_weight, zero_allowed=True)
        require_positive("eps", self.eps)

    def __call__(self, logits: Tensor, labels: Tensor, predicted: Tensor, boxes: Tensor) -> Tensor:
        """Return the costs of P priors, [P] in the dtype of the predicted boxes; no gradient."""
        scores = logits.detach().to(predicted.dtype)
        own = scores.gather(1, labels[:, None])
        each = (1 - self.alpha) * scores.sigmoid().pow(self.gamma) * functional.softplus(scores)
        found = self.alpha * (-own).sigmoid().pow(self.gamma) * functional.softplus(-own)
        focal = each.scatter(1, labels[:, None], found).sum(1)
        # A sigmoid makes a plausible number of infinity: this adds 0, or NaN.
        focal += (scores - scores).sum(1)
        giou = giou_loss(predicted.detach(), boxes.to(predicted.dtype), eps=self.eps)
        return focal + self.box_weight * giou


class PAACriterion(nn.Module):
    """Classification, boxes weighted by IoU, and a branch that learns the IoU.

        total = classification + box_weight * localisation + branch_weight * iou

    With u the IoU of each positive's predicted box and its object, a constant to the gradient:
    localisation is the sum of u times the box loss over the sum of u; iou is the cross-entropy
    of the branch with u, averaged over the positives. Number of positives and sum of u are means
    over all processes, at least 1. (The authors divide by the sum of u even where it is below 1.)

    Detections are to be ranked by the root of class probability times predicted IoU.

    Args:
        assigner: decides who is positive: `rankdet.assign.PAAAssigner` in the paper.
        classification: by default `FocalClassification`.
        box: by default ``IoUBox("giou")``.
        box_weight: zero or more.
        branch_weight: zero or more.

    Raises:
        ValueError: a weight is below zero.

    Gradient: that of the parts.

    References:
        Kim, Lee, ECCV 2020 (see the top of this file), section 3.3 and the authors' code.
    """

    needs: frozenset[str] = frozenset({"iou"})

    def __init__(
        self,
        assigner: Assigner | PredictiveAssigner,
        classification: Classification | None = None,
        box: Box | None = None,
        *,
        box_weight: float = 1.3,
        branch_weight: float = 0.5,
    ) -> None:
        super().__init__()
        require_positive("box_weight", box_weight, zero_allowed=True)
        require_positive("branch_weight", branch_weight, zero_allowed=True)
        self.assigner = assigner
        self.classification: Classification = classification or FocalClassification()
        self.box: Box = box or IoUBox()
        self.box_weight, self.branch_weight = box_weight, branch_weight

    def forward(self, predictions: Predictions, targets: Targets) -> LossTerms:
        """Return the loss of a batch.

        Args:
            predictions: of B images; with the branch "iou".
            targets: of the same images.

        Returns:
            The loss, and its parts "classification", "localisation" and "iou" (before their
            weights), and "positives". If no process has positives, localisation and iou are 0
            with gradients of 0.

        Raises:
            TypeError: logits or codes are not floating point.
            ValueError: shapes do not fit, or the predictions have other branches.
        """
        require_branches(self.needs, predictions.branches)
        matches = match(self.assigner, predictions, targets)
        logits = predictions.logits
        normaliser = normaliser_of(matches.count, device=logits.device)
        classification = self.classification(logits, matches, normaliser)
        ious = matches.ious()
        of_ious = normaliser_of(ious.sum(), device=logits.device)
        localisation = (self.box(matches) * ious).sum() / of_ious
        branch = branch_loss(predictions.branches["iou"], ious, matches, normaliser)
        total = torch.add(classification, localisation, alpha=self.box_weight)
        total = torch.add(total, branch, alpha=self.branch_weight)
        parts = {
            "classification": classification.detach(),
            "localisation": localisation.detach(),
            "iou": branch.detach(),
            "positives": matches.counted(),
        }
        return LossTerms(total, parts)

    def end_period(self) -> None:
        """Do nothing: the weights are constants."""

    def extra_repr(self) -> str:
        """Show the parts."""
        return (
            f"assigner={self.assigner}, classification={self.classification}, box={self.box}, "
            f"box_weight={self.box_weight:g}, branch_weight={self.branch_weight:g}"
        )
