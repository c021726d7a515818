"""What a person sees while runs are executed: a line for each that is running."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rankdet.engine.progress import FIELDS
from rankdet.experiments.folders import METRICS, Place, State
from rankdet.experiments.run import Ended

# So much of the end of a log is read to see how far a run is.
_TAIL = 4096
_LOOK_EVERY = 1.0
_LINE_EVERY = 60.0


class Progressing:
    """Shows runs with steps done and time left; lines of text where there is no terminal.

    Args:
        console: to show it on.
        say: prints a line that stays, with rich's markup.
        steps: of each run, by its name.
        total: number of runs to be executed.
    """

    def __init__(
        self,
        console: Console,
        say: Callable[[str], None],
        *,
        steps: Mapping[str, int],
        total: int,
    ) -> None:
        self.console = console
        self.say = say
        self.steps = steps
        self.total = total
        self.done = 0
        self._begun: dict[str, float] = {}
        self._looked = self._line = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"), console=console, refresh_per_second=2,
            )  # fmt: skip

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def started(self, place: Place) -> None:
        """Say that a run began or goes on."""
        name = place.run.name
        self._begun[name] = time.monotonic()
        verb = "goes on" if place.state is State.BEGUN else "begins"
        self.say(f"{name} {verb}; log: {escape(str(place.log))}")
        if self._progress is not None:
            self._tasks[name] = self._progress.add_task(
                escape(name), total=self.steps[name], left="begins"
            )

    def look(self, running: Sequence[Place]) -> None:
        """Show how far each is."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        told = self._progress is None and now - self._line >= _LINE_EVERY
        if not (self._progress or told):
            return
        lines = []
        for place in running:
            name, total = place.run.name, self.steps[place.run.name]
            step, each = how_far(place.folder / METRICS)
            left = "" if each is None else f"{clock(each * max(total - step, 0))} left"
            lines.append(f"{name} step {step}/{total} {left}".rstrip())
            if self._progress is not None:
                self._progress.update(self._tasks[name], completed=step, left=left)
        if told and lines:
            self._line = now
            self.say("; ".join(lines))

    def ended(self, how: Ended) -> None:
        """Say how a process ended."""
        name = how.place.run.name
        seconds = time.monotonic() - self._begun.pop(name, time.monotonic())
        if self._progress is not None and name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
        self.done += 1
        self.say(_how_it_ended(how, seconds, f"({self.done} of {self.total})"))


class Counting:
    """Says of each evaluation of a run how it ended, and how many there are.

    Args:
        console: of the bar, which is shown where it is a terminal.
        say: prints a line that stays, with rich's markup.
        total: number of evaluations.

    Attributes:
        bar: to be entered around them.
    """

    def __init__(self, console: Console, say: Callable[[str], None], *, total: int) -> None:
        self.say = say
        self.total = total
        self.done = 0
        self._begun: dict[str, float] = {}
        self.bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
            console=console, refresh_per_second=2, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self.bar.add_task("evaluated", total=total)

    def started(self, place: Place) -> None:
        """Take note that an evaluation began."""
        self._begun[place.run.name] = time.monotonic()

    def look(self, running: Sequence[Place]) -> None:
        """Do nothing: an evaluation does not tell how far it is."""

    def ended(self, how: Ended) -> None:
        """Say how a process ended."""
        seconds = time.monotonic() - self._begun.pop(how.place.run.name, time.monotonic())
        self.done += 1
        self.bar.update(self._task, completed=self.done)
        self.say(_how_it_ended(how, seconds, f"({self.done} of {self.total})"))


def _how_it_ended(how: Ended, seconds: float, count: str) -> str:
    name, took = how.place.run.name, clock(seconds)
    if not how.failed:
        return f"{name} is finished after {took} {count}"
    said, log = escape(how.said), escape(str(how.place.log))
    return (
        f"[yellow]{name} ended with code {how.code} after {took} {count}:[/yellow] {said}; "
        f"log: {log}"
    )


def how_far(metrics: Path) -> tuple[int, float | None]:
    """Return the last step that a run has noted, and the seconds of a step of late.

    Only the end of the file is read, so that it does not matter how long a run is. Nothing readable
    there is 0 steps.
    """
    try:
        with metrics.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL, 0))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return 0, None
    notes = []
    # The first line may be cut off, the last one is not finished.
    for line in lines[1:-1]:
        row = dict(zip(FIELDS, line.rstrip("\r").split(","), strict=False))
        try:
            notes.append((int(row["step"]), float(row["seconds"])))
        except (KeyError, ValueError):
            continue
    if not notes:
        return 0, None
    (first, began), (last, ended) = notes[0], notes[-1]
    return last, (ended - began) / (last - first) if last > first and ended > began else None


def clock(seconds: float) -> str:
    """Return a time as hours and minutes, or minutes and seconds.

    Example:
        >>> clock(75), clock(7260), clock(360_000)
        ('1:15', '2 h 01 min', '100 h')
    """
    whole = round(max(seconds, 0))
    hours, rest = divmod(whole, 3600)
    if hours >= 100:
        return f"{hours} h"
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60}:{rest % 60:02d}"
