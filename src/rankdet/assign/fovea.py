"""Assignment of the points in the middle of an object, as FoveaBox trains.

Kong, Sun, Liu, Jiang, Li, Shi, "FoveaBox: Beyound Anchor-Based Object Detection", IEEE Transactions
on Image Processing, 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankdet.assign.points import (
    MARGIN,
    Level,
    Objects,
    assign_points,
    beyond_box,
    require_levels,
    require_ranges,
)
from rankdet.ops.checks import require_fraction, require_positive
from rankdet.structures import Assignment, Priors, Targets

_RANGES = ((1.0, 64.0), (32.0, 128.0), (64.0, 256.0), (128.0, 512.0), (256.0, 2048.0))


@dataclass(frozen=True)
class FoveaAssigner:
    """A point is positive for an object if it lies in its fovea, on the levels made for its size.

    The fovea of an object is its box made smaller about the centre: ``sigma`` times as wide and as
    high, border included. A point, the centre of a prior, is wanted by an object if it lies in its
    fovea and the root of the object's area is in the range of the level, both ends included;
    ranges overlap, so an object may have points on several levels.

    At the border of an image a fovea reaches as far as the outermost points: where it ends before
    the first column of points or begins behind the last, it is made to end or begin there, and
    likewise for rows. (So a small object in a corner has a point, while one that lies between
    points further inside has none. An object that touches none of the cells of a level, squares
    of one stride around its points, has no points there.)

    A point is matched to the smallest of the objects that want it, and negative if none does.
    Objects whose areas differ by less than 0.012 % are equally small: the first of them gets the
    point; see `rankdet.assign.fcos.FCOSAssigner`. Within 0.01 px of a border is on it.

    Points on the padding of an image are ignored. So are those with more than ``crowd_overlap``
    of the pixel around them on a crowd region, unless positive.

    Args:
        scale_ranges: least and largest root of the area for each level in pixels, finest level
            first; each 0 <= least < largest.
        sigma: width of a fovea as part of that of its object, in (0, 1].
        crowd_overlap: in [0, 1], or None if crowd regions have no effect.

    Raises:
        ValueError: a setting is out of its range.

    References:
        Kong, Sun, Liu, Jiang, Li, Shi, "FoveaBox: Beyound Anchor-Based Object Detection", IEEE
        Transactions on Image Processing, 2020 (the border of the image as in the authors' code).

    Example:
        >>> points = torch.tensor([[4.0, 4, 4, 4], [12.0, 4, 12, 4]])
        >>> targets = Targets(
        ...     boxes=torch.tensor([[[2.0, 0.0, 22.0, 8.0]]]), labels=torch.tensor([[3]]),
        ...     crowd=torch.tensor([[False]]), sizes=torch.tensor([[8, 16]]),
        ... )
        >>> FoveaAssigner(((1.0, 64.0),))(Priors(points, (2,), (8,)), targets).matched
        tensor([[-1,  0]])
    """

    scale_ranges: tuple[tuple[float, float], ...] = _RANGES
    sigma: float = 0.4
    crowd_overlap: float | None = 0.5

    def __post_init__(self) -> None:
        require_ranges("scale_ranges", self.scale_ranges)
        require_fraction("sigma", self.sigma)
        require_positive("sigma", self.sigma)
        if self.crowd_overlap is not None:
            require_fraction("crowd_overlap", self.crowd_overlap)

    @torch.no_grad()
    def __call__(self, priors: Priors, targets: Targets) -> Assignment:
        """Return the assignment of a batch; see `structures` for the shapes.

        Raises:
            TypeError: boxes of priors or targets are not floating point.
            ValueError: the shapes of priors or targets do not fit together, or the levels of the
                priors are not as many as the ranges.

        Gradient: none.
        """
        require_levels("scale_ranges", self.scale_ranges, priors)
        return assign_points(self._beyond, priors, targets, self.crowd_overlap)

    def _beyond(self, level: Level, objects: Objects) -> Tensor:
        least, largest = self.scale_ranges[level.number]
        width, height = (2 * objects.half).unbind(-1)
        scale = (width * height).sqrt()  # [B, G]
        wants = (scale >= least - MARGIN) & (scale <= largest + MARGIN)

        first = level.points.amin(0)  # [2]
        on_image = torch.where(level.inside[..., None], level.points, first)
        last = on_image.amax(1, keepdim=True)  # [B, 1, 2]
        cell = level.stride / 2
        wants &= (objects.centre - objects.half < last + cell).all(-1)
        wants &= (objects.centre + objects.half > first - cell).all(-1)

        reach = self.sigma * objects.half
        low = torch.minimum(objects.centre - reach, last)
        high = torch.maximum(objects.centre + reach, first)
        half = torch.where(wants[..., None], (high - low) / 2 + MARGIN, -torch.inf)
        return beyond_box(level.points, (low + high) / 2, half)
