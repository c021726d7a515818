"""The places and shapes that predictions start from.

Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017 (anchors of
several shapes per place).
Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019 (points).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankdet.ops.checks import require_positive
from rankdet.structures import Priors

_STRIDES = (8, 16, 32, 64, 128)
# Training sees one size of image or a few; more than that is not worth the memory.
_KEPT = 8

_Cache = dict[tuple[int, int, torch.device, torch.dtype], Priors]


@dataclass(frozen=True)
class AnchorGenerator:
    """Boxes of several shapes, centred on the grid corners of each level: (x · stride, y · stride).

    At stride s an anchor of ratio r = height / width and scale c is s · c / √r wide and
    s · c · √r high; c runs over ``scale`` · 2^(i / octave_scales), i = 0 .. octave_scales - 1.
    A level covers ceil(size / stride) places. Order: level, y, x, ratio, scale (fastest). Nothing
    is rounded, clipped or left out at the border.

    Priors are kept, for the last few image sizes and devices: a training step finds them built.

    Args:
        strides: in pixels, 1 or more, finest level first.
        scale: side of a square anchor of the smallest scale, in strides; above 0.
        octave_scales: number of scales per octave, 1 or more.
        ratios: height / width, each above 0.

    Raises:
        ValueError: a setting is out of its range, or there are no strides or ratios.

    References:
        Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017,
        section 4 (there three scales).

    Example:
        >>> anchors = AnchorGenerator(strides=(8,), scale=4.0, octave_scales=1, ratios=(1.0,))
        >>> anchors((8, 16), device="cpu", dtype=torch.float32).boxes
        tensor([[-16., -16.,  16.,  16.],
                [ -8., -16.,  24.,  16.]])
    """

    strides: tuple[int, ...] = _STRIDES
    scale: float = 4.0
    octave_scales: int = 2
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    _cache: _Cache = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_strides(self.strides)
        require_positive("scale", self.scale)
        require_positive("octave_scales", self.octave_scales)
        if not self.ratios:
            raise ValueError("ratios must hold at least one number")
        for ratio in self.ratios:
            require_positive("each of ratios", ratio)

    @property
    def per_place(self) -> int:
        """Number of shapes at a place."""
        return self.octave_scales * len(self.ratios)

    def __call__(
        self, image_size: tuple[int, int], *, device: torch.device | str, dtype: torch.dtype
    ) -> Priors:
        """Return the anchors of an image.

        Args:
            image_size: height and width of the (padded) image in pixels, 1 or more.
            device: where the anchors are wanted.
            dtype: a floating dtype; they are computed in float64 and rounded once.

        Returns:
            The anchors; shared between calls, so not to be changed in place.

        Raises:
            ValueError: the image has no pixels.
        """
        return _kept_or_made(
            self._cache, image_size, self.strides, self._halves, 0.0, device, dtype
        )

    def _halves(self, level: int) -> list[tuple[float, float]]:
        """Half width and half height of each shape at a place, in pixels."""
        stride = self.strides[level]
        scales = [self.scale * 2 ** (i / self.octave_scales) for i in range(self.octave_scales)]
        return [
            (scale / ratio**0.5 / 2 * stride, scale * ratio**0.5 / 2 * stride)
            for ratio in self.ratios
            for scale in scales
        ]


@dataclass(frozen=True)
class PointGenerator:
    """The middles of the cells of each level, ((x + ½) · stride, (y + ½) · stride).

    They come as squares around these points, which are units for box coders: of no size where
    distances are in pixels, of one stride in FCOS with its boxes normalised, of the base edge of
    each level in FoveaBox. A level covers ceil(size / stride) places; order: level, y, x. Priors
    are kept, for the last few image sizes and devices.

    Args:
        strides: in pixels, 1 or more, finest level first.
        sides: of the squares of each level in pixels, 0 or more; None if all are 0.

    Raises:
        ValueError: a number is out of its range, there are no strides, or sides are not as many.

    References:
        Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019,
        section 3.1.
        Kong, Sun, Liu, Jiang, Li, Shi, "FoveaBox: Beyound Anchor-Based Object Detection", IEEE
        Transactions on Image Processing, 2020 (base edges).

    Example:
        >>> points = PointGenerator(strides=(8,))
        >>> points((8, 16), device="cpu", dtype=torch.float32).centres
        tensor([[ 4.,  4.],
                [12.,  4.]])
        >>> PointGenerator((8,), (16.0,))((8, 8), device="cpu", dtype=torch.float32).boxes
        tensor([[-4., -4., 12., 12.]])
    """

    strides: tuple[int, ...] = _STRIDES
    sides: tuple[float, ...] | None = None
    _cache: _Cache = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_strides(self.strides)
        if self.sides is None:
            return
        if len(self.sides) != len(self.strides):
            raise ValueError(
                f"sides must be one number for each of the {len(self.strides)} levels, "
                f"got {self.sides}"
            )
        for side in self.sides:
            require_positive("each of sides", side, zero_allowed=True)

    @property
    def per_place(self) -> int:
        """Number of shapes at a place."""
        return 1

    def __call__(
        self, image_size: tuple[int, int], *, device: torch.device | str, dtype: torch.dtype
    ) -> Priors:
        """Return the points of an image.

        Args:
            image_size: height and width of the (padded) image in pixels, 1 or more.
            device: where the points are wanted.
            dtype: a floating dtype.

        Returns:
            The points; shared between calls, so not to be changed in place.

        Raises:
            ValueError: the image has no pixels.
        """
        return _kept_or_made(
            self._cache, image_size, self.strides, self._halves, 0.5, device, dtype
        )

    def _halves(self, level: int) -> list[tuple[float, float]]:
        """Half of the side of the square at a place, in pixels, for width and height."""
        half = 0.0 if self.sides is None else self.sides[level] / 2
        return [(half, half)]


def _require_strides(strides: Sequence[int]) -> None:
    if not strides:
        raise ValueError("strides must hold at least one number")
    for stride in strides:
        require_positive("each of strides", stride)


def _kept_or_made(
    cache: _Cache,
    image_size: tuple[int, int],
    strides: tuple[int, ...],
    halves: Callable[[int], Sequence[tuple[float, float]]],
    offset: float,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Priors:
    """Return the priors of an image size from the cache, or build them and put them there."""
    height, width = image_size
    key = (height, width, torch.device(device), dtype)
    priors = cache.get(key)
    if priors is None:
        if height < 1 or width < 1:
            raise ValueError(f"image_size must be 1 and more, got {height} x {width}")
        # What is first asked for in inference mode must be of use to training afterwards.
        with torch.inference_mode(False):
            levels = [
                _level(height, width, stride, halves(level), offset)
                for level, stride in enumerate(strides)
            ]
            priors = Priors(
                boxes=torch.cat(levels).to(device=key[2], dtype=dtype),
                counts=tuple(len(level) for level in levels),
                strides=strides,
            )
        while len(cache) >= _KEPT:
            del cache[next(iter(cache))]
        cache[key] = priors
    return priors


def _level(
    height: int, width: int, stride: int, halves: Sequence[tuple[float, float]], offset: float
) -> Tensor:
    """Return the priors of one level: [places * shapes, 4] float64, on the CPU."""
    exact = {"dtype": torch.float64, "device": "cpu"}
    rows, columns = -(-height // stride), -(-width // stride)
    y = (torch.arange(rows, **exact) + offset) * stride  # type: ignore[call-overload]
    x = (torch.arange(columns, **exact) + offset) * stride  # type: ignore[call-overload]
    half = torch.tensor(halves, **exact)  # type: ignore[arg-type]
    centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[:, :, None]  # [H, W, 1, 2]
    return torch.cat([centre - half, centre + half], -1).reshape(-1, 4)
