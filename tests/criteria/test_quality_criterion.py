"""Quality focal and varifocal classification, and box losses weighted by quality."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_heads import Given, Head, gradients, small_batch
from scenes import SCENES, losses_while_learning, on_crowd, require_sound, scene
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_iou, generalized_box_iou_loss

from rankdet.assign.atss import ATSSAssigner
from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria.dense import Classification, DenseCriterion, IoUBox, Weighting
from rankdet.criteria.matching import Matches, match
from rankdet.criteria.quality import (
    IoUWeighting,
    QualityFocalClassification,
    ScoreWeighting,
    VarifocalClassification,
)
from rankdet.structures import IGNORED, NEGATIVE

PARTS: dict[str, tuple[Classification, Weighting]] = {
    "quality focal": (QualityFocalClassification(), ScoreWeighting()),
    "varifocal": (VarifocalClassification(), IoUWeighting()),
}
both = pytest.mark.parametrize(("classification", "weighting"), PARTS.values(), ids=PARTS)


def positives(head: Head) -> tuple[Matches, Tensor, Tensor]:
    """Return the positives, their IoUs one by one, and [B * A * C] of these at the objects."""
    matches = match(MaxIoUAssigner(), *head)
    pred, target = (x.detach().double() for x in matches.in_pixels())
    pairs = zip(pred, target, strict=True)
    ious = torch.stack([box_iou(a[None], b[None])[0, 0] for a, b in pairs])
    quality = torch.zeros(head.predictions.logits.numel(), dtype=torch.float64)
    classes = head.predictions.logits.shape[-1]
    for place, label, value in zip(matches.places, matches.labels, ious, strict=True):
        quality[place * classes + label] = value
    return matches, ious, quality


def require_same(head: Head, criterion: DenseCriterion, expected: Tensor) -> None:
    terms = criterion(*head)
    assert_close(terms.total, expected, rtol=1e-6, atol=1e-12)
    for ours, theirs in zip(
        gradients(terms.total, head.predictions),
        gradients(expected, head.predictions),
        strict=True,
    ):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_generalised_focal_loss_written_out() -> None:
    head = small_batch(dtype=torch.float64)
    matches, _, quality = positives(head)
    p = head.predictions.logits.flatten().sigmoid()
    entropy = -(quality * p.log() + (1 - quality) * (1 - p).log())
    focal = ((quality - p).abs() ** 2 * entropy)[matches.targets >= 0].sum() / matches.count
    scores = head.predictions.logits.detach().flatten(0, 1).sigmoid()[matches.places]
    weight = torch.stack([row.max() for row in scores])
    assert weight.sum() > 1
    each = generalized_box_iou_loss(*(x.double() for x in matches.in_pixels()))
    expected = focal + 2 * (weight * each).sum() / weight.sum()
    criterion = DenseCriterion(
        MaxIoUAssigner(), QualityFocalClassification(), IoUBox(),
        box_weight=2.0, weighting=ScoreWeighting(),
    )  # fmt: skip
    require_same(head, criterion, expected)


@pytest.mark.parametrize("iou_weighted", [True, False])
def test_varifocal_loss_written_out(iou_weighted: bool) -> None:
    head = small_batch(dtype=torch.float64)
    matches, ious, quality = positives(head)
    p = head.predictions.logits.flatten().sigmoid()
    entropy = -(quality * p.log() + (1 - quality) * (1 - p).log())
    weight = torch.where(matches.targets == 1, quality if iou_weighted else 1.0, 0.75 * p**2)
    focal = (weight * entropy)[matches.targets >= 0].sum() / matches.count
    each = generalized_box_iou_loss(*(x.double() for x in matches.in_pixels()))
    expected = focal + (ious * each).sum() / ious.sum().clamp(min=1)
    criterion = DenseCriterion(
        MaxIoUAssigner(), VarifocalClassification(iou_weighted=iou_weighted), IoUBox(),
        weighting=IoUWeighting(),
    )  # fmt: skip
    require_same(head, criterion, expected)


def test_the_weights_of_few_poor_boxes_are_not_divided_by_less_than_one() -> None:
    head = small_batch(objects=(1, 0))
    with torch.no_grad():
        head.predictions.logits.sub_(6)
    criterion = DenseCriterion(
        MaxIoUAssigner(), QualityFocalClassification(), IoUBox(), weighting=ScoreWeighting()
    )
    matches = match(criterion.assigner, *head)
    weights = ScoreWeighting()(head.predictions.logits, matches)
    assert 0 < weights.sum() < 0.5
    each = generalized_box_iou_loss(*matches.in_pixels())
    found = criterion(*head).parts["localisation"]
    assert_close(found, (weights * each).sum().detach(), rtol=1e-5, atol=0)


def test_a_positive_whose_box_misses_its_object_is_no_negative() -> None:
    head = small_batch()
    matched = torch.full((2, 80), NEGATIVE)
    matched[0, 0] = 0
    with torch.no_grad():
        head.predictions.codes[0, 0] = torch.tensor([200.0, 200.0, 0.0, 0.0])
    matches = match(Given(matched), *head)
    assert matches.ious().tolist() == [0.0]
    total = VarifocalClassification()(head.predictions.logits, matches, 1.0)
    (for_logits,) = torch.autograd.grad(total, head.predictions.logits)
    assert 0 < for_logits.flatten()[matches.entries].item() < 1e-6
    total = QualityFocalClassification()(head.predictions.logits, matches, 1.0)
    (for_logits,) = torch.autograd.grad(total, head.predictions.logits)
    assert for_logits.flatten()[matches.entries].item() > 1e-2


@both
def test_ignored_places_take_no_part(classification: Classification, weighting: Weighting) -> None:
    head = small_batch()
    matched = MaxIoUAssigner()(head.predictions.priors, head.targets).matched
    matched[1, 40:] = IGNORED
    criterion = DenseCriterion(Given(matched), classification, IoUBox(), weighting=weighting)
    before = criterion(*head)
    logits = head.predictions.logits.detach().clone()
    logits[1, 40:] = torch.nan
    wild = replace(head.predictions, logits=logits.requires_grad_())
    after = criterion(wild, head.targets)
    assert torch.equal(after.total, before.total)
    for_logits, _ = gradients(after.total, wild)
    assert not for_logits[1, 40:].any()


@both
@pytest.mark.parametrize("name", list(SCENES))
@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edges(
    classification: Classification,
    weighting: Weighting,
    name: str,
    crowd: bool,
    dtype: torch.dtype,
) -> None:
    head = scene(name, crowd=crowd, dtype=dtype)
    criterion = DenseCriterion(ATSSAssigner(), classification, IoUBox(), weighting=weighting)
    terms, for_logits, _ = require_sound(criterion, head)
    assert terms.total.dtype == torch.float32
    if crowd:
        region = on_crowd(head)
        matched = ATSSAssigner()(head.predictions.priors, head.targets).matched
        left_alone = region & (matched[1] < 0)
        assert left_alone.any() or name == "300"
        assert not for_logits[1, left_alone].any()
        assert for_logits[0, region].any()


@both
@pytest.mark.parametrize("what", ["logits", "codes"])
def test_what_is_no_number_makes_the_loss_no_number(
    classification: Classification, weighting: Weighting, what: str
) -> None:
    head = small_batch()
    criterion = DenseCriterion(MaxIoUAssigner(), classification, IoUBox(), weighting=weighting)
    place = match(criterion.assigner, *head).places[0]
    with torch.no_grad():
        getattr(head.predictions, what).flatten(0, 1)[place] = torch.nan
    assert criterion(*head).total.isnan()


@both
def test_the_loss_falls(classification: Classification, weighting: Weighting) -> None:
    criterion = DenseCriterion(
        ATSSAssigner(), classification, IoUBox(), box_weight=2.0, weighting=weighting
    )
    losses = losses_while_learning(criterion, centreness=False, scale=4.0, class_prior=0.1)
    assert losses[-1] < 0.8 * losses[0]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="beta must be 0, or 1 and more"):
        QualityFocalClassification(beta=0.5)
    with pytest.raises(ValueError, match="alpha must be zero or more"):
        VarifocalClassification(alpha=-1)
    with pytest.raises(ValueError, match="gamma must be 0, or 1 and more"):
        VarifocalClassification(gamma=0.5)
    with pytest.raises(ValueError, match="with centreness the box losses are weighted by it"):
        DenseCriterion(
            MaxIoUAssigner(), QualityFocalClassification(), IoUBox(),
            centreness=True, weighting=ScoreWeighting(),
        )  # fmt: skip
