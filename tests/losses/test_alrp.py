"""aLRP Loss against the authors' code (golden vectors) and a loop written from the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GoldenReader
from torch import Tensor

from rankdet.losses.alrp import ALRPLoss, alrp_loss

CASES = [
    "all_above", "all_below", "bf16", "edge", "equal", "extreme", "extreme_d05", "init", "large",
    "p1_no_reach", "p2_n0", "p5_only_ignored", "rpn_weighted", "small", "small_d05", "ties_neg",
    "ties_pos", "tiny_p1", "trained",
]  # fmt: skip
# Relative to the largest entry of what is compared.
RTOL = {torch.float64: 1e-9, torch.float32: 1e-6}


def close(result: Tensor, expected: Tensor | np.ndarray, dtype: torch.dtype, name: str) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(
        result.detach().double(),
        expected,
        rtol=0,
        atol=RTOL[dtype] * max(scale, 1e-30),
        msg=lambda m: f"{name}: {m}",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(golden: GoldenReader, case: str, dtype: torch.dtype) -> None:
    data = golden(f"alrp_{case}.npz")
    logits = torch.from_numpy(data["logits"]).to(dtype).requires_grad_()
    targets = torch.from_numpy(data["targets"])
    loc_errors = torch.from_numpy(data["loc_error"]).to(dtype).requires_grad_()
    head_weight = float(data.get("head_weight", 1.0))
    delta, eps = float(data["delta"]), float(data["eps"])

    hard = alrp_loss(logits, targets, loc_errors, delta=delta, eps=eps, loc_ranking="hard")
    (grad_logits,) = torch.autograd.grad(hard.classification, logits, retain_graph=True)
    flows = torch.autograd.grad(hard.localisation, logits, allow_unused=True, retain_graph=True)
    assert list(flows) == [None]  # ranks are constants to localisation
    (grad_hard,) = torch.autograd.grad(hard.localisation, loc_errors)
    close(hard.classification * head_weight, data["cls_loss"], dtype, "cls_loss")
    close(grad_logits * head_weight, data["grad_logits"], dtype, "grad_logits")
    expected_zeros = torch.from_numpy(data["grad_logits"]) == 0
    assert torch.equal(grad_logits[expected_zeros], torch.zeros_like(grad_logits)[expected_zeros])
    if not data["positive_ties"]:  # with ties the authors' order is one of many
        close(hard.localisation * head_weight, data["reg_loss"], dtype, "reg_loss")
        close(grad_hard * head_weight, data["grad_loc_error"], dtype, "grad_loc_error")

    smooth = alrp_loss(logits, targets, loc_errors, delta=delta, eps=eps)
    (grad_smooth,) = torch.autograd.grad(smooth.localisation, loc_errors)
    close(smooth.localisation, data["reg_loss_paper"], dtype, "reg_loss_paper")
    close(grad_smooth, data["grad_loc_error_paper"], dtype, "grad_loc_error_paper")


def alrp_by_loop(
    logits: Tensor, targets: Tensor, loc_errors: Tensor, delta: float
) -> tuple[float, float, Tensor]:
    """Return classification, localisation and the gradient, from the paper, pair by pair."""

    def step(x: float) -> float:
        return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)

    scores = logits.tolist()
    positives = [i for i, target in enumerate(targets.tolist()) if target == 1]
    negatives = [j for j, target in enumerate(targets.tolist()) if target == 0]
    error = dict(zip(positives, loc_errors.tolist(), strict=True))
    classification = localisation = 0.0
    gradient = [0.0] * len(scores)
    for i in positives:
        relation = {j: step(scores[j] - scores[i]) for j in range(len(scores)) if j != i}
        false_positives = sum(relation[j] for j in negatives)
        others = [k for k in positives if k != i]
        rank = 1 + sum(relation[k] for k in others) + false_positives
        located = sum(relation[k] * error[k] for k in others)
        classification += false_positives / rank / len(positives)
        localisation += (error[i] + located) / rank / len(positives)
        if false_positives > 1e-5:
            shared = (false_positives + located) / rank / len(positives)
            gradient[i] -= shared
            for j in negatives:
                gradient[j] += shared * relation[j] / false_positives
    return classification, localisation, torch.tensor(gradient, dtype=torch.float64)


@pytest.mark.parametrize("delta", [1.0, 0.3])
def test_equals_a_loop_written_from_the_paper(delta: float) -> None:
    logits = (2 * torch.randn(120, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(-1, 2, (120,))
    loc_errors = 2 * torch.rand(int((targets == 1).sum()))
    terms = alrp_loss(logits, targets, loc_errors, delta=delta)
    terms.classification.backward()
    classification, localisation, gradient = alrp_by_loop(logits, targets, loc_errors, delta)
    assert terms.classification.item() == pytest.approx(classification, rel=1e-12)
    assert terms.localisation.item() == pytest.approx(localisation, rel=1e-12)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-12, atol=1e-15)


def test_positives_and_negatives_receive_gradients_of_the_same_size() -> None:
    logits = torch.randn(5000, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(5000) < 0.05).long()
    loc_errors = torch.rand(int(targets.sum()))
    alrp_loss(logits, targets, loc_errors).classification.backward()
    assert logits.grad is not None
    down, up = logits.grad[targets == 1].sum(), logits.grad[targets == 0].sum()
    torch.testing.assert_close(down, -up, rtol=1e-12, atol=0)


def test_smooth_ranking_does_not_depend_on_the_order_of_ties_but_hard_does() -> None:
    logits = torch.cat([torch.zeros(50), torch.randn(500)])
    targets = (torch.arange(550) < 50).int()
    loc_errors = torch.linspace(0, 1, 50)
    smooth = alrp_loss(logits, targets, loc_errors)
    smooth_reversed = alrp_loss(logits, targets, loc_errors.flip(0))
    torch.testing.assert_close(smooth, smooth_reversed, rtol=1e-6, atol=0)
    hard = alrp_loss(logits, targets, loc_errors, loc_ranking="hard")
    hard_reversed = alrp_loss(logits, targets, loc_errors.flip(0), loc_ranking="hard")
    assert abs(hard.localisation - hard_reversed.localisation) > 0.01


def test_a_wrong_number_of_loc_errors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"each of the 2 positives in targets, got shape \[3\]"):
        alrp_loss(torch.zeros(4), torch.tensor([1, 0, 1, -1]), torch.zeros(3))
    with pytest.raises(ValueError, match="loc_ranking must be one of 'smooth', 'hard', got 'x'"):
        alrp_loss(torch.zeros(1), torch.ones(1), torch.zeros(1), loc_ranking="x")  # type: ignore[arg-type]


def test_the_module_is_the_function() -> None:
    logits, targets, loc_errors = torch.randn(20), torch.arange(20) % 2, torch.rand(10)
    module = ALRPLoss(delta=0.4, eps=1e-3, loc_ranking="hard")
    function = alrp_loss(logits, targets, loc_errors, delta=0.4, eps=1e-3, loc_ranking="hard")
    assert module(logits, targets, loc_errors) == function
