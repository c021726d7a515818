"""Rank & Sort Loss as a criterion: its box loss is weighted by score and balanced by value.

K. Oksuz, B. C. Cam, E. Akbas, S. Kalkan, "Rank & Sort Loss for Object Detection and Instance
Segmentation", ICCV 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from rankdet.criteria.matching import match, require_branches
from rankdet.losses.boxes import giou_loss, iou_loss
from rankdet.losses.rank_sort import rank_sort_loss
from rankdet.structures import LossTerms

if TYPE_CHECKING:
    from rankdet.criteria.matching import PredictiveAssigner
    from rankdet.structures import Assigner, Predictions, Targets


class RankSortCriterion(nn.Module):
    """Rank & Sort Loss of a batch: all logits of its images, levels and classes in one ranking.

        total = ranking + sorting + weight * localisation
        localisation = Σ_i σ_i (1 - GIoU_i) / Σ_i σ_i
        weight = (ranking + sorting) / localisation

    Sums run over the positives; σ_i is the sigmoid of the logit of positive i at the class of
    its object. σ and the weight are constants to the gradient, and so are the labels of the
    positives, the IoU of their predicted boxes with their objects. So the value of the total is
    twice ranking + sorting, and no weight is left to be set. Each process of a distributed
    training ranks its own batch.

    Args:
        assigner: decides who is positive.
        delta: half-width of the smoothed step, in units of the logits.
        eps: of IoU and GIoU, in px².

    Gradient: error sharing for the logits, see `rankdet.losses.rank_sort_loss`; ordinary
    derivative for the codes.

    References:
        Oksuz, Cam, Akbas, Kalkan, ICCV 2021 (see the top of this file), section 4.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self, assigner: Assigner | PredictiveAssigner, *, delta: float = 0.5, eps: float = 1e-7
    ) -> None:
        super().__init__()
        self.assigner = assigner
        self.delta, self.eps = delta, eps

    def forward(self, predictions: Predictions, targets: Targets) -> LossTerms:
        """Return the loss of a batch.

        Args:
            predictions: of B images; without further branches.
            targets: of the same images.

        Returns:
            The loss, and its parts "classification" (ranking + sorting), "ranking", "sorting",
            "localisation" (before its weight), "balance" (the weight) and "positives". Without
            positives the losses are 0, with gradients of 0.

        Raises:
            TypeError: logits or codes are not floating point.
            ValueError: shapes do not fit, or the predictions have a branch.
        """
        require_branches(self.needs, predictions.branches)
        matches = match(self.assigner, predictions, targets)
        logits = predictions.logits.reshape(-1)
        pred, target = matches.in_pixels()
        with torch.no_grad():
            ious = 1 - iou_loss(pred, target, eps=self.eps)
            scores = logits.index_select(0, matches.entries).to(ious.dtype).sigmoid()
            # Scores may all round to 0, and there may be none.
            scores /= scores.sum().clamp(min=torch.finfo(scores.dtype).tiny)
        terms = rank_sort_loss(logits, matches.targets, ious, delta=self.delta)
        classification = terms.ranking + terms.sorting
        localisation = (scores * giou_loss(pred, target, eps=self.eps)).sum()
        with torch.no_grad():
            # `== 0`, not `> 0`: NaN must come out as NaN.
            weight = torch.where(localisation == 0, 0, classification / localisation)
        parts = {
            "classification": classification.detach(),
            "ranking": terms.ranking.detach(),
            "sorting": terms.sorting.detach(),
            "localisation": localisation.detach(),
            "balance": weight,
            "positives": matches.counted(),
        }
        return LossTerms(classification + weight * localisation, parts)

    def end_period(self) -> None:
        """Do nothing: this balance has no memory."""

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"assigner={self.assigner}, delta={self.delta}, eps={self.eps}"
