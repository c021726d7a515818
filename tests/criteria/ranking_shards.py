"""Criteria that rank over all processes, and a batch of four images in three shards."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from golden_heads import small_batch
from region_batches import region_batch
from torch import Tensor, distributed, nn

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria import (
    AlreadyMatched,
    ALRPCriterion,
    APClassification,
    DenseCriterion,
    IoUBox,
    IoUWeighting,
    LearnedBalance,
    RankSortCriterion,
    RegionCriterion,
    SelfBalance,
    TwoStageCriterion,
)
from rankdet.structures import LossTerms, Predictions, Regions, Targets, TwoStagePredictions

# The images of each process; the third image has no objects.
IMAGES = (slice(0, 2), slice(2, 3), slice(3, 4))
WORLD = len(IMAGES)
DEADLINE_S = 240


def _two_stages() -> nn.Module:
    regions = MaxIoUAssigner(positive=0.5, negative=0.5, low_quality=False)
    second = ALRPCriterion(AlreadyMatched(), SelfBalance(), frame="pixels", ranking="global")
    return TwoStageCriterion(
        ALRPCriterion(MaxIoUAssigner(), SelfBalance(), ranking="global"),
        RegionCriterion(regions, second),
        first_weight=0.2,
    )


CRITERIA: dict[str, Callable[[], nn.Module]] = {
    "alrp": lambda: ALRPCriterion(MaxIoUAssigner(), SelfBalance(), ranking="global"),
    "alrp, learned": lambda: ALRPCriterion(MaxIoUAssigner(), LearnedBalance(), ranking="global"),
    "rank_sort": lambda: RankSortCriterion(MaxIoUAssigner(), ranking="global"),
    "ap": lambda: DenseCriterion(
        MaxIoUAssigner(), APClassification(ranking="global"), IoUBox(), weighting=IoUWeighting()
    ),
    "two stages": _two_stages,
}


def whole_batch(*, objects: bool) -> tuple[Predictions, Any, Targets, list[Tensor]]:
    """Return predictions of both stages, targets, and what the predictions are made of."""
    head = small_batch(images=4, objects=(3, 2, 0, 1), dtype=torch.float64)
    targets = head.targets
    regions = region_batch(targets, dtype=torch.float64).predictions
    if not objects:
        targets = replace(targets, labels=torch.full_like(targets.labels, -1))
    first = head.predictions
    leaves = [first.logits, first.codes, regions.logits, regions.codes]
    return first, regions, targets, leaves


def part_of(
    name: str, first: Predictions, regions: Any, targets: Targets, images: slice
) -> tuple[Any, Targets]:
    """Return the predictions and targets of some of the images, as the criterion wants them."""
    own = replace(first, logits=first.logits[images], codes=first.codes[images])
    if name != "two stages":
        return own, targets.of_images(images)
    own = replace(own, logits=own.logits[..., :1].contiguous())
    counts = regions.regions.counts
    rows = slice(sum(counts[: images.start]), sum(counts[: images.stop]))
    second = replace(
        regions,
        regions=Regions(regions.regions.boxes[rows], counts[images]),
        logits=regions.logits[rows],
        codes=regions.codes[rows],
    )
    return TwoStagePredictions(own, second), targets.of_images(images)


def history(name: str, images: slice) -> list[dict[str, Any]]:
    """Return what a criterion says in a period, and in the first iteration of the next one.

    The batch twice, between them once without objects, and after the end of the period again.
    """
    criterion = CRITERIA[name]().double()
    said = []
    for iteration, objects in enumerate((True, False, True, True)):
        if iteration == 3:
            end: Any = criterion.end_period
            end()
        first, regions, targets, leaves = whole_batch(objects=objects)
        terms: LossTerms = criterion(*part_of(name, first, regions, targets, images))
        leaves += criterion.parameters()
        found = torch.autograd.grad(terms.total, leaves, allow_unused=True)
        said.append(
            {
                "total": terms.total.detach(),
                "parts": terms.parts,
                "gradients": [
                    torch.zeros_like(leaf) if grad is None else grad
                    for leaf, grad in zip(leaves, found, strict=True)
                ],
            }
        )
    return said


def work(rank: int, folder: str) -> None:
    """Be one of several processes; gradients are averaged as DDP does."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD
    )
    found = {name: history(name, IMAGES[rank]) for name in CRITERIA}
    for said in found.values():
        for iteration in said:
            iteration["mean"] = iteration["total"].clone()
            for each in [*iteration["gradients"], iteration["mean"]]:
                distributed.all_reduce(each)
                each /= WORLD
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def in_processes(folder: Path) -> list[dict[str, list[dict[str, Any]]]]:
    """Return what each process found in `work`."""
    context = multiprocessing.get_context("forkserver")  # loads torch once for all
    context.set_forkserver_preload(["rankdet.losses", "rankdet.criteria"])
    workers = [context.Process(target=work, args=(rank, str(folder))) for rank in range(WORLD)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE_S)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert codes == [0] * WORLD
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]
