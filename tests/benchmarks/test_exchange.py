"""Scores of one model on the boxes of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import exchange, results
from rankdet.cli.common import load
from rankdet.config.build_model import build_detector
from rankdet.config.load import dump, load_recipe
from rankdet.engine.checkpoint import ModelCard, save_model

CLASSES = tuple("0123456789")


def saved(folder: Path, seed: int, recipe_name: str = "demo", *changes: str) -> Path:
    """Write a model with random weights that finds something everywhere."""
    recipe = load_recipe(recipe_name, ["data.test_shorter=64", "data.test_longer=64", *changes])
    torch.manual_seed(seed)
    detector = build_detector(recipe, len(CLASSES))
    for name, weight in detector.named_parameters():
        if "to_logits.weight" in name or "to_codes.weight" in name:
            torch.nn.init.normal_(weight, std=0.5)
    card = ModelCard(CLASSES, tuple(range(len(CLASSES))), dump(recipe), (None,) * len(CLASSES))
    folder.mkdir(parents=True)
    save_model(folder / "best.safetensors", detector.state_dict(), card)
    return folder


def test_scores_are_of_the_one_and_boxes_of_the_other(tmp_path: Path) -> None:
    one = load(saved(tmp_path / "one", 1), "cpu").detector
    other = load(saved(tmp_path / "other", 2), "cpu").detector
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        scores, boxes = one(images), other(images)
        both = exchange.Exchanged(one, other)(images)
        same = exchange.Exchanged(one, one)(images)
    assert not torch.equal(scores.logits, boxes.logits)
    assert not torch.equal(scores.codes, boxes.codes)
    assert torch.equal(both.logits, scores.logits)
    assert torch.equal(both.codes, boxes.codes)
    assert torch.equal(same.codes, scores.codes)


def test_other_priors_are_refused(tmp_path: Path) -> None:
    one = load(saved(tmp_path / "one", 1), "cpu").detector
    other = load(saved(tmp_path / "other", 2, "atss_alrp-small"), "cpu").detector
    with pytest.raises(ValueError, match="with the same priors"):
        exchange.Exchanged(one, other)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_every_pair_has_a_row(digits: Path, tmp_path: Path) -> None:
    runs = [saved(tmp_path / "one", 1), saved(tmp_path / "other", 2)]
    arguments = [*map(str, runs), "--data", str(digits), "--out", str(tmp_path)]
    assert exchange.main(arguments) == 0
    found = results.read(tmp_path / "exchange-cpu.csv")
    assert [(row["scores"], row["boxes"]) for row in found] == [
        ("one", "one"), ("one", "other"), ("other", "one"), ("other", "other"),
    ]  # fmt: skip
    assert all(0 <= float(row["AP"]) <= 1 and float(row["oLRP"]) <= 1 for row in found)
    assert {row["images"] for row in found} == {"6"}
