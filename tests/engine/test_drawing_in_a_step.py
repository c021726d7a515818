"""What a criterion draws at random depends on the run's seed and the step, and on nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rankdet.engine.module import TrainingModule
from rankdet.structures import LossTerms, Targets


class Drawing(nn.Module):
    """A criterion whose loss is a random number."""

    def forward(self, _predictions: object, _targets: Targets) -> LossTerms:
        return LossTerms(torch.rand(()), {})

    def end_period(self) -> None:
        """Do nothing."""


def drawn(seed: int, *, before: int = 0) -> list[float]:
    """Return what two micro-batches of the first step draw."""
    torch.manual_seed(seed)
    optimizer: Any = None
    module = TrainingModule(
        nn.Identity(), Drawing(), make_optimizer=optimizer, average_decay=None, balance_period=1
    )
    torch.rand(before)  # as if something else had drawn meanwhile
    sizes = torch.tensor([[8, 8]])
    targets = Targets.stack(
        [torch.zeros(0, 4)], [torch.zeros(0).long()], [torch.zeros(0).bool()], [(8, 8)]
    )
    batch: Any = SimpleNamespace(
        images=torch.zeros(1, 3, 8, 8), targets=targets, sizes=sizes, ids=(1,)
    )
    found: list[Tensor] = [module.training_step(batch, index) for index in range(2)]
    return [float(value) for value in found]


def test_draws_repeat_with_the_seed_and_differ_within_a_step() -> None:
    first = drawn(0)
    assert first == drawn(0, before=5)
    assert first[0] != first[1]
    assert first != drawn(1)
