"""DR loss: published values, stability, and the public door."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rankdet.losses.dr import DRLoss, dr_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}  # float64 against float64 of other code


def entries_of(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Row labels (0 background, 1..C foreground, -1 ignored) as 1, 0, -1 of each entry."""
    row = torch.from_numpy(labels)[:, None]
    return torch.where(row < 0, -1, (row == torch.arange(1, classes + 1)).long())


@pytest.mark.parametrize("case", range(6))
def test_value_and_gradient_are_the_published_ones(golden: Golden, case: int) -> None:
    data = golden("losses_other/dr_loss.npz")
    logits = torch.from_numpy(data[f"logits_{case}"]).double().requires_grad_()
    targets = entries_of(data[f"targets_{case}"], logits.shape[1])
    loss = dr_loss(logits, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(loss, torch.tensor(data[f"loss_{case}"]), **EXACT)
    assert_close(gradient, torch.from_numpy(data[f"grad_{case}"]), **EXACT)

    single = torch.from_numpy(data[f"logits_{case}"]).requires_grad_()
    loss = dr_loss(single, targets)
    (gradient,) = torch.autograd.grad(loss, single)
    assert_close(loss.double(), torch.tensor(data[f"loss_{case}"]), rtol=1e-5, atol=0.0)
    published = torch.from_numpy(data[f"grad_{case}"])
    largest = published.abs().max().item()
    assert_close(gradient.double(), published, rtol=0.0, atol=1e-5 * largest)


def test_the_defaults_are_the_published_ones(golden: Golden) -> None:
    data = golden("losses_other/dr_loss.npz")
    defaults = inspect.signature(dr_loss).parameters
    for ours, theirs in (
        ("margin", "margin"),
        ("pos_lambda", "pos_lambda"),
        ("neg_lambda", "neg_lambda"),
        ("smoothness", "L"),
        ("tau", "tau"),
    ):
        assert defaults[ours].default == pytest.approx(float(data[theirs]), rel=1e-12)


def test_the_shape_and_the_ignored_entries_do_not_matter() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 4, dtype=torch.float64)
    targets = torch.randint(-1, 2, (7, 4))
    kept = targets >= 0
    poisoned = torch.where(kept, logits, torch.nan).requires_grad_()
    loss = dr_loss(poisoned, targets)
    (gradient,) = torch.autograd.grad(loss, poisoned)
    assert_close(loss, dr_loss(logits[kept], targets[kept]), **EXACT)
    assert gradient.isfinite().all()
    assert (gradient[~kept] == 0).all()
    assert (gradient[kept] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("present", [(0, 1), (0,), (1,)])
def test_large_logits_stay_finite(dtype: torch.dtype, present: tuple[int, ...]) -> None:
    logits = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4] * 2, dtype=dtype, requires_grad=True)
    targets = torch.tensor([present[i % len(present)] for i in range(10)])
    loss = dr_loss(logits, targets, smoothness=600.0, neg_lambda=1e-6, pos_lambda=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_a_tiny_lambda_picks_the_hardest_examples() -> None:
    logits = torch.tensor([2.0, 1.0, -1.0, 0.5, -3.0], dtype=torch.float64)
    targets = torch.tensor([1, 1, 0, 0, 0])
    loss = dr_loss(logits, targets, pos_lambda=1e-6, neg_lambda=1e-6, margin=0.2)
    gap = torch.sigmoid(logits[3]) - torch.sigmoid(logits[1]) + 0.2
    assert loss.item() == pytest.approx(4 / 6 * math.log1p(math.exp(6 * gap)), rel=1e-9)


def test_without_positives_their_mean_is_one_and_without_negatives_theirs_is_zero() -> None:
    logits = torch.tensor([0.4], dtype=torch.float64)
    p = torch.sigmoid(logits).item()
    negative = dr_loss(logits, torch.tensor([0]))
    positive = dr_loss(logits, torch.tensor([1]))
    assert negative.item() == pytest.approx(4 / 6 * math.log1p(math.exp(6 * (p - 1 + 0.5))))
    assert positive.item() == pytest.approx(4 / 6 * math.log1p(math.exp(6 * (0 - p + 0.5))))


@pytest.mark.parametrize("targets", [[], [-1, -1]])
def test_nothing_that_counts_gives_zero_and_a_zero_gradient(targets: list[int]) -> None:
    logits = torch.ones(len(targets), requires_grad=True)
    loss = dr_loss(logits, torch.tensor(targets, dtype=torch.long))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("target", [0, 1])
def test_a_logit_that_is_not_finite_never_gives_a_plausible_number(
    value: float, target: int
) -> None:
    logits = torch.tensor([value, 0.0, 1.0], requires_grad=True)
    loss = dr_loss(logits, torch.tensor([target, 1, 0]))
    assert loss.isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(40, 3) * 3).to(dtype).requires_grad_()
    targets = torch.randint(-1, 2, (40, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dr_loss(logits, targets)
    torch.autograd.backward(loss)
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert_close(loss, dr_loss(logits.detach().float(), targets), rtol=0, atol=0)


@pytest.mark.parametrize("targets", [[1, 0, 0, -1, 1], [0] * 5, [1] * 5, [1, 0, -1, -1, -1]])
def test_the_gradient_is_the_derivative(targets: list[int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dr_loss(x, torch.tensor(targets)), (logits,))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-8, 8), st.sampled_from([0, 1])), min_size=1, max_size=10),
)
def test_order_does_not_matter_and_each_score_pushes_its_way(
    entries: list[tuple[float, int]],
) -> None:
    logits = torch.tensor([x for x, _ in entries], dtype=torch.float64)
    targets = torch.tensor([t for _, t in entries])
    loss = dr_loss(logits, targets)
    assert_close(dr_loss(logits.flip(0), targets.flip(0)), loss, **EXACT)
    better = torch.where(targets == 1, logits + 1, logits - 1)
    # With λ large the means are plain ones, so that a better score always means a lower loss.
    plain = {"pos_lambda": 1e6, "neg_lambda": 1e6}
    assert dr_loss(better, targets, **plain) < dr_loss(logits, targets, **plain)


def test_the_module_calls_the_function_with_its_settings() -> None:
    logits, targets = torch.tensor([0.5, -0.5]), torch.tensor([1, 0])
    given_settings = {
        "margin": 0.3,
        "pos_lambda": 0.7,
        "neg_lambda": 0.2,
        "smoothness": 5.0,
        "tau": 2.0,
    }
    module = DRLoss(**given_settings)
    wanted = dr_loss(logits, targets, **given_settings)
    assert_close(module(logits, targets), wanted, rtol=0, atol=0)
    assert_close(DRLoss()(logits, targets), dr_loss(logits, targets), rtol=0, atol=0)
    assert "neg_lambda=0.2" in repr(module)


def test_wrong_arguments_are_refused_by_name() -> None:
    logits, targets = torch.zeros(3), torch.zeros(3)
    with pytest.raises(TypeError, match="logits"):
        dr_loss(logits.long(), targets)
    with pytest.raises(TypeError, match="targets"):
        dr_loss(logits, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logits and targets"):
        dr_loss(logits, torch.zeros(3, 1))
    for name in ("pos_lambda", "neg_lambda", "smoothness", "tau"):
        with pytest.raises(ValueError, match=name):
            dr_loss(logits, targets, **{name: 0.0})
