"""aLRP as a criterion: the authors' whole heads, the balance, and the choice of box loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from golden_heads import Given, Head, from_flat, from_maps, gradients, read_head, small_batch
from torch.testing import assert_close

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria import ALRPCriterion, ScalarBalance, SelfBalance, match
from rankdet.losses import alrp_loss, localisation_errors
from rankdet.structures import IGNORED, NEGATIVE

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]

# Relative to the largest number of each tensor: gradients of the easy negatives are tiny.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
EVERY_DTYPE = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
HEADS = ["retina_init", "retina_trained", "retina_one_empty_image", "retina_padded"]


def require_equal(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    scale = theirs.abs().max().item()
    assert_close(ours.double(), theirs, rtol=0, atol=tolerance * scale)


def require_published(
    criterion: ALRPCriterion, head: Head, data: dict[str, np.ndarray[Any, Any]]
) -> None:
    """Compare values and gradients with the authors' head."""
    tolerance = TOLERANCE[head.predictions.logits.dtype]
    terms = criterion(head.predictions, head.targets)
    assert terms.parts["positives"] == len(data["pos_index"])
    for part, name in (("classification", "loss_cls"), ("localisation", "loss_bbox")):
        require_equal(terms.parts[part], torch.from_numpy(data[name]), tolerance)
    # One backward pass: neither part reaches what the other is trained by.
    for_logits, for_codes = gradients(terms.total, head.predictions)
    require_equal(for_logits, from_maps(data, "grad_loss_cls_cls_score", 5), tolerance)
    require_equal(for_codes, from_maps(data, "grad_loss_bbox_bbox_pred", 4), tolerance)


@EVERY_DTYPE
@pytest.mark.parametrize("name", HEADS)
def test_a_whole_retinanet_head_is_that_of_the_authors(
    golden: Golden, name: str, dtype: torch.dtype
) -> None:
    data = golden(f"alrp_heads/{name}.npz")
    head = read_head(data, dtype=dtype)
    assigner = MaxIoUAssigner()
    criterion = ALRPCriterion(assigner, ScalarBalance(1.0), loc_ranking="hard")
    require_published(criterion, head, data)
    kinds = match(assigner, head.predictions, head.targets).targets
    assert torch.equal(kinds.view(2, -1, 5), from_flat(data, "flat_targets"))


@EVERY_DTYPE
def test_a_whole_atss_head_is_that_of_the_authors(golden: Golden, dtype: torch.dtype) -> None:
    data = golden("alrp_heads/retina_atss.npz")
    head = read_head(data, dtype=dtype, ratios=(1.0,))
    # Theirs: -1 ignored, 0 negative, k the object k - 1; there are ties, so it is taken as given.
    published = torch.stack([torch.from_numpy(data[f"assigned_gt_{i}"]) for i in range(2)]).long()
    matched = torch.where(published == -1, IGNORED, published - 1)
    assert (matched == NEGATIVE).any()
    criterion = ALRPCriterion(Given(matched), ScalarBalance(1.0), loc_ranking="hard")
    require_published(criterion, head, data)
    kinds = match(Given(matched), *head).targets
    assert torch.equal(kinds.view(2, -1, 5), from_flat(data, "flat_targets"))


def test_the_localisation_errors_are_those_of_the_authors(golden: Golden) -> None:
    data = golden("alrp_heads/retina_trained.npz")
    head = read_head(data, dtype=torch.float64)
    matches = match(MaxIoUAssigner(), head.predictions, head.targets)
    errors = localisation_errors(*matches.in_prior_frame(), eps=1e-6)
    published = torch.zeros_like(torch.from_numpy(data["flat_targets"]), dtype=torch.float64)
    published[torch.from_numpy(data["pos_index"])] = torch.from_numpy(data["loc_error"])
    ours = from_flat({**data, "placed": published.numpy()}, "placed").flatten()
    assert_close(errors.detach(), ours[matches.entries], rtol=1e-10, atol=1e-12)


def test_a_batch_without_objects_costs_nothing_and_leaves_the_balance_alone(
    golden: Golden,
) -> None:
    data = golden("alrp_heads/retina_no_objects.npz")
    head = read_head(data, dtype=torch.float64)
    balance = SelfBalance()
    terms = ALRPCriterion(MaxIoUAssigner(), balance)(head.predictions, head.targets)
    assert terms.total == data["loss_cls"] == 0
    assert terms.parts["localisation"] == data["loss_bbox"] == 0
    for gradient in gradients(terms.total, head.predictions):
        assert not gradient.any()
    assert balance.count == 0


def test_the_balance_weighs_localisation_and_hears_of_each_period() -> None:
    head = small_batch()
    balance = SelfBalance(initial=50.0)
    criterion = ALRPCriterion(MaxIoUAssigner(), balance)
    first = criterion(head.predictions, head.targets)
    classification, localisation = first.parts["classification"], first.parts["localisation"]
    assert first.parts["balance"] == 50
    assert_close(first.total.detach(), classification + 50 * localisation)
    criterion.end_period()
    second = criterion(head.predictions, head.targets)
    weight = (classification + localisation) / localisation
    assert_close(second.parts["balance"], weight)
    assert_close(second.total.detach(), 2 * classification + localisation)
    assert balance.count == 1


def test_in_evaluation_mode_the_balance_takes_no_note() -> None:
    head = small_batch()
    criterion = ALRPCriterion(MaxIoUAssigner(), SelfBalance()).eval()
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    criterion(head.predictions, head.targets)
    for name, value in criterion.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("box", ["iou", "giou", "diou", "ciou"])
def test_localisation_is_alrp_of_the_errors_in_pixels(box: str) -> None:
    head = small_batch()
    assigner = MaxIoUAssigner()
    criterion = ALRPCriterion(assigner, ScalarBalance(1.0), box=box, tau=0.7, eps=1e-9)
    ours = criterion(head.predictions, head.targets).parts["localisation"]
    matches = match(assigner, head.predictions, head.targets)
    errors = localisation_errors(*matches.in_pixels(), kind=box, tau=0.7, eps=1e-9)
    expected = alrp_loss(head.predictions.logits.flatten(), matches.targets, errors).localisation
    assert_close(ours, expected.detach(), rtol=1e-5, atol=0)


def test_an_unknown_box_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"box must be one of 'iou', .*got 'l1'"):
        ALRPCriterion(MaxIoUAssigner(), ScalarBalance(1.0), box="l1")
