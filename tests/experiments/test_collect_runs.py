"""Reading what runs measured from their folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runs import IMAGES, write_run

from rankdet.engine.files import RunError
from rankdet.experiments.collect import (
    Result,
    caveats,
    grid,
    images_of_bins,
    read_metrics,
    read_result,
)
from rankdet.experiments.folders import Place, State
from rankdet.experiments.output import fill
from rankdet.experiments.render import markdown
from rankdet.experiments.table import Run, Table, runs
from rankdet.experiments.tables import TABLES

A1, A3 = TABLES["a1"], TABLES["a3"]
FOVEA, RETINA = runs(A1, "tiny", seeds=1)[0], runs(A3, "tiny", seeds=1)[0]


def result_of(folder: Path, run: Run) -> Result:
    return read_result(Place(run, folder, State.FINISHED))


def column(table: Table, result: Result, name: str) -> float | None:
    return result.value(table.measure(name))


def test_numbers_on_the_way_and_at_the_end(tmp_path: Path) -> None:
    result = result_of(write_run(tmp_path / "r", FOVEA, ap=(0.1, 0.2, 0.3, 0.123456789)), FOVEA)
    found = {measure.name: column(A1, result, measure.name) for measure in A1.measures}
    expected = {"AP at 50 %": 20, "AP at 75 %": 30, "AP": 12.3457, "oLRP": 70, "loc": 7, "FP": 14,
                "FN": 28}  # fmt: skip
    assert found == pytest.approx(expected)
    assert result.metrics.steps == 1000
    assert result.metrics.seconds == pytest.approx(500)
    assert result.metrics.step_seconds == pytest.approx(0.5)
    assert result.score_is_of_the_end


def test_correlation_is_that_of_the_score(tmp_path: Path) -> None:
    losses = TABLES["losses"]
    run = runs(losses, "tiny", seeds=1)[0]
    folder = write_run(tmp_path / "r", run)
    # Two detections with one and the same score have none.
    assert column(losses, result_of(folder, run), "r") is None
    score = json.loads((folder / "score.json").read_text())
    score["correlation"]["pearson"] = 0.571
    (folder / "score.json").write_text(json.dumps(score))
    result = result_of(folder, run)
    assert column(losses, result, "r") == pytest.approx(57.1)
    page = markdown(
        fill(losses, "tiny", [result], missing=(), places=(), images=IMAGES, command="")
    )
    assert "| FN | r |" in page
    assert "correlation of score and IoU" in page


def test_no_evaluation_near_is_no_number(tmp_path: Path) -> None:
    result = result_of(write_run(tmp_path / "r", FOVEA, ap=(0.1, 0.2)), FOVEA)
    assert column(A1, result, "AP at 50 %") == pytest.approx(10)
    assert column(A1, result, "AP at 75 %") is None


def test_bins_and_those_without_images(tmp_path: Path) -> None:
    counted = {0: (60, 0.5), 4: (40, 0.25)}
    result = result_of(write_run(tmp_path / "r", RETINA, by_count=counted), RETINA)
    found = [column(A3, result, f"AP, {objects}") for objects in ("0-3", "4-10", "11-20", "63+")]
    assert found == [50, 25, None, None]
    assert images_of_bins([result]) == {"0-3": 60, "4-10": 40, "11-20": 0, "21-62": 0, "63+": 0}


def test_a_grid_holds_what_there_is(tmp_path: Path) -> None:
    made = [
        result_of(write_run(tmp_path / run.name, run, ap=(0.1 * (1 + run.seed),)), run)
        for run in runs(A3, "tiny", seeds=2)
        if run.name != "retinanet_ap-seed1"
    ]
    found = grid(A3, made)
    assert found["retinanet_focal", "AP"] == pytest.approx({0: 10, 1: 20})
    assert found["retinanet_ap", "AP"] == pytest.approx({0: 10})
    assert ("retinanet_ap", "AP, 63+") not in found


def test_seconds_begin_again_with_each_session(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = ["10,5,.1,,,", "20,10,.1,,,", "30,5,.1,,,", "40,10,.1,,,", "40,10,,0.5,0.4,"]
    path.write_text("\n".join(["step,seconds,lr,AP,oLRP,oLRP_loc,oLRP_fp,oLRP_fn",
                               *(f"{row},," for row in rows)]) + "\n")  # fmt: skip
    found = read_metrics(path)
    assert (found.steps, found.seconds, found.step_seconds) == (40, 20, 0.5)
    assert [each.numbers for each in found.evaluations] == [{"AP": 0.5, "oLRP": 0.4}]


def test_an_evaluation_without_objects_has_no_numbers(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", RETINA) / "metrics.csv"
    head, *rows = path.read_text().splitlines()
    bare = [",".join([*rows[-1].split(",")[:2], *[""] * (head.count(",") - 1)])]
    path.write_text("\n".join([head, *rows[:-1], *bare]) + "\n")
    result = result_of(tmp_path / "r", RETINA)
    assert column(A3, result, "AP") is None


@pytest.mark.parametrize("text", ["", "step,seconds\nx,1\n", "\x00\x01"])
def test_what_is_no_log(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "r", RETINA)
    (folder / "metrics.csv").write_text(text)
    with pytest.raises(RunError, match=r"metrics\.csv"):
        result_of(folder, RETINA)


def test_what_is_said_of_runs_that_should_not_be_compared(tmp_path: Path) -> None:
    first = result_of(write_run(tmp_path / "0", RETINA), RETINA)
    assert caveats(A3, [first, first]) == []
    other_objects = replace(IMAGES, validation=IMAGES.validation + 1)
    second = result_of(write_run(tmp_path / "1", RETINA, images=other_objects), RETINA)
    assert "not validated on the same images" in caveats(A3, [first, second])[0]
    third = result_of(write_run(tmp_path / "2", RETINA, ap=(0.4, 0.3)), RETINA)
    (tmp_path / "2" / "score.json").write_text(json.dumps(replace(third.score, AP=0.4).to_json()))
    best = result_of(tmp_path / "2", RETINA)
    assert not best.score_is_of_the_end
    (said,) = caveats(A3, [best])
    assert said.startswith("What stands under AP, 0-3; AP, 4-10; AP, 11-20; AP, 21-62; ")
    assert caveats(TABLES["losses"], [best])[0].startswith("What stands under r is of the best")
    assert caveats(A1, [best]) == []
    elsewhere = replace(first, settings={**first.settings, "commit": "def"})
    assert "same commit" in caveats(A3, [first, elsewhere])[0]
