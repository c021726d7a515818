"""Both stages together: the authors' first stage with its weight, and two balances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from golden_heads import LEVELS, from_maps, gradients
from region_batches import region_batch, region_gradients, targets_of
from torch.testing import assert_close

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria import (
    ALRPCriterion,
    DenseCriterion,
    FocalClassification,
    IoUBox,
    ScalarBalance,
    SelfBalance,
    SmoothL1Box,
)
from rankdet.criteria.balance import Balance
from rankdet.criteria.cross_entropy import CrossEntropyCriterion
from rankdet.criteria.regions import AlreadyMatched, RegionCriterion
from rankdet.criteria.two_stage import TwoStageCriterion
from rankdet.models.priors import AnchorGenerator
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import Predictions, Targets, TwoStagePredictions

if TYPE_CHECKING:
    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
PROPOSING = MaxIoUAssigner(positive=0.7, negative=0.3, min_positive=0.3)
OVERLAP = MaxIoUAssigner(positive=0.5, negative=0.5, low_quality=False)
TARGETS = targets_of(([[5.0, 5, 30, 30], [32.0, 30, 60, 62]], [0, 2]), ([[10.0, 20, 50, 44]], [1]))


def alrp(balance: Callable[[], Balance] = SelfBalance, **settings: Any) -> TwoStageCriterion:
    given: dict[str, Any] = {"first_weight": 0.2, **settings}
    second = ALRPCriterion(AlreadyMatched(), balance(), frame="pixels", loc_ranking="hard")
    return TwoStageCriterion(
        ALRPCriterion(PROPOSING, balance(), tau=0.7, loc_ranking="hard"),
        RegionCriterion(OVERLAP, second),
        **given,
    )


def both(targets: Targets = TARGETS, **settings: Any) -> TwoStagePredictions:
    """Return random predictions of two images of 64 x 64 px."""
    anchors = AnchorGenerator(strides=(8, 16), scale=2.0, octave_scales=1, ratios=(1.0,))
    priors = anchors((64, 64), device="cpu", dtype=torch.float32)
    images, total = len(targets.boxes), len(priors.boxes)
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(images, total, 1, generator=generator).requires_grad_()
    codes = torch.randn(images, total, 4, generator=generator).requires_grad_()
    first = Predictions(logits, codes, priors, DeltaCoder())
    return TwoStagePredictions(first, region_batch(targets, **settings).predictions)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["init", "trained"])
def test_a_whole_first_stage_is_that_of_the_authors(
    golden: Golden, name: str, dtype: torch.dtype
) -> None:
    data = golden(f"roi/rpn_{name}.npz")
    logits = from_maps(data, "cls_score", 1).to(dtype).requires_grad_()
    codes = from_maps(data, "bbox_pred", 4).to(dtype).requires_grad_()
    anchors = AnchorGenerator(strides=(4, 8, 16, 32, 64), scale=8.0, octave_scales=1)
    priors = anchors((96, 128), device="cpu", dtype=dtype)
    first = Predictions(logits, codes, priors, DeltaCoder())
    # Objects of several classes: to the first stage they are all alike.
    targets = Targets.stack(
        [torch.from_numpy(data[f"gt_boxes_{image}"]).to(dtype) for image in range(2)],
        [torch.from_numpy(data[f"gt_labels_{image}"]) for image in range(2)],
        [torch.zeros(len(data[f"gt_labels_{image}"]), dtype=torch.bool) for image in range(2)],
        [(96, 128)] * 2,
    )
    assert targets.labels.max() > 1
    nothing = region_batch(targets, regions=0, classes=5).predictions
    weight = float(data["head_weight"])
    criterion = alrp(lambda: ScalarBalance(1.0), first_weight=weight)
    terms = criterion(TwoStagePredictions(first, nothing), targets)

    assert terms.parts["rpn_positives"] == len(data["pos_index"])
    assert terms.parts["positives"] == 0
    ours = (
        weight * terms.parts["rpn_classification"],
        weight * terms.parts["rpn_localisation"],
        *gradients(terms.total, first),
    )
    theirs = (
        torch.from_numpy(data["loss_cls"]),
        torch.from_numpy(data["loss_bbox"]),
        from_maps(data, "grad_loss_cls_cls_score", 1),
        from_maps(data, "grad_loss_bbox_bbox_pred", 4),
    )
    for mine, published in zip(ours, theirs, strict=True):
        scale = published.abs().max().item()
        assert_close(mine.double(), published, rtol=0, atol=TOLERANCE[dtype] * scale)
    matched = PROPOSING(priors, targets).matched
    kinds = torch.where(matched >= 0, 1, matched + 1)
    counts = [2 * data[f"cls_score_{level}"][0].size for level in range(LEVELS)]
    published = torch.from_numpy(data["flat_targets"]).split(counts)
    assert torch.equal(kinds, torch.cat([each.view(2, -1) for each in published], 1).long())


def test_the_total_is_that_of_both_and_the_parts_have_names() -> None:
    predictions = both()
    criterion = alrp()
    terms = criterion(predictions, TARGETS)
    one_class = replace(TARGETS, labels=TARGETS.labels.clamp(max=0))
    first = alrp().first(predictions.first, one_class)
    second = alrp().second(predictions.second, TARGETS)
    assert_close(terms.total, 0.2 * first.total + second.total)
    expected = {**second.parts, **{f"rpn_{name}": part for name, part in first.parts.items()}}
    assert terms.parts.keys() == expected.keys()
    assert {"classification", "rpn_classification", "rpn_balance"} <= terms.parts.keys()
    for name, part in terms.parts.items():
        assert part == expected[name], name
        assert part.shape == ()
        assert not part.requires_grad


def test_each_stage_has_a_balance_of_its_own() -> None:
    criterion = alrp()
    parts = criterion(both(), TARGETS).parts
    assert parts["balance"] == parts["rpn_balance"] == 50
    # The weight of the head changes both of its losses, and so not their balance.
    other = alrp(first_weight=1.0)
    other(both(), TARGETS)
    for each in (criterion, other):
        each.end_period()
        found = each(both(), TARGETS).parts
        for prefix in ("", "rpn_"):
            classification = parts[f"{prefix}classification"]
            localisation = parts[f"{prefix}localisation"]
            weight = (classification + localisation) / localisation
            assert_close(found[f"{prefix}balance"], weight)
        assert found["balance"] != found["rpn_balance"]


def test_what_is_saved_is_restored() -> None:
    criterion, other = alrp(), alrp()
    criterion(both(), TARGETS)
    criterion.end_period()
    criterion(both(), TARGETS)
    saved = {name: value.clone() for name, value in criterion.state_dict().items()}
    assert len(saved) == 6
    other.load_state_dict(saved)
    for each in (criterion, other):
        each.end_period()
    assert torch.equal(criterion(both(), TARGETS).total, other(both(), TARGETS).total)


def test_a_stage_without_weight_is_not_trained() -> None:
    predictions = both()
    terms = alrp(first_weight=0.0)(predictions, TARGETS)
    assert all(not gradient.any() for gradient in gradients(terms.total, predictions.first))
    assert any(g.any() for g in region_gradients(terms.total, predictions.second))


def test_crowd_regions_are_left_alone_by_both() -> None:
    crowd = targets_of(([[5.0, 5, 25, 25], [32.0, 0, 64, 64]], [0, -2]))
    plain = replace(crowd, labels=torch.tensor([[0, -1]]))
    predictions = both(crowd, regions=40)
    first, second = (
        (boxes >= torch.tensor([32, 0, 32, 0])).all(1) & (boxes <= 64).all(1)
        for boxes in (predictions.first.priors.boxes, predictions.second.regions.boxes)
    )
    assert first.sum() > 5
    assert second.sum() > 3
    for targets, learned in ((crowd, False), (plain, True)):
        terms = alrp()(predictions, targets)
        for_priors, _ = gradients(terms.total, predictions.first)
        for_regions, _ = region_gradients(terms.total, predictions.second)
        assert for_priors[0, first].any() == learned
        assert for_regions[second].any() == learned
        assert for_priors.any()
        assert for_regions.any()


def test_the_branches_are_those_of_the_second_stage() -> None:
    first = CrossEntropyCriterion(PROPOSING, SmoothL1Box())
    loss = CrossEntropyCriterion(AlreadyMatched(), SmoothL1Box(), scores="softmax")
    criterion = TwoStageCriterion(first, RegionCriterion(OVERLAP, loss))
    assert criterion.needs == {"background"}
    assert alrp().needs == frozenset()
    with pytest.raises(ValueError, match="needs the branch 'background'"):
        criterion(both(), TARGETS)
    assert criterion(both(background=True), TARGETS).total.isfinite()
    centred = DenseCriterion(PROPOSING, FocalClassification(), IoUBox(), centreness=True)
    with pytest.raises(ValueError, match=r"first stage must need no branch, got .*centreness"):
        TwoStageCriterion(centred, RegionCriterion(OVERLAP, loss))
    with pytest.raises(ValueError, match=r"first_weight must be zero or more, got -0\.5"):
        alrp(first_weight=-0.5)
