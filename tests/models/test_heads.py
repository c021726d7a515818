"""Pyramid and head: shapes, the order of priors, the start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from torchvision.ops import FeaturePyramidNetwork

from rankdet.models.fpn import FPN
from rankdet.models.heads import DenseHead
from rankdet.models.priors import AnchorGenerator


def maps(*, odd: bool = False) -> list[torch.Tensor]:
    sizes = [(13, 9), (7, 5), (4, 3)] if odd else [(16, 8), (8, 4), (4, 2)]
    return [torch.randn(2, width, *size) for width, size in zip((6, 8, 12), sizes, strict=True)]


@pytest.mark.parametrize("extra", ["c5", "p5"])
@pytest.mark.parametrize("levels", [3, 4, 5, 6])
def test_each_level_is_half_as_large(levels: int, extra: Any) -> None:
    fpn = FPN((6, 8, 12), 16, levels=levels, extra=extra)
    assert fpn.strides == (8, 16, 32, 64, 128, 256)[:levels]
    found = fpn(maps(odd=True))
    sizes = [(13, 9), (7, 5), (4, 3), (2, 2), (1, 1), (1, 1)][:levels]
    assert [tuple(each.shape) for each in found] == [(2, 16, *size) for size in sizes]


def test_the_pyramid_is_that_of_torchvision() -> None:
    ours, theirs = FPN((6, 8, 12), 16, levels=3), FeaturePyramidNetwork([6, 8, 12], 16)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    for level in range(3):
        theirs.inner_blocks[level][0].load_state_dict(ours.lateral[level].state_dict())
        theirs.layer_blocks[level][0].load_state_dict(ours.output[level].state_dict())
    features = maps(odd=True)
    expected = theirs({str(level): each for level, each in enumerate(features)})
    assert_close(ours(features), list(expected.values()))


@pytest.mark.parametrize("extra", ["c5", "p5"])
def test_levels_above_come_from_where_they_are_said_to(extra: Any) -> None:
    fpn = FPN((6, 8, 12), 16, extra=extra)
    features = maps()
    found = fpn(features)
    start = features[2] if extra == "c5" else found[2]
    p6 = fpn.coarser[0](start)
    assert_close(found[3], p6)
    assert_close(found[4], fpn.coarser[1](functional.relu(p6)))


def test_a_pyramid_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="levels must be 3 or more, got 2"):
        FPN((6, 8, 12), 16, levels=2)
    with pytest.raises(ValueError, match="extra must be one of 'p5', 'c5', 'pool', got 'p6'"):
        FPN((6, 8, 12), 16, extra="p6")  # type: ignore[arg-type]


def test_outputs_stand_in_the_order_of_the_priors() -> None:
    """Each number says where it came from; compared with the anchors' own places and shapes."""
    head = DenseHead(1, 3, 4, convs=0, levels=2, centreness=True)
    layers = [head.to_logits, head.to_codes, head.to_centreness]
    with torch.no_grad():
        for layer in layers:
            assert layer is not None
            assert layer.bias is not None
            layer.weight.zero_()
            # The place: the middle of the kernel. The channel: the bias.
            layer.weight[:, 0, 1, 1] = 100
            layer.bias.copy_(torch.arange(len(layer.bias)))
    features = [
        torch.arange(2 * 6).reshape(2, 1, 2, 3).float(),
        12 + torch.arange(2 * 2).reshape(2, 1, 1, 2).float(),
    ]
    logits, codes, branches = head(features)
    anchors = AnchorGenerator(strides=(8, 16), octave_scales=2, ratios=(1.0, 2.0))
    priors = anchors((16, 24), device="cpu", dtype=torch.float32)
    assert logits.shape == (2, len(priors.boxes), 3)
    for image in range(2):
        for prior, centre in enumerate(priors.centres.round().int().tolist()):
            level = int(prior >= priors.counts[0])
            stride = priors.strides[level]
            place = features[level][image, 0, centre[1] // stride, centre[0] // stride].item()
            shape = (prior - level * priors.counts[0]) % 4
            for c in range(3):
                assert logits[image, prior, c] == 100 * place + 3 * shape + c
            for k in range(4):
                assert codes[image, prior, k] == 100 * place + 4 * shape + k
            assert branches["centreness"][image, prior] == 100 * place + shape


@pytest.mark.parametrize("prior", [0.01, 0.1])
@pytest.mark.parametrize("norm", [None, "group"])
def test_a_head_starts_at_its_class_prior(norm: Any, prior: float) -> None:
    head = DenseHead(64, 5, 2, convs=2, norm=norm, class_prior=prior, levels=1)
    logits, codes, branches = head([torch.randn(2, 64, 8, 8)])
    assert logits.shape == (2, 128, 5)
    assert codes.shape == (2, 128, 4)
    assert branches == {}
    assert logits.sigmoid().mean().item() == pytest.approx(prior, rel=0.1)
    assert codes.abs().max() < 1.5
    for name, parameter in head.named_parameters():
        if parameter.dim() == 4:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1), name


def test_towers_are_shared_and_only_the_scales_are_not() -> None:
    head = DenseHead(8, 2, 1, convs=1, level_scales=True, levels=2)
    feature = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        assert head.scales is not None
        head.scales.copy_(torch.tensor([1.0, 3.0]))
    outputs = head([feature, feature])
    first, second = outputs.codes.chunk(2, 1)
    assert_close(second, 3 * first)
    assert_close(*outputs.logits.chunk(2, 1))


def test_branches_are_known_before_the_first_image() -> None:
    assert DenseHead(8, 2, 1).branches == frozenset()
    head = DenseHead(8, 2, 3, centreness=True, levels=1)
    assert head.branches == {"centreness"}
    assert head([torch.randn(2, 8, 4, 4)]).branches["centreness"].shape == (2, 48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "classes must be 1 or more, got 0"),
        ({"per_place": 0}, "per_place must be 1 or more"),
        ({"levels": 0}, "levels must be 1 or more"),
        ({"convs": -1}, "convs must be 0 or more"),
        ({"norm": "layer"}, "norm must be one of"),
        ({"class_prior": 0.0}, "class_prior must be between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseHead(**{"channels": 8, "classes": 2, "per_place": 1, **settings})


def test_another_number_of_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 5 feature maps, got 1"):
        DenseHead(8, 2, 1)([torch.zeros(1, 8, 4, 4)])


def test_in_channels_last_the_numbers_are_the_same() -> None:
    parts = [FPN((6, 8, 12), 16, levels=4), DenseHead(16, 3, 2, convs=2, norm="group", levels=4)]
    model = nn.Sequential(*parts)
    features = maps(odd=True)
    before = model(features)
    model.to(memory_format=torch.channels_last)
    after = model([each.to(memory_format=torch.channels_last) for each in features])
    assert_close(after.logits, before.logits)
    assert_close(after.codes, before.codes)


@pytest.mark.parametrize(("norm", "depends"), [("batch", False), (None, False), ("group", True)])
def test_what_is_found_depends_on_the_padding_with_group_normalisation_only(
    norm: Any, depends: bool
) -> None:
    torch.manual_seed(0)
    head = DenseHead(8, 2, 1, convs=2, norm=norm, levels=1)
    with torch.no_grad():
        for _ in range(3):  # statistics
            head([torch.randn(4, 8, 12, 12)])
        head.eval()
        feature = torch.randn(1, 8, 12, 12)
        padded = torch.cat([feature, torch.zeros(1, 8, 12, 12)], 3)
        plain, wide = (head([x]).codes.view(12, x.shape[3], 4)[:, :6] for x in (feature, padded))
    # Three convolutions of 3 x 3 do not reach from the padding to these places.
    assert torch.allclose(plain, wide, atol=1e-7) is not depends


def test_each_level_has_statistics_of_its_own() -> None:
    head = DenseHead(8, 2, 1, convs=1, norm="batch", levels=2)
    head([torch.randn(2, 8, 8, 8) + 3, torch.randn(2, 8, 4, 4)])
    names = [name for name, _ in head.named_buffers() if name.endswith("running_mean")]
    assert len(names) == 4  # two towers, two levels
    first, second = (head.get_buffer(name) for name in names[:2])
    assert not torch.equal(first, second)
