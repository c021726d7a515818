"""The first stage of Faster R-CNN: where something is, whatever it is.

Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
Networks", NeurIPS 2015.
Lin, Dollár, Girshick, He, Hariharan, Belongie, "Feature Pyramid Networks for Object Detection",
CVPR 2017, section 4.1 (one head for all levels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankdet.models.candidates import (
    best_of_levels,
    boxes_at,
    by_image,
    clipped,
    has_area,
    split_kept,
)
from rankdet.models.heads import HeadOutputs
from rankdet.models.postprocess import distinct
from rankdet.ops.checks import require_fraction, require_positive, require_shape
from rankdet.structures import Predictions, Regions


class ProposalHead(nn.Module):
    """One convolution for all levels, then one logit and one box for each prior.

    Args:
        channels: number of channels of the feature maps.
        per_place: number of priors at each place.
        prior: score of all places at the start, in (0, 1).

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, channels: int, per_place: int, *, prior: float = 0.01) -> None:
        super().__init__()
        require_positive("channels", channels)
        require_positive("per_place", per_place)
        if not 0 < prior < 1:
            raise ValueError(f"prior must be between 0 and 1, got {prior}")
        self.per_place = per_place
        self.shared = nn.Conv2d(channels, channels, 3, padding=1)
        self.to_logits = nn.Conv2d(channels, per_place, 1)
        self.to_codes = nn.Conv2d(channels, per_place * 4, 1)
        for layer in (self.shared, self.to_logits, self.to_codes):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        assert self.to_logits.bias is not None
        nn.init.constant_(self.to_logits.bias, math.log(prior / (1 - prior)))

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Return the predictions of all levels, of one class; no branches.

        Args:
            features: a map [B, channels, H, W] for each level, finest first.
        """
        logits, codes = [], []
        for feature in features:
            x = functional.relu(self.shared(feature))
            images = len(x)
            # [B, shapes * numbers, H, W] to [B, H * W * shapes, numbers]
            logits.append(self.to_logits(x).permute(0, 2, 3, 1).reshape(images, -1, 1))
            codes.append(self.to_codes(x).permute(0, 2, 3, 1).reshape(images, -1, 4))
        return HeadOutputs(torch.cat(logits, 1), torch.cat(codes, 1), {})


@dataclass(frozen=True)
class Propose:
    """Turn what the first stage says into regions to look at again.

    1. Of each level take the ``candidates`` best priors; those on the padding of an image take no
       part.
    2. Decode their boxes and clip them to the image; drop those without width or height.
    3. Of boxes of one level that overlap by more than ``nms_iou`` keep the one of the best score.
    4. Return the ``number`` best of all levels.

    A prediction that is NaN is never a region, and no score is too low.

    Args:
        candidates: priors per level and image, 1 or more.
        nms_iou: in [0, 1].
        number: of regions per image, 1 or more.

    Raises:
        ValueError: a setting is out of its range.
    """

    candidates: int = 1000
    nms_iou: float = 0.7
    number: int = 1000

    def __post_init__(self) -> None:
        require_positive("candidates", self.candidates)
        require_fraction("nms_iou", self.nms_iou)
        require_positive("number", self.number)

    @torch.no_grad()
    def __call__(self, predictions: Predictions, sizes: Tensor) -> Regions:
        """Return the regions of a batch, the best of each image first.

        Args:
            predictions: of B images and one class.
            sizes: [B, 2] int64, height and width of each image within the padded batch, in pixels.

        Returns:
            The regions, float32 or float64.

        Raises:
            ValueError: there are several classes, or the sizes are not [B, 2].
        """
        logits, priors = predictions.logits, predictions.priors
        require_shape("logits", logits, "B", len(priors.boxes), 1)
        require_shape("sizes", sizes, len(logits), 2)
        # The comparison also takes out NaN, which top-k would rank first.
        usable = priors.inside(sizes)[..., None] & (logits > -torch.inf)
        scores = torch.where(usable, logits, -torch.inf)
        best = best_of_levels(scores, priors.counts, self.candidates)
        boxes = boxes_at(predictions, best.places, sizes)
        keep = (best.orders > -torch.inf) & has_area(boxes)
        # Levels in the place of classes: each is on its own.
        levels = best.levels.expand_as(best.places)
        found = [
            distinct(each, most=self.number, nms_iou=self.nms_iou).boxes
            for each in by_image(boxes, best.orders, levels, keep)
        ]
        return Regions(torch.cat(found), tuple(len(each) for each in found))


@torch.no_grad()
def with_known(regions: Regions, known: Tensor, sizes: Tensor) -> Regions:
    """Return the regions with boxes that are known to be objects before those of each image.

    So that a second stage has something to learn from while the first proposes nothing good.

    Args:
        regions: of B images.
        known: [B, G, 4] floating, xyxy in pixels, clipped to their image here; those without an
            area, such as padding, are left out.
        sizes: [B, 2] int64, height and width of the images in pixels.

    Raises:
        ValueError: shapes do not fit.
    """
    images = len(regions.counts)
    require_shape("known", known, images, "G", 4)
    require_shape("sizes", sizes, images, 2)
    known = clipped(known, sizes).to(regions.boxes.dtype)
    objects = split_kept(has_area(known), known)
    both = [torch.cat([*own, each]) for own, each in zip(objects, regions.split(), strict=True)]
    return Regions(torch.cat(both), tuple(len(each) for each in both))
