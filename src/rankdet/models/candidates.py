"""What may be an object, before duplicates are removed: the best places, and their boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rankdet.structures import Predictions


class Candidates(NamedTuple):
    """What may be an object of one image, before duplicates are removed; K of them."""

    boxes: Tensor
    """[K, 4] xyxy in pixels, within the image, with an area."""
    scores: Tensor
    """[K] in [0, 1]."""
    labels: Tensor
    """[K] int64, class 0 .. C-1."""


class Best(NamedTuple):
    """The best pairs (place, class) of each level of B images; K of them in all."""

    orders: Tensor
    """[B, K] what they were ordered by, descending within a level."""
    places: Tensor
    """[B, K] int64, 0 .. A-1."""
    labels: Tensor
    """[B, K] int64, 0 .. C-1."""
    levels: Tensor
    """[K] int64, 0 for the finest."""


def best_of_levels(orders: Tensor, counts: tuple[int, ...], most: int) -> Best:
    """Return the best pairs (place, class) of each level.

    Args:
        orders: [B, A, C] the higher the better; -inf for what takes no part, which is chosen
            where there is nothing else. NaN would be the best of all.
        counts: places of each level, finest first; A in all.
        most: pairs per level and image, 1 or more.

    Gradient: none.
    """
    classes = orders.shape[2]
    values, pairs, levels, start = [], [], [], 0
    for number, level in enumerate(orders.split(counts, 1)):
        flat = level.flatten(1)
        best = flat.topk(min(most, flat.shape[1]))
        values.append(best.values)
        pairs.append(best.indices + start)
        levels.append(best.indices.new_full(best.indices.shape[1:], number))
        start += flat.shape[1]
    pair = torch.cat(pairs, 1)
    places = pair.div(classes, rounding_mode="floor")
    return Best(torch.cat(values, 1), places, pair - places * classes, torch.cat(levels))


def boxes_at(predictions: Predictions, places: Tensor, sizes: Tensor) -> Tensor:
    """Return the boxes predicted at some places, cut to their images.

    Args:
        predictions: of B images.
        places: [B, K] int64, 0 .. A-1.
        sizes: [B, 2] int64, height and width of the images in pixels.

    Returns:
        [B, K, 4] xyxy in pixels; NaN where a code is.
    """
    codes = predictions.codes.gather(1, places[..., None].expand(-1, -1, 4))
    return clipped(predictions.coder.decode(predictions.priors.boxes[places], codes), sizes)


def clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return boxes cut to their images; NaN stays NaN.

    Args:
        boxes: [..., K, 4] xyxy in pixels.
        sizes: [..., 2] int64, height and width of the images in pixels.
    """
    ends = sizes.flip(-1).to(boxes)  # x, y
    return torch.minimum(boxes.clamp(min=0), torch.cat([ends, ends], -1)[..., None, :])


def has_area(boxes: Tensor) -> Tensor:
    """Return which boxes [..., 4] xyxy are wider and higher than 0, and not NaN: [...] bool."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def by_image(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor) -> list[Candidates]:
    """Return the candidates of each image that are kept; [B, K, 4] and [B, K] of them."""
    return [Candidates(*each) for each in split_kept(keep, boxes, scores, labels)]


def split_kept(keep: Tensor, *rows: Tensor) -> list[tuple[Tensor, ...]]:
    """Return, for each image, those of its rows that are kept.

    A GPU is waited for twice, however many images there are: a choice by ``keep`` image by image,
    tensor by tensor, would wait each time.

    Args:
        keep: [B, K] bool.
        rows: [B, K, ...] each.

    Returns:
        B tuples of what each of ``rows`` keeps, [n, ...].
    """
    index = keep.flatten().nonzero().squeeze(1)
    counts = keep.sum(1).tolist()
    kept = (each.flatten(0, 1).index_select(0, index).split(counts) for each in rows)
    return list(zip(*kept, strict=True))
