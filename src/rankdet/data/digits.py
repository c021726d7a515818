"""The built-in data set: handwritten digits on photographs, drawn anew from seeds.

The digits are the 1797 of scikit-learn (8 x 8 pixels; the test part of Alpaydin and Kaynak's
"Optical Recognition of Handwritten Digits", UCI 1998, CC BY 4.0), the photographs its two samples
(china.jpg and flower.jpg, CC BY 2.0). Every fifth digit of each class, and the columns of the
photographs from 400 on, belong to validation, the rest to training: no digit and no piece of a
photograph is in both. The writers are the same, and two photographs are few: a number measured
here says how methods compare on an easy task, not how good a detector would be elsewhere.

Every image is the same on every machine. It depends on seed, split and index alone, and whatever
decides a pixel is integer arithmetic, written out here: resampling, rotation and random numbers of
libraries may change with their version, and sines differ in their last digit. (Decoding the
photographs is left to Pillow; `digits.json` holds a hash of what it returned.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankdet.data.sampling import random_bits

CLASSES = tuple("0123456789")
SPLITS = ("train", "val")

# Counts of objects: (share of the images in tenths, fewest, most, largest height). The bins are
# those in which results are reported; what has many objects has small ones, or they do not fit.
_COUNTS = ((3, 1, 3, 64), (3, 4, 10, 56), (2, 11, 20, 40), (2, 21, 25, 28))
# Heights in pixels of an image of 128, evenly spread.
_HEIGHTS = tuple(range(12, 65, 4))
_MIN_CONTRAST = 50
# 65536 sin(d°) and cos(d°) for d = 0 .. 15, rounded.
_SIN = (0, 1144, 2287, 3430, 4572, 5712, 6850, 7987, 9121, 10252, 11380, 12505, 13626, 14742,
        15855, 16962)  # fmt: skip
_COS = (65536, 65526, 65496, 65446, 65376, 65287, 65177, 65048, 64898, 64729, 64540, 64332, 64104,
        63856, 63589, 63303)  # fmt: skip
_UP = 8  # each digit is enlarged so many times, once and smoothly, before it is drawn
_SIDE = 10 * _UP  # of an enlarged digit: 8 pixels and an empty one on each side
_INK = 96  # from here on, of 256, a pixel counts as ink
_GREY = np.array([77, 150, 29], np.int32)  # 256 x the shares of red, green and blue in grey


class DigitsImage(NamedTuple):
    """One image with its G digits."""

    image: NDArray[np.uint8]
    """[size, size, 3] RGB."""
    boxes: NDArray[np.float32]
    """[G, 4] xyxy in pixels, whole numbers, tight around the ink."""
    labels: NDArray[np.int64]
    """[G] the digit, 0 .. 9."""
    sources: NDArray[np.int64]
    """[G] which of scikit-learn's digits it is."""


def generate(split: str, index: int, *, size: int = 128, seed: int = 0) -> DigitsImage:
    """Draw one image: 1 to 25 digits, 12 to 64 pixels high at size 128, on a piece of photograph.

    Each digit is stretched, rotated by up to 15 degrees, more or less sharply edged, and its colour
    is at least 50 grey levels lighter or darker than the mean of what it covers. No box overlaps
    another by more than a tenth of the smaller one. Then contrast, blur and noise of the image.

    Args:
        split: ``"train"`` or ``"val"``.
        index: of the image in its split, 0 or more.
        size: side of the image in pixels, 64 .. 1024; heights of the digits scale with it.
        seed: 0 or more.

    Returns:
        Image, boxes, labels, and which digits they are.

    Raises:
        ValueError: a setting is out of its range.
    """
    check_settings(size=size, seed=seed)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    sources = _sources()
    number = SPLITS.index(split)
    draw = _Draw(seed, number, index, 0)
    # The range that the contrast change will leave; colours keep their distance in spite of it.
    gain = draw.between(170, 256)
    offset = draw.between(0, 256 - gain) * 255 // 256
    canvas = _background(sources.photos[number], size, draw)
    objects = _arrange(sources, number, size, draw)
    for glyph, x, y in objects:
        _paint(canvas, glyph, x, y, -(-_MIN_CONTRAST * 256 // gain) + 2, draw)

    if draw.between(0, 3) == 0:
        canvas = _blurred(canvas)
    canvas = (canvas * gain >> 8) + offset
    strength = draw.between(0, 8) * draw.between(0, 1)
    if strength:
        # Of a random byte, the number of ones less 4: nearly normal, standard deviation 1.41.
        table = (np.bitwise_count(np.arange(256, dtype=np.uint8)).astype(np.int32) - 4) * strength
        noise = random_bits(canvas.size // 8, seed, number, index, 1).astype("<u8").view(np.uint8)
        canvas += table[noise].reshape(canvas.shape)
    boxes = [(x, y, x + glyph.width, y + glyph.height) for glyph, x, y in objects]
    which = np.array([glyph.source for glyph, _, _ in objects], np.int64)
    return DigitsImage(
        image=canvas.clip(0, 255).astype(np.uint8),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=sources.labels[which],
        sources=which,
    )


class _Sources(NamedTuple):
    digits: NDArray[np.uint8]  # [1797, _SIDE, _SIDE] enlarged, 255 is ink
    frames: NDArray[np.int64]  # [1797, 4] xyxy: where the ink is in it
    labels: NDArray[np.int64]  # [1797]
    members: tuple[NDArray[np.int64], ...]  # for each split the digits that belong to it
    photos: tuple[tuple[NDArray[np.uint8], ...], ...]  # for each split, [427, W, 3] each
    digest: str


class _Glyph(NamedTuple):
    """A digit ready to be painted."""

    alpha: NDArray[np.int32]  # 0 .. 256: the box, and on each side a rim where ink fades
    rim: int
    width: int
    height: int
    source: int


class _Draw:
    """Random integers, one after the other."""

    def __init__(self, *numbers: int) -> None:
        chunks = (random_bits(512, *numbers, chunk).tolist() for chunk in count())
        self._bits: Iterator[int] = chain.from_iterable(chunks)

    def between(self, low: int, high: int) -> int:
        """Return an integer in low .. high, both included."""
        return low + (next(self._bits) * (high - low + 1) >> 64)


@lru_cache(maxsize=1)
def _sources() -> _Sources:
    """What everything is drawn from; half a second, and 12 MB kept."""
    # Imported here: it takes a second that `rankdet --help` has not.
    from sklearn.datasets import (  # type: ignore[import-untyped] # it has no types
        load_digits,
        load_sample_images,
    )

    data = load_digits()
    small = np.pad(data.images.astype(np.int32), ((0, 0), (1, 1), (1, 1)))
    weights = _enlarging(10)
    tall = np.einsum("yi,nij->nyj", weights, small)
    # Weights sum to 2**13 in each direction and full ink is 16: the shifts leave 0 .. 256.
    large = np.einsum("xj,nyj->nyx", weights, tall >> 5)
    large = (large >> 17).clip(0, None)
    # The darkest ink of each digit becomes full ink.
    digits = (large * 255 // large.max((1, 2), keepdims=True)).astype(np.uint8)
    ink = digits >= _INK
    rows, columns = ink.any(2), ink.any(1)
    frames = np.stack(
        (columns.argmax(1), rows.argmax(1),
         _SIDE - columns[:, ::-1].argmax(1), _SIDE - rows[:, ::-1].argmax(1)), axis=1,
    )  # fmt: skip
    labels = data.target.astype(np.int64)
    # Every fifth example of each class; they stand in the order in which they were collected.
    example = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])
    members = np.flatnonzero(example % 5 != 4), np.flatnonzero(example % 5 == 4)
    photos = [np.asarray(photo, np.uint8) for photo in load_sample_images().images]
    digest = hashlib.sha256(digits.tobytes())
    for photo in photos:
        digest.update(photo.tobytes())
    return _Sources(
        digits=digits,
        frames=frames.astype(np.int64),
        labels=labels,
        members=members,
        photos=(tuple(p[:, :400] for p in photos), tuple(p[:, 400:] for p in photos)),
        digest=digest.hexdigest(),
    )


def _enlarging(length: int) -> NDArray[np.int32]:
    """Catmull-Rom weights times 2**13 that enlarge a line ``_UP`` times: [length * _UP, length]."""
    weights = np.zeros((length * _UP, length), np.int32)
    one = 2 * _UP
    for place in range(length * _UP):
        # In units of 1 / one of a pixel, centres at half pixels.
        first, t = divmod(2 * place + 1 - _UP, one)
        cubic = (
            -t * (one - t) ** 2,
            2 * one**3 - 5 * one * t**2 + 3 * t**3,
            t * (one**2 + 4 * one * t - 3 * t**2),
            t**2 * (t - one),
        )
        for tap, weight in enumerate(cubic):
            weights[place, min(max(first - 1 + tap, 0), length - 1)] += weight
    return weights


def _background(photos: tuple[NDArray[np.uint8], ...], size: int, draw: _Draw) -> NDArray[np.int32]:
    """A square piece of a photograph, enlarged or reduced, with contrast changed: 0 .. 255."""
    photo = photos[draw.between(0, len(photos) - 1)]
    side = draw.between(80, 240)
    top = draw.between(0, photo.shape[0] - side)
    left = draw.between(0, photo.shape[1] - side)
    piece = photo[top : top + side, left : left + side].astype(np.int32)
    # Where each pixel lies in the piece, in 1/256 pixel; bilinear.
    at = ((2 * np.arange(size) + 1) * side * 128 // size - 128).clip(0, (side - 1) * 256)
    low, part = at >> 8, (at & 255).astype(np.int32)
    high = np.minimum(low + 1, side - 1)
    tall = piece[low] * (256 - part)[:, None, None] + piece[high] * part[:, None, None]
    tall = np.ascontiguousarray(tall.transpose(1, 0, 2))
    wide = tall[low] * (256 - part)[:, None, None] + tall[high] * part[:, None, None]
    canvas = wide.transpose(1, 0, 2) >> 16
    if draw.between(0, 1):
        canvas = canvas[:, ::-1]
    contrast = draw.between(90, 256)
    level = draw.between(0, 256 - contrast) * 255 // 256
    return np.ascontiguousarray(canvas * contrast >> 8) + level


def _arrange(
    sources: _Sources, split: int, size: int, draw: _Draw
) -> list[tuple[_Glyph, int, int]]:
    """Choose digits and places: glyphs with x and y of their boxes, largest first."""
    kinds = [kind for share, *kind in _COUNTS for _ in range(share)]
    fewest, most, tallest = kinds[draw.between(0, len(kinds) - 1)]
    heights = [height for height in _HEIGHTS if height <= tallest]
    number = draw.between(fewest, most)
    chosen = [heights[draw.between(0, len(heights) - 1)] for _ in range(number)]
    placed: list[tuple[_Glyph, int, int]] = []
    boxes = np.zeros((0, 4), np.int64)
    for height in sorted(chosen, reverse=True):
        # A smaller digit where a large one finds no place.
        for wanted in (height, height * 3 // 4, height // 2, 12):
            glyph = _glyph(sources, split, max(wanted, 12) * size // 128, draw)
            place = _free_place(boxes, glyph, size, draw)
            if place is not None:
                x, y = place
                placed.append((glyph, x, y))
                boxes = np.vstack((boxes, (x, y, x + glyph.width, y + glyph.height)))
                break
    return placed


def _glyph(sources: _Sources, split: int, height: int, draw: _Draw) -> _Glyph:
    """Draw a digit so that its ink would be ``height`` pixels high if it stood upright."""
    members = sources.members[split]
    source = int(members[draw.between(0, len(members) - 1)])
    left, top, right, bottom = sources.frames[source].tolist()
    turn = draw.between(-15, 15)
    cos, sin = _COS[abs(turn)], _SIN[turn] if turn >= 0 else -_SIN[-turn]
    # Pixels of the enlarged digit for one of the image, times 2**16: down, and across.
    down = (bottom - top << 16) // height
    across = down * 100 // draw.between(85, 115)
    width = (right - left << 16) // across
    rim = height // 8 + 1
    # Half the sides of the rotated ink, sin(15°) being 0.26; step 0 is its centre.
    reach_x = (width * 50 + height * 13) // 100 + rim
    reach_y = (height * 50 + width * 13) // 100 + rim
    steps_x = np.arange(-reach_x, reach_x + 1, dtype=np.int64)[None, :]
    steps_y = np.arange(-reach_y, reach_y + 1, dtype=np.int64)[:, None]
    x = (left + right - 1 << 15) + ((steps_x * cos + steps_y * sin) * across >> 16)
    y = (top + bottom - 1 << 15) + ((steps_y * cos - steps_x * sin) * down >> 16)
    value = _sample(sources.digits[source], x, y)
    # Sharp or soft: an edge is as wide as a pixel of the source, height / 8, over sharpness / 16.
    sharpness = draw.between(16, max(24, 16 * height // 12))
    alpha = np.zeros((value.shape[0] + 2 * rim, value.shape[1] + 2 * rim), np.int32)
    inner = alpha[rim:-rim, rim:-rim]
    inner[:] = np.minimum(np.maximum(_INK + ((value - _INK) * sharpness >> 4), 0), 256)
    ink = inner >= _INK
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    framed = alpha[y0 : y1 + 2 * rim, x0 : x1 + 2 * rim]
    return _Glyph(framed, rim, x1 - x0, y1 - y0, source)


def _sample(
    picture: NDArray[np.uint8], x: NDArray[np.int64], y: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Bilinear values of a square picture at x and y in 1/65536 pixel; its border goes on."""
    last = (_SIDE - 1 << 16) - 1
    x, y = np.minimum(np.maximum(x, 0), last), np.minimum(np.maximum(y, 0), last)
    at = (y >> 16) * _SIDE + (x >> 16)
    part_x, part_y = (x >> 8 & 255).astype(np.int32), (y >> 8 & 255).astype(np.int32)
    flat = picture.reshape(-1)
    upper, right = flat[at].astype(np.int32), flat[at + 1].astype(np.int32)
    upper = (upper << 8) + (right - upper) * part_x
    lower, right = flat[at + _SIDE].astype(np.int32), flat[at + _SIDE + 1].astype(np.int32)
    lower = (lower << 8) + (right - lower) * part_x
    mixed: NDArray[np.int32] = (upper << 8) + (lower - upper) * part_y >> 16
    return mixed


def _free_place(
    boxes: NDArray[np.int64], glyph: _Glyph, size: int, draw: _Draw
) -> tuple[int, int] | None:
    """Look for x and y at which a box overlaps no other by more than a tenth of the smaller."""
    if glyph.width > size or glyph.height > size:
        return None
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    smaller = np.minimum(areas, glyph.width * glyph.height)
    for _ in range(30):
        x, y = draw.between(0, size - glyph.width), draw.between(0, size - glyph.height)
        wide = np.minimum(boxes[:, 2], x + glyph.width) - np.maximum(boxes[:, 0], x)
        high = np.minimum(boxes[:, 3], y + glyph.height) - np.maximum(boxes[:, 1], y)
        if not ((wide > 0) & (high > 0) & (10 * wide * high > smaller)).any():
            return x, y
    return None


def _paint(
    canvas: NDArray[np.int32], glyph: _Glyph, x: int, y: int, contrast: int, draw: _Draw
) -> None:
    """Paint a digit in a colour that differs in grey from what it covers by ``contrast``."""
    covered = canvas[y : y + glyph.height, x : x + glyph.width]
    grey = int(covered.sum((0, 1)) @ _GREY) // (256 * glyph.width * glyph.height)
    for _ in range(12):
        colour = np.array([draw.between(0, 255) for _ in range(3)], np.int32)
        if abs(int(colour @ _GREY) // 256 - grey) >= contrast:
            break
    else:
        colour[:] = 255 if grey < 128 else 0
    # The rim is cut where it reaches beyond the image.
    top, left = y - glyph.rim, x - glyph.rim
    under = canvas[max(top, 0) : y + glyph.height + glyph.rim,
                   max(left, 0) : x + glyph.width + glyph.rim]  # fmt: skip
    alpha = glyph.alpha[max(-top, 0) :, max(-left, 0) :][: under.shape[0], : under.shape[1]]
    under += (colour - under) * alpha[..., None] >> 8


def _blurred(canvas: NDArray[np.int32]) -> NDArray[np.int32]:
    """Blur by 1/4, 1/2, 1/4 in both directions."""
    wide = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
    tall = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    both: NDArray[np.int32] = tall[:, :-2] + 2 * tall[:, 1:-1] + tall[:, 2:] >> 4
    return both


def sources_digest() -> str:
    """Return a hash of the digits and photographs as they were decoded here."""
    return _sources().digest


def check_settings(*, size: int, seed: int) -> None:
    """Raise `ValueError` for a size beyond 64 .. 1024, or a negative seed."""
    if not 64 <= size <= 1024:
        raise ValueError(f"size must be in 64 .. 1024, got {size}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
