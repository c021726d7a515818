"""Assignment of points, the centres of the priors: each goes to the smallest object that wants it.

Which objects want which points is what tells one such assigner from another; see
`rankdet.assign.fcos` and `rankdet.assign.fovea`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rankdet.assign.participants import Participants, assign_in_slices, without
from rankdet.structures import NEGATIVE, Assignment, Priors, Targets

# What is nearer than this to a border is on it, in pixels: rounding decides nothing.
MARGIN = 0.01
# Areas as good as equal: a larger one by this part of the smaller at most. (No two boxes whose
# sides are whole numbers of pixels up to 2000 differ by exactly this.)
_TIE = 1.2e-4


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
