"""Training by the command: the whole path, interruptions, several processes, NaN."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import settings

from rankdet.cli import running
from rankdet.cli.main import main
from rankdet.config.assemble import Hardware, make_plan
from rankdet.config.load import load_recipe
from rankdet.config.recipe import RecipeError
from rankdet.engine.checkpoint import load_model, load_state
from rankdet.engine.files import RunError
from rankdet.engine.keeping import KeepState

COMMAND = [sys.executable, "-m", "rankdet.cli.main"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


def train_arguments(digits: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--data", str(digits), "--recipe", "demo", "--out", str(out), *settings(*more)]


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    torch.set_num_threads(1)
    assert main(train_arguments(digits, out)) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_state(folder / "last.ckpt")["state_dict"]
    return state


def assert_same_weights(one: Path, other: Path) -> None:
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=1e-6)


def test_a_run_folder_explains_itself(run: Path) -> None:
    kept = {path.name for path in run.iterdir()}
    assert kept >= {
        "recipe.yaml", "run.json", "log.txt", "metrics.csv", "last.ckpt", "best.safetensors",
        "detections.json", "score.json", "report.html", "pictures", "tensorboard",
    }  # fmt: skip
    rows = (run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "2", "3", "3", "4", "5", "6", "6"]
    about = json.loads((run / "run.json").read_text())
    assert about["packages"]["torch"] == torch.__version__.split("+")[0] or about["packages"]
    _, card = load_model(run / "best.safetensors")
    assert card.classes == tuple("0123456789")
    assert len(card.thresholds) == 10
    assert "kind: alrp" in card.recipe
    assert card.metrics is not None
    assert card.metrics["AP"] == json.loads((run / "score.json").read_text())["AP"]


def test_a_killed_run_ends_as_one_that_was_not(run: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    # Long enough to be killed in the middle, wherever that is; the schedule is that of the whole.
    process = start(*train_arguments(digits, out, "training.checkpoint_every=1"))
    state = out / "last.ckpt"
    deadline = time.monotonic() + 300
    while not state.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    reached = load_state(state)["global_step"]
    assert 0 < reached < 6, "the run was killed before its first or after its last step"
    assert main(["train", "--resume", str(out)]) == 0
    assert_same_weights(out, run)
    steps = [row.split(",")[0] for row in (out / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == ["1", "2", "3", "3", "4", "5", "6", "6"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(
    run: Path, digits: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "stopped"
    process = start(*train_arguments(digits, out, "training.checkpoint_every=1", "data.workers=1"))
    deadline = time.monotonic() + 300
    while not (out / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 128 + number, said
    assert "rankdet train --resume" in said
    assert main(["train", "--resume", str(out)]) == 0
    assert_same_weights(out, run)


def test_who_interrupts_twice_is_let_go_and_told_how_to_go_on(
    run: Path, digits: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, after_step = tmp_path / "stopped", KeepState.after_step

    def twice(self: KeepState, trainer: Any, module: Any, *, last: bool) -> None:
        after_step(self, trainer, module, last=last)
        if trainer.global_step == 4 and not resumed:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    resumed = False
    monkeypatch.setattr(KeepState, "after_step", twice)
    before = signal.getsignal(signal.SIGINT)
    assert main(train_arguments(digits, out)) == 130
    assert signal.getsignal(signal.SIGINT) == before
    said = " ".join(capsys.readouterr().out.split())
    assert "interrupted at once; what was saved before is kept" in said
    assert f"Go on: rankdet train --resume {out}" in said
    resumed = True
    assert main(["train", "--resume", str(out)]) == 0
    assert_same_weights(out, run)


def test_a_finished_run_is_not_continued(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run)]) == 1
    assert "is complete" in capsys.readouterr().err


def test_a_run_that_does_not_say_where_its_images_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    for content, said in (("{}", "data is missing"), ("{", "cannot be read")):
        (copy / "run.json").write_text(content)
        assert main(["train", "--resume", str(copy)]) == 1
        message = capsys.readouterr().err.replace("\n", " ")
        assert "run.json" in message
        assert said in message


def test_a_recipe_called_like_folders_gets_one_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert running.new_folder(None, "photos-../../mine") == Path("runs/photos-..-..-mine")


def test_two_processes_train_together(digits: Path, tmp_path: Path) -> None:
    """Both see their own images and end with the same weights, balance and evaluation."""
    out = tmp_path / "ddp"
    process = start(
        *train_arguments(digits, out, "batch.micro=2"),
        "--devices", "2", "--strategy", "ddp", "--accelerator", "cpu",
    )  # fmt: skip
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert said.count("What was found") == 1, "only the first process speaks"
    assert "ranks within a micro-batch" in said
    score = json.loads((out / "score.json").read_text())
    assert score["images"] == 6


def test_processes_that_torchrun_starts_train_together(digits: Path, tmp_path: Path) -> None:
    """The first of them speaks and writes, as if it had started the others."""
    out = tmp_path / "torchrun"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m",
         *COMMAND[2:], *train_arguments(digits, out, "batch.micro=2"),
         "--devices", "2", "--accelerator", "cpu"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("What was found") == 1
    assert {path.name for path in out.iterdir()} >= {
        "recipe.yaml", "run.json", "log.txt", "best.safetensors", "score.json", "report.html"
    }  # fmt: skip
    assert json.loads((out / "score.json").read_text())["images"] == 6
    assert main(["train", "--resume", str(out)]) == 1  # it is complete


@pytest.mark.parametrize(
    ("told", "first", "apart"),
    [
        ({}, True, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True, True),  # torchrun
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False, True),  # what Lightning starts
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "SLURM_PROCID": "0"}, False, True),
        ({"NODE_RANK": "0"}, True, True),  # one command on each machine
        ({"NODE_RANK": "1"}, False, True),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, True, True),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "3"}, False, True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, True, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, True, False),
    ],
)
def test_who_is_first_of_several_processes(
    told: dict[str, str], first: bool, apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_NTASKS",
                 "SLURM_JOB_NAME", "RANKDET_RUN_FOLDER"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert running.is_first() == first
    assert running.started_apart() == apart
    if apart:
        with pytest.raises(RunError, match="give --out DIR"):
            running.new_folder(None, "name")
    else:
        assert running.new_folder(None, "name") == Path("runs") / "name"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    if first:
        with pytest.raises(RunError, match="not empty"):
            running.new_folder(str(tmp_path / "run"), "name")
    else:  # the first has been here
        assert running.new_folder(str(tmp_path / "run"), "name") == tmp_path / "run"


def test_nan_stops_the_run_and_keeps_the_last_state(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nan"
    # Batch normalisation would keep even this from becoming NaN.
    changes = settings("criterion.localisation=ranked", "criterion.balance.kind=self",
                       "optimizer.lr=100", "optimizer.clip=1e6", "optimizer.kind=sgd",
                       "model.head_norm=group", "training.checkpoint_every=1",
                       "schedule.warmup_steps=0")  # fmt: skip
    arguments = ["train", "--data", str(digits), "--recipe", "demo", "--out", str(out)]
    assert main([*arguments, *changes]) == 1
    said = capsys.readouterr().err
    assert "the loss became" in said
    assert "at step" in said
    assert "images" in said
    if (out / "last.ckpt").is_file():
        assert all(bool(value.isfinite().all()) for value in weights(out).values())


def test_accumulation_is_said(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "accumulated"
    assert main(train_arguments(digits, out, "batch.micro=2", "schedule.steps=2")) == 0
    said = capsys.readouterr().out
    assert "adds up 2 x 1 micro-batches of 2" in said.replace("\n", " ")


@pytest.mark.parametrize(("devices", "would_do"), [(2, []), (3, ["batch.size=9"])])
def test_a_batch_that_does_not_divide_is_answered_with_one_that_does(
    devices: int, would_do: list[str]
) -> None:
    recipe = load_recipe("atss_alrp-small", ["batch.size=8", "batch.micro=8"])
    hardware = Hardware(accelerator="cpu", devices=devices)
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe, 100, hardware)
    changes = re.findall(r"--set (\S+)", str(caught.value))
    assert [change for change in changes if "size" in change] == would_do
    make_plan(load_recipe("atss_alrp-small", ["batch.size=8", *changes]), 100, hardware)


def test_the_recipe_is_printed_and_nothing_else_happens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["train", "--recipe", "demo", "--set", "optimizer.lr=0.01", "--print-config"]
    assert main(arguments) == 0
    assert "lr: 0.01" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Give --data"),
        (("--resume", "nowhere"), "holds no run"),
        (("--data", "x", "--recipe", "retinanet_r50_alpr"), "retinanet_r50_alrp"),
        (("--data", "x", "--set", "optimizer.learning_rate=1"), "optimizer.lr"),
        (("--data", "nowhere", "--recipe", "demo"), "nowhere"),
        (("--data", "x", "--recipe", "demo", "--accelerator", "tpu2"), "cpu, cuda, gpu"),
        (("--data", "x", "--recipe", "demo", "--accelerator", "tpu"), "there is none here"),
        (("--data", "x", "--recipe", "demo", "--strategy", "dpd"), "auto, ddp"),
    ],
)
def test_wrong_calls_are_answered(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
