"""Ranking losses for the detectors of torchvision: RetinaNet, FCOS and Faster R-CNN.

>>> from torchvision.models.detection import retinanet_resnet50_fpn
>>> model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
>>> loss = use_ranking_loss(model, "alrp")

From then on ``model(images, targets)`` returns the losses of a ranking. Nothing else changes: the
model keeps its class, its parameters, and the names in its ``state_dict``, so that weights go into
a plain model of torchvision and back. Who is positive is decided by torchvision's own matching.

What is ranked is the very score that torchvision detects by, so a plain model with these weights
puts its detections in the order that was trained:

- RetinaNet: the logits of the classes.
- FCOS: the logit of σ(class) σ(centreness), whose square root torchvision takes as score. So the
  centreness is trained by the ranking, and has no loss of its own.
- Faster R-CNN, first stage: the logits, of all anchors instead of a sample. Second stage: the
  logit of the softmax probability of each class, background among those it is compared with; of
  all regions instead of a sample.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet

from rankdet.integrations import Kind, RankingLoss
from rankdet.integrations.torchvision_methods import (
    DenseLosses,
    RegionLosses,
    RPNLosses,
    all_but_ignored,
    fcos_scores,
    retinanet_scores,
)
from rankdet.losses.alrp import LocRanking
from rankdet.ops.checks import require_positive
from rankdet.ops.rank.distributed import Ranking

_NAME = "_rankdet_loss"


class DetectorLoss(nn.Module):
    """The ranking losses of a detector of torchvision: one, or one for each of two stages.

    It is no part of the detector: its state, the self-balance, is not in the detector's
    ``state_dict``. Save it beside that. It follows the detector to another device, to a copy and
    into a pickle.

    In evaluation mode (``loss.eval()``) losses are computed without being noted by the balance:
    for validation losses of a detector in training mode.
    """

    def __init__(
        self, stages: dict[str, RankingLoss], replaced: list[tuple[nn.Module, str]]
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        # Modules of the detector, kept out of the sub-modules.
        self._replaced = tuple(replaced)
        self._thresholds: tuple[tuple[Any, float], ...] = ()

    def end_epoch(self) -> None:
        """Set the weight of localisation for the next epoch; all processes must call this."""
        for stage in self.stages.values():
            assert isinstance(stage, RankingLoss)
            stage.end_epoch()


def use_ranking_loss(
    model: nn.Module,
    loss: Kind = "alrp",
    *,
    ranking: Ranking = "local",
    loc_ranking: LocRanking = "smooth",
    first_weight: float = 0.2,
    score_threshold: float | None = 0.0,
) -> DetectorLoss:
    """Let a detector of torchvision return a ranking loss in training.

    The dictionary that ``model(images, targets)`` returns has the keys it had, of 0-d tensors to be
    added up: "classification" and "bbox_regression" of RetinaNet and FCOS; "loss_classifier",
    "loss_box_reg", "loss_objectness" and "loss_rpn_box_reg" of Faster R-CNN. All images, levels
    and classes of a batch are in one ranking, in Faster R-CNN one for each stage.

    Args:
        model: `RetinaNet`, `FCOS` or `FasterRCNN` of torchvision, or a class made from one of
            them; changed in place. If it has a ranking loss, that is replaced.
        loss: ``"alrp"``, ``"ap"`` or ``"rank_sort"``, see `rankdet.integrations.RankingLoss`.
        ranking: in a distributed training, ``"local"`` or ``"global"``: whether each process ranks
            its own batch or all rank together.
        loc_ranking: of aLRP Loss, ``"smooth"`` or ``"hard"``, see `rankdet.losses.alrp_loss`.
        first_weight: what the losses of the first of two stages are multiplied by, zero or more.
        score_threshold: below which the model throws detections away. Only the order of the scores
            of a ranking loss has a meaning, and most are tiny. None leaves the model's own, which
            is 0.05 or 0.2 and throws away most of what is found.

    Returns:
        The loss, whose `end_epoch` is to be called at the end of each epoch.

    Raises:
        TypeError: the model is of another kind, or has masks or keypoints.
        ValueError: a word is none of the known ones, or a number is negative.

    Gradient: see `rankdet.integrations.RankingLoss`; regions are constants to the second stage.

    References:
        Oksuz, Cam, Akbas, Kalkan, "A Ranking-based, Balanced Loss Function Unifying Classification
        and Localisation in Object Detection", NeurIPS 2020 (no sampling; τ = 0.7 and a weight of
        0.2 for the first stage). Chen et al., "You Only Look One-level Feature", CVPR 2021 (the
        logit of a product of two sigmoids).
    """
    require_positive("first_weight", first_weight, zero_allowed=True)
    if score_threshold is not None:
        require_positive("score_threshold", score_threshold, zero_allowed=True)
    methods: list[tuple[nn.Module, str, Any]]
    if isinstance(model, RetinaNet | FCOS):
        stages = {"head": RankingLoss(loss, ranking=ranking, loc_ranking=loc_ranking)}
        scores = fcos_scores if isinstance(model, FCOS) else retinanet_scores
        losses = DenseLosses(stages["head"], scores, model.box_coder)
        methods = [(model.head, "compute_loss", losses)]
        detects: Any = model
    elif isinstance(model, FasterRCNN):
        heads = model.roi_heads
        if heads.has_mask() or heads.has_keypoint():
            raise TypeError("a detector with masks or keypoints has no ranking loss here")
        stages = {
            "rpn": RankingLoss(loss, tau=0.7, ranking=ranking, loc_ranking=loc_ranking),
            "roi_heads": RankingLoss(loss, ranking=ranking, loc_ranking=loc_ranking),
        }
        first = RPNLosses(stages["rpn"], model.rpn.box_coder, first_weight)
        methods = [
            (model.rpn, "compute_loss", first),
            (heads, "subsample", all_but_ignored),
            (heads, "forward", RegionLosses(stages["roi_heads"], heads)),
        ]
        detects = heads
    else:
        raise TypeError(
            f"the model must be RetinaNet, FCOS or FasterRCNN of torchvision, "
            f"got {type(model).__name__}"
        )
    if _NAME in vars(model):
        remove_ranking_loss(model)
    whole = DetectorLoss(stages, [(module, name) for module, name, _ in methods])
    for module, name, method in methods:
        # Of this one object: what stands in its dictionary comes before its class.
        vars(module)[name] = method
    if score_threshold is not None:
        whole._thresholds = ((detects, detects.score_thresh),)
        detects.score_thresh = score_threshold
    # Not by `setattr`, which would make it a part of the model.
    vars(model)[_NAME] = whole
    return whole


def ranking_loss_of(model: nn.Module) -> DetectorLoss:
    """Return the ranking loss that a detector has.

    Args:
        model: a detector after `use_ranking_loss`, or a copy of it, loaded from a pickle, wrapped
            in `DistributedDataParallel` or compiled.

    Raises:
        ValueError: it has none.
    """
    loss = vars(_unwrapped(model)).get(_NAME)
    if loss is None:
        raise ValueError("this model has no ranking loss: call use_ranking_loss first")
    return cast(DetectorLoss, loss)


def end_epoch(model: nn.Module) -> None:
    """End an epoch of training: set the weight of localisation for the next one.

    The same as ``ranking_loss_of(model).end_epoch()``; all processes must call it together.

    Raises:
        ValueError: the model has no ranking loss.
    """
    ranking_loss_of(model).end_epoch()


def remove_ranking_loss(model: nn.Module) -> None:
    """Give a detector its own loss and score threshold back.

    Raises:
        ValueError: it has no ranking loss.
    """
    loss = ranking_loss_of(model)
    for module, name in loss._replaced:
        del vars(module)[name]
    for module, threshold in loss._thresholds:
        module.score_thresh = threshold
    del vars(_unwrapped(model))[_NAME]


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within `DistributedDataParallel` and what `torch.compile` returns."""
    for name in ("module", "_orig_mod"):
        inner = model._modules.get(name)
        if inner is not None and len(model._modules) == 1:
            return _unwrapped(inner)
    return model
