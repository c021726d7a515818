"""The key `ranking`: which losses have it, where it arrives, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from rankdet.cli.common import Voice
from rankdet.cli.running import describe
from rankdet.config.assemble import Hardware, make_plan
from rankdet.config.build_criterion import build_criterion
from rankdet.config.explain import explain_keys
from rankdet.config.load import RecipeError, load_recipe
from rankdet.config.losses import rankings_of

ALRP = "criterion={kind: alrp, ranking: global}"
RANK_SORT = "criterion={kind: rank_sort, ranking: global}"
AP = "criterion={kind: dense, classification: {kind: ap}, ranking: global}"
FOCAL = "criterion={kind: dense, classification: {kind: focal}}"


def ranking_in(criterion: nn.Module) -> str:
    inner: Any = getattr(criterion, "classification", criterion)
    ranking: str = inner.ranking
    return ranking


@pytest.mark.parametrize("criterion", [ALRP, RANK_SORT, AP])
def test_it_arrives_and_is_local_by_default(criterion: str) -> None:
    recipe = load_recipe("demo", [criterion])
    assert rankings_of(recipe.criterion) == ("global",)
    assert ranking_in(build_criterion(recipe)) == "global"
    recipe = load_recipe("demo", [criterion.replace(", ranking: global", "")])
    assert rankings_of(recipe.criterion) == ("local",)
    assert ranking_in(build_criterion(recipe)) == "local"


def test_each_stage_has_its_own() -> None:
    recipe = load_recipe("faster_rcnn_r50_alrp", ["criterion.second.ranking=global"])
    assert rankings_of(recipe.criterion) == ("local", "global")
    built: Any = build_criterion(recipe)
    assert (built.first.ranking, built.second.criterion.ranking) == ("local", "global")


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (AP.replace("kind: ap", "kind: focal"), "ranking global needs classification.kind ap: foc"),
        ("criterion={kind: free_anchor, ranking: global}", "unknown key criterion.ranking of"),
        ("criterion={kind: alrp, ranking: all}", "'local' or 'global', got \"all\""),
    ],
)
def test_what_ranks_nothing_has_no_ranking(criterion: str, message: str) -> None:
    with pytest.raises(RecipeError) as fault:
        load_recipe("demo", [criterion])
    assert message in str(fault.value)


def test_it_is_explained() -> None:
    keys = [key for key in explain_keys() if key.name == "criterion.ranking"]
    assert [key.meaning.partition(":")[0] for key in keys] == [
        f"For criterion.kind {kind}" for kind in ("dense", "alrp", "rank_sort", "paa")
    ]
    assert {key.values for key in keys} == {'local or global; default "local"'}
    assert all("one ranking of the micro-batches of all processes" in key.meaning for key in keys)


def said_of(criterion: str, *, micro: int, devices: int) -> str:
    """Return what a run says of a batch of 8 images before it starts."""
    voice = Voice()
    sizes = ("batch.size=8", f"batch.micro={micro}", "optimizer.reference_batch=8")
    recipe = load_recipe("demo", [criterion, *sizes])
    hardware = Hardware(accelerator="cpu", devices=devices)
    images: Any = range(16)
    with voice.console.capture() as captured:
        describe(recipe, make_plan(recipe, 16, hardware), images, hardware, voice)
    return captured.get()


def test_a_run_says_what_a_ranking_spans() -> None:
    within = "ranks within a micro-batch, not over the whole batch of 8"
    over = "a global ranking spans the 4 images of all processes"
    local = ALRP.replace("global", "local")
    assert within in said_of(local, micro=2, devices=2)
    assert within in said_of(local, micro=2, devices=1)
    assert within in said_of(ALRP, micro=2, devices=1)
    said = said_of(ALRP, micro=2, devices=2)
    assert within not in said
    assert f"{over} at a time, not the whole batch of 8" in said
    whole = said_of(AP, micro=4, devices=2)
    assert "spans the 8 images of all processes\n" in whole
    assert "rank" not in said_of(ALRP, micro=8, devices=1).partition("\n")[2]
    focal = said_of(FOCAL, micro=2, devices=2)
    assert "2 x 2 micro-batches of 2" in focal
    assert "rank" not in focal.partition("\n")[2]
