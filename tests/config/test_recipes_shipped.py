"""The recipes in the package: each loads, stays itself, can be built, and differs as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankdet.config.build import (
    build_augment,
    build_optimizer,
    build_schedule,
    build_test_resize,
    total_steps,
)
from rankdet.config.build_criterion import build_criterion
from rankdet.config.build_model import build_detector, build_post_process
from rankdet.config.load import dump, flatten, load_recipe, parse_recipe, shipped
from rankdet.config.recipe import Recipe
from rankdet.config.text import read_yaml
from rankdet.structures import Targets

NAMES = [name for name, _ in shipped()]
SMALL = [name for name in NAMES if name.endswith("-small") or name == "demo"]
FOLDER = Path(__file__).resolve().parents[2] / "src" / "rankdet" / "recipes"
EVERY = pytest.mark.parametrize("name", NAMES)

FOCAL = {
    f"criterion.{key}"
    for key in ("kind", "classification.kind", "classification.alpha", "classification.gamma",
                "classification.count_images", "box.kind", "box.beta", "box.per", "box_weight",
                "weighting")
}  # fmt: skip
AP = {key for key in FOCAL if not key.endswith(("alpha", "gamma", "count_images"))} | {
    "criterion.classification.delta", "criterion.classification.interpolated"
}  # fmt: skip
GIOU = {"criterion.box.beta", "criterion.box.per"}
ALRP = {
    f"criterion.{key}"
    for key in ("kind", "delta", "tau", "box", "localisation", "loc_ranking", "balance.kind")
}  # fmt: skip
PUBLISHED = ALRP | {"criterion.balance.initial"}


def differences(one: str, other: str) -> set[str]:
    """Return the keys that only one of two recipes has, or that differ."""
    a, b = (flatten(load_recipe(name)) for name in (one, other))
    differ = {key for key in a.keys() | b.keys() if a.get(key, ...) != b.get(key, ...)}
    return differ - {"name", "description"}


# One detector each: what a comparison of losses would compare beside the losses.
DIFFER: list[tuple[str, str, set[str]]] = [
    ("retinanet_r50_alrp", "retinanet_r50_ap", PUBLISHED | AP | {"optimizer.lr"}),
    ("retinanet_r50_alrp", "retinanet_r50_focal", PUBLISHED | FOCAL
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
    *((f"{name}_alrp-small", f"{name}_alrp_published-small",
       {"criterion.localisation", "criterion.balance.kind", "criterion.balance.initial"})
      for name in ("atss", "retinanet", "fovea", "fcos")),
    ("faster_rcnn_alrp-small", "faster_rcnn_alrp_published-small",
     {f"criterion.{stage}.{key}" for stage in ("first", "second")
      for key in ("localisation", "balance.kind", "balance.initial")}),
    ("atss_alrp-small", "demo",
     {"model.levels", "optimizer.lr", "data.train_size", "data.test_shorter",
      "data.test_longer", "data.cache_mb",
      "data.augment.kind", "data.augment.scale", "data.augment.stretch", "data.augment.colour",
      "data.augment.horizontal_flip", "data.augment.vertical_flip", "data.augment.min_visible",
      "data.augment.keep_aspect", "schedule.steps", "training.evaluations"}),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "keys"), DIFFER)
def test_recipes_of_a_detector_differ_in_these_keys_only(
    one: str, other: str, keys: set[str]
) -> None:
    assert differences(one, other) == keys


MAX_IOU = {f"assigner.{key}" for key in ("positive", "negative", "min_positive", "low_quality")}
PAA = {f"assigner.{key}" for key in ("kind", "overlap", "box_weight", "crowd_overlap")}


# What a comparison of these would compare beside the losses.
BESIDE: list[tuple[str, str, set[str]]] = [
    ("fovea_r50_alrp", "fovea_r50_focal", {"optimizer.lr"}),
    ("fovea_r50_alrp", "fovea_r50_ap", {"optimizer.lr"}),
    ("fovea_r50_alrp", "retinanet_r50_alrp",
     {"model.detector", "schedule.decay.at", "assigner.kind", "assigner.scale_ranges",
      "assigner.sigma", *MAX_IOU}),
    ("atss_r50_alrp", "atss_r50_focal",
     {"optimizer.lr", "model.anchors.octave_scales", "model.anchors.scale", "model.centreness",
      "model.extra_levels", "model.head_norm", "model.level_scales"}),
    ("atss_r50_focal", "atss_r50_quality_focal", {"model.centreness"}),
    ("atss_r50_focal", "atss_r50_varifocal", {"model.centreness"}),
    ("fcos_r50_focal", "fcos_r50_alrp", {"model.centreness", "optimizer.lr"}),
    ("retinanet_r50_focal", "retinanet_r50_dr", set()),
    ("retinanet_r50_focal", "free_anchor_r50",
     {"model.box_stds", "assigner.kind", "assigner.crowd_overlap", *MAX_IOU}),
    ("faster_rcnn_r50_alrp", "faster_rcnn_r50_ce",
     {"model.box_stds", "model.class_prior", "model.regions.add_objects",
      "model.regions.background", "optimizer.lr"}),
    ("faster_rcnn_r50_ce", "faster_rcnn_r50_ce_giou", set()),
    ("atss_r50_alrp", "atss_r101_alrp", {"model.backbone"}),
    ("atss_r101_alrp", "atss_x101_alrp", {"model.backbone"}),
    ("atss_r101_alrp", "atss_r101_alrp_800",
     {"batch.micro", "batch.size", "data.test_longer", "data.test_shorter", "data.train_size",
      "model.anchors.octave_scales", "optimizer.lr", "optimizer.reference_batch",
      "schedule.decay.at"}),
    ("atss_r101_alrp_800", "atss_x101_alrp_800", {"model.backbone"}),
    ("atss_x101_alrp", "atss_x101_alrp_800",
     {"batch.micro", "batch.size", "data.test_longer", "data.test_shorter", "data.train_size",
      "model.anchors.octave_scales", "optimizer.lr", "optimizer.reference_batch",
      "schedule.decay.at"}),
    ("atss_x101_alrp_800", "atss_x101_dcn_alrp_800", {"model.deformable_stages"}),
    ("fovea_alrp-small", "fovea_focal-small", set()),
    ("fovea_alrp-small", "fovea_ap-small", set()),
    ("fcos_alrp-small", "fcos_focal-small", {"model.centreness"}),
    ("retinanet_focal-small", "retinanet_dr-small", set()),
    ("faster_rcnn_alrp-small", "faster_rcnn_ce-small",
     {"model.class_prior", "model.regions.add_objects", "model.regions.background"}),
    ("atss_r50_focal", "paa_r50",
     {"model.centreness", "model.iou_branch", "test.nms_iou", *PAA}),
    ("atss_focal_giou-small", "paa-small", {"model.iou_branch", *PAA}),
    ("atss_focal_giou-small", "atss_quality_focal-small", set()),
    ("atss_focal_giou-small", "atss_varifocal-small", set()),
    ("retinanet_focal-small", "free_anchor-small",
     {"assigner.kind", "assigner.crowd_overlap", *MAX_IOU}),
    ("atss_alrp-small", "fovea_alrp-small",
     {"model.detector", "assigner.kind", "assigner.scale_ranges", "assigner.sigma",
      "assigner.top_k"}),
    ("atss_alrp-small", "fcos_alrp-small",
     {"model.detector", "model.level_scales", "assigner.kind", "assigner.regress_ranges",
      "assigner.centre_radius", "assigner.top_k"}),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "keys"), BESIDE)
def test_beside_the_loss_recipes_of_a_detector_differ_in_these_keys_only(
    one: str, other: str, keys: set[str]
) -> None:
    found = {key for key in differences(one, other) if not key.startswith("criterion.")}
    assert found == keys


def test_every_recipe_is_compared_with_another() -> None:
    assert {name for one, other, _ in (*DIFFER, *BESIDE) for name in (one, other)} == set(NAMES)


def test_every_detector_and_loss_has_a_small_recipe() -> None:
    """What each network, assigner and loss of the published recipes is learned with on a CPU."""

    def parts(name: str) -> set[tuple[str, object]]:
        flat = flatten(load_recipe(name))
        keys = ("model.detector", "assigner.kind", "criterion.kind", "criterion.first.kind",
                "criterion.classification.kind")  # fmt: skip
        return {(key, flat[key]) for key in keys if key in flat}

    small = {part for name in SMALL for part in parts(name)}
    assert {part for name in NAMES for part in parts(name)} == small


def test_the_published_numbers() -> None:
    # From the authors' configuration files and section 5 of their paper.
    for name, lr, drops in (
        ("retinanet_r50_alrp", 0.008, [0.6, 0.8]),
        ("retinanet_r50_ap", 0.002, [0.6, 0.8]),
        ("retinanet_r50_focal", 0.02, [0.75, 0.95]),
        ("atss_r50_alrp", 0.008, [0.75, 0.95]),
        ("fovea_r50_alrp", 0.008, [0.75, 0.95]),
        ("fovea_r50_focal", 0.02, [0.75, 0.95]),
        ("fovea_r50_ap", 0.002, [0.75, 0.95]),
        ("faster_rcnn_r50_alrp", 0.012, [0.75, 0.95]),
        ("faster_rcnn_r50_ce", 0.04, [0.75, 0.95]),
        ("faster_rcnn_r50_ce_giou", 0.04, [0.75, 0.95]),
        ("atss_r101_alrp", 0.008, [0.75, 0.95]),
        ("atss_x101_alrp", 0.008, [0.75, 0.95]),
    ):
        flat = flatten(load_recipe(name))
        assert flat["optimizer.lr"] == lr
        assert flat["schedule.decay.at"] == drops
        assert flat["batch.size"] == flat["optimizer.reference_batch"] == 32
        assert flat["schedule.epochs"] == 100
        assert flat["schedule.warmup_steps"] == 500
        assert flat["data.train_size"] == 512
        assert flat["model.norm"] == "frozen_statistics"
        assert flat["model.frozen_stages"] == 1


def test_the_published_numbers_of_two_stages() -> None:
    # From the authors' configuration files.
    both = {
        "model.anchors.scale": 8,
        "model.anchors.octave_scales": 1,
        "model.anchors.ratios": [0.5, 1.0, 2.0],
        "model.levels": 5,
        "model.regions.hidden": 1024,
        "model.regions.pooled_size": 7,
        "model.regions.agnostic": False,
        "model.regions.box_stds": [0.1, 0.1, 0.2, 0.2],
        "model.regions.candidates": 1000,  # 2000 in training
        "model.regions.number": 1000,
        "model.regions.nms_iou": 0.7,
        "assigner.positive": 0.7,
        "assigner.negative": 0.3,
        "assigner.min_positive": 0.3,
        "assigner.low_quality": True,
        "criterion.second_assigner.positive": 0.5,
        "criterion.second_assigner.negative": 0.5,
        "criterion.second_assigner.min_positive": 0.5,
        "criterion.second_assigner.low_quality": False,
        "test.nms_iou": 0.5,
        "test.max_detections": 100,
    }
    alrp = {
        "model.box_stds": [0.1, 0.1, 0.2, 0.2],
        "model.class_prior": 0.01,
        "model.regions.background": False,  # a sigmoid of each class
        "model.regions.add_objects": False,
        "criterion.first_weight": 0.2,
        "criterion.first_sample": None,
        "criterion.second_sample": None,
        "criterion.first.tau": 0.7,
        "criterion.second.tau": 0.5,
    } | {
        f"criterion.{stage}.{key}": value
        for stage in ("first", "second")
        for key, value in {"kind": "alrp", "box": "giou", "delta": 1.0, "loc_ranking": "hard",
                           "balance.kind": "self", "balance.initial": 50}.items()
    }  # fmt: skip
    entropy = {
        "model.box_stds": [1.0, 1.0, 1.0, 1.0],
        "model.class_prior": 0.5,
        "model.regions.background": True,
        "model.regions.add_objects": True,
        "criterion.first_weight": 1.0,
        "criterion.first_sample": 256,
        "criterion.second_sample": 512,
        "criterion.first.kind": "cross_entropy",
        "criterion.first.box.kind": "smooth_l1",
        "criterion.first.box.beta": 0.0,
        "criterion.second.kind": "cross_entropy",
    }
    smooth_l1 = {"criterion.second.box.kind": "smooth_l1", "criterion.second.box.beta": 0.0,
                 "criterion.second.box_weight": 1.0}  # fmt: skip
    giou = {"criterion.second.box.kind": "giou", "criterion.second.box_weight": 10.0}
    for name, own in (
        ("faster_rcnn_r50_alrp", alrp),
        ("faster_rcnn_r50_ce", entropy | smooth_l1),
        ("faster_rcnn_r50_ce_giou", entropy | giou),
    ):
        flat, published = flatten(load_recipe(name)), both | own
        assert {key: flat[key] for key in published} == published


@pytest.mark.parametrize(
    ("name", "backbone", "deformable"),
    [
        ("atss_r101_alrp_800", "resnet101", 0),
        ("atss_x101_alrp_800", "resnext101_64x4d", 0),
        ("atss_x101_dcn_alrp_800", "resnext101_64x4d", 3),
    ],
)
def test_the_published_numbers_at_scale_800(name: str, backbone: str, deformable: int) -> None:
    published = {
        "model.backbone": backbone,
        "model.deformable_stages": deformable,
        "model.frozen_stages": 1,
        "model.norm": "frozen_statistics",
        "model.extra_levels": "c5",
        "model.anchors.scale": 4,
        "model.anchors.octave_scales": 3,
        "model.anchors.ratios": [1.0],
        "assigner.top_k": 9,
        "data.train_size": 800,
        "data.test_shorter": 800,
        "data.test_longer": 1333,
        "batch.size": 16,
        "batch.micro": 4,
        "optimizer.lr": 0.004,
        "optimizer.reference_batch": 16,
        "schedule.epochs": 100,
        "schedule.warmup_steps": 500,
        "schedule.decay.at": [0.6, 0.8],
        "test.nms_iou": 0.5,
        "test.max_detections": 100,
    }
    flat = flatten(load_recipe(name))
    assert {key: flat[key] for key in published} == published


@EVERY
def test_a_recipe_survives_being_written_down(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert parse_recipe(dump(recipe), source=name) == recipe


@EVERY
def test_a_recipe_can_be_read_in_few_files(name: str) -> None:
    files = [name]
    while True:
        text = (FOLDER / f"{files[-1]}.yaml").read_text(encoding="utf-8")
        tree, _ = read_yaml(text, files[-1])
        if "base" not in tree:
            break
        files.append(tree["base"])
    assert len(files) <= 5, files


def built(name: str) -> tuple[Recipe, Any]:
    """Return a recipe and its network, without numbers: instant for a ResNet-101 too."""
    recipe = load_recipe(name, ["model.weights=null"])
    with torch.device("meta"):
        return recipe, build_detector(recipe, 3).eval()


@pytest.mark.parametrize("name", [n for n in NAMES if "faster" not in n and "dcn" not in n])
def test_a_network_can_be_built(name: str) -> None:
    recipe, detector = built(name)
    with torch.device("meta"):
        predictions = detector(torch.empty(2, 3, 128, 160))
    priors = predictions.logits.shape[1]
    assert predictions.logits.shape == (2, priors, 3)
    assert predictions.codes.shape == (2, priors, 4)
    assert sum(predictions.priors.counts) == priors
    assert predictions.priors.strides == tuple(8 * 2**i for i in range(recipe.model.levels))
    assert detector.branches == needs_of(recipe)


@pytest.mark.parametrize("name", [n for n in NAMES if "faster" in n or "dcn" in n])
def test_a_network_of_parts_that_need_numbers_can_be_built(name: str) -> None:
    recipe, detector = built(name)
    assert detector.branches == needs_of(recipe)
    assert detector.classes == 3


def needs_of(recipe: Recipe) -> frozenset[str]:
    """Return the branches that the criterion of a recipe trains."""
    criterion: Any = build_criterion(recipe)
    needs: frozenset[str] = criterion.needs
    return needs


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
    found = model["detector"].eval()(images)
    scores = getattr(found, "first", found).logits.sigmoid()
    prior = recipe.model.class_prior
    assert 0.1 * prior < scores.median().item() < min(4 * prior, 0.9)
