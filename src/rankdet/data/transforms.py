"""What happens to an image between the disk and the network: augmentation, and resizing.

All training transforms take and return the same things. Each first chooses a window of the image
(which may reach beyond it), then renders that window once at its final size: no canvas larger than
the result is ever filled. Random choices come from torch's global generator, so the caller decides
what they depend on.

Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, "SSD: Single Shot MultiBox Detector", ECCV 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

MEAN_COLOUR = (124, 116, 104)
"""RGB of ImageNet's mean, rounded; after normalisation about 0, as is fitting for padding."""

# A side of an object or crowd region that is shorter than this, in pixels, cannot be learnt from.
_MIN_SIDE = 1.0


class Example(NamedTuple):
    """An image with its G objects, ready for the network."""

    image: Tensor
    """[3, H, W] uint8, RGB."""
    boxes: Tensor
    """[G, 4] float32 xyxy in pixels, within ``size``, no side shorter than a pixel."""
    labels: Tensor
    """[G] int64."""
    crowd: Tensor
    """[G] bool."""
    size: tuple[int, int]
    """Height and width of the part that shows the image; what lies right and below is padding."""


class Transform(Protocol):
    """What a training set does to each of its images."""

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, crowd: Tensor) -> Example:
        """Transform one image.

        Args:
            image: [3, H, W] uint8, RGB, in any memory layout (rows of RGB pixels are fastest).
            boxes: [G, 4] float32 xyxy in pixels, within the image.
            labels: [G] int64.
            crowd: [G] bool.

        Returns:
            The new image and the objects that are left; crowd regions stay crowd regions.
        """
        ...


@dataclass(frozen=True)
class SSDAugment:
    """Strong augmentation as in SSD, with the settings that aLRP's results were published with.

    In half of the cases the image is put on a canvas of the mean colour, 1 to 4 times as wide and
    high. Then a crop: one of the minima 0.1, 0.3, 0.5, 0.7, 0.9 is drawn, or "any crop", or "no
    crop", all equally likely; sides are 0.3 to 1 of the image's, the aspect ratio 1/2 to 2, and
    every object's IoU with the crop must reach the minimum; 50 attempts, then another draw. The
    result is squeezed to a square, its colours are distorted, and half of the time it is flipped.
    Objects whose centre lies in the crop stay, clipped; crowd regions stay where any of them shows.

    Colours are distorted after resizing rather than before, and the canvas is left alone.

    Args:
        size: side of the result in pixels, at least 1.
        fill: RGB of the canvas.

    Raises:
        ValueError: size is below 1.
    """

    size: int
    fill: tuple[int, int, int] = MEAN_COLOUR
    _distort: v2.RandomPhotometricDistort = field(
        default_factory=v2.RandomPhotometricDistort, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _require_size(self.size)

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, crowd: Tensor) -> Example:
        """See `Transform`."""
        height, width = image.shape[-2:]
        window = _zoom_out(height, width) if _uniform(0, 1) < 0.5 else (0, 0, height, width)
        window = _crop(window, boxes[~crowd].double())
        patch, place = _cut(image, window, (self.size, self.size))
        if patch.numel():
            patch = self._distort(patch)
        result = _paste(patch, place, (self.size, self.size), self.fill)
        top, left, bottom, right = window
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        keep = crowd | ((x > left) & (x < right) & (y > top) & (y < bottom))
        moved = _move(boxes[keep], window, (self.size, self.size))
        return _finish(result, moved, labels[keep], crowd[keep], (self.size, self.size), flip=0.5)


@dataclass(frozen=True)
class LightAugment:
    """Mild and cheap augmentation for small data: scale, crop, colours, flips.

    The image is scaled so that its longer side is ``size`` times a random factor, its aspect ratio
    changed a little; a random window of at most ``size`` x ``size`` pixels of that is taken and
    laid into the upper left corner of the result. Each channel is brightened and its contrast
    changed, together and a little by itself, and saturation is changed. An object stays if at least
    ``min_visible`` of its area does; crowd regions stay where any of them shows.

    Args:
        size: side of the result in pixels, at least 1.
        scale: smallest and largest factor, above 0; evenly spread on a logarithmic scale.
        stretch: largest change of width relative to height, 1 or more; 1.1 is 10 % either way.
        colour: strength of the change of colours, 0 .. 1; 0 leaves them alone.
        horizontal_flip: mirror half of the images left to right.
        vertical_flip: mirror half of the images top to bottom.
        min_visible: share of an object's area, 0 .. 1.
        fill: RGB of the padding.

    Raises:
        ValueError: a setting is out of its range.
    """

    size: int
    scale: tuple[float, float] = (0.7, 1.5)
    stretch: float = 1.1
    colour: float = 0.2
    horizontal_flip: bool = True
    vertical_flip: bool = False
    min_visible: float = 0.3
    fill: tuple[int, int, int] = MEAN_COLOUR

    def __post_init__(self) -> None:
        _require_size(self.size)
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale must be two numbers 0 < low <= high, got {self.scale}")
        if not 1 <= self.stretch < math.inf:
            raise ValueError(f"stretch must be 1 or more, got {self.stretch}")
        for name in ("colour", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, crowd: Tensor) -> Example:
        """See `Transform`."""
        height, width = image.shape[-2:]
        factor = math.exp(_uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        wide = math.exp(_uniform(-math.log(self.stretch), math.log(self.stretch)) / 2)
        fit = self.size / max(height, width) * factor
        top, bottom, tall = self._window(height, fit / wide)
        left, right, broad = self._window(width, fit * wide)
        window, size = (top, left, bottom, right), (tall, broad)
        patch, _ = _cut(image, window, size)
        if self.colour:
            patch = _recolour(patch, self.colour)
        patch = _paste(patch, (0, 0, tall, broad), (self.size, self.size), self.fill)
        moved = _move(boxes, window, size)
        scale_x, scale_y = broad / (right - left), tall / (bottom - top)
        visible = _area(moved) >= self.min_visible * scale_x * scale_y * _area(boxes)
        keep = crowd | visible
        return _finish(
            patch,
            moved[keep],
            labels[keep],
            crowd[keep],
            size,
            flip=0.5 * self.horizontal_flip,
            vertical=0.5 * self.vertical_flip,
        )

    def _window(self, length: int, scale: float) -> tuple[int, int, int]:
        """Start and end of the window along one side of the image, and its length as rendered."""
        taken = min(length, max(1, round(self.size / scale)))
        start = int(_uniform(0, length - taken + 1))
        start = min(start, length - taken)
        return start, start + taken, min(self.size, max(1, round(taken * scale)))


@dataclass(frozen=True)
class PlainResize:
    """No augmentation but, where wanted, a flip: the image fitted into a square.

    Args:
        size: side of the result in pixels, at least 1.
        keep_aspect: scale the longer side to ``size`` and pad on the right or below; otherwise
            squeeze to the square.
        flip: mirror half of the images left to right.
        fill: RGB of the padding.

    Raises:
        ValueError: size is below 1.
    """

    size: int
    keep_aspect: bool = True
    flip: bool = False
    fill: tuple[int, int, int] = MEAN_COLOUR

    def __post_init__(self) -> None:
        _require_size(self.size)

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, crowd: Tensor) -> Example:
        """See `Transform`."""
        height, width = image.shape[-2:]
        size = (self.size, self.size)
        if self.keep_aspect:
            size = _fitted(height, width, self.size / max(height, width))
        patch, place = _cut(image, (0, 0, height, width), size)
        patch = _paste(patch, place, (self.size, self.size), self.fill)
        moved = _move(boxes, (0, 0, height, width), size)
        return _finish(patch, moved, labels, crowd, size, flip=0.5 * self.flip)


@dataclass(frozen=True)
class TestResize:
    """Resizing at test time: aspect ratio kept, nothing random.

    Args:
        shorter: length of the shorter side in pixels, at least 1 ...
        longer: ... unless the longer side would exceed this, which then decides; at least
            ``shorter``.

    Raises:
        ValueError: a length is out of its range.
    """

    __test__ = False  # pytest takes classes of this name for tests

    shorter: int
    longer: int

    def __post_init__(self) -> None:
        if not 1 <= self.shorter <= self.longer:
            raise ValueError(
                f"1 <= shorter <= longer must hold, got {self.shorter} and {self.longer}"
            )

    def __call__(self, image: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Resize one image.

        Args:
            image: [3, H, W] uint8.

        Returns:
            The image [3, h, w] uint8, and the scale factors w / W and h / H: boxes found in it,
            divided by them, are in pixels of the original.
        """
        height, width = image.shape[-2:]
        scale = min(self.shorter / min(height, width), self.longer / max(height, width))
        new_height, new_width = _fitted(height, width, scale)
        resized, _ = _cut(image, (0, 0, height, width), (new_height, new_width))
        return resized, (new_width / width, new_height / height)


Window = tuple[int, int, int, int]  # top, left, bottom, right in pixels of the image


def _zoom_out(height: int, width: int) -> Window:
    """A canvas of up to 4 times the sides, the image somewhere on it."""
    ratio = _uniform(1, 4)
    tall, wide = int(height * ratio), int(width * ratio)
    top, left = -int(_uniform(0, tall - height)), -int(_uniform(0, wide - width))
    return top, left, top + tall, left + wide


def _crop(window: Window, boxes: Tensor) -> Window:
    """A part of a window with enough of the objects in it; boxes [G, 4] in float64."""
    top, left, bottom, right = window
    height, width = bottom - top, right - left
    while True:
        minimum = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)[int(torch.randint(7, ()))]
        if minimum is None:
            return window
        # 50 attempts at once; the first that will do is taken.
        draw = torch.rand(50, 4, dtype=torch.float64)
        sides = (0.3 + 0.7 * draw[:, :2]) * torch.tensor([width, height])
        aspect = sides[:, 1] / sides[:, 0]
        low = (draw[:, 2:] * (torch.tensor([width, height]) - sides)).floor()
        crops = torch.cat([low, (low + sides).floor()], 1) + torch.tensor([left, top, left, top])
        good = (aspect >= 0.5) & (aspect <= 2) & (crops[:, 2:] > crops[:, :2]).all(1)
        if boxes.shape[0]:
            inner = torch.minimum(crops[:, None, 2:], boxes[None, :, 2:])
            inner = (inner - torch.maximum(crops[:, None, :2], boxes[None, :, :2])).clamp(min=0)
            overlap = inner.prod(-1)
            union = _area(crops)[:, None] + _area(boxes)[None] - overlap
            good &= (overlap >= minimum * union).all(1)
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            within = (centre > crops[:, None, :2]) & (centre < crops[:, None, 2:])
            good &= within.all(-1).any(1)
        if good.any():
            x0, y0, x1, y1 = (int(side) for side in crops[int(good.byte().argmax())].tolist())
            return y0, x0, y1, x1


def _cut(image: Tensor, window: Window, size: tuple[int, int]) -> tuple[Tensor, Window]:
    """Render what a window shows of the image, as large as the window is ``size``.

    Returns:
        The part [3, h, w], and its place in the rendered window. No pixel where nothing shows.
    """
    top, left, bottom, right = window
    height, width = image.shape[-2:]
    y0, y1 = max(top, 0), min(bottom, height)
    x0, x1 = max(left, 0), min(right, width)
    if y0 >= y1 or x0 >= x1:
        return image[:, :0, :0], (0, 0, 0, 0)
    scale_y, scale_x = size[0] / (bottom - top), size[1] / (right - left)
    # At least one pixel, wherever something shows.
    place_y = min(round((y0 - top) * scale_y), size[0] - 1)
    place_x = min(round((x0 - left) * scale_x), size[1] - 1)
    end_y = max(round((y1 - top) * scale_y), place_y + 1)
    end_x = max(round((x1 - left) * scale_x), place_x + 1)
    part = image[:, y0:y1, x0:x1]
    wanted = [end_y - place_y, end_x - place_x]
    if list(part.shape[-2:]) != wanted:
        part = _resize(part, wanted)
    return part, (place_y, place_x, end_y, end_x)


def _resize(image: Tensor, size: list[int]) -> Tensor:
    if size[1] > 1:
        resized: Tensor = functional.resize(image, size, antialias=True)
        return resized
    # torch (2.11 to 2.15 at least) takes one column of 8-bit colours for another memory layout: the
    # result is wrong, or an internal assertion fails.
    exact: Tensor = functional.resize(image.contiguous().float(), size, antialias=True)
    return exact.round_().clamp_(0, 255).to(torch.uint8)


def _paste(
    part: Tensor, place: Window, size: tuple[int, int], fill: tuple[int, int, int]
) -> Tensor:
    """Lay a part on a canvas of one colour: [3, *size], contiguous."""
    canvas = torch.empty((3, *size), dtype=torch.uint8)
    top, left, bottom, right = place
    if (top, left, bottom, right) != (0, 0, *size):
        canvas.copy_(torch.tensor(fill, dtype=torch.uint8)[:, None, None].expand_as(canvas))
    canvas[:, top:bottom, left:right] = part
    return canvas


def _move(boxes: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Boxes of the image in pixels of the rendered window, clipped to it: [G, 4] float32."""
    top, left, bottom, right = window
    scale_x, scale_y = size[1] / (right - left), size[0] / (bottom - top)
    moved = boxes.double() - torch.tensor([left, top, left, top])
    moved *= torch.tensor([scale_x, scale_y, scale_x, scale_y], dtype=torch.float64)
    limit = torch.tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(moved.clamp(min=0), limit).float()


def _finish(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    crowd: Tensor,
    size: tuple[int, int],
    *,
    flip: float,
    vertical: float = 0.0,
) -> Example:
    """Drop what has become too small, and flip with these probabilities."""
    keep = (boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE).all(1)
    boxes, labels, crowd = boxes[keep], labels[keep], crowd[keep]
    height, width = size
    # Only the part that shows the image is mirrored: the padding stays right and below.
    if flip and _uniform(0, 1) < flip:
        image[:, :height, :width] = image[:, :height, :width].flip(-1)
        boxes = torch.stack(
            (width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1
        )
    if vertical and _uniform(0, 1) < vertical:
        image[:, :height, :width] = image[:, :height, :width].flip(-2)
        boxes = torch.stack(
            (boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]), dim=1
        )
    return Example(image, boxes, labels, crowd, size)


def _recolour(image: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation: one linear map of each pixel's colour."""
    draw = (2 * torch.rand(9) - 1) * strength
    contrast, saturation = 1 + float(draw[0]), 1 + float(draw[1])
    # A third of the change is each channel's own: the tint of lamps and stains.
    gains = contrast * (1 + draw[3:6] / 3)
    shifts = 128 * (1 - gains) + 128 * (float(draw[2]) + draw[6:9] / 3) / 2
    # Products and sums are rounded one by one, never fused: the same result in any thread.
    colours = image.contiguous().float()
    red, green, blue = colours.unbind(0)
    grey = red * 0.299 + green * 0.587 + blue * 0.114
    colours = colours * saturation
    colours += grey * (1 - saturation)
    colours *= gains[:, None, None]
    colours += shifts[:, None, None]
    return colours.clamp_(0, 255).round_().to(torch.uint8)


def _fitted(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), dtype=torch.float64))


def _require_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
