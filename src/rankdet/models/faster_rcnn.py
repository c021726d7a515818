"""Faster R-CNN with a feature pyramid: a detector that looks twice.

Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
Networks", NeurIPS 2015.
Lin, Dollár, Girshick, He, Hariharan, Belongie, "Feature Pyramid Networks for Object Detection",
CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rankdet.models.backbones import Backbone
from rankdet.models.detector import dense_predictions
from rankdet.models.fpn import FPN
from rankdet.models.normalise import MEAN, STD, Normalise
from rankdet.models.priors import AnchorGenerator
from rankdet.models.proposals import ProposalHead, Propose, with_known
from rankdet.models.region_head import RegionHead, RegionPooling
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import BoxCoder, RegionPredictions, TwoStagePredictions

if TYPE_CHECKING:
    from rankdet.structures import Priors


class FasterRCNN(nn.Module):
    """From images to regions, and from these to predictions; knows no loss.

    Args:
        backbone: normalised images [B, 3, H, W] -> list of feature maps.
        neck: these -> feature maps for both heads, finest first.
        first: head on all maps: is there something, and where?
        priors: called with (height, width) of the batch, and ``device`` and ``dtype``; in the
            order of the first head.
        coder: what the codes of the first head mean.
        pooling: cuts the regions out of the maps.
        second: head on the regions: what is it, and where exactly?
        region_coder: what the codes of the second head mean.
        propose: makes regions of what the first head says, when in evaluation mode.
        propose_in_training: the same in training mode.
        adds_known: whether objects that the forward pass is told of become regions as well.
        mean: of the three channels, red, green, blue, in 0 to 255; subtracted.
        std: likewise, above zero; divided by.

    Raises:
        ValueError: mean or std are not three numbers, or std is not above zero.
    """

    # Unlike a detector of one stage, this one wants to be told where each image ends.
    wants_sizes = True

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        first: ProposalHead,
        priors: Callable[..., Priors],
        coder: BoxCoder,
        pooling: RegionPooling,
        second: RegionHead,
        region_coder: BoxCoder,
        *,
        propose: Propose,
        propose_in_training: Propose,
        adds_known: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean=mean, std=std)
        self.backbone = backbone
        self.neck = neck
        self.first = first
        self.priors = priors
        self.coder = coder
        self.pooling = pooling
        self.second = second
        self.region_coder = region_coder
        self.propose = propose
        self.propose_in_training = propose_in_training
        self.adds_known = adds_known

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.second.classes

    @property
    def branches(self) -> frozenset[str]:
        """Names of the branches of the second stage beyond logits and codes."""
        return self.second.branches

    def forward(
        self, images: Tensor, sizes: Tensor | None = None, known: Tensor | None = None
    ) -> TwoStagePredictions:
        """Return the predictions of a batch.

        Args:
            images: [B, 3, H, W] RGB, uint8 or floating in 0 to 255.
            sizes: [B, 2] int64, height and width of each image within the padded batch, in
                pixels: no region reaches beyond; by default H and W.
            known: [B, G, 4] floating, objects to add to the regions where ``adds_known``, xyxy in
                pixels; boxes without an area, such as padding, are left out.

        Raises:
            ValueError: shapes do not fit, or the priors do not fit the first head.
        """
        features = self.neck(self.backbone(self.normalise(images)))
        size = (images.shape[2], images.shape[3])
        if sizes is None:
            sizes = torch.tensor([size] * len(images), device=images.device)
        first = dense_predictions(
            self.first(features),
            self.priors,
            self.coder,
            size,
            dtype=self.normalise.dtype,
            head="the first head",
            shared=features if self.training else (),
        )
        propose = self.propose_in_training if self.training else self.propose
        regions = propose(first, sizes)
        if known is not None and self.adds_known:
            regions = with_known(regions, known, sizes)
        found = self.second(self.pooling(features, regions))
        second = RegionPredictions(
            regions,
            found.logits,
            found.codes,
            self.region_coder,
            found.branches,
            shared=(found.hidden,) if self.training else (),
        )
        return TwoStagePredictions(first, second)


def faster_rcnn(
    classes: int,
    *,
    backbone: Backbone,
    channels: int = 256,
    levels: int = 5,
    scale: float = 8.0,
    octave_scales: int = 1,
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    proposal_prior: float = 0.01,
    coder: BoxCoder | None = None,
    hidden: int = 1024,
    pooled_size: int = 7,
    background: bool = False,
    agnostic: bool = False,
    class_prior: float = 0.5,
    region_coder: BoxCoder | None = None,
    propose: Propose | None = None,
    propose_in_training: Propose | None = None,
    adds_known: bool = False,
) -> FasterRCNN:
    """Return a Faster R-CNN with random neck and heads.

    The defaults are those of the aLRP Loss paper. With cross-entropy (there and before) it has
    ``background=True, adds_known=True, coder=DeltaCoder((1, 1, 1, 1)), proposal_prior=0.5``.

    Args:
        classes: C.
        backbone: from `rankdet.models.backbones.build_backbone`, with ``stages=(2, 3, 4, 5)`` for
            strides from 4 on.
        channels: number of channels of neck and first head.
        levels: number of feature maps, as many as the backbone has or more: 5 for strides 4 to
            64. Regions are cut out of those made from maps of the backbone.
        scale: side of the smallest square anchor, in strides.
        octave_scales: number of anchor scales per octave.
        ratios: height / width of the anchors.
        proposal_prior: score of all anchors at the start, in (0, 1).
        coder: what the codes of the first stage mean; by default deltas with standard deviations
            0.1 and 0.2.
        hidden: width of the layers of the second head.
        pooled_size: cells along a side of a region.
        background: whether the scores are a softmax over the classes and "background" instead of
            a sigmoid of each class.
        agnostic: whether all classes share one box.
        class_prior: score of all classes at the start, in (0, 1); not used with background.
        region_coder: what the codes of the second stage mean; by default as in the first.
        propose: the regions looked at when testing; by default the best 1000 of 1000 per level.
        propose_in_training: likewise in training; by default the best 1000 of 2000 per level.
        adds_known: whether the objects of a training image become regions as well.

    Raises:
        ValueError: a number is out of its range.
    """
    strides = backbone.strides
    neck = FPN(backbone.channels, channels, levels=levels, extra="pool", finest_stride=strides[0])
    priors = AnchorGenerator(
        strides=neck.strides, scale=scale, octave_scales=octave_scales, ratios=ratios
    )
    second = RegionHead(
        channels,
        classes,
        size=pooled_size,
        hidden=hidden,
        background=background,
        agnostic=agnostic,
        class_prior=class_prior,
    )
    return FasterRCNN(
        backbone,
        neck,
        ProposalHead(channels, priors.per_place, prior=proposal_prior),
        priors,
        coder or DeltaCoder(),
        RegionPooling(strides, size=pooled_size, finest_side=14.0 * strides[0]),
        second,
        region_coder or DeltaCoder(),
        propose=propose or Propose(),
        propose_in_training=propose_in_training or Propose(candidates=2000),
        adds_known=adds_known,
    )
