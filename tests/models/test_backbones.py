"""Backbones: shapes, what is frozen, and weights from files and from torchvision."""

from __future__ import annotations

import copy
import io
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.testing import assert_close
from torchvision import models

from rankdet.models.backbones import Backbone, Norm, build_backbone, group_norm

CHANNELS = {
    "tiny": (32, 64, 128, 128),
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
}
SIZES = [(25, 17), (13, 9), (7, 5), (4, 3)]


def weights_of(name: str) -> dict[str, torch.Tensor]:
    """Return weights as torchvision publishes them, the classifier included."""
    network = models.get_model(name, weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.uniform_()
    found: dict[str, torch.Tensor] = network.state_dict()
    return found


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize(
    ("norm", "stages"),
    [
        ("batch", (2, 3, 4, 5)),
        ("frozen", (3, 4, 5)),
        ("frozen_statistics", (3, 4, 5)),
        ("group", (5,)),
    ],
)
def test_each_stage_halves_the_map(name: str, norm: Norm, stages: tuple[int, ...]) -> None:
    backbone = build_backbone(name, norm=norm, stages=stages)
    assert backbone.channels == CHANNELS[name][-len(stages) :]
    assert backbone.strides == (4, 8, 16, 32)[-len(stages) :]
    # Sizes that no stride divides: the last places stand for what is left.
    maps = backbone(torch.randn(1, 3, 100, 65))
    expected = [(1, channels, *size) for channels, size in zip(
        backbone.channels, SIZES[-len(stages) :], strict=True)]  # fmt: skip
    assert [tuple(each.shape) for each in maps] == expected


@pytest.mark.parametrize("name", ["resnet101", "resnext101_64x4d"])
def test_the_large_networks_are_those_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        backbone, network = build_backbone(name, deformable_stages=3), models.get_model(name)
    assert backbone.channels == (512, 1024, 2048)
    ours = {key: value.shape for key, value in backbone.body.state_dict().items()}
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    added = {key for key in ours if ".conv2.offsets." in key}
    assert len(added) == 2 * (4 + 23 + 3)  # blocks of C3, C4 and C5
    assert {key: shape for key, shape in ours.items() if key not in added} == {
        key: shape for key, shape in wanted.items() if not key.startswith("fc.")
    }
    groups = {part.groups for part in backbone.modules() if isinstance(part, nn.Conv2d)}
    assert groups == ({1, 64} if name.startswith("resnext") else {1})


def test_the_maps_are_those_of_torchvision(tmp_path: Path) -> None:
    weights = weights_of("resnet18")
    torch.save(weights, tmp_path / "resnet.pth")
    backbone = build_backbone("resnet18", weights=str(tmp_path / "resnet.pth")).eval()
    network = models.resnet18(weights=None)
    network.load_state_dict(weights)
    network.eval()
    images = torch.randn(1, 3, 64, 64)
    last = backbone(images)[-1]
    assert_close(network.fc(last.mean((2, 3))), network(images))
    with_c2 = build_backbone("resnet18", weights=str(tmp_path / "resnet.pth"), stages=(2, 3, 4, 5))
    found = with_c2.eval()(images)
    stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    assert_close(found[0], network.layer1(stem))
    for ours, wanted in zip(found[1:], backbone(images), strict=True):
        assert torch.equal(ours, wanted)


def test_weights_in_safetensors_are_read(tmp_path: Path) -> None:
    weights = build_backbone("tiny").body.state_dict()
    path = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(weights, path)
    loaded = build_backbone("tiny", weights=str(path)).body.state_dict()
    assert weights.keys() == loaded.keys()
    for name, value in weights.items():
        assert torch.equal(value, loaded[name])


def require_frozen(module: nn.Module) -> None:
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(m.training for m in module.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("stages", [0, 1, 2, 4])
def test_frozen_stages_stay_frozen(stages: int) -> None:
    backbone = build_backbone("tiny", frozen_stages=stages)
    backbone.eval()
    backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    maps = backbone(torch.randn(2, 3, 64, 64))
    if stages < 4:
        sum(each.sum() for each in maps).backward()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1.0, weight_decay=0.1)
    optimizer.step()
    for name, part in backbone.body.named_children():
        is_frozen = stages > 0 and (not name.startswith("layer") or int(name[-1]) <= stages)
        learns = any(parameter.requires_grad for parameter in part.parameters())
        if is_frozen:
            require_frozen(part)
        elif name != "relu":
            assert learns
        for key, value in part.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(value, before[f"body.{name}.{key}"]) == is_frozen, (name, key)


def test_frozen_batch_norm_never_changes() -> None:
    backbone = build_backbone("tiny", norm="frozen").train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 13
    for norm in norms:
        require_frozen(norm)
    assert any(parameter.requires_grad for parameter in backbone.parameters())
    backbone(torch.randn(2, 3, 64, 64))
    assert all(norm.num_batches_tracked == 0 for norm in norms)
    usual = build_backbone("tiny").train()
    assert all(m.training for m in usual.modules())


def test_with_frozen_statistics_scale_and_shift_learn() -> None:
    backbone = build_backbone("tiny", norm="frozen_statistics", frozen_stages=1).train()
    norms = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert not any(norm.training for norm in norms.values())
    for name, norm in norms.items():
        learns = name.split(".")[1] in ("layer2", "layer3", "layer4")
        assert norm.weight.requires_grad == norm.bias.requires_grad == learns, name
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    sum(each.sum() for each in backbone(torch.randn(2, 3, 64, 64))).backward()
    for name, value in backbone.named_buffers():
        assert torch.equal(value, before[name])
    assert norms["body.layer2.0.bn1"].weight.grad is not None


def test_norms_stay_frozen_when_they_are_replaced() -> None:
    backbone = build_backbone("tiny", norm="frozen_statistics", frozen_stages=2)
    for name, channels in (("layer1.0", 32), ("layer3.0", 128)):
        backbone.body.get_submodule(name).bn1 = nn.BatchNorm2d(channels)
    backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 13
    assert not any(norm.training for norm in norms)
    assert copy.deepcopy(backbone).train().frozen == backbone.frozen


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"name must be one of 'resnet18', .*'timm:NAME', got 'vgg"
    ):
        build_backbone("vgg16")
    for stages in ((), (3, 4), (2, 4, 5), (5, 4), (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match="stages must be consecutive and end with 5"):
            build_backbone("tiny", stages=stages)
    with pytest.raises(ValueError, match="norm must be one of 'batch', 'frozen', 'frozen_stat"):
        build_backbone("tiny", norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"frozen_stages must be 0 to 4 .*got 5"):
        build_backbone("tiny", frozen_stages=5)
    with pytest.raises(ValueError, match=r"'DEFAULT' are for batch norm.*norm='group'"):
        build_backbone("resnet18", weights="DEFAULT", norm="group")


def test_an_unknown_name_of_weights_is_answered_with_the_known() -> None:
    with pytest.raises(ValueError, match=r"'resnet50' must be .*'IMAGENET1K_V2'.*got 'IMAGENET'"):
        build_backbone("resnet50", weights="IMAGENET")
    with pytest.raises(ValueError, match="'tiny' must be one of none by name, the path"):
        build_backbone("tiny", weights="IMAGENET1K_V1")


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no file of weights .*none\.safetensors"):
        build_backbone("resnet18", weights=str(path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02]q\x00."])
def test_a_file_that_is_none_of_weights_is_named(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\{suffix}"):
        build_backbone("resnet18", weights=str(path))


def test_a_file_cut_off_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(build_backbone("tiny").body.state_dict(), buffer)
    path = tmp_path / "cut.pth"
    path.write_bytes(buffer.getvalue()[:-1000])
    with pytest.raises(ValueError, match=r"cannot read weights from .*cut\.pth"):
        build_backbone("tiny", weights=str(path))


class Trap:
    """An object whose pickle runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the file was allowed to run code",))


def test_no_file_of_weights_may_run_code(tmp_path: Path) -> None:
    path = tmp_path / "trap.pth"
    torch.save({"conv1.weight": Trap()}, path)
    with pytest.raises(ValueError, match=r"cannot read weights from .*trap\.pth"):
        build_backbone("tiny", weights=str(path))


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(weights_of("resnet18"), path)
    with pytest.raises(ValueError, match=r"resnet18\.pth' do not fit the backbone 'resnet50'"):
        build_backbone("resnet50", weights=str(path))
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="not tensors by name"):
        build_backbone("resnet18", weights=str(path))


def test_weights_are_fetched_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    weights = weights_of("resnet18")

    def fetch(url: str, **settings: Any) -> dict[str, torch.Tensor]:
        asked.append(url)
        assert settings["check_hash"]
        assert settings["weights_only"]
        return weights

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    backbone = build_backbone("resnet18", weights="IMAGENET1K_V1", norm="frozen")
    assert asked == [models.ResNet18_Weights.IMAGENET1K_V1.url]
    for key, value in backbone.body.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route to host"),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value (expected "f37072fd", got "0000")'),
    ],
)
def test_a_download_that_fails_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fetch(url: str, **_: Any) -> None:
        raise failure

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(ConnectionError) as caught:
        build_backbone("resnet50", weights="DEFAULT")
    message = str(caught.value)
    url = models.ResNet50_Weights.DEFAULT.url
    for part in ("'DEFAULT'", "'resnet50'", url, str(failure), "checkpoints", "weights: null"):
        assert part in message


@pytest.mark.parametrize("channels", [1, 6, 9, 16, 64, 100, 256])
def test_group_norm_fits_any_width(channels: int) -> None:
    norm = group_norm(channels)
    assert norm(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)
    assert norm.num_groups <= 32


class TwoMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 5, 2, stride=2)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.first(images)
        return first, self.second(first)


def test_a_backbone_may_be_made_of_other_parts() -> None:
    backbone = Backbone(TwoMaps(), (4, 5), (8, 16), frozen=["first"])
    assert [tuple(each.shape) for each in backbone(torch.zeros(1, 3, 32, 32))] == [
        (1, 4, 4, 4),
        (1, 5, 2, 2),
    ]
    learns = [name for name, value in backbone.named_parameters() if value.requires_grad]
    assert learns == ["body.second.weight", "body.second.bias"]
    with pytest.raises(ValueError, match="as many as there are maps, got 2 and 3"):
        Backbone(TwoMaps(), (4, 5))
