"""Pooling and the second head: levels, cells, shapes, the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from rankdet.models.region_head import RegionHead, RegionPooling
from rankdet.structures import Regions

Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_are_those_of_mmdetection(golden: Golden, dtype: torch.dtype) -> None:
    data = golden("roi/roi_levels.npz")
    strides = tuple(4 * 2**level for level in range(int(data["num_levels"])))
    pooling = RegionPooling(strides, finest_side=float(data["finest_scale"]))
    levels = pooling.levels(torch.from_numpy(data["rois"][:, 1:]).to(dtype))
    assert levels.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(levels, torch.from_numpy(data["level"]))


def test_a_side_of_exactly_twice_the_first_goes_one_level_up() -> None:
    sides = torch.tensor([56.0, 111.9, 112.0, 223.9, 224.0, 448.0, 5000.0, 1e-3])
    boxes = torch.stack([sides * 0, sides * 0, sides * 2, sides / 2], 1)
    assert RegionPooling().levels(boxes).tolist() == [0, 0, 1, 1, 2, 3, 3, 0]


def by_hand(feature: Tensor, box: Tensor, stride: int, size: int, points: int) -> Tensor:
    """Interpolate at the points of each cell and average: [channels, size, size]."""
    rows, columns = feature.shape[-2:]
    steps = (torch.arange(size * points, dtype=box.dtype) + 0.5) / (size * points)
    x = (box[0] + steps * (box[2] - box[0])) / stride - 0.5
    y = (box[1] + steps * (box[3] - box[1])) / stride - 0.5
    grid = torch.stack(torch.meshgrid(x / (columns - 1), y / (rows - 1), indexing="xy"), -1)
    values = functional.grid_sample(
        feature[None], 2 * grid[None] - 1, align_corners=True, padding_mode="border"
    )
    return functional.avg_pool2d(values, points)[0]


def test_cells_are_means_of_the_map_of_the_own_image_and_level() -> None:
    pooling = RegionPooling((4, 8), size=3, finest_side=10.0, points=2)
    maps = [torch.randn(2, 5, 16, 20).double(), torch.randn(2, 5, 8, 10).double()]
    boxes = torch.tensor(
        [[4.0, 4, 60, 50], [10, 11, 17, 18], [8, 0, 30.5, 25], [0, 0, 9, 12], [0, 0, 80, 64]]
    ).double()
    regions = Regions(boxes, (3, 2))
    levels = pooling.levels(boxes).tolist()
    assert levels == [1, 0, 1, 0, 1]
    found = pooling([*maps, torch.zeros(2, 5, 4, 5)], regions)  # further maps are left aside
    for index, (box, level, image) in enumerate(zip(boxes, levels, (0, 0, 0, 1, 1), strict=True)):
        wanted = by_hand(maps[level][image], box, pooling.strides[level], 3, 2)
        assert_close(found[index], wanted, rtol=1e-10, atol=1e-10)
        with pytest.raises(AssertionError):
            assert_close(found[index] + 1e-9, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_may_be_no_region_and_maps_may_be_in_16_bits(dtype: torch.dtype) -> None:
    maps = [torch.randn(2, 4, 8, 8, dtype=dtype, requires_grad=True) for _ in range(2)]
    pooling = RegionPooling((4, 8), size=2)
    for boxes, counts in (
        (torch.zeros(0, 4), (0, 0)),
        (torch.tensor([[0.0, 0, 9, 9]]), (0, 1)),
        (torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 32, 32]]), (1, 1)),
    ):
        found = pooling(maps, Regions(boxes, counts))
        assert found.shape == (len(boxes), 4, 2, 2)
        assert found.dtype == torch.float32
        (gradient,) = torch.autograd.grad(found.sum(), maps[0])
        assert bool(gradient.any()) == bool(len(boxes))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("regions", [0, 1, 6])
def test_the_shapes_of_the_second_head(background: bool, agnostic: bool, regions: int) -> None:
    head = RegionHead(4, 3, size=2, hidden=8, background=background, agnostic=agnostic)
    found = head(torch.randn(regions, 4, 2, 2))
    assert found.logits.shape == (regions, 3)
    assert found.codes.shape == (regions, 1 if agnostic else 3, 4)
    assert head.branches == found.branches.keys() == ({"background"} if background else set())
    for branch in found.branches.values():
        assert branch.shape == (regions,)
    outputs = [found.logits, found.codes, *found.branches.values()]
    for parameter in torch.autograd.grad(
        sum(each.sum() for each in outputs), list(head.parameters())
    ):
        assert parameter.isfinite().all()


def test_codes_are_class_by_class_and_the_background_comes_last() -> None:
    head = RegionHead(4, 3, size=2, hidden=8, background=True)
    with torch.no_grad():
        for layer in (head.to_logits, head.to_codes):
            layer.weight.zero_()
            layer.bias.copy_(torch.arange(len(layer.bias)))
    found = head(torch.randn(1, 4, 2, 2))
    assert found.logits.tolist() == [[0, 1, 2]]
    assert found.branches["background"].tolist() == [3]
    assert found.codes.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]]


def test_the_scores_at_the_start() -> None:
    for prior in (0.5, 0.01):
        head = RegionHead(4, 3, size=2, hidden=8, class_prior=prior)
        found = head(torch.zeros(1, 4, 2, 2)).logits.sigmoid()
        assert_close(found, torch.full((1, 3), prior))
    head = RegionHead(4, 3, size=2, hidden=8, background=True, class_prior=0.01)
    assert not head.to_logits.bias.any()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="classes must be 1 or more, got 0"):
        RegionHead(4, 0)
    with pytest.raises(ValueError, match="class_prior must be between 0 and 1, got 0"):
        RegionHead(4, 2, class_prior=0)
    with pytest.raises(ValueError, match="size must be above zero, got 0"):
        RegionPooling(size=0)
    with pytest.raises(ValueError, match="strides must hold at least one number"):
        RegionPooling(())
    with pytest.raises(ValueError, match="expected 4 maps or more, got 3"):
        RegionPooling()([torch.zeros(1, 1, 2, 2)] * 3, Regions(torch.zeros(0, 4), (0,)))
    with pytest.raises(ValueError, match=r"boxes must have shape \[R, 4\], got \[3\]"):
        RegionPooling().levels(torch.zeros(3))
