"""Ranking losses under DistributedDataParallel: each process ranks its own, gradients average."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from rankdet.losses import alrp_loss, ap_loss, rank_sort_loss

PROCESSES = 2


def shard(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, targets and values per positive; the second process has no positives."""
    generator = torch.Generator().manual_seed(rank)
    features = torch.randn(9000, 6, generator=generator)
    targets = torch.zeros(9000, dtype=torch.int8)
    if rank == 0:
        targets[torch.randperm(9000, generator=generator)[:40]] = 1
    return features, targets, torch.rand(int(targets.sum()), generator=generator)


def total(model: nn.Module, rank: int) -> Tensor:
    features, targets, each = shard(rank)
    logits = model(features).squeeze(1)
    return torch.stack(
        [
            *alrp_loss(logits, targets, each),
            ap_loss(logits, targets),
            *rank_sort_loss(logits, targets, each),
        ]
    ).sum()


def make_model() -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(6, 1)


def work(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    model = nn.parallel.DistributedDataParallel(make_model())
    total(model, rank).backward()
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_gradients_are_the_mean_over_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=work, args=(rank, str(tmp_path))) for rank in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES

    model = make_model()
    (sum((total(model, rank) for rank in range(PROCESSES)), torch.zeros(())) / PROCESSES).backward()
    for rank in range(PROCESSES):
        for parameter, grad in zip(
            model.parameters(), torch.load(tmp_path / f"{rank}.pt"), strict=True
        ):
            assert parameter.grad is not None
            assert float(parameter.grad.abs().max()) > 0
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-8)
