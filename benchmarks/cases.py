"""What is measured: sizes and score distributions that real detectors produce."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """One input: P positives among N negatives, at some moment of a training."""

    positives: int
    negatives: int
    regime: str


class Input(NamedTuple):
    """Flat logits of one ranking; the positives stand at random places."""

    logits: Tensor  # [N + P] float32
    targets: Tensor  # [N + P] int8, 1 positive, 0 negative
    per_positive: Tensor  # [P] in [0, 1): localisation errors, or IoUs


REGIMES = ("init", "trained")
# (P, N): one small image; a batch of a small, of a usual and of a large detector.
SIZES = ((100, 10**5), (1000, 10**6), (1000, 10**7), (5000, 10**7))


def make(case: Case, seed: int = 0, device: str = "cpu") -> Input:
    """Draw an input.

    ``init``: all logits near the prior of 0.01, N(-4.6, 0.01), as a fresh network gives.
    ``trained``: negatives N(-6, 1.5), positives N(-1, 2).
    """
    generator = torch.Generator().manual_seed(seed)
    total = case.positives + case.negatives
    logits = torch.randn(total, generator=generator)
    where = torch.randperm(total, generator=generator)[: case.positives]
    targets = torch.zeros(total, dtype=torch.int8)
    targets[where] = 1
    if case.regime == "init":
        logits = logits.mul_(0.01).sub_(4.6)
    elif case.regime == "trained":
        positive = logits[where] * 2 - 1
        logits = logits.mul_(1.5).sub_(6)
        logits[where] = positive
    else:
        raise ValueError(f"regime must be one of {REGIMES}, got {case.regime!r}")
    per_positive = torch.rand(case.positives, generator=generator)
    return Input(logits.to(device), targets.to(device), per_positive.to(device))
