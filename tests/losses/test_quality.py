"""Quality focal and varifocal loss: published values, limits, and the public door."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rankdet.losses.focal import focal_loss
from rankdet.losses.quality import (
    QualityFocalLoss,
    VarifocalLoss,
    quality_focal_loss,
    varifocal_loss,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}  # float64 against float64 of other code
BOTH = pytest.mark.parametrize("loss_of", [quality_focal_loss, varifocal_loss])


def quality_targets(data: dict[str, np.ndarray]) -> torch.Tensor:
    """Quality in the column of the label; label C is background."""
    rows, classes = data["logits"].shape
    targets = torch.zeros(rows, classes + 1, dtype=torch.float64)
    targets[torch.arange(rows), torch.from_numpy(data["labels"])] = torch.from_numpy(
        data["quality"]
    ).double()
    return targets[:, :classes]


def normaliser_of(data: dict[str, np.ndarray]) -> float:
    """Return what mmdetection divided by: float32 epsilon more than it was told."""
    return float(data["avg_factor"]) + torch.finfo(torch.float32).eps


def test_quality_focal_value_and_gradient_are_the_published_ones(golden: Golden) -> None:
    data = golden("losses_other/classification.npz")
    logits = torch.from_numpy(data["logits"]).double().requires_grad_()
    targets = quality_targets(data)
    loss = quality_focal_loss(logits, targets, normaliser=normaliser_of(data))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(loss, torch.tensor(data["quality_focal_b2"]), **EXACT)
    assert_close(gradient, torch.from_numpy(data["quality_focal_b2_grad"]), **EXACT)
    rows = [
        quality_focal_loss(x, y, normaliser=1.0)
        for x, y in zip(logits.detach(), targets, strict=True)
    ]
    assert_close(torch.stack(rows), torch.from_numpy(data["quality_focal_b2_none"]), **EXACT)


def test_varifocal_positives_may_count_alike() -> None:
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.7]], dtype=torch.float64)
    targets = torch.tensor([[0.4, 0.0], [0.0, 0.9]], dtype=torch.float64)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none"
    )
    weight = torch.where(targets > 0, 1.0, 0.75 * logits.sigmoid() ** 2)
    loss = varifocal_loss(logits, targets, normaliser=2.0, iou_weighted=False)
    assert_close(loss, (weight * entropy).sum() / 2, **EXACT)
    assert_close(VarifocalLoss(iou_weighted=False)(logits, targets, normaliser=2.0), loss)
    assert varifocal_loss(logits, targets, normaliser=2.0) < loss


def test_varifocal_value_and_gradient_are_the_published_ones(golden: Golden) -> None:
    data = golden("losses_other/classification.npz")
    logits = torch.from_numpy(data["logits"]).double().requires_grad_()
    targets = torch.from_numpy(data["varifocal_target"])
    loss = varifocal_loss(logits, targets, normaliser=normaliser_of(data))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(loss, torch.tensor(data["varifocal"]), **EXACT)
    assert_close(gradient, torch.from_numpy(data["varifocal_grad"]), **EXACT)


def test_quality_focal_with_hard_targets_is_focal_without_alpha() -> None:
    torch.manual_seed(0)
    logits = torch.randn(30, 4, dtype=torch.float64) * 3
    targets = torch.randint(-1, 2, (30, 4)).double()
    # α = 1/2 halves positives and negatives alike.
    wanted = 2 * focal_loss(logits, targets, normaliser=1.0, alpha=0.5)
    assert_close(quality_focal_loss(logits, targets, normaliser=1.0), wanted, **EXACT)


def test_varifocal_follows_its_two_cases() -> None:
    p = 0.3
    logits = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64)
    q = 0.6
    positive = varifocal_loss(logits, torch.tensor([q], dtype=torch.float64), normaliser=1.0)
    negative = varifocal_loss(logits, torch.tensor([0.0]), normaliser=1.0)
    wanted_positive = -q * (q * math.log(p) + (1 - q) * math.log(1 - p))
    wanted_negative = -0.75 * p**2 * math.log(1 - p)
    assert positive.item() == pytest.approx(wanted_positive, rel=1e-9)
    assert negative.item() == pytest.approx(wanted_negative, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, 0.99), st.floats(-10, 10))
def test_quality_focal_is_least_where_probability_equals_quality(
    quality: float, logit: float
) -> None:
    targets = torch.tensor([quality], dtype=torch.float64)
    there = torch.logit(targets).requires_grad_()
    least = quality_focal_loss(there, targets, normaliser=1.0)
    (gradient,) = torch.autograd.grad(least, there)
    elsewhere = quality_focal_loss(
        torch.tensor([logit], dtype=torch.float64), targets, normaliser=1.0
    )
    assert least.item() == pytest.approx(0, abs=1e-20)
    assert gradient.item() == pytest.approx(0, abs=1e-10)
    assert elsewhere >= 0


@BOTH
def test_ignored_entries_take_no_part_even_when_they_are_nan(
    loss_of: Callable[..., torch.Tensor],
) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3).double(), torch.rand(5, 3).double()
    kept = torch.rand(5, 3) > 0.4
    poisoned = torch.where(kept, logits, torch.nan).requires_grad_()
    loss = loss_of(poisoned, torch.where(kept, targets, -1), normaliser=1.0)
    (gradient,) = torch.autograd.grad(loss, poisoned)
    assert_close(loss, loss_of(logits[kept], targets[kept], normaliser=1.0), **EXACT)
    assert gradient.isfinite().all()
    assert (gradient[~kept] == 0).all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_float32(
    loss_of: Callable[..., torch.Tensor], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(20, 3) * 3).to(dtype).requires_grad_()
    targets = (torch.rand(20, 3) * (torch.rand(20, 3) > 0.5)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(logits, targets, normaliser=3.0)
    torch.autograd.backward(loss)
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    exact = loss_of(logits.detach().float(), targets.float(), normaliser=3.0)
    assert_close(loss, exact, rtol=0, atol=0)
    double = loss_of(logits.detach().double(), targets.double(), normaliser=3.0)
    assert_close(loss.double(), double, rtol=1e-5, atol=0.0)


@BOTH
def test_no_entries_give_zero_and_a_zero_gradient(loss_of: Callable[..., torch.Tensor]) -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = loss_of(logits, torch.zeros(0, 5), normaliser=1.0)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None


@BOTH
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_a_logit_that_is_not_finite_never_gives_a_plausible_number(
    loss_of: Callable[..., torch.Tensor], value: float, target: float
) -> None:
    loss = loss_of(torch.tensor([value, 0.0]), torch.tensor([target, 1.0]), normaliser=1.0)
    assert not loss.isfinite()


@BOTH
def test_a_nan_quality_is_not_taken_for_an_ignored_entry(
    loss_of: Callable[..., torch.Tensor],
) -> None:
    assert loss_of(torch.zeros(2), torch.tensor([math.nan, 0.5]), normaliser=1.0).isnan()


@BOTH
@pytest.mark.parametrize("exponent", [0.0, 1.5, 2.0, 3.0])
def test_the_gradient_is_the_derivative(
    loss_of: Callable[..., torch.Tensor], exponent: float
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(3, 4, dtype=torch.float64)
    targets[0] = torch.tensor([0.0, 1.0, -1.0, 0.0])
    name = "beta" if loss_of is quality_focal_loss else "gamma"
    assert torch.autograd.gradcheck(
        lambda x: loss_of(x, targets, normaliser=2.0, **{name: exponent}), (logits,)
    )


@BOTH
def test_the_targets_get_no_gradient(loss_of: Callable[..., torch.Tensor]) -> None:
    logits = torch.zeros(2, requires_grad=True)
    targets = torch.tensor([0.5, 0.0], requires_grad=True)
    torch.autograd.backward(loss_of(logits, targets, normaliser=1.0))
    assert targets.grad is None


@BOTH
def test_saturated_logits_give_finite_gradients(loss_of: Callable[..., torch.Tensor]) -> None:
    logits = torch.tensor([100.0, -100.0, 100.0, -100.0, 1e4], requires_grad=True)
    loss = loss_of(logits, torch.tensor([1.0, 0.5, 0.0, 0.0, 0.2]), normaliser=1.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_the_modules_call_the_functions_with_their_settings() -> None:
    logits, targets = torch.tensor([0.5, -0.5]), torch.tensor([0.8, 0.0])
    assert_close(
        QualityFocalLoss(beta=1.5)(logits, targets, normaliser=3.0),
        quality_focal_loss(logits, targets, normaliser=3.0, beta=1.5),
        rtol=0,
        atol=0,
    )
    assert_close(
        VarifocalLoss(alpha=0.5, gamma=1.5)(logits, targets, normaliser=3.0),
        varifocal_loss(logits, targets, normaliser=3.0, alpha=0.5, gamma=1.5),
        rtol=0,
        atol=0,
    )
    assert "beta=1.5" in repr(QualityFocalLoss(beta=1.5))
    assert "alpha=0.5, gamma=1.5" in repr(VarifocalLoss(alpha=0.5, gamma=1.5))


@BOTH
def test_wrong_arguments_are_refused_by_name(loss_of: Callable[..., torch.Tensor]) -> None:
    logits, targets = torch.zeros(3), torch.zeros(3)
    with pytest.raises(TypeError, match="logits"):
        loss_of(logits.long(), targets, normaliser=1.0)
    with pytest.raises(TypeError, match="targets"):
        loss_of(logits, targets.long(), normaliser=1.0)
    with pytest.raises(ValueError, match="logits and targets"):
        loss_of(logits, torch.zeros(4), normaliser=1.0)
    with pytest.raises(ValueError, match="normaliser"):
        loss_of(logits, targets, normaliser=0.0)
    name = "beta" if loss_of is quality_focal_loss else "gamma"
    with pytest.raises(ValueError, match=name):
        loss_of(logits, targets, normaliser=1.0, **{name: 0.5})


def test_a_negative_alpha_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        varifocal_loss(torch.zeros(1), torch.zeros(1), normaliser=1.0, alpha=-1.0)
