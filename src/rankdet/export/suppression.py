"""Removing duplicates within a graph of fixed shapes, by the operator that the runtime has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

Suppress = Callable[..., Tensor]
"""Boxes [B, K, 4], scores [B, K] (below 0: takes no part) and groups [B, K], and keyword-only
``of`` groups, ``most`` and ``nms_iou``, to [B, K] bool: which stay. Of each group ``most`` stay at
least, if there are so many."""

# Where boxes are put that take no part: all on one place, so that they cost one comparison each.
_ASIDE = (-2.0, -2.0, -1.0, -1.0)


def suppress_by_torchvision(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, of: int, most: int, nms_iou: float
) -> Tensor:
    """Remove duplicates with one call of torchvision's operator for all images and groups.

    Groups and images are kept apart by offsets, in float64 as in `rankdet.models.postprocess`.

    Args:
        boxes: [B, K, 4] xyxy in pixels, 0 or more.
        scores: [B, K] in [0, 1]; below 0 takes no part.
        groups: [B, K] int64, 0 .. ``of`` - 1: boxes of one are compared with each other.
        of: number of groups.
        most: not used; all stay that are no duplicates.
        nms_iou: in [0, 1).
    """
    del most
    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    apart = (images * of + groups).double() * (boxes.max().double() + 1)
    placed = boxes.double() + apart[..., None]
    takes_part = scores >= 0
    placed = torch.where(takes_part[..., None], placed, placed.new_tensor(_ASIDE))
    kept = nms(placed.flatten(0, 1), scores.double().flatten(), nms_iou)
    stays = torch.zeros_like(scores, dtype=torch.int64).flatten()
    stays = stays.scatter(0, kept, torch.ones_like(kept))
    return stays.view_as(scores).bool() & takes_part


@torch.library.custom_op("rankdet::suppress", mutates_args=())
def _suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, of: int, most: int, nms_iou: float
) -> Tensor:
    del of, most
    stays = torch.zeros_like(scores, dtype=torch.bool)
    for image, score in enumerate(scores):
        (part,) = torch.where(score >= 0)
        kept = batched_nms(
            boxes[image, part].double(), score[part].double(), groups[image, part], nms_iou
        )
        stays[image, part[kept]] = True
    return stays


@_suppress.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, of: int, most: int, nms_iou: float) -> Tensor:
    del boxes, groups, of, most, nms_iou
    return torch.empty_like(scores, dtype=torch.bool)


def suppress_by_symbol(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, of: int, most: int, nms_iou: float
) -> Tensor:
    """Remove duplicates by an operator that `onnx_operators` translates; see `Suppress`."""
    found: Tensor = torch.ops.rankdet.suppress(boxes, scores, groups, of, most, nms_iou)
    return found
