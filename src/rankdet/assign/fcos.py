"""Assignment of points by the distances that they would have to predict, as FCOS trains.

Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019.
"""

from __future__ import annotations

import math
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

_RANGES = ((0.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, math.inf))


@dataclass(frozen=True)
class FCOSAssigner:
    """A point is positive for an object it lies in, on the level made for such distances.

    A point, the centre of a prior, is wanted by an object if

    - it lies within the object;
    - the largest of its distances to the four sides of the object is in the range of the level,
      both ends included;
    - with ``centre_radius``, it also lies within a square about the object's centre whose half
      side is that many strides of the level.

    It is matched to the smallest of the objects that want it, and negative if none does. Objects
    whose areas differ by less than 0.012 % are equally small: the first of them gets the point.
    (Such differences add up: of three areas each of which is equal to the next, all are equal.)

    A point within 0.01 px of a border of an object or of a square is not within it; a distance
    within 0.01 px of the end of a range is in the range.

    Points on the padding of an image are ignored. So are those with more than ``crowd_overlap``
    of the pixel around them on a crowd region, unless positive.

    Args:
        regress_ranges: least and largest distance of each level in pixels, finest level first;
            each 0 <= least < largest.
        centre_radius: above 0, in strides; None for no such square.
        crowd_overlap: in [0, 1], or None if crowd regions have no effect.

    Raises:
        ValueError: a setting is out of its range.

    References:
        Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019,
        section 3.2; the square, called centre sampling, is among its later improvements.

    Example:
        >>> points = torch.tensor([[4.0, 4, 4, 4], [12.0, 4, 12, 4]])
        >>> targets = Targets(
        ...     boxes=torch.tensor([[[2.0, 0.0, 11.0, 8.0]]]), labels=torch.tensor([[3]]),
        ...     crowd=torch.tensor([[False]]), sizes=torch.tensor([[8, 16]]),
        ... )
        >>> FCOSAssigner(((0.0, 64.0),))(Priors(points, (2,), (8,)), targets).matched
        tensor([[ 0, -1]])
    """

    regress_ranges: tuple[tuple[float, float], ...] = _RANGES
    centre_radius: float | None = 1.5
    crowd_overlap: float | None = 0.5

    def __post_init__(self) -> None:
        require_ranges("regress_ranges", self.regress_ranges)
        if self.centre_radius is not None:
            require_positive("centre_radius", self.centre_radius)
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
        require_levels("regress_ranges", self.regress_ranges, priors)
        return assign_points(self._beyond, priors, targets, self.crowd_overlap)

    def _beyond(self, level: Level, objects: Objects) -> Tensor:
        least, largest = self.regress_ranges[level.number]
        # Both the object and the square are about its centre: so is what they have in common.
        reach = torch.minimum(objects.half - MARGIN, largest + MARGIN - objects.half)
        if self.centre_radius is not None:
            reach = reach.clamp(max=self.centre_radius * level.stride - MARGIN)
        beyond = beyond_box(level.points, objects.centre, reach)
        if least == 0:
            return beyond
        # Within this the largest distance is too small.
        near = beyond_box(level.points, objects.centre, least - MARGIN - objects.half)
        return torch.maximum(beyond, near.neg_(), out=beyond)
