"""Focal loss: published values, what is ignored, and the public door."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from rankdet.losses import in_parts
from rankdet.losses.focal import FocalLoss, focal_loss
from rankdet.losses.normalise import normalised_sum
from rankdet.losses.quality import quality_focal_loss, varifocal_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}  # float64 against float64 of other code


def one_hot(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Label `classes` is background: a row of zeros."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels), classes + 1)[:, :classes]


@pytest.mark.parametrize(
    ("name", "alpha", "gamma"), [("focal_a25_g2", 0.25, 2.0), ("focal_a40_g15", 0.4, 1.5)]
)
def test_value_and_gradient_are_the_published_ones(
    golden: Golden, name: str, alpha: float, gamma: float
) -> None:
    data = golden("losses_other/classification.npz")
    logits = torch.from_numpy(data["logits"]).double().requires_grad_()
    targets = one_hot(data["labels"], logits.shape[1])
    # mmdetection divides by the float32 epsilon more than it was told.
    normaliser = float(data["avg_factor"]) + torch.finfo(torch.float32).eps
    loss = focal_loss(logits, targets, normaliser=normaliser, alpha=alpha, gamma=gamma)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(loss, torch.tensor(data[name]), **EXACT)
    assert_close(gradient, torch.from_numpy(data[f"{name}_grad"]), **EXACT)


def test_float32_agrees_with_float64() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 5) * 4, torch.randint(-1, 2, (200, 5))
    single = focal_loss(logits, targets, normaliser=7.0)
    double = focal_loss(logits.double(), targets, normaliser=7.0)
    assert_close(single.double(), double, rtol=1e-5, atol=0.0)


def test_one_entry_is_the_formula_of_the_paper() -> None:
    for target, p_t, weight in ((1, 0.8, 0.25), (0, 0.2, 0.75)):
        logits = torch.tensor([math.log(0.8 / 0.2)], dtype=torch.float64)
        loss = focal_loss(logits, torch.tensor([target]), normaliser=2.0)
        wanted = -weight * (1 - p_t) ** 2 * math.log(p_t) / 2
        assert_close(loss, torch.tensor(wanted, dtype=torch.float64), **EXACT)


def test_ignored_entries_take_no_part_even_when_they_are_nan() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64)
    targets = torch.randint(-1, 2, (6, 4))
    kept = targets >= 0
    wanted = sigmoid_focal_loss(logits[kept], targets[kept].double(), reduction="sum")
    poisoned = torch.where(kept, logits, torch.nan).requires_grad_()
    loss = focal_loss(poisoned, targets, normaliser=1.0)
    (gradient,) = torch.autograd.grad(loss, poisoned)
    assert_close(loss, wanted, **EXACT)
    assert gradient.isfinite().all()
    assert (gradient[~kept] == 0).all()
    assert (gradient[kept] != 0).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32, torch.float16])
def test_targets_may_have_any_dtype(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.3, -0.2, 5.0])
    targets = torch.tensor([1, 0, -1])
    wanted = focal_loss(logits, targets, normaliser=1.0)
    assert_close(focal_loss(logits, targets.to(dtype), normaliser=1.0), wanted, rtol=0, atol=0)


def test_boolean_targets_are_positive_and_negative() -> None:
    logits = torch.tensor([0.3, -0.2])
    wanted = focal_loss(logits, torch.tensor([1, 0]), normaliser=1.0)
    loss = focal_loss(logits, torch.tensor([True, False]), normaliser=1.0)
    assert_close(loss, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(40, 3) * 3).to(dtype).requires_grad_()
    targets = torch.randint(-1, 2, (40, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = focal_loss(logits, targets, normaliser=3.0)
    torch.autograd.backward(loss)
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    exact = focal_loss(logits.detach().float(), targets, normaliser=3.0)
    assert_close(loss, exact, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0,), (0, 5)])
def test_no_entries_give_zero_and_a_zero_gradient(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    loss = focal_loss(logits, torch.zeros(shape, dtype=torch.long), normaliser=1.0)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None


def test_only_ignored_entries_give_zero_and_a_zero_gradient() -> None:
    logits = torch.ones(4, requires_grad=True)
    loss = focal_loss(logits, torch.full((4,), -1), normaliser=1.0)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("target", [0, 1])
def test_a_logit_that_is_not_finite_never_gives_a_plausible_number(
    value: float, target: int
) -> None:
    logits, targets = torch.tensor([value, 0.0]), torch.tensor([target, 1])
    assert not focal_loss(logits, targets, normaliser=1.0).isfinite()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
def test_saturated_logits_give_finite_gradients(gamma: float) -> None:
    logits = torch.tensor([100.0, -100.0, 100.0, -100.0, 1e4], requires_grad=True)
    targets = torch.tensor([1, 1, 0, 0, 0])
    loss = focal_loss(logits, targets, normaliser=1.0, gamma=gamma)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5])
def test_the_gradient_is_the_derivative(gamma: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(-1, 2, (3, 4))
    assert torch.autograd.gradcheck(
        lambda x: focal_loss(x, targets, normaliser=2.0, gamma=gamma), (logits,)
    )


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-30, 30), st.sampled_from([-1, 0, 1])), min_size=1, max_size=12),
    st.floats(0.01, 100),
)
def test_the_loss_is_the_sum_over_parts_and_scales_with_the_normaliser(
    entries: list[tuple[float, int]], normaliser: float
) -> None:
    logits = torch.tensor([x for x, _ in entries], dtype=torch.float64)
    targets = torch.tensor([t for _, t in entries])
    parts = [
        focal_loss(x, t, normaliser=1.0)
        for x, t in zip(logits.unbind(), targets.unbind(), strict=True)
    ]
    loss = focal_loss(logits, targets, normaliser=normaliser)
    assert_close(loss * normaliser, torch.stack(parts).sum(), **EXACT)
    assert loss >= 0


def test_a_tensor_normaliser_is_a_constant_and_keeps_the_dtype() -> None:
    each = torch.ones(4, requires_grad=True)
    normaliser = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = normalised_sum(each, normaliser)
    torch.autograd.backward(loss)
    assert loss.dtype == torch.float32
    assert_close(loss, torch.tensor(2.0), rtol=0, atol=0, check_dtype=True)
    assert normaliser.grad is None
    assert_close(normalised_sum(each, torch.tensor(4)), torch.tensor(1.0), rtol=0, atol=0)


def test_the_module_calls_the_function_with_its_settings() -> None:
    logits, targets = torch.tensor([0.5, -0.5]), torch.tensor([1, 0])
    module = FocalLoss(alpha=0.4, gamma=1.5)
    wanted = focal_loss(logits, targets, normaliser=3.0, alpha=0.4, gamma=1.5)
    assert_close(module(logits, targets, normaliser=3.0), wanted, rtol=0, atol=0)
    assert "alpha=0.4, gamma=1.5" in repr(module)


def test_it_compiles_without_a_graph_break() -> None:
    logits, targets = torch.tensor([0.5, -0.5, 2.0]), torch.tensor([1, 0, -1])
    compiled = torch.compile(focal_loss, fullgraph=True, backend="eager")
    assert_close(
        compiled(logits, targets, normaliser=torch.tensor(2)),
        focal_loss(logits, targets, normaliser=2),
        rtol=0,
        atol=0,
    )


def test_wrong_arguments_are_refused_by_name() -> None:
    logits, targets = torch.zeros(3), torch.zeros(3)
    with pytest.raises(TypeError, match="logits"):
        focal_loss(targets.long(), targets, normaliser=1.0)
    with pytest.raises(TypeError, match="targets"):
        focal_loss(logits, [0, 0, 0], normaliser=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logits and targets"):
        focal_loss(logits, torch.zeros(4), normaliser=1.0)
    for alpha in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            focal_loss(logits, targets, normaliser=1.0, alpha=alpha)
    for gamma in (-1.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="gamma"):
            focal_loss(logits, targets, normaliser=1.0, gamma=gamma)
    for normaliser in (0.0, -1.0, math.nan, 0):
        with pytest.raises(ValueError, match="normaliser"):
            focal_loss(logits, targets, normaliser=normaliser)
    with pytest.raises(ValueError, match="normaliser"):
        focal_loss(logits, targets, normaliser=torch.ones(1))
    for wrong in ("1", True, None):
        with pytest.raises(TypeError, match="normaliser"):
            focal_loss(logits, targets, normaliser=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 6, 7, 8, 40])
@pytest.mark.parametrize(
    "loss_of",
    [
        focal_loss,
        lambda logits, targets, **others: quality_focal_loss(logits, targets * 0.7, **others),
        lambda logits, targets, **others: varifocal_loss(logits, targets * 0.7, **others),
    ],
)
def test_a_loss_in_parts_is_the_loss(
    loss_of: Callable[..., torch.Tensor], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(size, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(-1, 2, (size, 2)).double()
    found = []
    for part in (7, 10**6):
        monkeypatch.setattr(in_parts, "_PART", part)
        loss = loss_of(logits, targets, normaliser=3.0)
        (twice,) = torch.autograd.grad(2 * loss, logits, create_graph=True)
        (second,) = torch.autograd.grad(twice.square().sum(), logits)
        with torch.no_grad():
            value = loss_of(logits, targets, normaliser=3.0)
        loss = loss_of(logits, targets, normaliser=3.0)
        found.append((value, loss.detach(), *torch.autograd.grad(loss, logits), twice, second))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, rtol=1e-13, atol=1e-15)
        assert not ours.requires_grad or ours is found[0][3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_in_half_precision_keep_the_dtypes(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(40).to(dtype).requires_grad_()
    targets = torch.randint(-1, 2, (40,))
    found = []
    for part in (7, 10**6):
        monkeypatch.setattr(in_parts, "_PART", part)
        loss = focal_loss(logits, targets, normaliser=1.0)
        assert loss.dtype == torch.float32
        found.append(torch.autograd.grad(loss, logits)[0])
    assert found[0].dtype == dtype
    assert_close(*found, rtol=0.01, atol=1e-4)


def test_parts_are_small_on_a_cpu_and_whole_where_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_parts, "_PART", 7)
    sizes = []

    def each(values: torch.Tensor) -> torch.Tensor:
        sizes.append(values.numel())
        return values

    assert in_parts.sum_in_parts(each, torch.ones(4, 4)) == 16
    assert sizes == [7, 7, 2]
    sizes.clear()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert in_parts.sum_in_parts(each, torch.ones(4, 4)) == 16
    assert sizes == [16]
