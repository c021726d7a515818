"""Anchors and points: published values, and that they are built once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch.testing import assert_close

from rankdet.models.priors import AnchorGenerator, PointGenerator

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]

KINDS = {
    "retina3": AnchorGenerator(octave_scales=3),
    "retina2": AnchorGenerator(octave_scales=2),
    "atss1": AnchorGenerator(scale=8.0, octave_scales=1, ratios=(1.0,)),
    "atss2": AnchorGenerator(octave_scales=2, ratios=(1.0,)),
    "rpn": AnchorGenerator(strides=(4, 8, 16, 32, 64), scale=8.0, octave_scales=1),
}
SIZES = pytest.mark.parametrize("size", [(320, 416), (512, 512)], ids=str)
CPU = torch.device("cpu")


@SIZES
@pytest.mark.parametrize("kind", KINDS)
def test_anchors_are_those_of_mmdetection(golden: Golden, kind: str, size: tuple[int, int]) -> None:
    data = golden(f"priors/anchors_{kind}_{size[0]}x{size[1]}.npz")
    priors = KINDS[kind](size, device=CPU, dtype=torch.float32)
    exact = KINDS[kind](size, device=CPU, dtype=torch.float64)
    assert priors.strides == tuple(data["strides"].tolist())
    assert sum(priors.counts) == len(priors.boxes)
    levels = zip(priors.boxes.split(priors.counts), exact.boxes.split(exact.counts), strict=True)
    for i, (level, exact_level) in enumerate(levels):
        assert len(level) == int(data[f"num_anchors_{i}"])
        assert len(level) == data["featmap_sizes"][i].prod() * KINDS[kind].per_place
        wanted = torch.from_numpy(data[f"anchors_{i}"])
        index = torch.from_numpy(data[f"anchor_index_{i}"]).long()
        assert_close(level[index], wanted, rtol=0.0, atol=1e-4)
        base = torch.from_numpy(data[f"base_anchors_{i}"])  # those of the first place
        assert_close(exact_level[: len(base)], base, rtol=0.0, atol=1e-10)


@SIZES
def test_points_are_those_of_mmdetection(golden: Golden, size: tuple[int, int]) -> None:
    data = golden("priors/points.npz")
    points = PointGenerator()(size, device=CPU, dtype=torch.float32)
    for i, level in enumerate(points.boxes.split(points.counts)):
        wanted = torch.from_numpy(data[f"points_{size[0]}x{size[1]}_{i}"])
        assert_close(level, wanted.repeat(1, 2), rtol=0.0, atol=0.0)


def test_points_come_as_squares_of_given_sides() -> None:
    points = PointGenerator()((40, 72), device=CPU, dtype=torch.float64)
    sides = (16.0, 33.3, 0.0, 128.0, 256.0)
    squares = PointGenerator(sides=sides)((40, 72), device=CPU, dtype=torch.float64)
    assert squares.counts == points.counts
    assert torch.equal(squares.centres, points.centres)
    assert torch.equal(
        squares.inside(torch.tensor([[40, 50]])), points.inside(torch.tensor([[40, 50]]))
    )
    for level, side in zip(squares.boxes.split(squares.counts), sides, strict=True):
        assert_close(level[:, 2:] - level[:, :2], torch.full_like(level[:, :2], side))
    assert PointGenerator(sides=sides) != PointGenerator()


def test_a_level_covers_an_image_smaller_than_its_stride() -> None:
    priors = AnchorGenerator(octave_scales=1, ratios=(1.0,))(
        (1, 9), device="cpu", dtype=torch.float32
    )
    assert priors.counts == (2, 1, 1, 1, 1)
    assert priors.centres[:3].tolist() == [[0, 0], [8, 0], [0, 0]]


@pytest.mark.parametrize("generator", [AnchorGenerator(), PointGenerator()], ids=repr)
def test_priors_of_a_size_are_built_once(generator: AnchorGenerator | PointGenerator) -> None:
    first = generator((64, 64), device="cpu", dtype=torch.float32)
    assert generator((64, 64), device=CPU, dtype=torch.float32) is first
    assert generator((64, 64), device=CPU, dtype=torch.float64) is not first
    assert generator((64, 32), device=CPU, dtype=torch.float32) is not first
    for width in range(1, 20):  # many sizes do not fill the memory
        generator((8, width), device=CPU, dtype=torch.float32)
    assert len(generator._cache) <= 8
    again = generator((64, 64), device=CPU, dtype=torch.float32)
    assert again is not first
    assert torch.equal(again.boxes, first.boxes)


def test_the_cache_is_no_part_of_what_a_generator_is() -> None:
    one, other = AnchorGenerator(), AnchorGenerator()
    one((64, 64), device="cpu", dtype=torch.float32)
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == repr(other)
    assert not other._cache
    assert copy.deepcopy(one) == one


def test_priors_first_built_in_inference_mode_serve_training() -> None:
    generator = AnchorGenerator()
    with torch.inference_mode():
        boxes = generator((32, 32), device="cpu", dtype=torch.float32).boxes
    codes = torch.zeros(1, requires_grad=True)
    assert not boxes.is_inference()
    assert not boxes.requires_grad
    (codes * boxes).sum().backward()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="strides must hold at least one number"):
        PointGenerator(strides=())
    with pytest.raises(ValueError, match="each of strides must be above zero, got 0"):
        AnchorGenerator(strides=(8, 0))
    with pytest.raises(ValueError, match="scale must be above zero"):
        AnchorGenerator(scale=0)
    with pytest.raises(ValueError, match="octave_scales must be above zero"):
        AnchorGenerator(octave_scales=0)
    with pytest.raises(ValueError, match="ratios must hold at least one number"):
        AnchorGenerator(ratios=())
    with pytest.raises(ValueError, match=r"sides must be one number for each of the 5 levels, got"):
        PointGenerator(sides=(8.0,))
    with pytest.raises(ValueError, match="each of sides must be zero or more, got -1"):
        PointGenerator(strides=(8,), sides=(-1,))
    with pytest.raises(ValueError, match="image_size must be 1 and more, got 0 x 8"):
        AnchorGenerator()((0, 8), device="cpu", dtype=torch.float32)
