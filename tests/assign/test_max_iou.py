"""Assignment by IoU: published results, ties, padding, crowd regions and odd boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from rankdet.assign import ATSSAssigner, MaxIoUAssigner, participants
from rankdet.structures import IGNORED, NEGATIVE, Priors, Targets

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]

CASES = "empty_ignore few huge identical many none one overlap thin tiny".split()  # noqa: SIM905
# By the name of the published result: its anchors and settings.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "maxiou_retina": ("retina3", {}),
    "maxiou_retina2": ("retina2", {}),
    "maxiou_rpn": ("rpn", {"positive": 0.7, "negative": 0.3, "min_positive": 0.3}),
    "maxiou_ignore": ("retina2", {"crowd_overlap": 0.5}),
    "maxiou_rcnn": ("", {"positive": 0.5, "negative": 0.5, "low_quality": False}),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
ASSIGNERS = [MaxIoUAssigner(), ATSSAssigner(top_k=3)]
EVERY = pytest.mark.parametrize("assigner", ASSIGNERS, ids=lambda a: type(a).__name__)
NAN, INF = float("nan"), float("inf")
ODD = {
    "no area": [20.0, 20.0, 20.0, 20.0],
    "no width": [20.0, 10.0, 20.0, 40.0],
    "corners swapped": [40.0, 40.0, 20.0, 20.0],
    "NaN": [NAN, NAN, NAN, NAN],
    "one NaN": [10.0, 10.0, NAN, 40.0],
    "infinite": [10.0, 10.0, INF, 40.0],
    "endless": [-INF, -INF, INF, INF],
    "far away": [1e30, 1e30, 2e30, 2e30],
}


def priors_of(anchors: dict[str, np.ndarray[Any, Any]], kind: str, dtype: torch.dtype) -> Priors:
    return Priors(
        boxes=torch.from_numpy(anchors[f"anchors_{kind}"]).to(dtype),
        counts=tuple(anchors[f"num_level_anchors_{kind}"].tolist()),
        strides=tuple(anchors["strides"].tolist()),
    )


def targets_of(data: dict[str, np.ndarray[Any, Any]], dtype: torch.dtype) -> Targets:
    boxes = torch.from_numpy(data["gt_boxes"]).to(dtype)
    crowd = torch.from_numpy(data["ignore_boxes"]).to(dtype)
    labels = torch.from_numpy(data["gt_labels"])
    return Targets.stack(
        [torch.cat([boxes, crowd])],
        [torch.cat([labels, labels.new_zeros(len(crowd))])],
        [torch.arange(len(boxes) + len(crowd)) >= len(boxes)],
        [(192, 256)],
    )


def grid(
    height: int,
    width: int,
    *,
    shapes: tuple[float, ...] = (16.0, 24.0),
    dtype: torch.dtype = torch.float32,
) -> Priors:
    """Return square priors of two levels, centred on grid corners."""
    boxes, counts = [], []
    for stride in (8, 16):
        y, x = torch.meshgrid(
            torch.arange(0, height, stride).to(dtype),
            torch.arange(0, width, stride).to(dtype),
            indexing="ij",
        )
        centre = torch.stack([x, y], -1)[:, :, None]
        half = torch.tensor(shapes, dtype=dtype)[:, None] * stride / 16
        boxes.append(torch.cat([centre - half, centre + half], -1).view(-1, 4))
        counts.append(len(boxes[-1]))
    return Priors(torch.cat(boxes), tuple(counts), (8, 16))


def scene(seed: int, *, objects: int, crowd: int, size: tuple[int, int]) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([size[1], size[0]])
    corner, side = torch.rand(2, objects + crowd, 2, generator=generator)
    boxes = torch.cat([corner * extent * 0.8, corner * extent * 0.8 + 4 + side * 30], 1)
    is_crowd = torch.arange(objects + crowd) >= objects
    labels = torch.zeros(objects + crowd, dtype=torch.int64)
    return Targets.stack([boxes], [labels], [is_crowd], [size])


def batch_of(images: list[Targets]) -> Targets:
    return Targets.stack(
        [image.boxes[0] for image in images],
        [image.labels[0] for image in images],
        [image.crowd[0] for image in images],
        [tuple(image.sizes[0].tolist()) for image in images],
    )


def one_image(boxes: list[list[float]], size: tuple[int, int] = (64, 64)) -> Targets:
    count = len(boxes)
    return Targets.stack(
        [torch.tensor(boxes).view(-1, 4)],
        [torch.zeros(count, dtype=torch.int64)],
        [torch.zeros(count, dtype=torch.bool)],
        [size],
    )


def published(matched: torch.Tensor) -> torch.Tensor:
    """Return our numbers in the coding of the golden files."""
    return torch.where(matched == IGNORED, -1, matched + 1)


@DTYPES
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SETTINGS)
def test_matches_are_those_of_mmdetection(
    golden: Golden, name: str, case: str, dtype: torch.dtype
) -> None:
    data = golden(f"assign/{case}.npz")
    kind, changed = SETTINGS[name]
    if kind:
        priors = priors_of(golden("assign/anchors.npz"), kind, dtype)
    else:
        boxes = torch.from_numpy(data["proposals"]).to(dtype)
        priors = Priors(boxes, (len(boxes),), (10_000,))
    assigner = MaxIoUAssigner(**{"crowd_overlap": None, **changed})
    matched = published(assigner(priors, targets_of(data, dtype)).matched[0])
    wanted = torch.from_numpy(data[f"{name}_gt_inds"])
    clear = torch.ones(len(wanted), dtype=torch.bool)
    if f"{name}_ambiguous" in data:
        clear[torch.from_numpy(data[f"{name}_ambiguous"])] = False
    assert torch.equal(matched[clear], wanted[clear].long())
    # Where several are as good as the best, we take all of them.
    assert (matched[~clear] > 0).sum() >= (wanted[~clear] > 0).sum()


def test_a_tie_is_decided_by_its_tolerance() -> None:
    # The object lies within both priors: IoU 0.04 each; the second is made larger by a little.
    targets = one_image([[20.0, 20.0, 24.0, 24.0]])
    for larger, both in ((1e-6, True), (1e-3, False)):
        second = [10.0, 10.0, 30.0 + 20 * larger, 30.0]
        priors = Priors(torch.tensor([[8.0, 8.0, 28.0, 28.0], second]), (2,), (64,))
        matched = MaxIoUAssigner()(priors, targets).matched[0].tolist()
        assert matched == [0, 0 if both else NEGATIVE]
    assert MaxIoUAssigner(tie_tolerance=0.01)(priors, targets).matched[0].tolist() == [0, 0]


@pytest.mark.parametrize("tie_tolerance", [0.0, 1e-4])
def test_only_a_tolerance_makes_float32_and_float64_agree(tie_tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(1, 60, 2, generator=generator) * 480
    boxes = torch.cat([boxes, boxes + 2 + 6 * torch.rand(1, 60, 2, generator=generator)], -1)
    targets = Targets(
        boxes,
        torch.zeros(1, 60, dtype=torch.int64),
        torch.zeros(1, 60, dtype=torch.bool),
        torch.tensor([[512, 512]]),
    )
    # Sides that no binary number holds, so that each coordinate is rounded.
    exact = grid(512, 512, shapes=(32.1, 40.7), dtype=torch.float64)
    rounded = replace(exact, boxes=exact.boxes.float())
    assigner = MaxIoUAssigner(tie_tolerance=tie_tolerance)
    single, double = (assigner(priors, targets).matched for priors in (rounded, exact))
    assert torch.equal(single, double) == (tie_tolerance > 0)


@DTYPES
def test_rounding_neither_tells_two_objects_apart_nor_what_reaches_a_threshold(
    dtype: torch.dtype,
) -> None:
    by_rounding = set()
    for step in range(20):
        side, x = 16 + step / 7, 40 + step / 3
        # Two objects alike, one on either side of the prior's middle; and a half of it.
        prior = torch.tensor([[x - side, 8.0, x + side, 8 + side]], dtype=torch.float64)
        left = [x - side, 8.0, x + side / 2, 8 + side]
        right = [x - side / 2, 8.0, x + side, 8 + side]
        half = [x - side, 8.0, x, 8 + side]
        priors = Priors(prior.to(dtype), (1,), (64,))
        for boxes in ([left, right], [right, left], [half]):
            exact = torch.tensor([boxes], dtype=torch.float64)
            targets = replace(one_image(boxes, (256, 256)), boxes=exact.to(dtype))
            for low_quality in (False, True):
                assigner = MaxIoUAssigner(low_quality=low_quality)
                last = len(boxes) - 1 if low_quality else 0  # the last that claims it
                assert assigner(priors, targets).matched.item() == last
            sharp = MaxIoUAssigner(low_quality=False, tie_tolerance=0)
            by_rounding.add((len(boxes), sharp(priors, targets).matched.item()))
    assert by_rounding > {(2, 0), (2, 1)}
    assert by_rounding > {(1, 0), (1, IGNORED)}


def test_identical_objects_share_by_order() -> None:
    box = [16.0, 16.0, 32.0, 32.0]
    priors = Priors(torch.tensor([box, [16.0, 16.0, 32.0, 28.0]]), (2,), (64,))
    # Above the threshold the first, among the best the last.
    assert MaxIoUAssigner()(priors, one_image([box, box])).matched[0].tolist() == [1, 0]
    plain = MaxIoUAssigner(low_quality=False)
    assert plain(priors, one_image([box, box])).matched[0].tolist() == [0, 0]


def test_between_the_thresholds_a_prior_is_ignored() -> None:
    priors = Priors(torch.tensor([[0.0, 0, 10, n] for n in (10, 5, 4.5, 4, 3.9)]), (5,), (64,))
    matched = MaxIoUAssigner()(priors, one_image([[0.0, 0.0, 10.0, 10.0]])).matched
    assert matched[0].tolist() == [0, 0, IGNORED, IGNORED, NEGATIVE]


def test_an_object_that_overlaps_nothing_claims_nothing() -> None:
    matched = MaxIoUAssigner()(grid(64, 64), one_image([[500.0, 500.0, 520.0, 520.0]])).matched
    assert (matched == NEGATIVE).all()


def test_the_best_prior_on_a_crowd_region_is_not_used() -> None:
    boxes = [[16.0, 16.0, 32.0, 32.0], [20.0, 16.0, 36.0, 32.0], [0.0, 32.0, 16.0, 47.0]]
    priors = Priors(torch.tensor(boxes), (3,), (64,))
    targets = replace(
        one_image([boxes[0], [8.0, 8.0, 28.5, 40.0]]), crowd=torch.tensor([[False, True]])
    )
    # 0.78 and 0.53 of the first two are on the region.
    for overlap, wanted in ((0.5, [IGNORED, IGNORED, NEGATIVE]), (0.6, [IGNORED, 0, NEGATIVE]),
                            (None, [0, 0, NEGATIVE])):  # fmt: skip
        matched = MaxIoUAssigner(crowd_overlap=overlap)(priors, targets).matched[0].tolist()
        assert matched == wanted


@EVERY
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_a_batch_is_assigned_like_its_images(
    assigner: MaxIoUAssigner | ATSSAssigner, seed: int, counts: list[int]
) -> None:
    sizes = [(64, 64), (17, 64), (64, 9), (40, 50)]
    images = [
        scene(seed + i, objects=count, crowd=(seed + i) % 3, size=sizes[i])
        for i, count in enumerate(counts)
    ]
    priors = grid(64, 64)
    together = assigner(priors, batch_of(images)).matched
    for i, image in enumerate(images):
        assert torch.equal(together[i], assigner(priors, image).matched[0])
        # And as if there were no priors but those on the image.
        height, width = sizes[i]
        alone = grid(height, width)
        inside = priors.inside(image.sizes)[0]
        assert torch.equal(priors.boxes[inside], alone.boxes)
        assert torch.equal(together[i][inside], assigner(alone, image).matched[0])
        assert (together[i][~inside] == IGNORED).all()


@EVERY
def test_a_batch_too_large_for_memory_is_assigned_in_slices(
    assigner: MaxIoUAssigner | ATSSAssigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    priors = grid(64, 64)
    batch = batch_of([scene(i, objects=i, crowd=i % 2, size=(64, 64)) for i in range(5)])
    whole = assigner(priors, batch).matched
    for pairs in (1, 2 * 5 * len(priors.boxes)):  # one image at a time, and two
        monkeypatch.setattr(participants, "_PAIRS", pairs)
        assert torch.equal(assigner(priors, batch).matched, whole)


@EVERY
@pytest.mark.parametrize("crowd", [False, True])
def test_without_objects_everything_is_negative(
    assigner: MaxIoUAssigner | ATSSAssigner, crowd: bool
) -> None:
    priors = grid(64, 64)
    empty = scene(0, objects=0, crowd=0, size=(64, 32))
    inside = priors.inside(empty.sizes)
    wanted = torch.where(inside, NEGATIVE, IGNORED)
    assert torch.equal(assigner(priors, empty).matched, wanted)
    if crowd:
        everywhere = replace(
            one_image([[-99.0, -99.0, 99.0, 99.0]], (64, 32)), crowd=torch.tensor([[True]])
        )
        assert (assigner(priors, everywhere).matched == IGNORED).all()
    nothing = Priors(torch.zeros(0, 4), (0,), (8,))
    assert assigner(nothing, empty).matched.shape == (1, 0)
    no_images = Targets(empty.boxes[:0], empty.labels[:0], empty.crowd[:0], empty.sizes[:0])
    assert assigner(priors, no_images).matched.shape == (0, len(priors.boxes))


@EVERY
@DTYPES
@pytest.mark.parametrize("name", ODD)
def test_an_odd_box_is_nobodys_match_and_does_no_harm(
    assigner: MaxIoUAssigner | ATSSAssigner, name: str, dtype: torch.dtype
) -> None:
    priors = replace(grid(64, 64), boxes=grid(64, 64).boxes.to(dtype))
    ordinary = [[12.0, 8.0, 30.0, 26.0], [36.0, 36.0, 58.0, 50.0]]
    wanted = assigner(priors, one_image(ordinary)).matched
    assert (wanted == 0).any()
    assert (wanted == 1).any()
    with_odd = assigner(priors, one_image([*ordinary, ODD[name]])).matched
    assert torch.equal(with_odd, wanted)
    # As a crowd region it may at most make something ignored.
    odd_crowd = replace(
        one_image([*ordinary, ODD[name]]), crowd=torch.tensor([[False, False, True]])
    )
    assert (assigner(priors, odd_crowd).matched <= 1).all()


@EVERY
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), objects=st.integers(1, 8))
def test_positives_overlap_their_object(
    assigner: MaxIoUAssigner | ATSSAssigner, seed: int, objects: int
) -> None:
    priors, targets = grid(64, 64), scene(seed, objects=objects, crowd=1, size=(64, 64))
    matched = assigner(priors, targets).matched[0]
    assert matched.dtype == torch.int64
    assert matched.min() >= IGNORED
    assert matched.max() < objects
    overlaps = box_iou(priors.boxes, targets.boxes[0])
    positive = matched >= 0
    assert (overlaps[positive].gather(1, matched[positive][:, None]) > 0).all()


@EVERY
def test_coordinates_in_16_bits_are_promoted(assigner: MaxIoUAssigner | ATSSAssigner) -> None:
    priors, targets = grid(64, 64), scene(0, objects=4, crowd=1, size=(64, 64))
    half = replace(priors, boxes=priors.boxes.half())  # their coordinates are small integers
    assert torch.equal(assigner(half, targets).matched, assigner(priors, targets).matched)


@EVERY
def test_wrong_tensors_are_refused_by_name(assigner: MaxIoUAssigner | ATSSAssigner) -> None:
    priors, targets = grid(64, 64), scene(0, objects=2, crowd=0, size=(64, 64))
    with pytest.raises(TypeError, match=r"targets\.boxes must be floating point"):
        assigner(priors, replace(targets, boxes=targets.boxes.long()))
    with pytest.raises(ValueError, match=r"targets\.labels must have shape \[1, 2\]"):
        assigner(priors, replace(targets, labels=targets.labels[:, :1]))
    with pytest.raises(ValueError, match=r"priors\.boxes must have shape \[A, 4\]"):
        assigner(replace(priors, boxes=priors.boxes[:, :3]), targets)


@pytest.mark.parametrize(
    "wrong",
    [{"positive": 0.0, "negative": 0.0}, {"positive": 0.3}, {"negative": -1.0},
     {"min_positive": 2.0}, {"crowd_overlap": 1.5}, {"tie_tolerance": 1.0}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        MaxIoUAssigner(**wrong)  # type: ignore[arg-type]
