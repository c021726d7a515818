"""Balances: the published trace, what counts, processes, checkpoints."""

from __future__ import annotations

import io
import math
import multiprocessing
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from rankdet.criteria import Balance, Balanced, LearnedBalance, ScalarBalance, SelfBalance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}  # float64 against float64 of other code
EVERY = pytest.mark.parametrize(
    "make",
    [SelfBalance, lambda: ScalarBalance(3.0), LearnedBalance],
    ids=["self", "w_r", "learned"],
)


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def feed(balance: Balance, losses: Iterable[tuple[float, float]]) -> list[float]:
    """Call once per pair of losses; return the weights used."""
    return [balance(double(c), double(r), True).weight.item() for c, r in losses]


def test_the_weights_are_the_published_ones_one_iteration_later_at_each_epoch_end(
    golden: Golden,
) -> None:
    data = golden("self_balance_alrp.npz")
    period, published = int(data["period"]), data["weight_used"]
    balance = SelfBalance(float(data["initial_weight"]))
    ours: list[float] = []
    for step, losses in enumerate(zip(data["cls_loss"], data["reg_loss"], strict=True)):
        ours += feed(balance, [losses])
        if (step + 1) % period == 0:
            balance.end_epoch()
    assert len(ours) == 24
    for step, weight in enumerate(published):
        # The authors' code updates within the last iteration of its period and uses the new
        # weight there already; ours is told afterwards, so the next iteration is the first.
        last = (step + 1) % period == 0
        assert ours[step + last] == pytest.approx(weight, rel=1e-9)
        assert not last or ours[step] == ours[step - 1]


def test_localisation_alone_is_multiplied_by_a_constant() -> None:
    balance = SelfBalance(7.0)
    classification = double(0.9).requires_grad_()
    localisation = double(0.2).requires_grad_()
    balanced = balance(classification, localisation, True)
    torch.autograd.backward(balanced.total)
    assert isinstance(balanced, Balanced)
    assert_close(balanced.classification, classification, rtol=0, atol=0)
    assert_close(balanced.localisation, double(1.4), **EXACT)
    assert_close(balanced.total, double(2.3), **EXACT)
    assert classification.grad == 1
    assert localisation.grad == 7
    assert not balanced.weight.requires_grad
    assert balanced.regulariser == 0


@pytest.mark.parametrize("present", [bool, torch.tensor, lambda yes: torch.tensor(3 if yes else 0)])
def test_iterations_without_positives_do_not_count(present: Callable[[bool], Any]) -> None:
    balance = SelfBalance()
    for classification, localisation, positives in ((0.9, 0.3, True), (5.0, 0.0, False)):
        balance(double(classification), double(localisation), present(positives))
    balance.end_epoch()
    assert balance.weight.item() == pytest.approx((0.9 + 0.3) / 0.3, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_reaches_its_iteration_but_not_the_weight(bad: float) -> None:
    balance = SelfBalance()
    feed(balance, [(0.9, 0.3)])
    assert not balance(double(0.5), double(bad), True).total.isfinite()
    assert not balance(double(bad), double(0.5), True).total.isfinite()
    assert balance.count == 1
    balance.end_epoch()
    assert balance.weight.item() == pytest.approx(4.0, rel=1e-12)


@pytest.mark.parametrize("losses", [[], [(0.9, 0.0)], [(math.nan, 0.5)]])
def test_an_epoch_with_nothing_to_go_by_leaves_the_weight(
    losses: list[tuple[float, float]],
) -> None:
    balance = SelfBalance()
    feed(balance, [(0.9, 0.3)])
    balance.end_epoch()
    feed(balance, losses)
    balance.end_epoch()
    assert balance.weight.item() == pytest.approx(4.0, rel=1e-12)
    assert balance.count == 0
    assert (balance.sums == 0).all()


def test_only_the_last_epoch_matters_and_evaluation_is_not_noted() -> None:
    balance = SelfBalance()
    feed(balance, [(9.0, 0.1)])
    balance.end_epoch()
    feed(balance.train(), [(0.6, 0.3)])
    feed(balance.eval(), [(100.0, 0.1)] * 3)
    balance.train().end_epoch()
    assert balance.weight.item() == pytest.approx(3.0, rel=1e-12)


def test_a_checkpoint_within_an_epoch_goes_on_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(25, 2, generator=generator, dtype=torch.float64).tolist()
    straight, first, resumed = SelfBalance(), SelfBalance(), SelfBalance(initial=1.0)

    def run(balance: Balance, steps: range) -> list[float]:
        used = []
        for step in steps:
            used += feed(balance, [losses[step]])
            if step % 10 == 9:
                balance.end_epoch()
        return used

    file = io.BytesIO()
    used = run(first, range(14))
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file))
    assert run(straight, range(25)) == used + run(resumed, range(14, 25))
    for name, value in straight.state_dict().items():
        assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_the_sums_stay_in_float64_when_the_module_is_cast() -> None:
    balance = SelfBalance()
    feed(balance, [(0.1, 0.1)] * 3)
    before = balance.sums.clone()
    nn.ModuleList([balance]).bfloat16()
    assert_close(balance.sums, before, rtol=0, atol=0)
    assert balance.weight.dtype == torch.float64
    for _ in range(2000):
        balance(torch.tensor(0.9).bfloat16(), torch.tensor(0.1).bfloat16(), True)
    assert balance.sums[0].item() == pytest.approx(0.3 + 2000 * 0.8984375, rel=1e-12)


SEEN = ([(0.9, 0.3), (0.5, 0.1), (0.7, 0.2)], [(0.2, 0.8)])  # by each of two processes


def train_in_one_process(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    balance = SelfBalance()
    weights: list[Tensor] = []
    feed(balance, SEEN[rank])
    balance.end_epoch()
    weights.append(balance.weight.clone())
    for losses in SEEN[rank]:  # an epoch in which process 1 sees no positive
        balance(double(losses[0]), double(losses[1]), rank == 0)
    balance.end_epoch()
    weights.append(balance.weight.clone())
    balance.end_epoch()  # and one in which no process counted anything
    weights.append(balance.weight.clone())
    torch.save(torch.stack(weights), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_processes_that_saw_different_numbers_of_iterations_agree(tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn").Process
    workers = [start(target=train_in_one_process, args=(i, str(tmp_path))) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    together = torch.tensor(SEEN[0] + SEEN[1], dtype=torch.float64).mean(0)
    alone = torch.tensor(SEEN[0], dtype=torch.float64).mean(0)
    wanted = torch.stack([losses.sum() / losses[1] for losses in (together, alone, alone)])
    assert_close(first, second, rtol=0, atol=0)
    # The weight of a finished epoch, then of the one process with positives, then unchanged.
    assert_close(first[:2], wanted[:2], **EXACT)
    assert first[2] == first[1]


def test_the_learned_weights_are_the_formula() -> None:
    balance = LearnedBalance()
    with torch.no_grad():
        balance.log_variances.copy_(torch.tensor([0.5, -1.0]))
    balanced = balance(double(0.9), double(0.2), True)
    wanted = math.exp(-0.5) * 0.9 + 0.5 + math.exp(1.0) * 0.2 - 1.0
    assert balanced.total.item() == pytest.approx(wanted, rel=1e-9)
    assert balanced.weight.item() == pytest.approx(math.e, rel=1e-9)
    torch.autograd.backward(balanced.total)
    gradient = [1 - math.exp(-0.5) * 0.9, 1 - math.exp(1.0) * 0.2]
    assert_close(balance.log_variances.grad, torch.tensor(gradient), rtol=1e-6, atol=0.0)


def test_the_learned_weights_are_least_at_the_logarithm_of_the_losses() -> None:
    balance = LearnedBalance()
    with torch.no_grad():
        balance.log_variances.copy_(torch.tensor([0.9, 0.2]).log())
    torch.autograd.backward(balance(torch.tensor(0.9), torch.tensor(0.2), True).total)
    assert_close(balance.log_variances.grad, torch.zeros(2), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("none", [False, torch.tensor(False), torch.tensor(0)])
def test_learned_variances_stand_still_without_positives(none: Tensor | bool) -> None:
    balance = LearnedBalance()
    with torch.no_grad():
        balance.log_variances.fill_(1.0)
    classification = double(0.9).requires_grad_()
    balanced = balance(classification, double(0.0), none)
    torch.autograd.backward(balanced.total)
    assert balanced.regulariser == 0
    assert_close(balance.log_variances.grad, torch.zeros(2), rtol=0, atol=0)
    assert_close(classification.grad, double(math.exp(-1)), **EXACT)


def test_a_scalar_multiplies_localisation() -> None:
    localisation = double(0.5).requires_grad_()
    balance = ScalarBalance(3.0)
    balanced = balance(double(0.9), localisation, True)
    torch.autograd.backward(balanced.total)
    assert_close(balanced.total, double(2.4), **EXACT)
    assert localisation.grad == 3
    assert balanced.weight == 3
    assert not balance.state_dict()
    assert "w_r=3" in repr(balance)


@EVERY
def test_half_precision_losses_come_back_in_float32(make: Callable[[], Balance]) -> None:
    balance = make()
    localisation = torch.tensor(0.25, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        balanced = balance(torch.tensor(0.75), localisation, torch.tensor(True))
    torch.autograd.backward(balanced.total)
    assert {part.dtype for part in balanced} == {torch.float32}
    assert {part.shape for part in balanced} == {torch.Size()}
    assert localisation.grad is not None


def refuse_to_wait(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """Fail on what makes the host wait for the device: reading a value, counting a mask."""
    assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "item"}
    return func(*args, **(kwargs or {}))


RefuseToWait = type("RefuseToWait", (TorchDispatchMode,), {"__torch_dispatch__": refuse_to_wait})


@EVERY
def test_the_host_never_waits_for_the_device(make: Callable[[], Balance]) -> None:
    balance = make()
    losses = double(0.9).requires_grad_(), double(0.3).requires_grad_()
    with RefuseToWait():
        for positives in (True, torch.tensor(2)):
            torch.autograd.backward(balance(*losses, positives).total)
        balance.end_epoch()


@EVERY
def test_it_compiles_without_a_graph_break(make: Callable[[], Balance]) -> None:
    balance, eager = make(), make()
    compiled = torch.compile(balance, fullgraph=True, backend="eager")
    for losses in ((0.9, 0.3), (0.5, 0.2)):
        args = double(losses[0]), double(losses[1]), torch.tensor(True)
        assert_close(compiled(*args).total, eager(*args).total, rtol=0, atol=0)
    for name, value in eager.state_dict().items():
        assert_close(balance.state_dict()[name], value, rtol=0, atol=0)


@EVERY
def test_wrong_arguments_are_refused_by_name(make: Callable[[], Balance]) -> None:
    balance, loss = make(), torch.tensor(1.0)
    with pytest.raises(TypeError, match="classification"):
        balance(torch.tensor(1), loss, True)
    with pytest.raises(TypeError, match="localisation"):
        balance(loss, 1.0, True)
    with pytest.raises(ValueError, match="localisation"):
        balance(loss, torch.ones(3), True)
    with pytest.raises(ValueError, match="has_positives"):
        balance(loss, loss, torch.ones(2))
    with pytest.raises(TypeError, match="has_positives"):
        balance(loss, loss, 1)


def test_wrong_settings_are_refused_by_name() -> None:
    for initial in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="initial"):
            SelfBalance(initial)
    with pytest.raises(ValueError, match="w_r"):
        ScalarBalance(-1.0)
