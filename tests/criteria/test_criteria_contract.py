"""What every criterion keeps to, whatever its losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_heads import Given, Head, gradients, small_batch
from torch import nn
from torch.testing import assert_close

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.assign.paa import PAAAssigner
from rankdet.criteria import (
    ALRPCriterion,
    APClassification,
    DenseCriterion,
    FocalClassification,
    IoUBox,
    LearnedBalance,
    RankSortCriterion,
    ScalarBalance,
    SelfBalance,
    SmoothL1Box,
)
from rankdet.criteria.dense import DRClassification
from rankdet.criteria.paa import FocalGIoUCost, PAACriterion
from rankdet.criteria.quality import (
    IoUWeighting,
    QualityFocalClassification,
    ScoreWeighting,
    VarifocalClassification,
)
from rankdet.structures import IGNORED, Assigner, LossTerms, Predictions, Targets

CRITERIA: dict[str, Callable[[Assigner], nn.Module]] = {
    "focal + smooth L1": lambda a: DenseCriterion(a, FocalClassification(), SmoothL1Box()),
    "focal + 2 GIoU": lambda a: DenseCriterion(a, FocalClassification(), IoUBox(), box_weight=2),
    "focal + GIoU + centreness": lambda a: DenseCriterion(
        a, FocalClassification(), IoUBox(), centreness=True
    ),
    "FoveaBox's focal + -log IoU": lambda a: DenseCriterion(
        a, FocalClassification(count_images=True), IoUBox("log_iou")
    ),
    "quality focal + GIoU": lambda a: DenseCriterion(
        a, QualityFocalClassification(), IoUBox(), weighting=ScoreWeighting()
    ),
    "varifocal + GIoU": lambda a: DenseCriterion(
        a, VarifocalClassification(), IoUBox(), weighting=IoUWeighting()
    ),
    "DR + smooth L1": lambda a: DenseCriterion(a, DRClassification(), SmoothL1Box()),
    "PAA": lambda a: PAACriterion(PAAAssigner(FocalGIoUCost(), first=a)),
    "AP + smooth L1": lambda a: DenseCriterion(
        a, APClassification(), SmoothL1Box(beta=1.0, per="number")
    ),
    "AP + GIoU": lambda a: DenseCriterion(a, APClassification(), IoUBox()),
    "aLRP, self-balance": lambda a: ALRPCriterion(a, SelfBalance()),
    "aLRP, w_r": lambda a: ALRPCriterion(a, ScalarBalance(10.0), loc_ranking="hard"),
    "aLRP, learned": lambda a: ALRPCriterion(a, LearnedBalance()),
    "Rank & Sort": RankSortCriterion,
}
# Losses that learn something from negatives alone; a ranking does not.
ABSOLUTE = (FocalClassification, QualityFocalClassification, VarifocalClassification)
every_criterion = pytest.mark.parametrize("make", list(CRITERIA.values()), ids=list(CRITERIA))
Make = Callable[[Assigner], nn.Module]


def predicted(criterion: nn.Module, head: Head) -> Head:
    """Return the batch with the branches that the criterion needs."""
    needs = criterion.needs
    assert isinstance(needs, frozenset)
    shape = head.predictions.logits.shape[:2]
    dtype = head.predictions.logits.dtype
    branches = {name: torch.zeros(shape, dtype=dtype, requires_grad=True) for name in needs}
    return Head(replace(head.predictions, branches=branches), head.targets)


def run(criterion: nn.Module, head: Head) -> tuple[LossTerms, Predictions, Targets]:
    head = predicted(criterion, head)
    terms: LossTerms = criterion(*head)
    assert terms.total.shape == ()
    assert terms.total.requires_grad
    assert {"classification", "localisation", "positives"} <= terms.parts.keys()
    for name, part in terms.parts.items():
        assert part.shape == (), name
        assert not part.requires_grad, name
    return terms, *head


def end_period(criterion: nn.Module) -> None:
    end: Any = criterion.end_period
    end()


def require_no_object_learned(
    criterion: nn.Module, terms: LossTerms, predictions: Predictions
) -> None:
    """Without positives a ranking has nothing to say; focal loss still pushes background down."""
    classification = getattr(criterion, "classification", None)
    if not isinstance(classification, (*ABSOLUTE, DRClassification)):
        require_nothing_learned(terms, predictions)
        return
    assert terms.parts["positives"] == 0
    assert terms.parts["localisation"] == 0
    logits, codes = gradients(terms.total, predictions)
    # DR loss pushes down the highest, and by its tilt lets go of the lowest.
    assert (logits > 0).all() if isinstance(classification, ABSOLUTE) else logits.sum() > 0
    assert torch.equal(codes, torch.zeros_like(codes))


def require_nothing_learned(terms: LossTerms, predictions: Predictions) -> None:
    """Total 0 and gradients that exist and are 0."""
    assert terms.total == 0
    assert terms.parts["positives"] == 0
    for gradient in gradients(terms.total, predictions):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    for branch in predictions.branches.values():
        (gradient,) = torch.autograd.grad(terms.total, branch, retain_graph=True)
        assert torch.equal(gradient, torch.zeros_like(gradient))


@every_criterion
@pytest.mark.parametrize("images", [1, 2])
def test_without_objects_no_object_is_learned(make: Make, images: int) -> None:
    criterion = make(MaxIoUAssigner())
    terms, predictions, _ = run(criterion, small_batch(images=images, objects=(0,) * images))
    require_no_object_learned(criterion, terms, predictions)


@every_criterion
def test_padding_in_place_of_objects_is_the_same_as_none(make: Make) -> None:
    head = small_batch()
    targets = replace(head.targets, labels=torch.full_like(head.targets.labels, -1))
    criterion = make(MaxIoUAssigner())
    terms, predictions, _ = run(criterion, Head(head.predictions, targets))
    require_no_object_learned(criterion, terms, predictions)


@every_criterion
def test_if_all_is_ignored_nothing_is_learned(make: Make) -> None:
    head = small_batch()
    matched = torch.full(head.predictions.logits.shape[:2], IGNORED)
    terms, predictions, _ = run(make(Given(matched)), head)
    require_nothing_learned(terms, predictions)


@every_criterion
def test_an_image_without_objects_gives_negatives(make: Make) -> None:
    head = small_batch(objects=(3, 0))
    criterion = make(MaxIoUAssigner())
    terms, predictions, _ = run(criterion, head)
    assert terms.total > 0
    assert terms.total.isfinite()
    for_logits, for_codes = gradients(terms.total, predictions)
    if not isinstance(getattr(criterion, "classification", None), DRClassification):
        assert (for_logits[1] >= 0).all()
    assert (for_logits[1] > 0).any()
    assert not for_codes[1].any()
    assert for_codes[0].any()


@every_criterion
@pytest.mark.parametrize("images", [1, 3])
def test_a_loss_is_one_float32_number(make: Make, images: int) -> None:
    head = small_batch(images=images, objects=(2, 5, 1)[:images])
    terms, predictions, _ = run(make(MaxIoUAssigner()), head)
    assert terms.total.dtype == torch.float32
    assert terms.total > 0
    for gradient in gradients(terms.total, predictions):
        assert gradient.isfinite().all()
        assert gradient.any()


@every_criterion
def test_one_image_is_a_batch_too(make: Make) -> None:
    # Twice the same image: means over positives and rankings stay what they were.
    head = small_batch(images=1, objects=(3,))
    once, predictions, targets = run(make(MaxIoUAssigner()), head)
    again = replace(
        predictions,
        logits=predictions.logits.detach().repeat(2, 1, 1).requires_grad_(),
        codes=predictions.codes.detach().repeat(2, 1, 1).requires_grad_(),
    )
    boxes, labels, crowd = (
        [part[0]] * 2 for part in (targets.boxes, targets.labels, targets.crowd)
    )
    both = Targets.stack(boxes, labels, crowd, [(64, 64)] * 2)
    twice, *_ = run(make(MaxIoUAssigner()), Head(again, both))
    assert twice.parts["positives"] == 2 * once.parts["positives"]
    # The self term of a ranking counts for less among twice as many.
    assert_close(twice.total, once.total, rtol=0.1, atol=0)


@every_criterion
def test_predictions_in_16_bits_are_lossless_but_for_themselves(make: Make) -> None:
    head = small_batch(dtype=torch.bfloat16)
    terms, predictions, targets = run(make(MaxIoUAssigner()), head)
    assert terms.total.dtype == torch.float32
    assert all(x.dtype == torch.bfloat16 for x in gradients(terms.total, predictions))
    same = replace(
        predictions,
        logits=predictions.logits.detach().float().requires_grad_(),
        codes=predictions.codes.detach().float().requires_grad_(),
    )
    exact, *_ = run(make(MaxIoUAssigner()), Head(same, targets))
    assert_close(terms.total, exact.total, rtol=1e-5, atol=0)
    for parts in zip(terms.parts.values(), exact.parts.values(), strict=True):
        assert_close(*parts, rtol=1e-5, atol=1e-6)


@every_criterion
def test_autocast_changes_nothing(make: Make) -> None:
    head = small_batch()
    terms, *_ = run(make(MaxIoUAssigner()), head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, *_ = run(make(MaxIoUAssigner()), head)
    assert cast.total.dtype == torch.float32
    assert_close(cast.total, terms.total, rtol=1e-6, atol=0)


@every_criterion
@pytest.mark.parametrize("objects", [(3, 2), (0, 0)])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_logit_that_is_nan_makes_the_loss_nan(
    make: Make, objects: tuple[int, int], everywhere: bool
) -> None:
    head = small_batch(objects=objects)
    with torch.no_grad():
        head.predictions.logits[:, 5 : 80 if everywhere else 6] = torch.nan
    terms, *_ = run(make(MaxIoUAssigner()), head)
    assert terms.total.isnan()


@every_criterion
def test_codes_that_are_nan_make_the_loss_nan(make: Make) -> None:
    head = small_batch()
    with torch.no_grad():
        head.predictions.codes.fill_(torch.nan)
    terms, *_ = run(make(MaxIoUAssigner()), head)
    assert terms.total.isnan()


@every_criterion
def test_a_state_goes_on_where_it_was_saved(make: Make) -> None:
    head = small_batch()
    criterion = make(MaxIoUAssigner())
    run(criterion, head)
    end_period(criterion)
    run(criterion, head)
    saved = copy.deepcopy(criterion.state_dict())
    other = make(MaxIoUAssigner())
    other.load_state_dict(saved)
    for each in (criterion, other):
        end_period(each)
    ours, theirs = run(criterion, head)[0], run(other, head)[0]
    assert torch.equal(ours.total, theirs.total)


@every_criterion
def test_other_branches_than_needed_are_refused(make: Make) -> None:
    head = small_batch()
    criterion = make(MaxIoUAssigner())
    needs = criterion.needs
    assert isinstance(needs, frozenset)
    branches = {} if needs else {"centreness": torch.zeros(2, 80)}
    message = f"needs the branch '{min(needs)}'" if needs else "the detector has the branch"
    with pytest.raises(ValueError, match=message):
        criterion(replace(head.predictions, branches=branches), head.targets)


@every_criterion
def test_memory_that_was_not_written_is_not_read(make: Make, poisoned_memory: None) -> None:
    terms, predictions, _ = run(make(MaxIoUAssigner()), small_batch())
    assert terms.total.isfinite()
    for gradient in gradients(terms.total, predictions):
        assert gradient.isfinite().all()


@every_criterion
def test_settings_are_shown(make: Make) -> None:
    assert "MaxIoUAssigner(" in repr(make(MaxIoUAssigner()))
