"""Adaptive assignment: published results, a slow loop written from the paper, and equal distances.

What holds for every assigner is in `test_max_iou`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou

from rankdet.assign import ATSSAssigner, MaxIoUAssigner, atss
from rankdet.structures import IGNORED, NEGATIVE, Priors, Targets

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]

CASES = "empty_ignore few huge identical many none one overlap thin tiny".split()  # noqa: SIM905
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
SQUARES = {"atss1": (4.0,), "atss2": (2.0, 2.0 * 2**0.5)}  # half sides, in strides


def exact_priors(
    kind: str, size: tuple[int, int] = (192, 256), scaled: float = 1.0
) -> tuple[Priors, torch.Tensor]:
    """Return squares centred on grid corners, in float64, and their centres without rounding."""
    strides, boxes, centres = (8, 16, 32, 64, 128), [], []
    for stride in strides:
        y, x = (torch.arange(-(-side // stride)).double() * stride for side in size)
        centre = torch.cartesian_prod(y, x).flip(1).repeat_interleave(len(SQUARES[kind]), 0)
        half = torch.tensor(SQUARES[kind]).double().repeat(len(y) * len(x))[:, None]
        half = half * stride * scaled
        boxes.append(torch.cat([centre - half, centre + half], 1))
        centres.append(centre)
    counts = tuple(len(level) for level in boxes)
    return Priors(torch.cat(boxes), counts, strides), torch.cat(centres)


def from_the_paper(
    priors: Priors, centres: torch.Tensor, boxes: torch.Tensor, top_k: int = 9
) -> torch.Tensor:
    """Assign one image, object by object, with a stable sort for the nearest."""
    offers: dict[int, list[tuple[float, int]]] = {}
    for number, box in enumerate(boxes):
        middle = (box[:2] + box[2:]) / 2
        distance = (centres - middle).square().sum(1)
        chosen, start = [], 0
        for level in distance.split(priors.counts):
            chosen.append(level.sort(stable=True).indices[:top_k] + start)
            start += len(level)
        candidates = torch.cat(chosen)
        overlaps = box_iou(box[None], priors.boxes[candidates])[0]
        threshold = overlaps.mean() + overlaps.std()
        low, high = centres[candidates] - box[:2], box[2:] - centres[candidates]
        good = (overlaps >= threshold) & (torch.cat([low, high], 1).amin(1) > 0.01)
        for place, overlap in zip(candidates[good].tolist(), overlaps[good].tolist(), strict=True):
            offers.setdefault(place, []).append((overlap, number))
    matched = torch.full((len(centres),), NEGATIVE)
    for place, wanting in offers.items():
        best = max(overlap for overlap, _ in wanting)
        # Ours: of those that are as good as the best, the first.
        matched[place] = min(number for overlap, number in wanting if overlap >= best * (1 - 1e-4))
    return matched


def image_of(boxes: torch.Tensor, size: tuple[int, int] = (192, 256)) -> Targets:
    count = len(boxes)
    return Targets.stack(
        [boxes],
        [torch.zeros(count, dtype=torch.int64)],
        [torch.zeros(count, dtype=torch.bool)],
        [size],
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", SQUARES)
def test_matches_are_those_of_mmdetection(golden: Golden, kind: str, case: str) -> None:
    data, anchors = golden(f"assign/{case}.npz"), golden("assign/anchors.npz")
    priors = Priors(
        boxes=torch.from_numpy(anchors[f"anchors_{kind}"]).double(),
        counts=tuple(anchors[f"num_level_anchors_{kind}"].tolist()),
        strides=tuple(anchors["strides"].tolist()),
    )
    targets = image_of(torch.from_numpy(data["gt_boxes"]).double())
    matched = ATSSAssigner()(priors, targets).matched[0]
    # Published with a stable choice of the nearest, of equal distances the lower index first.
    wanted = torch.from_numpy(data[f"atss_{kind[-1]}_gt_inds_lowfirst"]).long()
    assert torch.equal(matched + 1, wanted)


@DTYPES
@pytest.mark.parametrize("kind", SQUARES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), integer=st.booleans())
def test_matches_are_those_of_the_paper_in_any_precision(
    kind: str, dtype: torch.dtype, seed: int, count: int, integer: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, count, 2, dtype=torch.float64, generator=generator)
    corner, side = corner * 150, 3 + side * 90
    boxes = torch.cat([corner, corner + side], 1)
    # Whole and half pixels make many distances equal; 1 / 64 px is what float32 tells apart.
    boxes = boxes.round() if integer else (boxes * 32).round() / 32
    priors, centres = exact_priors(kind)
    wanted = from_the_paper(priors, centres, boxes)
    rounded = replace(priors, boxes=priors.boxes.to(dtype))
    matched = ATSSAssigner()(rounded, image_of(boxes.to(dtype))).matched[0]
    assert torch.equal(matched, wanted)


@DTYPES
def test_of_equal_distances_the_lower_index_comes_first(dtype: torch.dtype) -> None:
    priors, centres = exact_priors("atss2", (128, 1024), scaled=1.1)
    boxes = priors.boxes.to(dtype)
    # Centres of cells and of their sides: equally far from several places, of two priors each.
    objects = torch.cartesian_prod(torch.arange(900, 1000, 4.0), torch.arange(40, 90, 4.0))
    found, real = ATSSAssigner()._candidates(
        atss._centres(boxes),
        objects.to(dtype),
        torch.ones(1, len(boxes), dtype=torch.bool),
        torch.zeros(len(objects), dtype=torch.int64),
        priors.counts,
    )
    distances = (centres[None] - objects[:, None]).square().sum(2)
    nearest, start = [], 0
    for level in distances.split(priors.counts, 1):
        nearest.append(level.sort(stable=True).indices[:, :9] + start)
        start += level.shape[1]
    assert real.all()
    assert torch.equal(found.sort().values, torch.cat(nearest, 1).sort().values)
    if dtype == torch.float32:  # as corners they are not equally far
        rounded = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert (rounded[::2] != rounded[1::2]).any()


def test_of_equal_overlaps_the_first_object_gets_the_prior() -> None:
    box = torch.tensor([[30.0, 30.0, 61.0, 61.0]]).double()
    priors, _ = exact_priors("atss1")
    matched = ATSSAssigner()(priors, image_of(box.repeat(40, 1))).matched
    assert matched.max() == 0
    assert torch.equal(matched, ATSSAssigner()(priors, image_of(box)).matched)


@DTYPES
def test_rounding_does_not_tell_two_objects_apart(dtype: torch.dtype) -> None:
    """A prior in the middle between two objects alike overlaps both equally, but for rounding."""
    priors, centres = exact_priors("atss1")
    place = int((centres[: priors.counts[0]] - torch.tensor([96.0, 96.0])).square().sum(1).argmin())
    rounded = replace(priors, boxes=priors.boxes.to(dtype))
    unequal = 0
    for step in range(20):
        half = 29 + step / 7
        one, other = (
            torch.tensor([[96 + side - half, 96 - half, 96 + side + half, 96 + half]]).to(dtype)
            for side in (-4.0, 4.0)
        )
        first, second = (box_iou(box, rounded.boxes[place, None]) for box in (one, other))
        unequal += int(first != second)
        for pair in ([one, other], [other, one]):
            assert ATSSAssigner()(rounded, image_of(torch.cat(pair))).matched[0, place] == 0
    assert unequal > 3


def test_a_single_candidate_is_positive_if_its_centre_is_inside() -> None:
    priors = Priors(torch.tensor([[0.0, 0.0, 16.0, 16.0], [32.0, 0.0, 48.0, 16.0]]), (2,), (64,))
    for x, wanted in ((0.0, [0, NEGATIVE]), (7.9, [0, NEGATIVE]), (8.0, [NEGATIVE, NEGATIVE])):
        targets = image_of(torch.tensor([[x, 0.0, 16.0, 16.0]]), (64, 64))
        assert ATSSAssigner(top_k=1)(priors, targets).matched[0].tolist() == wanted


def test_a_positive_on_a_crowd_region_stays_positive() -> None:
    priors, _ = exact_priors("atss1")
    boxes = torch.tensor([[40.0, 40.0, 100.0, 90.0], [0.0, 0.0, 256.0, 192.0]]).double()
    targets = replace(image_of(boxes), crowd=torch.tensor([[False, True]]))
    matched = ATSSAssigner()(priors, targets).matched
    alone = ATSSAssigner()(priors, image_of(boxes[:1])).matched
    assert (alone == 0).any()
    assert torch.equal(matched >= 0, alone >= 0)
    assert (matched == IGNORED).any()
    assert torch.equal(ATSSAssigner(crowd_overlap=None)(priors, targets).matched, alone)


def refuse_to_wait(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """Fail on what makes the host wait for the device: reading a value, counting a mask."""
    assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "item"}
    return func(*args, **(kwargs or {}))


RefuseToWait = type("RefuseToWait", (TorchDispatchMode,), {"__torch_dispatch__": refuse_to_wait})


@pytest.mark.parametrize("assigner", [ATSSAssigner(), MaxIoUAssigner()], ids=repr)
def test_away_from_the_cpu_the_host_never_waits(
    assigner: ATSSAssigner | MaxIoUAssigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    priors, _ = exact_priors("atss2")
    boxes = torch.tensor([[40.0, 40.0, 100.0, 90.0], [0.0, 0.0, 120.0, 90.0], [9.0, 9, 40, 30]])
    targets = replace(image_of(boxes.double()), crowd=torch.tensor([[False, True, False]]))
    batch = Targets(*(torch.cat([value, value]) for value in (
        targets.boxes, targets.labels, targets.crowd, targets.sizes)))  # fmt: skip
    batch.labels[1, 2] = -1
    here = assigner(priors, batch).matched
    # What is decided for another device, on this one.
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    with RefuseToWait():
        there = assigner(priors, batch).matched
    assert torch.equal(here, there)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("assigner", [ATSSAssigner(), MaxIoUAssigner()], ids=repr)
def test_a_gpu_gives_the_same(assigner: ATSSAssigner | MaxIoUAssigner) -> None:
    priors, _ = exact_priors("atss2")
    boxes = torch.tensor([[40.0, 40.0, 100.0, 90.0], [0.0, 0.0, 120.0, 90.0]]).double()
    targets = image_of(boxes)
    there = assigner(priors.to("cuda"), targets.to("cuda")).matched.cpu()
    assert torch.equal(there, assigner(priors, targets).matched)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k must be above zero, got 0"):
        ATSSAssigner(top_k=0)
    with pytest.raises(ValueError, match="crowd_overlap must be between 0 and 1"):
        ATSSAssigner(crowd_overlap=-1)
