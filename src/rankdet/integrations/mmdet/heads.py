"""Heads of mmdetection that train with one ranking of all they have predicted of a batch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from mmdet.models.dense_heads import ATSSHead, FCOSHead, FoveaHead, RetinaHead, RPNHead
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.models.roi_heads.bbox_heads import (
    BBoxHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
)
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from torch import Tensor, nn

from rankdet.criteria import SelfBalance
from rankdet.integrations.mmdet import predictions
from rankdet.integrations.mmdet.losses import RankDetLoss
from rankdet.integrations.mmdet.predictions import HeadOutputs

_CENTRENESS = ("atss_centerness", "conv_centerness")


class RankDetMixin:
    """Give a head of mmdetection a ranking loss; stands before the head among the base classes.

    The head keeps its layers, its rule for who is positive and its way to detections. What changes:

    - ``loss_cls`` is a `RankDetLoss`, asked once about all levels and images of a batch;
    - ``loss_bbox`` is None where that loss has a part for boxes;
    - centreness is neither trained nor used. Its layer stays, frozen and 0, so that weights fit:
      in mmdetection's own head it then multiplies all scores by the same 0.5;
    - a head for regions has one output for each class and none for background.

    It reads heads that derive from ``AnchorHead`` (as RetinaHead, ATSSHead and RPNHead do),
    ``FCOSHead``, ``FoveaHead`` or ``BBoxHead``. For another head override `outputs_of_batch`.

    Losses in the log: "loss_rank" is what is differentiated; "rank_classification",
    "rank_localisation" (before its weight), "rank_balance" (the weight) and "rank_positives" are
    its parts, those of an RPN after "rpn_".

    Args:
        args: of the head.
        kwargs: of the head, ``loss_cls`` among them.

    Raises:
        TypeError: loss_cls is no `RankDetLoss`, or the head is of another kind.

    Example:
        >>> @MODELS.register_module()                         # doctest: +SKIP
        ... class MyRankedHead(RankDetMixin, MyRetinaHead):
        ...     pass
    """

    loss_cls: RankDetLoss

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        loss = kwargs.get("loss_cls")
        if not isinstance(loss, dict):
            raise TypeError(f"{type(self).__name__} needs loss_cls=dict(type='RankDetALRPLoss')")
        # Heads look into the config to see that they need no output for background.
        kwargs["loss_cls"] = {**loss, "use_sigmoid": loss.get("use_sigmoid", True)}
        super().__init__(*args, **kwargs)
        if not isinstance(self.loss_cls, RankDetLoss):
            raise TypeError(
                f"loss_cls of {type(self).__name__} must be a loss that ranks, such as "
                f"dict(_delete_=True, type='RankDetALRPLoss'), got {loss.get('type')}"
            )
        self._reader()  # a head of another kind is refused here, not in the first batch
        self.told_of_epochs = False
        """Whether something calls `end_epoch`: `RankDetHook` says so."""
        head: Any = self
        self.loss_cls.attach(
            head.loss_bbox,
            decoded=isinstance(self, FCOSHead) or getattr(self, "reg_decoded_bbox", False),
            regions=isinstance(self, BBoxHead),
        )
        if self.loss_cls.joint:
            head.loss_bbox = None
        if hasattr(self, "loss_centerness"):
            head.loss_centerness = None
        self._silence_centreness()

    def init_weights(self) -> None:
        """Initialise as the head does, but for a centreness of 0."""
        super().init_weights()  # type: ignore[misc] # of the head
        self._silence_centreness()

    def end_epoch(self) -> None:
        """End an epoch of the balance. All processes must call this together.

        `RankDetHook` calls it; so must a training loop of your own.
        """
        self.told_of_epochs = True
        self.loss_cls.end_epoch()

    def forward(self, x: Any) -> Any:
        """Return logits and codes as the head does, without centreness."""
        outputs = super().forward(x)  # type: ignore[misc] # of the head
        return outputs[:2]

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: Any,
        batch_img_metas: Any,
        batch_gt_instances_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """Return the losses of a batch: of a dense head, or of an RPN.

        Args:
            cls_scores: for each level logits [B, K * C, H, W], floating.
            bbox_preds: for each level codes [B, K * 4, H, W], floating.
            batch_gt_instances: for each image its objects, as mmdetection has them.
            batch_img_metas: for each image its meta information.
            batch_gt_instances_ignore: for each image what is to be left alone.

        Returns:
            0-d each: what is differentiated, and its detached parts; see the class.

        Gradient: that of the loss.
        """
        ground_truth = (batch_gt_instances, batch_img_metas, batch_gt_instances_ignore)
        outputs = self.outputs_of_batch(cls_scores, bbox_preds, ground_truth)
        return self._ask(outputs, "rpn_" if isinstance(self, RPNHead) else "")

    def outputs_of_batch(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], ground_truth: tuple[Any, Any, Any]
    ) -> HeadOutputs:
        """Return what a dense head has predicted and what it should have; see `HeadOutputs`."""
        read = self._reader()
        assert read is not None
        outputs: HeadOutputs = read(self, cls_scores, bbox_preds, ground_truth)
        return outputs

    def loss_and_target(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        sampling_results: Any,
        rcnn_train_cfg: Any,
        concat: bool = True,
        reduction_override: str | None = None,  # noqa: ARG002 - a ranking has no reduction
    ) -> dict[str, Any]:
        """Return the losses of a batch of regions, and who is positive among them.

        Args:
            cls_score: [R, C] logits, floating.
            bbox_pred: [R, 4 * C] or [R, 4] codes, floating.
            rois: [R, 5] index of the image, then xyxy in pixels.
            sampling_results: for each image who is positive, and for which object.
            rcnn_train_cfg: the settings of the stage.
            concat: True.
            reduction_override: has no effect.

        Returns:
            ``loss_bbox``, the losses by name, see the class; ``bbox_targets``, what
            ``get_targets`` returned.

        Raises:
            ValueError: concat is False: one ranking needs the regions of all images.

        Gradient: that of the loss.
        """
        if not concat:
            raise ValueError("concat must be True: all regions of a batch are ranked together")
        head: Any = self
        found = head.get_targets(sampling_results, rcnn_train_cfg, concat=True)
        outputs = predictions.of_regions(head, cls_score, bbox_pred, rois, found)
        return {"loss_bbox": self._ask(outputs), "bbox_targets": found}

    def _ask(self, outputs: HeadOutputs, prefix: str = "") -> dict[str, Tensor]:
        self._require_hook()
        terms = self.loss_cls(*predictions.predictions_and_targets(outputs))
        parts = {f"{prefix}rank_{name}": value for name, value in terms.parts.items()}
        return {f"{prefix}loss_rank": terms.total, **parts}

    def _reader(self) -> Any:
        """Return what reads the outputs of such a head; None for a head of regions."""
        readers = (
            (BBoxHead, None),
            (FCOSHead, predictions.of_points_fcos),
            (FoveaHead, predictions.of_points_fovea),
            (AnchorHead, predictions.of_anchors),
        )
        for kind, read in readers:
            if isinstance(self, kind):
                return read
        if type(self).outputs_of_batch is not RankDetMixin.outputs_of_batch:
            return None
        known = ", ".join(kind.__name__ for kind, _ in readers)
        raise TypeError(
            f"{type(self).__name__} must derive from one of {known}, or override outputs_of_batch"
        )

    def _silence_centreness(self) -> None:
        for name in _CENTRENESS:
            layer = getattr(self, name, None)
            if isinstance(layer, nn.Module):
                for parameter in layer.parameters():
                    parameter.requires_grad_(False)
                    nn.init.zeros_(parameter)

    def _require_hook(self) -> None:
        """Warn once if an epoch of mmengine's went by and the balance was not told."""
        if self.told_of_epochs or not torch.is_grad_enabled():
            return
        if MessageHub.get_current_instance().get_info("epoch", 0) < 1:
            return
        self.told_of_epochs = True
        if any(isinstance(part, SelfBalance) for part in self.loss_cls.modules()):
            warnings.warn(
                "self-balance was not told that an epoch ended, so the weight of localisation "
                "stays as it was at the start: add custom_hooks = [dict(type='RankDetHook')]",
                stacklevel=2,
            )


@MODELS.register_module()
class RankDetRetinaHead(RankDetMixin, RetinaHead):
    """RetinaHead with a ranking loss; see `RankDetMixin`."""


@MODELS.register_module()
class RankDetATSSHead(RankDetMixin, ATSSHead):
    """ATSSHead with a ranking loss; see `RankDetMixin`."""


@MODELS.register_module()
class RankDetFoveaHead(RankDetMixin, FoveaHead):
    """FoveaHead with a ranking loss; see `RankDetMixin`."""


@MODELS.register_module()
class RankDetFCOSHead(RankDetMixin, FCOSHead):
    """FCOSHead with a ranking loss; see `RankDetMixin`."""


@MODELS.register_module()
class RankDetRPNHead(RankDetMixin, RPNHead):
    """RPNHead with a ranking loss; see `RankDetMixin`."""


@MODELS.register_module()
class RankDetShared2FCBBoxHead(RankDetMixin, Shared2FCBBoxHead):
    """Shared2FCBBoxHead with a ranking loss; see `RankDetMixin`."""


@MODELS.register_module()
class RankDetShared4Conv1FCBBoxHead(RankDetMixin, Shared4Conv1FCBBoxHead):
    """Shared4Conv1FCBBoxHead with a ranking loss; see `RankDetMixin`."""
