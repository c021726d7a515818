"""Soft NMS, score voting and scores from a predicted IoU, against slow loops from the papers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.ops import batched_nms

from rankdet.models.candidates import Candidates
from rankdet.models.postprocess import PostProcess, distinct, soft_nms
from rankdet.models.priors import AnchorGenerator
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import Predictions

Decay = Literal["linear", "gaussian"]
Box = list[float]
DECAYS = pytest.mark.parametrize("decay", ["linear", "gaussian"])


def overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return common / (sum(areas) - common)


def soft_from_the_paper(
    found: Candidates, decay: Decay, nms_iou: float, sigma: float, min_score: float
) -> list[tuple[float, int]]:
    """Figure 2 of Bodla et al., class by class; then all by their final scores."""
    final = []
    for label in set(found.labels.tolist()):
        remaining = {
            index: float(found.scores[index])
            for index in range(len(found.labels))
            if found.labels[index] == label
        }
        boxes = {index: found.boxes[index].double().tolist() for index in remaining}
        while remaining:
            best = max(remaining, key=lambda index: remaining[index])
            final.append((remaining.pop(best), best))
            for index in remaining:
                common = overlap(boxes[best], boxes[index])
                if decay == "gaussian":
                    remaining[index] *= math.exp(-common * common / sigma)
                elif common >= nms_iou:
                    remaining[index] *= 1 - common
    return sorted((pair for pair in final if pair[0] >= min_score), reverse=True)


def candidates(seed: int, count: int, classes: int = 3) -> Candidates:
    """Draw candidates in a few heaps, in float64."""
    generator = torch.Generator().manual_seed(seed)
    heap = torch.rand(4, 2, dtype=torch.float64, generator=generator)[
        torch.randint(4, (count,), generator=generator)
    ]
    low, high = torch.rand(2, count, 2, dtype=torch.float64, generator=generator) * 20
    corner = heap * 60 + low
    return Candidates(
        boxes=torch.cat([corner, corner + 8 + high], 1),
        scores=torch.rand(count, dtype=torch.float64, generator=generator),
        labels=torch.randint(classes, (count,), generator=generator),
    )


@DECAYS
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(0, 40),
    most=st.sampled_from([1, 7, 100]),
    min_score=st.sampled_from([0.0, 0.001, 0.3]),
    nms_iou=st.sampled_from([0.0, 0.3, 1.0]),
    sigma=st.sampled_from([0.1, 0.5]),
)
def test_scores_decay_as_in_the_paper(
    decay: Decay,
    seed: int,
    count: int,
    most: int,
    min_score: float,
    nms_iou: float,
    sigma: float,
) -> None:
    found = candidates(seed, count)
    wanted = soft_from_the_paper(found, decay, nms_iou, sigma, min_score)[:most]
    index, scores = soft_nms(
        found, most=most, nms_iou=nms_iou, decay=decay, sigma=sigma, min_score=min_score
    )
    assert index.tolist() == [number for _, number in wanted]
    expected = torch.tensor([score for score, _ in wanted], dtype=torch.float64)
    assert_close(scores, expected, rtol=1e-12, atol=0)
    if len(wanted) > 1:
        for planted in (expected * (1 + 1e-11), expected.flip(0)):
            with pytest.raises(AssertionError):
                assert_close(scores, planted, rtol=1e-12, atol=0)


def test_of_equal_scores_the_first_is_taken() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(50, 1)
    found = Candidates(boxes, torch.full((50,), 0.5), torch.arange(50) % 5)
    index, scores = soft_nms(found, most=100, decay="gaussian", min_score=0.4)
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert (scores == 0.5).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 40))
def test_hard_nms_is_a_decay_without_mercy(seed: int, count: int) -> None:
    found = candidates(seed, count)
    hard = batched_nms(found.boxes, found.scores, found.labels, 0.0)
    index, scores = soft_nms(found, most=100, sigma=1e-30, min_score=1e-9)
    assert torch.equal(index, hard)
    assert torch.equal(scores, found.scores[hard])
    # And without overlap nothing decays.
    apart = found._replace(boxes=found.boxes + torch.arange(count)[:, None] * 1000)
    index, scores = soft_nms(apart, most=100, min_score=0.0)
    assert torch.equal(index, apart.scores.argsort(descending=True))


def test_very_low_scores_decay_as_well() -> None:
    found = candidates(0, 30)
    low = found._replace(scores=found.scores * 1e-30)
    index, scores = soft_nms(found, most=20, min_score=0.0)
    same, lower = soft_nms(low, most=20, min_score=0.0)
    assert torch.equal(index, same)
    assert_close(lower, scores * 1e-30, rtol=1e-9, atol=0)
    assert len(soft_nms(low, most=20)[0]) == 0


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_boxes_vote_as_in_the_paper(nms: Literal["hard", "soft"]) -> None:
    found, sigma = candidates(3, 40), 0.025
    plain = distinct(found, most=100, nms_iou=0.4, nms=nms)
    voted = distinct(found, most=100, nms_iou=0.4, nms=nms, vote_sigma=sigma)
    assert torch.equal(plain.scores, voted.scores)
    assert torch.equal(plain.labels, voted.labels)
    wanted = []
    for box, label in zip(plain.boxes.tolist(), plain.labels.tolist(), strict=True):
        total, summed = 0.0, [0.0] * 4
        for other, score, kind in zip(*(part.tolist() for part in found), strict=True):
            common = overlap(box, other)
            if kind == label and common > 0:
                weight = score * math.exp(-((1 - common) ** 2) / sigma)
                total += weight
                summed = [old + weight * side for old, side in zip(summed, other, strict=True)]
        wanted.append([side / total for side in summed])
    assert_close(voted.boxes, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-10)
    assert (voted.boxes - plain.boxes).abs().max() > 0.1
    with pytest.raises(AssertionError):
        assert_close(voted.boxes + 1e-9, torch.tensor(wanted).double(), rtol=0, atol=1e-10)


def test_a_box_without_company_does_not_move() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 10.0, 10.0], [50.0, 0.0, 60.0, 9.0]])
    found = Candidates(boxes, torch.tensor([0.9, 0.8, 0.0]), torch.tensor([0, 1, 0]))
    assert_close(distinct(found, most=9, nms_iou=0.5, vote_sigma=0.025).boxes, boxes)


def predictions(seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    priors = AnchorGenerator(strides=(8, 16), octave_scales=1)(
        (64, 64), device="cpu", dtype=torch.float64
    )
    shape = (2, len(priors.boxes))
    return Predictions(
        logits=torch.randn(*shape, 3, generator=generator).double() * 3,
        codes=torch.randn(*shape, 4, generator=generator).double() * 0.3,
        priors=priors,
        coder=DeltaCoder(),
        branches={"iou": torch.randn(*shape, generator=generator).double() * 3},
    )


SIZES = torch.tensor([[64, 64], [40, 50]])


@pytest.mark.parametrize("threshold", [None, 0.05, 0.5])
@pytest.mark.parametrize("low", [0.0, 400.0])
def test_scores_are_the_root_of_class_times_iou(threshold: float | None, low: float) -> None:
    given = predictions()
    given = replace(given, logits=given.logits - low)
    process = PostProcess(20, threshold, combine="root")
    # The threshold is of the class alone, and the best are those of the highest product.
    inside = given.priors.inside(SIZES)
    for image, found in enumerate(process.find(given, SIZES)):
        pairs, start = [], 0
        for count in given.priors.counts:
            level = []
            for place in range(start, start + count):
                quality = given.branches["iou"][image, place].item()
                for label in range(3):
                    logit = given.logits[image, place, label].item()
                    chance = 1 / (1 + math.exp(-logit)) if logit > -700 else math.exp(logit)
                    passes = threshold is None or chance > threshold
                    if passes and inside[image, place]:
                        score = math.sqrt(chance / (1 + math.exp(-quality)))
                        level.append((score, label))
            pairs += sorted(level, reverse=True)[:20]
            start += count
        kept = sorted(pairs, reverse=True)
        order = found.scores.argsort(descending=True)
        # Boxes that are clipped to nothing are left out.
        assert len(order) <= len(kept)
        wanted = torch.tensor([score for score, _ in kept], dtype=torch.float64)
        if len(order) == len(kept):
            assert_close(found.scores[order], wanted, rtol=1e-12, atol=0)
            assert found.labels[order].tolist() == [label for _, label in kept]
        else:
            assert torch.isclose(found.scores[:, None], wanted, rtol=1e-12, atol=0).any(1).all()
    assert sum(len(each.scores) for each in process.find(given, SIZES)) > 0 or low > 0


def test_as_a_product_the_branch_may_have_either_name() -> None:
    given = predictions()
    named = replace(given, branches={"centreness": given.branches["iou"]})
    process = PostProcess(20, 0.1)
    for ours, wanted in zip(process(given, SIZES), process(named, SIZES), strict=True):
        assert torch.equal(ours.scores, wanted.scores)
    # Without a branch both are the class probability.
    bare = replace(given, branches={})
    root = replace(process, combine="root")
    for ours, wanted in zip(root(bare, SIZES), process(bare, SIZES), strict=True):
        assert torch.equal(ours.scores, wanted.scores)


def test_what_is_not_a_number_is_no_detection_of_the_root_either() -> None:
    given = predictions()
    process = PostProcess(combine="root", nms="soft", vote_sigma=0.025)
    for name in ("logits", "codes", "iou"):
        bad = (
            replace(given, branches={"iou": given.branches["iou"] * torch.nan})
            if name == "iou"
            else replace(given, **{name: getattr(given, name) * torch.nan})
        )
        assert all(len(found.scores) == 0 for found in process(bad, SIZES))


@DECAYS
def test_soft_nms_is_an_option_of_the_whole(decay: Decay) -> None:
    given = predictions()
    process = PostProcess(nms="soft", decay=decay, sigma=0.3, nms_iou=0.2, min_score=0.01)
    plain = PostProcess()
    for found, all_of_them in zip(process(given, SIZES), plain.find(given, SIZES), strict=True):
        wanted = soft_from_the_paper(all_of_them, decay, 0.2, 0.3, 0.01)[:100]
        assert_close(found.scores, torch.tensor([s for s, _ in wanted]).double())
        index = [number for _, number in wanted]
        assert torch.equal(found.boxes, all_of_them.boxes[index])
        assert torch.equal(found.labels, all_of_them.labels[index])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("combine", "sum", "combine must be one of 'product', 'root', got 'sum'"),
        ("nms", "medium", "nms must be one of 'hard', 'soft'"),
        ("decay", "cubic", "decay must be one of 'linear', 'gaussian'"),
        ("sigma", 0.0, "sigma must be above zero"),
        ("min_score", 2.0, "min_score must be between 0 and 1"),
        ("vote_sigma", -1.0, "vote_sigma must be above zero"),
    ],
)
def test_wrong_settings_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PostProcess(**{name: value})  # type: ignore[arg-type]
