"""A loss that is not finite stops a run, one step later, and a GPU is not waited for before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretend_gpu import on_gpu, pretended
from torch import Tensor, nn

from rankdet.engine.files import RunError
from rankdet.engine.module import TrainingModule
from rankdet.structures import LossTerms, Targets


class Given(nn.Module):
    """A criterion whose losses are known."""

    def __init__(self, *losses: Tensor) -> None:
        super().__init__()
        self.losses = iter(losses)

    def forward(self, _predictions: object, _targets: Targets) -> LossTerms:
        loss = next(self.losses)
        return LossTerms(loss, {"classification": loss / 2})

    def end_period(self) -> None:
        """Do nothing."""


def trained_with(*losses: Tensor) -> TrainingModule:
    """Return a module after a step with each loss."""
    optimizer: Any = None
    module = TrainingModule(
        nn.Identity(), Given(*losses), make_optimizer=optimizer, average_decay=None,
        balance_period=1,
    )  # fmt: skip
    targets = Targets.stack(
        [torch.zeros(0, 4)], [torch.zeros(0).long()], [torch.zeros(0).bool()], [(8, 8)]
    )
    for number in range(len(losses)):
        batch: Any = SimpleNamespace(
            images=torch.zeros(1, 3, 8, 8), targets=targets, ids=(f"image-{number}",)
        )
        module.training_step(batch, number)
    return module


GOOD, BAD = torch.tensor(4.0), torch.tensor(torch.inf)


def test_a_bad_loss_is_told_with_its_parts_and_images() -> None:
    module = trained_with(GOOD, BAD)
    with pytest.raises(RunError, match=r"became inf at step 1 .*classification inf.* image-1"):
        module.require_finite()
    module.require_finite()  # it was said
    with pytest.raises(RunError, match=r"image-0"):
        trained_with(BAD, GOOD)


class Event:
    """An event of a device that is none."""

    made: list[Event]

    def __init__(self) -> None:
        self.recorded, self.waited_for = False, False
        self.made.append(self)

    def record(self, _stream: object) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded
        self.waited_for = True


def test_of_a_gpu_the_flag_alone_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Event.made = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    with pretended() as gpu:
        module = trained_with(on_gpu(GOOD), on_gpu(BAD))
        assert not gpu.waits
        assert [event.waited_for for event in Event.made] == [True, False]
        with pytest.raises(RunError, match=r"became inf"):
            module.require_finite()
    assert all(event.waited_for for event in Event.made)
