"""FoveaBox's points: a slow loop over cells, the border of the image, and overlapping ranges.

What holds for all assigners of points is in `test_fcos_assigner`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fcos_assigner import by_the_rules, image, points, scene

from rankdet.assign.fovea import FoveaAssigner
from rankdet.structures import NEGATIVE, Priors

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
RANGES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))


def clamped(number: int, count: int) -> int:
    return min(max(number, 0), count - 1)


def wants_fovea(size: tuple[int, int], sigma: Fraction) -> Callable[..., bool]:
    """Cells of a map, from the first to the last whose index is within the fovea, as published."""

    def wants(level: int, stride: int, point: list[Fraction], box: list[Fraction]) -> bool:
        x1, y1, x2, y2 = box
        scale = math.sqrt((x2 - x1) * (y2 - y1))
        least, largest = RANGES[level]
        if not least - 0.01 <= scale <= largest + 0.01:
            return False
        for place, low, high, side in ((point[0], x1, x2, size[1]), (point[1], y1, y2, size[0])):
            cells = -(-side // stride)
            middle, reach = (low + high) / 2, sigma * (high - low) / 2
            first = clamped(math.ceil((middle - reach) / stride - Fraction(1, 2)), cells)
            last = clamped(math.floor((middle + reach) / stride - Fraction(1, 2)), cells)
            if not first <= place / stride - Fraction(1, 2) <= last:
                return False
        return True

    return wants


@DTYPES
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 8),
    fineness=st.sampled_from([Fraction(1, 10), 1, 8]),
)
def test_points_are_those_of_the_rules_in_any_precision(
    dtype: torch.dtype, seed: int, count: int, fineness: Fraction | int
) -> None:
    # With sides in 1 / 8 px and 2 / 5 of them in a fovea, its border is on a point or 1 / 80 px
    # and more from it; with those in 10 px it often is on one.
    size, grid = (98, 130), float(fineness)
    boxes = (scene(seed, objects=count, size=size).boxes[0].double() * grid).round() / grid
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1 / grid)
    boxes[:, :2] = torch.minimum(boxes[:, :2], torch.tensor([129.0, 97.0]))
    priors = points(size, dtype)
    matched = FoveaAssigner()(priors, image(boxes.to(dtype), size)).matched[0]
    assert torch.equal(matched, by_the_rules(wants_fovea(size, Fraction(2, 5)), priors, boxes))


def test_the_border_of_a_fovea_is_in_it() -> None:
    priors = points((128, 128))
    level = priors.centres[: priors.counts[0]]
    # 0.4 of 20 px: from 48 to 56 with the object at 42, so that points at 52 are in the middle.
    for x1, wanted in ((42.0, {52.0}), (46.0, {52.0, 60.0}), (46.1, {60.0}), (45.9, {52.0})):
        box = [x1, 40.0, x1 + 20, 60.0]
        matched = FoveaAssigner()(priors, image([box], (128, 128))).matched[0]
        found = level[matched[: len(level)] == 0]
        assert set(found[:, 0].tolist()) == wanted, x1
        assert set(found[:, 1].tolist()) == {52.0}
    # As far as rounding goes.
    box = [46.0 + 1e-3, 40.0, 66.0 + 1e-3, 60.0]
    matched = FoveaAssigner()(priors, image([box], (128, 128))).matched[0]
    assert (matched == 0).sum() == 2


def test_at_the_border_of_an_image_a_fovea_reaches_the_outermost_points() -> None:
    size = (64, 96)  # the last row at 60, the last column at 92
    priors = points(size)
    first = priors.centres[: priors.counts[0]]
    for box, wanted in (
        ([0.0, 0.0, 3.0, 3.0], [4.0, 4.0]),
        ([93.0, 0.0, 96.0, 3.0], [92.0, 4.0]),
        ([0.0, 61.0, 2.0, 64.0], [4.0, 60.0]),
        ([94.0, 61.0, 96.0, 64.0], [92.0, 60.0]),
    ):
        matched = FoveaAssigner()(priors, image([box], size)).matched[0]
        assert first[matched[: len(first)] == 0].tolist() == [wanted]
        assert (matched[len(first) :] == NEGATIVE).all()
    # The same object between points further inside has none.
    inner = FoveaAssigner()(priors, image([[6.0, 6.0, 10.0, 10.0]], size)).matched
    assert (inner == NEGATIVE).all()
    # In a batch with a larger image the border is still that of its own.
    padded = points((128, 128))
    matched = FoveaAssigner()(padded, image([[94.0, 61.0, 96.0, 64.0]], size)).matched[0]
    assert padded.centres[matched == 0].tolist() == [[92.0, 60.0]]


def test_an_object_has_points_on_each_level_made_for_its_size() -> None:
    priors = points((512, 512))

    def levels_of(width: float, height: float) -> list[int]:
        # Not far from a point of each level.
        box = [196 - width / 2, 196 - height / 2, 196 + width / 2, 196 + height / 2]
        matched = FoveaAssigner()(priors, image([box], (512, 512))).matched[0]
        return [i for i, level in enumerate(matched.split(priors.counts)) if (level == 0).any()]

    for side, levels in ((0.9, []), (1.0, [0]), (31.9, [0]), (32.0, [0, 1]), (64.0, [0, 1, 2]),
                         (64.1, [1, 2]), (200.0, [2, 3]), (256.0, [2, 3, 4]),
                         (2100.0, [])):  # fmt: skip
        assert levels_of(side, side) == levels, side
    # The root of the area counts, not the longer side.
    assert levels_of(250.0, 10.0) == [0]


def test_a_box_without_area_has_no_fovea() -> None:
    priors = points((8, 8))
    assigner = FoveaAssigner(((0.0, 64.0),) * 5)
    for box in ([4.0, 4.0, 4.0, 4.0], [4.0, 2.0, 4.0, 6.0], [6.0, 6.0, 2.0, 2.0]):
        assert (assigner(priors, image([box], (8, 8))).matched == NEGATIVE).all()
    assert (assigner(priors, image([[2.0, 2.0, 6.0, 6.0]], (8, 8))).matched == 0).all()


def test_sigma_is_the_share_of_the_sides() -> None:
    places = torch.arange(4.0, 128, 8)
    priors = Priors(torch.cartesian_prod(places, places).repeat(1, 2), (256,), (8,))
    for sigma in (0.1, 0.25, 0.5, 1.0):
        assigner = FoveaAssigner(((1.0, 200.0),), sigma=sigma)
        matched = assigner(priors, image([[0.0, 0.0, 128.0, 128.0]], (128, 128))).matched[0]
        reach = (priors.centres - 64).abs().amax(1)
        assert torch.equal(matched == 0, reach <= 64 * sigma)
