"""Rank & Sort as a criterion, against the paper's formulas written out."""

from __future__ import annotations

import torch
from golden_heads import Given, gradients, small_batch
from torch.testing import assert_close
from torchvision.ops import box_iou, generalized_box_iou

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria import RankSortCriterion, match
from rankdet.losses import rank_sort_loss
from rankdet.structures import NEGATIVE


def test_the_loss_is_that_of_the_paper() -> None:
    head = small_batch(dtype=torch.float64)
    logits, codes = head.predictions.logits, head.predictions.codes
    assigner = MaxIoUAssigner()
    terms = RankSortCriterion(assigner)(head.predictions, head.targets)
    ours = gradients(terms.total, head.predictions)

    matched = assigner(head.predictions.priors, head.targets).matched
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    objects = matched[image, prior]
    boxes = head.targets.boxes[image, objects].double()
    labels = head.targets.labels[image, objects]
    priors = head.predictions.priors.boxes[prior].double()
    pred = head.predictions.coder.decode(priors, codes[image, prior])
    kinds = match(assigner, head.predictions, head.targets).targets
    ious = box_iou(pred, boxes).diag().detach()
    parts = rank_sort_loss(logits.flatten(), kinds, ious, delta=0.5)
    weights = logits[image, prior, labels].detach().sigmoid()
    giou = 1 - generalized_box_iou(pred, boxes).diag()
    box = (weights * giou).sum() / weights.sum()
    ranked = parts.ranking + parts.sorting
    total = ranked + (ranked / box).detach() * box

    assert_close(terms.total, total, rtol=1e-6, atol=0)
    assert_close(terms.parts["ranking"], parts.ranking.detach(), rtol=1e-9, atol=0)
    assert_close(terms.parts["sorting"], parts.sorting.detach(), rtol=1e-5, atol=0)
    assert_close(terms.parts["localisation"], box.detach(), rtol=1e-6, atol=0)
    assert_close(terms.parts["balance"], (ranked / box).detach(), rtol=1e-6, atol=0)
    assert_close(terms.total.detach(), 2 * terms.parts["classification"])
    theirs = torch.autograd.grad(total, (logits, codes))
    for name, our, their in zip(("logits", "codes"), ours, theirs, strict=True):
        scale = their.abs().max().item()
        assert_close(our / scale, their / scale, rtol=0, atol=1e-5, msg=name)


def test_the_box_loss_does_not_move_the_logits() -> None:
    head = small_batch()
    criterion = RankSortCriterion(MaxIoUAssigner())
    terms = criterion(head.predictions, head.targets)
    kinds = match(criterion.assigner, head.predictions, head.targets)
    pred, target = kinds.in_pixels()
    ious = box_iou(pred, target).diag().detach()
    alone = sum(
        rank_sort_loss(head.predictions.logits.flatten(), kinds.targets, ious),
        torch.zeros(()),
    )
    (expected,) = torch.autograd.grad(alone, head.predictions.logits)
    assert_close(gradients(terms.total, head.predictions)[0], expected, rtol=1e-4, atol=1e-7)


def test_scores_that_round_to_zero_do_no_harm() -> None:
    head = small_batch()
    with torch.no_grad():
        head.predictions.logits.fill_(-500.0)
    terms = RankSortCriterion(MaxIoUAssigner())(head.predictions, head.targets)
    assert terms.total.isfinite()
    for gradient in gradients(terms.total, head.predictions):
        assert gradient.isfinite().all()


def test_perfect_boxes_leave_nothing_to_weigh() -> None:
    head = small_batch()
    matched = torch.full((2, 80), NEGATIVE)
    matched[0, 3] = 0
    matches = match(Given(matched), *head)
    with torch.no_grad():
        head.predictions.codes[0, 3] = matches.wanted_codes()[0]
    terms = RankSortCriterion(Given(matched))(head.predictions, head.targets)
    assert terms.total.isfinite()
    assert terms.parts["localisation"] < 1e-5
    for gradient in gradients(terms.total, head.predictions):
        assert gradient.isfinite().all()
