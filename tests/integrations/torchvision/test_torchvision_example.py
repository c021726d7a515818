"""The example of torchvision runs as it is."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "train_torchvision.py"


@pytest.mark.parametrize("model", ["fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn"])
def test_the_example_trains_saves_and_loads(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Any = runpy.run_path(str(EXAMPLE))["main"]
    out = tmp_path / "checkpoint.pt"
    sizes = ["--images", "4", "--batch", "2", "--size", "64", "--epochs", "1"]
    main(["--model", model, "--out", str(out), *sizes])
    said = capsys.readouterr().out
    assert said.startswith("epoch 0: mean loss ")
    assert "best of " in said
    weights = [v for k, v in torch.load(out)["loss"].items() if k.endswith("weight")]
    assert all(weight != 50 for weight in weights)
