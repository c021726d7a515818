"""The schema of recipes: types, ranges, what must agree, and that every key is explained."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from rankdet.config.explain import explain_keys
from rankdet.config.load import load_recipe
from rankdet.config.losses import ALRP, Dense, RankSort
from rankdet.config.recipe import Recipe


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "test", "schedule": {"steps": 10}} | sections)


def test_the_defaults_are_the_published_settings() -> None:
    published = load_recipe("retinanet_r50_alrp").model_dump()
    own = recipe(schedule={"epochs": 100}).model_dump()
    assert own["model"] == published["model"]
    assert own["assigner"] == published["assigner"]
    assert own["optimizer"] == published["optimizer"]
    assert own["batch"] == published["batch"]
    assert own["test"] == published["test"]


def test_integers_are_numbers_and_nothing_else_is_converted() -> None:
    assert recipe(optimizer={"lr": 1}).optimizer.lr == 1.0
    for lr in ("0.01", True, None, [0.01]):
        with pytest.raises(ValidationError, match="number"):
            recipe(optimizer={"lr": lr})
    for size in (8.0, "8", True, None):
        with pytest.raises(ValidationError, match="integer"):
            recipe(batch={"size": size})
    with pytest.raises(ValidationError, match="boolean"):
        recipe(model={"centreness": 0})
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="finite"):
            recipe(optimizer={"lr": number})


def test_a_recipe_cannot_be_changed() -> None:
    ready = recipe()
    with pytest.raises(ValidationError, match="frozen"):
        ready.optimizer.lr = 1.0
    assert hash(ready) == hash(recipe())  # no list anywhere


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"optimizer\.learning_rate"):
        recipe(optimizer={"learning_rate": 0.1})


def test_a_kind_decides_which_keys_there_are() -> None:
    assert isinstance(recipe(criterion={"kind": "alrp"}).criterion, ALRP)
    assert isinstance(recipe(criterion={"kind": "rank_sort", "delta": 0.1}).criterion, RankSort)
    for kind in ("iou", "giou", "diou", "ciou"):
        loss = recipe(criterion={"kind": "dense", "box": {"kind": kind}}).criterion
        assert isinstance(loss, Dense)
        assert loss.box.kind == kind
    with pytest.raises(ValidationError, match="tau"):
        recipe(criterion={"kind": "rank_sort", "tau": 0.5})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"schedule": {}}, "exactly one of epochs and steps"),
        ({"schedule": {"epochs": 1, "steps": 1}}, "exactly one of epochs and steps"),
        ({"batch": {"size": 10, "micro": 4}}, r"size \(10\) must be a multiple of micro \(4\)"),
        ({"data": {"test_shorter": 600, "test_longer": 500}}, "must not exceed test_longer"),
        ({"assigner": {"kind": "max_iou", "positive": 0.3}}, r"negative \(0.4\) must not exceed"),
        ({"criterion": {"kind": "dense", "classification": {"kind": "focal", "gamma": 0.5}}},
         "0, or 1 and more"),
        ({"model": {"detector": "atss", "centreness": True}}, "needs criterion.kind dense: alrp"),
        ({"model": {"centreness": True}, "criterion": {"kind": "dense"}}, "needs detector atss"),
        ({"model": {"level_scales": True}}, "level_scales needs detector atss"),
        ({"schedule": {"steps": 9, "decay": {"kind": "drops", "at": [0.9, 0.5]}}}, "ascend"),
        ({"schedule": {"steps": 9, "decay": {"kind": "drops", "at": [0.5, 0.5]}}}, "ascend"),
        ({"data": {"augment": {"kind": "light", "scale": [2.0, 1.0]}}}, "ascending"),
        ({"schedule": {"steps": 9, "balance_period": "never"}}, "epoch"),
        ({"model": {"box_stds": [0.1, 0.1]}}, "required"),
        ({"model": {"anchors": {"ratios": []}}}, "at least 1 item"),
        ({"model": {"anchors": {"ratios": [0.5, 0]}}}, "greater than 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**sections)


def test_centreness_is_for_dense_losses() -> None:
    sections = {"model": {"detector": "atss", "centreness": True}, "criterion": {"kind": "dense"}}
    assert recipe(**sections).model.centreness


def test_every_key_is_explained() -> None:
    keys = explain_keys()
    assert len(keys) > 80
    for key in keys:
        assert key.meaning.endswith("."), key
        assert key.values, key
        assert "PydanticUndefined" not in str(key)
    by_name = {key.name: key for key in keys}
    assert by_name["optimizer.lr"].values == "number, above 0, to 100; default 0.008"
    assert by_name["schedule.balance_period"].values == (
        'epoch or integer, from 1, to 1e+09; default "epoch"'
    )
    assert by_name["model.box_stds"].values.startswith("list of 4: number, above 0")
    assert by_name["criterion.tau"].meaning.startswith("For criterion.kind alrp: IoU ")
    assert [key.values for key in keys if key.name == "assigner.kind"] == [
        "max_iou",
        "atss",
        "fcos",
        "fovea",
        "paa",
        "none",
    ]


def test_reading_a_recipe_loads_nothing_heavy() -> None:
    code = (
        "import sys, rankdet.config.load as load\n"
        "load.load_recipe('demo', ['optimizer.lr=1'])\n"
        "print(*{'torch', 'numpy', 'torchvision', 'pytorch_lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": {"detector": "fcos"}}, "model.detector fcos needs assigner.kind fcos or fovea"),
        ({"model": {"detector": "faster_rcnn"}}, "need each other"),
        ({"criterion": {"kind": "free_anchor"}}, "assigner.kind none and criterion.kind"),
        ({"criterion": {"kind": "paa"}}, "model.iou_branch and criterion.kind paa"),
        ({"model": {"iou_branch": True}}, "iou_branch needs detector atss"),
        ({"model": {"detector": "atss", "iou_branch": True, "centreness": True}}, "not both"),
        ({"model": {"detector": "fovea", "levels": 4}, "assigner": {"kind": "fovea"}},
         "one range for each of the model.levels (4), got 5"),
        ({"model": {"detector": "atss", "centreness": True},
          "criterion": {"kind": "dense", "weighting": "iou"}}, "no place beside model.centreness"),
        ({"model": {"detector": "faster_rcnn"}, "criterion": {"kind": "two_stage"},
          "assigner": {"kind": "paa"}}, "needs assigner.kind max_iou or atss, got paa"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(complaint)):
        recipe(schedule={"epochs": 1}, **change)
