"""From the names in a recipe to what moves weights and images; see `build_model` for the rest."""

from __future__ import annotations

import math
from bisect import bisect_right

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rankdet.config import parts
from rankdet.config.recipe import Recipe
from rankdet.criteria.balance import LearnedBalance
from rankdet.data.transforms import (
    LightAugment,
    PlainResize,
    SSDAugment,
    TestResize,
    Transform,
)


def build_augment(recipe: Recipe) -> Transform:
    """Return what is done to each image of the training."""
    size = recipe.data.train_size
    match recipe.data.augment:
        case parts.SSDAugment():
            return SSDAugment(size)
        case parts.LightAugment() as light:
            return LightAugment(
                size,
                scale=light.scale,
                stretch=light.stretch,
                colour=light.colour,
                horizontal_flip=light.horizontal_flip,
                vertical_flip=light.vertical_flip,
                min_visible=light.min_visible,
            )
        case parts.PlainResize() as plain:
            return PlainResize(size, keep_aspect=plain.keep_aspect, flip=plain.horizontal_flip)


def build_test_resize(recipe: Recipe) -> TestResize:
    """Return what is done to each image of a test."""
    return TestResize(recipe.data.test_shorter, recipe.data.test_longer)


def learning_rate(recipe: Recipe) -> float:
    """Return the learning rate at the recipe's batch, in proportion to its size."""
    optimizer = recipe.optimizer
    return optimizer.lr * recipe.batch.size / optimizer.reference_batch


def build_optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    """Return what moves the weights.

    Args:
        recipe: of the run.
        model: with all that is learned: the detector, and a criterion that learns its balance.
            Weights without gradients are left out.

    Returns:
        The optimiser, with a group of weights that decay and one of those that do not: a learned
        balance, and where the recipe says so, normalisation layers, biases and other weights of
        at most one dimension. It is fused where that is possible.
    """
    settings = recipe.optimizer
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if not weight.requires_grad or weight in seen:
                continue
            seen.add(weight)
            small = weight.dim() <= 1 and not settings.decay_norms_and_biases
            exempt = small or isinstance(module, LearnedBalance)
            (others if exempt else decaying).append(weight)
    groups = [
        {"params": weights, "weight_decay": decay}
        for weights, decay in ((decaying, settings.weight_decay), (others, 0.0))
        if weights
    ]
    lr, fused = learning_rate(recipe), _can_be_fused(recipe, seen)
    match settings.kind:
        case "sgd":
            return SGD(groups, lr=lr, momentum=settings.momentum, fused=fused)
        case "adamw":
            return AdamW(groups, lr=lr, betas=(settings.momentum, 0.999), fused=fused)


def build_schedule(recipe: Recipe, optimizer: Optimizer, steps: int) -> LambdaLR:
    """Return how the learning rate moves, one optimiser step after the other.

    Args:
        recipe: of the run.
        optimizer: from `build_optimizer`.
        steps: of the whole run, 1 or more.
    """
    schedule = recipe.schedule

    def factor(step: int) -> float:
        share = _share_of_rate(schedule.decay, step, steps)
        if step >= schedule.warmup_steps:
            return share
        first = schedule.warmup_factor
        return share * (first + (1 - first) * step / schedule.warmup_steps)

    return LambdaLR(optimizer, factor)


def _share_of_rate(decay: parts.Drops | parts.FlatLinear, step: int, steps: int) -> float:
    """Return the share of the learning rate that a step has, warm-up apart."""
    match decay:
        case parts.Drops(at=shares, factor=by):
            return by ** bisect_right([round(share * steps) for share in shares], step)
        case parts.FlatLinear(share=share):
            return min(1.0, max(0.0, (steps - step) / (share * steps)))


def total_steps(recipe: Recipe, images: int) -> int:
    """Return the optimiser steps of a run.

    Args:
        recipe: of the run.
        images: number of training images, 1 or more. Epochs follow each other without a gap, so
            the last step may reach into one more.
    """
    schedule = recipe.schedule
    if schedule.steps is not None:
        return schedule.steps
    assert schedule.epochs is not None  # the recipe has one of the two
    # 0.1 * 30 is a little more than 3.
    return max(1, math.ceil(round(schedule.epochs * images / recipe.batch.size, 6)))


def _can_be_fused(recipe: Recipe, weights: set[nn.Parameter]) -> bool:
    devices = {weight.device.type for weight in weights}
    if not devices <= {"cpu", "cuda"} or not all(w.is_floating_point() for w in weights):
        return False
    # Lightning refuses to clip gradients before a fused step in mixed precision.
    precision = recipe.training.precision
    mixed = precision == "bf16" or (precision == "auto" and devices != {"cpu"})
    return recipe.optimizer.clip is None or not mixed
