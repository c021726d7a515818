"""What is kept of a run that goes wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from rankdet.engine.files import RunError
from rankdet.engine.keeping import KeepState
from rankdet.engine.module import TrainingModule


def _unused(_: nn.Module) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_do_not_replace_the_state(tmp_path: Path, value: float) -> None:
    """A gradient may be NaN where the loss was not."""
    detector = nn.Linear(3, 2)
    module = TrainingModule(
        detector, nn.Module(), make_optimizer=_unused, average_decay=None, balance_period=1
    )
    module.last_parts = {"loss": torch.tensor(0.5)}
    saved: list[Path] = []
    trainer = SimpleNamespace(world_size=1, global_step=4, save_checkpoint=saved.append)
    keep = KeepState(tmp_path / "last.ckpt", every=2)
    keep.after_step(cast(Any, trainer), module, last=False)
    assert saved == [tmp_path / "last.ckpt"]
    with torch.no_grad():
        detector.weight[1, 2] = value
    with pytest.raises(RunError, match=r"a weight became NaN.*loss 0\.5.*is kept"):
        keep.after_step(cast(Any, trainer), module, last=False)
    assert len(saved) == 1
