"""One batch in shards, and several processes, real or simulated, that rank them together."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn

from rankdet.losses.alrp import alrp_loss
from rankdet.losses.ap import ap_loss
from rankdet.losses.rank_sort import rank_sort_loss
from rankdet.ops.rank.distributed import GroupProcesses, Processes

T = TypeVar("T")
# What comes from above to each term; and no two terms weigh alike.
UPSTREAM = (1.5, -0.25)
DEADLINE_S = 240


class Shard(NamedTuple):
    """What one process has."""

    logits: Tensor
    targets: Tensor
    each: Tensor


class Outcome(NamedTuple):
    """What a process makes of its shard; or the message of the error that it raised."""

    values: Tensor
    of_logits: Tensor
    of_each: Tensor
    said: str = ""


Loss = Callable[..., tuple[Tensor, ...]]
LOSSES: dict[str, Loss] = {
    "alrp": lambda *shard, **more: alrp_loss(*shard, **more),
    "alrp hard": lambda *shard, **more: alrp_loss(*shard, loc_ranking="hard", **more),
    "ap": lambda *shard, **more: (ap_loss(*shard[:2], **more),),
    "ap as it is": lambda *shard, **more: (ap_loss(*shard[:2], interpolated=False, **more),),
    "rank_sort": lambda *shard, **more: rank_sort_loss(*shard, **more),
}


def draw(
    seed: int,
    positives: int,
    negatives: int,
    *,
    dtype: torch.dtype = torch.float64,
    steps: float | None = None,
) -> Shard:
    """Return a shard of which about a tenth is ignored; logits rounded to ``steps`` to tie."""
    generator = torch.Generator().manual_seed(seed)
    size = positives + negatives
    logits = 2 * torch.randn(size, generator=generator, dtype=torch.float64)
    if steps is not None:
        logits = (logits / steps).round() * steps
    targets = -(torch.rand(size, generator=generator) < 0.1).to(torch.int8)
    targets[torch.randperm(size, generator=generator)[:positives]] = 1
    each = torch.rand(positives, generator=generator, dtype=torch.float64)
    if steps is not None:
        each = (each / 0.25).round() * 0.25
    return Shard(logits.to(dtype), targets, each.to(dtype))


def together(shards: Sequence[Shard]) -> Shard:
    """Return the one big batch."""
    logits, targets, each = (torch.cat(parts) for parts in zip(*shards, strict=True))
    return Shard(logits, targets, each)


def outcome(loss: Loss, shard: Shard, group: Any = None) -> Outcome:
    logits, each = (x.clone().requires_grad_() for x in (shard.logits, shard.each))
    values = loss(logits, shard.targets, each, group=group)
    total = sum((a * v for a, v in zip(UPSTREAM, values, strict=False)), torch.zeros(()))
    of_logits, of_each = torch.autograd.grad(
        total, [logits, each], allow_unused=True, materialize_grads=True
    )
    return Outcome(torch.stack(values).detach(), of_logits, of_each)


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Return what one process with the whole batch has, if gradients are averaged over processes.

    All processes have the same values, bit for bit.
    """
    first, *others = (each.values for each in outcomes)
    for other in others:
        assert first.numpy().tobytes() == other.numpy().tobytes(), (first, other)
    return Outcome(
        first,
        torch.cat([each.of_logits for each in outcomes]) / len(outcomes),
        torch.cat([each.of_each for each in outcomes]) / len(outcomes),
    )


class Counting:
    """Processes, and how many bytes this one of them sent in how many exchanges."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.rank, self.size = processes.rank, processes.size
        self.sent = self.exchanges = 0

    def gather(self, values: Tensor) -> Tensor:
        self._note(values)
        return self._processes.gather(values)

    def add(self, values: Tensor) -> Tensor:
        self._note(values)
        return self._processes.add(values)

    def _note(self, values: Tensor) -> None:
        self.sent += values.nbytes
        self.exchanges += 1


class Simulated:
    """A process that is a thread; the others are the threads with the same desk."""

    def __init__(self, rank: int, barrier: threading.Barrier, desk: list[Tensor]) -> None:
        self.rank, self.size = rank, len(desk)
        self._barrier, self._desk = barrier, desk

    def gather(self, values: Tensor) -> Tensor:
        self._desk[self.rank] = values.clone()
        self._barrier.wait(DEADLINE_S)
        gathered = torch.stack(self._desk)
        self._barrier.wait(DEADLINE_S)
        return gathered

    def add(self, values: Tensor) -> Tensor:
        return self.gather(values).sum(0)


def in_threads(size: int, work: Callable[[Simulated], T]) -> list[T]:
    """Return what each of ``size`` simulated processes makes of it."""
    barrier, desk = threading.Barrier(size), [torch.zeros(0)] * size
    if size == 1:  # here: the compiler does not survive a thread that ends (torch 2.11)
        return [work(Simulated(0, barrier, desk))]
    found: dict[int, T] = {}
    faults: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            found[rank] = work(Simulated(rank, barrier, desk))
        except BaseException as fault:
            faults.append(fault)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fault in faults:
        if not isinstance(fault, threading.BrokenBarrierError):
            raise fault
    return [found[rank] for rank in range(size)]


def cases(world: int) -> dict[str, list[Shard]]:
    """Return batches in uneven shards, one for each process."""

    def shards(positives: list[int], negatives: list[int], **more: Any) -> list[Shard]:
        pairs = list(zip(positives, negatives, strict=True))[:world]
        return [draw(seed, *pair, **more) for seed, pair in enumerate(pairs)]

    # The second process has no positives, and the first no matrix of pairs and a grid.
    uneven: dict[str, Any] = {"positives": [250, 0, 3, 17], "negatives": [9000, 900, 50, 8500]}
    few: dict[str, Any] = {"positives": [5, 9, 0, 2], "negatives": [40, 25, 60, 3]}
    found = {
        "uneven": shards(**uneven),
        "uneven, float32": shards(**uneven, dtype=torch.float32),
        "ties": shards(**uneven, steps=0.5),
        "few": shards(**few),
        "few, float32": shards(**few, dtype=torch.float32),
        "few, ties": shards(**few, steps=0.5),
        "a process without negatives": shards([4, 30, 1, 0], [0, 50, 7, 0]),
        "no negatives": shards([4, 30, 1, 2], [0] * 4),
        "no positives": shards([0] * 4, [30, 9000, 0, 5]),
        "a process without logits": shards([6, 0, 0, 3], [50, 0, 9, 9]),
        "no logits": shards([0] * 4, [0] * 4),
        "one positive": shards([0, 1, 0, 0], [30] * 4),
    }
    for name, positive in (("a negative is NaN", 0), ("a positive is NaN", 1)):
        found[name] = shards([3, 4, 5, 6], [30, 9000, 9, 9])
        _, (logits, targets, _), *_ = found[name]
        logits[int((targets == positive).nonzero()[0])] = torch.nan
    found["a negative is infinite, no positives"] = shards([0] * 4, [30] * 4)
    found["a negative is infinite, no positives"][0].logits[0] = torch.inf
    found["a negative is infinite, no positives"][0].targets[0] = 0
    found["NaN of a positive"] = shards([3, 4, 5, 6], [30] * 4)
    found["NaN of a positive"][1].each[0] = torch.nan
    return found


def model() -> nn.Linear:
    return nn.Linear(6, 1, dtype=torch.float64)


def features(rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn(2000, 6, generator=generator, dtype=torch.float64)


def learn(net: nn.Module, seen: Tensor, shard: Shard, group: Any = None) -> list[Tensor]:
    """Return the gradients of the parameters, of all losses at once."""
    logits = net(seen).squeeze(1)
    terms = [v for loss in LOSSES.values() for v in loss(logits, *shard[1:], group=group)]
    torch.autograd.backward(torch.stack(terms).sum())
    return [p.grad for p in net.parameters() if p.grad is not None]


def _bytes_sent(rank: int, positives: int, negatives: int) -> dict[str, int]:
    world = distributed.group.WORLD
    assert world is not None
    sent = {}
    for name, loss in LOSSES.items():
        counting = Counting(GroupProcesses(world))
        loss(*draw(rank, positives, negatives), group=counting)
        sent[name] = counting.sent
    return sent


def _refused(loss: Loss, shard: Shard) -> str:
    try:
        loss(*shard, group=distributed.group.WORLD)
    except ValueError as fault:
        return str(fault)
    return "nothing"


def work(rank: int, world: int, folder: str) -> None:
    """Be one of several processes, and write down all that comes out."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    group = distributed.group.WORLD
    own = {case: shards[rank] for case, shards in cases(world).items()}
    done: dict[str, Any] = {
        name: {case: outcome(loss, shard, group)._asdict() for case, shard in own.items()}
        for name, loss in LOSSES.items()
    }

    ddp = nn.parallel.DistributedDataParallel(model())
    torch.manual_seed(rank)  # DDP starts everybody with the weights of process 0
    shard = draw(rank, 30 if rank else 0, 2000 - (30 if rank else 0))
    done["weights"] = {k: v.clone() for k, v in ddp.module.state_dict().items()}
    done["ddp"] = learn(ddp, features(rank), shard, group)

    done["sent"] = {
        (p, n): _bytes_sent(rank, p, n) for p, n in [(50, 10**3), (50, 10**5), (99, 50), (400, 50)]
    }
    # Faults that one process sees tell the others, who would wait otherwise; and all go on.
    good = draw(rank, 5, 20)
    bad_target = good._replace(targets=good.targets.clone().fill_(2)) if rank == 1 else good
    too_few = good._replace(each=good.each[1:]) if rank == 1 else good
    for name in ("alrp", "ap", "rank_sort"):
        done[f"{name} bad target"] = _refused(LOSSES[name], bad_target)
        done[f"{name} too few"] = "" if name == "ap" else _refused(LOSSES[name], too_few)

    # Within each pair of processes, a ranking of its own.
    pairs = [distributed.new_group([low, low + 1]) for low in range(0, world, 2)]
    done["pair"] = outcome(LOSSES["alrp"], own["few"], pairs[rank // 2])._asdict()
    torch.save(done, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def in_processes(world: int, folder: Path) -> list[dict[str, Any]]:
    """Return what each of ``world`` processes wrote down in `work`."""
    # All are forked from one process that has loaded torch, which takes longer than the tests.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rankdet.losses", "rankdet.criteria"])
    workers = [context.Process(target=work, args=(r, world, str(folder))) for r in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE_S)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert codes == [0] * world
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
