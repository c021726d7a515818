"""Pictures of images with boxes: one by one, and many on a sheet."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

# Bright, and told apart by hue and lightness; further classes follow around the colour circle.
_COLOURS = (
    (255, 214, 10),
    (64, 200, 255),
    (255, 105, 97),
    (120, 230, 110),
    (255, 149, 255),
    (255, 159, 64),
    (150, 165, 255),
    (0, 225, 190),
    (235, 235, 235),
    (220, 160, 120),
)
_GOLDEN = (math.sqrt(5) - 1) / 2
_BACKGROUND = (32, 33, 36)
_MARGIN = 8
# With more boxes than this, labels would hide the objects they stand for.
_MANY = 12

_Rectangle = tuple[float, float, float, float]


def draw(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | None,
    classes: Sequence[str],
    *,
    smallest: int = 640,
) -> Image.Image:
    """Return a picture of an image with its boxes, each labelled with class and score.

    Lines and letters grow with the picture. A small image is enlarged first, so that its labels
    can be read; pixels stay visible as squares where it is enlarged four times or more. A label
    that finds no free place near its box is left out, and so is one that is larger than its box
    where there are many: the colour still tells the class.

    Args:
        image: [H, W, 3] uint8, RGB.
        boxes: [D, 4], xyxy in pixels; those that are not finite are not drawn.
        labels: [D], whole numbers, class 0 .. C-1.
        scores: [D] in [0, 1], or None for ground truth; the best are drawn on top.
        classes: the C names.
        smallest: enlarge by a whole number until the longer side has at least so many pixels.

    Returns:
        The picture, RGB; as large as the image, or a whole number of times as large.

    Raises:
        ValueError: A shape does not fit, or a label is not in 0 .. C-1.
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    kinds = np.asarray(labels, np.int64).reshape(-1)
    ranks = None if scores is None else np.asarray(scores, np.float64).reshape(-1)
    _check(image, corners, kinds, ranks, classes)
    factor = max(1, math.ceil(smallest / max(image.shape[:2])))
    picture = Image.fromarray(image)
    if factor > 1:
        way = Image.Resampling.NEAREST if factor >= 4 else Image.Resampling.BICUBIC
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, way)
    longer = max(picture.size)
    line = max(1, round(longer / 300))
    font = _font(max(13, round(longer / 48)))
    pen = ImageDraw.Draw(picture, "RGBA")
    shown = np.flatnonzero(np.isfinite(corners).all(axis=1))
    if ranks is not None:
        shown = shown[np.argsort(-ranks[shown], kind="stable")]
    frames = {int(place): _frame(corners[place] * factor, picture.size) for place in shown}
    for place in reversed(list(frames)):
        _outline(pen, frames[place], _colour(int(kinds[place])), line)
    taken: list[_Rectangle] = []
    for place, frame in frames.items():
        kind = int(kinds[place])
        text = classes[kind] if ranks is None else f"{classes[kind]} {ranks[place]:.2f}"
        crowded = len(frames) > _MANY
        _label(pen, text, frame, _colour(kind), font, picture.size, taken, crowded)
    return picture


def sheet(pictures: Iterable[Image.Image], columns: int = 4, *, cell: int = 480) -> Image.Image:
    """Return a grid of pictures, each fitted into a square cell without distortion.

    Args:
        pictures: at least one; row by row.
        columns: in the grid, at least 1; fewer are used for fewer pictures.
        cell: side of a cell in pixels. Smaller pictures are not enlarged.

    Returns:
        The grid, RGB. Rows are as high as their highest picture.

    Raises:
        ValueError: There is no picture, or a setting is below 1.
    """
    fitted = [_fit(picture, cell) for picture in pictures]
    if not fitted or columns < 1 or cell < 1:
        raise ValueError(
            f"need a picture, columns and cell of at least 1; got {len(fitted)} pictures,"
            f" columns={columns}, cell={cell}"
        )
    columns = min(columns, len(fitted))
    rows = [fitted[start : start + columns] for start in range(0, len(fitted), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    width = max(picture.width for picture in fitted)
    size = (
        columns * (width + _MARGIN) + _MARGIN,
        sum(heights) + (len(rows) + 1) * _MARGIN,
    )
    grid = Image.new("RGB", size, _BACKGROUND)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            left = _MARGIN + column * (width + _MARGIN)
            x = left + (width - picture.width) // 2
            grid.paste(picture, (x, top + (height - picture.height) // 2))
        top += height + _MARGIN
    return grid


def _check(
    image: NDArray[np.uint8],
    corners: NDArray[np.float64],
    kinds: NDArray[np.int64],
    ranks: NDArray[np.float64] | None,
    classes: Sequence[str],
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be [H, W, 3] uint8, got {image.shape} {image.dtype}")
    if len(kinds) != len(corners) or (ranks is not None and len(ranks) != len(corners)):
        given = "" if ranks is None else f" and {len(ranks)} scores"
        raise ValueError(f"{len(corners)} boxes do not go with {len(kinds)} labels{given}")
    if len(kinds) and (kinds.min() < 0 or kinds.max() >= len(classes)):
        raise ValueError(
            f"labels must be in 0 .. {len(classes) - 1}, got {kinds.min()} .. {kinds.max()}"
        )


def _frame(corners: NDArray[np.float64], size: tuple[int, int]) -> _Rectangle:
    """Return the first and last pixel of a box, within the picture."""
    x1, y1, x2, y2 = np.clip(corners, 0, np.tile(size, 2)).tolist()
    right, bottom = min(max(x1, x2 - 1), size[0] - 1), min(max(y1, y2 - 1), size[1] - 1)
    return min(x1, right), min(y1, bottom), right, bottom


def _outline(pen: Any, frame: _Rectangle, colour: tuple[int, int, int], line: int) -> None:
    x1, y1, x2, y2 = frame
    # A dark rim keeps the line visible on a ground of its own colour.
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0, 110), width=line + 2)
    pen.rectangle(frame, outline=(*colour, 255), width=line)


def _label(
    pen: Any,
    text: str,
    frame: _Rectangle,
    colour: tuple[int, int, int],
    font: Any,
    size: tuple[int, int],
    taken: list[_Rectangle],
    crowded: bool,
) -> None:
    left, top, right, bottom = font.getbbox(text)
    pad = max(2, round((bottom - top) / 6))
    ascent, descent = font.getmetrics()
    width, height = right - left + 2 * pad, ascent + descent + pad
    x1, y1, x2, y2 = frame
    if crowded and width * height > (x2 - x1) * (y2 - y1):
        return
    # Above the box, below it, inside its corners, beside it: the first place that is free.
    places = (
        (x1, y1 - height),
        (x2 - width, y1 - height),
        (x1, y2 + 1),
        (x1, y1),
        (x2 - width, y2 - height),
        (x2 + 1, y1),
        (x1 - width, y1),
    )
    for x, y in places:
        x, y = min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height)
        spot = (x, y, x + width, y + height)
        if not any(_meet(spot, other) for other in taken):
            taken.append(spot)
            pen.rectangle(spot, fill=(*colour, 225))
            ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 120 else (255, 255, 255)
            pen.text((x + pad - left, y + pad / 2), text, fill=ink, font=font)
            return


def _meet(one: _Rectangle, other: _Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _colour(kind: int) -> tuple[int, int, int]:
    if kind < len(_COLOURS):
        return _COLOURS[kind]
    hue = (kind * _GOLDEN) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.45 + 0.15 * (kind % 3), 1.0 - 0.12 * (kind % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    factor = min(1.0, cell / max(picture.size))
    if factor == 1.0:
        return picture.convert("RGB")
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
