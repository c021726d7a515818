"""Assignment by IoU with fixed thresholds, as RetinaNet and Faster R-CNN train.

Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
Networks", NeurIPS 2015, section 3.1.2.
Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankdet.assign.participants import Participants, assign_in_slices, without
from rankdet.ops.boxes import SMALLEST_UNION, area, intersection
from rankdet.ops.checks import require_fraction
from rankdet.structures import IGNORED, NEGATIVE, Assignment, Priors, Targets


@dataclass(frozen=True)
class MaxIoUAssigner:
    """A prior is positive for the object it overlaps most, if by enough.

    With IoU the largest of a prior over the objects of its image:

    - IoU >= ``positive``: matched to the object of that IoU, the first of equal ones;
    - IoU < ``negative``: negative;
    - in between: ignored.

    Low-quality matching then gives each object the priors that overlap it most, whatever they
    have been: provided that IoU is at least ``min_positive`` and above 0. Objects are gone
    through in order, so the last one that claims a prior gets it, even from an object that the
    prior overlaps more.

    A small object that lies wholly within several priors of one shape has the same IoU with all
    of them, and rounding alone would tell which is the best. So a prior counts as the best of an
    object if its IoU is at least (1 - ``tie_tolerance``) times the largest; and so does an object
    as that of a prior, which may lie in the middle between two alike. Of several objects the first
    gets the prior, of several priors the object gets all. What is below a threshold by no more than
    a tenth of that part has reached it.

    Priors on the padding of an image, and those with more than ``crowd_overlap`` of their area on
    a crowd region, are ignored and take no part: they are nobody's best prior either.

    Args:
        positive: IoU from which a prior is positive, in (0, 1].
        negative: IoU below which it is negative, in [0, positive].
        min_positive: least IoU for low-quality matching, in [0, 1].
        low_quality: whether there is low-quality matching.
        crowd_overlap: in [0, 1], or None if crowd regions have no effect.
        tie_tolerance: relative difference of IoUs that are as good as equal, in [0, 1).

    Raises:
        ValueError: a setting is out of its range.

    References:
        Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region
        Proposal Networks", NeurIPS 2015, section 3.1.2.

    Example:
        >>> priors = Priors(torch.tensor([[0.0, 0, 8, 8], [8.0, 0, 16, 8]]), (2,), (8,))
        >>> targets = Targets(
        ...     boxes=torch.tensor([[[0.0, 0.0, 8.0, 7.0]]]), labels=torch.tensor([[3]]),
        ...     crowd=torch.tensor([[False]]), sizes=torch.tensor([[8, 16]]),
        ... )
        >>> MaxIoUAssigner()(priors, targets).matched
        tensor([[ 0, -1]])
    """

    positive: float = 0.5
    negative: float = 0.4
    min_positive: float = 0.0
    low_quality: bool = True
    crowd_overlap: float | None = 0.5
    tie_tolerance: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("positive", "negative", "min_positive", "tie_tolerance"):
            require_fraction(name, getattr(self, name))
        if not 0 < self.positive >= self.negative:
            raise ValueError(
                "positive must be above 0 and not below negative, "
                f"got positive={self.positive}, negative={self.negative}"
            )
        if self.tie_tolerance == 1:
            raise ValueError("tie_tolerance must be below 1, got 1")
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
        return Assignment(assign_in_slices(self._assign, priors, targets, self.crowd_overlap))

    def _assign(self, images: Participants) -> Tensor:
        overlaps = _overlaps(images)  # [B, G, A]
        objects = overlaps.shape[1]
        # Numbers of objects as floats, exact to 2^24: mixed dtypes are slow over all pairs, and so
        # are comparisons that give a bool.
        number = torch.arange(objects, device=overlaps.device, dtype=overlaps.dtype)[:, None]
        nearly, reached = 1 - self.tie_tolerance, 1 - self.tie_tolerance / 10
        best = overlaps.amax(1)  # [B, A]
        # Two passes are several times faster than `max` with its indices.
        chosen = torch.empty_like(overlaps)
        torch.ge(overlaps, (best * nearly)[:, None], out=chosen)
        matched = objects - chosen.mul_(objects - number).amax(1)  # the first of them
        matched.masked_fill_(best < self.positive * reached, IGNORED)
        matched.masked_fill_(best < self.negative * reached, NEGATIVE)
        if self.low_quality:
            least = max(self.min_positive * reached, torch.finfo(overlaps.dtype).tiny)
            top = overlaps.amax(2, keepdim=True)  # [B, G, 1]
            bar = (top * nearly).masked_fill_(top < least, torch.inf)
            torch.ge(overlaps, bar, out=chosen)
            claimed = chosen.mul_(number + 1).amax(1) - 1  # the last of them
            matched = torch.where(claimed >= 0, claimed, matched)
        return without(matched.long(), images.inside, images.crowded)


def _overlaps(images: Participants) -> Tensor:
    """IoU of each object with each prior, 0 for what takes no part: [B, G, A]."""
    # x - x is 0 for finite numbers alone. A point overlaps nothing.
    finite = ((images.boxes - images.boxes) == 0).all(-1)
    boxes = torch.where((finite & images.is_object)[..., None], images.boxes, 0)
    out = ~images.inside if images.crowded is None else ~images.inside | images.crowded
    # A prior that is out gets an infinite area: an operation on [B, A] instead of [B, G, A].
    areas = area(images.priors).masked_fill(out, torch.inf)[:, None]
    # Each coordinate in one piece: it is gone through for every object.
    columns = torch.stack(images.priors.unbind(-1)).t()
    overlaps = intersection(boxes[:, :, None], columns)
    union = (area(boxes)[..., None] + areas).sub_(overlaps)
    return overlaps.div_(union.clamp_(min=SMALLEST_UNION))
