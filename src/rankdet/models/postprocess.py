"""From predictions to detections: choose candidates, decode, remove duplicates.

Bodla, Singh, Chellappa, Davis, "Soft-NMS: Improving Object Detection With One Line of Code",
ICCV 2017.
Kim, Lee, "Probabilistic Anchor Assignment with IoU Prediction for Object Detection", ECCV 2020
(scores from a predicted IoU, score voting).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms

from rankdet.models.candidates import Candidates, best_of_levels, boxes_at, by_image, has_area
from rankdet.ops.boxes import iou
from rankdet.ops.checks import require_choice, require_fraction, require_positive, require_shape
from rankdet.structures import Detections, Predictions

Combination = Literal["product", "root"]
NMS = Literal["hard", "soft"]
Decay = Literal["linear", "gaussian"]

# Branches that say how good a box is; a detector has one of them or none.
_QUALITIES = ("centreness", "iou")


@dataclass(frozen=True)
class PostProcess:
    """Turn what a detector says into a list of objects for each image.

    1. Of each level take the ``candidates`` best pairs (place, class) whose class probability is
       above ``score_threshold``; places on the padding of an image take no part.
    2. Decode their boxes and clip them to the image; drop those without width or height.
    3. The score is the class probability p; where there is a branch "centreness" or "iou" of
       probability q it is p q or, with ``combine="root"``, the root of p q.
    4. Remove duplicates among the boxes of one class, by `distinct`.
    5. Return the ``max_detections`` best.

    What is best in step 1 is decided by the class probability, but with ``combine="root"`` by the
    score. A prediction that is NaN is never a detection.

    Args:
        candidates: pairs per level, 1 or more.
        score_threshold: in [0, 1], or None for no threshold: detectors trained by a ranking loss
            give low scores to good boxes.
        nms_iou: in [0, 1].
        max_detections: per image, 1 or more.
        combine: how class probability and branch make a score: ``"product"`` as with centreness,
            or ``"root"`` as in PAA.
        nms: ``"hard"``, or ``"soft"`` for scores that decay instead.
        decay: of soft NMS, ``"gaussian"`` or ``"linear"``.
        sigma: of the Gaussian decay, above 0.
        min_score: soft NMS ends below it; in [0, 1]. As published; detectors trained by a ranking
            loss need a lower one.
        vote_sigma: of score voting, above 0 (0.025 in PAA), or None for none.

    Raises:
        ValueError: a setting is out of its range.

    References:
        Bodla, Singh, Chellappa, Davis, ICCV 2017; Kim, Lee, ECCV 2020, sections 3.3 and 3.4.
    """

    candidates: int = 1000
    score_threshold: float | None = None
    nms_iou: float = 0.5
    max_detections: int = 100
    combine: Combination = "product"
    nms: NMS = "hard"
    decay: Decay = "gaussian"
    sigma: float = 0.5
    min_score: float = 0.001
    vote_sigma: float | None = None

    def __post_init__(self) -> None:
        require_positive("candidates", self.candidates)
        if self.score_threshold is not None:
            require_fraction("score_threshold", self.score_threshold)
        require_fraction("nms_iou", self.nms_iou)
        require_positive("max_detections", self.max_detections)
        require_choice("combine", self.combine, get_args(Combination))
        require_choice("nms", self.nms, get_args(NMS))
        require_choice("decay", self.decay, get_args(Decay))
        require_positive("sigma", self.sigma)
        require_fraction("min_score", self.min_score)
        if self.vote_sigma is not None:
            require_positive("vote_sigma", self.vote_sigma)

    def __call__(self, predictions: Predictions, sizes: Tensor) -> list[Detections]:
        """Return the detections of each image, best first.

        Args:
            predictions: of B images.
            sizes: [B, 2] int64, height and width of each image within the padded batch, in pixels.

        Returns:
            B detections, in the dtypes of the predictions, float32 at least.

        Raises:
            ValueError: sizes are not [B, 2].
        """
        return [self.choose(each) for each in self.find(predictions, sizes)]

    @torch.no_grad()
    def find(self, predictions: Predictions, sizes: Tensor) -> list[Candidates]:
        """Return the candidates of each image, duplicates and all: steps 1 to 3.

        Args, Raises: as for a call.
        """
        require_shape("sizes", sizes, len(predictions.logits), 2)
        logits, priors = predictions.logits, predictions.priors
        branch = next(
            (predictions.branches[name] for name in _QUALITIES if name in predictions.branches),
            None,
        )
        # The comparison also takes out NaN, which top-k would rank first.
        usable = priors.inside(sizes)[..., None] & (logits > -torch.inf)
        by_score = branch is not None and self.combine == "root"
        if branch is not None and by_score:
            if self.score_threshold is not None:
                usable &= _probability(logits) > self.score_threshold
            # Logarithms: they tell very low scores apart.
            order = _log_probability(logits) + _log_probability(branch)[..., None]
            usable &= order > -torch.inf
        else:
            order = logits
        # Best first and threshold afterwards: the same as the other way round where that is of
        # what is ordered by.
        ordered = torch.where(usable, order, -torch.inf)
        best = best_of_levels(ordered, priors.counts, self.candidates)

        keep = best.orders > -torch.inf
        if by_score:
            scores = (best.orders / 2).exp()
        else:
            scores = _probability(best.orders)
            if self.score_threshold is not None:
                keep &= scores > self.score_threshold
            if branch is not None:
                scores = scores * _probability(branch.gather(1, best.places))
                keep &= scores >= 0
        boxes = boxes_at(predictions, best.places, sizes)
        return by_image(boxes, scores, best.labels, keep & has_area(boxes))

    @torch.no_grad()
    def choose(self, found: Candidates) -> Detections:
        """Return the detections among the candidates of one image: steps 4 and 5."""
        return distinct(
            found,
            most=self.max_detections,
            nms_iou=self.nms_iou,
            nms=self.nms,
            decay=self.decay,
            sigma=self.sigma,
            min_score=self.min_score,
            vote_sigma=self.vote_sigma,
        )


def distinct(
    found: Candidates,
    *,
    most: int,
    nms_iou: float,
    nms: NMS = "hard",
    decay: Decay = "gaussian",
    sigma: float = 0.5,
    min_score: float = 0.001,
    vote_sigma: float | None = None,
) -> Detections:
    """Return the best candidates of an image without duplicates; each class is on its own.

    Hard NMS goes from the best score downwards and removes what overlaps a box that stays by
    more than ``nms_iou``. `soft_nms` lowers its score instead. Score voting then moves each
    detection b to the mean of all candidates i of its class that overlap it, weighted by
    score_i exp(-(1 - IoU(b, i))² / vote_sigma).

    Args:
        found: candidates of one image.
        most: number of detections at most.
        nms_iou: in [0, 1].
        nms: ``"hard"`` or ``"soft"``.
        decay: see `soft_nms`.
        sigma: likewise.
        min_score: likewise.
        vote_sigma: above 0, or None for no voting.

    Gradient: none.

    References:
        Kim, Lee, "Probabilistic Anchor Assignment with IoU Prediction for Object Detection",
        ECCV 2020, equation 6 (score voting).
    """
    boxes, scores, labels = found
    if nms == "soft":
        kept, decayed = soft_nms(
            found, most=most, nms_iou=nms_iou, decay=decay, sigma=sigma, min_score=min_score
        )
        chosen = decayed.to(scores.dtype)
    else:
        # In float64: there the classes are kept apart by large offsets, which would round away
        # thousandths of a pixel in float32.
        kept = batched_nms(boxes.double(), scores.double(), labels, nms_iou)[:most]
        chosen = scores[kept]
    moved = boxes[kept] if vote_sigma is None else _voted(found, kept, vote_sigma)
    return Detections(boxes=moved, scores=chosen, labels=labels[kept])


def soft_nms(
    found: Candidates,
    *,
    most: int,
    nms_iou: float = 0.3,
    decay: Decay = "gaussian",
    sigma: float = 0.5,
    min_score: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Return the best candidates of an image by scores that decay near better boxes.

    Again and again the candidate of the highest score is taken, of equal ones the first by its
    score at the start, then by its index. The scores of the others of its class are multiplied by

        1 - IoU         if IoU >= ``nms_iou``, else 1      (``"linear"``)
        exp(-IoU² / sigma)                                 (``"gaussian"``)

    with IoU that of their box and the one taken. It ends where no score is left of ``min_score``
    or more, or after ``most`` candidates: since scores only fall, those are the best.

    Args:
        found: candidates of one image, K of them.
        most: D at most.
        nms_iou: in [0, 1].
        decay: ``"linear"`` or ``"gaussian"``.
        sigma: above 0.
        min_score: in [0, 1].

    Returns:
        [D] int64, indices of the candidates taken, and [D] float64, their scores when they were
        taken: descending.

    Gradient: none.

    References:
        Bodla, Singh, Chellappa, Davis, "Soft-NMS: Improving Object Detection With One Line of
        Code", ICCV 2017, section 3.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]])
        >>> found = Candidates(boxes, torch.tensor([0.9, 0.8]), torch.tensor([3, 3]))
        >>> soft_nms(found, most=100, decay="linear")[1].round(decimals=3)
        tensor([0.9000, 0.1600], dtype=torch.float64)
    """
    # From the best downwards, so that of equal maxima the first is the right one.
    left, order = found.scores.double().sort(descending=True, stable=True)
    boxes, labels = found.boxes.double()[order], found.labels[order]
    taken, values = [order[:0]], [left[:0]]
    for _ in range(min(most, len(order))):
        best = left.argmax(0, keepdim=True)
        taken.append(best)
        values.append(left[best])
        overlaps = iou(boxes[best], boxes)
        if decay == "linear":
            factors = torch.where(overlaps >= nms_iou, 1 - overlaps, 1.0)
        else:
            factors = overlaps.square_().div_(-sigma).exp_()
        left = torch.where(labels == labels[best], left * factors, left)
        left[best] = -torch.inf
    scores = torch.cat(values)
    kept = scores >= min_score
    return order[torch.cat(taken)[kept]], scores[kept]


def _voted(found: Candidates, kept: Tensor, sigma: float) -> Tensor:
    """Return the boxes of the kept candidates after score voting, [D, 4]."""
    boxes = found.boxes.double()
    overlaps = iou(boxes[kept][:, None], boxes)  # [D, K]
    weights = (1 - overlaps).square_().div_(-sigma).exp_().mul_(found.scores)
    weights.masked_fill_((overlaps <= 0) | (found.labels[kept][:, None] != found.labels), 0)
    total = weights.sum(1, keepdim=True)
    # A score of 0 leaves a box where it is.
    moved = torch.where(total > 0, weights @ boxes / total, boxes[kept])
    return moved.to(found.boxes.dtype)


def _probability(logits: Tensor) -> Tensor:
    """Sigmoid, in float32 at least: in 16 bits most of the ranks would be ties."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()


def _log_probability(logits: Tensor) -> Tensor:
    return functional.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
