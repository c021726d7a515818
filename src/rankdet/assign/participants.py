"""Who takes part in an assignment, and how a batch is cut so that its pairs fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rankdet.ops.boxes import area, intersection
from rankdet.ops.checks import require_floating, require_shape
from rankdet.structures import IGNORED, NEGATIVE, Priors, Targets

# Pairs (ground truth, prior) looked at together on a CPU: 8 MiB for each float32 tensor of them.
# What is larger leaves the cache, and its memory is fetched anew from the system each time.
_PAIRS = 2**21
# Elsewhere, where every operation has its price: 64 MiB.
_PAIRS_ELSEWHERE = 2**24


class Participants(NamedTuple):
    """What an assigner works on: images of one batch, B of them."""

    priors: Tensor
    """[A, 4] xyxy in pixels, float32 or float64."""
    boxes: Tensor
    """[B, G, 4] of the same dtype."""
    is_object: Tensor
    """[B, G] bool: boxes of objects to be found; the others are padding or crowd regions."""
    inside: Tensor
    """[B, A] bool: priors on the image, not on its padding."""
    crowded: Tensor | None
    """[B, A] bool: priors on a crowd region; None if there are none."""


def assign_in_slices(
    assign: Callable[[Participants], Tensor],
    priors: Priors,
    targets: Targets,
    crowd_overlap: float | None,
) -> Tensor:
    """Assign as many images at a time as memory allows; usually all of them.

    Args:
        assign: returns matched [b, A] of b images that have G >= 1 and A >= 1.
        priors: A of them.
        targets: of B images.
        crowd_overlap: a prior is on a crowd region if more than this part of its area is; None
            if crowd regions have no effect.

    Returns:
        matched, [B, A] int64.

    Raises:
        TypeError: boxes of priors or targets are not floating point.
        ValueError: the shapes of priors or targets do not fit together.
    """
    require_floating("priors.boxes", priors.boxes)
    require_shape("priors.boxes", priors.boxes, "A", 4)
    require_floating("targets.boxes", targets.boxes)
    require_shape("targets.boxes", targets.boxes, "B", "G", 4)
    batch, objects = targets.boxes.shape[:2]
    require_shape("targets.labels", targets.labels, batch, objects)
    require_shape("targets.crowd", targets.crowd, batch, objects)
    require_shape("targets.sizes", targets.sizes, batch, 2)
    total = len(priors.boxes)
    if objects == 0 or total == 0 or batch == 0:
        matched = targets.labels.new_full((batch, total), NEGATIVE)
        return without(matched, priors.inside(targets.sizes), None)

    dtype = torch.promote_types(priors.boxes.dtype, targets.boxes.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    pairs = _PAIRS if priors.boxes.is_cpu else _PAIRS_ELSEWHERE
    at_once = max(1, pairs // (objects * total))
    if batch <= at_once:
        return assign(_participants(priors, targets, dtype, crowd_overlap))
    parts = []
    for start in range(0, batch, at_once):
        some = slice(start, start + at_once)
        images = Targets(
            targets.boxes[some], targets.labels[some], targets.crowd[some], targets.sizes[some]
        )
        parts.append(assign(_participants(priors, images, dtype, crowd_overlap)))
    return torch.cat(parts)


def without(matched: Tensor, inside: Tensor, crowded: Tensor | None) -> Tensor:
    """Return matched, [B, A], with negatives off the image or on a crowd region ignored."""
    takes_part = inside if crowded is None else inside & ~crowded
    return matched.masked_fill_((matched < 0) & ~takes_part, IGNORED)


def _participants(
    priors: Priors, targets: Targets, dtype: torch.dtype, crowd_overlap: float | None
) -> Participants:
    prior_boxes, boxes = priors.boxes.to(dtype), targets.boxes.to(dtype)
    return Participants(
        priors=prior_boxes,
        boxes=boxes,
        is_object=targets.is_object,
        inside=priors.inside(targets.sizes),
        crowded=_on_crowd(prior_boxes, boxes, targets, crowd_overlap),
    )


def _on_crowd(
    priors: Tensor, boxes: Tensor, targets: Targets, crowd_overlap: float | None
) -> Tensor | None:
    """Return which priors have more than the given part of their area on one crowd region."""
    if crowd_overlap is None:
        return None
    # Most batches have no crowd region. A look costs nothing on the CPU, but elsewhere makes the
    # host wait, which is worse than the work.
    if targets.crowd.is_cpu and not targets.crowd.any():
        return None
    common = intersection(boxes[:, :, None], priors).mul_(targets.is_crowd[..., None])
    return common.amax(1) > area(priors) * crowd_overlap
