"""Rank & Sort Loss as a criterion: its box loss is weighted by score and balanced by value.

K. Oksuz, B. C. Cam, E. Akbas, S. Kalkan, "Rank & Sort Loss for Object Detection and Instance
Segmentation", ICCV 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch
from torch import nn

from rankdet.criteria.matching import match, require_branches
from rankdet.losses.boxes import giou_loss, iou_loss
from rankdet.losses.rank_sort import rank_sort_loss
from rankdet.ops.checks import require_choice
from rankdet.ops.rank.distributed import Ranking, carry, group_of
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
    twice ranking + sorting, and no weight is left to be set.

    Args:
        assigner: decides who is positive.
        delta: half-width of the smoothed step, in units of the logits.
        eps: of IoU and GIoU, in px².
        ranking: in a distributed training. ``"local"``: each process ranks its own batch.
            ``"global"``: one ranking of all processes, sums over the positives of all, and values
            and averaged gradients of one big batch; all processes must call the criterion alike,
            see `rankdet.losses.rank_sort_loss`. The same with one process.

    Gradient: error sharing for the logits, see `rankdet.losses.rank_sort_loss`; ordinary
    derivative for the codes.

    References:
        Oksuz, Cam, Akbas, Kalkan, ICCV 2021 (see the top of this file), section 4.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        assigner: Assigner | PredictiveAssigner,
        *,
        delta: float = 0.5,
        eps: float = 1e-7,
        ranking: Ranking = "local",
    ) -> None:
        super().__init__()
        require_choice("ranking", ranking, get_args(Ranking))
        self.assigner = assigner
        self.delta, self.eps = delta, eps
        self.ranking: Ranking = ranking

    def forward(self, predictions: Predictions, targets: Targets) -> LossTerms:
        """Return the loss of a batch.

        Args:
            predictions: of B images; without further branches.
            targets: of the same images.

        Returns:
            The loss, and its parts "classification" (ranking + sorting), "ranking", "sorting",
            "localisation" (before its weight), "balance" (the weight) and "positives", of this
            process. Without positives, of any process that ranks with this one, the losses are 0,
            with gradients of 0.

        Raises:
            TypeError: logits or codes are not floating point.
            ValueError: shapes do not fit, or the predictions have a branch.
        """
        require_branches(self.needs, predictions.branches)
        matches = match(self.assigner, predictions, targets)
        logits = predictions.logits.reshape(-1)
        pred, target = matches.in_pixels()
        group = group_of(self.ranking)
        with torch.no_grad():
            ious = 1 - iou_loss(pred, target, eps=self.eps)
            scores = logits.index_select(0, matches.entries).to(ious.dtype).sigmoid()
            total = scores.sum() if group is None else group.add(scores.sum())
            # Scores may all round to 0, and there may be none.
            scores /= total.clamp(min=torch.finfo(scores.dtype).tiny)
        terms = rank_sort_loss(logits, matches.targets, ious, delta=self.delta, group=group)
        classification = terms.ranking + terms.sorting
        localisation = (scores * giou_loss(pred, target, eps=self.eps)).sum()
        if group is not None:
            localisation = carry(group.add(localisation.detach()), group.size * localisation)
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
        return (
            f"assigner={self.assigner}, delta={self.delta}, eps={self.eps}, ranking={self.ranking}"
        )
