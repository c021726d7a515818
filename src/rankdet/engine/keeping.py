"""Keeping what a run has reached: its state while it goes on, its best model, and signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import distributed

from rankdet.engine.module import TrainingModule


class KeepState(pl.Callback):
    """Writes `last.ckpt` every so often, and when SIGINT or SIGTERM asks the run to end.

    Args:
        path: the file.
        every: optimiser steps between two writes.
    """

    def __init__(self, path: Path, *, every: int) -> None:
        self.path = path
        self.every = every
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, *_: Any, **__: Any) -> None:
        """Listen to the signals that end a run."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, *, last: bool) -> None:
        """Write the state if it is time; call it after each optimiser step, on all processes."""
        asked = self._asked(trainer)
        if last or asked or trainer.global_step % self.every == 0:
            module.require_finite()  # a state after NaN is worth nothing
            module.require_finite_weights()
            trainer.save_checkpoint(self.path)
        if asked:
            trainer.should_stop = True

    def teardown(self, *_: Any, **__: Any) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _note(self, number: int, _frame: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: do not even save
        self.signal = number

    def _asked(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.signal is not None
        # A signal may reach one process only; they have to stop after the same step.
        seen = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
        distributed.all_reduce(seen, op=distributed.ReduceOp.MAX)
        self.signal = int(seen) or None
        return self.signal is not None


class AfterSteps(pl.Callback):
    """Calls what follows each optimiser step, in order, once the step's gradients are applied.

    Lightning calls back after each micro-batch; everything here counts in optimiser steps.

    Args:
        total: optimiser steps of the run.
        keep: writes the state.
        evaluate_every: steps between two calls of `evaluate`; the last step is always one.
        evaluate: evaluates the module, on all processes.
        note: is told of every step, for logs and the progress bar.
    """

    def __init__(
        self,
        *,
        total: int,
        keep: KeepState,
        evaluate_every: int,
        evaluate: Callable[[pl.Trainer, TrainingModule], None],
        note: Callable[[pl.Trainer, TrainingModule], None],
    ) -> None:
        self.total = total
        self.keep = keep
        self.evaluate_every = evaluate_every
        self.evaluate = evaluate
        self.note = note
        self._done = -1

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Begin to count where the run goes on."""
        self._done = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Follow an optimiser step; nothing after a micro-batch that only accumulates."""
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step == self._done:
            return
        self._done = step
        pl_module.end_step()
        self.note(trainer, pl_module)
        last = step >= self.total
        if last or step % self.evaluate_every == 0:
            pl_module.require_finite()
            pl_module.require_finite_weights()
            self.evaluate(trainer, pl_module)
        self.keep.after_step(trainer, pl_module, last=last)
