"""Executing runs: slots, failures, signals, locks; the runs are small shell scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_runs import IMAGES
from rich.console import Console

from rankdet.engine.files import RunError
from rankdet.engine.progress import MetricsFile
from rankdet.experiments import run as executing
from rankdet.experiments.folders import Place, State
from rankdet.experiments.run import Ended, execute, locked, slots, train_command
from rankdet.experiments.table import runs
from rankdet.experiments.tables import TABLES
from rankdet.experiments.watching import Progressing, clock, how_far

RUNS = runs(TABLES["a3"], "tiny", seeds=1)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executing, "_POLL", 0.01)


@dataclass
class Notes:
    """Takes note of everything, and sends signals once a run says that it is ready."""

    signals: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    most: int = 0

    def started(self, place: Place) -> None:
        self.names.append(place.run.name)

    def look(self, running: Sequence[Place]) -> None:
        self.most = max(self.most, len(running))
        if self.signals and all("ready" in place.log.read_text() for place in running):
            os.kill(os.getpid(), self.signals.pop(0))

    def ended(self, how: Ended) -> None:
        self.names.append(f"{how.place.run.name} {how.code}")


def places(folder: Path, state: State = State.ABSENT) -> list[Place]:
    return [Place(run, folder / run.name, state) for run in RUNS]


def shell(**scripts: str) -> executing.Command:
    """Return a command: a script by the name of the row, "other" for all others."""

    def command(place: Place) -> list[str]:
        script = scripts.get(place.run.row, scripts.get("other", "true"))
        return ["sh", "-c", script, "sh", str(place.folder)]

    return command


def test_slots_are_kept_and_used_again(tmp_path: Path) -> None:
    notes = Notes()
    command = shell(other='echo "$SLOT"; sleep 0.1')
    outcome = execute(places(tmp_path), command, [{"SLOT": "a"}, {"SLOT": "b"}], notes)
    assert [each.code for each in outcome.ended] == [0, 0, 0]
    assert (outcome.failed, outcome.signal, notes.most) == ((), None, 2)
    said = [place.log.read_text().strip() for place in places(tmp_path)]
    assert said[:2] == ["a", "b"]
    assert said[2] in ("a", "b")


def test_a_failure_stops_no_other_and_says_why(tmp_path: Path) -> None:
    (failing, *_) = places(tmp_path)
    failing.log.write_text("rankdet: error: of last week\n")
    command = shell(
        retinanet_focal='echo "rankdet: error: no images"; echo "goodbye"; exit 1',
        retinanet_ap="echo Traceback; echo KeyError: 7; exit 3",
    )
    outcome = execute(places(tmp_path), command, [{}], Notes())
    codes = {each.place.run.row: (each.code, each.said) for each in outcome.ended}
    assert codes == {
        "retinanet_focal": (1, "no images"),
        "retinanet_ap": (3, "KeyError: 7"),
        "retinanet_alrp": (0, ""),
    }
    assert len(outcome.failed) == 2


def test_words_of_an_earlier_session_are_not_this_ones(tmp_path: Path) -> None:
    (failing, *_) = places(tmp_path)
    failing.log.write_text("rankdet: error: of last week\n")
    outcome = execute([failing], shell(other="exit 1"), [{}], Notes())
    assert outcome.failed[0].said == "it said nothing"


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    outcome = execute(places(tmp_path), lambda _: ["/no/such/program"], [{}], Notes())
    assert len(outcome.failed) == 3
    assert all("/no/such/program" in each.said for each in outcome.failed)


WAITING = 'trap "echo saved; exit 143" TERM; echo ready; while :; do sleep 0.02; done'


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_runs_save_and_starts_no_more(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    notes = Notes([number])
    outcome = execute(places(tmp_path), shell(other=WAITING), [{}, {}], notes)
    assert outcome.signal == number
    assert [each.code for each in outcome.ended] == [143, 143]
    assert outcome.failed == ()
    assert all("saved" in place.log.read_text() for place in places(tmp_path)[:2])
    assert not places(tmp_path)[2].log.exists()
    assert signal.getsignal(number) is before


def test_asked_twice_they_are_killed(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.02; done"
    notes = Notes([signal.SIGINT, signal.SIGINT])
    outcome = execute(places(tmp_path)[:1], shell(other=stubborn), [{}], notes)
    assert outcome.ended[0].code == -signal.SIGKILL


def test_slots_share_cores_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executing, "cores", lambda: range(8))

    def of(key: str, jobs: int, gpus: int, **environment: str) -> list[str | None]:
        return [each.get(key) for each in slots(jobs, gpus=gpus, environment=environment)]

    assert of("OMP_NUM_THREADS", 3, 0) == ["2", "2", "2"]
    assert of("OMP_NUM_THREADS", 20, 0) == ["1"] * 20
    assert of("OMP_NUM_THREADS", 2, 0, OMP_NUM_THREADS="1") == ["1", "1"]
    assert of("OMP_NUM_THREADS", 2, 0, OMP_NUM_THREADS="99") == ["4", "4"]
    assert of("OMP_NUM_THREADS", 2, 0, OMP_NUM_THREADS="4,2") == ["4", "4"]
    assert of("CUDA_VISIBLE_DEVICES", 2, 0) == [None, None]
    assert of("CUDA_VISIBLE_DEVICES", 3, 2) == ["0", "1", "0"]
    assert of("CUDA_VISIBLE_DEVICES", 3, 2, CUDA_VISIBLE_DEVICES="4,6") == ["4", "6", "4"]


def test_what_is_typed_for_a_run(tmp_path: Path) -> None:
    command = train_command(IMAGES)
    (place, *_) = places(tmp_path)
    typed = command(place)
    assert typed[1:4] == ["-m", "rankdet.cli.main", "train"]
    assert typed[4:8] == ["--data", "/data/cats", "--recipe", "retinanet_focal-small"]
    assert typed[-4:] == ["--set", "training.seed=0", "--out", str(place.folder)]
    begun = command(Place(place.run, place.folder, State.BEGUN))
    assert begun[4:] == ["--resume", str(place.folder), "--data", "/data/cats"]


def test_two_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "t") as lock:
        with pytest.raises(RunError, match="at work in"), locked(tmp_path / "t"):
            pass
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    try:
        with pytest.raises(RunError, match="a run that it started"), locked(tmp_path / "t"):
            pass
    finally:
        orphan.kill()
        orphan.wait()
    with locked(tmp_path / "t"):
        pass


def test_how_far_a_run_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert how_far(path) == (0, None)
    file = MetricsFile(path, step=0)
    assert how_far(path) == (0, None)
    for step in range(10, 3001, 10):
        file.add({"step": step, "seconds": step * 0.25, "lr": 0.1, "loss": 0.123456})
    step, each = how_far(path)
    assert step == 3000
    assert each == pytest.approx(0.25)
    with path.open("a") as cut:
        cut.write("3010,75")
    assert how_far(path)[0] == 3000
    assert clock(3599) == "59:59"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_person_sees(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankdet.experiments import watching

    monkeypatch.setattr(watching, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(watching, "_LINE_EVERY", 0.0)
    said: list[str] = []

    def shows(text: str) -> bool:
        screen.flush()
        return text in (tmp_path / "screen").read_text()

    with (tmp_path / "screen").open("w") as screen:
        console = Console(file=screen, force_terminal=terminal, width=100)
        steps = {run.name: 1000 for run in RUNS}
        (first, second, _) = places(tmp_path, State.BEGUN)
        first.folder.mkdir()
        notes = MetricsFile(first.folder / "metrics.csv", step=0)
        for step in (10, 20):
            notes.add({"step": step, "seconds": step * 0.5, "lr": 0.1})
        with Progressing(console, said.append, steps=steps, total=2) as watcher:
            watcher.started(first)
            watcher.started(second)
            watcher.look([first, second])
            deadline = time.monotonic() + 10
            while terminal and time.monotonic() < deadline and not shows("8:10 left"):
                time.sleep(0.05)
            watcher.ended(Ended(first, 0, ""))
            watcher.ended(Ended(second, 1, "no [disk]"))
    text = "\n".join(said)
    assert "retinanet_focal-seed0 goes on; log:" in text
    assert "retinanet_focal-seed0 is finished after " in text
    assert "(1 of 2)" in text
    assert "no \\[disk]" in text
    shown = (tmp_path / "screen").read_text() if terminal else text
    assert "20/1000" in shown
    assert "8:10 left" in shown
