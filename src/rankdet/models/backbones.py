"""Backbones: from images to feature maps of strides 8, 16 and 32.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from __future__ import annotations

import http.client
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, conv1x1

from rankdet.ops.checks import require_choice

Norm = Literal["batch", "frozen", "group"]
NAMES = ("resnet18", "resnet50", "resnet101", "tiny")

_STAGES = ("layer1", "layer2", "layer3", "layer4")
_FILES = (".safetensors", ".pth", ".pt")


def group_norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation with 32 groups, or fewer where that leaves them 4 channels.

    >>> group_norm(64).num_groups
    16
    """
    return nn.GroupNorm(math.gcd(32, channels, channels // 4), channels)


class Backbone(nn.Module):
    """The stages of a residual network.

    Args:
        body: the parts of the network in turn; those of the stages are named layer1 to layer4,
            what comes before them is the stem.
        channels: numbers of channels of C3, C4 and C5.
        frozen_stages: 0 for none, 1 for the stem and the first stage, up to 4 for all. They get
            no gradients and their batch norms stay in evaluation mode.
        frozen_norm: whether all batch norms stay as they are, statistics, scale and shift.
    """

    def __init__(
        self,
        body: nn.Sequential,
        channels: tuple[int, int, int],
        *,
        frozen_stages: int = 0,
        frozen_norm: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= frozen_stages <= len(_STAGES):
            raise ValueError(
                f"frozen_stages must be 0 to {len(_STAGES)} (1: the stem and the first stage), "
                f"got {frozen_stages}"
            )
        self.body = body
        self.channels = channels
        self.frozen_stages = frozen_stages
        self.frozen_norm = frozen_norm
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps C3, C4 and C5.

        Args:
            images: [B, 3, H, W], normalised.

        Returns:
            Three maps [B, channels, ceil(H / stride), ceil(W / stride)] of strides 8, 16, 32.
        """
        x, found = images, []
        for name, module in self.body.named_children():
            x = module(x)
            if name in _STAGES[1:]:
                found.append(x)
        return found

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        """Return the modules that do not learn."""
        frozen: list[nn.Module] = []
        if self.frozen_stages:
            thawed = _STAGES[self.frozen_stages :]
            frozen += [part for name, part in self.body.named_children() if name not in thawed]
        if self.frozen_norm:
            frozen += [m for m in self.body.modules() if isinstance(m, nn.BatchNorm2d)]
        return frozen


def build_backbone(
    name: str, *, weights: str | None = None, frozen_stages: int = 0, norm: Norm = "batch"
) -> Backbone:
    """Return a backbone.

    Args:
        name: ``"resnet18"``, ``"resnet50"``, ``"resnet101"`` of torchvision, or ``"tiny"``: a
            stem of 16 channels and one basic block per stage of 32, 64, 128 and 128 channels,
            for training from scratch on a CPU.
        weights: None for random ones; the name of weights of torchvision, as
            ``"IMAGENET1K_V2"`` or ``"DEFAULT"``, which are downloaded once; or the path of a
            .safetensors or .pth file with torchvision's names of weights (for ``"tiny"`` those
            of ``Backbone.body``). A .pth file is read without running code from it. Weights of
            the classifier, named fc, are left out.
        frozen_stages: 0 for none, 1 for the stem and the first stage, up to 4 for all.
        norm: ``"batch"``; ``"frozen"``, batch norm that never changes; or ``"group"``.

    Raises:
        ValueError: name, weights, frozen_stages or norm is unknown, or the file does not fit.
        FileNotFoundError: there is no such file of weights.
        ConnectionError: the weights cannot be downloaded.
    """
    require_choice("name", name, NAMES)
    require_choice("norm", norm, get_args(Norm))
    layer = group_norm if norm == "group" else nn.BatchNorm2d
    body, channels = _tiny(layer) if name == "tiny" else _resnet(name, layer)
    if weights is not None:
        if norm == "group":
            raise ValueError(
                f"weights {weights!r} are for batch norm: they need norm='batch' or 'frozen', "
                f"got norm='group'"
            )
        _load(body, name, weights)
    return Backbone(body, channels, frozen_stages=frozen_stages, frozen_norm=norm == "frozen")


def _resnet(
    name: str, norm: Callable[[int], nn.Module]
) -> tuple[nn.Sequential, tuple[int, int, int]]:
    network = models.get_model(name, weights=None, norm_layer=norm)
    parts = [(n, part) for n, part in network.named_children() if n not in ("avgpool", "fc")]
    last: int = network.fc.in_features
    return nn.Sequential(OrderedDict(parts)), (last // 4, last // 2, last)


def _tiny(norm: Callable[[int], nn.Module]) -> tuple[nn.Sequential, tuple[int, int, int]]:
    parts: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)),
        ("bn1", norm(16)),
        ("relu", nn.ReLU(inplace=True)),
    ]
    sizes = (16, 32, 64, 128, 128)
    for stage, before, after in zip(_STAGES, sizes, sizes[1:], strict=False):
        shortcut = nn.Sequential(conv1x1(before, after, stride=2), norm(after))
        block = partial(BasicBlock, stride=2, downsample=shortcut, norm_layer=norm)
        parts.append((stage, nn.Sequential(block(before, after))))
    body = nn.Sequential(OrderedDict(parts))
    for module in body.modules():
        if isinstance(module, nn.Conv2d):  # as torchvision starts its residual networks
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body, (sizes[2], sizes[3], sizes[4])


def _load(body: nn.Module, name: str, weights: str) -> None:
    """Fill a body with weights from a file or from torchvision."""
    path = Path(weights)
    is_file = path.suffix in _FILES or len(path.parts) > 1
    values = _read(path) if is_file else _download(name, weights)
    values = {key: value for key, value in values.items() if not key.startswith("fc.")}
    try:
        body.load_state_dict(values)
    except RuntimeError as error:
        raise ValueError(
            f"weights {weights!r} do not fit the backbone {name!r}: {_first_lines(error)}. The "
            f"file must hold the weights of this very network under torchvision's names"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file of weights {path} (looked for {path.absolute()}): give the path of "
            f"a .safetensors or .pth file, the name of weights of torchvision, or none"
        )
    try:
        loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    except ImportError:
        raise
    # Each library has its own errors for a file that is none of its kind.
    except Exception as error:
        raise ValueError(
            f"cannot read weights from {path}: {_first_lines(error)}. It must be a complete "
            f".safetensors file, or a .pth file that holds tensors by name and nothing else"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(
            f"{path} holds a {type(loaded).__name__} that is not tensors by name: save the "
            f"state_dict of the network alone"
        )
    return dict(loaded)


def _read_safetensors(path: Path) -> object:
    from safetensors.torch import load_file  # a library that only such files need

    return load_file(path)


def _read_pth(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _download(name: str, weights: str) -> dict[str, Tensor]:
    known: dict[str, Any] = {}
    if name != "tiny":
        known = dict(models.get_model_weights(name).__members__)
    if weights not in known:
        choices = ", ".join(repr(key) for key in known) or "none by name"
        raise ValueError(
            f"weights of the backbone {name!r} must be one of {choices}, the path of a "
            f".safetensors or .pth file, or none; got {weights!r}"
        )
    url: str = known[weights].url
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, http.client.HTTPException, pickle.UnpicklingError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        raise ConnectionError(
            f"cannot get the weights {weights!r} of the backbone {name!r} from {url}: "
            f"{_first_lines(error)}. Download that file on a machine with a network and put it at "
            f"{place}, or give its path as weights, or train without (weights: null)"
        ) from error


def _first_lines(error: BaseException) -> str:
    """Return the beginning of an error's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."
