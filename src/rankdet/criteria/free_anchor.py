"""FreeAnchor: no assignment; a detector learns which prior of a bag stands for an object.

Zhang, Wan, Liu, Ji, Ye, "FreeAnchor: Learning to Match Anchors for Visual Object Detection",
NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankdet.criteria.dense import SmoothL1Box
from rankdet.criteria.matching import (
    Matches,
    normaliser_of,
    require_branches,
    require_classes,
    require_fitting,
)
from rankdet.losses.focal import focal_loss
from rankdet.ops.boxes import area, intersection, iou
from rankdet.ops.checks import require_exponent, require_fraction, require_positive
from rankdet.ops.few import few_nonzero
from rankdet.structures import LossTerms

if TYPE_CHECKING:
    from rankdet.criteria.dense import Box
    from rankdet.structures import Predictions, Targets

# Pairs (object, prior) looked at together: 16 MiB for each float32 tensor of them, 64 MiB for
# their boxes.
_PAIRS = 2**22


def mean_max_loss(log_match: Tensor, real: Tensor) -> Tensor:
    """Return -log of a mean over each bag that turns to its maximum as one is near 1.

    With m = exp(log_match): -log(Σ w m / Σ w), w = 1 / (1 - m). Computed by logarithms, so that
    a bag of priors that all fit badly still has a gradient.

    Args:
        log_match: [N, K] logarithms of probabilities, floating.
        real: [N, K] bool: which count; at least one in each bag.

    Returns:
        [N], 0 and more.

    Gradient: ordinary derivative, the weights w included.

    References:
        Zhang, Wan, Liu, Ji, Ye, NeurIPS 2019 (see the top of this file), equation 7.

    Example:
        >>> log_match = torch.tensor([[0.5, 0.5], [0.999999, 0.1]]).log()
        >>> mean_max_loss(log_match, torch.ones(2, 2, dtype=torch.bool)).round(decimals=2)
        tensor([0.6900, 0.0000])
    """
    # 1e-12 is the authors' limit; a match that rounds to 1 has the weight 1e12.
    log_weight = -(-torch.expm1(log_match)).clamp(min=1e-12).log()
    log_weight = torch.where(real, log_weight, -torch.inf)
    return log_weight.logsumexp(1) - (log_weight + log_match).logsumexp(1)


class FreeAnchorCriterion(nn.Module):
    """Learn the match between objects and priors together with classes and boxes.

    The bag of an object holds the ``bag`` priors that overlap it most. With p the probability of
    the object's class at a prior and L its box loss, m = p exp(-box_weight L) says how well the
    prior stands for the object, and the bag shall have one that does:

        positive = α Σ_objects -log(Σ_bag w m / Σ_bag w) / objects,   w = 1 / (1 - m)

    (a mean of the bag while all m are small, and its largest when one is near 1). All others
    shall be background, unless their predicted box lies well on an object. With b the
    probability of that, 0 up to an IoU of ``threshold`` and 1 at the largest IoU of the object,
    the maximum over the objects of a class:

        negative = (1 - α) Σ -(p (1 - b))^γ log(1 - p (1 - b)) / (objects * bag)

    summed over priors and classes; b is a constant to the gradient. Both normalisers are means
    over all processes and 1 at least. The total is positive + negative.

    Of priors that overlap an object equally the first come first. Equal are IoUs that differ by
    less than ``tie_tolerance`` from that of the last prior in the bag, relatively: a small object
    that lies within many priors has the same IoU with each, but for rounding. Priors on the
    padding of an image take no part. Those with more than ``crowd_overlap`` of their area on a
    crowd region are no background, but may be in bags. Objects without width or height are left
    out.

    Args:
        box: the loss of a box; that of the paper by default, of smooth L1 with β = 0.11.
        box_weight: of the box loss in the exponent, zero or more.
        bag: priors in a bag, 1 or more; an image with fewer gives all it has.
        threshold: t1 of the paper, IoU up to which a predicted box is on no object, in [0, 1).
        alpha: weight of the positive part, in [0, 1].
        gamma: exponent of the negative part, 0, or 1 and more.
        crowd_overlap: in [0, 1], or None if crowd regions have no effect.
        tie_tolerance: in [0, 1).

    Raises:
        ValueError: a setting is out of its range.

    Gradient: ordinary derivative, the weights w included.

    References:
        Zhang, Wan, Liu, Ji, Ye, NeurIPS 2019 (see the top of this file), equations 5 to 8.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        box: Box | None = None,
        *,
        box_weight: float = 0.75,
        bag: int = 50,
        threshold: float = 0.6,
        alpha: float = 0.5,
        gamma: float = 2.0,
        crowd_overlap: float | None = 0.5,
        tie_tolerance: float = 1e-4,
    ) -> None:
        super().__init__()
        require_positive("box_weight", box_weight, zero_allowed=True)
        require_positive("bag", bag)
        require_fraction("alpha", alpha)
        require_exponent("gamma", gamma)
        for name, value in (("threshold", threshold), ("tie_tolerance", tie_tolerance)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if crowd_overlap is not None:
            require_fraction("crowd_overlap", crowd_overlap)
        self.box: Box = SmoothL1Box(beta=0.11) if box is None else box
        self.box_weight, self.bag, self.threshold = box_weight, bag, threshold
        self.alpha, self.gamma = alpha, gamma
        self.crowd_overlap, self.tie_tolerance = crowd_overlap, tie_tolerance

    def forward(self, predictions: Predictions, targets: Targets) -> LossTerms:
        """Return the loss of a batch.

        Args:
            predictions: of B images; without further branches.
            targets: of the same images.

        Returns:
            The loss, and its parts "positive_bags", "negative_bags" and "positives", the number
            of objects. Without objects the positive part is 0 with gradients of 0; the negative
            part is then the sum over all priors.

        Raises:
            TypeError: logits or codes are not floating point.
            ValueError: shapes do not fit, a label is no class of the predictions, or the
                predictions have a branch.
        """
        require_branches(self.needs, predictions.branches)
        require_fitting(predictions, targets)
        device = predictions.logits.device
        matching = self._matching(predictions, targets)
        count = len(matching.labels)
        positive = self._positive(predictions, matching).sum() / normaliser_of(count, device=device)
        normaliser = normaliser_of(count * self.bag, device=device)
        negative = self._negative(predictions.logits, matching, normaliser)
        parts = {
            "positive_bags": positive.detach(),
            "negative_bags": negative.detach(),
            "positives": torch.full((), float(count), device=device),
        }
        return LossTerms(positive + negative, parts)

    def end_period(self) -> None:
        """Do nothing: there is no balance."""

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"box={self.box}, box_weight={self.box_weight:g}, bag={self.bag}, "
            f"threshold={self.threshold:g}, alpha={self.alpha:g}, gamma={self.gamma:g}, "
            f"crowd_overlap={self.crowd_overlap}, tie_tolerance={self.tie_tolerance:g}"
        )

    def _positive(self, predictions: Predictions, matching: _Matching) -> Tensor:
        """Return the loss of each bag, [N]."""
        classes = predictions.logits.shape[2]
        priors = predictions.priors
        real, places = matching.real.flatten(), matching.places.flatten()
        count, size = matching.real.shape
        labels = matching.labels[:, None].expand(-1, size).flatten()
        entries = places * classes + labels
        logits = predictions.logits.reshape(-1).index_select(0, entries)
        codes = predictions.codes.reshape(-1, 4).index_select(0, places)
        codes = codes.to(torch.promote_types(codes.dtype, torch.float32))
        boxes = matching.boxes[:, None].expand(-1, size, -1).flatten(0, 1)
        # What only fills a bag up may be NaN, so it is left out before anything is computed.
        members = Matches(
            targets=matching.kinds,
            entries=entries,
            places=places,
            labels=labels,
            codes=torch.where(real[:, None], codes, 0),
            priors=priors.boxes.index_select(0, places % len(priors.boxes)),
            boxes=boxes,
            coder=predictions.coder,
        )
        scores = torch.where(real, logits, 0).to(codes.dtype)
        log_match = functional.logsigmoid(scores) - self.box_weight * self.box(members)
        return self.alpha * mean_max_loss(log_match.view(count, size), matching.real)

    def _negative(self, logits: Tensor, matching: _Matching, normaliser: float | Tensor) -> Tensor:
        """Return the loss of all that is not on an object, 0-d."""
        # Almost everywhere b is 0, and the loss is focal loss of a negative.
        kinds = matching.kinds.index_fill(0, matching.entries, -1)
        flat = logits.reshape(-1)
        elsewhere = focal_loss(
            flat, kinds, normaliser=normaliser, alpha=self.alpha, gamma=self.gamma
        )
        scores = flat.index_select(0, matching.entries).to(elsewhere.dtype)
        on_object = matching.values.to(elsewhere.dtype)
        p, rest = scores.sigmoid(), (-scores).sigmoid()
        # 1 - p (1 - b), without the loss of digits where p is near 1.
        log_right = (rest + p * on_object).log()
        each = (p * (1 - on_object)).pow(self.gamma) * -log_right
        # A sigmoid makes a plausible number of infinity: this adds 0, or NaN.
        each = each + (scores - scores).detach()
        return elsewhere + (1 - self.alpha) * each.sum() / normaliser

    @torch.no_grad()
    def _matching(self, predictions: Predictions, targets: Targets) -> _Matching:
        """Find the bags, and the predicted boxes that lie on objects."""
        priors, coder = predictions.priors, predictions.coder
        classes = predictions.logits.shape[2]
        total = predictions.logits.shape[1]
        takes_part = priors.inside(targets.sizes)  # [B, A]
        predicted = coder.decode(priors.boxes, predictions.codes)  # [B, A, 4]
        dtype = torch.promote_types(priors.boxes.dtype, targets.boxes.dtype)
        prior_boxes = priors.boxes.to(torch.promote_types(dtype, torch.float32))
        has_area = (targets.boxes[..., 2:] > targets.boxes[..., :2]).all(-1)
        image, boxes, labels = _rows(targets.is_object & has_area, targets, prior_boxes.dtype)
        require_classes(labels, classes)

        size = min(self.bag, total)
        places, real = [image.new_zeros(0, size)], [takes_part.new_zeros(0, size)]
        entries, values = [image.new_zeros(0)], [predicted.new_zeros(0)]
        for some in _pieces(len(labels), total):
            here, own = boxes[some, None], image[some]  # [n, 1, 4], [n]
            outside = ~takes_part[own]  # [n, A]
            overlaps = iou(here, prior_boxes).masked_fill_(outside, -1)
            found, is_any = _first_of_largest(overlaps, size, self.tie_tolerance)
            places.append(found + own[:, None] * total)
            real.append(is_any)

            fits = iou(here, predicted[own]).masked_fill_(outside, 0)
            on_object = _probability(fits, self.threshold)
            index = few_nonzero((on_object != 0).flatten())
            row = index.div(total, rounding_mode="floor")
            place = index - row * total + own[row] * total
            entries.append(place * classes + labels[some][row])
            values.append(on_object.flatten()[index])

        background = takes_part & ~self._crowded(prior_boxes, targets)
        kinds = (~background).to(torch.int8).neg_()
        kinds = kinds[..., None].expand(-1, -1, classes).reshape(-1)
        found_entries, which = torch.cat(entries).unique(return_inverse=True)
        largest = torch.zeros_like(found_entries, dtype=predicted.dtype)
        largest.scatter_reduce_(0, which, torch.cat(values), "amax")
        counts = kinds.index_select(0, found_entries) == 0
        return _Matching(
            places=torch.cat(places),
            real=torch.cat(real),
            labels=labels,
            boxes=boxes,
            kinds=kinds,
            entries=found_entries[counts],
            values=largest[counts],
        )

    def _crowded(self, priors: Tensor, targets: Targets) -> Tensor:
        """Return which priors are on a crowd region, [B, A]."""
        images, total = len(targets.boxes), len(priors)
        regions = torch.zeros(images, total, dtype=torch.int32, device=priors.device)
        if self.crowd_overlap is not None:
            image, boxes, _ = _rows(targets.is_crowd, targets, priors.dtype)
            bar = area(priors) * self.crowd_overlap
            for some in _pieces(len(image), total):
                on_region = intersection(boxes[some, None], priors) > bar
                regions.index_add_(0, image[some], on_region.to(torch.int32))
        return regions > 0


class _Matching(NamedTuple):
    """What is found before anything is differentiated; N objects, K priors in a bag."""

    places: Tensor  # [N, K] int64, into B * A
    real: Tensor  # [N, K] bool: in the bag; the others fill it up
    labels: Tensor  # [N] int64
    boxes: Tensor  # [N, 4]
    kinds: Tensor  # [B * A * C] int8: 0 background, -1 left out
    entries: Tensor  # [E] int64, into B * A * C: background whose box is on an object
    values: Tensor  # [E] b, the probability of that


def _rows(mask: Tensor, targets: Targets, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return image [n], boxes [n, 4] and labels [n] of the marked ground truths of all images."""
    index = mask.flatten().nonzero().squeeze(1)
    image = index.div(max(mask.shape[1], 1), rounding_mode="floor")
    boxes = targets.boxes.reshape(-1, 4).index_select(0, index).to(dtype)
    return image, boxes, targets.labels.reshape(-1).index_select(0, index)


def _pieces(rows: int, total: int) -> Iterator[slice]:
    """Yield the rows in turn, so many at a time that their pairs with all priors fit."""
    at_once = max(1, _PAIRS // max(total, 1))
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))


def _first_of_largest(overlaps: Tensor, size: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the ``size`` largest of each row, and which of them are 0 and more: [n, size] each.

    What is as good as equal to the last of them counts as equal, and its first ones are taken.
    """
    last = overlaps.topk(size).values[:, -1:] if size else overlaps[:, :1]
    total = overlaps.shape[1]
    # Larger for earlier ones; exact as floats up to 2^24.
    order = torch.arange(total, 0, -1, device=overlaps.device, dtype=overlaps.dtype)
    rank = torch.where(overlaps > last * (1 + tolerance), total + 1, order)
    rank.masked_fill_((overlaps < last * (1 - tolerance)) | (overlaps < 0), 0)
    best = rank.topk(size)
    return best.indices, best.values > 0


def _probability(overlaps: Tensor, threshold: float) -> Tensor:
    """Return how probably each prior, [n, A], has its box on the object of its row."""
    # `overlaps <= threshold` is false for NaN, which must come out as NaN.
    largest = overlaps.amax(1, keepdim=True)
    share = ((overlaps - threshold) / (largest - threshold)).clamp(max=1)
    return torch.where(overlaps <= threshold, 0, share)
