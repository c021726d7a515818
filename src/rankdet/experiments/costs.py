"""What a table would cost: runs, steps, epochs, and hours where a step has been measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankdet.config.build import total_steps
from rankdet.config.recipe import RecipeError
from rankdet.engine.files import RunError
from rankdet.eval.files import EvaluationFileError
from rankdet.experiments.collect import read_metrics
from rankdet.experiments.folders import (
    METRICS,
    Images,
    Place,
    State,
    differing_keys,
    recipe_of,
    settings_of,
    state_of,
    steps_of,
)
from rankdet.experiments.table import Run, Scale, Table, runs
from rankdet.experiments.watching import clock, how_far
from rankdet.wording import counted


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimiser step, as measured."""

    seconds: float
    origin: str
    """Where, in words."""


@dataclass(frozen=True)
class Planned:
    """A run with what is left of it."""

    place: Place
    steps: int
    left: int
    """Steps to do."""
    epochs: float
    """Of the whole run."""
    step: StepTime | None

    @property
    def seconds(self) -> float | None:
        """What is left, of training alone; None where no step was measured."""
        if self.left == 0:
            return 0.0
        return None if self.step is None else self.left * self.step.seconds


def plan(
    places: Sequence[Place], images: Images, times: Mapping[str, StepTime]
) -> tuple[Planned, ...]:
    """Return what is left of each run.

    Args:
        places: the runs.
        images: of the data.
        times: of a step, by row.
    """
    made = []
    for place in places:
        steps = steps_of(place.run, images)
        left = steps
        if place.state is State.FINISHED:
            left = 0
        elif place.state is State.BEGUN:
            left = max(steps - how_far(place.folder / METRICS)[0], 1)
        epochs = steps * place.run.wanted.batch.size / images.training
        made.append(Planned(place, steps, left, epochs, times.get(place.run.row)))
    return tuple(made)


def measured_times(out: Path, scale: Scale, wanted: Iterable[Run]) -> dict[str, StepTime]:
    """Return the time of a step by row, the median over the runs in a folder that measured it.

    Args:
        out: folder of all tables.
        scale: of the runs that count.
        wanted: runs of which the time is asked; runs in the folder count with the same recipe,
            whatever their seed.
    """
    rows = {run.row: run for run in wanted}
    found: dict[str, list[tuple[float, str]]] = {}
    for folder in sorted(out.glob(f"*-{scale}/*-seed*")):
        run = rows.get(folder.name.rpartition("-seed")[0])
        if run is None or state_of(folder) is State.ABSENT:
            continue
        try:
            other = frozenset({"training.seed", "training.evaluations"})
            if differing_keys(recipe_of(folder), run.wanted, but=other):
                continue
            seconds = read_metrics(folder / METRICS).step_seconds
            where = _where(settings_of(folder))
        except (RunError, RecipeError, EvaluationFileError):
            continue
        if seconds is not None:
            found.setdefault(run.row, []).append((seconds, where))
    return {
        row: StepTime(
            statistics.median(seconds for seconds, _ in times),
            f"{len(times)} {'run' if len(times) == 1 else 'runs'} on "
            f"{'; '.join(sorted({where for _, where in times}))}",
        )
        for row, times in found.items()
    }


def at_paper_scale(table: Table, *, seeds: int, times: Mapping[str, StepTime]) -> Iterator[str]:
    """Say what the table costs at the scale of the paper.

    Args:
        table: which.
        seeds: number of seeds.
        times: of a step of the published recipes, by row; hours are only made from these.
    """
    wanted = runs(table, "paper", seeds=seeds)
    steps = {run.name: total_steps(run.wanted, table.images) for run in wanted}
    images = sum(steps[run.name] * run.wanted.batch.size for run in wanted)
    epochs = sorted({run.wanted.schedule.epochs for run in wanted if run.wanted.schedule.epochs})
    sizes = sorted({run.wanted.batch.size for run in wanted})
    yield (
        f"At the scale of the paper: {len(wanted)} runs of {_list(epochs)} epochs of "
        f"{table.images:,} images, {max(steps.values()):,} steps of {_list(sizes)} images each: "
        f"{images / 1e6:,.0f} million images in all."
    )
    known = [run for run in wanted if run.row in times]
    if not known:
        yield (
            "Hours at that scale are not known: no published recipe was timed. Time them on the "
            "GPU in question with --scale paper --dry-run --measure."
        )
        return
    hours = sum(steps[run.name] * times[run.row].seconds for run in known) / 3600
    of = "all of them" if len(known) == len(wanted) else f"{len(known)} of them, the others unknown"
    origins = sorted({times[run.row].origin for run in known})
    yield (
        f"{hours:,.0f} hours of training on one such device for {of}, computed from the step times "
        f"of {'; '.join(origins)}; evaluations come on top."
    )


def time_left(planned: Sequence[Planned], jobs: int) -> str:
    """Say how long the rest takes.

    Args:
        planned: the runs.
        jobs: that run at once.
    """
    known = [each.seconds for each in planned if each.seconds is not None]
    unknown = len(planned) - len(known)
    if unknown == len([each for each in planned if each.left]) and unknown:
        return "how long they take is unknown; run with --measure to time a few steps of each"
    more = f", and {unknown} runs of unknown length (time them with --measure)" if unknown else ""
    return (
        f"about {clock(sum(known) / jobs)} of training at {jobs} at a time{more}; evaluations come "
        "on top"
    )


def _where(settings: Mapping[str, object]) -> str:
    """Return the device of a run in words."""
    gpus = settings.get("gpus")
    if isinstance(gpus, list) and gpus:
        return str(gpus[0])
    return counted(settings.get("cpu_threads"), "CPU thread")


def _list(values: Sequence[float]) -> str:
    return " or ".join(f"{value:g}" for value in values)
