"""What counts as an image when a model is used from Python, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rankdet.data.errors import DataError

# Private there: a Pillow image has to become exactly what the same image becomes as a file.
from rankdet.data.images import _to_rgb, _upright, read_image

Source = str | os.PathLike[str] | Image.Image | NDArray[Any]
"""A path, a Pillow image, or an array [H, W, 3] of uint8, RGB."""


def as_list(images: Source | Iterable[Source]) -> list[Source]:
    """Return images as a list; a single one becomes a list of one, a stack of arrays of several."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    return list(images)


def read(source: Source, place: int) -> NDArray[np.uint8]:
    """Return the pixels of an image, upright.

    Args:
        source: see `Source`.
        place: in the list of images; it names one that has no path.

    Returns:
        [H, W, 3] uint8, RGB, contiguous and writable; shared with the source where it is such an
        array.

    Raises:
        DataError: it cannot be read, or is no array of that kind.
        TypeError: it is none of these.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_image(Path(source))
    if isinstance(source, Image.Image):
        try:
            source.load()
            return _to_rgb(_upright(source))
        except Exception as error:  # decoders raise whatever their parsers stumble over
            raise DataError(f"image {place}: the Pillow image does not decode: {error}") from error
    if not isinstance(source, np.ndarray):
        raise TypeError(
            f"image {place} must be a path, a Pillow image or an array [H, W, 3] of uint8, got "
            f"{type(source).__name__}"
        )
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise DataError(
            f"image {place} must be an array [H, W, 3] of uint8, RGB, got {list(source.shape)} of "
            f"{source.dtype}; Image.fromarray of Pillow makes images of other kinds of arrays"
        )
    # torch shares memory with arrays of positive strides only, and warns of those it must not write
    return np.require(source, requirements=["C", "W"])
