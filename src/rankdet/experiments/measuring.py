"""Timing a few steps of a recipe on the data it is meant for."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rankdet.config.assemble import Hardware, make_parts, make_plan
from rankdet.config.load import load_recipe
from rankdet.data.imageset import ImageSet
from rankdet.engine.trainer import train
from rankdet.experiments.costs import StepTime
from rankdet.experiments.folders import METRICS
from rankdet.experiments.table import Run
from rankdet.wording import counted

STEPS = 10
"""That are timed."""

# Steps before them, in which memory is laid out and loaders start.
_WARM_UP = 3


def measure_step(run: Run, training: ImageSet, validation: ImageSet, *, threads: int) -> StepTime:
    """Train a few steps, exactly as the run would, and evaluate nothing.

    Args:
        run: whose recipe is timed.
        training: images to learn from.
        validation: decides nothing here but completes the recipe's parts.
        threads: CPU threads that the run would have.

    Returns:
        The mean seconds of a step.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: an image cannot be read.
        RunError: the loss became NaN, or the disk is full.
    """
    few = _WARM_UP + STEPS
    short = (f"schedule.steps={few}", "training.evaluations=1", "training.log_every=1")
    recipe = load_recipe(run.recipe, (*run.changes, *short))
    hardware = Hardware()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plan = make_plan(recipe, len(training), hardware)
        nothing: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        parts = replace(
            make_parts(recipe, training, validation, plan, hardware),
            make_test_loader=_no_images,
            ground_truth=nothing,
        )
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            train(folder, parts, plan, console=Console(quiet=True))
            with (folder / METRICS).open(newline="", encoding="utf-8") as file:
                rows = {int(row["step"]): float(row["seconds"])
                        for row in csv.DictReader(file) if row["lr"]}  # fmt: skip
    finally:
        torch.set_num_threads(before)
    device = torch.cuda.get_device_name() if hardware.has_gpu else counted(threads, "CPU thread")
    return StepTime((rows[few] - rows[_WARM_UP]) / STEPS, f"{STEPS} steps just now on {device}")


def _no_images(_rank: int, _world: int) -> Iterable[Any]:
    return ()
