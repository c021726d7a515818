"""RetinaNet: a feature pyramid and a dense head over anchors of several shapes.

Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017.
"""

from __future__ import annotations

from rankdet.models.backbones import Backbone
from rankdet.models.detector import Detector
from rankdet.models.fpn import FPN, Extra
from rankdet.models.heads import DenseHead, HeadNorm
from rankdet.models.priors import AnchorGenerator
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import BoxCoder


def retinanet(
    classes: int,
    *,
    backbone: Backbone,
    channels: int = 256,
    levels: int = 5,
    extra: Extra = "c5",
    convs: int = 4,
    norm: HeadNorm | None = None,
    scale: float = 4.0,
    octave_scales: int = 2,
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    class_prior: float = 0.01,
    coder: BoxCoder | None = None,
) -> Detector:
    """Return a RetinaNet with random neck and head.

    The anchors are those of the aLRP Loss paper; RetinaNet itself has three octave scales.

    Args:
        classes: C.
        backbone: from `rankdet.models.backbones.build_backbone`.
        channels: number of channels of neck and head.
        levels: number of feature maps, 3 or more: 5 for strides 8 to 128.
        extra: what the first map above C5 is made from, ``"c5"`` or ``"p5"``.
        convs: number of convolutions in each tower of the head.
        norm: of the towers: ``"group"``, ``"batch"`` or None, see `DenseHead`.
        scale: side of the smallest square anchor, in strides.
        octave_scales: number of anchor scales per octave.
        ratios: height / width of the anchors.
        class_prior: score of all classes and places at the start, in (0, 1). Ranking losses
            leave scores low; from 0.1 they end up higher than from 0.01.
        coder: what the codes mean; by default deltas with standard deviations 0.1 and 0.2.

    Raises:
        ValueError: a number is out of its range.
    """
    neck = FPN(backbone.channels, channels, levels=levels, extra=extra)
    priors = AnchorGenerator(
        strides=neck.strides, scale=scale, octave_scales=octave_scales, ratios=ratios
    )
    head = DenseHead(
        channels,
        classes,
        priors.per_place,
        convs=convs,
        norm=norm,
        class_prior=class_prior,
        levels=levels,
    )
    return Detector(backbone, neck, head, priors, coder or DeltaCoder())
