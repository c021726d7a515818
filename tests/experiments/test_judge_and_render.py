"""What is said of a table, and how it is printed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fake_runs import IMAGES, write_run
from rich.console import Console

from rankdet.experiments.collect import Grid, Note, read_result
from rankdet.experiments.folders import Place, State
from rankdet.experiments.judge import Compared, compare, statements
from rankdet.experiments.output import fill, write_table
from rankdet.experiments.published import PUBLISHED
from rankdet.experiments.render import Filled, OnTerminal, as_csv, markdown
from rankdet.experiments.table import Run, Scale, Table, runs
from rankdet.experiments.tables import TABLES

A1, A3, A4 = TABLES["a1"], TABLES["a3"], TABLES["a4"]

NOTHING = "Nothing to compare: no row with numbers is here beside one that it is compared with."


def grid(table: Table, values: Mapping[str, tuple[float, ...]], measure: str = "AP") -> Grid:
    return {(row, measure): dict(enumerate(each)) for row, each in values.items()}


def compared(table: Table, values: Mapping[str, tuple[float, ...]]) -> tuple[Compared, ...]:
    return compare(table, grid(table, values), PUBLISHED[table.name])


def test_a_difference_beyond_the_spread() -> None:
    found = compared(A1, {"fovea_alrp": (41, 42, 43), "fovea_focal": (39, 40, 41)})
    (one, *_) = found
    assert one.published == pytest.approx(0.5)
    assert one.same_order
    # Each seed differs by 2 exactly, so the interval has no width.
    assert one.sentence() == (
        "AP: aLRP is 2.0 points above Focal + Smooth L1 (95% interval +2.0 to +2.0, 3 seeds): "
        "more than the spread; published: +0.5."
    )
    assert statements(found)[0].startswith("The paper's order holds here. The paper has 1 of")


def test_a_difference_within_the_spread_and_the_other_way() -> None:
    within = compared(A1, {"fovea_alrp": (41, 39), "fovea_focal": (39, 40)})
    assert (
        "is 0.5 points above Focal + Smooth L1 (95% interval -18.6 to +19.6, 2 seeds): within"
        in (within[0].sentence())
    )
    assert statements(within)[0].startswith("Whether the paper's order holds here cannot be said.")
    reverse = compared(A1, {"fovea_alrp": (30, 31), "fovea_focal": (40, 41)})
    assert reverse[0].same_order is False
    assert "10.0 points below" in reverse[0].sentence()
    assert "1 goes the other way" in statements(reverse)[0]
    assert "does not hold here in all" in statements(reverse)[0]


def test_one_seed_and_none() -> None:
    one = compared(A1, {"fovea_alrp": (41,), "fovea_focal": (39,)})
    assert "is 2.0 points above Focal + Smooth L1 with one seed: cannot say" in one[0].sentence()
    said = statements(compared(A1, {"fovea_alrp": (41,)}))
    assert said[0].startswith("Whether the paper's order holds here cannot be said.")
    assert said[1].startswith("2 of 2 differences cannot be had")
    assert statements(compared(A1, {})) == [NOTHING]


def test_of_errors_less_is_better_and_not_published_is_not_said() -> None:
    values = {"fovea_alrp": (60.0, 61.0), "fovea_focal": (64.0, 65.0)}
    (one, *_) = compare(A1, grid(A1, values, "oLRP"), PUBLISHED["a1"])
    assert one.sentence().startswith("oLRP: aLRP is 4.0 points lower (better) than Focal")
    assert "published" not in one.sentence()
    assert statements([one])[0] == "The paper has no numbers to compare these with."


def test_small_differences_are_level_unless_they_exceed_the_spread() -> None:
    level = compared(A1, {"fovea_alrp": (40.01, 40.0), "fovea_focal": (40.0, 40.0)})
    assert "is level with" in level[0].sentence()
    clear = compared(A1, {"fovea_alrp": (40.01, 41.01), "fovea_focal": (40.0, 41.0)})
    assert "is 0.01 points above" in clear[0].sentence()


def test_chance_is_counted() -> None:
    values = {row.name: (30.0 + n, 31.0 + n) for n, row in enumerate(A4.rows)}
    said = statements(compared(A4, values))
    assert said[1].startswith("5 of the 5 differences below exceed the spread; about 0.3 would")
    assert "5 go" not in said[0]
    assert "4 go the same way" in said[0]


@cache
def runs_of(name: str, scale: Scale, seeds: int) -> tuple[Run, ...]:
    """Return the runs of a table; their recipes are read once."""
    return runs(TABLES[name], scale, seeds=seeds)


def filled(tmp_path: Path, table: Table = A3, *, seeds: int = 2, scale: Scale = "tiny") -> Filled:
    results = []
    for number, run in enumerate(runs_of(table.name, scale, seeds)):
        by_count = {0: (60, 0.5 + 0.01 * number), 4: (40, 0.25)}
        ap = (0.1, 0.2, 0.3, 0.4 + 0.01 * number)
        folder = write_run(tmp_path / run.name, run, ap=ap, by_count=by_count)
        results.append(read_result(Place(run, folder, State.FINISHED)))
    made = fill(table, scale, results, missing=["x-seed9: exit code 1: <no> disk"], places=(),
                images=IMAGES, command="rankdet tables a3")  # fmt: skip
    return write_table(tmp_path, made, results, IMAGES)


def test_the_page_holds_measured_and_published_numbers_apart(tmp_path: Path) -> None:
    made = filled(tmp_path)
    page = (tmp_path / "table.md").read_text()
    assert page == markdown(made)
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    heads, _, *body = [[cell.strip() for cell in row] for row in rows]
    assert all(len(row) == len(heads) for row in body)
    first = dict(zip(heads, body[0], strict=True))
    assert first[""] == "Focal + Smooth L1"
    assert first["seeds"] == "2"
    # Seeds 0.40 and 0.43: mean 41.5, standard deviation 3 / √2.
    assert first["AP"] == "41.5 ± 2.1"
    assert first["AP, 0-3 (60 images)"] == "51.5 ± 2.1"
    assert first["AP, 11-20 (0 images)"] == "-"
    assert first["published (COCO, R-50, 100 epochs): AP, 0-3"] == "52.5"
    # A bin that has neither images nor a published number is left out.
    assert "63+" not in page
    assert "x-seed9: exit code 1: &lt;no> disk" in page
    assert "commit abc" in page
    assert "- command: rankdet tables a3" in page
    assert PUBLISHED["a3"].source in page


def test_the_csv_has_a_line_for_each_number(tmp_path: Path) -> None:
    text = as_csv(filled(tmp_path))
    assert (tmp_path / "table.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(A3.rows) * len(A3.measures)
    first = next(row for row in rows if row["measure"] == "AP, 0-3")
    assert (first["n"], first["mean"], first["spread"]) == ("2", "51.5", "2.1213")
    assert (first["seed 0"], first["seed 1"]) == ("50", "53")
    assert (first["published"], first["published setting"]) == ("52.5", "COCO, R-50, 100 epochs")
    empty = next(row for row in rows if row["measure"] == "AP, 63+")
    assert (empty["n"], empty["mean"], empty["published"]) == ("0", "", "")


@pytest.mark.parametrize("name", TABLES)
def test_the_terminal_shows_all_numbers_at_any_width(tmp_path: Path, name: str) -> None:
    made = filled(tmp_path, TABLES[name], seeds=2)
    for width in (60, 80, 200):
        console = Console(width=width, color_system=None, force_terminal=False)
        with console.capture() as captured:
            console.print(OnTerminal(made))
        said = captured.get()
        assert max(map(len, said.splitlines())) <= width
        for row in made.table.rows:
            assert made.table.label(row.name) in said
            for measure in made.measures if width >= 80 else ():
                cell = made.cell(row.name, measure).replace(" ", "")
                assert cell in said or not measure.compared
        assert width < 80 or "…" not in said
        for value in PUBLISHED[name].values.values() if name in PUBLISHED else ():
            assert f"{value:.1f}" in said


PLOTS = {
    "a1": ["ap-by-epoch.svg"],
    "a2": [],
    "a3": ["ap-by-objects.svg"],
    "a4": ["ap-by-weight.svg", "terms-by-step.svg"],
    "main": [],
    "losses": ["ap-by-epoch.svg"],
    "search": [],
    "balance": ["ap-by-epoch.svg", "terms-by-step.svg"],
    "detectors": [],
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("seeds", [1, 2])
def test_plots(tmp_path: Path, name: str, seeds: int) -> None:
    made = filled(tmp_path, TABLES[name], seeds=seeds)
    assert list(made.plots) == PLOTS[name]
    assert {path.name for path in tmp_path.glob("*.svg")} == set(made.plots)
    again = filled(tmp_path / "again", TABLES[name], seeds=seeds)
    assert again.plots == made.plots
    for file in made.plots:
        picture = (tmp_path / file).read_text()
        assert "<svg" in picture
        assert f"![{file}]({file})" in (tmp_path / "table.md").read_text()
        # The same picture of the same numbers, but for the names that matplotlib draws.
        both = [re.sub(r"[\w-]*(id|url|href|clip)[^ ]*", "", text) for text in
                (picture, (tmp_path / "again" / file).read_text())]  # fmt: skip
        assert both[0] == both[1]


def test_curves_are_of_the_terms_that_there_are(tmp_path: Path) -> None:
    """One line for each seed and one for their mean; nothing for a loss without the term."""
    from matplotlib.figure import Figure

    from rankdet.experiments.plots import Curves

    made = filled(tmp_path, TABLES["balance"], seeds=2)
    results = [
        read_result(Place(run, tmp_path / run.name, State.FINISHED))
        for run in runs(TABLES["balance"], "tiny", seeds=2)
    ]
    weights = {0: (4.0, 8.0), 1: (2.0, 32.0)}
    noted = [
        replace(result, metrics=replace(result.metrics, notes=tuple(
            Note(10 * number, {"balance": weight} if row == 0 else {})
            for number, weight in enumerate(weights[result.run.seed])
        )))
        for result in results
        for row in [[each.name for each in TABLES["balance"].rows].index(result.run.row)]
    ]  # fmt: skip
    figure = Figure()
    Curves({"balance": "weight"}, frozenset({"balance"})).draw(figure, made, noted)
    (axes,) = figure.axes
    drawn = [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
             for line in axes.get_lines()]  # fmt: skip
    assert drawn == [([0, 10], [4, 8]), ([0, 10], [2, 32]), ([0, 10], [3, 20])]
    assert axes.get_yscale() == "log"


def test_nothing_finished_is_a_table_too(tmp_path: Path) -> None:
    made = fill(A1, "tiny", [], missing=["all"], places=(), images=IMAGES, command="c")
    made = write_table(tmp_path, made, [], IMAGES)
    assert made.plots == ()
    assert NOTHING in (tmp_path / "table.md").read_text()


def test_without_matplotlib_there_are_no_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(tmp_path)
    run = runs(A3, "tiny", seeds=1)[0]
    result = read_result(Place(run, tmp_path / run.name, State.FINISHED))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    again = write_table(tmp_path, replace(made, plots=()), [result], IMAGES)
    assert again.plots == ()
    assert "matplotlib is not installed" in (tmp_path / "table.md").read_text()


def test_what_is_not_where_it_is_expected_is_said(tmp_path: Path) -> None:
    run = runs(A3, "tiny", seeds=1)[0]
    finished = Place(run, tmp_path / "main-tiny" / run.name, State.FINISHED)
    places = [replace(finished, borrowed=True), replace(finished, reported=False)]
    made = fill(A3, "tiny", [], missing=[], places=places, images=IMAGES, command="c")
    assert "part of main-tiny as well and lie there: retinanet_focal-seed0" in made.notes[0]
    assert "without report" in made.notes[1]
