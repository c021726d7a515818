"""What a config of mmdetection names as ``loss_cls``: a ranking loss of a whole head.

Each is a criterion of `rankdet.criteria` in the form that mmdetection builds. `RankDetMixin` hands
it everything that a head has predicted of a batch, in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mmdet.registry import MODELS
from torch import Tensor, nn

from rankdet.criteria import (
    ALRPCriterion,
    APClassification,
    DenseCriterion,
    RankSortCriterion,
    ScalarBalance,
    SelfBalance,
)
from rankdet.integrations.mmdet.predictions import AssignedByHead
from rankdet.ops.checks import require_choice, require_positive
from rankdet.structures import LossTerms, Predictions

if TYPE_CHECKING:
    from rankdet.criteria.alrp import Frame
    from rankdet.criteria.matching import Matches
    from rankdet.losses.alrp import LocRanking
    from rankdet.ops.rank.distributed import Ranking
    from rankdet.structures import Targets

_IOU_LOSSES = ("iou", "giou", "diou", "ciou")


class RankDetLoss(nn.Module):
    """A criterion of `rankdet.criteria` as the ``loss_cls`` of a head with `RankDetMixin`.

    The scores of such a head are a sigmoid of each class: there is no output for background.

    Args:
        criterion: what is asked; its assigner must be an `AssignedByHead`.
        loss_weight: the loss is multiplied by it, zero or more; 0.2 for the first stage of
            Faster R-CNN with aLRP Loss.
        use_sigmoid: True; mmdetection's heads ask for it in the config of a loss.

    Raises:
        ValueError: loss_weight is negative, or use_sigmoid is False.

    Gradient: that of the criterion.
    """

    joint = True
    """Whether the criterion has a part for boxes, so that the head's ``loss_bbox`` has no use."""
    # What mmdetection's heads for regions ask a loss: without these they put in a softmax.
    custom_cls_channels = True
    custom_activation = True

    def __init__(
        self, criterion: nn.Module, *, loss_weight: float = 1.0, use_sigmoid: bool = True
    ) -> None:
        super().__init__()
        require_positive("loss_weight", loss_weight, zero_allowed=True)
        if not use_sigmoid:
            raise ValueError("use_sigmoid must be True: a ranking loss has no class for background")
        self.criterion = criterion
        self.loss_weight = loss_weight

    def attach(self, box_loss: nn.Module | None, *, decoded: bool, regions: bool) -> None:
        """Take note of the head that this is the loss of; `RankDetMixin` calls it once.

        Args:
            box_loss: the ``loss_bbox`` of the head.
            decoded: whether that loss compares boxes rather than their codes.
            regions: whether the head is that of a second stage.
        """

    def get_cls_channels(self, num_classes: int) -> int:
        """Return how many outputs a head for regions needs: one for each class."""
        return num_classes

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return the scores of regions: [R, C + 1] in [0, 1] for logits [R, C].

        The last column is 0: mmdetection expects one for background there, and drops it.
        """
        return nn.functional.pad(cls_score.sigmoid(), (0, 1))

    def forward(
        self, predictions: Predictions, targets: Targets, *_others: object, **_settings: object
    ) -> LossTerms:
        """Return the loss of all that a head has predicted of a batch.

        Args:
            predictions: of "one image" that holds the priors of all levels and images.
            targets: the object that each positive has to find.

        Returns:
            The terms of the criterion, with the total multiplied by the weight of the loss.

        Raises:
            TypeError: these are no predictions: the head calls its loss once per level.
        """
        if not isinstance(predictions, Predictions):
            raise TypeError(
                f"{type(self).__name__} ranks all that a head has predicted of a batch, so it is "
                f"for heads with RankDetMixin: take RankDetRetinaHead for RetinaHead, and so on"
            )
        terms = self.criterion(predictions, targets)
        assert isinstance(terms, LossTerms)
        return LossTerms(terms.total * self.loss_weight, terms.parts)

    def end_epoch(self) -> None:
        """End an epoch of the balance. All processes must call this together."""
        self.criterion.end_period()  # type: ignore[operator] # of every criterion

    def extra_repr(self) -> str:
        """Show the weight."""
        return f"loss_weight={self.loss_weight:g}"


@MODELS.register_module()
class RankDetALRPLoss(RankDetLoss):
    """aLRP Loss of a head: `rankdet.criteria.ALRPCriterion`, boxes and all.

    Args:
        delta: half-width of the smoothed step, in units of the logits.
        tau: IoU from which a positive counts as such, in [0, 1): 0.5, or 0.7 for the first stage
            of Faster R-CNN.
        box: box loss of the localisation error: ``"iou"``, ``"giou"``, ``"diou"`` or ``"ciou"``.
        loc_ranking: ``"smooth"``, or ``"hard"`` as in the authors' code.
        balance: ``"self"``, or a constant that localisation is multiplied by, zero or more.
        initial: weight of localisation until the first epoch ends, with ``"self"``.
        frame: where IoU and GIoU are taken, ``"prior"`` or ``"pixels"``, see `ALRPCriterion`;
            None: as in the authors' heads, that is pixels for regions and the prior for the others.
        ranking: ``"local"``: each process ranks its own images; ``"global"``: all rank together.
        eps: of the box loss, in the square of the unit of ``frame``.
        loss_weight: see `RankDetLoss`.
        use_sigmoid: see `RankDetLoss`.

    Raises:
        ValueError: a choice is unknown, or a number out of its range.

    Gradient: error sharing for the logits, ordinary derivative for the boxes.

    References:
        Oksuz, Cam, Akbas, Kalkan, "A Ranking-based, Balanced Loss Function Unifying Classification
        and Localisation in Object Detection", NeurIPS 2020.
    """

    def __init__(
        self,
        *,
        delta: float = 1.0,
        tau: float = 0.5,
        box: str = "giou",
        loc_ranking: LocRanking = "smooth",
        balance: Literal["self"] | float = "self",
        initial: float = 50.0,
        frame: Frame | None = None,
        ranking: Ranking = "local",
        eps: float = 1e-6,
        loss_weight: float = 1.0,
        use_sigmoid: bool = True,
    ) -> None:
        require_choice("box", box, _IOU_LOSSES)
        require_choice("loc_ranking", loc_ranking, ("smooth", "hard"))
        if isinstance(balance, str):
            require_choice("balance", balance, ("self",))
        criterion = ALRPCriterion(
            AssignedByHead(),
            SelfBalance(initial) if isinstance(balance, str) else ScalarBalance(balance),
            delta=delta,
            tau=tau,
            box=box,
            loc_ranking=loc_ranking,
            eps=eps,
            frame=frame or "prior",
            ranking=ranking,
        )
        super().__init__(criterion, loss_weight=loss_weight, use_sigmoid=use_sigmoid)
        self._frame_given = frame is not None

    def attach(self, box_loss: nn.Module | None, *, decoded: bool, regions: bool) -> None:  # noqa: ARG002 - has its own
        """Compare the boxes of regions in pixels, unless the config says otherwise."""
        if regions and not self._frame_given:
            assert isinstance(self.criterion, ALRPCriterion)
            self.criterion.frame = "pixels"


@MODELS.register_module()
class RankDetAPLoss(RankDetLoss):
    """AP Loss of a head beside the head's own ``loss_bbox``.

        total = AP Loss + Σ loss_bbox of each positive / number of positives

    with the number of positives averaged over the processes, at least 1. ``loss_bbox`` has the
    weight that its config gives, but no weight for each box: a head with centreness does not train
    that branch here.

    Args:
        delta: half-width of the smoothed step, in units of the logits.
        interpolated: whether precision is interpolated.
        ranking: ``"local"``: each process ranks its own images; ``"global"``: all rank together.
        loss_weight: see `RankDetLoss`; it multiplies the sum of both parts.
        use_sigmoid: see `RankDetLoss`.

    Raises:
        ValueError: a choice is unknown, or a number out of its range.

    Gradient: error sharing for the logits, ordinary derivative for the boxes.

    References:
        Chen et al., "Towards Accurate One-Stage Object Detection with AP-Loss", CVPR 2019.
    """

    joint = False

    def __init__(
        self,
        *,
        delta: float = 1.0,
        interpolated: bool = True,
        ranking: Ranking = "local",
        loss_weight: float = 1.0,
        use_sigmoid: bool = True,
    ) -> None:
        classification = APClassification(delta, interpolated, ranking)
        criterion = DenseCriterion(AssignedByHead(), classification, _NoBox())
        super().__init__(criterion, loss_weight=loss_weight, use_sigmoid=use_sigmoid)

    def attach(self, box_loss: nn.Module | None, *, decoded: bool, regions: bool) -> None:  # noqa: ARG002 - alike for both
        """Take the box loss of the head."""
        assert box_loss is not None
        assert isinstance(self.criterion, DenseCriterion)
        self.criterion.box = _BoxOfHead(box_loss, decoded)


@MODELS.register_module()
class RankDetRankSortLoss(RankDetLoss):
    """Rank & Sort Loss of a head: `rankdet.criteria.RankSortCriterion`, boxes and all.

    Its balance is computed anew in each iteration; nothing happens at the end of an epoch.

    Args:
        delta: half-width of the smoothed step, in units of the logits.
        eps: of IoU and GIoU, in px².
        ranking: ``"local"``: each process ranks its own images; ``"global"``: all rank together.
        loss_weight: see `RankDetLoss`.
        use_sigmoid: see `RankDetLoss`.

    Raises:
        ValueError: a choice is unknown, or a number out of its range.

    Gradient: error sharing for the logits, ordinary derivative for the boxes.

    References:
        Oksuz, Cam, Akbas, Kalkan, "Rank & Sort Loss for Object Detection and Instance
        Segmentation", ICCV 2021.
    """

    def __init__(
        self,
        *,
        delta: float = 0.5,
        eps: float = 1e-7,
        ranking: Ranking = "local",
        loss_weight: float = 1.0,
        use_sigmoid: bool = True,
    ) -> None:
        criterion = RankSortCriterion(AssignedByHead(), delta=delta, eps=eps, ranking=ranking)
        super().__init__(criterion, loss_weight=loss_weight, use_sigmoid=use_sigmoid)


@dataclass(frozen=True)
class _NoBox:
    """The box loss of a loss that belongs to no head yet."""

    def __call__(self, _matches: Matches) -> Tensor:
        raise RuntimeError("RankDetAPLoss was called before a head with RankDetMixin took it")


@dataclass(frozen=True)
class _BoxOfHead:
    """A box loss of mmdetection, of each positive."""

    loss: nn.Module
    decoded: bool

    def __call__(self, matches: Matches) -> Tensor:
        """Return the loss of each positive, [P]."""
        if matches.count == 0:  # some losses of mmdetection have no gradient then, some no shape
            return matches.codes.sum(1)
        if self.decoded:
            pred, target = matches.in_pixels()
        else:
            pred, target = matches.codes, matches.wanted_codes()
        each: Tensor = self.loss(pred, target.to(pred.dtype), reduction_override="none")
        return each.flatten(1).sum(1) if each.dim() > 1 else each
