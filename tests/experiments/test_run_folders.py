"""The state of a run's folder, and whether it holds what is wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_runs import IMAGES, write_run

from rankdet.config.recipe import RecipeError
from rankdet.engine.files import RunError
from rankdet.eval.files import EvaluationFileError
from rankdet.experiments.folders import (
    Images,
    Place,
    State,
    clear_false_start,
    locate,
    state_of,
)
from rankdet.experiments.table import Run, runs
from rankdet.experiments.tables import TABLES

A1, A3, MAIN = TABLES["a1"], TABLES["a3"], TABLES["main"]
SHORT = ("schedule.steps=1000",)
RUN = runs(A3, "tiny", seeds=1, changes=SHORT)[0]
OWN = Path("a3-tiny") / RUN.name


def find(out: Path, run: Run = RUN) -> Place:
    return locate(out, A3, "tiny", run, IMAGES)


def test_the_states(tmp_path: Path) -> None:
    assert find(tmp_path).state is State.ABSENT
    write_run(tmp_path / OWN, RUN, begun=True)
    assert find(tmp_path).state is State.BEGUN
    (tmp_path / OWN).rename(tmp_path / "gone")
    write_run(tmp_path / OWN, RUN)
    assert find(tmp_path) == Place(RUN, tmp_path / OWN, State.FINISHED)
    assert find(tmp_path).log.name == "retinanet_focal-seed0.log"
    (tmp_path / OWN / "report.html").unlink()
    assert find(tmp_path).state is State.BEGUN


def test_killed_after_the_last_step_is_finished_but_for_its_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / OWN, RUN)
    (folder / "report.html").unlink()
    torch.save({"global_step": 999}, folder / "last.ckpt")
    assert find(tmp_path).state is State.BEGUN
    torch.save({"global_step": 1000}, folder / "last.ckpt")
    place = find(tmp_path)
    assert (place.state, place.reported) == (State.FINISHED, False)
    (folder / "last.ckpt").write_bytes(b"cut off")
    assert find(tmp_path).state is State.BEGUN


@pytest.mark.parametrize("begun", [False, True])
def test_another_recipe_is_refused_by_its_keys(tmp_path: Path, begun: bool) -> None:
    write_run(tmp_path / OWN, RUN, begun=begun)
    (other, *_) = runs(A3, "tiny", seeds=1, changes=("schedule.steps=7", "optimizer.lr=0.5"))
    with pytest.raises(RunError) as refused:
        find(tmp_path, other)
    said = str(refused.value)
    assert str(tmp_path / OWN) in said
    assert "schedule.steps (1000 there, 7 wanted)" in said
    assert "optimizer.lr (0.002 there, 0.5 wanted)" in said
    assert "--out" in said


def test_keys_that_decide_nothing_may_differ(tmp_path: Path) -> None:
    free = ("description=other", "data.workers=0", "training.log_every=3", "data.cache_mb=1")
    write_run(tmp_path / OWN, runs(A3, "tiny", seeds=1, changes=(*SHORT, *free))[0])
    assert find(tmp_path).state is State.FINISHED


@pytest.mark.parametrize(
    "changed",
    [replace(IMAGES, validation=77), replace(IMAGES, objects=77), replace(IMAGES, classes=77)],
    ids=("images", "objects", "classes"),
)
def test_other_validation_images_are_refused(tmp_path: Path, changed: Images) -> None:
    write_run(tmp_path / OWN, RUN, images=changed)
    with pytest.raises(RunError, match="validated on 77"):
        find(tmp_path)


def test_images_that_have_moved(tmp_path: Path) -> None:
    moved = replace(IMAGES, source=Path("/elsewhere/cats"))
    write_run(tmp_path / OWN, RUN, images=moved)
    assert find(tmp_path).state is State.FINISHED
    begun = runs(A3, "tiny", seeds=2, changes=SHORT)[-1]
    write_run(tmp_path / "a3-tiny" / begun.name, begun, images=moved, begun=True)
    assert find(tmp_path, begun).state is State.BEGUN
    (tmp_path / "dogs").mkdir()
    other = runs(A3, "tiny", seeds=3, changes=SHORT)[-1]
    dogs = replace(IMAGES, source=tmp_path / "dogs")
    write_run(tmp_path / "a3-tiny" / other.name, other, images=dogs, begun=True)
    with pytest.raises(RunError, match="dogs, not /data/cats"):
        find(tmp_path, other)


def test_a_finished_run_of_another_table_will_do(tmp_path: Path) -> None:
    there = tmp_path / "main-tiny" / RUN.name
    write_run(there, RUN, begun=True)
    assert find(tmp_path).state is State.ABSENT
    there.rename(tmp_path / "gone")
    write_run(there, RUN)
    assert find(tmp_path) == Place(RUN, there, State.FINISHED, borrowed=True)
    # Of another scale, another recipe or unreadable it will not.
    assert locate(tmp_path, A3, "small", RUN, IMAGES).state is State.ABSENT
    (other, *_) = runs(A3, "tiny", seeds=1, changes=("schedule.steps=7",))
    assert find(tmp_path, other).state is State.ABSENT
    (there / "recipe.yaml").write_text("criterion: 7")
    assert find(tmp_path).state is State.ABSENT


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / OWN, RUN)
    (folder / "score.json").write_text("{")
    with pytest.raises(EvaluationFileError, match=r"score\.json"):
        find(tmp_path)
    (folder / "recipe.yaml").write_text("nothing_known: 1")
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        find(tmp_path)


def test_what_is_left_of_a_run_that_never_began_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("x")
    (folder / ".run.json.abc").write_text("x")
    clear_false_start(folder)
    assert list(folder.iterdir()) == []
    (folder / "recipe.yaml").write_text("x")
    (folder / "mine.txt").write_text("keep me")
    clear_false_start(folder)
    assert {path.name for path in folder.iterdir()} == {"recipe.yaml", "mine.txt"}
    begun = write_run(tmp_path / "b", RUN, begun=True)
    clear_false_start(begun)
    assert state_of(begun) is State.BEGUN
