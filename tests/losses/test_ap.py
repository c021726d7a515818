"""AP Loss against the authors' code (golden vectors) and a loop written from the paper."""

from __future__ import annotations

import pytest
import torch
from conftest import GoldenReader
from test_alrp import CASES, close

from rankdet.losses.ap import APLoss, ap_loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [case for case in CASES if case != "rpn_weighted"])
def test_equals_the_authors_code(golden: GoldenReader, case: str, dtype: torch.dtype) -> None:
    data = golden(f"ap_{case}.npz")
    logits = torch.from_numpy(data["logits"]).to(dtype).requires_grad_()
    targets = torch.from_numpy(data["targets"])
    loss = ap_loss(logits, targets, delta=float(data["delta"]))
    loss.backward()
    assert logits.grad is not None
    close(loss, data["loss"], dtype, "loss")
    close(logits.grad, data["grad_logits"], dtype, "grad_logits")
    assert (logits.grad[torch.from_numpy(data["grad_logits"]) == 0] == 0).all()


@pytest.mark.parametrize("interpolated", [True, False])
def test_equals_average_precision_where_no_pair_is_within_the_ramp(interpolated: bool) -> None:
    logits = 10 * torch.randperm(60).double()  # all differences far beyond delta
    targets = torch.arange(60) % 3 == 0
    loss = ap_loss(logits, targets, interpolated=interpolated)
    relevant = targets[logits.argsort(descending=True)].double()
    precision = relevant.cumsum(0) / torch.arange(1, 61)
    if interpolated:
        precision = precision.flip(0).cummax(0).values.flip(0)
    expected = 1 - (precision * relevant).sum() / relevant.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_without_interpolation_each_error_is_shared_as_it_is() -> None:
    logits = torch.tensor([3.0, 0.0, 0.5, -8.0], requires_grad=True)
    loss = ap_loss(logits, torch.tensor([0, 1, 0, 0]), interpolated=False)
    loss.backward()
    # H(3) = 1 and H(0.5) = 3/4: FP = 7/4, rank = 11/4, and 7/11 goes out in parts 4/7 and 3/7.
    assert loss.item() == pytest.approx(7 / 11)
    assert logits.grad is not None
    expected = torch.tensor([4 / 11, -7 / 11, 3 / 11, 0])
    torch.testing.assert_close(logits.grad, expected)


def test_the_module_is_the_function() -> None:
    logits, targets = torch.randn(20), torch.arange(20) % 2
    assert APLoss(delta=0.4, interpolated=False)(logits, targets) == ap_loss(
        logits, targets, delta=0.4, interpolated=False
    )
