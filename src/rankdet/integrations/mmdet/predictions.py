"""From what a head of mmdetection has at hand to what a criterion of `rankdet` is asked about.

Who is positive, negative or left out is decided by mmdetection: by the assigner and the sampler
of the config, or by the head's own rule. All that a head has predicted of a batch becomes "one
image", so that one ranking spans all its levels and images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankdet.ops.box_codes import DistanceCoder, LogDistanceCoder
from rankdet.ops.few import few_nonzero
from rankdet.structures import (
    IGNORED,
    NEGATIVE,
    Assignment,
    BoxCoder,
    Predictions,
    Priors,
    Targets,
)

# Of a grid with one place that covers any image; no criterion looks at it.
_STRIDE = 2**20


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """What a head has predicted of a batch, and what it should have: N priors in any order."""

    logits: Tensor
    """[N, C]."""
    codes: Tensor
    """[N, 4] boxes as codes of ``coder``."""
    priors: Tensor
    """[N, 4] xyxy in pixels."""
    labels: Tensor
    """[N] int64: 0 .. C-1 for positives, C for all others."""
    counts: Tensor | None
    """[N] above 0 for those that the head samples; None: all."""
    goals: Tensor
    """[N, 4] what positives have to find: codes of ``coder``, or boxes if ``decoded``."""
    decoded: bool
    """Whether ``goals`` are boxes xyxy in pixels."""
    coder: BoxCoder
    """What codes mean."""


@dataclass(frozen=True, eq=False)
class _AssignedPriors(Priors):
    """The priors of a batch as those of one image, with what each of them has to find."""

    matched: Tensor
    """[1, N] int64, as in `Assignment`."""


@dataclass(frozen=True)
class AssignedByHead:
    """The assigner of a criterion within a head of mmdetection, which has decided before."""

    def __call__(self, priors: Priors, targets: Targets) -> Assignment:  # noqa: ARG002 - as any
        """Return the assignment that came with the priors.

        Raises:
            TypeError: these are no priors of a head with `RankDetMixin`.
        """
        if not isinstance(priors, _AssignedPriors):
            raise TypeError("AssignedByHead is for criteria within heads of mmdetection")
        return Assignment(priors.matched)


def predictions_and_targets(outputs: HeadOutputs) -> tuple[Predictions, Targets]:
    """Return all that a head has predicted of a batch as one image, and its objects.

    Each positive has an object of its own, so that only what the head knows of it is needed.

    Args:
        outputs: of a batch.

    Returns:
        Predictions [1, N, C] whose priors are for `AssignedByHead`, and P objects.
    """
    with torch.no_grad():
        positive = (outputs.labels >= 0) & (outputs.labels < outputs.logits.shape[1])
        matched = torch.full_like(outputs.labels, NEGATIVE)
        if outputs.counts is not None:
            left_out = outputs.counts <= 0
            positive &= ~left_out
            matched.masked_fill_(left_out, IGNORED)
        places = few_nonzero(positive)
        matched[places] = torch.arange(len(places), device=places.device)
        boxes = outputs.goals[places].float()
        if not outputs.decoded:
            boxes = outputs.coder.decode(outputs.priors[places], boxes)
        labels = outputs.labels[places]
        targets = Targets(
            boxes=boxes[None],
            labels=labels[None],
            crowd=torch.zeros_like(labels[None], dtype=torch.bool),
            sizes=torch.full((1, 2), _STRIDE, device=labels.device),
        )
    count = len(outputs.priors)
    priors = _AssignedPriors(outputs.priors, (count,), (_STRIDE,), matched[None])
    return Predictions(outputs.logits[None], outputs.codes[None], priors, outputs.coder), targets


@dataclass(frozen=True)
class CoderOfHead:
    """A box coder of mmdetection as one of `rankdet`; see `rankdet.structures.BoxCoder`.

    Args:
        coder: such as ``DeltaXYWHBBoxCoder``.
    """

    coder: Any

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """Return the codes of boxes relative to priors: [P, 4] each, xyxy in pixels."""
        codes: Tensor = self.coder.encode(priors, boxes)
        return codes

    def decode(self, priors: Tensor, codes: Tensor) -> Tensor:
        """Return the boxes that codes stand for: [P, 4] each, xyxy in pixels."""
        boxes: Tensor = self.coder.decode(priors, codes)
        return boxes

    def decode_relative(self, codes: Tensor) -> Tensor:
        """Return the boxes in the prior's own frame, [..., 4]: unit its sides, origin its centre.

        That is decoding for a prior of one pixel at the origin. It holds for coders whose codes
        mean the same for a small prior as for a large one.
        """
        flat = codes.reshape(-1, 4)
        prior = flat.new_tensor([-0.5, -0.5, 0.5, 0.5]).expand(len(flat), 4)
        return self.decode(prior, flat).view_as(codes)


def of_anchors(
    head: Any, logits: list[Tensor], codes: list[Tensor], ground_truth: tuple[Any, Any, Any]
) -> HeadOutputs:
    """Read a head that starts from anchors: RetinaHead, ATSSHead, RPNHead.

    Args:
        head: an ``AnchorHead`` of mmdetection.
        logits: for each level [B, K * C, H, W].
        codes: for each level [B, K * 4, H, W].
        ground_truth: instances, meta information and ignored instances of the images.

    Returns:
        N = B * A priors, level by level, within a level image by image.
    """
    instances, metas, ignored = ground_truth
    sizes = [level.shape[-2:] for level in logits]
    anchors, valid = head.get_anchors(sizes, metas, device=logits[0].device)
    images = len(metas)
    each = anchors[0]  # the images have the same anchors; ATSSHead's list is changed below
    found = head.get_targets(anchors, valid, instances, metas, batch_gt_instances_ignore=ignored)
    first = 1 if found[0][0].dim() == 3 else 0  # ATSSHead puts the anchors [B, A, 4] first
    labels, weights, goals = found[first : first + 3]
    return HeadOutputs(
        logits=_flat(logits, head.cls_out_channels),
        codes=_flat(codes, 4),
        priors=torch.cat([level.repeat(images, 1) for level in each]),
        labels=torch.cat([level.reshape(-1) for level in labels]),
        counts=torch.cat([level.reshape(-1) for level in weights]),
        goals=torch.cat([level.reshape(-1, 4) for level in goals]),
        decoded=head.reg_decoded_bbox,
        coder=CoderOfHead(head.bbox_coder),
    )


def of_points_fcos(
    head: Any, logits: list[Tensor], codes: list[Tensor], ground_truth: tuple[Any, Any, Any]
) -> HeadOutputs:
    """Read an FCOSHead: points that predict distances, in strides if normalised, else in pixels.

    Args: as in `of_anchors`, with one prior at each place.
    """
    instances, *_ = ground_truth
    points, priors = _points(head, logits, codes, [stride[0] for stride in _strides(head)])
    labels, goals = head.get_targets(points, instances)
    return HeadOutputs(
        logits=_flat(logits, head.cls_out_channels),
        codes=_flat(codes, 4),
        priors=priors,
        labels=torch.cat(labels),
        counts=None,
        goals=torch.cat(goals),
        decoded=False,
        coder=DistanceCoder(unit="side" if head.norm_on_bbox else "pixel"),
    )


def of_points_fovea(
    head: Any, logits: list[Tensor], codes: list[Tensor], ground_truth: tuple[Any, Any, Any]
) -> HeadOutputs:
    """Read a FoveaHead: points that predict logarithms of distances in base edges.

    Args: as in `of_anchors`, with one prior at each place.
    """
    instances, *_ = ground_truth
    points, priors = _points(head, logits, codes, list(head.base_edge_list))
    labels, goals = head.get_targets(instances, [level.shape[-2:] for level in logits], points)
    return HeadOutputs(
        logits=_flat(logits, head.cls_out_channels),
        codes=_flat(codes, 4),
        priors=priors,
        labels=labels,
        counts=None,
        goals=goals,
        decoded=False,
        coder=LogDistanceCoder(),
    )


def of_regions(head: Any, logits: Tensor, codes: Tensor, rois: Tensor, found: Any) -> HeadOutputs:
    """Read a head for regions.

    Args:
        head: a ``BBoxHead`` of mmdetection.
        logits: [R, C].
        codes: [R, 4 * C], or [R, 4] where all classes share a box.
        rois: [R, 5] index of the image, then xyxy in pixels.
        found: what ``head.get_targets`` returns: labels, weights and goals of all regions first.

    Returns:
        N = R priors, with the codes of the class that each positive has to find.
    """
    labels, weights, goals, *_ = found
    by_class = codes.view(len(codes), -1 if len(codes) else 1, 4)
    own = labels.clamp(max=by_class.shape[1] - 1)
    return HeadOutputs(
        logits=logits,
        codes=by_class[torch.arange(len(codes), device=codes.device), own],
        priors=rois[:, 1:].detach(),
        labels=labels,
        counts=weights,
        goals=goals,
        decoded=head.reg_decoded_bbox,
        coder=CoderOfHead(head.bbox_coder),
    )


def _flat(maps: list[Tensor], numbers: int) -> Tensor:
    """Return maps [B, K * numbers, H, W] of all levels as [N, numbers]."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, numbers) for level in maps])


def _points(
    head: Any, logits: list[Tensor], codes: list[Tensor], sides: list[float]
) -> tuple[list[Tensor], Tensor]:
    """Return the points of each level, and a square about each of them for every image: [N, 4]."""
    like = codes[0]
    points: list[Tensor] = head.prior_generator.grid_priors(
        [level.shape[-2:] for level in logits], dtype=like.dtype, device=like.device
    )
    images = len(like)
    squares = [
        torch.cat([level - side / 2, level + side / 2], 1).repeat(images, 1)
        for level, side in zip(points, sides, strict=True)
    ]
    return points, torch.cat(squares)


def _strides(head: Any) -> list[tuple[float, float]]:
    strides: list[tuple[float, float]] = head.prior_generator.strides
    return strides
