"""Time what comes after the backbone: head, assignment and criterion of one training step.

The heads have the sizes of detectors with ResNet-50 and COCO's 80 classes; their feature maps are
random. A head is timed by itself, since it does not know which loss trains it; the losses take
turns on its predictions and the same objects, round by round, so that a machine whose speed
wanders slows them all alike. Of two stages there are rows for both together, and for each. Beside
it the assigners alone, with many objects in a large batch: their time, and the memory they need at
their highest.

Examples:
    python -m benchmarks.assignment                     all, some minutes
    python -m benchmarks.assignment --only assigners    the assigners alone
    python -m benchmarks.assignment --only steps --detector FCOS --detector FoveaBox
    python -m benchmarks.assignment --rounds 2 --batch 1 --size 128 --out /tmp/rows   a glance
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import results
from benchmarks.assignment_detectors import (
    CHANNELS,
    CLASSES,
    NAMES,
    REGIMES,
    SEED,
    STRIDES,
    Setting,
    assign,
    leaves,
    objects,
    settings,
)
from benchmarks.measure import origin, peak_memory
from rankdet.assign.atss import ATSSAssigner
from rankdet.assign.fcos import FCOSAssigner
from rankdet.assign.fovea import FoveaAssigner
from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.models.priors import AnchorGenerator, PointGenerator
from rankdet.structures import Assigner, LossTerms, Priors, Targets

# What is timed of a criterion: its assignment alone, then its two passes with assignment and all.
PARTS = ("assignment", "criterion", "criterion_backward")
# A head takes seconds on a CPU, and always the same.
HEAD_ROUNDS = 3
# Assigners beside priors of about 50,000, and the side of the image that has so many.
ASSIGNERS: dict[str, tuple[Assigner, AnchorGenerator | PointGenerator, int]] = {
    "MaxIoU": (MaxIoUAssigner(), AnchorGenerator(STRIDES), 640),
    "ATSS": (ATSSAssigner(), AnchorGenerator(STRIDES), 640),
    "FCOS": (FCOSAssigner(), PointGenerator(STRIDES), 1600),
    "FoveaBox": (FoveaAssigner(), PointGenerator(STRIDES), 1600),
}


def rows(given: Setting, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Train a head with every loss in turn; yield a row for each.

    Args:
        given: the detector and its batch.
        rounds: how often each loss takes its turn, 1 or more; one more before comes first and
            does not count.
    """
    device = given.targets.boxes.device.type
    head = _head(given, min(rounds, HEAD_ROUNDS))
    times: dict[str, list[list[float]]] = {name: [] for name in given.criteria}
    positives = {}
    for number in range(rounds + 1):
        for name, criterion in given.criteria.items():
            taken, positives[name] = _step(given, criterion)
            if number:
                times[name].append(taken)
    rival = next(iter(given.criteria))
    for name, each in times.items():
        # Of each round, not of the medians: the machine is equally fast within a round.
        ratios = sorted(
            _criterion(one) / _criterion(other)
            for one, other in zip(each, times[rival], strict=True)
        )
        assigning = partial(assign, given.criteria[name], given.predictions, given.targets)
        memory = peak_memory(assigning, device)
        yield {
            "detector": given.name,
            "loss": name,
            "regime": given.regime,
            "batch": len(given.targets.boxes),
            "size": int(given.targets.sizes[0, 0]),
            "priors": given.priors,
            "classes": CLASSES,
            "objects": given.targets.boxes.shape[1],
            "positives": positives[name],
            "device": device,
            "rounds": rounds,
            "head_ms": round(head[0], 3),
            "head_backward_ms": round(head[1], 3),
            **{
                f"{part}_ms": round(statistics.median(taken[i] for taken in each), 3)
                for i, part in enumerate(PARTS)
            },
            "assignment_mb": round(memory, 1),
            "rival": rival,
            "criterion_ratio": round(statistics.median(ratios), 4),
            "ratio_low": round(ratios[0], 4),
            "ratio_high": round(ratios[-1], 4),
            **origin(device, SEED),
        }


def assigner_rows(
    *, batch: int, count: int, rounds: int, device: str, shrink: int = 1
) -> Iterator[dict[str, Any]]:
    """Assign many objects to many priors; yield a row for each assigner.

    Args:
        batch: number of images.
        count: objects in each.
        rounds: how often each assigner runs, 1 or more; the first, which is measured for its
            memory, does not count.
        device: where.
        shrink: by what the sides of the images are divided.
    """
    given = {}
    for name, (assigner, generator, side) in ASSIGNERS.items():
        side //= shrink
        priors = generator((side, side), device=device, dtype=torch.float32)
        given[name] = (assigner, priors, objects(batch, count, side).to(device))
    memory = {name: peak(*each) for name, each in given.items()}
    times: dict[str, list[float]] = {name: [] for name in given}
    for _ in range(rounds):
        for name, (assigner, priors, targets) in given.items():
            start = _now(device)
            assigner(priors, targets)
            times[name].append((_now(device) - start) * 1e3)
    for name, (_, priors, targets) in given.items():
        low, high = min(times[name]), max(times[name])
        yield {
            "assigner": name,
            "batch": batch,
            "objects": count,
            "priors": len(priors.boxes),
            "size": int(targets.sizes[0, 0]),
            "device": device,
            "rounds": rounds,
            "assignment_ms": round(statistics.median(times[name]), 3),
            "low_ms": round(low, 3),
            "high_ms": round(high, 3),
            "assignment_mb": round(memory[name], 1),
            **origin(device, SEED),
        }


def peak(assigner: Assigner, priors: Priors, targets: Targets) -> float:
    """Return by how many MB an assignment raises the memory in use at its highest."""
    # The first call is to have everything loaded: a small one will do.
    small = Targets(
        targets.boxes[:1, :1], targets.labels[:1, :1], targets.crowd[:1, :1], targets.sizes[:1]
    )
    turns = iter([small, targets])
    return peak_memory(lambda: assigner(priors, next(turns)), priors.boxes.device.type)


def show(row: dict[str, Any]) -> str:
    """Return a row as a line for the terminal."""
    if "assigner" in row:
        return (
            f"{row['assigner']:<10} {row['batch']} x {row['objects']} objects x {row['priors']} "
            f"priors{row['assignment_ms']:>10.1f} ms  {row['assignment_mb']:>7.1f} MB"
        )
    criterion = row["criterion_ms"] + row["criterion_backward_ms"]
    return (
        f"{row['detector']:<27}{row['loss']:<26}{row['regime']:<8}"
        f"head {row['head_ms'] + row['head_backward_ms']:>9.1f} ms  "
        f"assignment {row['assignment_ms']:>7.1f} ms  criterion {criterion:>8.1f} ms"
        f"{row['criterion_ratio']:>7.3f} x {row['rival']} "
        f"({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
    )


def _head(given: Setting, rounds: int) -> tuple[float, float]:
    """Return the median milliseconds of the two passes of a head."""
    device = given.targets.boxes.device.type
    slopes = [torch.full_like(each, 1e-3) for each in given.run()]
    forward, backward = [], []
    for _ in range(rounds):
        given.head.zero_grad()
        start = _now(device)
        outputs = given.run()
        middle = _now(device)
        torch.autograd.backward(outputs, slopes)
        forward.append((middle - start) * 1e3)
        backward.append((_now(device) - middle) * 1e3)
    return statistics.median(forward), statistics.median(backward)


def _step(given: Setting, criterion: nn.Module) -> tuple[list[float], int]:
    """Compute a loss and its gradients once.

    Returns:
        The milliseconds of `PARTS`, and how many positives there were in all stages.
    """
    device = given.targets.boxes.device.type
    needs: Any = criterion.needs
    predictions = leaves(given.predictions, needs)
    times = [_now(device)]
    assign(criterion, predictions, given.targets)
    times.append(_now(device))
    terms: LossTerms = criterion(predictions, given.targets)
    times.append(_now(device))
    terms.total.backward()
    times.append(_now(device))
    counts = [part for name, part in terms.parts.items() if name.endswith("positives")]
    milliseconds = [(after - before) * 1e3 for before, after in pairwise(times)]
    return milliseconds, int(sum(counts))


def _criterion(parts: list[float]) -> float:
    """Both passes of the criterion, with its assignment."""
    return parts[1] + parts[2]


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.assignment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=["steps", "assigners"], help="one part instead of both")
    parser.add_argument(
        "--detector", action="append", choices=NAMES, help="one of all; may be given repeatedly"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=10, help="turns of each loss")
    parser.add_argument("--batch", type=int, default=2, help="images of a step")
    parser.add_argument("--objects", type=int, default=7, help="objects in each of them")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--channels", type=int, default=CHANNELS, help="of the head")
    parser.add_argument("--shrink", type=int, default=1, help="smaller images for the assigners")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the rows")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: PyTorch sees no CUDA device here.", file=sys.stderr)
        return 2
    for name in ("rounds", "batch", "objects", "size", "channels", "shrink"):
        if getattr(options, name) < 1:
            print(f"--{name} must be 1 or more, got {getattr(options, name)}", file=sys.stderr)
            return 2
    if options.only != "assigners":
        for detector in options.detector or NAMES:
            for regime in REGIMES:
                for given in settings(
                    detector,
                    regime,
                    batch=options.batch,
                    count=options.objects,
                    side=options.size,
                    channels=options.channels,
                    device=options.device,
                ):
                    for row in rows(given, rounds=options.rounds):
                        results.append(options.out / f"assignment-{options.device}.csv", [row])
                        print(show(row), flush=True)
    if options.only != "steps":
        for row in assigner_rows(
            batch=8,
            count=200,
            rounds=options.rounds,
            device=options.device,
            shrink=options.shrink,
        ):
            results.append(options.out / f"assigners-{options.device}.csv", [row])
            print(show(row), flush=True)
    print(f"rows are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
