"""Backbones of the library timm, by their names there."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from rankdet.models.backbone_weights import first_lines, is_file, read_weights

# Of batches a norm has seen: older files do without, and it has no effect.
_COUNT = ".num_batches_tracked"


class TimmMaps(nn.Module):
    """A network of timm that gives the maps a detector expects.

    Its maps cover ceil(size / stride) places whatever the network does at the border: images are
    padded with zeros, to the right and below, to a multiple of the largest stride.

    Args:
        network: made by timm with ``features_only``.
        strides: of its maps.
        channels_last: whether its maps are [B, H, W, channels].
    """

    def __init__(self, network: nn.Module, strides: Sequence[int], *, channels_last: bool) -> None:
        super().__init__()
        self.network = network
        self.strides = tuple(strides)
        self.channels_last = channels_last

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps, finest first.

        Raises:
            ValueError: the network has fewer places than its strides make.
        """
        height, width = images.shape[2:]
        below, right = (-side % self.strides[-1] for side in (height, width))
        if below or right:
            images = functional.pad(images, (0, right, 0, below))
        maps: list[Tensor] = list(self.network(images))
        if self.channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        wanted = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
        maps = [each[:, :, :y, :x] for each, (y, x) in zip(maps, wanted, strict=True)]
        found = [(each.shape[2], each.shape[3]) for each in maps]
        if found != wanted:
            raise ValueError(
                f"this network of timm gives maps of {found} places for images of {height} x "
                f"{width} pixels, where its strides {list(self.strides)} make {wanted}: it loses "
                f"places at the border, and cannot be a backbone"
            )
        return maps


def timm_maps(
    name: str, strides: Sequence[int], *, weights: str | None, frozen_stages: int
) -> tuple[TimmMaps, list[int], list[str]]:
    """Return a network of timm, the channels of its maps, and its first parts.

    Args:
        name: as timm has it, as ``"convnext_tiny"`` or ``"resnet50.a1_in1k"``.
        strides: of the maps wanted.
        weights: None for random ones; ``"DEFAULT"`` for those that timm publishes under the
            name, downloaded once; or the path of a .safetensors or .pth file with timm's names of
            weights for this network, those of the classifier left out.
        frozen_stages: the stem and the stages of strides 4, 8, 16 and 32 to name; 0 for none.

    Returns:
        The network, the numbers of channels, and the names of the parts of the network up to and
        with that stage.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm has no such network or no weights for it, or the network has no maps of
            these strides, or the weights do not fit.
        FileNotFoundError: there is no such file of weights.
        ConnectionError: the weights cannot be downloaded.
    """
    timm = _timm(name)
    _require_known(timm, name)
    shown = f"timm:{name}"
    if weights not in (None, "DEFAULT") and not is_file(weights or ""):
        raise ValueError(
            f"weights of the backbone {shown!r} must be 'DEFAULT', the path of a .safetensors or "
            f".pth file, or none; got {weights!r}. timm names published weights after the network, "
            f"as 'timm:resnet50.a1_in1k'"
        )
    if weights == "DEFAULT" and not timm.models.is_model_pretrained(name):
        raise ValueError(
            f"timm publishes no weights for {name!r}: give a file of weights, or none "
            f"(weights: null)"
        )
    # Made twice: which of its maps has which stride is known once it is there.
    reductions = [int(each) for each in _create(timm, name).feature_info.reduction()]
    missing = [stride for stride in strides if stride not in reductions]
    if missing:
        raise ValueError(
            f"the backbone {shown!r} has maps of strides {reductions}, but {list(strides)} are "
            f"needed: take a network with stages of strides 4 to 32"
        )
    indices = [_last(reductions, stride) for stride in strides]
    if weights == "DEFAULT":
        network = _create_trained(timm, name, indices)
    else:
        network = _create(timm, name, out_indices=indices)
        if weights is not None:
            _fill(network, shown, Path(weights))
    channels = [int(each) for each in network.feature_info.channels()]
    channels_last = "NHWC" in str(getattr(network, "output_fmt", "NCHW"))
    first = _first_parts(network, shown, frozen_stages)
    body = TimmMaps(network, strides, channels_last=channels_last)
    return body, channels, [f"network.{part}" for part in first]


def _timm(name: str) -> Any:
    try:
        import timm  # large, and few need it
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModuleNotFoundError(
            f"the backbone 'timm:{name}' needs the library timm: install it with "
            f"pip install 'rankdet[timm]'",
            name="timm",
        ) from error
    return timm


def _require_known(timm: Any, name: str) -> None:
    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"; near to it: {', '.join(near)}" if near else ""
    raise ValueError(
        f"timm {timm.__version__} has no network {name!r}{hint}. All of them: "
        f"python -c 'import timm; print(timm.list_models())'"
    )


def _create(timm: Any, name: str, **settings: Any) -> Any:
    try:
        # Transformers with windows would else take images of one size alone.
        return timm.create_model(name, features_only=True, strict_img_size=False, **settings)
    except TypeError:  # the others know no such setting
        return timm.create_model(name, features_only=True, **settings)


def _create_trained(timm: Any, name: str, indices: list[int]) -> Any:
    try:
        return _create(timm, name, out_indices=indices, pretrained=True)
    # The libraries that download for timm have errors of their own, of no common kind.
    except Exception as error:
        raise ConnectionError(
            f"cannot get timm's weights for {name!r}: {first_lines(error)}. Download them on a "
            f"machine with a network and give the path of the file as weights, or train without "
            f"(weights: null)"
        ) from error


def _fill(network: nn.Module, shown: str, path: Path) -> None:
    """Fill a network with the weights of a file, which may hold more, as a classifier."""
    values = read_weights(path)
    have = network.state_dict()
    found: dict[str, Tensor] = {}
    for key, value in values.items():
        # The names within a network that timm has cut; see `_first_parts`.
        names = (key, key.replace(".", "_", 1), f"model.{key}")
        found |= {own: value for own in names if own in have}
    missing = sorted(key for key in have.keys() - found.keys() if not key.endswith(_COUNT))
    wrong = sorted(key for key, value in found.items() if value.shape != have[key].shape)
    if missing or wrong:
        faults = [f"{len(missing)} are missing, the first is {missing[0]!r}"] if missing else []
        faults += [
            f"{key!r} is {list(found[key].shape)} there, but {list(have[key].shape)} here"
            for key in wrong[:1]
        ]
        raise ValueError(
            f"weights {str(path)!r} do not fit the backbone {shown!r}: {'; '.join(faults)}. The "
            f"file must hold the weights of this very network under timm's names"
        )
    network.load_state_dict(found)


def _first_parts(network: Any, shown: str, count: int) -> list[str]:
    """Return the names of the modules up to the ``count``-th stage, its parts included."""
    if count == 0:
        return []
    stride = 2 ** (count + 1)
    stages = {int(each["reduction"]): str(each["module"]) for each in network.feature_info.info}
    names = [name for name, _ in network.named_modules() if name]
    wanted = stages.get(stride, "")
    # timm may have cut the network: then the first dot is an underscore, or it is a level deeper.
    known = (wanted, wanted.replace(".", "_", 1), f"model.{wanted}")
    last = next((each for each in known if each in names), None)
    if last is None:
        raise ValueError(
            f"frozen_stages={count} cannot be had for the backbone {shown!r}: it does not say "
            f"which of its parts is the stage of stride {stride}; take frozen_stages=0"
        )
    # In the order they were built, which is that of their use. A part around the last stage
    # holds later stages as well.
    before = names[: names.index(last) + 1]
    return [name for name in before if name == last or not last.startswith(f"{name}.")]


def _last(values: list[int], value: int) -> int:
    """Return the last index of a value."""
    return len(values) - 1 - values[::-1].index(value)
