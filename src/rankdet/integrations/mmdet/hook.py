"""The hook that tells self-balance when an epoch ended."""

from __future__ import annotations

from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from rankdet.integrations.mmdet.heads import RankDetMixin
from rankdet.ops.checks import require_positive


@HOOKS.register_module()
class RankDetHook(Hook):
    """Tell all ranking losses of a model that an epoch of training ended.

    A config without it would keep the weight of the first epoch. It runs before the checkpoint of
    the epoch is written, which so holds the weight of the next one. In a distributed training all
    processes run it together.

    Args:
        interval: None: at the end of each epoch. A number of iterations, 1 or more, for a
            training that knows no epochs (``IterBasedTrainLoop``).

    Raises:
        ValueError: interval is below 1.
    """

    priority = "NORMAL"  # the CheckpointHook has VERY_LOW, and comes after

    def __init__(self, interval: int | None = None) -> None:
        if interval is not None:
            require_positive("interval", interval)
        self.interval = interval

    def before_train(self, runner: Any) -> None:
        """Let the heads know that they will be told.

        Raises:
            ValueError: the model has no head with `RankDetMixin`.
        """
        heads = _heads(runner)
        if not heads:
            raise ValueError("RankDetHook is for models with a RankDet... head, and here is none")
        for head in heads:
            head.told_of_epochs = True

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,  # noqa: ARG002 - counted within an epoch
        data_batch: Any = None,  # noqa: ARG002 - as any hook
        outputs: Any = None,  # noqa: ARG002 - as any hook
    ) -> None:
        """End an epoch of the balance every ``interval`` iterations."""
        if self.interval is not None and (runner.iter + 1) % self.interval == 0:
            self._end(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """End an epoch of the balance."""
        if self.interval is None:
            self._end(runner)

    def _end(self, runner: Any) -> None:
        for head in _heads(runner):
            head.end_epoch()


def _heads(runner: Any) -> list[RankDetMixin]:
    """Return the ranking heads of a model, in the same order on every process."""
    return [part for part in runner.model.modules() if isinstance(part, RankDetMixin)]
