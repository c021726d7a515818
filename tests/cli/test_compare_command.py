"""`rankdet compare`: two runs, two results, or two scores side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_runs import settings

from rankdet.cli.compare import _names
from rankdet.cli.main import main
from rankdet.eval import score


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished runs on the same data."""
    torch.set_num_threads(1)
    made = []
    for name, seed in (("digits-one", 0), ("digits-two", 1)):
        made.append(tmp_path_factory.mktemp("runs") / name)
        arguments = ["train", "--data", str(digits), "--recipe", "demo", "--out", str(made[-1])]
        assert main([*arguments, *settings("schedule.steps=3", f"training.seed={seed}")]) == 0
    return made[0], made[1]


def test_two_runs_are_compared_with_their_pictures(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    page = tmp_path / "compare.html"
    assert main(["compare", *map(str, runs), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "A = one\nB = two" in said
    first, second = (json.loads((run / "score.json").read_text()) for run in runs)
    change = second["oLRP"] - first["oLRP"]
    assert f"{change:+.3f}" in said or abs(change) < 5e-4
    text = page.read_text(encoding="utf-8")
    assert "two compared with one" in text
    assert 'id="changes"' in text
    assert 'id="pictures"' in text, "the images of the runs are found"
    assert [path.name for path in tmp_path.iterdir()] == ["compare.html"]


def test_runs_whose_data_are_gone_still_give_a_table(
    runs: tuple[Path, Path], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = []
    for run in runs:
        moved.append(tmp_path / run.name)
        shutil.copytree(run, moved[-1])
        content = json.loads((run / "run.json").read_text())
        (moved[-1] / "run.json").write_text(json.dumps({**content, "data": "/nowhere"}))
    assert main(["compare", *map(str, moved)]) == 0
    page = tmp_path / "compare.html"
    arguments = ["compare", *map(str, moved), "--html", str(page)]
    assert main(arguments) == 1
    assert "say by --data where they are now" in capsys.readouterr().err
    assert not page.exists()
    assert main([*arguments, "--data", str(digits)]) == 0
    assert page.is_file()
    # Without the detections there are numbers, but no report.
    (moved[0] / "detections.json").unlink()
    page.unlink()
    assert main(["compare", *map(str, moved)]) == 0
    assert main([*arguments, "--data", str(digits)]) == 1
    assert "holds no detections, which the report needs" in capsys.readouterr().err
    assert not page.exists()


def data() -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    random = np.random.default_rng(1)
    truth: dict[str, Any] = {
        "images": [{"id": i, "width": 90, "height": 90} for i in range(4)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [],
    }
    good, poor = [], []
    for number in range(24):
        x, y = random.uniform(0, 60, 2).round(1).tolist()
        where = {"image_id": number % 4, "category_id": number % 2 + 1}
        truth["annotations"].append({"id": number + 1, **where, "bbox": [x, y, 25, 25]})
        value = 1 - number / 30
        good.append({**where, "bbox": [x + 1, y, 25, 25], "score": value})
        # The second detector finds cats as well, and dogs less well.
        shift = 1 if number % 2 == 0 else 7
        poor.append({**where, "bbox": [x + shift, y, 25, 25], "score": value})
    return truth, good, poor


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    paths = tuple(tmp_path / name for name in ("truth.json", "good.json", "poor.json"))
    for path, content in zip(paths, data(), strict=True):
        path.write_text(json.dumps(content))
    return paths[0], paths[1], paths[2]


def test_results_are_scored_on_the_ground_truth(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, good, poor = files
    page = tmp_path / "report.html"
    names = ["--ground-truth", str(truth), "--html", str(page)]
    assert main(["compare", str(good), str(poor), *names]) == 0
    said = capsys.readouterr().out
    first, second = (score(data()[0], found) for found in data()[1:])
    assert first.AP is not None
    assert second.AP is not None
    row = next(line for line in said.splitlines() if line.startswith("AP "))
    assert row.split() == [
        "AP", f"{first.AP:.3f}", f"{second.AP:.3f}", f"{second.AP - first.AP:+.3f}", "worse"
    ]  # fmt: skip
    by_class = said[said.index("By class") :].splitlines()
    assert [line.split()[0] for line in by_class[2:4]] == ["dog", "cat"], "the worst first"
    assert "=" in by_class[3], "cats are found equally well"
    text = page.read_text(encoding="utf-8")
    assert "poor compared with good" in text
    assert 'id="pictures"' not in text


def test_scores_alone_are_compared_and_named(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, good, poor = files
    scores = []
    for path in (good, poor):
        scores.append(tmp_path / path.stem / "score.json")
        names = ["--ground-truth", str(truth), "--detections", str(path)]
        assert main(["score", *names, "--json", str(scores[-1])]) == 0
    capsys.readouterr()
    assert main(["compare", *map(str, scores), "--names", "[old] model", "new"]) == 0
    said = capsys.readouterr().out
    assert "A = [old] model\nB = new" in said
    page = tmp_path / "report.html"
    assert main(["compare", *map(str, scores), "--html", str(page)]) == 1
    assert "no folder of `rankdet train`" in capsys.readouterr().err
    assert main(["compare", *map(str, scores), "--html", str(page), "--ground-truth",
                 str(truth)]) == 1  # fmt: skip
    assert "holds no detections" in capsys.readouterr().err
    assert not page.exists()


def test_other_data_are_noticed(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, good, _ = data()
    scores = []
    for drop in (0, 3):
        scores.append(tmp_path / f"score{drop}.json")
        fewer = {**truth, "annotations": truth["annotations"][drop:]}
        scores[-1].write_text(json.dumps(score(fewer, good).to_json()))
    assert main(["compare", *map(str, scores)]) == 0
    assert "Not the same data: 24 objects in A, 21 in B." in capsys.readouterr().out
    # A folder of `rankdet evaluate` has its own score; on ground truth all is scored anew.
    folder = tmp_path / "evaluation"
    folder.mkdir()
    shutil.copy(files[1], folder / "detections.json")
    assert main(["compare", str(folder), str(files[2]), "--ground-truth", str(files[0])]) == 0
    assert main(["compare", str(folder), str(scores[0])]) == 1
    assert f"{folder} holds no score.json" in capsys.readouterr().err


def test_what_cannot_be_compared_is_named(
    files: tuple[Path, Path, Path],
    runs: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth, good, poor = files

    def said(*arguments: object) -> str:
        page = tmp_path / "out" / "report.html"
        capsys.readouterr()
        assert main(["compare", *map(str, arguments), "--html", str(page)]) == 1
        assert not page.parent.exists()
        return capsys.readouterr().err

    assert "say what is right by --ground-truth" in said(good, poor)
    assert "neither a list of COCO results nor a score" in said(truth, poor)
    assert "holds no score.json; name a folder of" in said(tmp_path, good)
    assert "there is no such file" in said(tmp_path / "none.json", good)
    cut = tmp_path / "cut.json"
    cut.write_bytes(good.read_bytes()[:-20])
    assert f"{cut}: no valid JSON" in said(cut, good, "--ground-truth", truth)
    content = json.loads(good.read_text())
    content[5]["category_id"] = 9
    cut.write_text(json.dumps(content))
    assert f"{cut}: detections: 1 of 24" in said(good, cut, "--ground-truth", truth)
    cut.write_text(json.dumps({"schema": 7}))
    assert "found schema 7" in said(cut, cut)
    # Detections of a run on the ground truth of another data set.
    assert "unknown" in said(*runs, "--ground-truth", truth)
    both = ["--ground-truth", str(truth), "--html"]
    assert main(["compare", str(good), str(poor), *both, str(tmp_path)]) == 1
    assert main(["compare", str(good), str(poor), *both, str(poor)]) == 1
    errors = capsys.readouterr().err
    assert f"{tmp_path} is a folder; name a file in it" in errors
    assert f"{poor} is named twice" in errors


def test_runs_on_other_images_are_refused_in_one_report(
    runs: tuple[Path, Path], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, run = tmp_path / "other", tmp_path / "run"
    shutil.copytree(digits, other)
    path = other / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][1:]
    path.write_text(json.dumps(content))
    shutil.copytree(runs[1], run)
    asked = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**asked, "data": str(other)}))
    page = tmp_path / "report.html"
    assert main(["compare", str(runs[0]), str(run), "--html", str(page)]) == 1
    assert "validated on different images or labels" in capsys.readouterr().err
    # The score of the run is not that of the changed labels.
    assert main(["compare", str(run), str(run), "--html", str(page)]) == 1
    assert "cannot stand in one report" in capsys.readouterr().err
    assert not page.exists()


def test_names_are_short_and_differ() -> None:
    def names(first: str, second: str) -> tuple[str, str]:
        return _names((Path(first), Path(second)))

    assert names("runs/x-focal-0", "runs/x-alrp-0") == ("focal", "alrp")
    assert names("runs/photos-1", "runs/photos-2") == ("photos-1", "photos-2")
    assert names("a/score.json", "b/score.json") == ("a", "b")
    assert names("old.json", "new.json.gz") == ("old", "new")
    assert names("runs/photos", "runs/photos-2") == ("photos", "photos-2")
    assert names("a/x.json", "a/x.json") == ("x", "x again")
