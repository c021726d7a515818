"""The folder of a run: where it is, what state it is in, and whether it holds what is wanted."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rankdet.config.build import total_steps
from rankdet.config.load import flatten, load_recipe
from rankdet.config.recipe import Recipe, RecipeError
from rankdet.engine.files import RunError
from rankdet.eval.files import EvaluationFileError, read_json, read_score
from rankdet.experiments.table import Run, Scale, Table

RECIPE = "recipe.yaml"
SETTINGS = "run.json"
SCORE = "score.json"
REPORT = "report.html"
METRICS = "metrics.csv"
STATE = "last.ckpt"

# Keys that change neither what is learned nor what is measured.
_FREE = frozenset(
    {"name", "description", "data.workers", "data.cache_mb", "training.log_every",
     "training.checkpoint_every"}
)  # fmt: skip
_MOST_KEYS = 5


class State(Enum):
    """How far a run is."""

    ABSENT = "to do"
    BEGUN = "interrupted"
    FINISHED = "finished"


@dataclass(frozen=True)
class Images:
    """The data that all runs of a table are to have, as far as their folders tell."""

    source: Path
    training: int
    """Images to train on."""
    validation: int
    """Images to validate on."""
    objects: int
    """Objects on these, without crowd."""
    classes: int


@dataclass(frozen=True)
class Place:
    """A run and its folder."""

    run: Run
    folder: Path
    state: State
    borrowed: bool = False
    """Whether the folder is of another table, which has the very same run."""
    reported: bool = True
    """Whether a finished run has its report; it may have been killed while it wrote that."""

    @property
    def log(self) -> Path:
        """What the command said; beside the folder, which has to be empty at first."""
        return self.folder.with_name(f"{self.folder.name}.log")


def table_folder(out: Path, table: Table, scale: Scale) -> Path:
    """Return the folder of a table."""
    return out / f"{table.name}-{scale}"


def locate(out: Path, table: Table, scale: Scale, run: Run, images: Images) -> Place:
    """Find a run: in the folder of its table or, if it is finished there, of another one.

    Args:
        out: folder of all tables of a data set.
        table: which.
        scale: of the table.
        run: of the table.
        images: that it should have.

    Raises:
        RunError: the folder holds a run of another recipe or of other data.
        RecipeError: its recipe cannot be read.
        EvaluationFileError: its score or settings cannot be read.
    """
    own = table_folder(out, table, scale) / run.name
    state = state_of(own)
    if state is State.BEGUN and _is_trained(own, steps_of(run, images)):
        _require_wanted(own, State.FINISHED, run, images)
        return Place(run, own, State.FINISHED, reported=False)
    if state is not State.ABSENT:
        _require_wanted(own, state, run, images)
        return Place(run, own, state)
    for other in sorted(out.glob(f"*-{scale}/{glob.escape(run.name)}")):
        if state_of(other) is State.FINISHED and _is_the_same(other, run, images):
            return Place(run, other, State.FINISHED, borrowed=True)
    return Place(run, own, State.ABSENT)


def steps_of(run: Run, images: Images) -> int:
    """Return the optimiser steps of a run."""
    return total_steps(run.wanted, images.training)


def state_of(folder: Path) -> State:
    """Return how far the run in a folder is."""
    if not ((folder / RECIPE).is_file() and (folder / SETTINGS).is_file()):
        return State.ABSENT
    done = (folder / SCORE).is_file() and (folder / REPORT).is_file()
    return State.FINISHED if done else State.BEGUN


def clear_false_start(folder: Path) -> None:
    """Remove a recipe without its settings: what is left of a run killed while it was set up."""
    if state_of(folder) is not State.ABSENT or not folder.is_dir():
        return
    left = list(folder.iterdir())
    if all(path.name == RECIPE or path.name.startswith((f".{RECIPE}.", f".{SETTINGS}."))
           for path in left):  # fmt: skip
        for path in left:
            path.unlink()


def recipe_of(folder: Path) -> Recipe:
    """Return the recipe that a run was started with.

    Raises:
        RecipeError: it cannot be read, or has keys that are not known any more.
    """
    return load_recipe(str(folder / RECIPE))


def settings_of(folder: Path) -> dict[str, Any]:
    """Return what `run.json` says of a run.

    Raises:
        EvaluationFileError: it cannot be read.
    """
    return dict(read_json(folder / SETTINGS))


def differing_keys(
    there: Recipe, wanted: Recipe, *, but: frozenset[str] = frozenset()
) -> list[str]:
    """Return in which keys two recipes differ, "KEY THERE there, WANTED wanted" each.

    Keys that change neither what is learned nor what is measured do not count.

    Args:
        there: one recipe.
        wanted: the other.
        but: more keys that do not count.
    """
    one, other = flatten(there), flatten(wanted)
    missing = object()

    def text(value: Any) -> str:
        return "not" if value is missing else json.dumps(value)

    return [
        f"{key} ({text(one.get(key, missing))} there, {text(other.get(key, missing))} wanted)"
        for key in dict.fromkeys((*one, *other))
        if key not in _FREE | but and one.get(key, missing) != other.get(key, missing)
    ]


def _is_trained(folder: Path, steps: int) -> bool:
    """Whether a run without report did all its steps, and so has its last evaluation."""
    if not ((folder / SCORE).is_file() and (folder / STATE).is_file()):
        return False
    from rankdet.engine.checkpoint import load_state

    try:
        return int(load_state(folder / STATE)["global_step"]) >= steps
    except RunError:  # resuming it will say what is wrong
        return False


def _is_the_same(folder: Path, run: Run, images: Images) -> bool:
    """Whether a finished run of another table will do."""
    try:
        there = Path(settings_of(folder).get("data", ""))
        return there == images.source and not _faults(folder, State.FINISHED, run, images)
    except (RecipeError, EvaluationFileError):
        return False


def _require_wanted(folder: Path, state: State, run: Run, images: Images) -> None:
    faults = _faults(folder, state, run, images)
    if faults:
        raise RunError(
            f"{folder} holds another run than the one wanted: {'; '.join(faults)}. Nothing is "
            "overwritten: choose another folder with --out, or repeat the settings it was made with"
        )


def _faults(folder: Path, state: State, run: Run, images: Images) -> list[str]:
    """Say in what a run differs from the one wanted."""
    keys = differing_keys(recipe_of(folder), run.wanted)
    faults = keys[:_MOST_KEYS]
    if len(keys) > _MOST_KEYS:
        faults.append(f"and {len(keys) - _MOST_KEYS} more keys")
    if state is State.FINISHED:
        return [*faults, *_other_images(folder, images)]
    source = Path(settings_of(folder).get("data", "nowhere"))
    moved = source.name == images.source.name and not source.exists()
    if source != images.source and not moved:
        faults.append(f"it was begun with the data {source}, not {images.source}")
    return faults


def _other_images(folder: Path, images: Images) -> Iterator[str]:
    """Say in what the validation images of a finished run differ; their folder may have moved."""
    score = read_score(folder / SCORE)
    for there, now, what in (
        (score.images, images.validation, "images"),
        (score.objects, images.objects, "objects"),
        (len(score.per_class), images.classes, "classes"),
    ):
        if there != now:
            yield f"it was validated on {there} {what}, and now there are {now}"
