"""Any classification loss beside any box loss, for detectors with dense predictions.

Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017 (focal loss
and its normaliser).
Chen et al., "Towards Accurate One-Stage Object Detection with AP-Loss", CVPR 2019 (AP Loss).
Qian, Chen, Li, Jin, "DR Loss: Improving Object Detection by Distributional Ranking", CVPR 2020.
Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019
(centreness).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankdet.criteria.matching import Matches, match, normaliser_of, require_branches
from rankdet.losses.ap import ap_loss
from rankdet.losses.boxes import ciou_loss, diou_loss, giou_loss, iou_loss, smooth_l1
from rankdet.losses.dr import dr_loss
from rankdet.losses.focal import focal_loss
from rankdet.ops.checks import (
    require_choice,
    require_exponent,
    require_fraction,
    require_positive,
)
from rankdet.ops.rank.distributed import Ranking, group_of
from rankdet.structures import LossTerms

if TYPE_CHECKING:
    from rankdet.criteria.matching import PredictiveAssigner
    from rankdet.structures import Assigner, Predictions, Targets

_IOU_LOSSES: dict[str, Callable[..., Tensor]] = {
    "iou": iou_loss,
    "log_iou": partial(iou_loss, form="log"),
    "giou": giou_loss,
    "diou": diou_loss,
    "ciou": ciou_loss,
}


class Classification(Protocol):
    """A classification loss as a part of `DenseCriterion`."""

    def __call__(self, logits: Tensor, matches: Matches, normaliser: float | Tensor, /) -> Tensor:
        """Return the loss of a batch.

        Args:
            logits: [B, A, C], floating.
            matches: who is positive, negative and ignored, and the boxes of the positives.
            normaliser: mean number of positives of all processes, at least 1; 0-d where a
                tensor.

        Returns:
            0-d, float32 or float64.
        """
        ...


class Box(Protocol):
    """A box loss as a part of `DenseCriterion`."""

    def __call__(self, matches: Matches, /) -> Tensor:
        """Return the loss of each positive, [P], float32 or float64."""
        ...


class Weighting(Protocol):
    """How much the box loss of each positive counts, as a part of `DenseCriterion`."""

    def __call__(self, logits: Tensor, matches: Matches, /) -> Tensor:
        """Return the weight of each positive, [P], 0 and more, in the dtype of the codes.

        Args:
            logits: [B, A, C], floating.
            matches: the positives.

        Gradient: none.
        """
        ...


@dataclass(frozen=True)
class FocalClassification:
    """Focal loss, summed over everything not ignored, per positive.

    The positives are those of all processes, divided by the number of processes; at least 1.
    """

    alpha: float = 0.25
    """Weight of the positives, in [0, 1]."""
    gamma: float = 2.0
    """0, or 1 and more."""
    count_images: bool = False
    """Whether each image counts as one more positive in the normaliser, as in FoveaBox."""

    def __post_init__(self) -> None:
        require_fraction("alpha", self.alpha)
        require_exponent("gamma", self.gamma)

    def __call__(self, logits: Tensor, matches: Matches, normaliser: float | Tensor) -> Tensor:
        """Return the loss of a batch; see `Classification`. An ordinary derivative."""
        if self.count_images:
            normaliser = normaliser_of(matches.count + logits.shape[0], device=logits.device)
        return focal_loss(
            logits.reshape(-1),
            matches.targets,
            normaliser=normaliser,
            alpha=self.alpha,
            gamma=self.gamma,
        )


@dataclass(frozen=True)
class APClassification:
    """AP Loss of one ranking of all logits of the batch."""

    delta: float = 1.0
    """Half-width of the smoothed step, in units of the logits."""
    interpolated: bool = True
    """Whether precision is interpolated."""
    ranking: Ranking = "local"
    """In a distributed training, ``"local"``: each process ranks its own batch. ``"global"``: one
    ranking of all processes, whose value and averaged gradient are those of one big batch; all
    processes must call the criterion alike, see `rankdet.losses.ap_loss`. The same with one
    process."""

    def __post_init__(self) -> None:
        require_positive("delta", self.delta, zero_allowed=True)
        require_choice("ranking", self.ranking, get_args(Ranking))

    def __call__(self, logits: Tensor, matches: Matches, _normaliser: float | Tensor) -> Tensor:
        """Return the loss of a batch; see `Classification`. The gradient shares errors out."""
        return ap_loss(
            logits.reshape(-1),
            matches.targets,
            delta=self.delta,
            interpolated=self.interpolated,
            group=group_of(self.ranking),
        )


@dataclass(frozen=True)
class DRClassification:
    """DR loss: one pair of distributions, of positives and negatives, for all logits of the batch.

    There is no normaliser, and each process has its own pair. The loss is never 0: without
    positives it still pushes the negatives down.
    """

    margin: float = 0.5
    """By how much the positives shall exceed the negatives, as a probability."""
    pos_lambda: float = 1.0
    """Above 0; the smaller, the more the lowest positive counts."""
    neg_lambda: float = 0.1 / math.log(3.5)
    """Above 0; the smaller, the more the highest negative counts."""
    smoothness: float = 6.0
    """L of the paper, above 0: how sharp the hinge is."""
    tau: float = 4.0
    """Scale of the loss, above 0."""

    def __post_init__(self) -> None:
        for name in ("pos_lambda", "neg_lambda", "smoothness", "tau"):
            require_positive(name, getattr(self, name))

    def __call__(self, logits: Tensor, matches: Matches, _normaliser: float | Tensor) -> Tensor:
        """Return the loss of a batch; see `Classification`. An ordinary derivative."""
        return dr_loss(
            logits.reshape(-1),
            matches.targets,
            margin=self.margin,
            pos_lambda=self.pos_lambda,
            neg_lambda=self.neg_lambda,
            smoothness=self.smoothness,
            tau=self.tau,
        )


@dataclass(frozen=True)
class SmoothL1Box:
    """Smooth L1 loss of the codes of a box."""

    beta: float = 1 / 9
    """Where its two pieces meet, 0 or more, in the unit of the codes."""
    per: Literal["positive", "number"] = "positive"
    """Whether the 4 numbers of a positive are added up (RetinaNet) or averaged (AP Loss)."""

    def __post_init__(self) -> None:
        require_positive("beta", self.beta, zero_allowed=True)
        require_choice("per", self.per, ("positive", "number"))

    def __call__(self, matches: Matches) -> Tensor:
        """Return the loss of each positive, [P]. An ordinary derivative."""
        each = smooth_l1(matches.codes, matches.wanted_codes(), beta=self.beta)
        return each.sum(1) if self.per == "positive" else each.mean(1)


@dataclass(frozen=True)
class IoUBox:
    """A loss of the IoU family, of boxes in pixels."""

    kind: str = "giou"
    """``"iou"``, ``"log_iou"`` (-log IoU), ``"giou"``, ``"diou"`` or ``"ciou"``."""
    eps: float = 1e-7
    """Of the loss, in px²; with ``"log_iou"`` also the least IoU."""

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, tuple(_IOU_LOSSES))
        require_positive("eps", self.eps)

    def __call__(self, matches: Matches) -> Tensor:
        """Return the loss of each positive, [P]. An ordinary derivative."""
        pred, target = matches.in_pixels()
        return _IOU_LOSSES[self.kind](pred, target, eps=self.eps)


class DenseCriterion(nn.Module):
    """A classification loss, and a box loss of the positives.

        total = classification + box_weight * localisation (+ centreness)

    Localisation is the sum of the box losses over the number of positives; the mean number of
    all processes, at least 1. With a weighting, each box loss is multiplied by its weight, and
    their sum is divided by that of the weights (again the mean of all processes, at least 1).

    With centreness, the weights are the centreness of each positive, and the branch learns it by
    cross-entropy, averaged over the positives:

        centreness = sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))

    with l, t, r, b the distances from the centre of the prior to the sides of its object.

    So the mean over processes of the gradients is that of one process with the whole batch,
    wherever what is divided by is not raised to 1, and so is the mean of the values: of
    localisation and centreness each process has its part. A ranking is that of each process, or
    with ``APClassification(ranking="global")`` that of the whole batch.

    Args:
        assigner: decides who is positive.
        classification: `FocalClassification`, `APClassification` or your own.
        box: `SmoothL1Box`, `IoUBox` or your own.
        box_weight: zero or more; 2 is usual for focal loss beside GIoU.
        centreness: whether the predictions have a branch "centreness".
        weighting: None, or how much each box loss counts; not beside centreness.

    Raises:
        ValueError: box_weight is below zero, or there are both centreness and a weighting.

    Gradient: that of the parts.

    References:
        See the top of this file.
    """

    needs: frozenset[str]

    def __init__(
        self,
        assigner: Assigner | PredictiveAssigner,
        classification: Classification,
        box: Box,
        *,
        box_weight: float = 1.0,
        centreness: bool = False,
        weighting: Weighting | None = None,
    ) -> None:
        super().__init__()
        require_positive("box_weight", box_weight, zero_allowed=True)
        if centreness and weighting is not None:
            raise ValueError(
                f"with centreness the box losses are weighted by it: give no weighting, "
                f"got {weighting}"
            )
        self.assigner = assigner
        self.classification = classification
        self.box = box
        self.box_weight = box_weight
        self.weighting = weighting
        self.needs = frozenset({"centreness"}) if centreness else frozenset()

    def forward(self, predictions: Predictions, targets: Targets) -> LossTerms:
        """Return the loss of a batch.

        Args:
            predictions: of B images; with the branch "centreness" or without branches.
            targets: of the same images.

        Returns:
            The loss, and its parts "classification", "localisation" (before its weight),
            "centreness" if there is one, and "positives". If no process has positives,
            localisation and centreness are 0 with gradients of 0, and classification is what its
            loss makes of negatives alone.

        Raises:
            TypeError: logits or codes are not floating point.
            ValueError: shapes do not fit, or the predictions have other branches.
        """
        require_branches(self.needs, predictions.branches)
        matches = match(self.assigner, predictions, targets)
        logits = predictions.logits
        normaliser = normaliser_of(matches.count, device=logits.device)
        total = classification = self.classification(logits, matches, normaliser)
        parts = {"classification": classification.detach()}
        each = self.box(matches)
        if "centreness" in self.needs:
            weights = _centreness(matches)
            branch = branch_loss(predictions.branches["centreness"], weights, matches, normaliser)
            parts["centreness"] = branch.detach()
            total = total + branch
        elif self.weighting is not None:
            weights = self.weighting(logits, matches)
        else:
            weights = None
        localisation = (
            each.sum() / normaliser
            if weights is None
            else (each * weights).sum() / normaliser_of(weights.sum(), device=logits.device)
        )
        total = torch.add(total, localisation, alpha=self.box_weight)
        parts["localisation"] = localisation.detach()
        parts["positives"] = matches.counted()
        return LossTerms(total, parts)

    def end_period(self) -> None:
        """Do nothing: the weight is a constant."""

    def extra_repr(self) -> str:
        """Show the parts."""
        return (
            f"assigner={self.assigner}, classification={self.classification}, box={self.box}, "
            f"box_weight={self.box_weight:g}, centreness={'centreness' in self.needs}, "
            f"weighting={self.weighting}"
        )


def branch_loss(
    branch: Tensor, wanted: Tensor, matches: Matches, normaliser: float | Tensor
) -> Tensor:
    """Cross-entropy of a branch with what it shall say of each positive, over a normaliser.

    Args:
        branch: [B, A] logits, floating.
        wanted: [P] in [0, 1], taken as constant.
        matches: the positives.
        normaliser: a number above zero, or a 0-d tensor.

    Returns:
        0-d, in the dtype of ``wanted``. No positives: 0, with a gradient of 0.

    Gradient: ordinary derivative.
    """
    found = branch.reshape(-1).index_select(0, matches.places).to(wanted.dtype)
    entropy = functional.binary_cross_entropy_with_logits(found, wanted, reduction="sum")
    return entropy / normaliser


def _centreness(matches: Matches) -> Tensor:
    """Return the centreness of each positive, [P] in [0, 1]; 0 for a prior beside its object."""
    centres = (matches.priors[:, :2] + matches.priors[:, 2:]) / 2
    # [P, 2]: left and top, right and bottom
    before, after = centres - matches.boxes[:, :2], matches.boxes[:, 2:] - centres
    nearer = torch.minimum(before, after).clamp(min=0)
    x, y = (nearer / torch.maximum(before, after).clamp(min=1e-9)).unbind(1)
    return (x * y).sqrt()
