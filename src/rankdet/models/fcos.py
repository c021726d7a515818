"""FCOS: a feature pyramid and a dense head over points, which predict distances to four sides.

Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019. Which
points are positive is in `rankdet.assign.fcos`.
"""

from __future__ import annotations

from rankdet.models.backbones import Backbone
from rankdet.models.detector import Detector
from rankdet.models.fpn import FPN, Extra
from rankdet.models.heads import DenseHead, HeadNorm, Source
from rankdet.models.priors import PointGenerator
from rankdet.ops.box_codes import DistanceCoder
from rankdet.structures import BoxCoder


def fcos(
    classes: int,
    *,
    backbone: Backbone,
    channels: int = 256,
    levels: int = 5,
    extra: Extra = "p5",
    convs: int = 4,
    norm: HeadNorm | None = "group",
    centreness: bool = True,
    centreness_from: Source = "classes",
    level_scales: bool = True,
    class_prior: float = 0.01,
    coder: BoxCoder | None = None,
) -> Detector:
    """Return an FCOS detector with random neck and head.

    The branch "centreness" is for a criterion that trains it, `DenseCriterion` with
    ``centreness=True``. aLRP Loss and Rank & Sort Loss have no use for it: they need
    ``centreness=False``.

    The first version of the paper exponentiates distances in pixels, which is
    ``coder=LogDistanceCoder(unit="pixel", most=2.0**16)``.

    Args:
        classes: C.
        backbone: from `rankdet.models.backbones.build_backbone`.
        channels: number of channels of neck and head.
        levels: number of feature maps, 3 or more: 5 for strides 8 to 128.
        extra: what the first map above C5 is made from, ``"p5"`` or ``"c5"``.
        convs: number of convolutions in each tower of the head.
        norm: of the towers: ``"group"``, ``"batch"`` or None, see `DenseHead`.
        centreness: whether there is a branch "centreness"; the criterion must need it then.
        centreness_from: the tower it comes from, ``"classes"`` as in the paper or ``"boxes"``.
        level_scales: whether the codes of each level are multiplied by a learned number.
        class_prior: score of all classes and places at the start, in (0, 1).
        coder: what the codes mean; by default distances in strides, 0 where negative.

    Raises:
        ValueError: a number is out of its range.
    """
    neck = FPN(backbone.channels, channels, levels=levels, extra=extra)
    priors = PointGenerator(strides=neck.strides, sides=tuple(float(s) for s in neck.strides))
    head = DenseHead(
        channels,
        classes,
        priors.per_place,
        convs=convs,
        norm=norm,
        class_prior=class_prior,
        centreness=centreness,
        centreness_from=centreness_from,
        level_scales=level_scales,
        levels=levels,
    )
    coder = coder or DistanceCoder(unit="side", rectify=True)
    return Detector(backbone, neck, head, priors, coder)
