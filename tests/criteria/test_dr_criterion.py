"""DR loss as the classification of a whole head: one scalar for a batch, and the edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from golden_heads import Given, Head, gradients, small_batch
from scenes import SCENES, losses_while_learning, on_crowd, scene
from torch.testing import assert_close

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria.dense import DenseCriterion, DRClassification, SmoothL1Box
from rankdet.criteria.matching import Matches, match
from rankdet.losses.dr import dr_loss
from rankdet.models.retinanet import retinanet
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import IGNORED

if TYPE_CHECKING:
    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]


def criterion() -> DenseCriterion:
    return DenseCriterion(MaxIoUAssigner(), DRClassification(), SmoothL1Box(beta=0.11))


@pytest.mark.parametrize("case", range(6))
def test_a_batch_has_the_published_loss(golden: Golden, case: int) -> None:
    data = golden("losses_other/dr_loss.npz")
    rows = torch.from_numpy(data[f"logits_{case}"]).double().requires_grad_()
    labels = torch.from_numpy(data[f"targets_{case}"])
    count, classes = rows.shape
    # Two images: how the rows are shared out between them must not matter.
    logits = rows.reshape(2, count // 2, classes) if count % 2 == 0 else rows[None]
    kinds = torch.zeros(count, classes, dtype=torch.int8)
    kinds[labels == -1] = -1
    found = (labels > 0).nonzero().flatten()
    kinds[found, labels[found] - 1] = 1
    nothing = torch.zeros(len(found), 4)
    matches = Matches(
        targets=kinds.flatten(),
        entries=(kinds.flatten() == 1).nonzero().flatten(),
        places=found,
        labels=labels[found] - 1,
        codes=nothing,
        priors=nothing,
        boxes=nothing,
        coder=DeltaCoder(),
    )
    settings = {name: float(data[name]) for name in ("margin", "pos_lambda", "neg_lambda", "tau")}
    part = DRClassification(smoothness=float(data["L"]), **settings)
    # Whatever the number of positives: there is no normaliser.
    loss = part(logits, matches, 17.0)
    (gradient,) = torch.autograd.grad(loss, rows)
    assert_close(loss, torch.tensor(data[f"loss_{case}"]), rtol=1e-10, atol=1e-14)
    assert_close(gradient, torch.from_numpy(data[f"grad_{case}"]).double(), rtol=1e-9, atol=1e-14)


def test_the_defaults_are_published(golden: Golden) -> None:
    data = golden("losses_other/dr_loss.npz")
    part = DRClassification()
    assert part.smoothness == data["L"]
    for name in ("margin", "pos_lambda", "neg_lambda", "tau"):
        assert_close(getattr(part, name), float(data[name]), rtol=1e-12, atol=0)


def test_every_setting_reaches_the_loss() -> None:
    head = small_batch(dtype=torch.float64)
    matches = match(MaxIoUAssigner(), *head)
    settings = {
        "margin": 0.2, "pos_lambda": 0.6, "neg_lambda": 0.3, "smoothness": 5.0, "tau": 3.0
    }  # fmt: skip
    found = DRClassification(**settings)(head.predictions.logits, matches, 1.0)
    expected = dr_loss(head.predictions.logits.flatten(), matches.targets, **settings)
    assert_close(found, expected, rtol=0, atol=0)


def test_boxes_are_added_as_ever() -> None:
    head = small_batch(dtype=torch.float64)
    terms = criterion()(*head)
    matches = match(MaxIoUAssigner(), *head)
    each = SmoothL1Box(beta=0.11)(matches)
    assert_close(terms.parts["localisation"], (each.sum() / matches.count).detach())
    assert_close(terms.total.detach(), terms.parts["classification"] + terms.parts["localisation"])


@pytest.mark.parametrize("name", list(SCENES))
@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edges(name: str, crowd: bool, dtype: torch.dtype) -> None:
    head = scene(name, crowd=crowd, dtype=dtype)
    terms = criterion()(*head)
    for each in (terms.total, *gradients(terms.total, head.predictions)):
        assert each.isfinite().all()
    assert terms.total.dtype == torch.float32
    if crowd:
        region = on_crowd(head)
        matched = MaxIoUAssigner()(head.predictions.priors, head.targets).matched
        for_logits, _ = gradients(terms.total, head.predictions)
        assert not for_logits[1, region & (matched[1] < 0)].any()
        assert for_logits[0, region].any()


def test_without_objects_negatives_are_pushed_down() -> None:
    head = small_batch(objects=(0, 0))
    terms = criterion()(*head)
    assert terms.total > 0
    for_logits, for_codes = gradients(terms.total, head.predictions)
    # The tilted mean turns around those far below it, but as a whole goes down.
    assert for_logits.sum() > 0
    assert for_logits.flatten()[head.predictions.logits.argmax()] > 0
    assert torch.equal(for_codes, torch.zeros_like(for_codes))


def test_if_all_is_ignored_nothing_is_learned() -> None:
    head = small_batch()
    assigner = Given(torch.full((2, 80), IGNORED))
    terms = DenseCriterion(assigner, DRClassification(), SmoothL1Box())(*head)
    assert terms.total == 0
    for gradient in gradients(terms.total, head.predictions):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("what", ["logits", "codes"])
def test_what_is_no_number_makes_the_loss_no_number(what: str, everywhere: bool) -> None:
    head: Head = small_batch()
    place = match(MaxIoUAssigner(), *head).places[0]
    with torch.no_grad():
        wrong = getattr(head.predictions, what).flatten(0, 1)
        wrong[slice(None) if everywhere else place] = torch.nan
    assert criterion()(*head).total.isnan()


def test_the_loss_falls() -> None:
    losses = losses_while_learning(criterion(), make=retinanet)
    assert losses[-1] < 0.8 * losses[0]


def test_settings_are_checked() -> None:
    for name in ("pos_lambda", "neg_lambda", "smoothness", "tau"):
        with pytest.raises(ValueError, match=f"{name} must be above zero, got 0"):
            DRClassification(**{name: 0})
