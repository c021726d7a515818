"""`rankdet tables` with real, very short runs on data that are not as one expects them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tables_command import SETS, typed

from rankdet.experiments import run as executing

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(executing, "_POLL", 0.01)


def copied(digits: Path, folder: Path, edit: Edit = lambda _: None) -> Path:
    """Return a copy of the data with the annotations of both splits edited."""
    shutil.copytree(digits, folder)
    for file in (folder / "annotations").iterdir():
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))
    return folder


def one_class(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 7, "name": "digit"}]
    for each in content["annotations"]:
        each["category_id"] = 7


def thousand_classes(content: dict[str, Any]) -> None:
    known = len(content["categories"])
    content["categories"] += [{"id": 100 + i, "name": f"unseen {i}"} for i in range(1000 - known)]


def few_objects(content: dict[str, Any]) -> None:
    """Leave no more than three objects in an image."""
    left, kept = {image["id"]: 3 for image in content["images"]}, []
    for each in content["annotations"]:
        left[each["image_id"]] -= 1
        if left[each["image_id"]] >= 0:
            kept.append(each)
    content["annotations"] = kept


def table(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    return typed("a3", "--data", str(data), "--scale", "tiny", "--seeds", "1", "--out", str(out),
                 "--rows", "retinanet_alrp,retinanet_focal", *SETS, "--set", "schedule.steps=2",
                 *more, monkeypatch=monkeypatch)  # fmt: skip


def test_one_class_and_no_validation_split(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = copied(digits, tmp_path / "data", one_class)
    (data / "annotations" / "val.json").unlink()
    assert table(data, tmp_path / "out", monkeypatch) == 0
    said = capsys.readouterr().out
    assert "held out" in said
    page = (tmp_path / "out" / "a3-tiny" / "table.md").read_text()
    assert "objects of 1 class\n" in page
    assert "Not finished" not in page


def test_a_thousand_classes_and_no_image_of_most_bins(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(content: dict[str, Any]) -> None:
        thousand_classes(content)
        few_objects(content)

    data = copied(digits, tmp_path / "data", edit)
    assert table(data, tmp_path / "out", monkeypatch) == 0
    page = (tmp_path / "out" / "a3-tiny" / "table.md").read_text()
    assert "objects of 1000 classes" in page
    head = next(line for line in page.splitlines() if "0-3" in line)
    row = next(line for line in page.splitlines() if line.startswith("| aLRP"))
    cells = dict(zip(head.split("|"), row.split("|"), strict=True))
    assert cells[" AP, 0-3 (6 images) "].strip() != "-"
    assert cells[" AP, 4-10 (0 images) "].strip() == "-"
    assert "(0 images)" in (tmp_path / "out" / "a3-tiny" / "ap-by-objects.svg").read_text()


def test_an_image_that_cannot_be_read_costs_nothing_that_was_computed(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = copied(digits, tmp_path / "data"), tmp_path / "out"
    whole = ("--rows", "retinanet_focal")
    assert table(data, out, monkeypatch, *whole) == 0
    finished = (out / "a3-tiny" / "retinanet_focal-seed0" / "score.json").read_bytes()
    # One that is read at the end, when training is done.
    image = data / "images" / "val_000003.png"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert table(data, out, monkeypatch) == 1
    said = capsys.readouterr().out
    assert "not finished: retinanet_alrp-seed0: exit code 1" in said
    assert "val_000003.png" in said
    page = (out / "a3-tiny" / "table.md").read_text()
    assert "| Focal + Smooth L1 | 1 |" in page
    assert (out / "a3-tiny" / "retinanet_focal-seed0" / "score.json").read_bytes() == finished

    image.write_bytes(content)
    assert table(data, out, monkeypatch, "--resume") == 0
    notes = (out / "a3-tiny" / "retinanet_alrp-seed0" / "metrics.csv").read_text().splitlines()
    steps = [line.split(",")[0] for line in notes[1:]]
    assert steps == ["1", "2", "2"]  # not a step was done again
