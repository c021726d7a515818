"""Any criterion on the regions of a second stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rankdet.ops.checks import require_floating, require_shape
from rankdet.structures import Assignment, LossTerms, Predictions, Priors, Regions, Targets

if TYPE_CHECKING:
    from rankdet.structures import Assigner, RegionPredictions

# Of a grid with one place that covers any image: a region never stands on the padding.
_STRIDE = 2**20


@dataclass(frozen=True, eq=False)
class _MatchedRegions(Priors):
    """The regions of a batch as the priors of one image, with what each of them has to find."""

    matched: Tensor
    """[1, R] int64, as in `Assignment`, for the objects of all images in turn."""


@dataclass(frozen=True)
class AlreadyMatched:
    """The assigner of a criterion within a `RegionCriterion`, which has asked another before."""

    def __call__(self, priors: Priors, targets: Targets) -> Assignment:  # noqa: ARG002 - as any
        """Return the assignment that came with the regions.

        Raises:
            TypeError: these are no regions of a `RegionCriterion`.
        """
        if not isinstance(priors, _MatchedRegions):
            raise TypeError(
                "AlreadyMatched is for a criterion within a RegionCriterion; for the priors of "
                "a dense detector take an assigner of rankdet.assign"
            )
        return Assignment(priors.matched)


class RegionCriterion(nn.Module):
    """Ask any criterion about the regions of a second stage instead of priors.

    Each region is matched to the objects of its own image. Then all regions of the batch are
    handed to the criterion as if they were the priors of one image, and the predicted box of
    each is that of the class it has to find. So a ranking loss ranks all logits of the batch
    against each other, [R * C] of them, just as in a dense detector.

    Args:
        assigner: decides which regions are positive; in Faster R-CNN by an IoU of 0.5 without
            low-quality matching, with cross-entropy a sample of them only.
        criterion: of `rankdet.criteria`, with `AlreadyMatched` as its assigner.

    Raises:
        TypeError: the criterion has another assigner, which would know nothing of images.

    Gradient: that of the criterion.

    References:
        Girshick, "Fast R-CNN", ICCV 2015, section 2.3.

    Example:
        >>> from rankdet.assign.max_iou import MaxIoUAssigner
        >>> from rankdet.criteria import ALRPCriterion, SelfBalance
        >>> overlap = MaxIoUAssigner(positive=0.5, negative=0.5, low_quality=False)
        >>> loss = ALRPCriterion(AlreadyMatched(), SelfBalance(), frame="pixels")
        >>> criterion = RegionCriterion(overlap, loss)
    """

    needs: frozenset[str]

    def __init__(self, assigner: Assigner, criterion: nn.Module) -> None:
        super().__init__()
        own = getattr(criterion, "assigner", None)
        if not isinstance(own, AlreadyMatched):
            raise TypeError(
                f"the criterion of regions must be built with AlreadyMatched() as its assigner, "
                f"got {own} in {type(criterion).__name__}"
            )
        self.assigner = assigner
        self.criterion = criterion
        needs = criterion.needs
        assert isinstance(needs, frozenset)
        self.needs = needs

    def forward(self, predictions: RegionPredictions, targets: Targets) -> LossTerms:
        """Return the loss of a batch.

        Args:
            predictions: of R regions of B images.
            targets: of the same images.

        Returns:
            The loss of the criterion and its parts. With no region at all, or none that is
            positive, it is what the criterion makes of no priors or positives, with gradients.

        Raises:
            TypeError: logits or codes are not floating point.
            ValueError: shapes do not fit, or the predictions have other branches than the
                criterion needs.
        """
        _check(predictions, targets)
        with torch.no_grad():
            matched = self._matched(predictions.regions, targets)
            objects = Targets(
                boxes=targets.boxes.reshape(1, -1, 4),
                labels=targets.labels.reshape(1, -1),
                crowd=targets.crowd.reshape(1, -1),
                sizes=targets.sizes.amax(0, keepdim=True),
            )
        boxes = predictions.regions.boxes
        one_image = Predictions(
            logits=predictions.logits[None],
            codes=_own_codes(predictions.codes, matched, objects.labels[0])[None],
            priors=_MatchedRegions(boxes, (len(boxes),), (_STRIDE,), matched[None]),
            coder=predictions.coder,
            branches={name: branch[None] for name, branch in predictions.branches.items()},
            shared=predictions.shared,
        )
        terms = self.criterion(one_image, objects)
        assert isinstance(terms, LossTerms)
        return terms

    def end_period(self) -> None:
        """End an epoch of the criterion's balance. All processes must call this together."""
        end: Any = self.criterion.end_period
        end()

    def extra_repr(self) -> str:
        """Show the assigner."""
        return f"assigner={self.assigner}"

    def _matched(self, regions: Regions, targets: Targets) -> Tensor:
        """Return what each region has to find among the objects of all images in turn: [R]."""
        objects = targets.boxes.shape[1]
        found = []
        for image, boxes in enumerate(regions.split()):
            priors = Priors(boxes, (len(boxes),), (_STRIDE,))
            (matched,) = self.assigner(priors, targets.of_images(slice(image, image + 1))).matched
            found.append(torch.where(matched >= 0, matched + image * objects, matched))
        return torch.cat(found)


def _own_codes(codes: Tensor, matched: Tensor, labels: Tensor) -> Tensor:
    """Return the codes of the class that each region has to find, of any class for the others.

    Args:
        codes: [R, C, 4], or [R, 1, 4].
        matched: [R] int64, indices of labels where not negative.
        labels: [G] int64.

    Returns:
        [R, 4].
    """
    classes = codes.shape[1]
    if classes == 1 or len(labels) == 0:
        return codes[:, 0]
    # Labels that are no class are left to those who complain of them.
    own = labels[matched.clamp(min=0)].clamp(0, classes - 1)
    return codes[torch.arange(len(codes), device=codes.device), own]


def _check(predictions: RegionPredictions, targets: Targets) -> None:
    logits, codes, regions = predictions.logits, predictions.codes, predictions.regions
    require_floating("logits", logits)
    require_floating("codes", codes)
    require_shape("logits", logits, "R", "C")
    total, classes = logits.shape
    require_shape("regions", regions.boxes, total, 4)
    require_shape("codes", codes, total, 1 if codes.shape[1:2] == (1,) else classes, 4)
    for name, branch in predictions.branches.items():
        require_shape(f"branch {name!r}", branch, total)
    if len(regions.counts) != len(targets.boxes):
        raise ValueError(
            f"regions are of {len(regions.counts)} images, but targets of {len(targets.boxes)}"
        )
