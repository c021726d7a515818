"""From a recipe and data to everything that the engine trains with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rankdet import __version__
from rankdet.config.build import (
    build_augment,
    build_optimizer,
    build_schedule,
    build_test_resize,
    total_steps,
)
from rankdet.config.build_criterion import build_criterion
from rankdet.config.build_model import build_detector, build_post_process
from rankdet.config.load import dump
from rankdet.config.losses import measures_gradients
from rankdet.config.recipe import Recipe, RecipeError
from rankdet.data.imageset import ImageSet, to_coco
from rankdet.data.loader import TrainingSet, test_loader, training_loader
from rankdet.data.sampling import StepSampler
from rankdet.engine.checkpoint import ModelCard
from rankdet.engine.trainer import Parts, Plan
from rankdet.models.compiling import compile_network


@dataclass(frozen=True)
class Hardware:
    """What a run may use."""

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.devices * self.nodes

    @property
    def has_gpu(self) -> bool:
        """Whether CUDA devices are used."""
        return self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def make_plan(recipe: Recipe, images: int, hardware: Hardware) -> Plan:
    """Return how long and how to train.

    Args:
        recipe: of the run.
        images: number of training images.
        hardware: to train on.

    Raises:
        RecipeError: the batch cannot be split evenly over devices and micro-batches.
    """
    batch = recipe.batch
    at_once = batch.micro * hardware.world
    if batch.size % at_once:
        each = math.ceil(batch.size / hardware.world)
        size = f"--set batch.size={each * hardware.world} " if batch.size % hardware.world else ""
        raise RecipeError(
            f"batch.size {batch.size} is not a multiple of batch.micro {batch.micro} times "
            f"{hardware.world} processes; {size}--set batch.micro={each} would do"
        )
    steps = total_steps(recipe, images)
    period = recipe.schedule.balance_period
    return Plan(
        steps=steps,
        accumulate=batch.size // at_once,
        evaluate_every=math.ceil(steps / recipe.training.evaluations),
        keep_every=recipe.training.checkpoint_every,
        note_every=recipe.training.log_every,
        balance_period=math.ceil(images / batch.size) if period == "epoch" else period,
        average_decay=recipe.training.ema,
        clip=recipe.optimizer.clip,
        precision=_precision(recipe, hardware),
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        nodes=hardware.nodes,
        strategy=hardware.strategy,
    )


def make_parts(
    recipe: Recipe, train: ImageSet, validation: ImageSet, plan: Plan, hardware: Hardware
) -> Parts:
    """Return all that is trained, on what, seeded by the recipe.

    Args:
        recipe: of the run.
        train: images to learn from, at least one.
        validation: images to evaluate on.
        plan: as `make_plan` gave it.
        hardware: to train on.
    """
    torch.manual_seed(recipe.training.seed)
    detector = build_detector(recipe, len(train.classes))
    if recipe.training.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    if recipe.training.compile:
        compile_network(detector, heads=not measures_gradients(recipe.criterion))
    workers = workers_for(recipe, hardware)

    def training(rank: int, world: int, done: int) -> Iterable[Any]:
        sampler = StepSampler(
            length=len(train),
            batch=recipe.batch.micro,
            steps=plan.steps * plan.accumulate,
            seed=recipe.training.seed,
            rank=rank,
            world=world,
            start_step=done,
        )
        images = TrainingSet(
            train,
            build_augment(recipe),
            seed=recipe.training.seed,
            cache_bytes=recipe.data.cache_mb * 2**20,
        )
        return training_loader(
            images,
            sampler,
            workers=workers,
            divisor=divisor_of(recipe),
            pin_memory=hardware.has_gpu,
        )

    def testing(rank: int, world: int) -> Iterable[Any]:
        share = validation.subset(range(rank, len(validation), world), validation.name)
        return testing_loader(recipe, share, workers=workers)

    return Parts(
        detector=detector,
        criterion=build_criterion(recipe),
        make_optimizer=lambda learned: _optimizer(recipe, learned, plan),
        make_training_loader=training,
        make_test_loader=testing,
        post_process=build_post_process(recipe),
        ground_truth=to_coco(validation),
        card=ModelCard(
            classes=train.classes,
            category_ids=train.category_ids,
            recipe=dump(recipe),
            version=__version__,
        ),
    )


def testing_loader(recipe: Recipe, images: ImageSet, *, workers: int) -> Iterable[Any]:
    """Return a loader of test images, resized as the recipe says."""
    return test_loader(
        images,
        build_test_resize(recipe),
        batch=recipe.batch.micro,
        workers=workers,
        divisor=divisor_of(recipe),
    )


def divisor_of(recipe: Recipe) -> int:
    """Return what the sides of a batch are multiples of: the coarsest stride, at least 32."""
    return max(32, 8 << (recipe.model.levels - 1))


def workers_for(recipe: Recipe, hardware: Hardware) -> int:
    """Return how many processes load images for one device.

    On a CPU the training itself uses all cores; one worker then overlaps reading with it.
    """
    if recipe.data.workers != "auto":
        return recipe.data.workers
    cores = len(_cores()) // hardware.devices
    return min(8, max(cores - 1, 1)) if hardware.has_gpu else 1


def _optimizer(recipe: Recipe, learned: torch.nn.Module, plan: Plan) -> Any:
    optimizer = build_optimizer(recipe, learned)
    return optimizer, build_schedule(recipe, optimizer, plan.steps)


def _precision(recipe: Recipe, hardware: Hardware) -> str:
    wanted = recipe.training.precision
    if wanted == "auto":
        bf16 = hardware.has_gpu and torch.cuda.is_bf16_supported()
        return "bf16-mixed" if bf16 else "32-true"
    return "bf16-mixed" if wanted == "bf16" else "32-true"


def _cores() -> set[int] | range:
    import os

    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)
