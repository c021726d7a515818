"""From the predictions of a second stage to detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from rankdet.models.candidates import Candidates, clipped, has_area
from rankdet.models.postprocess import NMS, Decay, distinct
from rankdet.ops.checks import require_choice, require_fraction, require_positive, require_shape
from rankdet.structures import Detections, RegionPredictions, TwoStagePredictions


@dataclass(frozen=True)
class RegionPostProcess:
    """Turn what a detector of two stages says into a list of objects for each image.

    1. The score of a class is its softmax where there is a branch "background", else its sigmoid.
    2. Take the ``candidates`` best pairs (region, class) of an image whose score is above
       ``score_threshold``.
    3. Decode their boxes and clip them to the image; drop those without width or height.
    4. Remove duplicates among the boxes of one class, by `rankdet.models.postprocess.distinct`.
    5. Return the ``max_detections`` best.

    A box is removed by better ones alone, so with hard NMS the number of candidates changes
    nothing unless fewer than ``max_detections`` are left of them. A prediction that is NaN is
    never a detection.

    Args:
        candidates: pairs per image, 1 or more.
        score_threshold: in [0, 1], or None for no threshold: detectors trained by a ranking loss
            give low scores to good boxes.
        nms_iou: in [0, 1].
        max_detections: per image, 1 or more.
        nms: ``"hard"``, or ``"soft"`` for scores that decay instead.
        decay: of soft NMS, ``"gaussian"`` or ``"linear"``.
        sigma: of the Gaussian decay, above 0.
        min_score: soft NMS ends below it; in [0, 1].

    Raises:
        ValueError: a setting is out of its range.
    """

    candidates: int = 2000
    score_threshold: float | None = None
    nms_iou: float = 0.5
    max_detections: int = 100
    nms: NMS = "hard"
    decay: Decay = "gaussian"
    sigma: float = 0.5
    min_score: float = 0.001

    def __post_init__(self) -> None:
        require_positive("candidates", self.candidates)
        if self.score_threshold is not None:
            require_fraction("score_threshold", self.score_threshold)
        require_fraction("nms_iou", self.nms_iou)
        require_positive("max_detections", self.max_detections)
        require_choice("nms", self.nms, get_args(NMS))
        require_choice("decay", self.decay, get_args(Decay))
        require_positive("sigma", self.sigma)
        require_fraction("min_score", self.min_score)

    def __call__(self, predictions: TwoStagePredictions, sizes: Tensor) -> list[Detections]:
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
    def find(self, predictions: TwoStagePredictions, sizes: Tensor) -> list[Candidates]:
        """Return the candidates of each image, duplicates and all: steps 1 to 3.

        Args, Raises: as for a call.
        """
        found = predictions.second
        counts = found.regions.counts
        require_shape("sizes", sizes, len(counts), 2)
        orders, scores = _scores(found)
        return [
            self._of_image(found, *parts)
            for parts in zip(
                found.regions.split(),
                orders.split(counts),
                scores.split(counts),
                found.codes.split(counts),
                sizes,
                strict=True,
            )
        ]

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
        )

    def _of_image(
        self,
        found: RegionPredictions,
        regions: Tensor,
        orders: Tensor,
        scores: Tensor,
        codes: Tensor,
        size: Tensor,
    ) -> Candidates:
        """Return the candidates of one image of n regions, [n, ...] each."""
        classes = scores.shape[1]
        best = orders.flatten().topk(min(self.candidates, orders.numel()))
        region = best.indices.div(classes, rounding_mode="floor")
        label = best.indices - region * classes
        score = scores.flatten()[best.indices]
        code = codes[region, 0] if codes.shape[1] == 1 else codes[region, label]
        boxes = clipped(found.coder.decode(regions[region], code), size)
        keep = (best.values > -torch.inf) & has_area(boxes)
        if self.score_threshold is not None:
            keep &= score > self.score_threshold
        index = keep.nonzero().squeeze(1)  # once: a GPU is waited for each time
        return Candidates(boxes[index], score[index], label[index])


def _scores(found: RegionPredictions) -> tuple[Tensor, Tensor]:
    """Return what orders the pairs (region, class), and their scores: [R, C] each.

    The first is finer than the second, which is the same for all large logits; it is -inf where
    a prediction is NaN.
    """
    # In 16 bits most of the ranks would be ties.
    dtype = torch.promote_types(found.logits.dtype, torch.float32)
    orders = found.logits.to(dtype)
    if "background" in found.branches:
        background = found.branches["background"].to(dtype)[:, None]
        orders = torch.cat([orders, background], 1).log_softmax(1)[:, :-1]
        scores = orders.exp()
    else:
        scores = orders.sigmoid()
    return torch.where(orders > -torch.inf, orders, -torch.inf), scores
