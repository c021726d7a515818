"""Decoding images of every kind to RGB, upright, or refusing them by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rankdet.data.errors import DataError
from rankdet.data.imageset import ImageSet, Problem, Record

UNUSABLE = "image cannot be used as annotated"
"""The problem of an image that cannot be opened or has another size."""

MAX_PIXELS = 200_000_000
"""Largest image that is decoded without being asked for: 20,000 x 10,000, 0.6 GB as RGB."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_opening = threading.Lock()


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return an image as it is meant to be displayed.

    The EXIF orientation is applied. Grey becomes three equal channels, a palette its colours,
    CMYK is converted, transparency is laid on white, and of several frames the first is taken.
    Grey of 16 or 32 bits, and of floating point, is scaled so that the image's own smallest value
    becomes 0 and its largest 255 (a constant image becomes 0): such files rarely use their whole
    range.

    Args:
        path: of the file.
        max_pixels: refuse larger images, width x height; the memory needed is about 6 bytes each.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        DataError: If the file is absent, may not be read, is no image, is cut off or too large.
    """
    with _decoded(path, max_pixels) as image:
        return _to_rgb(_upright(image))


def read_image_as(
    path: Path, width: int, height: int, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Return an image in the orientation that its boxes refer to.

    The annotated size decides: if the image as displayed (EXIF orientation applied) has it, it is
    returned as displayed, otherwise as stored. Where both have it (a square image, or one stored
    upside down) the displayed one is taken, which is what annotation tools show.

    Args:
        path: of the file.
        width: annotated, in pixels.
        height: annotated, in pixels.
        max_pixels: as for `read_image`.

    Returns:
        [height, width, 3] uint8, RGB.

    Raises:
        DataError: As `read_image`; and if neither orientation has the annotated size.
    """
    with _decoded(path, max_pixels) as image:
        sideways = _orientation(image) in _SIDEWAYS
        displayed = image.size[::-1] if sideways else image.size
        if displayed == (width, height):
            return _to_rgb(_upright(image))
        if image.size == (width, height):
            return _to_rgb(image)
        raise _wrong_size(path, displayed, (width, height))


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as displayed, from its header alone.

    Args:
        path: of the file.

    Raises:
        DataError: If the file is absent, may not be read, or is no image.
    """
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if _turned(image) else (width, height)


def check_images(image_set: ImageSet, *, sample: int | None = None) -> tuple[Problem, ...]:
    """Compare the annotated sizes with the headers of the images.

    Args:
        image_set: to be checked.
        sample: check only so many images, evenly spread; None for all.

    Returns:
        A problem for each image that cannot be opened or has another size than annotated.
    """
    records: tuple[Record, ...] = image_set.records
    if sample is not None and sample < len(records):
        places = np.linspace(0, len(records) - 1, sample).astype(int).tolist()
        records = tuple(records[place] for place in places)
    problems = []
    for record in records:
        wanted = (record.width, record.height)
        try:
            with _opened(record.path) as image:
                size = image.size
                displayed = size[::-1] if _turned(image) else size
            if wanted not in (size, displayed):
                raise _wrong_size(record.path, displayed, wanted)
        except DataError as fault:
            value = str(fault).removeprefix(f"{record.path}: ")
            problems.append(Problem(record.path, "image", UNUSABLE, value))
    return tuple(problems)


def _wrong_size(path: Path, found: tuple[int, int], annotated: tuple[int, int]) -> DataError:
    return DataError(
        f"{path}: the image is {found[0]} x {found[1]} pixels, its annotation says"
        f" {annotated[0]} x {annotated[1]}; boxes would be misplaced. Use the image that was"
        " annotated, or correct the annotation"
    )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image without decoding it."""
    try:
        # Pillow keeps its own limit in a global; ours is checked by the caller on the size.
        with _opening:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except Exception as fault:
        raise _cannot_read(path, fault) from fault
    with image:
        yield image


@contextmanager
def _decoded(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    with _opened(path) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise DataError(
                f"{path}: {width} x {height} pixels are more than the limit of {max_pixels};"
                " scale the image down or cut it into tiles"
            )
        try:
            image.load()
        except Exception as fault:
            raise _cannot_read(path, fault) from fault
        yield image


# Decoders raise whatever their parsers stumble over (struct.error, IndexError, SyntaxError, ...).
def _cannot_read(path: Path, fault: Exception) -> DataError:
    match fault:
        case FileNotFoundError():
            return DataError(f"{path}: there is no such file; check the path")
        case PermissionError():
            return DataError(
                f"{path}: no permission to read this file; allow reading (chmod u+r {path})"
            )
        case IsADirectoryError():
            return DataError(f"{path}: this is a folder, not an image")
    return DataError(
        f"{path}: does not decode as an image ({fault}); it may be cut off or of an unknown kind:"
        " copy it again, or convert it to PNG or JPEG"
    )


def _orientation(image: Image.Image) -> int:
    try:
        value: Any = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A broken EXIF block says nothing; the pixels are still good.
        return 1
    return value if value in _TURNS else 1


def _turned(image: Image.Image) -> bool:
    # Pillow turns TIFF itself and gives the size as displayed.
    return image.format != "TIFF" and _orientation(image) in _SIDEWAYS


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _scale(np.asarray(image, dtype=np.float32))
    # "La" and "RGBa" hold colours multiplied by their alpha; Pillow knows no shorter way.
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        image = Image.alpha_composite(white, seen)
    return np.array(image.convert("RGB"))


def _scale(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    span = float(high) - float(low)
    scaled = np.zeros_like(values)
    if span > 0:
        scaled = np.clip((np.where(finite, values, low) - low) * np.float32(255.0 / span), 0, 255)
    return np.repeat(np.rint(scaled).astype(np.uint8)[..., None], 3, axis=2)
