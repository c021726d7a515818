"""Backbones of timm: with a small stand-in for the library, and with itself where it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rankdet.models.backbones import build_backbone

WIDTHS = (4, 6, 8, 10, 12)


class Info:
    """What timm says of the maps of a network."""

    def __init__(self, reductions: Sequence[int], out_indices: Sequence[int]) -> None:
        modules = ("stem", "stages.0", "stages.1", "stages.2", "stages.3")
        self.info = [
            {"num_chs": width, "reduction": reduction, "module": module}
            for width, reduction, module in zip(WIDTHS, reductions, modules, strict=True)
        ]
        self.out_indices = tuple(out_indices)

    def reduction(self) -> list[Any]:
        return [self.info[i]["reduction"] for i in self.out_indices]

    def channels(self) -> list[Any]:
        return [self.info[i]["num_chs"] for i in self.out_indices]


class Network(nn.Module):
    """Five stages, each of which halves the map; as in timm, a dot became an underscore."""

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3, 4),
        reductions: Sequence[int] = (2, 4, 8, 16, 32),
        output_fmt: str = "NCHW",
        padding: int = 1,
    ) -> None:
        super().__init__()
        self.feature_info = Info(reductions, out_indices)
        self.output_fmt = output_fmt
        names = ("stem", "stages_0", "stages_1", "stages_2", "stages_3")
        for name, before, after in zip(names, (3, *WIDTHS), WIDTHS, strict=False):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=padding, bias=False)
            self.add_module(name, nn.Sequential(conv, nn.BatchNorm2d(after)))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for part in self.children():
            x = part(x)
            maps.append(x.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else x)
        return [maps[i] for i in self.feature_info.out_indices]


def trained(network: Network) -> Network:
    for value in network.parameters():
        nn.init.constant_(value, 0.5)
    return network


class Library(ModuleType):
    """The part of timm that is used."""

    __version__ = "1.0"
    models = SimpleNamespace(is_model_pretrained=lambda name: name == "five.trained")
    failure: Exception | None = None

    def is_model(self, name: str) -> bool:
        return name in self.list_models()

    def list_models(self) -> list[str]:
        return ["five", "five.trained", "last", "deep", "single", "narrow", "windows"]

    def create_model(self, name: str, *, features_only: bool, **settings: Any) -> Network:
        assert features_only
        if settings.pop("strict_img_size", None) is not None and name != "windows":
            raise TypeError("unexpected keyword argument 'strict_img_size'")
        if settings.pop("pretrained", False):
            if self.failure is not None:
                raise self.failure
            return trained(Network(**settings))
        special: dict[str, Any] = {
            "last": {"output_fmt": "NHWC"},
            "deep": {"reductions": (4, 8, 16, 32, 64)},
            "single": {"reductions": (16,) * 5},
            "narrow": {"padding": 0},
        }
        return Network(**special.get(name, {}), **settings)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library("timm")
    monkeypatch.setitem(sys.modules, "timm", made)
    return made


@pytest.mark.parametrize("name", ["five", "last", "windows"])
@pytest.mark.parametrize("stages", [(3, 4, 5), (2, 3, 4, 5)], ids=str)
def test_maps_have_the_strides_wanted(library: Library, name: str, stages: tuple[int, ...]) -> None:
    backbone = build_backbone(f"timm:{name}", stages=stages).eval()
    assert backbone.strides == tuple(2**stage for stage in stages)
    assert backbone.channels == WIDTHS[-len(stages) :]
    images = torch.randn(2, 3, 64, 96)
    network = backbone.body.network
    assert isinstance(network, Network)
    maps = backbone(images)
    network.output_fmt = "NCHW"
    for ours, wanted in zip(maps, network(images), strict=True):
        assert torch.equal(ours, wanted)


def test_a_network_of_other_strides_is_chosen_by_strides(library: Library) -> None:
    backbone = build_backbone("timm:deep")
    assert backbone.channels == (6, 8, 10)
    with pytest.raises(
        ValueError, match=r"'timm:single' has maps of strides \[16, .* \[8, 16, 32\]"
    ):
        build_backbone("timm:single")


def test_maps_cover_what_is_left_at_the_border(library: Library) -> None:
    images = torch.randn(1, 3, 70, 33)
    maps = build_backbone("timm:five").eval()(images)
    assert [each.shape[2:] for each in maps] == [(9, 5), (5, 3), (3, 2)]
    with pytest.raises(ValueError, match=r"gives maps of .* 70 x 33 pixels.*loses places"):
        build_backbone("timm:narrow")(images)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_first_stages_are_frozen(library: Library, count: int) -> None:
    backbone = build_backbone("timm:five", frozen_stages=count, norm="frozen_statistics").train()
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    for number, part in enumerate(backbone.body.get_submodule("network").children()):
        for value in part.parameters():
            assert value.requires_grad == (count == 0 or number > count)


def test_a_stage_that_is_not_named_cannot_be_frozen(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "create_model", lambda *_, **settings: _without_names(settings))
    with pytest.raises(ValueError, match=r"frozen_stages=4 cannot be had .*stage of stride 32"):
        build_backbone("timm:five", frozen_stages=4)


def _without_names(settings: dict[str, Any]) -> Network:
    network = Network(settings.get("out_indices", (0, 1, 2, 3, 4)))
    for each in network.feature_info.info:
        each["module"] = "elsewhere"
    return network


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_file(library: Library, tmp_path: Path, suffix: str) -> None:
    # As timm saves a whole network: with dots, and with a classifier.
    wanted = trained(Network()).state_dict()
    values = {key.replace("stages_", "stages."): value for key, value in wanted.items()}
    values["head.fc.weight"] = torch.ones(3, 3)
    path = tmp_path / f"five{suffix}"
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save(values, path)
    network = build_backbone("timm:five", weights=str(path)).body.get_submodule("network")
    for key, value in network.state_dict().items():
        assert torch.equal(value, wanted[key])

    del values["stages.2.0.weight"]
    values["stages.3.0.weight"] = torch.ones(1, 2)
    save(values, path)
    with pytest.raises(
        ValueError, match=r"do not fit .*'timm:five': 1 are missing, .*\[1, 2\] there"
    ):
        build_backbone("timm:five", weights=str(path))
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        build_backbone("timm:five", weights=str(tmp_path / "none.pth"))


def test_published_weights_are_fetched(library: Library) -> None:
    backbone = build_backbone("timm:five.trained", weights="DEFAULT")
    assert all((value == 0.5).all() for value in backbone.parameters())
    with pytest.raises(ValueError, match="timm publishes no weights for 'five'"):
        build_backbone("timm:five", weights="DEFAULT")
    with pytest.raises(ValueError, match=r"must be 'DEFAULT', the path.*got 'IMAGENET1K_V1'"):
        build_backbone("timm:five", weights="IMAGENET1K_V1")


def test_a_download_that_fails_says_what_to_do(library: Library) -> None:
    library.failure = Exception("no route to host")
    with pytest.raises(ConnectionError, match=r"'five.trained': no route to host.*weights: null"):
        build_backbone("timm:five.trained", weights="DEFAULT")


def test_what_timm_does_not_have_is_refused(library: Library) -> None:
    with pytest.raises(ValueError, match=r"timm 1.0 has no network 'fives'; near to it: five"):
        build_backbone("timm:fives")
    for settings in ({"norm": "group"}, {"deformable_stages": 1}):
        with pytest.raises(ValueError, match="neither norm='group' nor deformable_stages"):
            build_backbone("timm:five", **settings)


def test_without_timm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"'timm:five' needs .*rankdet\[timm\]"):
        build_backbone("timm:five")


# Of several kinds: cut in two ways, maps with the channels last, stages within one part.
REAL = ("resnet18", "convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224")


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", REAL)
def test_timm_itself_gives_these_maps(name: str, tmp_path: Path) -> None:
    timm = import_module("timm")
    whole = timm.create_model(name)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(whole.state_dict(), path)
    backbone = build_backbone(f"timm:{name}", weights=str(path), frozen_stages=2).eval()
    side = 224 if "swin" in name else 64
    images = torch.randn(1, 3, side, side)
    _, wanted = whole.eval().forward_intermediates(images)
    with torch.no_grad():
        maps = backbone(images)
    for ours, theirs in zip(maps, wanted[-3:], strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    learns = {value.requires_grad for _, value in backbone.named_parameters()}
    assert learns == {True, False}
    assert next(backbone.parameters()).requires_grad is False
    assert list(backbone.parameters())[-1].requires_grad
