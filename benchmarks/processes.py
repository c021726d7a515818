"""What one ranking over several processes costs: bytes, memory, and time beside local rankings.

Real processes over gloo on this machine, which share its cores: with more processes than cores the
times are those of a machine that is too small, and only the bytes mean something.

Examples:
    python -m benchmarks.processes                      1, 2 and 4 processes; minutes
    python -m benchmarks.processes --processes 2 --quick --out /tmp/rows
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from benchmarks import cases, measure, results
from benchmarks.losses import Row
from rankdet.losses import alrp_loss, ap_loss, rank_sort_loss
from rankdet.ops.rank.distributed import GroupProcesses, Processes

POSITIVES = (100, 1000, 10_000)
NEGATIVES = (10**5, 10**6)
"""Of each process; the positives are of all together."""
_ROUNDS = 7


class Found(NamedTuple):
    """What one process found for one case and loss."""

    sent: int
    """Bytes it sent in a forward and backward pass."""
    memory: float
    """MB by which one ranking of all raises the memory of this process at its highest."""
    together: float
    """Milliseconds of one ranking of all, median."""
    low: float
    high: float
    """The 20 % and 80 % quantiles."""
    alone: float
    """Milliseconds of a ranking of its own."""


class Counting:
    """Processes of a group, counting the bytes that this one sends."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.rank, self.size = processes.rank, processes.size
        self.sent = 0

    def gather(self, values: Tensor) -> Tensor:
        """Return the values of all processes, one after the other."""
        self.sent += values.nbytes
        return self._processes.gather(values)

    def add(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        self.sent += values.nbytes
        return self._processes.add(values)


def share(positives: int, negatives: int, regime: str, rank: int, size: int) -> cases.Input:
    """Return what a process has: its part of the positives, and negatives of its own."""
    own = positives // size + (rank < positives % size)
    return cases.make(cases.Case(own, negatives, regime), seed=rank)


def passes(data: cases.Input, group: Processes | None) -> dict[str, Callable[[], None]]:
    """Return a forward and backward pass of each loss."""
    logits, targets, each = data
    logits = logits.requires_grad_()

    def run(value: Callable[[], Any]) -> Callable[[], None]:
        def once() -> None:
            logits.grad = None
            terms = value()
            (terms if isinstance(terms, Tensor) else torch.stack(terms).sum()).backward()

        return once

    return {
        "aLRP": run(lambda: alrp_loss(logits, targets, each, group=group)),
        "AP": run(lambda: ap_loss(logits, targets, group=group)),
        "Rank & Sort": run(lambda: rank_sort_loss(logits, targets, each, group=group)),
    }


def work(
    rank: int, size: int, store: str, which: Sequence[cases.Case], rounds: int, out: str
) -> None:
    """Measure all cases as one of the processes; the first writes what it found."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size
    )
    world = distributed.group.WORLD
    assert world is not None
    found: list[dict[str, Found]] = []
    for case in which:
        data = share(*case, rank, size)
        counting = Counting(GroupProcesses(world))
        together, alone = passes(data, counting), passes(data, None)
        found.append({})
        for name in together:
            together[name]()
            counting.sent = 0
            together[name]()
            sent = counting.sent
            memory = measure.peak_memory(together[name], "cpu")
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for function, into in zip((together[name], alone[name]), times, strict=True):
                    distributed.barrier()
                    start = time.perf_counter()
                    function()
                    into.append((time.perf_counter() - start) * 1e3)
            quantiles = torch.tensor([0.5, 0.2, 0.8])
            middle, low, high = torch.tensor(times[0]).quantile(quantiles).tolist()
            alone_ms = statistics.median(times[1])
            found[-1][name] = Found(sent, memory, middle, low, high, alone_ms)
    if rank == 0:
        torch.save([{name: tuple(each) for name, each in case.items()} for case in found], out)
    distributed.destroy_process_group()


def rows(size: int, which: Sequence[cases.Case], *, rounds: int) -> Iterator[Row]:
    """Measure with so many processes; yield a row for each case and loss."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/found.pt"
        arguments = (size, f"{folder}/store", which, rounds, out)
        spawn(work, arguments, nprocs=size)
        found = torch.load(out)
    source = {**measure.origin("cpu", 0), "threads": "1"}
    for case, losses in zip(which, found, strict=True):
        for name, values in losses.items():
            each = Found(*values)
            yield {
                "loss": name,
                "processes": size,
                "P": case.positives,
                "N of each": case.negatives,
                "regime": case.regime,
                "bytes_sent": each.sent,
                "extra_memory_mb": round(each.memory, 1),
                "median_ms": round(each.together, 3),
                "low_ms": round(each.low, 3),
                "high_ms": round(each.high, 3),
                "local_median_ms": round(each.alone, 3),
                "ratio": round(each.together / each.alone, 3),
                **source,
            }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the rows")
    parser.add_argument("--quick", action="store_true", help="one small case, two rounds")
    options = parser.parse_args(arguments)
    which = [
        cases.Case(p, n, regime) for regime in cases.REGIMES for n in NEGATIVES for p in POSITIVES
    ]
    if options.quick:
        which = which[:1]
    path = options.out / "processes-cpu.csv"
    for size in options.processes:
        for row in rows(size, which, rounds=2 if options.quick else _ROUNDS):
            results.append(path, [row])
            print(
                f"{row['loss']:<12} {size} processes  P {row['P']:>6}  "
                f"N {row['N of each']:>8} each  {row['regime']:<8}"
                f"{row['bytes_sent']:>10} bytes {row['median_ms']:>9} ms  "
                f"{row['ratio']:>7} x local", flush=True,
            )  # fmt: skip
    print(f"rows are in {path}; draw them: python -m benchmarks.growth")
    return 0


if __name__ == "__main__":
    sys.exit(main())
