"""The example of transformers runs as it is, by the Trainer."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "train_transformers.py"


@pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("accelerate") is None,
    reason="transformers is not installed: pip install './rankdet[transformers]'",
)
def test_the_trainer_trains_with_a_ranking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Any = runpy.run_path(str(EXAMPLE))["main"]

    def mean_loss(steps: int) -> float:
        settings = [
            "--steps",
            str(steps),
            "--batch",
            "4",
            "--lr",
            "3e-3",
            "--out",
            str(tmp_path / str(steps)),
        ]
        loss: float = main([*settings, "--loss", "rank_sort"])
        return loss

    few, more = mean_loss(2), mean_loss(40)
    assert more < 0.9 * few
    assert "best query: class " in capsys.readouterr().out
    assert (tmp_path / "40" / "model.safetensors").is_file()
