"""Executing runs as processes of their own, so many at a time, each on its device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

from rankdet.engine.files import RunError
from rankdet.experiments.folders import Images, Place, State, clear_false_start

Command = Callable[[Place], list[str]]
"""What to execute for a run: a program and its arguments."""

_POLL = 0.25
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    place: Place
    code: int
    """Exit code; negative: the signal that killed it."""
    said: str
    """Its last words, where it failed."""

    @property
    def failed(self) -> bool:
        """Whether it did."""
        return self.code != 0


@dataclass(frozen=True)
class Outcome:
    """What came of executing."""

    ended: tuple[Ended, ...]
    signal: int | None
    """The signal that stopped it, None if everything was executed."""

    @property
    def failed(self) -> tuple[Ended, ...]:
        """The runs that failed by themselves."""
        return tuple(each for each in self.ended if each.failed) if self.signal is None else ()


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def started(self, place: Place) -> None:
        """Take note that a run began or goes on."""

    def look(self, running: Sequence[Place]) -> None:
        """Take a look at those that are running."""

    def ended(self, how: Ended) -> None:
        """Take note that a process ended."""


def train_command(images: Images) -> Command:
    """Return the command that trains a run: `rankdet train`, as a user would type it."""

    def command(place: Place) -> list[str]:
        rankdet = [sys.executable, "-m", "rankdet.cli.main", "train"]
        if place.state is State.BEGUN:
            return [*rankdet, "--resume", str(place.folder), "--data", str(images.source)]
        sets = [part for change in place.run.changes for part in ("--set", change)]
        data = ["--data", str(images.source), "--recipe", place.run.recipe, *sets]
        return [*rankdet, *data, "--out", str(place.folder)]

    return command


def slots(jobs: int, *, gpus: int, environment: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """Return what each of the jobs that run at once adds to its environment.

    Args:
        jobs: that run at once, 1 or more.
        gpus: devices there are; each job gets one of them, in turn.
        environment: of this process, which may name the devices it has.

    Returns:
        For each job its device, and its share of the CPU cores as OMP_NUM_THREADS; a smaller number
        that is set already stays.
    """
    threads = max(len(cores()) // jobs, 1)
    given = environment.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        threads = min(threads, int(given))
    named = [each.strip() for each in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    devices = named if len(named) == gpus and all(named) else [str(i) for i in range(gpus)]
    made = []
    for job in range(jobs):
        own = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        if devices:
            own["CUDA_VISIBLE_DEVICES"] = devices[job % len(devices)]
        made.append(own)
    return tuple(made)


def cores() -> set[int] | range:
    """Return the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def execute(
    places: Sequence[Place],
    command: Command,
    environments: Sequence[Mapping[str, str]],
    watcher: Watcher,
    *,
    keep_open: Sequence[int] = (),
) -> Outcome:
    """Execute runs, as many at a time as there are environments; one that fails stops no other.

    SIGINT, SIGTERM and SIGHUP end it: each process is asked to save its state and leave, and is
    waited for. Asked a second time, they are killed.

    Args:
        places: runs that are not finished.
        command: what to execute for each. Its output goes to the log of the run.
        environments: what each job that runs at once adds to the environment.
        watcher: is told what happens.
        keep_open: file descriptors that the processes inherit.
    """
    waiting = deque(places)
    free = deque(environments)
    running: list[_Child] = []
    ended: list[Ended] = []
    with _asked() as asked:
        told = False
        while running or (waiting and not asked):
            while waiting and free and not asked:
                child = _start(waiting.popleft(), command, free[0], keep_open)
                if isinstance(child, Ended):
                    ended.append(child)
                    watcher.ended(child)
                    continue
                free.popleft()
                running.append(child)
                watcher.started(child.place)
            if asked and not told:
                told = True
                _signal(running, signal.SIGTERM)
            if len(asked) > 1:
                _signal(running, signal.SIGKILL)
            time.sleep(_POLL)
            for child in [each for each in running if each.process.poll() is not None]:
                running.remove(child)
                free.append(child.environment)
                ended.append(child.finish())
                watcher.ended(ended[-1])
            watcher.look([child.place for child in running])
        return Outcome(tuple(ended), asked[0] if asked else None)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep other processes from working in the folder of a table.

    Processes that inherit the descriptor hold the lock as well: should this one be killed, its runs
    go on, and nobody else may start them a second time.

    Args:
        folder: is made where it is not.

    Raises:
        RunError: another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("w") as file:
        _lock(file, folder)
        yield file.fileno()


@dataclass
class _Child:
    place: Place
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    log: IO[bytes]
    log_start: int

    def finish(self) -> Ended:
        self.log.close()
        code = self.process.returncode
        said = "" if code == 0 else _last_words(self.place.log, self.log_start)
        return Ended(self.place, code, said)


def _start(
    place: Place, command: Command, environment: Mapping[str, str], keep_open: Sequence[int]
) -> _Child | Ended:
    try:
        place.log.parent.mkdir(parents=True, exist_ok=True)
        if place.state is State.ABSENT:
            clear_false_start(place.folder)
        log = place.log.open("ab")
    except OSError as fault:
        return Ended(place, 1, f"cannot write beside {place.folder}: {fault}")
    # Read before the process shares the place in the file.
    start = log.tell()
    try:
        process = subprocess.Popen(
            command(place),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            # Ctrl-C on the terminal reaches this process alone, which then asks each run to leave:
            # asked twice, a run would not even save.
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )
    except OSError as fault:
        log.close()
        return Ended(place, 1, f"cannot be started: {fault}")
    return _Child(place, process, environment, log, start)


@contextmanager
def _asked() -> Iterator[list[int]]:
    """Collect the signals that ask to end, in the order they come."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):
        numbers.append(signal.SIGHUP)
    # Who started us with nohup does not want to be asked.
    before: dict[int, Any] = {
        number: signal.signal(number, note)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(running: Sequence[_Child], number: signal.Signals) -> None:
    for child in running:
        try:
            if number == signal.SIGKILL:  # with the processes that load its images
                os.killpg(child.process.pid, number)
            elif child.process.poll() is None:
                child.process.send_signal(number)
        except ProcessLookupError:
            pass


def _last_words(log: Path, start: int) -> str:
    """Return what a failed process said: its error where it names one, else its last line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("rankdet: error:")]
    if errors:
        return errors[-1].removeprefix("rankdet: error:").strip()
    return lines[-1] if lines else "it said nothing"


def _lock(file: IO[str], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows; there nothing keeps two from one folder
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        raise RunError(
            f"another `rankdet tables`, or a run that it started, is at work in {folder}; wait for "
            "it, stop it, or choose another folder with --out"
        ) from fault
