"""What finished runs measured, read from their folders."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rankdet.engine.files import RunError
from rankdet.eval.files import read_score
from rankdet.eval.score import CountScore, Score, count_label
from rankdet.experiments.folders import METRICS, SCORE, Place, settings_of
from rankdet.experiments.table import Measure, Run, Table

POINTS = 100.0
"""AP and errors are in [0, 1] in a run's files, and in points here, as the papers print them."""

# How far from the wanted share of the schedule an evaluation may lie.
_NEAR = 0.01
_NO_TERMS = frozenset({"step", "seconds", "lr"})

Grid = Mapping[tuple[str, str], Mapping[int, float]]
"""By row and measure: points by seed. What was not measured is not there."""


@dataclass(frozen=True)
class Evaluation:
    """A row of `metrics.csv` that holds an evaluation."""

    step: int
    numbers: Mapping[str, float]
    """AP, oLRP and its parts in [0, 1]; what nothing stands behind is not there."""


@dataclass(frozen=True)
class Note:
    """A row of `metrics.csv` that was written while training."""

    step: int
    numbers: Mapping[str, float]
    """The loss and its terms, means since the note before; which, depends on the loss."""


@dataclass(frozen=True)
class Metrics:
    """`metrics.csv` of a run."""

    steps: int
    """The last that was noted."""
    evaluations: tuple[Evaluation, ...]
    step_seconds: float | None
    """Of training, the median over the notes; None with too few of them."""
    seconds: float
    """Of training in all sessions, nearly: what was repeated after a resume does not count."""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a finished run measured."""

    run: Run
    folder: Path
    metrics: Metrics
    score: Score
    """Of the best evaluation; of the only one unless the recipe has more."""
    settings: Mapping[str, Any]
    """From `run.json`."""

    @property
    def last(self) -> Evaluation:
        """The evaluation at the end."""
        return self.metrics.evaluations[-1]

    @property
    def score_is_of_the_end(self) -> bool:
        """Whether `score` is that of the last evaluation."""
        return all(
            _six_digits(getattr(self.score, key)) == self.last.numbers.get(key)
            for key in ("AP", "oLRP")
        )

    def value(self, measure: Measure) -> float | None:
        """Return a number in points, or None where there is none."""
        if measure.of == "pearson":
            number = self.score.correlation.pearson
        elif measure.objects is not None:
            found = self.bin(measure.objects)
            number = None if found is None else getattr(found, measure.of)
        else:
            at = self.at(measure.share)
            number = None if at is None else at.numbers.get(measure.of)
        return None if number is None else number * POINTS

    def at(self, share: float) -> Evaluation | None:
        """Return the evaluation after a share of the run, None if none lies near."""
        total = self.metrics.steps
        nearest = min(self.metrics.evaluations, key=lambda each: abs(each.step - share * total))
        return nearest if abs(nearest.step - share * total) <= _NEAR * total else None

    def bin(self, objects: str) -> CountScore | None:
        """Return the numbers of the images with so many objects."""
        bins = self.score.by_count
        return next((each for each in bins if count_label(each.low, each.high) == objects), None)


def read_metrics(path: Path) -> Metrics:
    """Read `metrics.csv`.

    Raises:
        RunError: it cannot be read, or is not what a run writes.
    """
    evaluations, times, notes = [], [], []
    steps = 0
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                steps = max(steps, step)
                # A note of the training has a learning rate; an evaluation may have no AP.
                if row["lr"]:
                    times.append((step, float(row["seconds"])))
                    terms = {
                        name: float(value)
                        for name, value in row.items()
                        if value and name not in _NO_TERMS
                    }
                    notes.append(Note(step, terms))
                    continue
                numbers = {
                    name: float(row[name])
                    for name in ("AP", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn")
                    if row[name]
                }
                evaluations.append(Evaluation(step, numbers))
    except (OSError, KeyError, TypeError, ValueError) as fault:
        raise RunError(
            f"{path} is not the log of a run ({type(fault).__name__}: {fault}); remove the folder "
            "to have it run again"
        ) from fault
    return Metrics(steps, tuple(evaluations), _step_seconds(times), _seconds(times), tuple(notes))


def read_result(place: Place) -> Result:
    """Read the folder of a finished run.

    Raises:
        RunError: its log cannot be read.
        EvaluationFileError: its score or settings cannot be read.
    """
    metrics = read_metrics(place.folder / METRICS)
    if not metrics.evaluations:
        raise RunError(
            f"{place.folder / METRICS} holds no evaluation; remove the folder to have it run again"
        )
    return Result(
        run=place.run,
        folder=place.folder,
        metrics=metrics,
        score=read_score(place.folder / SCORE),
        settings=settings_of(place.folder),
    )


def grid(table: Table, results: Iterable[Result]) -> Grid:
    """Return all numbers of a table.

    Args:
        table: which.
        results: of its runs, as far as they are there.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    for result in results:
        for measure in table.measures:
            value = result.value(measure)
            if value is not None:
                found.setdefault((result.run.row, measure.name), {})[result.run.seed] = value
    return found


def images_of_bins(results: Sequence[Result]) -> dict[str, int]:
    """Return the number of validation images of each bin, by its label."""
    return {
        count_label(each.low, each.high): each.images
        for result in results[:1]
        for each in result.score.by_count
    }


def caveats(table: Table, results: Sequence[Result]) -> list[str]:
    """Say what forbids to compare runs, or makes it doubtful."""
    said = []
    if len({_images(result.score) for result in results}) > 1:
        said.append(
            "The runs were not validated on the same images: their numbers cannot be compared. "
            "The objects of a class differ between them."
        )
    kept = [measure.name for measure in table.measures if measure.of_kept_model]
    chosen = [result.run.name for result in results if not result.score_is_of_the_end]
    if kept and chosen:
        said.append(
            f"What stands under {'; '.join(kept)} is of the best evaluation, not of the last, in "
            f"{', '.join(chosen)}; evaluate once to have the last."
        )
    machines = {_machine(result.settings) for result in results}
    commits = {str(result.settings.get("commit")) for result in results}
    for many, what in ((commits, "commit"), (machines, "machine")):
        if len(many) > 1:
            said.append(f"The runs are not all of the same {what}.")
    return said


def _six_digits(number: float | None) -> float | None:
    """Return a number as `metrics.csv` has it."""
    return None if number is None else float(f"{number:.6g}")


def _images(score: Score) -> tuple[object, ...]:
    """What tells one set of validation images from another."""
    return (score.images, *((each.name, each.objects) for each in score.per_class))


def _machine(settings: Mapping[str, Any]) -> str:
    return f"{settings.get('platform')}, {settings.get('gpus')}, {settings.get('packages')}"


def _step_seconds(notes: Sequence[tuple[int, float]]) -> float | None:
    """Return the median seconds of a step; seconds begin again with each session."""
    each = [
        (after - before) / (later - earlier)
        for (earlier, before), (later, after) in pairwise(notes)
        if later > earlier and after > before
    ]
    return statistics.median(each) if each else None


def _seconds(notes: Sequence[tuple[int, float]]) -> float:
    total, before = 0.0, 0.0
    for _, seconds in notes:
        total += seconds - before if seconds >= before else seconds
        before = seconds
    return total
