"""Deformable convolutions: the published formula, and trained weights that keep their meaning."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rankdet.models.backbone_deformable import DeformableConv, make_deformable
from rankdet.models.backbones import build_backbone


def at(image: Tensor, y: float, x: float) -> Tensor:
    """Return the bilinear value of [channels, H, W] at a place; 0 outside."""
    total = torch.zeros_like(image[:, 0, 0])
    top, left = int(y // 1), int(x // 1)
    for row, column in product((top, top + 1), (left, left + 1)):
        if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
            total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
    return total


def from_the_paper(layer: DeformableConv, conv: nn.Conv2d, image: Tensor) -> Tensor:
    """Equation 1, place by place and point by point, for one image; modulation up to 2."""
    said = layer.offsets(image[None])[0]
    rows, columns = said.shape[1:]
    out = torch.zeros(conv.out_channels, rows, columns, dtype=image.dtype)
    per_group = conv.out_channels // conv.groups
    inputs = conv.in_channels // conv.groups
    for y, x in product(range(rows), range(columns)):
        for point in range(9):
            dy, dx = said[2 * point, y, x].item(), said[2 * point + 1, y, x].item()
            at_y = y * conv.stride[0] - int(conv.padding[0]) + point // 3 * conv.dilation[0] + dy
            at_x = x * conv.stride[1] - int(conv.padding[1]) + point % 3 * conv.dilation[1] + dx
            value = at(image, at_y, at_x) * 2 * said[18 + point, y, x].sigmoid()
            for group in range(conv.groups):
                some = slice(group * per_group, (group + 1) * per_group)
                weight = conv.weight[some, :, point // 3, point % 3]
                out[some, y, x] += weight @ value[group * inputs : (group + 1) * inputs]
    return out if conv.bias is None else out + conv.bias[:, None, None]


SETTINGS = pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
    ],
    ids=["plain", "grouped", "dilated"],
)


@SETTINGS
def test_it_is_the_published_formula(conv: nn.Conv2d) -> None:
    conv = conv.double()
    layer = DeformableConv(conv)
    nn.init.normal_(layer.offsets.weight, std=0.3)
    assert layer.offsets.bias is not None
    nn.init.normal_(layer.offsets.bias)
    image = torch.randn(4, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        wanted, found = from_the_paper(layer, conv, image), layer(image[None])[0]
        assert_close(found, wanted, rtol=0, atol=1e-12)
        assert layer.offsets.bias is not None
        layer.offsets.bias += 1e-11
        with pytest.raises(AssertionError):
            assert_close(layer(image[None])[0], wanted, rtol=0, atol=1e-12)


@SETTINGS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_at_the_start_it_is_the_convolution_it_is_made_from(
    conv: nn.Conv2d, dtype: torch.dtype
) -> None:
    conv = conv.to(dtype)
    layer, images = DeformableConv(conv), torch.randn(2, 4, 9, 10, dtype=dtype)
    assert layer.weight is conv.weight
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert_close(layer(images), conv(images), rtol=0, atol=tolerance)


def test_it_learns_where_to_look() -> None:
    torch.manual_seed(2)
    layer = DeformableConv(nn.Conv2d(2, 2, 3, padding=1)).double()
    nn.init.uniform_(layer.offsets.weight, -0.05, 0.05)
    images = torch.rand(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = [each.detach().clone().requires_grad_() for each in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def output(x: Tensor, *values: Tensor) -> Tensor:
        found = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)
        assert isinstance(found, Tensor)
        return found

    assert torch.autograd.gradcheck(output, (images, *weights))
    fresh = DeformableConv(nn.Conv2d(2, 2, 3, padding=1))
    fresh(images.detach().float()).square().sum().backward()
    assert fresh.offsets.weight.grad is not None
    assert (fresh.offsets.weight.grad[18:] != 0).any()
    assert (fresh.offsets.weight.grad[:18] != 0).any()


def test_in_16_bits_it_is_near() -> None:
    layer = DeformableConv(nn.Conv2d(4, 4, 3, padding=1, bias=False))
    images = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(images)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), layer(images), rtol=0.01, atol=0.01)
    assert layer.bfloat16()(images.bfloat16()).dtype == torch.bfloat16


def deformable(backbone: nn.Module) -> list[str]:
    return [name for name, part in backbone.named_modules() if isinstance(part, DeformableConv)]


def test_the_last_stages_are_deformable() -> None:
    for count in range(5):
        names = deformable(build_backbone("tiny", deformable_stages=count))
        assert names == [f"body.layer{stage}.0.conv2" for stage in range(5 - count, 5)]
    names = deformable(build_backbone("resnet50", deformable_stages=3))
    blocks = {2: 4, 3: 6, 4: 3}
    assert names == [
        f"body.layer{stage}.{block}.conv2" for stage in blocks for block in range(blocks[stage])
    ]
    for count in (-1, 5):
        with pytest.raises(ValueError, match=f"deformable_stages must be 0 to 4 .*got {count}"):
            build_backbone("tiny", deformable_stages=count)
    with pytest.raises(ValueError, match="no residual block"):
        make_deformable(nn.Conv2d(3, 3, 3))


def test_trained_weights_go_into_a_deformable_backbone_unchanged(tmp_path: Path) -> None:
    plain, path = build_backbone("tiny").eval(), tmp_path / "tiny.pth"
    torch.save(plain.body.state_dict(), path)
    backbone = build_backbone("tiny", weights=str(path), deformable_stages=3).eval()
    added = {key for key in backbone.body.state_dict() if "offsets" in key}
    assert backbone.body.state_dict().keys() - added == plain.body.state_dict().keys()
    images = torch.randn(2, 3, 60, 70)
    for ours, wanted in zip(backbone(images), plain(images), strict=True):
        assert_close(ours, wanted, rtol=1e-5, atol=1e-5)

    for name, value in backbone.named_parameters():
        if "offsets" in name:
            nn.init.normal_(value, std=0.1)
    torch.save(backbone.body.state_dict(), path)
    again = build_backbone("tiny", weights=str(path), deformable_stages=3).eval()
    for ours, wanted in zip(again(images), backbone(images), strict=True):
        assert torch.equal(ours, wanted)
    with pytest.raises(ValueError, match="do not fit the backbone 'tiny'"):
        build_backbone("tiny", weights=str(path))
    with pytest.raises(ValueError, match=r"Missing key.*layer1\.0\.conv2\.offsets"):
        build_backbone("tiny", weights=str(path), deformable_stages=4)


def test_a_deformable_stage_may_be_frozen() -> None:
    backbone = build_backbone("tiny", deformable_stages=4, frozen_stages=1, norm="frozen")
    learns = {name for name, value in backbone.named_parameters() if value.requires_grad}
    assert "body.layer2.0.conv2.offsets.weight" in learns
    assert not any(name.startswith("body.layer1") for name in learns)
