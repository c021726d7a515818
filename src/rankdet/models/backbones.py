"""Backbones: from images to feature maps of strides 8, 16 and 32, and 4 where it is wanted.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (ResNet).
Xie, Girshick, Dollár, Tu, He, "Aggregated Residual Transformations for Deep Neural Networks",
CVPR 2017 (ResNeXt).
Zhu, Hu, Lin, Dai, "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Self, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models
from torchvision.models.resnet import BasicBlock, conv1x1

from rankdet.models.backbone_deformable import make_deformable
from rankdet.models.backbone_timm import timm_maps
from rankdet.models.backbone_weights import load_weights
from rankdet.ops.checks import require_choice

Norm = Literal["batch", "frozen", "frozen_statistics", "group"]
NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_64x4d", "tiny")

# The stages C2 to C5 of strides 4 to 32, as torchvision calls them.
_LAYERS = {2: "layer1", 3: "layer2", 4: "layer3", 5: "layer4"}


def group_norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation with 32 groups, or fewer where that leaves them 4 channels.

    >>> group_norm(64).num_groups
    16
    """
    return nn.GroupNorm(math.gcd(32, channels, channels // 4), channels)


class Stages(nn.Sequential):
    """The parts of a residual network in turn: a stem, then layer1 to layer4.

    Args:
        parts: by name.
        stages: of C2 to C5, whose maps are returned.
    """

    def __init__(self, parts: OrderedDict[str, nn.Module], stages: Sequence[int]) -> None:
        super().__init__(parts)
        self.returned = frozenset(_LAYERS[stage] for stage in stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps, finest first."""
        x, found = images, []
        for name, part in self.named_children():
            x = part(x)
            if name in self.returned:
                found.append(x)
        return found

    def first_parts(self, count: int) -> list[str]:
        """Return the names of the stem and the stages up to the ``count``-th; none for 0."""
        thawed = list(_LAYERS.values())[count:]
        return [name for name, _ in self.named_children() if count and name not in thawed]


class Backbone(nn.Module):
    """A network that gives feature maps, and what of it does not learn.

    Args:
        body: images -> a list of maps, finest first.
        channels: numbers of channels of the maps.
        strides: of the maps, in pixels.
        frozen: names of parts of ``body`` that do not learn: they get no gradients and their
            batch norms stay in evaluation mode.
        norm: ``"batch"`` for batch norms that learn; ``"frozen"`` for ones that stay as they are;
            ``"frozen_statistics"`` for ones whose scale and shift alone learn.
    """

    def __init__(
        self,
        body: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int] = (8, 16, 32),
        *,
        frozen: Sequence[str] = (),
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if len(channels) != len(strides):
            raise ValueError(
                f"channels and strides must be as many as there are maps, got "
                f"{len(channels)} and {len(strides)}"
            )
        self.body = body
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.frozen, self.norm = tuple(frozen), norm
        for part in [*self._frozen(), *(self._norms() if norm == "frozen" else [])]:
            part.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, finest first.

        Args:
            images: [B, 3, H, W], normalised.

        Returns:
            Maps [B, channels, ceil(H / stride), ceil(W / stride)].
        """
        return list(self.body(images))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        still = self._norms() if self.norm in ("frozen", "frozen_statistics") else []
        for module in [*self._frozen(), *still]:
            module.eval()
        return self

    # Both are found anew each time: a module may have been replaced by another, as for
    # synchronised batch norm.
    def _frozen(self) -> list[nn.Module]:
        return [self.body.get_submodule(name) for name in self.frozen]

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.body.modules() if isinstance(module, _BatchNorm)]


def build_backbone(
    name: str,
    *,
    weights: str | None = None,
    frozen_stages: int = 0,
    norm: Norm = "batch",
    stages: Sequence[int] = (3, 4, 5),
    deformable_stages: int = 0,
) -> Backbone:
    """Return a backbone.

    Args:
        name: ``"resnet18"``, ``"resnet34"``, ``"resnet50"``, ``"resnet101"`` or
            ``"resnext101_64x4d"`` of torchvision; ``"tiny"``: a stem of 16 channels and one basic
            block per stage of 32, 64, 128 and 128 channels, for training from scratch on a CPU;
            or ``"timm:NAME"``: a network of the library timm that takes images of any size and
            has maps of the strides wanted.
        weights: None for random ones; the name of weights of torchvision, as
            ``"IMAGENET1K_V2"`` or ``"DEFAULT"`` (of timm: ``"DEFAULT"`` alone), which are
            downloaded once; or the path of a .safetensors or .pth file with torchvision's or
            timm's names of weights (for ``"tiny"`` those of ``Backbone.body``). A .pth file is
            read without running code from it. Weights of the classifier are left out.
        frozen_stages: 0 for none, 1 for the stem and the first stage, up to 4 for all.
        norm: ``"batch"``; ``"frozen"``, batch norm that never changes; ``"frozen_statistics"``,
            batch norm by the statistics of the weights, whose scale and shift learn: what is
            meant by frozen where RetinaNet and aLRP Loss were published; or ``"group"`` (not for
            timm, whose networks have norms of their own).
        stages: which maps are returned: (3, 4, 5) for C3, C4 and C5 of strides 8, 16 and 32,
            (2, 3, 4, 5) for C2 of stride 4 as well. The last is C5, and none is left out before.
        deformable_stages: in how many of the last stages the 3x3 convolutions of the bottlenecks
            (the second ones of basic blocks) are deformable: 3 for C3 to C5, as published for
            ResNeXt-101. Not for timm.

    Raises:
        ValueError: a setting is unknown or out of its range, or the weights do not fit.
        FileNotFoundError: there is no such file of weights.
        ConnectionError: the weights cannot be downloaded.
        ModuleNotFoundError: timm is needed, but not installed.
    """
    of_timm = name.startswith("timm:")
    if not of_timm:
        require_choice("name", name, (*NAMES, "timm:NAME"))
    require_choice("norm", norm, get_args(Norm))
    stages = tuple(stages)
    if not stages or stages != tuple(_LAYERS)[-len(stages) :]:
        raise ValueError(
            f"stages must be consecutive and end with 5, as (3, 4, 5) or (2, 3, 4, 5), got {stages}"
        )
    _require_stages("frozen_stages", frozen_stages, "1: the stem and the first stage")
    _require_stages("deformable_stages", deformable_stages, "3: the stages C3 to C5")
    strides = [2**stage for stage in stages]
    if of_timm:
        if norm == "group" or deformable_stages:
            raise ValueError(
                f"the backbone {name!r} is built by timm: it has neither norm='group' nor "
                f"deformable_stages; got norm={norm!r} and deformable_stages={deformable_stages}"
            )
        maps, widths, frozen = timm_maps(
            name.removeprefix("timm:"), strides, weights=weights, frozen_stages=frozen_stages
        )
        return Backbone(maps, widths, strides, frozen=frozen, norm=norm)
    layer = group_norm if norm == "group" else nn.BatchNorm2d
    parts, channels = _tiny(layer) if name == "tiny" else _resnet(name, layer)
    added: set[str] = set()
    for part in list(_LAYERS.values())[len(_LAYERS) - deformable_stages :]:
        added |= {f"{part}.{key}" for key in make_deformable(parts[part])}
    body = Stages(parts, stages)
    if weights is not None:
        if norm == "group":
            raise ValueError(
                f"weights {weights!r} are for batch norm: they need norm='batch', 'frozen' or "
                f"'frozen_statistics', got norm='group'"
            )
        load_weights(body, name, weights, optional=frozenset(added))
    return Backbone(
        body,
        channels[-len(stages) :],
        strides,
        frozen=body.first_parts(frozen_stages),
        norm=norm,
    )


def _require_stages(name: str, count: int, example: str) -> None:
    if not 0 <= count <= len(_LAYERS):
        raise ValueError(f"{name} must be 0 to {len(_LAYERS)} ({example}), got {count}")


_Parts = OrderedDict[str, nn.Module]


def _resnet(name: str, norm: Callable[[int], nn.Module]) -> tuple[_Parts, tuple[int, ...]]:
    network = models.get_model(name, weights=None, norm_layer=norm)
    parts = OrderedDict(network.named_children())
    del parts["avgpool"], parts["fc"]
    last: int = network.fc.in_features
    return parts, (last // 8, last // 4, last // 2, last)


def _tiny(norm: Callable[[int], nn.Module]) -> tuple[_Parts, tuple[int, ...]]:
    parts: _Parts = OrderedDict(
        conv1=nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        bn1=norm(16),
        relu=nn.ReLU(inplace=True),
    )
    channels = (32, 64, 128, 128)
    for layer, before, after in zip(_LAYERS.values(), (16, *channels), channels, strict=False):
        shortcut = nn.Sequential(conv1x1(before, after, stride=2), norm(after))
        block = partial(BasicBlock, stride=2, downsample=shortcut, norm_layer=norm)
        parts[layer] = nn.Sequential(block(before, after))
    for part in parts.values():
        for module in part.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision starts its residual networks
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return parts, channels
