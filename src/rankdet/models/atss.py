"""ATSS: a RetinaNet with one anchor per place, whose positives are chosen by statistics.

Zhang, Chi, Yao, Lei, Li, "Bridging the Gap Between Anchor-based and Anchor-free Detection via
Adaptive Training Sample Selection", CVPR 2020. The choice itself is `rankdet.assign.atss`.
"""

from __future__ import annotations

from rankdet.models.backbones import Backbone
from rankdet.models.detector import Detector
from rankdet.models.fpn import FPN, Extra
from rankdet.models.heads import DenseHead, HeadNorm
from rankdet.models.priors import AnchorGenerator
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import BoxCoder


def atss(
    classes: int,
    *,
    backbone: Backbone,
    channels: int = 256,
    levels: int = 5,
    extra: Extra = "p5",
    convs: int = 4,
    norm: HeadNorm | None = "group",
    scale: float = 8.0,
    octave_scales: int = 1,
    ratios: tuple[float, ...] = (1.0,),
    centreness: bool = True,
    iou: bool = False,
    level_scales: bool = True,
    class_prior: float = 0.01,
    coder: BoxCoder | None = None,
) -> Detector:
    """Return an ATSS detector with random neck and head.

    With aLRP Loss its authors take ``scale=4``, ``octave_scales=2`` (3 for images of 800 pixels)
    and no centreness: a ranking loss has no use for that branch.

    Args:
        classes: C.
        backbone: from `rankdet.models.backbones.build_backbone`.
        channels: number of channels of neck and head.
        levels: number of feature maps, 3 or more: 5 for strides 8 to 128.
        extra: what the first map above C5 is made from, ``"p5"`` or ``"c5"``.
        convs: number of convolutions in each tower of the head.
        norm: of the towers: ``"group"``, ``"batch"`` or None, see `DenseHead`.
        scale: side of the smallest square anchor, in strides.
        octave_scales: number of anchor scales per octave.
        ratios: height / width of the anchors.
        centreness: whether there is a branch "centreness"; the criterion must need it then.
        iou: likewise a branch "iou", as in PAA.
        level_scales: whether the codes of each level are multiplied by a learned number.
        class_prior: score of all classes and places at the start, in (0, 1).
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
        centreness=centreness,
        iou=iou,
        level_scales=level_scales,
        levels=levels,
    )
    return Detector(backbone, neck, head, priors, coder or DeltaCoder())
