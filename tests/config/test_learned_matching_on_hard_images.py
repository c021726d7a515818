"""FreeAnchor and PAA, who match by what the detector says, on images that are hard to learn from.

What any detector has to teach is tested in `test_detectors_on_hard_images.py`; there the matching
is known before. Here it depends on the predictions, so less can be said of single anchors.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from hard_steps import ABSENT, APART, CLASSES, NOTHING, OBJECT, Image, image_of, targets_of
from torch import Tensor, nn

from rankdet.config.build import build_optimizer
from rankdet.config.build_criterion import build_criterion
from rankdet.config.build_model import build_detector
from rankdet.config.load import load_recipe
from rankdet.config.recipe import Recipe
from rankdet.structures import LossTerms

both = pytest.mark.parametrize("name", ["free_anchor-small", "paa-small"])
CROWD = [0.0, 32.0, 64.0, 64.0]


@cache
def built(name: str) -> tuple[Recipe, nn.Module]:
    recipe = load_recipe(name, [])
    torch.manual_seed(0)
    return recipe, build_detector(recipe, CLASSES)


def learn(name: str, *images: Image) -> tuple[LossTerms, Any]:
    """Take a step; return the losses, and the predictions with their gradients."""
    recipe, fresh = built(name)
    detector, criterion = deepcopy(fresh), build_criterion(recipe)
    optimizer = build_optimizer(recipe, nn.ModuleDict({"d": detector, "c": criterion}))
    pictures = torch.randint(
        0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    said = detector(pictures)
    for output in (said.logits, said.codes, *said.branches.values()):
        output.retain_grad()
    terms: LossTerms = criterion(said, targets_of(images))
    terms.total.backward()
    optimizer.step()
    numbers = [terms.total, *terms.parts.values(), *detector.parameters()]
    numbers += [weight.grad for weight in detector.parameters() if weight.grad is not None]
    assert all(number.isfinite().all() for number in numbers)
    return terms, said


def grad(output: Tensor) -> Tensor:
    return torch.zeros_like(output) if output.grad is None else output.grad


@both
def test_without_objects_only_background_is_learned(name: str) -> None:
    terms, said = learn(name, NOTHING, NOTHING)
    assert terms.total > 0
    assert (grad(said.logits) >= 0).all()
    assert (grad(said.logits) > 0).any()
    assert not grad(said.codes).any()


@both
def test_one_object_is_learned_at_its_place(name: str) -> None:
    terms, said = learn(name, image_of(OBJECT, labels=[1]), NOTHING)
    assert terms.total > 0
    rising = grad(said.logits) < 0
    assert rising[0, :, 1].any()
    assert not rising[1].any()
    assert not rising[..., [0, ABSENT]].any()
    taught = grad(said.codes).any(-1)
    assert taught[0].any()
    assert not taught[1].any()


@both
def test_300_objects(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(300, 2, generator=generator) * torch.tensor([44.0, 60.0])
    far = torch.minimum(
        corner + 1 + torch.rand(300, 2, generator=generator) * 30, torch.tensor([48.0, 64.0])
    )
    _terms, said = learn(name, NOTHING, image_of(*torch.cat([corner, far], 1).tolist()))
    taught = grad(said.codes).any(-1)
    assert not taught[0].any()
    assert taught[1].sum() > 20


@both
@pytest.mark.parametrize(
    "boxes",
    [
        [[0.0, 0.0, 24.0, 24.0], [40.0, 40.0, 64.0, 64.0], [0.0, 0.0, 64.0, 64.0]],
        [[19.5, 19.5, 20.5, 20.5], [0.0, 0.0, 1.0, 1.0], [63.0, 63.0, 64.0, 64.0]],
        [OBJECT, OBJECT, OBJECT],
    ],
    ids=["at the border", "of one pixel", "identical"],
)
def test_objects_are_learned_wherever_they_are(name: str, boxes: list[list[float]]) -> None:
    terms, said = learn(name, image_of(*boxes, labels=[0, 1, 1]), NOTHING)
    assert terms.total > 0
    rising = (grad(said.logits) < 0).any(1)
    assert rising[0, 0] or rising[0, 1]
    assert not rising[:, ABSENT].any()


@both
def test_what_lies_in_a_crowd_is_no_background(name: str) -> None:
    _terms, said = learn(name, image_of(OBJECT, CROWD, crowd=1), NOTHING)
    centres = (said.priors.boxes[:, :2] + said.priors.boxes[:, 2:]) / 2
    sides = said.priors.boxes[:, 2:] - said.priors.boxes[:, :2]
    # Clearly more than half of their area on the crowd.
    middle = (centres[:, 1] > 44) & (centres[:, 1] < 60) & (centres[:, 0] > 4)
    within = middle & (centres[:, 0] < 60) & (sides < 20).all(1)
    assert within.sum() > 10
    assert not grad(said.logits)[0, within].any()
    assert grad(said.logits)[1, within].any()


@both
def test_a_class_that_never_appears_is_pushed_down_everywhere(name: str) -> None:
    _terms, said = learn(name, image_of(*APART, labels=[0, 1, 1]), image_of(OBJECT, labels=[0]))
    assert (grad(said.logits)[..., ABSENT] >= 0).all()
    assert (grad(said.logits)[..., ABSENT] > 0).any()
