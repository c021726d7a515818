"""How much boxes overlap, for any pairing of them."""

from __future__ import annotations

import torch
from torch import Tensor

# Unions below this (px²) count as this: boxes of no area have an IoU of 0, not 0 / 0.
SMALLEST_UNION = 1e-6


def area(boxes: Tensor) -> Tensor:
    """Return width times height of each box.

    Args:
        boxes: [..., 4] xyxy in pixels, floating.

    Returns:
        [...] px².

    Gradient: ordinary derivative.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Return the common area of boxes, element by element after broadcasting.

    All pairs of [G, 4] and [A, 4] are ``intersection(first[:, None], second)``. Coordinates are
    taken one by one, which is several times faster for many pairs than a last dimension of 2.

    Args:
        first: [..., 4] xyxy in pixels, floating.
        second: [..., 4] likewise.

    Returns:
        [...] px², 0 for boxes that do not overlap.

    Gradient: none.
    """
    ax1, ay1, ax2, ay2 = first.detach().unbind(-1)
    bx1, by1, bx2, by2 = second.detach().unbind(-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    return width.mul_(height)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes, element by element after broadcasting.

    Args:
        first: [..., 4] xyxy in pixels, floating.
        second: [..., 4] likewise.

    Returns:
        [...] in [0, 1]; 0 where neither box has an area.

    Gradient: none.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 8.0]])
        >>> iou(boxes[:, None], boxes)
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    inter = intersection(first, second)
    union = (area(first.detach()) + area(second.detach())).sub_(inter).clamp_(min=SMALLEST_UNION)
    return inter.div_(union)
