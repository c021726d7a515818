"""`rankdet tables`: what it plans, executes, refuses and prints."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_runs import write_run

from rankdet.cli import main as door
from rankdet.cli import tables
from rankdet.cli.common import Voice
from rankdet.cli.running import splits
from rankdet.config.load import load_recipe
from rankdet.data.discover import discover
from rankdet.experiments import run as executing
from rankdet.experiments.folders import Images, Place
from rankdet.experiments.table import Scale, runs
from rankdet.experiments.tables import TABLES

SHORT = (
    "schedule.steps=4", "schedule.warmup_steps=1", "schedule.balance_period=1",
    "data.train_size=64", "data.test_shorter=64", "data.test_longer=64", "data.workers=0",
    "batch.size=2", "batch.micro=2", "training.log_every=1",
)  # fmt: skip
SETS = [part for change in SHORT for part in ("--set", change)]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(executing, "_POLL", 0.01)


def typed(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command with this verb alone."""
    whole = argparse.ArgumentParser(prog="rankdet")
    whole.add_argument("--print-completion")
    whole.add_argument("--debug", action="store_true")
    tables.add_to(whole.add_subparsers(dest="verb"))
    monkeypatch.setattr(door, "parser", lambda: whole)
    return door.main(["tables", *arguments])


def images_of(data: Path) -> Images:
    training, validation = splits(discover(data), load_recipe("demo"), Voice(quiet=True))
    objects = sum(int((~record.crowd).sum()) for record in validation.records)
    return Images(data.resolve(), len(training), len(validation), objects, len(validation.classes))


def prepare(folder: Path, data: Path, table: str = "a1", scale: Scale = "tiny") -> None:
    """Write finished runs of three seeds somewhere; a fake command copies them."""
    for run in runs(TABLES[table], scale, seeds=3, changes=SHORT):
        ap = (0.1, 0.2, 0.3, 0.4 + 0.01 * run.seed + 0.1 * ("alrp" in run.row))
        write_run(folder / run.name, run, steps=4, ap=ap, images=images_of(data))


def copying(prepared: Path, **scripts: str) -> executing.Command:
    """Return a command that puts a prepared run in place, or does something else for a row."""

    def command(place: Place) -> list[str]:
        script = scripts.get(place.run.row, 'rm -rf "$2"; cp -r "$1" "$2"')
        return ["sh", "-c", script, "sh", str(prepared / place.run.name), str(place.folder)]

    return command


def use(command: executing.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executing, "train_command", lambda _: command)


def steps_done(folder: Path) -> list[int]:
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    return [int(row.split(",")[0]) for row in rows]


def test_a_table_is_trained_once_and_printed_again(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole path with real, very short runs."""
    arguments = ["a2", "--data", str(digits), "--scale", "tiny", "--seeds", "1",
                 "--out", str(tmp_path), *SETS, "--set", "schedule.steps=2"]  # fmt: skip
    assert typed(*arguments, monkeypatch=monkeypatch) == 0
    folder = tmp_path / "a2-tiny"
    assert {path.name for path in folder.iterdir()} >= {
        "atss_own-seed0", "atss_alrp-seed0", "atss_own-seed0.log", "table.md", "table.csv"
    }  # fmt: skip
    kept = {path.name for path in (folder / "atss_own-seed0").iterdir()}
    assert kept >= {"recipe.yaml", "run.json", "log.txt", "metrics.csv", "score.json",
                    "report.html", "best.safetensors"}  # fmt: skip
    recipe = load_recipe(str(folder / "atss_own-seed0" / "recipe.yaml"))
    assert (recipe.name, recipe.model.centreness) == ("atss_own-tiny", True)
    assert steps_done(folder / "atss_alrp-seed0") == [1, 2, 2]
    page = (folder / "table.md").read_text()
    assert "| aLRP | 1 |" in page
    assert "published (COCO minitrain, R-50): AP" in page
    assert "with one seed: cannot say" in page
    assert "runs are finished already" not in capsys.readouterr().out

    # Another time nothing is trained: the command would fail if it were.
    use(copying(tmp_path, atss_own="exit 1", atss_alrp="exit 1"), monkeypatch)
    assert typed(*arguments, monkeypatch=monkeypatch) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out
    assert (folder / "table.md").read_text() == page
    assert typed(*arguments, "--dry-run", monkeypatch=monkeypatch) == 0
    assert "0 of 2 runs are left" in capsys.readouterr().out

    # The same models on other images.
    assert typed(*arguments, "--split", "train", monkeypatch=monkeypatch) == 0
    assert "2 runs to evaluate on split train: 16 images" in capsys.readouterr().out
    assert "| aLRP | 1 |" in (folder / "table-train.md").read_text()
    assert (folder / "atss_own-seed0" / "evaluation-train" / "report.html").is_file()


def test_the_held_out_images_do_not_depend_on_the_seed(digits: Path, tmp_path: Path) -> None:
    """Without a validation split all runs of a table have to make the same one."""
    folder = tmp_path / "unsplit"
    shutil.copytree(digits, folder)
    (folder / "annotations" / "val.json").unlink()
    found = discover(folder)
    held = []
    for run in runs(TABLES["a2"], "tiny", seeds=3):
        _, validation = splits(found, run.wanted, Voice(quiet=True))
        held.append([record.id for record in validation.records])
    assert all(ids == held[0] for ids in held)


def test_failures_are_shown_and_the_rest_is_printed(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(tmp_path / "prepared", digits)
    out = tmp_path / "out"
    use(copying(tmp_path / "prepared", fovea_ap="echo 'rankdet: error: NaN [x]'; exit 1"),
        monkeypatch)  # fmt: skip
    arguments = ["a1", "--data", str(digits), "--scale", "tiny", "--out", str(out), *SETS]
    assert typed(*arguments, "--jobs", "2", monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().out.replace("\n", " ")
    assert "9 runs to execute, 2 at a time" in said
    assert "NaN [x]; log: " in said
    assert "not finished: fovea_ap-seed2: exit code 1: NaN [x]" in said
    page = (out / "a1-tiny" / "table.md").read_text()
    assert "| aLRP | 3 | 20.0 ± 0.0 |" in page
    assert "AP: aLRP is 10.0 points above Focal + Smooth L1" in page
    assert "4 of 8 differences cannot be had" in page
    assert "fovea_ap-seed1: exit code 1: NaN [x]; log:" in page
    # What failed before it began is simply tried again.
    use(copying(tmp_path / "prepared"), monkeypatch)
    assert typed(*arguments, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "6 of 9 runs are finished already" in said
    assert "3 runs to execute, 1 at a time" in said


def test_interrupted_runs_need_to_be_resumed(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(tmp_path / "prepared", digits)
    begin = 'cp -r "$1" "$2"; rm "$2/score.json" "$2/report.html"; kill -INT $PPID; exec sleep 60'
    use(copying(tmp_path / "prepared", fovea_ap=begin), monkeypatch)
    arguments = ["a1", "--data", str(digits), "--scale", "tiny", "--out", str(tmp_path / "out")]
    assert typed(*arguments, *SETS, monkeypatch=monkeypatch) == 128 + signal.SIGINT
    said = capsys.readouterr().out.replace("\n", " ")
    assert "Go on: " in said
    assert "--resume" in said
    assert "not finished: fovea_ap-seed0: interrupted" in said
    assert "not finished: fovea_alrp-seed0: to do" in said
    assert (tmp_path / "out" / "a1-tiny" / "table.md").is_file()

    assert typed(*arguments, *SETS, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().err
    assert "holds runs that were begun and are not finished" in said
    assert "fovea_ap-seed0. Go on with them by --resume" in said
    assert typed(*arguments, *SETS, "--dry-run", monkeypatch=monkeypatch) == 0
    assert "8 of 9 runs are left" in capsys.readouterr().out.replace("\n", " ")
    states = []

    def resuming(place: Place) -> list[str]:
        states.append((place.run.name, place.state.value))
        return copying(tmp_path / "prepared")(place)

    use(resuming, monkeypatch)
    assert typed(*arguments, *SETS, "--resume", monkeypatch=monkeypatch) == 0
    assert len(states) == 8
    assert ("fovea_ap-seed0", "interrupted") in states
    assert ("fovea_alrp-seed2", "to do") in states


def test_a_dry_run_says_what_it_takes_and_does_nothing(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["a4", "--data", str(digits), "--scale", "tiny", "--seeds", "2", "--dry-run",
                 "--out", str(tmp_path / "out"), *SETS, "--set", "schedule.steps=1000"]  # fmt: skip
    assert typed(*arguments, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "12 of 12 runs are left: how long they take is unknown; run with --measure" in said
    assert "retinanet_alrp-w5: retinanet_alrp_published-small criterion.balance.kind=scalar" in said
    assert "12 runs of 100 epochs of 25,000 images, 78,125 steps of 32 images each" in said
    assert "30 million images" in said
    assert "Hours at that scale are not known" in said
    assert not (tmp_path / "out").exists()
    assert typed(*arguments, "--rows", "retinanet_alrp, retinanet_alrp-w5",
                 monkeypatch=monkeypatch) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "4 of 4 runs are left" in said
    assert "retinanet_alrp-w1" not in said
    assert typed(*arguments, "--rows", "atss_own", monkeypatch=monkeypatch) == 1
    assert "--rows atss_own: table a4 has no row 'atss_own'" in capsys.readouterr().err

    # A run of another seed and another table, with half a second a step, and one at paper scale.
    changes = (*SHORT, "schedule.steps=1000")
    here = runs(TABLES["a4"], "tiny", seeds=8, changes=changes)[-1]
    write_run(tmp_path / "out" / "a4-tiny" / here.name, here, images=images_of(digits))
    paper = runs(TABLES["a3"], "paper", seeds=1)[-1]
    write_run(tmp_path / "out" / "a3-paper" / paper.name, paper, step_seconds=0.36)
    assert typed(*arguments, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "about 16:40 of training at 1 at a time, and 10 runs of unknown length" in said
    # 2 runs of 78,125 steps of 0.36 seconds.
    assert "16 hours of training on one such device for 2 of them" in said
    assert "1 run on 2 CPU threads" in said


def test_steps_are_timed_on_the_data(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rankdet.experiments import measuring

    monkeypatch.setattr(measuring, "STEPS", 1)
    monkeypatch.setattr(measuring, "_WARM_UP", 1)
    arguments = ["a2", "--data", str(digits), "--scale", "tiny", "--out", str(tmp_path / "out")]
    assert typed(*arguments, *SETS, "--dry-run", "--measure", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "timing 1 steps of atss_own" in said
    assert "6 of 6 runs are left: about " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--measure",), "--measure goes with --dry-run"),
        (("--set", "training.seed=3"), "the seeds of a table are given by --seeds"),
        (("--set", "optimizer.learning_rate=1"), "optimizer.lr"),
        (("--data", "nowhere"), "nowhere"),
        (("--dry-run", "--out", __file__), "is a file; name a folder"),
    ],
)
def test_wrong_calls_leave_nothing_behind(
    arguments: Sequence[str], said: str, digits: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    whole = ["a1", "--data", str(digits), "--scale", "tiny", *arguments]
    assert typed(*whole, monkeypatch=monkeypatch) == 1
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_counts_are_counts(
    count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        typed("a1", "--data", "x", "--scale", "tiny", "--seeds", count, monkeypatch=monkeypatch)
    assert left.value.code == 2
    assert "must be a whole number, 1 or more" in capsys.readouterr().err


def test_images_that_are_missing_stop_it_before_anything_runs(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    for image in (data / "images").iterdir():
        image.unlink()
    out = tmp_path / "out"
    assert typed("a1", "--data", str(data), "--scale", "tiny", "--out", str(out),
                 monkeypatch=monkeypatch) == 1  # fmt: skip
    assert "train_000000.png" in capsys.readouterr().err
    assert not out.exists()


def test_data_that_changed_under_a_table_are_noticed(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    prepare(out / "a1-tiny", digits)
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    file = data / "annotations" / "val.json"
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    arguments = ["a1", "--scale", "tiny", "--out", str(out), *SETS, "--data"]
    assert typed(*arguments, str(data), monkeypatch=monkeypatch) == 1
    assert "objects, and now there are" in capsys.readouterr().err
    assert typed(*arguments, str(digits), monkeypatch=monkeypatch) == 0
