"""The recipes in the package: each loads, stays itself, can be built, and differs as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankdet.config.build import (
    build_augment,
    build_criterion,
    build_detector,
    build_optimizer,
    build_post_process,
    build_schedule,
    build_test_resize,
    total_steps,
)
from rankdet.config.load import dump, flatten, load_recipe, parse_recipe, shipped
from rankdet.config.text import read_yaml
from rankdet.structures import Targets

NAMES = [name for name, _ in shipped()]
SMALL = [name for name in NAMES if name.endswith("-small") or name == "demo"]
FOLDER = Path(__file__).resolve().parents[2] / "src" / "rankdet" / "recipes"
EVERY = pytest.mark.parametrize("name", NAMES)

FOCAL = {
    f"criterion.{key}"
    for key in ("kind", "classification.kind", "classification.alpha", "classification.gamma",
                "box.kind", "box.beta", "box.per", "box_weight")
}  # fmt: skip
AP = (FOCAL - {"criterion.classification.alpha", "criterion.classification.gamma"}) | {
    "criterion.classification.delta", "criterion.classification.interpolated"
}  # fmt: skip
GIOU = {"criterion.box.beta", "criterion.box.per"}
ALRP = {
    f"criterion.{key}"
    for key in ("kind", "delta", "tau", "box", "loc_ranking", "balance.kind", "balance.initial")
}


def differences(one: str, other: str) -> set[str]:
    """Return the keys that only one of two recipes has, or that differ."""
    a, b = (flatten(load_recipe(name)) for name in (one, other))
    differ = {key for key in a.keys() | b.keys() if a.get(key, ...) != b.get(key, ...)}
    return differ - {"name", "description"}


# One detector each: what a comparison of losses would compare beside the losses.
@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ("retinanet_r50_alrp", "retinanet_r50_ap", ALRP | AP | {"optimizer.lr"}),
        ("retinanet_r50_alrp", "retinanet_r50_focal", ALRP | FOCAL
         | {"optimizer.lr", "schedule.decay.at", "model.anchors.octave_scales", "model.box_stds"}),
        ("retinanet_r50_alrp", "atss_r50_alrp",
         {"model.detector", "model.anchors.ratios", "schedule.decay.at", "assigner.kind",
          "assigner.top_k", "assigner.positive", "assigner.negative", "assigner.min_positive",
          "assigner.low_quality"}),
        ("atss_alrp-small", "atss_focal-small", ALRP | FOCAL),
        ("atss_alrp-small", "atss_focal_giou-small", ALRP | FOCAL - GIOU),
        ("atss_alrp-small", "atss_ap_giou-small", ALRP | AP - GIOU),
        ("atss_alrp-small", "atss_rank_sort-small", ALRP),
        ("atss_focal-small", "atss_focal_giou-small",
         GIOU | {"criterion.box.kind", "criterion.box_weight"}),
        ("retinanet_alrp-small", "retinanet_focal-small", ALRP | FOCAL),
        ("retinanet_alrp-small", "retinanet_ap-small", ALRP | AP),
        ("atss_alrp-small", "retinanet_alrp-small",
         {"model.detector", "model.anchors.ratios", "assigner.kind", "assigner.top_k",
          "assigner.positive", "assigner.negative", "assigner.min_positive",
          "assigner.low_quality"}),
        ("atss_alrp-small", "demo",
         {"model.levels", "data.train_size", "data.test_shorter", "data.test_longer",
          "data.augment.kind", "data.augment.scale", "data.augment.stretch", "data.augment.colour",
          "data.augment.horizontal_flip", "data.augment.vertical_flip", "data.augment.min_visible",
          "data.augment.keep_aspect", "schedule.steps", "training.evaluations"}),
    ],
)  # fmt: skip
def test_recipes_of_a_detector_differ_in_these_keys_only(
    one: str, other: str, keys: set[str]
) -> None:
    assert differences(one, other) == keys


def test_the_published_numbers() -> None:
    # From the authors' configuration files and section 5 of their paper.
    for name, lr, drops in (
        ("retinanet_r50_alrp", 0.008, [0.6, 0.8]),
        ("retinanet_r50_ap", 0.002, [0.6, 0.8]),
        ("retinanet_r50_focal", 0.02, [0.75, 0.95]),
        ("atss_r50_alrp", 0.008, [0.75, 0.95]),
    ):
        flat = flatten(load_recipe(name))
        assert flat["optimizer.lr"] == lr
        assert flat["schedule.decay.at"] == drops
        assert flat["batch.size"] == flat["optimizer.reference_batch"] == 32
        assert flat["schedule.epochs"] == 100
        assert flat["schedule.warmup_steps"] == 500
        assert flat["data.train_size"] == 512
        assert flat["model.norm"] == "frozen"
        assert flat["model.frozen_stages"] == 1


@EVERY
def test_a_recipe_survives_being_written_down(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert parse_recipe(dump(recipe), source=name) == recipe


@EVERY
def test_a_recipe_has_one_base_at_most(name: str) -> None:
    tree, _ = read_yaml((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), name)
    if "base" in tree:
        base, _ = read_yaml((FOLDER / f"{tree['base']}.yaml").read_text(encoding="utf-8"), name)
        assert "base" not in base


@EVERY
def test_a_network_can_be_built(name: str) -> None:
    recipe = load_recipe(name, ["model.weights=null"])
    with torch.device("meta"):  # shapes without numbers: instant for a ResNet-50 too
        detector = build_detector(recipe, 3).eval()
        predictions = detector(torch.empty(2, 3, 128, 160))
    priors = predictions.logits.shape[1]
    assert predictions.logits.shape == (2, priors, 3)
    assert predictions.codes.shape == (2, priors, 4)
    assert sum(predictions.priors.counts) == priors
    assert predictions.priors.strides == tuple(8 * 2**i for i in range(recipe.model.levels))
    assert detector.branches == build_criterion(recipe).needs


@EVERY
def test_what_surrounds_the_network_can_be_built(name: str) -> None:
    recipe = load_recipe(name)
    steps = total_steps(recipe, 117_266)
    assert steps > recipe.schedule.warmup_steps
    build_post_process(recipe)
    image = torch.zeros(3, 50, 60, dtype=torch.uint8)
    objects = torch.tensor([[5.0, 5, 40, 40]]), torch.tensor([0]), torch.tensor([False])
    example = build_augment(recipe)(image, *objects)
    assert example.image.shape == (3, recipe.data.train_size, recipe.data.train_size)
    assert max(build_test_resize(recipe)(image)[0].shape[1:]) <= recipe.data.test_longer
    build_schedule(recipe, build_optimizer(recipe, nn.Linear(2, 2)), steps)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_takes_a_step(name: str) -> None:
    recipe = load_recipe(name)
    model: Any = nn.ModuleDict(
        {"detector": build_detector(recipe, 2), "criterion": build_criterion(recipe)}
    )
    optimizer = build_optimizer(recipe, model)
    targets = Targets.stack(
        [torch.tensor([[8.0, 8, 40, 44]]), torch.zeros(0, 4)],
        [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)],
        [torch.tensor([False]), torch.zeros(0, dtype=torch.bool)],
        [(64, 64), (64, 64)],
    )
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    terms = model["criterion"](model["detector"](images), targets)
    assert terms.total.isfinite()
    assert terms.parts["positives"] > 0
    terms.total.backward()
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None, weight_name
        assert weight.grad.isfinite().all(), weight_name
    optimizer.step()
    model["criterion"].end_period()
    # Untrained, every place has about the prior's score.
    scores = model["detector"].eval()(images).logits.sigmoid()
    assert 0.01 < scores.median().item() < 0.4
