"""The tables: their recipes are sound, and differ in nothing but what the table is about."""

from __future__ import annotations

import math
from functools import cache

import pytest

from rankdet.config.build import total_steps
from rankdet.config.load import flatten, load_recipe
from rankdet.config.recipe import RecipeError
from rankdet.experiments.published import PUBLISHED
from rankdet.experiments.table import COCO_IMAGES, MINITRAIN_IMAGES, SCALES, Run, Scale, runs
from rankdet.experiments.tables import PAPER, TABLES

# In what a run may differ from what is shipped, whatever the table is about.
_TOLD = {"name", "description", "training.seed", "training.evaluations"}


@cache
def first_runs(name: str, scale: Scale) -> tuple[Run, ...]:
    """Return the runs of the first seed; their recipes are read once."""
    return runs(TABLES[name], scale, seeds=1)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TABLES)
def test_every_recipe_is_sound_and_every_run_has_its_own_name(name: str, scale: Scale) -> None:
    wanted = runs(TABLES[name], scale, seeds=2)
    assert len({run.name for run in wanted}) == len(wanted) == 2 * len(TABLES[name].rows)
    assert wanted[-1].wanted.training.seed == 1
    assert all(run.wanted.training.seed == 0 for run in first_runs(name, scale))


@pytest.mark.parametrize("scale", ["tiny", "small"])
@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("main", "detectors")])
def test_the_runs_of_a_table_differ_in_the_loss_alone(name: str, scale: Scale) -> None:
    flat = [flatten(run.wanted) for run in first_runs(name, scale)]
    keys = {key for each in flat for key in each}
    missing = object()
    differing = {key for key in keys if len({str(each.get(key, missing)) for each in flat}) > 1}
    # The branch for centreness belongs to the loss of ATSS.
    allowed = {"name", "description"} | ({"model.centreness"} if name == "a2" else set())
    # When a self-balance is renewed belongs to it.
    allowed |= {"schedule.balance_period"} if name == "balance" else set()
    assert {key for key in differing - allowed if not key.startswith("criterion.")} == set()
    assert any(key.startswith("criterion.") for key in differing)


@pytest.mark.parametrize("name", [table.name for table in PAPER])
def test_published_recipes_are_as_they_are_shipped(name: str) -> None:
    for run in first_runs(name, "paper"):
        shipped, wanted = flatten(load_recipe(run.recipe)), flatten(run.wanted)
        differing = {key for key in {*shipped, *wanted} if shipped.get(key) != wanted.get(key)}
        expected = "criterion.balance." if run.row.startswith("retinanet_alrp-") else "nothing"
        assert all(key in _TOLD or key.startswith(expected) for key in differing), run.name
        assert run.wanted.schedule.epochs == 100


def test_small_recipes_are_as_they_are_shipped_where_there_are_such() -> None:
    for run in first_runs("a3", "small"):
        shipped, wanted = flatten(load_recipe(run.recipe)), flatten(run.wanted)
        assert {k for k in {*shipped, *wanted} if shipped.get(k) != wanted.get(k)} <= _TOLD


def test_the_study_of_losses_has_them_as_they_are_shipped() -> None:
    shipped = {
        "atss_alrp-mean-gradient": "atss_alrp-small",
        "atss_alrp-ranked-self": "atss_alrp_published-small",
        "atss_focal": "atss_focal-small",
        "atss_focal_giou": "atss_focal_giou-small",
    }
    for run in first_runs("losses", "small"):
        one, other = flatten(load_recipe(shipped[run.row])), flatten(run.wanted)
        assert {k for k in {*one, *other} if one.get(k) != other.get(k)} <= _TOLD


def test_one_weight_and_five_others() -> None:
    kinds = {}
    for run in first_runs("a4", "tiny"):
        flat = flatten(run.wanted)
        kinds[run.row] = (flat["criterion.balance.kind"], flat.get("criterion.balance.w_r"))
    assert kinds == {
        "retinanet_alrp-w1": ("scalar", 1.0),
        "retinanet_alrp-w5": ("scalar", 5.0),
        "retinanet_alrp-w10": ("scalar", 10.0),
        "retinanet_alrp-w15": ("scalar", 15.0),
        "retinanet_alrp-learned": ("learned", None),
        "retinanet_alrp": ("self", None),
    }


@pytest.mark.parametrize("scale", SCALES)
def test_evaluations_fall_where_a_table_reads_them(scale: Scale) -> None:
    for table in TABLES.values():
        for run in first_runs(table.name, scale):
            recipe = run.wanted
            steps = total_steps(recipe, COCO_IMAGES)
            every = math.ceil(steps / recipe.training.evaluations)
            at = [*range(every, steps, every), steps]
            for measure in table.measures:
                nearest = min(abs(step - measure.share * steps) for step in at)
                assert nearest <= 1e-4 * steps, (run.name, measure.name)


def test_a_run_of_several_tables_is_the_same_in_all() -> None:
    """So that a run that is finished in one need not be run in another."""
    known: dict[str, object] = {}
    for table in TABLES.values():
        for run in first_runs(table.name, "tiny"):
            flat = {k: v for k, v in flatten(run.wanted).items() if k != "description"}
            assert known.setdefault(run.name, flat) == flat
    assert {"retinanet_alrp-seed0", "fovea_ap-seed0", "atss_alrp-seed0"} < set(known)


def test_changes_of_the_caller_win_and_wrong_ones_are_named() -> None:
    (run, *_) = runs(TABLES["a1"], "tiny", seeds=1, changes=["schedule.steps=7"])
    assert run.wanted.schedule.steps == 7
    (run, *_) = runs(TABLES["a1"], "tiny", seeds=1, changes=["schedule.stepz=7"])
    with pytest.raises(RecipeError, match=r"schedule\.steps"):
        _ = run.wanted


@pytest.mark.parametrize("name", [table.name for table in PAPER])
def test_published_numbers_have_a_row_and_a_measure(name: str) -> None:
    table, published = TABLES[name], PUBLISHED[name]
    rows, measures = {row.name for row in table.rows}, {each.name for each in table.measures}
    assert {row for row, _ in published.values} <= rows
    assert {measure for _, measure in published.values} <= measures
    assert all(10 < value < 100 for value in published.values.values())
    assert ("minitrain" in published.setting) == (table.images == MINITRAIN_IMAGES)


@pytest.mark.parametrize("name", TABLES)
def test_rows_that_are_compared_are_there(name: str) -> None:
    table = TABLES[name]
    rows = {row.name for row in table.rows}
    assert len(rows) == len(table.rows)
    assert all(first != second and {first, second} <= rows for first, second in table.comparisons)


def test_some_rows_of_a_table() -> None:
    table = TABLES["a3"].only(["retinanet_alrp", "retinanet_focal"])
    assert [row.name for row in table.rows] == ["retinanet_focal", "retinanet_alrp"]
    assert table.comparisons == (("retinanet_alrp", "retinanet_focal"),)
    assert table.measures == TABLES["a3"].measures
    with pytest.raises(ValueError, match=r"no row 'retinanet_alpr'; it has retinanet_focal, "):
        TABLES["a3"].only(["retinanet_alpr"])


def test_the_help_names_every_table() -> None:
    from rankdet.cli.tables import EXAMPLES, NAMES

    assert tuple(TABLES) == NAMES
    assert all(f"\n{name} " in EXAMPLES for name in NAMES)


@pytest.mark.parametrize("scale", SCALES)
def test_studies_compare_what_their_labels_say(scale: Scale) -> None:
    flat = {
        run.row: flatten(run.wanted)
        for name in ("losses", "search", "balance")
        for run in first_runs(name, scale)
    }

    def picked(row: str, *keys: str) -> list[object]:
        return [flat[row].get(f"criterion.{key}") for key in keys]

    alrp = ("localisation", "balance.kind", "balance.initial", "balance.w_r")
    found = {row[len("atss_alrp-") :]: picked(row, *alrp) for row in flat if "alrp" in row}
    assert found == {
        "mean-gradient": ["mean", "gradient", None, None],
        "ranked-self": ["ranked", "self", 50, None],
        "ranked-self-epoch": ["ranked", "self", 50, None],
        "ranked-measured": ["ranked", "self", "measured", None],
        "ranked-gradient": ["ranked", "gradient", None, None],
        "mean-self": ["mean", "self", 50, None],
        "mean-w5": ["mean", "scalar", None, 5],
    }
    focal = ("classification.alpha", "classification.gamma", "box.kind", "box_weight")
    found = {row[len("atss_focal") :]: picked(row, *focal) for row in flat if "focal" in row}
    assert found == {
        "": [0.25, 2, "smooth_l1", 1],
        "-w05": [0.25, 2, "smooth_l1", 0.5],
        "-w025": [0.25, 2, "smooth_l1", 0.25],
        "_giou": [0.25, 2, "giou", 2],
        "_giou-w1": [0.25, 2, "giou", 1],
        "_giou-w4": [0.25, 2, "giou", 4],
        "_giou-alpha50": [0.5, 2, "giou", 2],
        "_giou-gamma1": [0.25, 1, "giou", 2],
        "_giou-gamma1-w1": [0.25, 1, "giou", 1],
    }
    assert not any(each["model.centreness"] for each in flat.values())
    renewed = {row: each["schedule.balance_period"] for row, each in flat.items()}
    assert renewed["atss_alrp-ranked-self-epoch"] == "epoch"
    assert renewed["atss_alrp-ranked-self"] == ("epoch" if scale == "paper" else 50)
    assert flat["atss_rank_sort"]["criterion.kind"] == "rank_sort"


# Typed a second time from the papers, row by row; "-" was not published.
PRINTED = """
a1    fovea_focal           29.5 38.5 39.8
a1    fovea_ap              -    -    -
a1    fovea_alrp            34.0 39.7 40.3
a2    atss_own              30.9
a2    atss_alrp             32.0
a3    retinanet_focal       52.5 39.3 31.5 22.9
a3    retinanet_ap          51.9 38.3 30.4 23.9
a3    retinanet_alrp        56.3 42.0 33.5 25.5
a4    retinanet_alrp-w1     27.3
a4    retinanet_alrp-w5     30.5
a4    retinanet_alrp-w10    30.8
a4    retinanet_alrp-w15    30.4
a4    retinanet_alrp        30.9
main  retinanet_ap          35.4 71.0
main  retinanet_alrp        39.0 68.4
main  atss_alrp             41.0 67.3
main  fovea_focal           38.3 68.8
main  fovea_ap              36.5 69.8
main  fovea_alrp            39.7 67.2
main  faster_rcnn_ce        37.8 69.3
main  faster_rcnn_ce_giou   38.2 69.0
main  faster_rcnn_alrp      40.7 66.7
"""
COLUMNS = {
    "a1": ("AP at 50 %", "AP at 75 %", "AP"),
    "a2": ("AP",),
    "a3": ("AP, 0-3", "AP, 4-10", "AP, 11-20", "AP, 21-62"),
    "a4": ("AP",),
    "main": ("AP", "oLRP"),
}


def test_published_numbers_are_as_printed() -> None:
    expected = {}
    for line in PRINTED.strip().splitlines():
        name, row, *numbers = line.split()
        for column, number in zip(COLUMNS[name], numbers, strict=True):
            if number != "-":
                expected[name, row, column] = float(number)
    found = {
        (name, row, column): value
        for name, published in PUBLISHED.items()
        for (row, column), value in published.values.items()
    }
    assert found == expected


def test_labels_leave_out_what_all_rows_share() -> None:
    labels = {name: [table.label(row.name) for row in table.rows] for name, table in TABLES.items()}
    assert labels["a1"] == ["Focal + Smooth L1", "AP + Smooth L1", "aLRP"]
    assert labels["a4"][0] == "w_r = 1"
    assert labels["a4"][-1] == "self-balance"
    assert labels["main"][0] == "RetinaNet, Focal + Smooth L1"
