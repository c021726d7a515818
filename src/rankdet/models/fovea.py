"""FoveaBox: a feature pyramid and a dense head over points, which predict logarithms of distances.

Kong, Sun, Liu, Jiang, Li, Shi, "FoveaBox: Beyound Anchor-Based Object Detection", IEEE Transactions
on Image Processing, 2020. Which points are positive is in `rankdet.assign.fovea`.
"""

from __future__ import annotations

from rankdet.models.backbones import Backbone
from rankdet.models.detector import Detector
from rankdet.models.fpn import FPN, Extra
from rankdet.models.heads import DenseHead, HeadNorm
from rankdet.models.priors import PointGenerator
from rankdet.ops.box_codes import LogDistanceCoder
from rankdet.structures import BoxCoder


def fovea(
    classes: int,
    *,
    backbone: Backbone,
    channels: int = 256,
    levels: int = 5,
    extra: Extra = "c5",
    convs: int = 4,
    norm: HeadNorm | None = None,
    base_edges: tuple[float, ...] | None = None,
    class_prior: float = 0.01,
    coder: BoxCoder | None = None,
) -> Detector:
    """Return a FoveaBox detector with random neck and head; without the alignment of features.

    Args:
        classes: C.
        backbone: from `rankdet.models.backbones.build_backbone`.
        channels: number of channels of neck and head.
        levels: number of feature maps, 3 or more: 5 for strides 8 to 128.
        extra: what the first map above C5 is made from, ``"c5"`` or ``"p5"``.
        convs: number of convolutions in each tower of the head.
        norm: of the towers: ``"group"``, ``"batch"`` or None, see `DenseHead`.
        base_edges: unit of the distances of each level in pixels, above 0; by default twice the
            stride, so 16, 32, 64, 128 and 256 for 5 levels.
        class_prior: score of all classes and places at the start, in (0, 1).
        coder: what the codes mean; by default logarithms of distances in base edges.

    Raises:
        ValueError: a number is out of its range.
    """
    neck = FPN(backbone.channels, channels, levels=levels, extra=extra)
    if base_edges is None:
        base_edges = tuple(2.0 * stride for stride in neck.strides)
    elif len(base_edges) != levels or min(base_edges) <= 0:
        raise ValueError(
            f"base_edges must be one number above zero for each of the {levels} levels, "
            f"got {base_edges}"
        )
    priors = PointGenerator(strides=neck.strides, sides=base_edges)
    head = DenseHead(
        channels,
        classes,
        priors.per_place,
        convs=convs,
        norm=norm,
        class_prior=class_prior,
        levels=levels,
    )
    return Detector(backbone, neck, head, priors, coder or LogDistanceCoder())
