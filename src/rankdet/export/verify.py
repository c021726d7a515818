"""Whether an exported file finds what the model finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rankdet.structures import Detections

# Two boxes are the same if their corners differ by no more than this share of the longer side of
# the batch, and their scores by no more than this.
TOLERANCE = 1e-4
# What overlaps by just about the limit may be a duplicate in one arithmetic and not in another.
_OTHERS = 0.02


class Agreement(NamedTuple):
    """How well two lists of detections agree."""

    total: int
    """Detections on both sides together."""
    alone: int
    """Those without a counterpart on the other side."""
    box: float
    """Largest difference of a coordinate of counterparts, in pixels."""
    score: float
    """Largest difference of their scores."""

    @property
    def good(self) -> bool:
        """Whether the rest can be put down to rounding."""
        return self.alone <= _OTHERS * self.total


def compare(wanted: Sequence[Detections], found: Sequence[Detections], *, side: float) -> Agreement:
    """Return how well the detections of several images agree.

    Args:
        wanted: of each image.
        found: likewise.
        side: of the images, in pixels.
    """
    total = alone = 0
    worst_box = worst_score = 0.0
    for one, other in zip(wanted, found, strict=True):
        total += len(one.scores) + len(other.scores)
        boxes = (one.boxes[:, None] - other.boxes).abs().amax(-1)
        scores = (one.scores[:, None] - other.scores).abs()
        fits = (one.labels[:, None] == other.labels) & (boxes <= TOLERANCE * side)
        fits &= scores <= TOLERANCE
        left = torch.arange(len(one.scores))[fits.any(1)]
        alone += int((~fits.any(1)).sum() + (~fits.any(0)).sum())
        for index in left.tolist():
            near = torch.where(fits[index], boxes[index], torch.inf).argmin()
            worst_box = max(worst_box, float(boxes[index, near]))
            worst_score = max(worst_score, float(scores[index, near]))
    return Agreement(total, alone, worst_box, worst_score)


def as_detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> list[Detections]:
    """Return the outputs of a file, [B, D, ...], as detections of each image."""
    return [
        Detections(box[label >= 0], score[label >= 0], label[label >= 0])
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


def agreement(
    model: Callable[[Tensor, Tensor], list[Detections]],
    run: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    *,
    divisor: int,
) -> Agreement:
    """Run a file and the model on the same images, of sizes that neither was written with.

    Args:
        model: images and sizes to detections.
        run: images and sizes to the outputs of the file.
        divisor: of the sides of the images, in pixels.
    """
    parts = []
    for batch, height, width in ((1, 4 * divisor, 2 * divisor), (3, 2 * divisor, 3 * divisor)):
        images, sizes = some_images(batch, height, width)
        found = as_detections(*run(images, sizes))
        parts.append(compare(model(images, sizes), found, side=max(height, width)))
    one, other = parts
    return Agreement(
        one.total + other.total,
        one.alone + other.alone,
        max(one.box, other.box),
        max(one.score, other.score),
    )


def some_images(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return images of coloured spots, always the same, each padded a little more than the last.

    Returns:
        [B, 3, H, W] uint8, and [B, 2] int64.
    """
    random = torch.Generator().manual_seed(height + width)
    images = torch.zeros(batch, 3, height, width)
    for cells in (4, 16):
        coarse = torch.rand(batch, 3, height // cells, width // cells, generator=random)
        images += functional.interpolate(coarse, size=(height, width), mode="bilinear") * 127.5
    sizes = torch.tensor([[height - 5 * each, width - 9 * each] for each in range(batch)])
    return images.round().to(torch.uint8), sizes
