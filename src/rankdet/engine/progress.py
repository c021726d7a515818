"""What a person sees while a model trains, and the numbers that stay: bar, CSV, TensorBoard."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rankdet.engine.files import append_text, write_text

FIELDS = (
    "step", "seconds", "lr", "loss", "classification", "localisation", "balance", "positives",
    "AP", "AP50", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn",
)  # fmt: skip


class MetricsFile:
    """`metrics.csv`: a row for each note of the training, appended as it comes.

    Args:
        path: the file; rows after `step` are dropped, as the run goes on from there.
        step: the step the run starts from.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        kept: list[dict[str, str]] = []
        if step > 0 and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"] or 0) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_text(path, text.getvalue())

    def add(self, row: Mapping[str, float | None]) -> None:
        """Append a row; fields it does not have stay empty."""
        shown = {k: f"{v:.6g}" for k, v in row.items() if v is not None and k in FIELDS}
        if "step" in row:
            shown["step"] = str(int(row["step"] or 0))
        text = io.StringIO()
        csv.DictWriter(text, FIELDS).writerow(shown)
        append_text(self.path, text.getvalue())


class Bar:
    """A progress bar with the loss parts, the last AP and the time left.

    Where no terminal is, a line of text every 15 seconds.

    The time left is estimated from the steps of this session alone.
    """

    def __init__(self, console: Console, *, total: int, start: int, shown: bool = True) -> None:
        self.console = console
        self.total = total
        self.shown = shown
        self._start = start
        self._began = time.monotonic()
        self._paused = 0.0
        self._line = self._began
        self._progress: Progress | None = None
        if shown and console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]train"), BarColumn(bar_width=None), MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"), TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"), console=console, expand=True,
                refresh_per_second=4,
            )  # fmt: skip
            self._task = self._progress.add_task(
                "", total=total, completed=start, numbers="", left=""
            )

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        self._began = self._line = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, step: int, parts: Mapping[str, float], ap: float | None) -> None:
        """Show a step: the mean parts of the last few, and the AP of the last evaluation."""
        if not self.shown:
            return
        numbers = "  ".join(
            f"{short} {parts[name]:.3f}"
            for name, short in (
                ("loss", "loss"),
                ("classification", "cls"),
                ("localisation", "loc"),
            )
            if name in parts
        )
        if ap is not None:
            numbers += f"  AP {ap:.3f}"
        now = time.monotonic()
        each = (now - self._began - self._paused) / max(step - self._start, 1)
        left = f"{_clock(each * (self.total - step))} left"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, numbers=numbers, left=left)
        elif now - self._line >= 15 or step == self.total:
            self._line = now
            self.console.print(f"step {step}/{self.total}  {numbers}  {left}", highlight=False)

    def pause(self, seconds: float) -> None:
        """Leave out of the estimate what was spent on something else than training."""
        self._paused += seconds


def _clock(seconds: float) -> str:
    whole = round(max(seconds, 0))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def mean_parts(notes: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each part over several steps; reads tensors off their device."""
    names = notes[-1].keys() if notes else ()
    return {k: sum(float(n[k]) for n in notes if k in n) / len(notes) for k in names}
