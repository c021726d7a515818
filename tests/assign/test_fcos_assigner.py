"""Assignment of points: published results, a slow loop written from the rules, and ties.

What holds for both assigners of points, FCOS and FoveaBox, is here too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_atss import RefuseToWait
from torch import Tensor

from rankdet.assign import participants
from rankdet.assign.fcos import FCOSAssigner
from rankdet.assign.fovea import FoveaAssigner
from rankdet.models.priors import PointGenerator
from rankdet.structures import IGNORED, NEGATIVE, Priors, Targets

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]

CASES = "empty_ignore few huge identical many none one overlap thin tiny".split()  # noqa: SIM905
# By the name of the published result.
PUBLISHED: dict[str, FCOSAssigner | FoveaAssigner] = {
    "fcos": FCOSAssigner(centre_radius=None),
    "fcos_center": FCOSAssigner(centre_radius=1.5),
    "fovea_alrp": FoveaAssigner(),
    "fovea_mmdet": FoveaAssigner(((8, 32), (16, 64), (32, 128), (64, 256), (128, 512))),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
EVERY = pytest.mark.parametrize("assigner", PUBLISHED.values(), ids=PUBLISHED)
SIZE = (192, 256)
NAN, INF = float("nan"), float("inf")
ODD = {
    "no area": [20.0, 20.0, 20.0, 20.0],
    "no width": [20.0, 10.0, 20.0, 40.0],
    "corners swapped": [60.0, 60.0, 20.0, 20.0],
    "left and right swapped": [60.0, 20.0, 20.0, 60.0],
    "NaN": [NAN, NAN, NAN, NAN],
    "one NaN": [10.0, 10.0, NAN, 40.0],
    "infinite": [10.0, 10.0, INF, 40.0],
    "endless": [-INF, -INF, INF, INF],
    "far away": [1e30, 1e30, 2e30, 2e30],
    "beside the image": [300.0, 20.0, 360.0, 60.0],
    "above the image": [20.0, -60.0, 60.0, -20.0],
}


def points(size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float32) -> Priors:
    return PointGenerator()(size, device="cpu", dtype=dtype)


def image(
    boxes: Tensor | list[list[float]],
    size: tuple[int, int] = SIZE,
    *,
    crowd: int = 0,
    labels: Tensor | None = None,
) -> Targets:
    """Return one image; the last ``crowd`` boxes are crowd regions."""
    boxes = torch.as_tensor(boxes).reshape(-1, 4)
    count = len(boxes)
    labels = torch.zeros(count, dtype=torch.int64) if labels is None else labels
    return Targets.stack([boxes], [labels], [torch.arange(count) >= count - crowd], [size])


def batch_of(images: list[Targets]) -> Targets:
    return Targets.stack(
        [each.boxes[0] for each in images],
        [each.labels[0] for each in images],
        [each.crowd[0] for each in images],
        [tuple(each.sizes[0].tolist()) for each in images],
    )


def scene(seed: int, *, objects: int, crowd: int = 0, size: tuple[int, int] = SIZE) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([size[1], size[0]])
    corner, side = torch.rand(2, objects + crowd, 2, generator=generator)
    corner, side = corner * extent * 0.8, 4 + side**2 * extent
    return image(torch.cat([corner, corner + side], 1), size, crowd=crowd)


def equal_areas(areas: list[Fraction]) -> list[int]:
    """Return for each object its place among all, smallest first, as the rule has it."""
    order = sorted(range(len(areas)), key=lambda i: areas[i])
    group, groups = 0, {}
    for before, this in zip([order[0], *order], order, strict=False):
        group += areas[this] > areas[before] * (1 + Fraction(12, 100_000))
        groups[this] = group
    ranked = sorted(range(len(areas)), key=lambda i: (groups[i], i))
    return [ranked.index(i) for i in range(len(areas))]


def by_the_rules(
    wants: Callable[[int, int, list[Fraction], list[Fraction]], bool],
    priors: Priors,
    boxes: Tensor,
) -> Tensor:
    """Assign one image point by point, in exact numbers."""
    exact = [[Fraction(float(number)) for number in box] for box in boxes]
    places = equal_areas([(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in exact])
    matched, start = torch.full((len(priors.boxes),), NEGATIVE), 0
    centres = priors.centres.tolist()
    for level, (count, stride) in enumerate(zip(priors.counts, priors.strides, strict=True)):
        for index in range(start, start + count):
            point = [Fraction(number) for number in centres[index]]
            wanting = [i for i, box in enumerate(exact) if wants(level, stride, point, box)]
            if wanting:
                matched[index] = min(wanting, key=lambda i: places[i])
        start += count
    return matched


def wants_fcos(radius: float | None) -> Callable[..., bool]:
    ranges = [(0, 64), (64, 128), (128, 256), (256, 512), (512, 10**8)]

    def wants(level: int, stride: int, point: list[Fraction], box: list[Fraction]) -> bool:
        (x, y), (x1, y1, x2, y2) = point, box
        distances = [x - x1, y - y1, x2 - x, y2 - y]
        least, largest = ranges[level]
        if min(distances) <= 0 or not least <= max(distances) <= largest:
            return False
        if radius is None:
            return True
        return max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < Fraction(radius) * stride

    return wants


@DTYPES
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_points_are_those_of_mmdetection(
    golden: Golden, name: str, case: str, dtype: torch.dtype
) -> None:
    data = golden(f"assign/{case}.npz")
    priors = points(dtype=dtype)
    assert torch.equal(priors.centres.double(), torch.from_numpy(data["points"]))
    boxes = torch.from_numpy(data["gt_boxes"]).to(dtype)
    labels = torch.from_numpy(data["gt_labels"])
    matched = PUBLISHED[name](priors, image(boxes, labels=labels)).matched[0]
    positive = (matched >= 0).nonzero()[:, 0]
    assert torch.equal(positive, torch.from_numpy(data[f"{name}_pos_index"]))
    wanted = torch.from_numpy(data[f"{name}_labels"]).long()
    assert torch.equal(labels[matched[positive]], wanted[positive])
    assert (wanted[matched == NEGATIVE] == 5).all()
    # To the object itself, not only to one of its class.
    found = boxes[matched[positive]]
    centres = priors.centres[positive]
    distances = torch.cat([centres - found[:, :2], found[:, 2:] - centres], 1)
    targets = torch.from_numpy(data[f"{name}_pos_box_targets"])
    if name.startswith("fovea"):
        strides = torch.tensor(priors.strides).repeat_interleave(torch.tensor(priors.counts))
        distances = (distances / (2 * strides[positive, None])).clamp(1 / 16, 16).log()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(distances.double(), targets, rtol=0, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("radius", [None, 1.5])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 8), whole=st.booleans())
def test_points_are_those_of_the_rules_in_any_precision(
    dtype: torch.dtype, radius: float | None, seed: int, count: int, whole: bool
) -> None:
    boxes = scene(seed, objects=count, size=(96, 130)).boxes[0].double()
    # On whole pixels many points lie on a border and many distances at the end of a range.
    boxes = (boxes / 4).round() * 4 if whole else (boxes * 32).round() / 32
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1 / 32)
    priors = points((96, 130), dtype)
    matched = FCOSAssigner(centre_radius=radius)(priors, image(boxes.to(dtype))).matched[0]
    assert torch.equal(matched, by_the_rules(wants_fcos(radius), priors, boxes))


def test_the_border_of_an_object_is_not_in_it_and_the_ends_of_a_range_are() -> None:
    priors = Priors(torch.tensor([[4.0, 4.0, 4.0, 4.0]]), (1,), (8,))
    assigner = FCOSAssigner(((8.0, 20.0),), centre_radius=None)
    for right, wanted in ((4.0, False), (4.0 + 1e-3, False), (4.1, True), (24.0 + 1e-3, True),
                          (24.1, False)):  # fmt: skip
        found = assigner(priors, image([[0.0, 0.0, right, 12.0]])).matched.item()
        assert found == (0 if wanted else NEGATIVE), right
    for left, wanted in ((-4.1, True), (-4.0 + 1e-3, True), (-3.9, False)):
        found = assigner(priors, image([[left, 0.0, 8.0, 8.0]])).matched.item()
        assert found == (0 if wanted else NEGATIVE), left
    # A square of 12 px about the centre.
    square = FCOSAssigner(((0.0, 200.0),), centre_radius=0.75)
    for centre, wanted in ((9.9, True), (10.0, False), (10.0 - 1e-3, False), (10.1, False)):
        found = square(priors, image([[centre - 50, 0.0, centre + 50, 12.0]])).matched.item()
        assert found == (0 if wanted else NEGATIVE), centre


@EVERY
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rounding_decides_nothing(assigner: FCOSAssigner | FoveaAssigner, seed: int) -> None:
    # Images are resized by numbers such as 5 / 3: then what lies on a border, or has an equal
    # area, does so to the last digit only.
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 90, (12, 2), generator=generator)
    side = torch.randint(1, 60, (12, 2), generator=generator)
    boxes = torch.cat([corner, corner + side, corner[:, :1], corner[:, 1:]], 1)
    boxes = torch.cat(
        [boxes[:, :4], torch.cat([corner, corner + side.flip(1)], 1)]
    )  # the same area
    single = boxes.float() * (5 / 3)
    double = boxes.double() * (5 / 3)
    matched = assigner(points(), image(single)).matched
    assert torch.equal(matched, assigner(points(dtype=torch.float64), image(double)).matched)


@EVERY
def test_the_smallest_object_gets_a_point_and_of_equal_ones_the_first(
    assigner: FCOSAssigner | FoveaAssigner,
) -> None:
    large, small = [62.0, 62.0, 122.0, 122.0], [64.0, 64.0, 120.0, 120.0]
    for boxes, last in (([large, small], 1), ([small, large], 0), ([small, small, large], 0)):
        matched = assigner(points(), image(boxes)).matched
        middle = matched[0][(points().centres - 92).abs().amax(1) < 8]
        assert set(middle.tolist()) <= {last, NEGATIVE}
        assert (middle == last).any()
    # Areas in steps below the tolerance: all are equal, though the first and last are not.
    edges = [(92.0 + 28 * (1 + step * 5e-5)) for step in (2, 1, 0)]
    nearly = [[64.0, 64.0, edge, 120.0] for edge in edges]
    matched = assigner(points(), image(nearly)).matched
    assert matched.max() == 0
    matched = assigner(points(), image([nearly[0], [64.0, 64.0, 119.99, 120.0]])).matched
    assert matched.max() == 1
    assert not (matched == 0).any()


@EVERY
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_a_batch_is_assigned_like_its_images(
    assigner: FCOSAssigner | FoveaAssigner, seed: int, counts: list[int]
) -> None:
    sizes = [(192, 256), (17, 64), (64, 9), (140, 150)]
    images = [
        scene(seed + i, objects=count, crowd=(seed + i) % 3, size=sizes[i])
        for i, count in enumerate(counts)
    ]
    priors = points()
    together = assigner(priors, batch_of(images)).matched
    assert together.dtype == torch.int64
    for i, each in enumerate(images):
        assert torch.equal(together[i], assigner(priors, each).matched[0])
        # And as if there were no priors but those on the image.
        alone = points(sizes[i])
        inside = priors.inside(each.sizes)[0]
        assert torch.equal(priors.boxes[inside], alone.boxes)
        assert torch.equal(together[i][inside], assigner(alone, each).matched[0])
        assert (together[i][~inside] == IGNORED).all()


@EVERY
def test_a_batch_too_large_for_memory_is_assigned_in_slices(
    assigner: FCOSAssigner | FoveaAssigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    priors = points()
    batch = batch_of([scene(i, objects=3 * i, crowd=i % 2) for i in range(5)])
    whole = assigner(priors, batch).matched
    assert (whole >= 0).any()
    for pairs in (1, 2 * batch.boxes.shape[1] * len(priors.boxes)):  # one image at a time, and two
        monkeypatch.setattr(participants, "_PAIRS", pairs)
        assert torch.equal(assigner(priors, batch).matched, whole)


@EVERY
@pytest.mark.parametrize("crowd", [False, True])
def test_without_objects_everything_is_negative(
    assigner: FCOSAssigner | FoveaAssigner, crowd: bool
) -> None:
    priors = points()
    empty = image([], (192, 100))
    wanted = torch.where(priors.inside(empty.sizes), NEGATIVE, IGNORED)
    assert torch.equal(assigner(priors, empty).matched, wanted)
    padding = replace(scene(0, objects=3, size=(192, 100)), labels=torch.full((1, 3), -1))
    assert torch.equal(assigner(priors, padding).matched, wanted)
    if crowd:
        everywhere = image([[-99.0, -99.0, 999.0, 999.0]], (192, 100), crowd=1)
        assert (assigner(priors, everywhere).matched == IGNORED).all()
    nothing = Priors(torch.zeros(0, 4), (0,) * 5, (8, 16, 32, 64, 128))
    assert assigner(nothing, scene(0, objects=2)).matched.shape == (1, 0)
    no_images = Targets(empty.boxes[:0], empty.labels[:0], empty.crowd[:0], empty.sizes[:0])
    assert assigner(priors, no_images).matched.shape == (0, len(priors.boxes))


@EVERY
def test_points_in_a_crowd_region_are_ignored_unless_positive(
    assigner: FCOSAssigner | FoveaAssigner,
) -> None:
    priors = points()
    region = [30.0, 30.0, 170.0, 150.0]
    boxes = [[20.0, 20.0, 90.0, 84.0], [100.0, 40.0, 104.5, 45.0], region]
    matched = assigner(priors, image(boxes, crowd=1)).matched[0]
    alone = assigner(priors, image(boxes[:2])).matched[0]
    x, y = priors.centres.unbind(1)
    within = (x > 30) & (x < 170) & (y > 30) & (y < 150)
    assert (alone[within] >= 0).any()
    assert torch.equal(matched >= 0, alone >= 0)
    assert torch.equal(matched == IGNORED, within & (alone < 0))
    without = replace(assigner, crowd_overlap=None)
    assert torch.equal(without(priors, image(boxes, crowd=1)).matched[0], alone)
    # The size of the priors has no say in it.
    sides = PointGenerator(sides=(16, 32, 64, 128, 256))
    large = sides(SIZE, device="cpu", dtype=torch.float32)
    assert torch.equal(assigner(large, image(boxes, crowd=1)).matched[0], matched)


def test_half_of_a_pixel_is_the_border_of_a_crowd_region() -> None:
    priors = Priors(torch.tensor([[4.0, 4.0, 4.0, 4.0]]), (1,), (8,))
    for left, overlap, wanted in ((3.8, 0.65, IGNORED), (3.9, 0.5, IGNORED), (4.1, 0.5, NEGATIVE),
                                  (3.9, 0.7, NEGATIVE), (4.1, 0.3, IGNORED)):  # fmt: skip
        assigner = FCOSAssigner(((0.0, 8.0),), crowd_overlap=overlap)
        found = assigner(priors, image([[left, 0.0, 20.0, 20.0]], crowd=1)).matched.item()
        assert found == wanted


@EVERY
@DTYPES
@pytest.mark.parametrize("name", ODD)
def test_an_odd_box_is_nobodys_match_and_does_no_harm(
    assigner: FCOSAssigner | FoveaAssigner, name: str, dtype: torch.dtype
) -> None:
    priors = points(dtype=dtype)
    ordinary = [[12.0, 8.0, 40.0, 36.0], [50.0, 40.0, 90.0, 100.0]]
    wanted = assigner(priors, image(ordinary)).matched
    assert (wanted == 0).any()
    assert (wanted == 1).any()
    assert torch.equal(assigner(priors, image([*ordinary, ODD[name]])).matched, wanted)
    first = assigner(priors, image([ODD[name], *ordinary])).matched
    assert torch.equal(first, torch.where(wanted >= 0, wanted + 1, wanted))
    # As a crowd region it may at most make something ignored.
    odd_crowd = assigner(priors, image([*ordinary, ODD[name]], crowd=1)).matched
    assert torch.equal(odd_crowd >= 0, wanted >= 0)


@EVERY
def test_three_hundred_objects_of_one_pixel(assigner: FCOSAssigner | FoveaAssigner) -> None:
    # On the points of the finest level, and between them.
    centres = points().centres[:300]
    ones = torch.cat([centres - 0.5, centres + 0.5], 1)
    matched = assigner(points(), image(ones)).matched[0]
    small = isinstance(assigner, FoveaAssigner) and assigner.scale_ranges[0][0] > 1
    assert torch.equal(matched[:300], torch.full((300,), NEGATIVE) if small else torch.arange(300))
    assert (matched[300:] == NEGATIVE).all()
    assert (assigner(points(), image(ones[33:34] + 4)).matched == NEGATIVE).all()


@EVERY
def test_coordinates_in_16_bits_are_promoted(assigner: FCOSAssigner | FoveaAssigner) -> None:
    priors, targets = points(), scene(0, objects=4, crowd=1)
    half = replace(priors, boxes=priors.boxes.half())  # their coordinates are small integers
    assert torch.equal(assigner(half, targets).matched, assigner(priors, targets).matched)


@EVERY
def test_away_from_the_cpu_the_host_never_waits(
    assigner: FCOSAssigner | FoveaAssigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    priors, batch = points(), batch_of([scene(i, objects=i, crowd=1) for i in range(3)])
    here = assigner(priors, batch).matched
    # What is decided for another device, on this one.
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    with RefuseToWait():
        there = assigner(priors, batch).matched
    assert torch.equal(here, there)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@EVERY
def test_a_gpu_gives_the_same(assigner: FCOSAssigner | FoveaAssigner) -> None:
    priors, targets = points(), batch_of([scene(i, objects=5 * i, crowd=1) for i in range(3)])
    there = assigner(priors.to("cuda"), targets.to("cuda")).matched.cpu()
    assert torch.equal(there, assigner(priors, targets).matched)


@EVERY
def test_wrong_tensors_are_refused_by_name(assigner: FCOSAssigner | FoveaAssigner) -> None:
    priors, targets = points(), scene(0, objects=2)
    with pytest.raises(TypeError, match=r"targets\.boxes must be floating point"):
        assigner(priors, replace(targets, boxes=targets.boxes.long()))
    with pytest.raises(TypeError, match=r"priors\.boxes must be floating point"):
        assigner(replace(priors, boxes=priors.boxes.long()), targets)
    with pytest.raises(ValueError, match=r"targets\.labels must have shape \[1, 2\]"):
        assigner(priors, replace(targets, labels=targets.labels[:, :1]))
    with pytest.raises(ValueError, match=r"priors\.boxes must have shape \[A, 4\]"):
        assigner(replace(priors, boxes=priors.boxes[:, :3]), targets)
    three = PointGenerator((8, 16, 32))(SIZE, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"ranges must hold .* 3 levels, but there are 5 ranges"):
        assigner(three, targets)


@pytest.mark.parametrize("name", ["regress_ranges", "scale_ranges"])
@pytest.mark.parametrize("wrong", [(), ((3.0, 2.0),), ((-1.0, 64.0),), ((0.0, math.nan),)])
def test_wrong_ranges_are_refused(name: str, wrong: Any) -> None:
    make: Any = FCOSAssigner if name == "regress_ranges" else FoveaAssigner
    with pytest.raises(ValueError, match=f"{name} must "):
        make(wrong)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="centre_radius must be above zero, got 0"):
        FCOSAssigner(centre_radius=0)
    with pytest.raises(ValueError, match="crowd_overlap must be between 0 and 1"):
        FCOSAssigner(crowd_overlap=-1)
    with pytest.raises(ValueError, match="crowd_overlap must be between 0 and 1"):
        FoveaAssigner(crowd_overlap=2)
    with pytest.raises(ValueError, match=r"sigma must be between 0 and 1, got 1\.5"):
        FoveaAssigner(sigma=1.5)
    with pytest.raises(ValueError, match="sigma must be above zero, got 0"):
        FoveaAssigner(sigma=0)
