"""From regions to detections: a slow loop, both kinds of scores, and the edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import nms

from rankdet.models.augmented_test import AugmentedTest
from rankdet.models.priors import AnchorGenerator
from rankdet.models.region_postprocess import RegionPostProcess
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import (
    Detections,
    Predictions,
    RegionPredictions,
    Regions,
    TwoStagePredictions,
)

SIZES = torch.tensor([[64, 64], [30, 50]])


def random_predictions(
    seed: int = 0,
    *,
    counts: tuple[int, ...] = (20, 15),
    background: bool = False,
    agnostic: bool = False,
    dtype: torch.dtype = torch.float32,
) -> TwoStagePredictions:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    corner = torch.rand(total, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 4 + torch.rand(total, 2, generator=generator) * 26], 1)
    logits = torch.randn(total, 4, generator=generator) * 3
    codes = torch.randn(total, 1 if agnostic else 3, 4, generator=generator)
    second = RegionPredictions(
        regions=Regions(boxes.to(dtype), counts),
        logits=logits[:, :3].to(dtype),
        codes=codes.to(dtype),
        coder=DeltaCoder(),
        branches={"background": logits[:, 3].to(dtype)} if background else {},
    )
    priors = AnchorGenerator(strides=(32,))((64, 64), device="cpu", dtype=dtype)
    places = len(priors.boxes)
    first = Predictions(
        torch.zeros(len(counts), places, 1), torch.zeros(len(counts), places, 4), priors,
        DeltaCoder(),
    )  # fmt: skip
    return TwoStagePredictions(first, second)


def slowly(found: RegionPredictions, sizes: Tensor, process: RegionPostProcess) -> list[Detections]:
    """The same, one class of one image after the other, without choosing candidates."""
    logits = found.logits
    if "background" in found.branches:
        logits = torch.cat([logits, found.branches["background"][:, None]], 1)
        scores = logits.softmax(1)[:, :-1]
    else:
        scores = logits.sigmoid()
    results, start = [], 0
    for count, (height, width) in zip(found.regions.counts, sizes.tolist(), strict=True):
        one = slice(start, start + count)
        start += count
        boxes, points, labels = [], [], []
        for label in range(scores.shape[1]):
            codes = found.codes[one, label if found.codes.shape[1] > 1 else 0]
            box = found.coder.decode(found.regions.boxes[one], codes)
            x, y = box[:, ::2].clamp(0, width), box[:, 1::2].clamp(0, height)
            box = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
            good = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
            good &= scores[one, label] > (process.score_threshold or -1)
            box, score = box[good], scores[one, label][good]
            kept = nms(box.double(), score.double(), process.nms_iou)
            boxes.append(box[kept])
            points.append(score[kept])
            labels.append(torch.full((len(kept),), label))
        best = torch.cat(points).argsort(descending=True)[: process.max_detections]
        results.append(
            Detections(torch.cat(boxes)[best], torch.cat(points)[best], torch.cat(labels)[best])
        )
    return results


def assert_same(ours: list[Detections], wanted: list[Detections]) -> None:
    for mine, other in zip(ours, wanted, strict=True):
        assert torch.equal(mine.labels, other.labels)
        assert_close(mine.scores, other.scores, rtol=1e-10, atol=0)
        assert_close(mine.boxes, other.boxes, rtol=1e-10, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 200),
    background=st.booleans(),
    agnostic=st.booleans(),
    threshold=st.sampled_from([None, 0.05, 0.5]),
    most=st.sampled_from([3, 100]),
)
def test_detections_are_those_of_a_slow_loop(
    seed: int, background: bool, agnostic: bool, threshold: float | None, most: int
) -> None:
    predictions = random_predictions(
        seed, background=background, agnostic=agnostic, dtype=torch.float64
    )
    process = RegionPostProcess(score_threshold=threshold, max_detections=most)
    found = process(predictions, SIZES)
    wanted = slowly(predictions.second, SIZES, process)
    assert_same(found, wanted)
    planted = [replace(each, scores=each.scores * (1 + 1e-9)) for each in wanted]
    if len(wanted[0].scores):
        with pytest.raises(AssertionError):
            assert_same(found, planted)
    # A number of candidates that leaves enough to choose from changes nothing.
    few = replace(process, candidates=50)(predictions, SIZES)
    for mine, other in zip(few, wanted, strict=True):
        length = len(mine.scores)
        assert torch.equal(mine.labels, other.labels[:length])
        if most == 3:
            assert length == len(other.scores)


def test_the_scores_of_all_classes_and_the_background_add_up_to_one() -> None:
    predictions = random_predictions(background=True)
    process = RegionPostProcess(nms_iou=1.0, max_detections=1000)
    boxes = predictions.second.regions.boxes
    shared = replace(predictions.second, codes=torch.zeros_like(predictions.second.codes))
    whole = process(replace(predictions, second=shared), torch.tensor([[64, 64]] * 2))
    logits = torch.cat([shared.logits, shared.branches["background"][:, None]], 1)
    rest = 1 - logits.softmax(1)[:, -1]
    for found, regions, expected in zip(
        whole, boxes.split([20, 15]), rest.split([20, 15]), strict=True
    ):
        same = (found.boxes[:, None] - regions).abs().amax(-1) < 1e-4
        assert_close((same * found.scores[:, None]).sum(0), expected)


def test_without_a_threshold_no_score_is_too_low() -> None:
    predictions = random_predictions()
    low = replace(predictions.second, logits=predictions.second.logits - 80)
    (found, _) = RegionPostProcess()(replace(predictions, second=low), SIZES)
    assert len(found.scores) > 10
    assert found.scores.max() < 1e-30
    high = replace(predictions.second, logits=predictions.second.logits + 80)
    (other, _) = RegionPostProcess()(replace(predictions, second=high), SIZES)
    # All scores are 1 there; it is still the logits that tell which box is the better one.
    assert (other.scores == 1).all()
    best = high.logits[:20].flatten().argmax()
    region, label = int(best) // 3, int(best) % 3
    box = high.coder.decode(high.regions.boxes[region], high.codes[region, label]).clamp(0, 64)
    assert any(torch.equal(box, each) for each in other.boxes)


@pytest.mark.parametrize("background", [False, True])
def test_what_is_not_a_number_is_no_detection(background: bool) -> None:
    predictions = random_predictions(background=background)
    bad = torch.arange(35) % 3 == 0
    second = predictions.second
    logits = second.logits.masked_fill(bad[:, None], torch.nan)
    found = RegionPostProcess(nms_iou=1.0)(
        replace(predictions, second=replace(second, logits=logits)), SIZES
    )
    kept = (~bad).split([20, 15])
    for each, good in zip(found, kept, strict=True):
        assert 0 < len(each.scores) <= good.sum() * 3
        assert not each.scores.isnan().any()
    codes = torch.full_like(second.codes, torch.nan)
    for each in RegionPostProcess()(
        replace(predictions, second=replace(second, codes=codes)), SIZES
    ):
        assert len(each.scores) == 0


@pytest.mark.parametrize("background", [False, True])
def test_an_image_may_have_no_region(background: bool) -> None:
    for counts in ((0, 5), (0, 0)):
        predictions = random_predictions(counts=counts, background=background)
        found = RegionPostProcess()(predictions, SIZES)
        assert [len(each.scores) > 0 for each in found] == [count > 0 for count in counts]
        assert found[0].boxes.shape == (0, 4)
        assert found[0].labels.dtype == torch.int64


def test_no_gradient_and_float32_at_least() -> None:
    predictions = random_predictions(dtype=torch.bfloat16)
    found = replace(predictions.second, codes=predictions.second.codes.requires_grad_())
    first, _ = RegionPostProcess()(replace(predictions, second=found), SIZES)
    assert first.boxes.dtype == first.scores.dtype == torch.float32
    assert not first.boxes.requires_grad
    with pytest.raises(ValueError, match=r"sizes must have shape \[2, 2\], got \[1, 2\]"):
        RegionPostProcess()(predictions, SIZES[:1])


def test_soft_nms_keeps_what_overlaps_with_a_lower_score() -> None:
    predictions = random_predictions()
    hard = RegionPostProcess(nms_iou=0.3)(predictions, SIZES)
    soft = RegionPostProcess(nms_iou=0.3, nms="soft", min_score=0.0)(predictions, SIZES)
    candidates = RegionPostProcess().find(predictions, SIZES)
    for few, all_of_them, found in zip(hard, soft, candidates, strict=True):
        assert len(few.scores) < len(all_of_them.scores) == len(found.scores)
        assert all_of_them.scores[0] == few.scores[0]
        assert all_of_them.scores.sum() < found.scores.sum()


def test_over_several_copies_of_an_image() -> None:
    seen: list[Tensor] = []

    class Looking:
        wants_sizes = True

        def __call__(self, images: Tensor, sizes: Tensor) -> TwoStagePredictions:
            assert (sizes <= torch.tensor(images.shape[2:])).all()
            seen.append(sizes)
            return random_predictions()

    test = AugmentedTest(scales=(1.0, 2.0), flip=True)
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    (found, _) = test(Looking(), RegionPostProcess(), images, SIZES)
    assert [each.tolist() for each in seen] == [SIZES.tolist()] * 2 + [(2 * SIZES).tolist()] * 2
    (plain, _) = RegionPostProcess()(random_predictions(), SIZES)
    assert found.scores[0] == plain.scores[0]
    assert len(found.scores) > len(plain.scores)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("candidates", 0),
        ("score_threshold", 1.5),
        ("nms_iou", -0.1),
        ("max_detections", 0),
        ("nms", "none"),
        ("sigma", 0),
    ],
)
def test_wrong_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        RegionPostProcess(**{name: value})  # type: ignore[arg-type]
