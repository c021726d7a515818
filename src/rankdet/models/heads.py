"""The dense head: class logits and box codes for every prior of every level.

Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017.
Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019
(centreness, a scale for each level).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankdet.models.backbones import group_norm
from rankdet.ops.checks import require_choice

HeadNorm = Literal["group", "batch"]
Source = Literal["boxes", "classes"]


class HeadOutputs(NamedTuple):
    """What a head says; priors in the order of level, row, column, shape at a place."""

    logits: Tensor
    """[B, A, C]."""
    codes: Tensor
    """[B, A, 4]."""
    branches: dict[str, Tensor]
    """Each [B, A]."""


class DenseHead(nn.Module):
    """Two towers of convolutions, one for classes and one for boxes, shared by all levels.

    Args:
        channels: number of channels of the feature maps, and of the towers.
        classes: C.
        per_place: number of priors at each place.
        convs: number of convolutions in each tower.
        norm: None, or what follows each of them: ``"group"`` for group normalisation, or
            ``"batch"`` for batch normalisation with statistics for each level. Group
            normalisation looks at a whole map, padding and all, so what is found in an image
            depends on how far it was padded; fixed statistics do not.
        class_prior: score of all classes and places at the start, in (0, 1).
        centreness: whether there is a branch "centreness".
        centreness_from: the tower it comes from, ``"boxes"`` or ``"classes"``.
        iou: whether there is a branch "iou", from the tower for boxes.
        level_scales: whether the codes of each level are multiplied by a learned number.
        levels: number of feature maps.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        per_place: int,
        *,
        convs: int = 4,
        norm: HeadNorm | None = None,
        class_prior: float = 0.01,
        centreness: bool = False,
        centreness_from: Source = "boxes",
        iou: bool = False,
        level_scales: bool = False,
        levels: int = 5,
    ) -> None:
        super().__init__()
        for name, number in (("classes", classes), ("per_place", per_place), ("levels", levels)):
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if convs < 0:
            raise ValueError(f"convs must be 0 or more, got {convs}")
        if norm is not None:
            require_choice("norm", norm, get_args(HeadNorm))
        require_choice("centreness_from", centreness_from, get_args(Source))
        if not 0 < class_prior < 1:
            raise ValueError(f"class_prior must be between 0 and 1, got {class_prior}")
        self.classes, self.per_place, self.levels = classes, per_place, levels
        self.centreness_from = centreness_from
        self.class_tower = Tower(channels, convs, norm, levels)
        self.box_tower = Tower(channels, convs, norm, levels)
        self.to_logits = nn.Conv2d(channels, per_place * classes, 3, padding=1)
        self.to_codes = nn.Conv2d(channels, per_place * 4, 3, padding=1)
        self.to_centreness = nn.Conv2d(channels, per_place, 3, padding=1) if centreness else None
        self.to_iou = nn.Conv2d(channels, per_place, 3, padding=1) if iou else None
        self.scales = nn.Parameter(torch.ones(levels)) if level_scales else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.to_logits.bias is not None
        nn.init.constant_(self.to_logits.bias, math.log(class_prior / (1 - class_prior)))

    @property
    def branches(self) -> frozenset[str]:
        """Names of the further outputs."""
        there = {"centreness": self.to_centreness, "iou": self.to_iou}
        return frozenset(name for name, layer in there.items() if layer is not None)

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Return the predictions of all levels.

        Args:
            features: a map [B, channels, H, W] for each level, finest first.

        Raises:
            ValueError: for another number of maps.
        """
        if len(features) != self.levels:
            raise ValueError(f"expected {self.levels} feature maps, got {len(features)}")
        scales = [None] * self.levels if self.scales is None else self.scales.unbind()
        logits, codes = [], []
        branches: dict[str, list[Tensor]] = {name: [] for name in self.branches}
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            for_classes = self.class_tower(feature, level)
            for_boxes = self.box_tower(feature, level)
            logits.append(_by_prior(self.to_logits(for_classes), self.classes))
            code = _by_prior(self.to_codes(for_boxes), 4)
            codes.append(code if scale is None else code * scale)
            if self.to_centreness is not None:
                source = for_boxes if self.centreness_from == "boxes" else for_classes
                branches["centreness"].append(_by_prior(self.to_centreness(source), 1))
            if self.to_iou is not None:
                branches["iou"].append(_by_prior(self.to_iou(for_boxes), 1))
        joined = {name: torch.cat(levels, 1).squeeze(2) for name, levels in branches.items()}
        return HeadOutputs(torch.cat(logits, 1), torch.cat(codes, 1), joined)


class Tower(nn.Module):
    """Convolutions shared by all levels, each followed by a norm and a ReLU.

    Args:
        channels: number of channels in and out.
        convs: number of convolutions.
        norm: None, ``"group"``, or ``"batch"`` with statistics for each level.
        levels: number of feature maps.
    """

    def __init__(self, channels: int, convs: int, norm: HeadNorm | None, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=norm is None) for _ in range(convs)
        )
        # The maps of the levels differ in their statistics; one set for all would fit none.
        sets = {None: 0, "group": 1, "batch": levels}[norm]
        make = nn.BatchNorm2d if norm == "batch" else group_norm
        self.norms = nn.ModuleList(
            nn.ModuleList(make(channels) for _ in range(sets)) for _ in range(convs)
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Return the map of a level [B, channels, H, W], transformed."""
        for conv, norms in zip(self.convs, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            x = conv(x)
            if len(norms):
                x = norms[level if len(norms) > 1 else 0](x)
            x = functional.relu(x, inplace=True)
        return x


def _by_prior(x: Tensor, numbers: int) -> Tensor:
    """Turn [B, per_place * numbers, H, W] into [B, H * W * per_place, numbers]."""
    places = x.permute(0, 2, 3, 1)  # a view where x is channels_last
    return places.reshape(x.shape[0], -1, numbers)
