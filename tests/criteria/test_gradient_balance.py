"""The balance by measured gradients, the mean localisation, a self-balance without a constant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_heads import small_batch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn
from torch.testing import assert_close

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria import ALRPCriterion, GradientBalance, ScalarBalance, SelfBalance
from rankdet.losses import localisation_errors
from rankdet.structures import Predictions


def losses(shared: Tensor, scales: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return two losses whose gradients for ``shared`` have the norms ``scales``."""
    flat = shared.flatten()
    return scales[0] * flat[0], scales[1] * (0.6 * flat[1] + 0.8 * flat[2])


def test_the_weighted_gradients_have_equal_norms() -> None:
    torch.manual_seed(0)
    shared = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    classification = torch.stack([each.square().sum() for each in shared]).sum()
    localisation = torch.stack([each.exp().mean() for each in shared]).sum()
    balanced = GradientBalance()(classification, localisation, True, shared)
    norms = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)]
        ).norm()
        for loss in (balanced.classification, balanced.localisation)
    ]
    assert_close(norms[0], norms[1], rtol=1e-12, atol=0)
    assert not balanced.weight.requires_grad
    assert_close(balanced.classification, classification, rtol=0, atol=0)


def test_the_weight_is_that_of_the_means_of_what_was_measured() -> None:
    balance = GradientBalance(every=3, memory=0.5)
    shared = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    mean, seen = [0.0, 0.0], []
    for call in range(8):
        scales = (1.0 + call, 2.0 + call % 3)
        if call < 2 or call % 3 == 0:  # 1 / (1 - memory) at first, then each third
            mean = [0.5 * m + s for m, s in zip(mean, scales, strict=True)]
        seen.append(balance(*losses(shared, scales), True, [shared]).weight.item())
        assert seen[-1] == pytest.approx(mean[0] / mean[1], rel=1e-12)
    assert len({round(weight, 9) for weight in seen}) == 4  # four measurements


def test_as_many_are_measured_at_first_as_the_mean_remembers() -> None:
    # 10 * (1 - 0.9) is below 1, if only just.
    balance = GradientBalance(every=1000, memory=0.9)
    shared = torch.zeros(3, requires_grad=True)
    changed, before = 0, 0.0
    for call in range(14):
        weight = balance(*losses(shared, (float(call + 1), 1.0)), True, [shared]).weight.item()
        changed += weight != before
        before = weight
    assert changed == 10


def weights_of_a_process(rank: int, folder: str) -> None:
    """Be one of two processes, the second of which has no positives in the middle iteration."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    balance, weights = GradientBalance(), []
    for iteration in range(3):
        shared = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        empty = rank == 1 and iteration == 1
        scales = (0.0, 0.0) if empty else (3.0 + iteration, 1.0 + rank)
        weights.append(balance(*losses(shared, scales), not empty, [shared]).weight)
    torch.save((torch.stack(weights), balance.state_dict()), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_processes_agree_though_one_has_no_positives(tmp_path: Path) -> None:
    spawn(weights_of_a_process, (str(tmp_path),), nprocs=2)
    (weights, state), (others, other_state) = [
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    ]
    assert torch.equal(weights, others)
    assert torch.equal(state["norms"], other_state["norms"])
    # Norms over both: sqrt(3^2 + 3^2) and sqrt(1^2 + 2^2); then 4 and 1 of the first alone; ...
    wanted, means = [], [0.0, 0.0]
    for norms in ((18**0.5, 5**0.5), (4.0, 1.0), (50**0.5, 5**0.5)):
        means = [0.9 * mean + norm for mean, norm in zip(means, norms, strict=True)]
        wanted.append(means[0] / means[1])
    assert_close(weights.tolist(), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("fault", ["no positives", "no gradient", "not finite"])
def test_what_cannot_be_measured_does_not_count(fault: str) -> None:
    balance = GradientBalance(memory=0.9)
    shared = torch.zeros(3, requires_grad=True)
    assert balance(*losses(shared, (6.0, 2.0)), True, [shared]).weight == 3
    scales = {"no gradient": (0.0, 2.0), "not finite": (float("inf"), 2.0)}.get(fault, (1.0, 1.0))
    bad = balance(*losses(shared + 1, scales), fault != "no positives", [shared])
    assert bad.weight == 3


def test_it_goes_on_where_a_checkpoint_was_written_and_keeps_its_precision() -> None:
    shared = torch.zeros(3, requires_grad=True)
    one, other = GradientBalance(every=4, memory=0.0), GradientBalance(every=4, memory=0.0)
    for _ in range(3):
        one(*losses(shared, (5.0, 1.0)), True, [shared])
    other.load_state_dict(one.state_dict())
    for call in range(3, 6):
        scales = (float(call), 1.0)
        weights = [each(*losses(shared, scales), True, [shared]).weight for each in (one, other)]
        assert weights[0] == weights[1] == (5 if call < 4 else 4)
    assert one.bfloat16().norms.dtype == torch.float64


def test_without_training_or_gradients_nothing_is_measured_or_needed() -> None:
    balance = GradientBalance()
    zero = torch.tensor(0.5)
    assert balance.eval()(zero, zero, True).weight == 1
    with torch.no_grad():
        assert balance.train()(zero, zero, True).weight == 1
    with pytest.raises(ValueError, match="shared"):
        balance(zero.requires_grad_(), zero, True)


def test_a_self_balance_needs_no_constant() -> None:
    balance = SelfBalance("measured")
    first = balance(torch.tensor(0.9), torch.tensor(0.1), True).weight
    second = balance(torch.tensor(0.5), torch.tensor(0.3), True).weight
    assert first.item() == pytest.approx(10)
    assert second.item() == pytest.approx(1.8 / 0.4)
    balance.end_epoch()
    assert balance(torch.tensor(9.0), torch.tensor(0.1), True).weight.item() == pytest.approx(4.5)
    nothing = SelfBalance("measured")(torch.tensor(0.0), torch.tensor(0.0), False)
    assert nothing.weight == 1


def test_the_mean_localisation_is_the_mean_error_of_the_positives() -> None:
    predictions, targets = small_batch()
    made: dict[str, Any] = {"balance": ScalarBalance(1.0), "frame": "pixels"}
    mean = ALRPCriterion(MaxIoUAssigner(), localisation="mean", **made)
    ranked = ALRPCriterion(MaxIoUAssigner(), **made)
    from rankdet.criteria import match

    pred, target = match(mean.assigner, predictions, targets).in_pixels()
    errors = localisation_errors(pred, target, kind="giou", tau=0.5)
    parts, published = mean(predictions, targets).parts, ranked(predictions, targets).parts
    assert_close(parts["localisation"], errors.mean().detach().to(parts["localisation"].dtype))
    assert_close(parts["classification"], published["classification"], rtol=0, atol=0)
    assert abs(parts["localisation"] - published["localisation"]) > 1e-3


def test_a_criterion_hands_on_what_is_shared() -> None:
    predictions, targets = small_batch()
    shared = torch.ones((), dtype=predictions.logits.dtype, requires_grad=True)
    scaled = Predictions(predictions.logits * shared, predictions.codes * shared,
                         predictions.priors, predictions.coder, shared=(shared,))  # fmt: skip
    criterion = ALRPCriterion(MaxIoUAssigner(), GradientBalance(), localisation="mean")
    terms = criterion(scaled, targets)
    norms = {}
    for name in ("classification", "localisation"):
        alone = ALRPCriterion(MaxIoUAssigner(), ScalarBalance(float(name == "localisation")),
                              localisation="mean")  # fmt: skip
        total = alone(scaled, targets).total
        (norms[name],) = torch.autograd.grad(total, shared, retain_graph=True)
    both, cls = norms["localisation"], norms["classification"]
    assert_close(terms.parts["balance"], cls.abs() / (both - cls).abs(), rtol=1e-4, atol=0)
