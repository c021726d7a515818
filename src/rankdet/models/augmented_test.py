"""Detection over several sizes of an image and over its mirror image, put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from rankdet.models.candidates import Candidates, clipped, has_area
from rankdet.ops.checks import require_positive, require_shape
from rankdet.structures import Detections


class Chooser(Protocol):
    """A post-processing in two steps, as `rankdet.models.postprocess.PostProcess` is."""

    def find(self, predictions: Any, sizes: Tensor, /) -> list[Candidates]:
        """Return the candidates of each image, in pixels of the images predicted on."""
        ...

    def choose(self, found: Candidates, /) -> Detections:
        """Return the detections among the candidates of one image."""
        ...


@dataclass(frozen=True)
class AugmentedTest:
    """Look at each image in several sizes, and mirrored, and remove duplicates at the end.

    The detector runs on a copy of the batch for every scale, and with ``flip`` on a mirrored one
    as well. Each image is resized and mirrored by itself, within its own size, so that a copy is
    what the image would have been without the others of its batch. The candidates of all copies
    are moved back and put together; duplicates of a class are then removed over all of them.
    Scores are not averaged: an object found at every scale is as sure as where it is found best.

    With ``scales=(1.0,)`` and no flip it is the plain post-processing, to the last bit.

    Args:
        scales: factors of the sides of the batch's images, each above 0; at least one.
        flip: whether there are mirrored copies.
        divisor: the sides of resized copies are padded to a multiple of this.
        fill: red, green and blue of that padding, in 0 to 255.

    Raises:
        ValueError: a setting is out of its range.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    divisor: int = 32
    fill: tuple[float, float, float] = (124.0, 116.0, 104.0)

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("scales must hold at least one number")
        for scale in self.scales:
            require_positive("each of scales", scale)
        require_positive("divisor", self.divisor)

    @torch.no_grad()
    def __call__(
        self, detector: Callable[..., Any], post_process: Chooser, images: Tensor, sizes: Tensor
    ) -> list[Detections]:
        """Return the detections of each image, best first, in pixels of the batch given.

        Args:
            detector: images [B, 3, H, W] -> predictions. One with the attribute ``wants_sizes``
                is given the sizes as well.
            post_process: see `Chooser`.
            images: [B, 3, H, W] uint8 or floating in 0 to 255, padded on the right and below.
            sizes: [B, 2] int64, height and width of each image within the padding, in pixels.

        Raises:
            ValueError: images or sizes have another shape.
        """
        require_shape("images", images, "B", 3, "H", "W")
        require_shape("sizes", sizes, len(images), 2)
        found: list[list[Candidates]] = [[] for _ in range(len(images))]
        for scale in self.scales:
            for mirrored in (False, True) if self.flip else (False,):
                copy = self._copy(images, sizes, scale, mirrored)
                known = (copy.sizes,) if getattr(detector, "wants_sizes", False) else ()
                predictions = detector(copy.images, *known)
                for image, each in enumerate(post_process.find(predictions, copy.sizes)):
                    found[image].append(_moved_back(each, sizes[image], copy, image))
        return [
            post_process.choose(
                Candidates(*(torch.cat(parts) for parts in zip(*of_image, strict=True)))
            )
            for of_image in found
        ]

    def _copy(self, images: Tensor, sizes: Tensor, scale: float, mirrored: bool) -> _Copy:
        """Return the batch with each of its images resized, and mirrored or not."""
        if scale == 1 and not mirrored:
            return _Copy(images, sizes, False)
        known = sizes.tolist()
        if scale == 1:
            resized, batch = known, images.clone()
        else:
            resized = [[max(1, round(side * scale)) for side in size] for size in known]
            rows, columns = (
                -(-max(size[axis] for size in resized) // self.divisor) * self.divisor
                for axis in (0, 1)
            )
            fill = torch.tensor(self.fill, device=images.device).round().to(images.dtype)
            batch = fill[:, None, None].repeat(len(images), 1, rows, columns)
        for place, image, (height, width), size in zip(batch, images, known, resized, strict=True):
            part = image[:, :height, :width]
            if size != [height, width]:
                part = _resized(part, size)
            place[:, : size[0], : size[1]] = part.flip(-1) if mirrored else part
        return _Copy(batch, torch.tensor(resized, device=sizes.device), mirrored)


class _Copy(NamedTuple):
    """A batch to look at; its images are in the places of the given ones."""

    images: Tensor
    sizes: Tensor
    mirrored: bool


def _moved_back(found: Candidates, size: Tensor, copy: _Copy, image: int) -> Candidates:
    """Return candidates found in a copy, in pixels of the given image of that height and width."""
    of_copy = copy.sizes[image]
    if not copy.mirrored and torch.equal(of_copy, size):
        return found
    boxes = found.boxes
    width = of_copy[1].to(boxes)
    if copy.mirrored:
        left, top, right, bottom = boxes.unbind(1)
        boxes = torch.stack([width - right, top, width - left, bottom], 1)
    factors = (size / of_copy).flip(0).repeat(2).to(boxes)  # of x and y, again
    # In floating point the last digit may lie beyond the border, or all that a box was wide.
    boxes = clipped(boxes * factors, size)
    keep = has_area(boxes)
    return Candidates(boxes[keep], found.scores[keep], found.labels[keep])


def _resized(image: Tensor, size: list[int]) -> Tensor:
    """Return an image [3, h, w] in another size, smoothed where it gets smaller."""
    # As floats: some versions of torch mistake one column of 8-bit colours for another layout.
    exact: Tensor = functional.resize(image.contiguous().float(), size, antialias=True)
    if not image.dtype.is_floating_point:
        exact = exact.round_().clamp_(0, 255)
    return exact.to(image.dtype)
