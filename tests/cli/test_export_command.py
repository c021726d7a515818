"""`rankdet export`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from rankdet.cli.main import main
from rankdet.config.build_model import build_detector
from rankdet.config.load import dump, load_recipe
from rankdet.engine.checkpoint import ModelCard, save_model
from rankdet.models.detector import Detector


def save(folder: Path, *changes: str) -> Path:
    recipe = load_recipe("demo", changes)
    detector = build_detector(recipe, 2)
    assert isinstance(detector, Detector)
    torch.nn.init.normal_(detector.head.to_logits.weight, std=0.3)  # no ties
    card = ModelCard(("ant", "bee"), (1, 2), dump(recipe), (0.25, None))
    save_model(folder / "best.safetensors", detector.state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("run"))


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", "--help"])
    assert left.value.code == 0
    assert "examples:" in capsys.readouterr().out
    assert main([]) == 0
    assert "rankdet export" in capsys.readouterr().out


def test_a_file_is_written_beside_the_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "torchscript"]) == 0
    said = capsys.readouterr().out
    assert "the file finds what the model finds: 800 of 800" in said
    assert "best.torchscript" in said.replace("\n", "")
    notes = {"rankdet.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is called deprecated by newer versions
        torch.jit.load(run / "best.torchscript", _extra_files=notes)
    note = json.loads(notes["rankdet.json"])
    assert note["classes"] == ["ant", "bee"]
    assert note["thresholds"] == [0.25, None]
    assert (note["shorter"], note["longer"], note["divisor"]) == (128, 128, 32)


def test_what_cannot_be_done_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: str) -> str:
        assert main(["export", *arguments]) == 1
        return capsys.readouterr().err

    script = ("--format", "torchscript")
    assert "is the model itself" in fails(str(run), *script, "--out", f"{run}/best.safetensors")
    assert "is a folder; name the file" in fails(str(run), *script, "--out", str(tmp_path))
    assert "does not exist" in fails(str(tmp_path / "none"), *script)
    soft = save(tmp_path, "test.nms=soft")
    assert "soft NMS (test.nms: soft)" in fails(str(soft), *script)
    assert not (tmp_path / "best.torchscript").exists()
    assert main(["export", str(soft), *script, "--nms", "none"]) == 0
    assert (tmp_path / "best.torchscript").exists()
    with pytest.raises(SystemExit) as left:
        main(["export", str(run), "--format", "onx"])
    assert left.value.code == 2
    assert "onnx" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "does not exist" in fails(str(tmp_path / "none"))  # before what is not installed
    missing = fails(str(run))
    assert "needs onnx, which is not installed: pip install 'rankdet[export]'" in missing


def test_a_model_without_thresholds_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("demo")
    card = ModelCard(("ant",), (1,), dump(recipe))
    weights = build_detector(recipe, 1).state_dict()
    save_model(tmp_path / "best.safetensors", weights, card)
    assert main(["export", str(tmp_path), "--format", "torchscript"]) == 0
    assert "carries no thresholds" in capsys.readouterr().out
