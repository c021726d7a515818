"""PAA as a criterion, and its positives under other criteria."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from golden_heads import gradients, small_batch
from scenes import SCENES, losses_while_learning, on_crowd, require_sound, scene, with_branches
from torch import nn
from torch.testing import assert_close
from torchvision.ops import (
    box_iou,
    generalized_box_iou,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from rankdet.assign.paa import PAAAssigner
from rankdet.criteria.alrp import ALRPCriterion
from rankdet.criteria.balance import ScalarBalance
from rankdet.criteria.dense import DenseCriterion, FocalClassification, IoUBox
from rankdet.criteria.matching import PredictiveAssigner, match
from rankdet.criteria.paa import FocalGIoUCost, PAACriterion
from rankdet.criteria.rank_sort import RankSortCriterion

ASSIGNER = PAAAssigner(FocalGIoUCost())
CRITERIA: dict[str, Callable[[], nn.Module]] = {
    "PAA": lambda: PAACriterion(ASSIGNER),
    "focal + GIoU": lambda: DenseCriterion(ASSIGNER, FocalClassification(), IoUBox()),
    "aLRP": lambda: ALRPCriterion(ASSIGNER, ScalarBalance(5.0)),
    "Rank & Sort": lambda: RankSortCriterion(ASSIGNER),
}
every = pytest.mark.parametrize("make", CRITERIA.values(), ids=CRITERIA)


def test_the_cost_of_a_prior_is_its_own_loss() -> None:
    logits = torch.randn(7, 4, dtype=torch.float64)
    labels = torch.tensor([0, 3, 2, 1, 1, 0, 2])
    corner = torch.rand(2, 7, 2, dtype=torch.float64) * 10
    predicted, boxes = torch.cat([corner, corner + 5], 2)
    wanted = nn.functional.one_hot(labels, 4).double()
    focal = sigmoid_focal_loss(logits, wanted, alpha=0.4, gamma=1.5)
    giou = generalized_box_iou(predicted, boxes).diag()
    cost = FocalGIoUCost(alpha=0.4, gamma=1.5, box_weight=1.3)
    found = cost(logits.requires_grad_(), labels, predicted, boxes)
    assert_close(found, (focal.sum(1) + 1.3 * (1 - giou)).detach(), rtol=1e-9, atol=1e-9)
    assert not found.requires_grad
    assert cost(torch.full((7, 4), torch.inf), labels, predicted, boxes).isnan().all()


def test_the_loss_is_what_the_authors_sum_up() -> None:
    criterion = PAACriterion(ASSIGNER)
    head = with_branches(criterion, small_batch(dtype=torch.float64))
    predictions, targets = head
    branch = torch.randn(2, 80, dtype=torch.float64, requires_grad=True)
    predictions = replace(predictions, branches={"iou": branch})
    terms = criterion(predictions, targets)

    matched = ASSIGNER.assign(predictions, targets).matched
    focal, boxes, ious, entropies = [], [], [], []
    for image, prior in (matched >= -1).nonzero().tolist():
        which = int(matched[image, prior])
        wanted = torch.zeros(3, dtype=torch.float64)
        if which >= 0:
            wanted[targets.labels[image, which]] = 1
            code = predictions.codes[image, prior]
            box = predictions.coder.decode(predictions.priors.boxes[prior].double(), code)
            object_box = targets.boxes[image, which].double()
            iou = box_iou(box.detach()[None], object_box[None])[0, 0]
            ious.append(iou)
            boxes.append(iou * generalized_box_iou_loss(box[None], object_box[None])[0])
            p = branch[image, prior].sigmoid()
            entropies.append(-(iou * p.log() + (1 - iou) * (1 - p).log()))
        logits = predictions.logits[image, prior]
        focal.append(sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2).sum())
    count = len(ious)
    assert count > 3
    assert torch.stack(ious).sum() > 1
    classification = torch.stack(focal).sum() / count
    localisation = torch.stack(boxes).sum() / torch.stack(ious).sum()
    iou_branch = torch.stack(entropies).sum() / count
    expected = classification + 1.3 * localisation + 0.5 * iou_branch

    assert terms.parts["positives"] == count
    assert_close(terms.parts["classification"], classification.detach(), rtol=1e-9, atol=0)
    assert_close(terms.parts["localisation"], localisation.detach(), rtol=1e-6, atol=0)
    assert_close(terms.parts["iou"], iou_branch.detach(), rtol=1e-6, atol=0)
    assert_close(terms.total, expected, rtol=1e-6, atol=0)
    inputs = (predictions.logits, predictions.codes, branch)
    ours = torch.autograd.grad(terms.total, inputs)
    for our, their in zip(ours, torch.autograd.grad(expected, inputs), strict=True):
        assert_close(our, their, rtol=1e-5, atol=1e-8)


def test_only_who_assigns_by_predictions_is_shown_them() -> None:
    assert isinstance(ASSIGNER, PredictiveAssigner)
    assert not isinstance(ASSIGNER.first, PredictiveAssigner)
    head = small_batch()
    matches = match(ASSIGNER, *head)
    found = ASSIGNER.assign(*head).matched
    assert torch.equal(matches.places, (found.flatten() >= 0).nonzero().flatten())


@every
@pytest.mark.parametrize("name", list(SCENES))
@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edges(
    make: Callable[[], nn.Module], name: str, crowd: bool, dtype: torch.dtype
) -> None:
    head = scene(name, crowd=crowd, dtype=dtype)
    terms, for_logits, for_codes = require_sound(make(), head)
    assert terms.total.dtype == torch.float32
    assert terms.parts["positives"] >= 1
    if crowd:
        region = on_crowd(head)
        matched = ASSIGNER.assign(*head).matched
        left_alone = region & (matched[1] < 0)
        assert not for_logits[1, left_alone].any()
        assert not for_codes[1, left_alone].any()


@every
@pytest.mark.parametrize("what", ["logits", "codes"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_what_is_no_number_makes_the_loss_no_number(
    make: Callable[[], nn.Module], what: str, everywhere: bool
) -> None:
    criterion = make()
    head = with_branches(criterion, small_batch())
    first = ASSIGNER.first(head.predictions.priors, head.targets).matched
    # One that comes into question, though at present it is not positive.
    found = ASSIGNER.assign(*head).matched
    place = ((first >= 0) & (found < 0)).flatten().nonzero()[0, 0]
    with torch.no_grad():
        wrong = getattr(head.predictions, what).flatten(0, 1)
        wrong[slice(None) if everywhere else place] = torch.nan
    assert criterion(*head).total.isnan()


def test_without_objects_boxes_and_branch_learn_nothing() -> None:
    criterion = PAACriterion(ASSIGNER)
    head = with_branches(criterion, small_batch(objects=(0, 0)))
    terms = criterion(*head)
    assert terms.total == terms.parts["classification"] > 0
    for_logits, for_codes = gradients(terms.total, head.predictions)
    assert (for_logits > 0).all()
    branch = head.predictions.branches["iou"]
    (for_branch,) = torch.autograd.grad(terms.total, branch)
    for gradient in (for_codes, for_branch):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@every
def test_the_loss_falls(make: Callable[[], nn.Module]) -> None:
    criterion = make()
    # A ranking takes some more steps until it holds.
    steps = 20 if isinstance(criterion, ALRPCriterion) else 8
    branch = isinstance(criterion, PAACriterion)
    losses = losses_while_learning(
        criterion, steps=steps, centreness=branch, scale=4.0, class_prior=0.1
    )
    assert losses[-1] < 0.9 * losses[0]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="branch_weight must be zero or more"):
        PAACriterion(ASSIGNER, branch_weight=-1)
    with pytest.raises(ValueError, match="box_weight must be zero or more"):
        PAACriterion(ASSIGNER, box_weight=-1)
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        FocalGIoUCost(alpha=2)
    with pytest.raises(ValueError, match="needs the branch 'iou'"):
        PAACriterion(ASSIGNER)(*small_batch())
    assert "branch_weight=0.5" in repr(PAACriterion(ASSIGNER))
