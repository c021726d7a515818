"""Training from built parts to a run folder that explains itself."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from rich.console import Console
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rankdet.engine.checkpoint import (
    AtomicCheckpointIO,
    ModelCard,
    load_model,
    load_state,
    save_model,
)
from rankdet.engine.detecting import Result, TestBatch, detect, to_results
from rankdet.engine.files import FULL, RunError, explain, write_json
from rankdet.engine.keeping import AfterSteps, KeepState
from rankdet.engine.module import TrainingModule
from rankdet.engine.progress import Bar, MetricsFile, mean_parts
from rankdet.eval.score import Score, score
from rankdet.structures import Detections

STATE = "last.ckpt"
MODEL = "best.safetensors"


@dataclass(frozen=True)
class Plan:
    """How long and how to train; every number comes from the recipe."""

    steps: int
    """Optimiser steps."""
    accumulate: int
    """Micro-batches of one device to an optimiser step; each is ranked by itself."""
    evaluate_every: int
    """Optimiser steps between two evaluations."""
    keep_every: int
    """Optimiser steps between two writes of the state."""
    note_every: int
    """Optimiser steps between two rows of the log."""
    balance_period: int
    average_decay: float | None
    clip: float | None
    """Largest norm of the gradient; None: any."""
    precision: str
    """Lightning's name: "32-true" or "bf16-mixed"."""
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    nodes: int = 1


@dataclass(frozen=True)
class Parts:
    """What is trained on what, already built."""

    detector: nn.Module
    criterion: nn.Module
    make_optimizer: Callable[[nn.Module], tuple[Optimizer, LRScheduler]]
    make_training_loader: Callable[[int, int, int], Iterable[Any]]
    """(rank, world size, micro-batches to leave out) to a loader of all micro-batches of a run."""
    make_test_loader: Callable[[int, int], Iterable[TestBatch]]
    """(rank, world size) to a loader of this process's share of the validation images."""
    post_process: Callable[[Any, Tensor], list[Detections]]
    ground_truth: dict[str, Any]
    """COCO instances of the validation images."""
    card: ModelCard


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    best: Score | None
    """The score of the model in `best.safetensors`, None if this session evaluated nothing."""
    seconds: float
    """Spent on training in this session, without evaluations."""
    signal: int | None
    """The signal that ended it early."""


def train(
    folder: Path, parts: Parts, plan: Plan, *, console: Console, resume: bool = False
) -> Outcome:
    """Train, evaluate on the way, and keep the state and the best model in a folder.

    Args:
        folder: of the run; `last.ckpt`, `best.safetensors`, `detections.json`, `metrics.csv` and
            TensorBoard's events are written there.
        parts: what to train.
        plan: how.
        console: for the progress bar.
        resume: go on from `last.ckpt`.

    Raises:
        RunError: the loss became NaN, a file cannot be written, or the state cannot be read.
    """
    state_path = folder / STATE
    start = int(load_state(state_path)["global_step"]) if resume else 0
    if start >= plan.steps:
        raise RunError(f"{folder} is complete: {start} of {plan.steps} steps are done")
    module = TrainingModule(
        parts.detector,
        parts.criterion,
        make_optimizer=parts.make_optimizer,
        average_decay=plan.average_decay,
        balance_period=plan.balance_period,
    )
    session = _Session(folder, parts, plan, console=console, start=start)
    keep = KeepState(state_path, every=plan.keep_every)
    after = AfterSteps(
        total=plan.steps,
        keep=keep,
        evaluate_every=plan.evaluate_every,
        evaluate=session.evaluate,
        note=session.note,
    )
    with warnings.catch_warnings(), _quiet_threads():
        _quieten()
        trainer = pl.Trainer(
            accelerator=plan.accelerator,
            devices=plan.devices,
            num_nodes=plan.nodes,
            strategy=_strategy(plan),
            precision=plan.precision,  # type: ignore[arg-type] # one of Lightning's names
            max_epochs=1,  # the loader is the whole run; epochs of the data are the sampler's
            accumulate_grad_batches=plan.accumulate,
            gradient_clip_val=plan.clip,
            logger=TensorBoardLogger(folder, name="", version="tensorboard"),
            callbacks=[keep, after],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        data = _Data(parts, plan, start)
        try:
            trainer.fit(
                module,
                datamodule=data,
                ckpt_path=str(state_path) if resume else None,
                weights_only=True,
            )
            module.require_finite()
        except SystemExit as left:
            if keep.signal is None:
                raise
            # So Lightning ends where somebody interrupts for the second time.
            raise KeyboardInterrupt from left
        except OSError as error:
            if error.errno not in FULL:
                raise
            # What we write ourselves says so by a `RunError`; left is TensorBoard's log.
            path = Path(error.filename) if error.filename else folder / "tensorboard"
            raise RunError(explain(path, error)) from error
        finally:
            session.close()
    return Outcome(session.best, session.seconds, keep.signal)


class _Data(pl.LightningDataModule):
    """Makes the loader once it is known which of how many processes this is."""

    def __init__(self, parts: Parts, plan: Plan, start: int) -> None:
        super().__init__()
        self.parts = parts
        self.plan = plan
        self.start = start

    def train_dataloader(self) -> _Stream:
        """Return all micro-batches of the run, of this process."""
        assert self.trainer is not None
        done = self.start * self.plan.accumulate
        rank, world = self.trainer.global_rank, self.trainer.world_size
        loader = self.parts.make_training_loader(rank, world, done)
        return _Stream(loader, self.plan.steps * self.plan.accumulate)


class _Stream:
    """The micro-batches that are left, with the length of all: Lightning counts from the start."""

    def __init__(self, left: Iterable[Any], length: int) -> None:
        self.left = left
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.left)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: which batches are left follows from the step."""
        return {}

    def load_state_dict(self, _state: dict[str, Any]) -> None:
        """Do nothing: it was made for the step the run goes on from."""


class _Session:
    """What one session of a run notes down: log, progress, evaluations, best model."""

    def __init__(
        self, folder: Path, parts: Parts, plan: Plan, *, console: Console, start: int
    ) -> None:
        self.folder = folder
        self.parts = parts
        self.plan = plan
        self.console = console
        self.start = start
        self.best: Score | None = None
        self.best_ap = _best_so_far(folder) if start else -1.0
        self.ap: float | None = None
        self.seconds = 0.0
        self._since = time.monotonic()
        self._notes: list[dict[str, Tensor]] = []
        self._file: MetricsFile | None = None
        self._bar: Bar | None = None

    def note(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Take note of a step."""
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        self._notes.append(module.last_parts)
        if step % self.plan.note_every and step < self.plan.steps:
            return
        parts = mean_parts(self._notes)
        self._notes = []
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        file, bar = self._opened()
        row = {"step": step, "seconds": self._elapsed(), "lr": lr, **parts}
        file.add(row)
        self._to_tensorboard(trainer, {"lr": lr, **parts})
        bar.step(step, parts, self.ap)

    def evaluate(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Evaluate the model, and keep it if it is the best so far."""
        self.seconds = self._elapsed()
        began = time.monotonic()
        found = self._detect(trainer, module)
        if trainer.is_global_zero:
            self._score(trainer, module, found)
        if trainer.world_size > 1:
            trainer.strategy.barrier()
        spent = time.monotonic() - began
        self._since += spent
        if self._bar is not None:
            self._bar.pause(spent)

    def close(self) -> None:
        """End the progress bar."""
        self.seconds = self._elapsed()
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def _elapsed(self) -> float:
        return time.monotonic() - self._since

    def _opened(self) -> tuple[MetricsFile, Bar]:
        if self._file is None or self._bar is None:
            self._file = MetricsFile(self.folder / "metrics.csv", step=self.start)
            self._bar = Bar(self.console, total=self.plan.steps, start=self.start).__enter__()
        return self._file, self._bar

    def _detect(self, trainer: pl.Trainer, module: TrainingModule) -> list[Result]:
        """Return the detections of all processes, on all of them."""
        loader = self.parts.make_test_loader(trainer.global_rank, trainer.world_size)
        dtype = torch.bfloat16 if self.plan.precision == "bf16-mixed" else None
        own = [
            result
            for image_id, detections in detect(
                module.evaluated, self.parts.post_process, loader, device=module.device, dtype=dtype
            )
            for result in to_results(image_id, detections, self.parts.card.category_ids)
        ]
        if trainer.world_size == 1:
            return own
        shares: list[list[Result]] = [[] for _ in range(trainer.world_size)]
        distributed.all_gather_object(shares, own)
        return [result for share in shares for result in share]

    def _score(self, trainer: pl.Trainer, module: TrainingModule, found: list[Result]) -> None:
        result = score(self.parts.ground_truth, found)
        metrics = headline(result)
        step = trainer.global_step
        self.ap = metrics["AP"]
        file, _ = self._opened()
        file.add({"step": step, "seconds": self.seconds, **metrics})
        self._to_tensorboard(trainer, {k: v for k, v in metrics.items() if v is not None})
        # Without a single object to find there is no AP; the latest model is then the best.
        if self.ap is not None and self.ap <= self.best_ap:
            return
        self.best_ap = self.ap if self.ap is not None else -1.0
        self.best = result
        thresholds = thresholds_of(result, self.parts.card.category_ids)
        card = replace(self.parts.card.with_scores(thresholds, metrics), step=step)
        save_model(self.folder / MODEL, module.evaluated.state_dict(), card)
        write_json(self.folder / "detections.json", found)
        write_json(self.folder / "score.json", result.to_json(), indent=1)

    def _to_tensorboard(self, trainer: pl.Trainer, numbers: dict[str, float]) -> None:
        assert trainer.logger is not None
        trainer.logger.log_metrics(numbers, step=trainer.global_step)


def headline(result: Score) -> dict[str, float | None]:
    """Return the numbers of a score that the log and the model file carry."""
    names = ("AP", "AP50", "AP75", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn")
    whole = result.to_json()
    return {name: whole[name] for name in names}


def thresholds_of(result: Score, category_ids: tuple[int, ...]) -> tuple[float | None, ...]:
    """Return the LRP-optimal threshold of each class, in the order of the labels."""
    found = {entry.id: entry.threshold for entry in result.per_class}
    return tuple(found.get(category_id) for category_id in category_ids)


def _best_so_far(folder: Path) -> float:
    """Return the AP of the best model that earlier sessions of the run have kept."""
    if not (folder / MODEL).is_file():
        return -1.0
    ap = (load_model(folder / MODEL)[1].metrics or {}).get("AP")
    return -1.0 if ap is None else ap


def _strategy(plan: Plan) -> Any:
    """Return Lightning's strategy; several processes leave each other's buffers alone."""
    several = plan.devices > 1 or plan.nodes > 1
    if plan.strategy not in ("auto", "ddp") or not (several or plan.strategy == "ddp"):
        return plan.strategy
    # Self-balance keeps sums in buffers, which copying those of process 0 would destroy.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DDPStrategy(gradient_as_bucket_view=True, **options)


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print no trace of a thread that cannot write: the log it serves raises the error again."""
    usual = threading.excepthook

    def hook(what: threading.ExceptHookArgs) -> None:
        if not isinstance(what.exc_value, OSError):
            usual(what)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


def _quieten() -> None:
    """Leave out what Lightning says about itself; what matters to a user is said by us."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*the `val_dataloader` hook.*",
        ".*tensorboardX.*",
    ):
        warnings.filterwarnings("ignore", message)
