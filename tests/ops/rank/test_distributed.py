"""What processes tell each other for one ranking, over gloo: each process is a thread here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed

from rankdet.ops.rank.distributed import (
    GroupProcesses,
    Processes,
    add_bins,
    announce_fault,
    carry,
    gather_ragged,
    group_of,
    processes_of,
)

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="torch was built without distributed"
)
T = TypeVar("T")


class Noting:
    """Processes of a group, and what this one of them sends."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.rank, self.size = processes.rank, processes.size
        self.sent: list[int] = []

    def gather(self, values: Tensor) -> Tensor:
        self.sent.append(values.nbytes)
        return self._processes.gather(values)

    def add(self, values: Tensor) -> Tensor:
        self.sent.append(values.nbytes)
        return self._processes.add(values)


def over_gloo(size: int, work: Callable[[Noting], T]) -> list[T]:
    """Return what each of ``size`` processes makes of it."""
    store: Any = distributed.HashStore()  # type: ignore[attr-defined]
    found: dict[int, T] = {}

    def one(rank: int) -> None:
        group = distributed.ProcessGroupGloo(store, rank, size, timedelta(seconds=120))
        found[rank] = work(Noting(GroupProcesses(group)))  # type: ignore[arg-type]

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


def columns(rank: int, count: int, sets: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(sets, count, generator=generator, dtype=torch.float64)


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and ours.numpy().tobytes() == theirs.numpy().tobytes()


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4), sets=st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_columns_stand_side_by_side(sizes: list[int], sets: int) -> None:
    parts = [columns(rank, size, sets) for rank, size in enumerate(sizes)]
    for part, special in zip(parts, [torch.nan, -0.0, torch.inf, 5e-324], strict=False):
        part[:, :1] = special
    whole = torch.cat(parts, dim=1)

    def work(processes: Noting) -> None:
        values, own = gather_ragged(parts[processes.rank], processes)
        assert same_bits(values.contiguous(), whole)
        assert same_bits(values[:, own].contiguous(), parts[processes.rank])
        longest = 8 * sets * max(sizes)
        assert processes.sent == ([8, longest] if longest else [8])

    assert over_gloo(len(sizes), work) == [None] * len(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_columns_of_any_dtype_and_layout(dtype: torch.dtype) -> None:
    parts = [torch.arange(6 * rank).reshape(-1, 2).T.to(dtype) for rank in range(3)]

    def work(processes: Noting) -> Tensor:
        return gather_ragged(parts[processes.rank], processes).values

    for values in over_gloo(3, work):
        assert values.dtype == dtype
        assert torch.equal(values, torch.cat(parts, dim=1))


def test_bins_are_added_up() -> None:
    bins = 501
    number = [torch.arange(bins) * 10 ** (4 * rank) for rank in range(4)]
    number[3][0] = 2**52 + 1  # float32 would lose the last digit
    beyond = [columns(rank, bins, 1)[0] for rank in range(4)]

    def work(processes: Noting) -> tuple[Tensor, Tensor, Tensor]:
        rank = processes.rank
        sums = add_bins(number[rank], beyond[rank], torch.tensor(True), processes)
        assert processes.sent == [8 * (2 * bins + 1)]
        return sums

    found = over_gloo(4, work)
    for numbers, beyonds, finite in found:
        assert numbers.dtype == torch.int64
        assert torch.equal(numbers, torch.stack(number).sum(0))
        torch.testing.assert_close(beyonds, torch.stack(beyond).sum(0), rtol=1e-14, atol=1e-14)
        assert same_bits(beyonds, found[0][1])
        assert finite.shape == ()
        assert bool(finite)


@pytest.mark.parametrize("bad", [0, 2])
def test_what_one_process_cannot_rank_nobody_can(bad: int) -> None:
    def work(processes: Noting) -> tuple[Tensor, Tensor, Tensor]:
        beyond, here = torch.zeros(3, dtype=torch.float64), processes.rank == bad
        if here:
            beyond[1] = torch.nan
        return add_bins(torch.ones(3, dtype=torch.int64), beyond, torch.tensor(not here), processes)

    for number, _, finite in over_gloo(3, work):
        assert number.tolist() == [3, 3, 3]
        assert not bool(finite)


def test_a_fault_reaches_all() -> None:
    def work(processes: Noting) -> str:
        if processes.rank == 1:
            announce_fault(processes, torch.device("cpu"))
            return "its own"
        with pytest.raises(ValueError, match="the input of process 1 is faulty") as fault:
            gather_ragged(columns(0, 2), processes)
        return str(fault.value)

    first, own, third = over_gloo(3, work)
    assert own == "its own"
    assert first == third


@pytest.mark.parametrize("wrong", [None, -100, "nccl", object()])
def test_what_is_no_group_is_named(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"group must be a group .* got "):
        processes_of(wrong)  # type: ignore[arg-type]


def test_one_process_ranks_alone() -> None:
    assert group_of("local") is None
    assert group_of("global") is None  # torch.distributed is not initialised here


def test_a_value_is_carried_as_it_is_with_the_gradient_of_a_part() -> None:
    part = torch.tensor([1.0, torch.inf], dtype=torch.float64, requires_grad=True)
    value = torch.tensor([torch.nan, 2.0], dtype=torch.float64)
    carried = carry(value, part * torch.tensor([3.0, 4.0]))
    assert same_bits(carried.detach(), value)
    (grad,) = torch.autograd.grad(carried, part, torch.tensor([1.0, 10.0], dtype=torch.float64))
    assert grad.tolist() == [3.0, 40.0]
