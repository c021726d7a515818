"""Boxes as a file has them, checked all at once and handed out to their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankdet.data.errors import DataError
from rankdet.data.imageset import Problem, Record

# Annotation tools round to pixels: reaching this far beyond the image is no fault to report.
ROUNDING = 1.0


@dataclass(frozen=True)
class RawImage:
    """An image before its boxes are known."""

    path: Path
    id: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class RawBoxes:
    """The N boxes of a split as they were read."""

    image: NDArray[np.int64]
    """[N] place of the box's image in the list of images."""
    corners: NDArray[np.float64]
    """[N, 4] xyxy in pixels."""
    labels: NDArray[np.int64]
    """[N] class 0 .. C-1."""
    crowd: NDArray[np.bool_]
    """[N]."""
    areas: NDArray[np.float64]
    """[N] in square pixels, NaN where the file has none."""
    where: Callable[[int], tuple[Path, str, str]]
    """File, record and value of the n-th box, for messages."""


def check_boxes(
    corners: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[tuple[str, NDArray[np.int64]]]]:
    """Clip boxes to their images and find those that cannot be used.

    A box is left out if it is not finite, has no positive width and height, or does not touch its
    image. One that reaches beyond the image is clipped, and reported beyond one pixel.

    Args:
        corners: [N, 4] float64, xyxy in pixels.
        sizes: [N, 2] float64, width and height of each box's image in pixels.

    Returns:
        The clipped boxes [N, 4] float32, which of them can be used [N] bool, and for each kind of
        fault the message and the places of the boxes.
    """
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(corners).all(axis=1))
    safe = np.where(finite[:, None], corners, 0.0)
    limits = np.concatenate([sizes, sizes], axis=1)
    with np.errstate(over="ignore"):
        sides = safe[:, 2:] - safe[:, :2]
    clipped = np.clip(safe, 0.0, limits).astype(np.float32)
    negative = finite & (sides < 0).any(axis=1)
    flat = finite & ~negative & (sides == 0).any(axis=1)
    usable = finite & ~negative & ~flat
    outside = usable & ((safe[:, 2:] <= 0) | (safe[:, :2] >= sizes)).any(axis=1)
    usable &= ~outside
    # A sliver can vanish in float32, or when it is clipped.
    vanished = usable & (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    usable &= ~vanished
    beyond = usable & ((safe < -ROUNDING) | (safe > limits + ROUNDING)).any(axis=1)
    kinds = (
        ("box is not made of finite numbers; left out", ~finite),
        ("box has a negative width or height; left out", negative),
        ("box has no area; left out", flat | vanished),
        ("box lies outside the image; left out", outside),
        ("box reaches beyond the image; clipped", beyond),
    )
    faults = [(message, np.flatnonzero(which)) for message, which in kinds if which.any()]
    return clipped, usable, faults


def assemble(images: Sequence[RawImage], raw: RawBoxes) -> tuple[tuple[Record, ...], list[Problem]]:
    """Hand each image its usable boxes.

    Args:
        images: in the order wanted.
        raw: their boxes, in any order.

    Returns:
        One record per image, boxes in the order of the file, and the problems found.

    Raises:
        DataError: If there are boxes but none of them can be used.
    """
    sizes = np.array([(image.width, image.height) for image in images], np.float64).reshape(-1, 2)
    boxes, usable, faults = check_boxes(raw.corners, sizes[raw.image])
    problems: list[Problem] = []
    for message, places in faults:
        for place in places.tolist():
            file, record, value = raw.where(place)
            problems.append(Problem(file, record, message, value))
    if len(usable) and not usable.any():
        raise DataError(
            f"none of the {len(usable)} boxes can be used; the first: {problems[0]}."
            " Check the format and the unit of the boxes"
        )
    kept = np.flatnonzero(usable)
    kept = kept[np.argsort(raw.image[kept], kind="stable")]
    boxes = boxes[kept]
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    areas = raw.areas[kept]
    given = np.isfinite(areas) & (areas > 0)
    areas = np.where(given, areas, sides[:, 0] * sides[:, 1])
    labels, crowd = raw.labels[kept], raw.crowd[kept]
    ends = np.searchsorted(raw.image[kept], np.arange(len(images) + 1))
    records = tuple(
        Record(
            path=image.path,
            id=image.id,
            width=image.width,
            height=image.height,
            boxes=boxes[start:end],
            labels=labels[start:end],
            crowd=crowd[start:end],
            areas=areas[start:end],
        )
        for image, start, end in zip(images, ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    )
    return records, problems
