"""From predictions to detections: choose candidates, decode, remove duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from rankdet.ops.checks import require_fraction, require_positive, require_shape
from rankdet.structures import Detections, Predictions


@dataclass(frozen=True)
class PostProcess:
    """Turn what a detector says into a list of objects for each image.

    1. Of each level take the ``candidates`` best pairs (place, class) whose class probability is
       above ``score_threshold``; places on the padding of an image take no part.
    2. Decode their boxes and clip them to the image; drop those without width or height.
    3. Where there is a branch "centreness", multiply the score by its probability.
    4. Of boxes of one class that overlap by more than ``nms_iou`` keep the one of the best score.
    5. Return the ``max_detections`` best.

    A prediction that is NaN is never a detection.

    Args:
        candidates: pairs per level, 1 or more.
        score_threshold: in [0, 1], or None for no threshold: detectors trained by a ranking loss
            give low scores to good boxes.
        nms_iou: in [0, 1].
        max_detections: per image, 1 or more.

    Raises:
        ValueError: a setting is out of its range.
    """

    candidates: int = 1000
    score_threshold: float | None = None
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        require_positive("candidates", self.candidates)
        if self.score_threshold is not None:
            require_fraction("score_threshold", self.score_threshold)
        require_fraction("nms_iou", self.nms_iou)
        require_positive("max_detections", self.max_detections)

    @torch.no_grad()
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
        require_shape("sizes", sizes, len(predictions.logits), 2)
        boxes, scores, labels, keep = self._candidates(predictions, sizes)
        return [self._distinct(*(part[image][keep[image]] for part in (boxes, scores, labels)))
                for image in range(len(sizes))]  # fmt: skip

    def _candidates(
        self, predictions: Predictions, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return K candidates of each image: boxes, scores, labels, and which of them are any."""
        logits, priors = predictions.logits, predictions.priors
        classes = logits.shape[-1]
        # The comparison also takes out NaN, which top-k would rank first.
        usable = priors.inside(sizes)[..., None] & (logits > -torch.inf)
        chosen, pairs, start = [], [], 0
        for level in torch.where(usable, logits, -torch.inf).split(priors.counts, 1):
            flat = level.flatten(1)
            # Best logits first and threshold afterwards: the same as the other way round.
            best = flat.topk(min(self.candidates, flat.shape[1]))
            chosen.append(best.values)
            pairs.append(best.indices + start * classes)
            start += level.shape[1]
        chosen_logits, pair = torch.cat(chosen, 1), torch.cat(pairs, 1)  # [B, K]
        places = pair.div(classes, rounding_mode="floor")

        keep = chosen_logits > -torch.inf
        scores = _probability(chosen_logits)
        if self.score_threshold is not None:
            keep &= scores > self.score_threshold
        centreness = predictions.branches.get("centreness")
        if centreness is not None:
            scores = scores * _probability(centreness.gather(1, places))
            keep &= scores >= 0

        codes = predictions.codes.gather(1, places[..., None].expand(-1, -1, 4))
        boxes = predictions.coder.decode(priors.boxes[places], codes)
        limits = sizes.flip(1).repeat(1, 2)[:, None].to(boxes)  # [B, 1, 4] width, height, again
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        keep &= (boxes[..., 2:] > boxes[..., :2]).all(-1)
        return boxes, scores, pair - places * classes, keep

    def _distinct(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
        """Return the best of one image's candidates, without duplicates."""
        # In float64: there the classes are kept apart by large offsets, which would round away
        # thousandths of a pixel in float32.
        kept = batched_nms(boxes.double(), scores.double(), labels, self.nms_iou)
        kept = kept[: self.max_detections]
        return Detections(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])


def _probability(logits: Tensor) -> Tensor:
    """Sigmoid, in float32 at least: in 16 bits most of the ranks would be ties."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
