"""What a loss costs where it is used: a whole training step in the setting of the demonstration.

All losses take turns on the same batches within one run, so that a machine whose speed wanders
slows them all alike. A step is forward, loss, backward, clipping and optimiser; images are ready.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks.measure import origin
from rankdet.config.build import build_augment, build_optimizer
from rankdet.config.build_criterion import build_criterion
from rankdet.config.build_model import build_detector
from rankdet.config.load import load_recipe
from rankdet.data.batches import Batch, Sample, collate
from rankdet.data.digits import generate

# Names, and what they change in the recipe; the first is the rival.
LOSSES = {
    "focal + 2 GIoU": (
        "criterion.kind=dense",
        "criterion.box.kind=giou",
        "criterion.box_weight=2",
    ),
    "focal + smooth L1": ("criterion.kind=dense",),
    "AP + GIoU": (
        "criterion.kind=dense",
        "criterion.classification.kind=ap",
        "criterion.box.kind=giou",
    ),
    "aLRP, self-balance": (
        "criterion.localisation=ranked",
        "criterion.balance.kind=self",
    ),
    "aLRP, mean, by gradients": (
        "criterion.localisation=mean",
        "criterion.balance.kind=gradient",
    ),
    "Rank & Sort": ("criterion.kind=rank_sort",),
}
PARTS = ("forward", "loss", "backward", "optimizer")
BATCH = 8
BATCHES = 20
LEAST_ROUNDS = 20


@dataclass
class Rival:
    """One loss with a network and an optimiser of its own."""

    detector: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, changes: tuple[str, ...], device: str) -> Rival:
        """Build it from the demonstration's recipe with changes."""
        recipe = load_recipe("demo", changes)
        torch.manual_seed(0)
        detector = build_detector(recipe, 10).to(device).to(memory_format=torch.channels_last)
        criterion = build_criterion(recipe).to(device)
        learned = nn.ModuleDict({"detector": detector, "criterion": criterion})
        return cls(detector, criterion, build_optimizer(recipe, learned))

    def step(self, batch: Batch) -> list[float]:
        """Train on a batch; return the milliseconds of each part."""
        times = [_now(batch)]
        predictions = self.detector(batch.images)
        times.append(_now(batch))
        terms = self.criterion(predictions, batch.targets)
        times.append(_now(batch))
        terms.total.backward()
        times.append(_now(batch))
        torch.nn.utils.clip_grad_norm_(self.detector.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(_now(batch))
        return [(after - before) * 1e3 for before, after in pairwise(times)]


def rows(*, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Train with every loss in turn; yield a row for each.

    Args:
        device: "cpu" or "cuda".
        seconds: spent on each loss.
    """
    batches = [batch.to(device) for batch in _batches()]
    rivals = {name: Rival.of(changes, device) for name, changes in LOSSES.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in rivals}
    for batch in batches[:5]:
        for rival in rivals.values():
            rival.step(batch)
    end = time.monotonic() + seconds * len(rivals)
    count = 0
    while time.monotonic() < end or count < LEAST_ROUNDS:
        for name, rival in rivals.items():
            times[name].append(rival.step(batches[count % len(batches)]))
        count += 1
    reference = [sum(parts) for parts in times[next(iter(rivals))]]
    for name, found in times.items():
        whole = [sum(parts) for parts in found]
        # Of each round, not of the medians: the machine is equally fast within a round.
        ratios = [one / other for one, other in zip(whole, reference, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=5)[0], statistics.median(ratios), \
            statistics.quantiles(ratios, n=5)[-1]  # fmt: skip
        yield {
            "loss": name,
            "batch": BATCH,
            "size": 128,
            "device": device,
            "steps": len(whole),
            "step_ms": round(statistics.median(whole), 3),
            **{
                f"{part}_ms": round(statistics.median(parts[i] for parts in found), 3)
                for i, part in enumerate(PARTS)
            },
            "rival": next(iter(rivals)),
            "ratio": round(middle, 4),
            "ratio_low": round(low, 4),
            "ratio_high": round(high, 4),
            **origin(device, 0),
        }


def show(row: dict[str, Any]) -> str:
    """Return a row as a line for the terminal."""
    return (
        f"{row['loss']:<26}{row['step_ms']:>9.1f} ms/step  loss {row['loss_ms']:>6.2f} ms"
        f"{row['ratio']:>8.3f} x {row['rival']} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
    )


def _batches() -> list[Batch]:
    augment = build_augment(load_recipe("demo"))
    made = []
    for start in range(0, BATCH * BATCHES, BATCH):
        samples = []
        for index in range(start, start + BATCH):
            drawn = generate("train", index)
            image = torch.from_numpy(drawn.image).permute(2, 0, 1)
            boxes, labels = torch.from_numpy(drawn.boxes), torch.from_numpy(drawn.labels)
            crowd = torch.zeros(len(labels), dtype=torch.bool)
            samples.append(Sample(augment(image, boxes, labels, crowd), index))
        made.append(collate(samples))
    return made


def _now(batch: Batch) -> float:
    if batch.images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
