"""One training step: detector, criterion, average of weights, and the watch for NaN."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from rankdet.engine.detecting import predict
from rankdet.engine.files import RunError
from rankdet.structures import LossTerms, Targets


class TrainingBatch(Protocol):
    """What a loader for training yields."""

    @property
    def images(self) -> Tensor:
        """[B, 3, H, W] uint8."""
        ...

    @property
    def targets(self) -> Targets:
        """Ground truth of the batch."""
        ...

    @property
    def ids(self) -> tuple[int, ...]:
        """B ids of images."""
        ...


class TrainingCriterion(Protocol):
    """A criterion as the engine sees it: a module with the end of a balancing period."""

    def __call__(self, predictions: Any, targets: Targets) -> LossTerms:
        """Return the loss of a batch."""
        ...

    def end_period(self) -> None:
        """Take note that a period of the balance ended; all processes together."""
        ...


class TrainingModule(pl.LightningModule):
    """A detector under training.

    Args:
        detector: images to `Predictions` or `TwoStagePredictions`.
        criterion: an `nn.Module` that is a `TrainingCriterion`.
        make_optimizer: given a module with all that is learned, returns the optimiser and its
            schedule by step.
        average_decay: decay of the exponential moving average of the weights, which is what is
            evaluated and exported; None for none. Early in training the average is shorter:
            after n steps the decay is at most (1 + n) / (10 + n).
        balance_period: optimiser steps after which the criterion is told that a period ended.
    """

    def __init__(
        self,
        detector: nn.Module,
        criterion: nn.Module,
        *,
        make_optimizer: Callable[[nn.Module], tuple[Optimizer, LRScheduler]],
        average_decay: float | None,
        balance_period: int,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.criterion = criterion
        self.make_optimizer = make_optimizer
        self.average_decay = average_decay
        self.balance_period = balance_period
        self.averaged: AveragedModel | None = None
        if average_decay is not None:
            self.averaged = AveragedModel(detector, use_buffers=True).requires_grad_(False)
        # (average, current) of all weights and buffers; found at the first step, when all are
        # where they are trained. To look for them each time would take longer than the average.
        self._pairs: list[tuple[Tensor, Tensor]] | None = None
        self._unchecked: tuple[int, _Later, LossTerms, tuple[int, ...]] | None = None
        self.last_parts: dict[str, Tensor] = {}
        self._last_ids: tuple[int, ...] = ()
        self._seed = torch.initial_seed()
        self._micro_batches = 0  # since the last optimiser step

    @property
    def evaluated(self) -> nn.Module:
        """The detector whose weights count: the average where there is one."""
        if self.averaged is None:
            return self.detector
        averaged: nn.Module = self.averaged.module
        return averaged

    def training_step(self, batch: TrainingBatch, _index: int) -> Tensor:
        """Return the loss of a batch."""
        self.require_finite()
        # So that whatever is drawn in a step is drawn again when a run is resumed there.
        place = (self.global_step, self._micro_batches, self.global_rank)
        torch.manual_seed(_mixed(self._seed, *place))
        self._micro_batches += 1
        targets = batch.targets
        predictions = predict(self.detector, batch.images, targets.sizes, targets)
        terms: LossTerms = self.criterion(predictions, targets)
        self._last_ids = batch.ids
        self.last_parts = {"loss": terms.total.detach(), **terms.parts}
        # Whether it is finite is read one step later, when a GPU is through with this.
        finite = _Later(terms.total.detach().isfinite())
        self._unchecked = (self.global_step, finite, terms, batch.ids)
        return terms.total

    def require_finite(self) -> None:
        """Stop the run if the last loss was NaN or infinite.

        Raises:
            RunError: names the step, the parts of the loss and the images.
        """
        if self._unchecked is None:
            return
        step, finite, terms, ids = self._unchecked
        self._unchecked = None
        if bool(finite):
            return
        raise RunError(
            f"the loss became {terms.total.item():g} at step {step + 1} "
            f"{_circumstances(terms.parts, ids)}"
        )

    def require_finite_weights(self) -> None:
        """Stop the run if the last step made a weight NaN or infinite, as a gradient may do whose
        loss was finite: such weights must not replace those that were kept.

        Raises:
            RunError: names the step, the parts of the loss and the images.
        """
        floating = (each for each in _all(self.detector) if each.is_floating_point())
        if all(bool(each.isfinite().all()) for each in floating):
            return
        raise RunError(
            f"a weight became NaN or infinite at step {self.global_step} "
            f"{_circumstances(self.last_parts, self._last_ids)}"
        )

    def end_step(self) -> None:
        """Do what follows an optimiser step: average the weights, end a balancing period."""
        self._micro_batches = 0
        if self.averaged is not None:
            self._average(self.averaged)
        if self.global_step % self.balance_period == 0:
            end: Any = self.criterion.end_period
            end()

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and its schedule that moves with each step."""
        learned = nn.ModuleDict({"detector": self.detector, "criterion": self.criterion})
        optimizer, schedule = self.make_optimizer(learned)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @torch.no_grad()
    def _average(self, averaged: AveragedModel) -> None:
        """Move the average a step towards the weights; at first, put it where they are."""
        assert self.average_decay is not None
        step = self.global_step
        decay = min(self.average_decay, (1 + step) / (10 + step))
        if self._pairs is None:
            both = zip(_all(averaged.module), _all(self.detector), strict=True)
            self._pairs = list(both)
            decay = decay if int(averaged.n_averaged) else 0.0
        moving, copied = (
            [pair for pair in self._pairs if pair[0].is_floating_point() == floating]
            for floating in (True, False)
        )
        torch._foreach_lerp_([a for a, _ in moving], [c for _, c in moving], 1 - decay)
        if copied:  # how many batches a normalisation has seen
            torch._foreach_copy_([a for a, _ in copied], [c for _, c in copied])
        averaged.n_averaged += 1


class _Later:
    """A flag on its way from a GPU, which the host does not wait for until it reads it.

    To read a tensor waits for all that was started before, even if after the flag was known: the
    backward pass and the optimiser's step. So the flag is sent at once, and waited for alone.
    """

    def __init__(self, flag: Tensor) -> None:
        """Send a flag, 0-d bool, to the host."""
        self._flag = flag
        self._arrived: torch.cuda.Event | None = None
        if flag.is_cuda:
            self._flag = flag.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(flag.device))

    def __bool__(self) -> bool:
        """Wait for the flag, and return it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._flag)


def _circumstances(parts: Mapping[str, Tensor], ids: tuple[int, ...]) -> str:
    """Say of a step what led to NaN, what is kept, and what to do."""
    numbers = ", ".join(f"{name} {value.item():g}" for name, value in parts.items())
    return (
        f"({numbers}; images {', '.join(map(str, ids))}). The last checkpoint from before is kept. "
        f"A lower learning rate (--set optimizer.lr=...) or gradient clipping (--set "
        f"optimizer.clip=...) usually helps; look at the images as well"
    )


def _all(module: nn.Module) -> list[Tensor]:
    return [each.detach() for each in chain(module.parameters(), module.buffers())]


def _mixed(*numbers: int) -> int:
    """Return a seed that depends on all of the numbers, the same in every process and version."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little")
