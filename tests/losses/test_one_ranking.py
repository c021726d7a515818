"""One ranking over several processes: the values and gradients of one big batch, at little cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import (
    LOSSES,
    Counting,
    Outcome,
    Shard,
    cases,
    draw,
    features,
    in_processes,
    in_threads,
    joined,
    learn,
    model,
    outcome,
    together,
)
from torch import Tensor, distributed

from rankdet.losses import ALRPLoss, APLoss, RankSortLoss, alrp_loss, ap_loss

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="torch was built without distributed"
)
every_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture(scope="module", params=[2, 4])
def processes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of 2, then 4 real processes found; they run once."""
    return in_processes(request.param, tmp_path_factory.mktemp("processes"))


def require_same(found: Outcome, wanted: Outcome, *, tolerance: float = 1e-9) -> None:
    """Compare with the one big batch; gradients by their largest entry as well."""
    for ours, theirs in zip(found[:3], wanted[:3], strict=True):
        finite = theirs[theirs.isfinite()]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=tolerance * largest, equal_nan=True
        )
        if tolerance < 1e-6:  # float32 may round a tiny share to 0
            assert torch.equal(ours == 0, theirs == 0)


@every_loss
@pytest.mark.parametrize("case", cases(2))
def test_it_is_the_ranking_of_one_big_batch(
    loss: str, case: str, processes: list[dict[str, Any]]
) -> None:
    shards = cases(len(processes))[case]
    wanted = outcome(LOSSES[loss], together(shards))
    found = joined([Outcome(**each[loss][case]) for each in processes])
    require_same(found, wanted, tolerance=2e-6 if "float32" in case else 1e-9)
    if "NaN" in case and (loss[:2] != "ap" or "of a" not in case):
        assert wanted.values.isnan().any(), "the case shows nothing"
    if case == "uneven":
        assert wanted.of_logits.abs().max() > 0


def test_the_mean_of_gradients_in_ddp_is_that_of_the_big_batch(
    processes: list[dict[str, Any]],
) -> None:
    ranks = range(len(processes))
    net = model()
    net.load_state_dict(processes[0]["weights"])
    shards = [draw(rank, 30 if rank else 0, 2000 - (30 if rank else 0)) for rank in ranks]
    wanted = learn(net, torch.cat([features(rank) for rank in ranks]), together(shards))
    for process in processes:
        torch.testing.assert_close(process["ddp"], wanted, rtol=1e-9, atol=1e-12)
        # What ranks alone and is averaged is something else.
        assert max(float(grad.abs().max()) for grad in process["ddp"]) > 1e-3


@every_loss
def test_what_is_sent_grows_with_positives_only(loss: str, processes: list[dict[str, Any]]) -> None:
    world = len(processes)
    numbers = 1 if loss.startswith("ap") else 2
    for process in processes:
        sent = {case: losses[loss] for case, losses in process["sent"].items()}
        assert sent[50, 10**3] == sent[50, 10**5]
        for (positives, _), count in sent.items():
            bins = 2 * positives * world + 1
            sizes, gathered, added = 8, 8 * numbers * positives, 8 * (2 * bins + 1)
            assert count == sizes + gathered + added


@pytest.mark.parametrize("loss", ["alrp", "ap", "rank_sort"])
@pytest.mark.parametrize("fault", ["bad target", "too few"])
def test_a_fault_that_one_process_sees_stops_all(
    loss: str, fault: str, processes: list[dict[str, Any]]
) -> None:
    if (loss, fault) == ("ap", "too few"):
        pytest.skip("AP Loss is told nothing of the positives")
    own, *others = (processes[1], processes[0], *processes[2:])
    expected = "targets must be 1" if fault == "bad target" else "entry for each of the 5 positives"
    assert expected in own[f"{loss} {fault}"]
    for other in others:
        assert "the input of process 1 is faulty" in other[f"{loss} {fault}"]


def test_a_smaller_group_ranks_by_itself(processes: list[dict[str, Any]]) -> None:
    shards = cases(len(processes))["few"]
    for low in range(0, len(processes), 2):
        wanted = outcome(LOSSES["alrp"], together(shards[low : low + 2]))
        found = joined([Outcome(**each["pair"]) for each in processes[low : low + 2]])
        require_same(found, wanted)


@st.composite
def batches(drawn: st.DrawFn) -> tuple[list[Shard], float]:
    """Draw shards of 1 to 5 processes, and the half-width of the ramp."""
    size = drawn(st.integers(1, 5))
    steps = drawn(st.sampled_from([None, 0.25, 1.0]))
    counts = st.integers(0, 6)
    shards = [
        draw(drawn(st.integers(0, 2**20)), drawn(counts), drawn(counts), steps=steps)
        for _ in range(size)
    ]
    return shards, drawn(st.sampled_from([0.0, 0.25, 1.0, 100.0]))


@every_loss
@given(batch=batches())
@settings(max_examples=25, deadline=None)
def test_small_batches_at_the_edges(loss: str, batch: tuple[list[Shard], float]) -> None:
    shards, delta = batch

    def with_delta(*shard: Tensor, **more: Any) -> tuple[Tensor, ...]:
        return LOSSES[loss](*shard, delta=delta, **more)

    found = joined(in_threads(len(shards), lambda me: outcome(with_delta, shards[me.rank], me)))
    require_same(found, outcome(with_delta, together(shards)))


@every_loss
def test_the_exchanges_do_not_depend_on_the_data_of_one(loss: str) -> None:
    def count(shards: list[Shard]) -> list[tuple[int, int]]:
        def work(me: Any) -> tuple[int, int]:
            counting = Counting(me)
            outcome(LOSSES[loss], shards[me.rank], counting)
            return counting.exchanges, counting.sent

        return in_threads(len(shards), work)

    for shards in cases(4).values():
        counts = count(shards)
        assert len(set(counts)) == 1, "all send the same"
        # Sizes, positives if anybody has any, and bins; nothing in backward.
        assert counts[0][0] == (3 if together(shards).each.numel() else 2)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(loss: str, dtype: torch.dtype) -> None:
    shards = [draw(rank, 5, 400, dtype=dtype) for rank in range(3)]
    found = joined(in_threads(3, lambda me: outcome(LOSSES[loss], shards[me.rank], me)))
    wanted = outcome(LOSSES[loss], together(shards))
    assert found.of_logits.dtype == dtype
    torch.testing.assert_close(found.values, wanted.values, rtol=2e-6, atol=0)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.of_logits, wanted.of_logits, rtol=3 * eps, atol=1e-6)


def test_modules_take_a_group() -> None:
    shards = [draw(rank, 5, 40) for rank in range(2)]

    def work(me: Any) -> Tensor:
        shard = shards[me.rank]
        ap = APLoss()(*shard[:2], group=me)
        return torch.stack([*ALRPLoss()(*shard, group=me), ap, *RankSortLoss()(*shard, group=me)])

    big = together(shards)
    wanted = torch.stack([*ALRPLoss()(*big), APLoss()(*big[:2]), *RankSortLoss()(*big)])
    for found in in_threads(2, work):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_something_else_is_no_group() -> None:
    logits, targets, each = draw(0, 2, 3)
    for wrong in (-100, "nccl", object()):
        with pytest.raises(TypeError, match=r"group must be a group of torch\.distributed"):
            alrp_loss(logits, targets, each, group=wrong)  # type: ignore[arg-type]


def test_a_second_derivative_is_refused_in_words() -> None:
    logits, targets, _ = draw(0, 3, 30)
    logits.requires_grad_()
    scale = torch.ones((), requires_grad=True)

    def work(me: Any) -> None:
        (grad,) = torch.autograd.grad(
            scale * ap_loss(logits, targets, group=me), logits, create_graph=True
        )
        with pytest.raises(RuntimeError, match="ranking losses have no second derivative"):
            torch.autograd.backward(grad.square().sum())

    in_threads(1, work)


# The compiler looks at it, where it goes on after the part that it leaves out.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_step_leaves_it_to_eager_mode() -> None:
    torch._dynamo.reset()
    logits, targets, _ = draw(0, 5, 50)
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def work(me: Any) -> None:
        def step(weight: Tensor) -> Tensor:
            return 2 * ap_loss(logits * weight, targets, group=me)

        (wanted,) = torch.autograd.grad(step(weight), weight)
        compiled = torch.compile(step, backend="eager")
        (found,) = torch.autograd.grad(compiled(weight), weight)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        torch._dynamo.reset()
        whole = torch.compile(step, backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="a ranking over several processes is not compiled"):
            whole(weight)

    in_threads(1, work)
