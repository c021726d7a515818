"""Adaptive training sample selection: a threshold for each object, from its own candidates.

Zhang, Chi, Yao, Lei, Li, "Bridging the Gap Between Anchor-based and Anchor-free Detection via
Adaptive Training Sample Selection", CVPR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankdet.assign.participants import Participants, assign_in_slices, without
from rankdet.ops.boxes import iou
from rankdet.ops.checks import require_fraction, require_positive
from rankdet.structures import NEGATIVE, Assignment, Priors, Targets

# How far within an object a prior's centre must be, in pixels.
_MARGIN = 0.01
# What one more in index adds to a squared distance, in px²: below any difference that matters,
# and above the rounding errors of float64 up to 2900 px.
_LATER = 2**-30
# IoUs as good as equal: a smaller one by this part of the larger at most.
_TIE = 1e-4
# Centres are rounded to this part of a pixel, which rounding errors within 8192 px do not reach.
_FINENESS = {torch.float32: 2**6, torch.float64: 2**20}


@dataclass(frozen=True)
class ATSSAssigner:
    """A prior is positive if it is near an object's centre and overlaps it more than usual there.

    For each object: of each level the ``top_k`` priors whose centres are nearest to its own are
    candidates. Those are positive whose IoU with the object is at least mean + standard deviation
    (of a sample: n - 1) of the candidates' IoUs, and whose centre is in the object by more than
    0.01 px. A prior wanted by several objects goes to the one of the largest IoU, the first of
    equal ones: of those at most 0.01 % below, since rounding alone would tell which of two is the
    better if the prior lies in the middle between them. All others are negative.

    Of equally near priors those of lower index come first. The shapes at one place are equally
    near, so with two shapes per place 9 candidates take both of four places and the first of a
    fifth. As corners their centres differ by rounding errors, so centres are rounded before
    distances are compared: to 1 / 64 px in float32, 2^-20 px in float64. (Then each further index
    makes a squared distance larger by 2^-30 px²: `topk` promises no order of its own.)

    Priors on the padding of an image are ignored and take no part. Those with more than
    ``crowd_overlap`` of their area on a crowd region are ignored unless positive.

    Args:
        top_k: candidates per level and object, 1 or more; a level with fewer gives all it has.
        crowd_overlap: in [0, 1], or None if crowd regions have no effect.

    Raises:
        ValueError: a setting is out of its range.

    References:
        Zhang, Chi, Yao, Lei, Li, "Bridging the Gap Between Anchor-based and Anchor-free
        Detection via Adaptive Training Sample Selection", CVPR 2020, algorithm 1.

    Example:
        >>> priors = Priors(torch.tensor([[-8.0, -8, 8, 8], [0.0, -8, 16, 8]]), (2,), (8,))
        >>> targets = Targets(
        ...     boxes=torch.tensor([[[2.0, 0.0, 14.0, 8.0]]]), labels=torch.tensor([[3]]),
        ...     crowd=torch.tensor([[False]]), sizes=torch.tensor([[8, 16]]),
        ... )
        >>> ATSSAssigner(top_k=1)(priors, targets).matched
        tensor([[-1, -1]])
    """

    top_k: int = 9
    crowd_overlap: float | None = 0.5

    def __post_init__(self) -> None:
        require_positive("top_k", self.top_k)
        if self.crowd_overlap is not None:
            require_fraction("crowd_overlap", self.crowd_overlap)

    @torch.no_grad()
    def __call__(self, priors: Priors, targets: Targets) -> Assignment:
        """Return the assignment of a batch; see `structures` for the shapes.

        Raises:
            TypeError: boxes of priors or targets are not floating point.
            ValueError: the shapes of priors or targets do not fit together.

        Gradient: none.
        """

        def assign(images: Participants) -> Tensor:
            return self._assign(images, priors.counts)

        return Assignment(assign_in_slices(assign, priors, targets, self.crowd_overlap))

    def _assign(self, images: Participants, counts: tuple[int, ...]) -> Tensor:
        batch, objects = images.is_object.shape
        total = len(images.priors)
        rows = _rows(images.is_object)  # [N] objects of all images
        image = rows.div(objects, rounding_mode="floor")
        boxes = images.boxes.flatten(0, 1)[rows]  # [N, 4]
        centres = _centres(images.priors)
        candidates, real = self._candidates(centres, _centres(boxes), images.inside, image, counts)

        # Coordinates one by one, each in one piece: [4 + 2, N, K]. (Here and below `index_select`,
        # which is several times faster than an index in brackets.)
        corners_and_centres = torch.cat([images.priors, centres], 1).t()
        chosen = corners_and_centres.index_select(1, candidates.flatten())
        chosen = chosen.view(6, *candidates.shape)
        overlaps = iou(boxes[:, None], chosen[:4].movedim(0, -1))
        low_x, low_y, high_x, high_y = boxes[..., None].unbind(1)  # [N, 1] each
        depth_x = torch.minimum(chosen[4] - low_x, high_x - chosen[4])
        depth_y = torch.minimum(chosen[5] - low_y, high_y - chosen[5])
        positive = overlaps >= _mean_plus_deviation(overlaps, real)
        positive &= torch.minimum(depth_x, depth_y) > _MARGIN
        positive &= real & images.is_object.flatten()[rows][:, None]

        # Of those that want a prior: the best IoU, then the first object that is as good.
        places = (candidates + (image * total)[:, None]).flatten()
        offers = overlaps.masked_fill(~positive, -1).flatten()
        best = offers.new_full((batch * total,), -1).scatter_reduce_(0, places, offers, "amax")
        as_good = (offers >= best.index_select(0, places) * (1 - _TIE)) & positive.flatten()
        number = (rows % objects)[:, None].expand_as(candidates).flatten()
        number = number.masked_fill(~as_good, objects)
        first = number.new_full((batch * total,), objects)
        first.scatter_reduce_(0, places, number, "amin")
        matched = first.masked_fill_(first == objects, NEGATIVE)
        return without(matched.view(batch, total), images.inside, images.crowded)

    def _candidates(
        self,
        centres: Tensor,
        object_centres: Tensor,
        inside: Tensor,
        image: Tensor,
        counts: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        """Return indices of K candidates for each of N objects, and which are any: [N, K] each.

        An image with fewer than ``top_k`` priors on a level has candidates that are none.
        """
        x, y = centres.double().unbind(-1)  # [A] each
        object_x, object_y = object_centres.double()[..., None].unbind(1)  # [N, 1] each
        later = torch.arange(len(x), device=x.device, dtype=x.dtype) * _LATER
        # Priors on padding are infinitely far away.
        along = torch.where(inside, x, torch.inf).index_select(0, image).sub_(object_x)  # [N, A]
        across = y - object_y
        distances = torch.addcmul(later, across, across).addcmul_(along, along)
        nearest, indices, start = [], [], 0
        for level, count in zip(distances.split(counts, 1), counts, strict=True):
            found = level.topk(min(self.top_k, count), largest=False, sorted=False)
            nearest.append(found.values)
            indices.append(found.indices + start)
            start += count
        return torch.cat(indices, 1), torch.cat(nearest, 1) < torch.inf


def _rows(is_object: Tensor) -> Tensor:
    """Return which entries of [B, G], flattened, to work on: objects, and padding as well where
    finding out how many there are would make the host wait for the device.
    """
    if is_object.is_cpu:
        return is_object.flatten().nonzero().squeeze(1)
    return torch.arange(is_object.numel(), device=is_object.device)


def _centres(boxes: Tensor) -> Tensor:
    """Centre of each box, [..., 2], without the rounding errors that differ between shapes."""
    fineness = _FINENESS[boxes.dtype]
    return (boxes[..., :2] + boxes[..., 2:]).mul_(fineness / 2).round_().div_(fineness)


def _mean_plus_deviation(overlaps: Tensor, real: Tensor) -> Tensor:
    """Mean and standard deviation (n - 1) of the overlaps that are real, added up: [N, 1]."""
    count = real.sum(-1, keepdim=True)
    mean = (overlaps * real).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = ((overlaps - mean).square_() * real).sum(-1, keepdim=True)
    return mean + (squares / (count - 1).clamp_(min=1)).sqrt_()
