"""What makes a recipe short enough for a test."""

from __future__ import annotations

# A few images, few steps, and an evaluation in the middle: the whole path in seconds.
SHORT = (
    "schedule.steps=6", "schedule.warmup_steps=2", "schedule.balance_period=2",
    "training.evaluations=2", "training.checkpoint_every=2", "training.log_every=1",
    "data.train_size=64", "data.test_shorter=64", "data.test_longer=64", "data.workers=0",
    "batch.size=4", "batch.micro=4", "optimizer.reference_batch=4",
)  # fmt: skip


def settings(*more: str) -> list[str]:
    """Return the command-line arguments that make a recipe short."""
    return [part for change in (*SHORT, *more) for part in ("--set", change)]
