"""Ranking losses inside other people's detectors: what all integrations share.

A detector of another library keeps its own way to say who is positive, and its own names for its
losses. What it needs is a ranking loss of flat tensors whose two parts can be differentiated and
logged apart: `RankingLoss`. Each library has a module of its own beside this file, which is the
only one that imports it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from rankdet.criteria.balance import SelfBalance
from rankdet.criteria.matching import normaliser_of
from rankdet.losses.alrp import LocRanking, alrp_loss
from rankdet.losses.ap import ap_loss
from rankdet.losses.boxes import giou_loss, iou_loss, localisation_errors
from rankdet.losses.rank_sort import rank_sort_loss
from rankdet.ops.checks import require_choice
from rankdet.ops.rank.distributed import Processes, Ranking, carry, group_of

Kind = Literal["alrp", "ap", "rank_sort"]


class RankedLosses(NamedTuple):
    """The two losses of a ranking, 0-d each, to be added up and differentiated."""

    classification: Tensor
    """Of the logits; reaches nothing else."""
    localisation: Tensor
    """Of the predicted boxes, after its weight; reaches nothing else."""


class RankingLoss(nn.Module):
    """A ranking loss of flat tensors, and how its localisation is weighed.

    ``"alrp"``: aLRP Loss of GIoU errors, localisation weighed by self-balance.
    ``"ap"``: AP Loss, and the mean of 1 - GIoU of the positives.
    ``"rank_sort"``: Rank & Sort Loss, and the mean of 1 - GIoU of the positives, weighted by their
    scores and scaled to the value of the classification.

    Values and gradients are those of `rankdet.criteria.ALRPCriterion` (of boxes in pixels), of a
    `DenseCriterion` of `APClassification` and `IoUBox`, and of `RankSortCriterion`.

    Args:
        kind: ``"alrp"``, ``"ap"`` or ``"rank_sort"``.
        tau: IoU from which a positive counts as such in ``"alrp"``, in [0, 1).
        loc_ranking: of ``"alrp"``, see `rankdet.losses.alrp_loss`.
        ranking: in a distributed training. ``"local"``: each process ranks its own batch.
            ``"global"``: one ranking of all processes, whose values and averaged gradients are
            those of one big batch; all processes must call the loss alike.

    Raises:
        ValueError: a word is none of the known ones.

    Gradient: error sharing for the logits, ordinary derivative for the boxes.

    References:
        Oksuz, Cam, Akbas, Kalkan, "A Ranking-based, Balanced Loss Function Unifying Classification
        and Localisation in Object Detection", NeurIPS 2020. Chen et al., "Towards Accurate
        One-Stage Object Detection with AP-Loss", CVPR 2019. Oksuz, Cam, Akbas, Kalkan, "Rank &
        Sort Loss for Object Detection and Instance Segmentation", ICCV 2021.

    Example:
        >>> loss = RankingLoss("alrp")
        >>> logits, kinds = torch.tensor([2.0, 1.0, -3.0]), torch.tensor([0, 1, 0])
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> print(f"{loss(logits, kinds, box, box).classification.item():.2f}")
        0.50
    """

    def __init__(
        self,
        kind: Kind = "alrp",
        *,
        tau: float = 0.5,
        loc_ranking: LocRanking = "smooth",
        ranking: Ranking = "local",
    ) -> None:
        super().__init__()
        require_choice("kind", kind, get_args(Kind))
        require_choice("loc_ranking", loc_ranking, get_args(LocRanking))
        require_choice("ranking", ranking, get_args(Ranking))
        self.kind: Kind = kind
        self.tau = tau
        self.loc_ranking: LocRanking = loc_ranking
        self.ranking: Ranking = ranking
        self.balance = SelfBalance() if kind == "alrp" else None

    def forward(self, logits: Tensor, kinds: Tensor, pred: Tensor, target: Tensor) -> RankedLosses:
        """Return the two losses of one ranking.

        Args:
            logits: [M] floating, of all images, places and classes.
            kinds: [M] 1 positive, 0 negative, -1 ignored.
            pred: [P, 4] predicted boxes of the positives, xyxy, in the order of the 1s in
                ``kinds``; in any unit, the same for a box and its object.
            target: [P, 4] their objects.

        Returns:
            The losses, float32 or float64. Without positives both are 0, with gradients of 0.

        Raises:
            TypeError: logits or boxes are not floating point.
            ValueError: shapes do not fit.
        """
        group = group_of(self.ranking)
        if self.kind == "alrp":
            return self._alrp(logits, kinds, pred, target, group)
        if self.kind == "ap":
            classification = ap_loss(logits, kinds, group=group)
            count = normaliser_of(pred.shape[0], device=logits.device)
            return RankedLosses(classification, giou_loss(pred, target).sum() / count)
        return _rank_sort(logits, kinds, pred, target, group)

    def end_epoch(self) -> None:
        """Set the weight of the next epoch's localisation, where it is a self-balance.

        All processes must call this together.
        """
        if self.balance is not None:
            self.balance.end_epoch()

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"{self.kind!r}, tau={self.tau}, ranking={self.ranking!r}"

    def _alrp(
        self,
        logits: Tensor,
        kinds: Tensor,
        pred: Tensor,
        target: Tensor,
        group: Processes | None,
    ) -> RankedLosses:
        assert self.balance is not None
        if self.balance.weight.device != logits.device:  # it is no part of the model, which moved
            self.balance.to(logits.device)
        errors = localisation_errors(pred, target, tau=self.tau, eps=1e-6)
        terms = alrp_loss(logits, kinds, errors, loc_ranking=self.loc_ranking, group=group)
        count = torch.full((), float(pred.shape[0]), device=logits.device)
        count = count if group is None else group.add(count)
        balanced = self.balance(terms.classification, terms.localisation, count)
        return RankedLosses(balanced.classification, balanced.localisation)


def _rank_sort(
    logits: Tensor, kinds: Tensor, pred: Tensor, target: Tensor, group: Processes | None
) -> RankedLosses:
    """Return Rank & Sort Loss and its box loss, as `RankSortCriterion` puts them together."""
    with torch.no_grad():
        ious = 1 - iou_loss(pred, target)
        scores = logits[kinds == 1].to(ious.dtype).sigmoid()
        total = scores.sum() if group is None else group.add(scores.sum())
        # Scores may all round to 0, and there may be none.
        scores /= total.clamp(min=torch.finfo(scores.dtype).tiny)
    terms = rank_sort_loss(logits, kinds, ious, group=group)
    classification = terms.ranking + terms.sorting
    localisation = (scores * giou_loss(pred, target)).sum()
    if group is not None:
        localisation = carry(group.add(localisation.detach()), group.size * localisation)
    with torch.no_grad():
        # `== 0`, not `> 0`: NaN must come out as NaN.
        weight = torch.where(localisation == 0, 0, classification / localisation)
    return RankedLosses(classification, weight * localisation)
