"""`rankdet tables --split`: finished runs on images that they were not validated on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runs import IMAGES, some_score, write_run

from rankdet.cli import main as door
from rankdet.experiments.collect import read_result
from rankdet.experiments.folders import Images, Place, State
from rankdet.experiments.other_split import OtherSplit, note_of_the_models, of_the_end
from rankdet.experiments.run import Command
from rankdet.experiments.table import Run, runs
from rankdet.experiments.tables import TABLES

SPLIT = OtherSplit("test", images=2, objects=3)
RUNS = runs(TABLES["losses"], "tiny", seeds=2)


def place_of(folder: Path, run: Run) -> Place:
    return Place(run, folder / run.name, State.FINISHED)


def evaluate(place: Place, ap: float, split: OtherSplit = SPLIT, *, objects: int = 3) -> None:
    """Write what `rankdet evaluate` would."""
    score = replace(some_score(), AP=ap, objects=objects)
    folder = split.folder(place.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.json").write_text(json.dumps(score.to_json()))


def test_the_command_is_that_of_a_user(tmp_path: Path) -> None:
    place = place_of(tmp_path, RUNS[0])
    command = SPLIT.command(IMAGES)(place)
    assert command[:3] == [sys.executable, "-m", "rankdet.cli.main"]
    given = door.parser().parse_args(command[3:])
    assert (given.model, given.data, given.split) == (str(place.folder), "/data/cats", "test")
    # Thresholds stay those of the validation images.
    assert given.keep_thresholds
    assert Path(given.out) == place.folder / "evaluation-test"


def test_numbers_are_of_the_split_and_of_one_model(tmp_path: Path) -> None:
    place = place_of(tmp_path, RUNS[0])
    write_run(place.folder, RUNS[0], ap=(0.1, 0.2, 0.3, 0.4))
    result = read_result(place)
    assert SPLIT.judged(result) is None
    evaluate(place, 0.123456789)
    judged = SPLIT.judged(result)
    assert judged is not None
    assert judged.score_is_of_the_end
    table = of_the_end(TABLES["losses"], SPLIT)
    assert [measure.name for measure in table.measures] == ["AP", "oLRP", "loc", "FP", "FN", "r"]
    assert "judged on split test: 2 images with 3 objects" in table.title
    assert judged.value(table.measure("AP")) == pytest.approx(12.3457)
    assert judged.value(table.measure("oLRP")) == pytest.approx(0, abs=1e-9)
    # On the way there is nothing to read off.
    assert judged.at(0.5) is None


def test_an_evaluation_of_other_images_does_not_count(tmp_path: Path) -> None:
    one, other, third = (place_of(tmp_path, run) for run in RUNS[:3])
    evaluate(one, 0.5)
    evaluate(other, 0.5, objects=4)
    assert SPLIT.left([one, other, third]) == [other, third]
    SPLIT.folder(one.folder).joinpath("score.json").write_text("{")
    assert SPLIT.left([one]) == [one]


def test_a_model_that_is_not_the_last_is_noted(tmp_path: Path) -> None:
    place = place_of(tmp_path, RUNS[0])
    write_run(place.folder, RUNS[0], ap=(0.1, 0.4))
    result = read_result(place)
    assert note_of_the_models([result]) == []
    chosen = replace(result, score=replace(result.score, AP=0.9))
    assert note_of_the_models([chosen, result]) == [
        f"Of the model that was best on the validation images, not the last: {RUNS[0].name}."
    ]


@pytest.fixture
def typed(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return the command, on finished runs of one seed, with a fake evaluation."""
    from rankdet.cli.common import Voice
    from rankdet.cli.running import splits
    from rankdet.config.load import load_recipe
    from rankdet.data.discover import discover
    from rankdet.experiments import run as executing

    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(executing, "_POLL", 0.01)
    training, validation = splits(discover(digits), load_recipe("demo"), Voice(quiet=True))
    objects = [
        sum(len(record.labels) for record in each.records) for each in (training, validation)
    ]
    images = Images(digits.resolve(), len(training), len(validation), objects[1],
                    len(validation.classes))  # fmt: skip
    out = tmp_path / "out"
    table = TABLES["losses"]
    for number, run in enumerate(runs(table, "tiny", seeds=1)):
        write_run(out / "losses-tiny" / run.name, run, ap=(0.4,), images=images)
        made = replace(some_score(), AP=0.1 * number, images=len(training), objects=objects[0])
        (tmp_path / f"{run.name}.json").write_text(json.dumps(made.to_json()))

    def faked(script: str) -> Callable[[OtherSplit, Images], Command]:
        def command(split: OtherSplit, _: Images) -> Command:
            def arguments(place: Place) -> list[str]:
                made, folder = tmp_path / f"{place.run.name}.json", split.folder(place.folder)
                return ["sh", "-c", script, "sh", str(made), str(folder)]

            return arguments

        return command

    def call(*arguments: str, script: str = 'mkdir "$2"; cp "$1" "$2/score.json"') -> int:
        monkeypatch.setattr(OtherSplit, "command", faked(script))
        return door.main(["tables", "losses", "--data", str(digits), "--scale", "tiny", "--seeds",
                          "1", "--out", str(out), *arguments])  # fmt: skip

    return call


def test_runs_are_judged_once(
    typed: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "losses-tiny"
    failing = 'case "$1" in *giou*) echo "rankdet: error: no [space]"; exit 1;; esac; '
    script = failing + 'mkdir "$2"; cp "$1" "$2/score.json"'
    assert typed("--split", "train", "--jobs", "2", script=script) == 1
    said = capsys.readouterr().out.replace("\n", " ")
    assert "4 runs to evaluate on split train: 16 images with" in said
    assert "not finished: atss_focal_giou-seed0: exit code 1: no [space]" in said
    page = (folder / "table-train.md").read_text()
    assert "| aLRP, as published | 1 | 10.0 |" in page
    assert "| Focal + Smooth L1 | 1 | 20.0 |" in page
    assert "at 25 %" not in page
    # The table of the validation images is left alone.
    assert not (folder / "table.md").exists()

    assert typed("--split", "train") == 0
    assert "1 run to evaluate on split train" in capsys.readouterr().out.replace("\n", " ")
    assert "30" in (folder / "table-train.csv").read_text()
    assert typed("--split", "train", script="exit 1") == 0
    assert "to evaluate" not in capsys.readouterr().out


def test_being_interrupted_loses_no_evaluation(
    typed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    stop = 'case "$1" in *giou*) kill -INT $PPID; exec sleep 60;; esac; '
    script = stop + 'mkdir "$2"; cp "$1" "$2/score.json"'
    assert typed("--split", "train", script=script) == 130
    said = capsys.readouterr().out.replace("\n", " ")
    assert "not finished: atss_focal_giou-seed0: not evaluated on the split train" in said
    assert "Go on: " in said
    assert typed("--split", "train") == 0
    assert "1 run to evaluate" in capsys.readouterr().out


def test_a_split_that_is_not_there_is_named(
    typed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("--split", "tset") == 1
    assert "has no split 'tset'; it has train, val (--split)" in capsys.readouterr().err
