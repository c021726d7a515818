"""Assignment of points by the distances that they would have to predict, as FCOS trains.

Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019.

What `rankdet.assign.fovea` has in common with it is here too: points in place of boxes, and the
smallest of the objects that want a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rankdet.assign.participants import Participants, assign_in_slices, without
from rankdet.ops.checks import require_fraction, require_positive
from rankdet.structures import NEGATIVE, Assignment, Priors, Targets

# What is nearer than this to a border is on it, in pixels: rounding decides nothing.
MARGIN = 0.01
# Areas as good as equal: a larger one by this part of the smaller at most. (No two boxes whose
# sides are whole numbers of pixels up to 2000 differ by exactly this.)
_TIE = 1.2e-4
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


class Level(NamedTuple):
    """The points of one level."""

    number: int
    """0 for the finest."""
    stride: int
    """In pixels."""
    points: Tensor
    """[a, 2] x and y in pixels."""
    inside: Tensor
    """[B, a] bool: which of them are on the image."""


class Objects(NamedTuple):
    """The objects of B images, in ascending order of their areas; equal ones as they were."""

    centre: Tensor
    """[B, G, 2] x and y in pixels."""
    half: Tensor
    """[B, G, 2] half of width and height in pixels; NaN for what is no object, or none of finite
    size."""
    truth: Tensor
    """[B, G] int64: which of the ground truths of the image each of them is."""


def assign_points(
    beyond: Callable[[Level, Objects], Tensor],
    priors: Priors,
    targets: Targets,
    crowd_overlap: float | None,
) -> Assignment:
    """Match each point to the smallest of the objects that want it.

    Args:
        beyond: which objects want which points: [B, G, a], 0 and less for those that do, NaN for
            what is no object.
        priors: their centres are the points.
        targets: of B images.
        crowd_overlap: a point is on a crowd region if more than this part of the pixel around it
            is; None if crowd regions have no effect.

    Returns:
        Matched to an object, ignored on padding and on crowd regions, else negative.

    Raises:
        TypeError: boxes of priors or targets are not floating point.
        ValueError: the shapes of priors or targets do not fit together.
    """

    def assign(images: Participants) -> Tensor:
        centres = _centres(images.priors)
        objects = _in_order(images)
        count = objects.truth.shape[1]
        # The first of them has the largest number; exact in float32 up to 2^24 objects.
        number = torch.arange(count, 0, -1, device=centres.device, dtype=centres.dtype)[:, None]
        found, start = [], 0
        for level, (some, stride) in enumerate(zip(priors.counts, priors.strides, strict=True)):
            part = slice(start, start + some)
            where = Level(level, stride, centres[part], images.inside[:, part])
            wanted = beyond(where, objects)
            # As numbers 1 and 0: comparisons that give a bool are several times slower.
            torch.le(wanted, 0, out=wanted)
            found.append(wanted.mul_(number).amax(1))
            start += some
        # 0, wanted by nobody, becomes the column that is appended.
        place = count - torch.cat(found, 1).long()
        nobody = objects.truth.new_full((len(objects.truth), 1), NEGATIVE)
        matched = torch.cat([objects.truth, nobody], 1).gather(1, place)
        matched.masked_fill_(~images.inside, NEGATIVE)
        return without(matched, images.inside, images.crowded)

    return Assignment(assign_in_slices(assign, _pixels(priors), targets, crowd_overlap))


def beyond_box(points: Tensor, centre: Tensor, half: Tensor) -> Tensor:
    """Return how far points are beyond boxes, along the axis where that is more.

    Args:
        points: [a, 2] x and y in pixels.
        centre: [B, G, 2] of the boxes, likewise.
        half: [B, G, 2] of width and height; negative for no box at all.

    Returns:
        [B, G, a] in pixels; 0 on the border, negative inside.
    """
    x, y = points.unbind(1)
    centre_x, centre_y = centre[..., None].unbind(2)  # [B, G, 1] each
    half_x, half_y = half[..., None].unbind(2)
    along = (x - centre_x).abs_().sub_(half_x)
    across = (y - centre_y).abs_().sub_(half_y)
    return torch.maximum(along, across, out=along)


def require_ranges(name: str, ranges: Sequence[tuple[float, float]]) -> None:
    """Raise `ValueError` unless each is two ascending numbers of 0 and more."""
    if not ranges:
        raise ValueError(f"{name} must hold a range for each level, got none")
    for each in ranges:
        if len(each) != 2 or not 0 <= each[0] < each[1]:
            raise ValueError(
                f"each of {name} must be two ascending numbers of zero and more, got {each}"
            )


def require_levels(name: str, ranges: Sequence[tuple[float, float]], priors: Priors) -> None:
    """Raise `ValueError` unless there is a range for each level of the priors."""
    if len(ranges) != len(priors.counts):
        raise ValueError(
            f"{name} must hold a range for each level: the priors have {len(priors.counts)} "
            f"levels, but there are {len(ranges)} ranges"
        )


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _pixels(priors: Priors) -> Priors:
    """Return boxes of one pixel with the same centres."""
    dtype = torch.promote_types(priors.boxes.dtype, torch.float32)
    if not priors.boxes.is_floating_point() or priors.boxes.shape[1:] != (4,):
        return priors  # refused further on, by name
    centres = _centres(priors.boxes.to(dtype))
    return replace(priors, boxes=torch.cat([centres - 0.5, centres + 0.5], 1))


def _in_order(images: Participants) -> Objects:
    """Return the objects of all images, smallest first."""
    centre = _centres(images.boxes)
    half = (images.boxes[..., 2:] - images.boxes[..., :2]) / 2
    # Whatever is compared with NaN is False, so what is no object wants no point.
    real = images.is_object & ((half > 0) & (half < torch.inf)).all(-1)
    half = torch.where(real[..., None], half, torch.nan)
    width, height = half.unbind(-1)
    areas, by_area = (width * height).sort(1)
    # Areas that are nearly equal to the next smaller one are of one group.
    larger = areas[:, 1:] > areas[:, :-1] * (1 + _TIE)
    group = torch.cat([torch.zeros_like(by_area[:, :1]), larger.cumsum(1)], 1)
    order = (group * by_area.shape[1] + by_area).argsort(1)
    index = by_area.gather(1, order)
    both = index[..., None].expand(-1, -1, 2)
    return Objects(centre.gather(1, both), half.gather(1, both), index)
