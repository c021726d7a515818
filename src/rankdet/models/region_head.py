"""The second stage of Faster R-CNN: what is in each region, and where exactly.

Girshick, "Fast R-CNN", ICCV 2015 (two fully connected layers, a box for each class).
Lin, Dollár, Girshick, He, Hariharan, Belongie, "Feature Pyramid Networks for Object Detection",
CVPR 2017, section 4.2 (the level of a region).
He, Gkioxari, Dollár, Girshick, "Mask R-CNN", ICCV 2017 (RoIAlign).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align

from rankdet.ops.boxes import area
from rankdet.ops.checks import require_positive, require_shape
from rankdet.structures import Regions


@dataclass(frozen=True)
class RegionPooling:
    """Cut each region out of the feature map of its level, as a grid of equal size.

    A region of area a goes to level floor(log2(√a / ``finest_side`` + 1e-6)), or to the nearest
    level there is: the larger it is, the coarser its map. There it is divided into ``size`` x
    ``size`` cells, each the mean of the interpolated map at several points.

    Args:
        strides: of the maps used, in pixels, finest first; further maps are left aside.
        size: cells along a side.
        finest_side: √a from which on regions move up from the finest level: at twice this to the
            next one; in pixels.
        points: along a side of a cell; 0 for as many as make their distance one place of the map
            or less.

    Raises:
        ValueError: a setting is out of its range.

    References:
        Lin et al., CVPR 2017, equation 1 (there from 224 px on level 4, with √a alone).

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 16, 16], [0, 0, 112, 112], [0, 0, 900, 900]])
        >>> RegionPooling().levels(boxes)
        tensor([0, 1, 3])
    """

    strides: tuple[int, ...] = (4, 8, 16, 32)
    size: int = 7
    finest_side: float = 56.0
    points: int = 0

    def __post_init__(self) -> None:
        if not self.strides:
            raise ValueError("strides must hold at least one number")
        for stride in self.strides:
            require_positive("each of strides", stride)
        require_positive("size", self.size)
        require_positive("finest_side", self.finest_side)
        require_positive("points", self.points, zero_allowed=True)

    def levels(self, boxes: Tensor) -> Tensor:
        """Return the level of each box.

        Args:
            boxes: [R, 4] xyxy in pixels, floating.

        Returns:
            [R] int64, 0 for the finest.
        """
        require_shape("boxes", boxes, "R", 4)
        octave = (area(boxes).sqrt() / self.finest_side + 1e-6).log2().floor()
        return octave.clamp(0, len(self.strides) - 1).long()

    def __call__(self, features: Sequence[Tensor], regions: Regions) -> Tensor:
        """Return what the maps hold of each region.

        Args:
            features: a map [B, channels, H, W] for each of ``strides`` at least, finest first.
            regions: R of them.

        Returns:
            [R, channels, size, size], float32 or float64.

        Raises:
            ValueError: there are fewer maps than strides.

        Gradient: ordinary derivative for the maps, none for the boxes.
        """
        if len(features) < len(self.strides):
            raise ValueError(f"expected {len(self.strides)} maps or more, got {len(features)}")
        levels, order = self.levels(regions.boxes).sort(stable=True)
        index = regions.image.to(regions.boxes.dtype)[:, None]
        boxes = torch.cat([index, regions.boxes], 1)[order]  # [R, 5] image, then the corners
        numbers = torch.arange(len(self.strides), device=levels.device)
        ends = torch.searchsorted(levels, numbers, right=True)
        counts = ends.diff(prepend=ends.new_zeros(1)).tolist()  # the one wait for a GPU
        pooled = []
        for feature, stride, each in zip(features, self.strides, boxes.split(counts), strict=False):
            # In 16 bits the operator exists on some devices only, and would add up in 16 bits.
            feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
            pooled.append(
                roi_align(
                    feature,
                    each.to(feature.dtype),
                    self.size,
                    spatial_scale=1 / stride,
                    sampling_ratio=self.points or -1,
                    aligned=True,
                )
            )
        return torch.cat(pooled)[order.argsort()]


class RegionOutputs(NamedTuple):
    """What a head says of R regions; see `rankdet.structures.RegionPredictions`."""

    logits: Tensor
    """[R, C]."""
    codes: Tensor
    """[R, C, 4] or [R, 1, 4]."""
    branches: dict[str, Tensor]
    """Each [R]."""
    hidden: Tensor
    """[R, hidden], what all of these were computed from."""


class RegionHead(nn.Module):
    """Two fully connected layers, then the classes and the boxes of each region.

    Args:
        channels: number of channels of the feature maps.
        classes: C.
        size: cells along a side of a region.
        hidden: width of the two layers.
        background: whether there is a branch "background", which makes the scores a softmax.
        agnostic: whether all classes share one box.
        class_prior: score of all classes at the start, in (0, 1); not used with background.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        size: int = 7,
        hidden: int = 1024,
        background: bool = False,
        agnostic: bool = False,
        class_prior: float = 0.5,
    ) -> None:
        super().__init__()
        for name, number in (("channels", channels), ("classes", classes), ("size", size),
                             ("hidden", hidden)):  # fmt: skip
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if not 0 < class_prior < 1:
            raise ValueError(f"class_prior must be between 0 and 1, got {class_prior}")
        self.classes, self.background, self.agnostic = classes, background, agnostic
        self.first = nn.Linear(channels * size**2, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.to_logits = nn.Linear(hidden, classes + background)
        self.to_codes = nn.Linear(hidden, 4 if agnostic else 4 * classes)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.to_logits.weight, std=0.01)
        nn.init.normal_(self.to_codes.weight, std=0.001)
        for layer in (self.first, self.second, self.to_logits, self.to_codes):
            nn.init.zeros_(layer.bias)
        if not background:
            nn.init.constant_(self.to_logits.bias, math.log(class_prior / (1 - class_prior)))

    @property
    def branches(self) -> frozenset[str]:
        """Names of the further outputs."""
        return frozenset({"background"}) if self.background else frozenset()

    def forward(self, pooled: Tensor) -> RegionOutputs:
        """Return the predictions of all regions.

        Args:
            pooled: [R, channels, size, size], R of 0 and more.
        """
        x = functional.relu(self.first(pooled.flatten(1)))
        x = functional.relu(self.second(x))
        logits = self.to_logits(x)
        codes = self.to_codes(x).view(len(x), 1 if self.agnostic else self.classes, 4)
        branches = {"background": logits[:, self.classes]} if self.background else {}
        return RegionOutputs(logits[:, : self.classes], codes, branches, x)
