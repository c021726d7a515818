"""From recipes to objects: every setting arrives, and optimiser and schedule do as they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from rankdet.assign.atss import ATSSAssigner
from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.config.build import (
    build_augment,
    build_optimizer,
    build_schedule,
    build_test_resize,
    learning_rate,
    total_steps,
)
from rankdet.config.build_criterion import build_assigner, build_criterion
from rankdet.config.build_model import build_detector, build_post_process
from rankdet.config.load import RecipeError, load_recipe
from rankdet.config.recipe import Recipe
from rankdet.criteria.alrp import ALRPCriterion
from rankdet.criteria.balance import LearnedBalance, ScalarBalance, SelfBalance
from rankdet.criteria.dense import (
    APClassification,
    DenseCriterion,
    FocalClassification,
    IoUBox,
    SmoothL1Box,
)
from rankdet.criteria.rank_sort import RankSortCriterion
from rankdet.data.transforms import LightAugment, PlainResize, SSDAugment, TestResize
from rankdet.models.heads import DenseHead
from rankdet.models.postprocess import PostProcess
from rankdet.ops.box_codes import DeltaCoder


def changed(*overrides: str, name: str = "demo") -> Recipe:
    return load_recipe(name, overrides)


def test_the_settings_of_the_network_arrive() -> None:
    recipe = changed(
        "model.levels=4", "model.fpn_channels=32", "model.head_convs=1", "model.level_scales=true",
        "model.anchors={scale: 3, octave_scales: 3, ratios: [1, 2]}", "model.class_prior=0.2",
        "model.box_stds=[1, 2, 3, 4]", "model.centreness=true", "criterion.kind=dense",
    )  # fmt: skip
    detector = build_detector(recipe, 7)
    assert detector.classes == 7
    assert detector.branches == {"centreness"}
    predictions = detector(torch.zeros(1, 3, 128, 64))
    assert predictions.priors.strides == (8, 16, 32, 64)
    places = 16 * 8 + 8 * 4 + 4 * 2 + 2
    assert predictions.logits.shape == (1, places * 6, 7)
    width = predictions.priors.boxes[0, 2] - predictions.priors.boxes[0, 0]
    assert width.item() == 24
    assert predictions.coder == DeltaCoder((1.0, 2.0, 3.0, 4.0))
    scores = predictions.logits.detach().sigmoid()
    assert scores.median().item() == pytest.approx(0.2, abs=0.1)
    assert build_criterion(recipe).needs == {"centreness"}


def test_a_retinanet_has_no_branches() -> None:
    detector = build_detector(changed(name="retinanet_alrp-small"), 2)
    assert detector.branches == frozenset()
    head = detector.head
    assert isinstance(head, DenseHead)
    assert not any("scale" in name for name, _ in head.named_parameters())


def test_weights_that_cannot_be_had_are_the_recipes_fault(tmp_path: Path) -> None:
    for weights in (str(tmp_path / "none.safetensors"), "IMAGENET1K_V9"):
        with pytest.raises(RecipeError, match=r"model\.weights: ") as error:
            build_detector(changed(f"model.weights={weights}"), 2)
        assert weights in str(error.value)


def test_the_settings_of_assigners_arrive() -> None:
    recipe = changed("assigner={kind: max_iou, positive: 0.6, negative: 0.3, min_positive: 0.1, "
                     "low_quality: false, crowd_overlap: null}")  # fmt: skip
    assert build_assigner(recipe.assigner) == MaxIoUAssigner(
        positive=0.6, negative=0.3, min_positive=0.1, low_quality=False, crowd_overlap=None
    )
    recipe = changed("assigner={kind: atss, top_k: 5, crowd_overlap: 0.2}")
    assert build_assigner(recipe.assigner) == ATSSAssigner(top_k=5, crowd_overlap=0.2)


def test_the_settings_of_dense_losses_arrive() -> None:
    criterion = build_criterion(
        changed(
            "criterion={kind: dense, box_weight: 3, classification: {kind: focal, alpha: 0.4, "
            "gamma: 1.5}, box: {kind: smooth_l1, beta: 0.5, per: number}}"
        )
    )
    assert isinstance(criterion, DenseCriterion)
    assert criterion.assigner == ATSSAssigner(top_k=9)
    assert criterion.classification == FocalClassification(alpha=0.4, gamma=1.5)
    assert criterion.box == SmoothL1Box(beta=0.5, per="number")
    assert criterion.box_weight == 3.0
    assert criterion.needs == frozenset()
    criterion = build_criterion(
        changed(
            "criterion={kind: dense, classification: {kind: ap, delta: 0.5, interpolated: "
            "false}, box: {kind: diou}}"
        )
    )
    assert isinstance(criterion, DenseCriterion)
    assert criterion.classification == APClassification(delta=0.5, interpolated=False)
    assert criterion.box == IoUBox("diou")


def test_the_settings_of_ranking_losses_arrive() -> None:
    criterion = build_criterion(changed(
        "criterion={kind: alrp, delta: 0.5, tau: 0.4, box: ciou, loc_ranking: hard}"
    ))  # fmt: skip
    assert isinstance(criterion, ALRPCriterion)
    found = (criterion.delta, criterion.tau, criterion.box, criterion.loc_ranking)
    assert found == (0.5, 0.4, "ciou", "hard")
    criterion = build_criterion(changed("criterion={kind: rank_sort, delta: 0.25}"))
    assert isinstance(criterion, RankSortCriterion)
    assert criterion.delta == 0.25


def balance_of(text: str) -> nn.Module:
    criterion = build_criterion(changed(f"criterion.balance={text}"))
    assert isinstance(criterion, ALRPCriterion)
    return criterion.balance


def test_the_settings_of_balances_arrive() -> None:
    balance = balance_of("{kind: self, initial: 20}")
    assert isinstance(balance, SelfBalance)
    assert balance.weight.item() == 20
    balance = balance_of("{kind: scalar, w_r: 5}")
    assert isinstance(balance, ScalarBalance)
    assert balance.w_r == 5
    assert isinstance(balance_of("{kind: learned}"), LearnedBalance)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{kind: ssd}", SSDAugment(96)),
        ("{kind: plain}", PlainResize(96)),
        ("{kind: plain, keep_aspect: false, horizontal_flip: true}",
         PlainResize(96, keep_aspect=False, flip=True)),
        ("{kind: light}", LightAugment(96)),
        ("{kind: light, scale: [0.5, 2], stretch: 1.2, colour: 0.1, horizontal_flip: false, "
         "vertical_flip: true, min_visible: 0.5}",
         LightAugment(96, scale=(0.5, 2.0), stretch=1.2, colour=0.1, horizontal_flip=False,
                      vertical_flip=True, min_visible=0.5)),
    ],
)  # fmt: skip
def test_the_settings_of_augmentations_arrive(text: str, wanted: object) -> None:
    assert build_augment(changed(f"data.augment={text}", "data.train_size=96")) == wanted


def test_the_settings_of_tests_arrive() -> None:
    recipe = changed(
        "data={test_shorter: 100, test_longer: 300}",
        "test={candidates: 7, score_threshold: 0.1, nms_iou: 0.6, max_detections: 5}",
    )
    assert build_test_resize(recipe) == TestResize(100, 300)
    assert build_post_process(recipe) == PostProcess(
        candidates=7, score_threshold=0.1, nms_iou=0.6, max_detections=5, min_score=0.0
    )
    soft = build_post_process(changed("test.nms=soft"))
    assert soft.nms == "soft"


def model_with(*, balance: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 1),
            "batch": nn.BatchNorm2d(4),
            "group": nn.GroupNorm(2, 4),
            "frozen": nn.Conv2d(4, 4, 1).requires_grad_(False),
            "balance": balance,
        }
    )


def decays(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {
        id(weight): group["weight_decay"]
        for group in optimizer.param_groups
        for weight in group["params"]
    }


def test_what_decays_and_what_does_not() -> None:
    model = model_with(balance=LearnedBalance())
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    of = {name: id(weight) for name, weight in model.named_parameters()}
    found = decays(build_optimizer(changed(), model))
    assert found.keys() == {id(weight) for weight in learned}
    assert found.pop(of["conv.weight"]) == 0.05
    assert set(found.values()) == {0.0}
    # Where all decays, a learned balance still does not.
    found = decays(build_optimizer(changed(name="retinanet_r50_alrp"), model))
    assert found.pop(of["balance.log_variances"]) == 0.0
    assert set(found.values()) == {1e-4}


def test_a_weight_that_is_shared_is_learned_once() -> None:
    conv = nn.Conv2d(3, 3, 1)
    optimizer = build_optimizer(changed(), nn.ModuleList([conv, nn.Sequential(conv)]))
    assert len(decays(optimizer)) == sum(len(g["params"]) for g in optimizer.param_groups) == 2


def test_the_learning_rate_grows_with_the_batch() -> None:
    recipe = changed("batch.size=64", name="retinanet_r50_alrp")
    assert learning_rate(recipe) == pytest.approx(0.016, rel=1e-12)
    optimizer = build_optimizer(recipe, nn.Linear(2, 2))
    assert isinstance(optimizer, SGD)
    assert {group["lr"] for group in optimizer.param_groups} == {learning_rate(recipe)}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def test_adamw_has_the_momentum_as_its_first_beta() -> None:
    optimizer = build_optimizer(changed("optimizer.momentum=0.8"), nn.Linear(2, 2))
    assert isinstance(optimizer, AdamW)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.999)}
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [("float32", "10", True), ("bf16", "null", True), ("bf16", "10", False), ("auto", "10", True)],
)
def test_a_fused_step_gives_way_to_clipping_in_mixed_precision(
    precision: str, clip: str, fused: bool
) -> None:
    recipe = changed(f"training.precision={precision}", f"optimizer.clip={clip}")
    groups = build_optimizer(recipe, nn.Linear(2, 2)).param_groups
    assert {group["fused"] for group in groups} == {fused}


def rates(recipe: Recipe, steps: int) -> list[float]:
    """Return the learning rate of every step, and the one that would follow, in units of `lr`."""
    optimizer = build_optimizer(recipe, nn.Linear(2, 2))
    schedule = build_schedule(recipe, optimizer, steps)
    found = []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"] / learning_rate(recipe))
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_warms_up_and_drops() -> None:
    recipe = changed(
        "schedule.warmup_steps=4", "schedule.warmup_factor=0.2",
        "schedule.decay={kind: drops, at: [0.5, 0.9], factor: 0.1}",
    )  # fmt: skip
    found = rates(recipe, 20)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], rel=1e-12)
    assert found[5:10] == pytest.approx([1.0] * 5, rel=1e-12)
    assert found[10:18] == pytest.approx([0.1] * 8, rel=1e-12)
    assert found[18:] == pytest.approx([0.01] * 3, rel=1e-12)


def test_the_rate_stays_flat_and_falls_to_zero() -> None:
    recipe = changed("schedule.warmup_steps=0", "schedule.decay.share=0.5")
    found = rates(recipe, 8)
    assert found == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0], rel=1e-12)


def test_a_schedule_goes_on_where_it_stopped() -> None:
    recipe = changed("schedule.warmup_steps=3")
    whole = rates(recipe, 9)
    optimizer = build_optimizer(recipe, nn.Linear(2, 2))
    schedule = build_schedule(recipe, optimizer, 9)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    state: dict[str, Any] = {"o": optimizer.state_dict(), "s": schedule.state_dict()}
    optimizer = build_optimizer(recipe, nn.Linear(2, 2))
    schedule = build_schedule(recipe, optimizer, 9)
    optimizer.load_state_dict(state["o"])
    schedule.load_state_dict(state["s"])
    assert optimizer.param_groups[0]["lr"] / learning_rate(recipe) == whole[5]
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] / learning_rate(recipe) == whole[6]


@pytest.mark.parametrize(
    ("override", "images", "steps"),
    [("steps=7", 1000, 7), ("epochs=2", 80, 20), ("epochs=1", 81, 11), ("epochs=0.1", 240, 3),
     ("epochs=0.001", 1, 1), ("epochs=100", 117266, 1465825)],
)  # fmt: skip
def test_the_length_of_a_run(override: str, images: int, steps: int) -> None:
    assert total_steps(changed(f"schedule.{override}"), images) == steps
