"""`training.compile`: the network is translated, and nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankdet.config.assemble import Hardware, make_parts, make_plan
from rankdet.config.build_criterion import build_criterion
from rankdet.config.build_model import build_detector
from rankdet.config.load import load_recipe
from rankdet.config.recipe import Recipe
from rankdet.data.discover import discover
from rankdet.engine.detecting import predict
from rankdet.models.compiling import compile_network
from rankdet.structures import Targets


def recipe_of(name: str) -> Recipe:
    return load_recipe(name, ("training.compile=true", "data.workers=0", "data.train_size=64"))


def step(detector: nn.Module, criterion: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and all gradients."""
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[[4.0, 4, 30, 30]], [[20.0, 10, 60, 50]]])
    targets = Targets(
        boxes=boxes,
        labels=torch.tensor([[0], [1]]),
        crowd=torch.zeros(2, 1, dtype=torch.bool),
        sizes=torch.tensor([[64, 64], [64, 64]]),
    )
    detector.zero_grad()
    predictions = predict(detector, images.to(torch.uint8), targets.sizes, targets)
    total = criterion(predictions, targets).total
    total.backward()
    grads = {name: each.grad.clone() for name, each in detector.named_parameters()
             if each.grad is not None}  # fmt: skip
    return total.detach(), grads


# Of torch's own, from within the translation.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["atss_alrp-small", "retinanet_alrp_published-small"])
def test_a_compiled_network_learns_the_same(name: str) -> None:
    """With gradients measured by the balance before the backward pass, and without."""
    recipe = recipe_of(name)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3).train()
    expected, wanted = step(copy.deepcopy(detector), build_criterion(recipe))
    names = list(detector.state_dict())
    # aot_eager splits forward and backward as inductor does, but needs no C++ compiler.
    heads = recipe.criterion.balance.kind != "gradient"  # type: ignore[union-attr]
    compile_network(detector, heads=heads, backend="aot_eager")
    loss, grads = step(detector, build_criterion(recipe))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert grads.keys() == wanted.keys()
    torch.testing.assert_close(grads, wanted, rtol=1e-3, atol=1e-5)
    assert list(detector.state_dict()) == names
    # The average of the weights that is evaluated is a copy, and is not compiled.
    assert copy.deepcopy(detector).backbone._compiled_call_impl is None
    assert detector.backbone._compiled_call_impl is not None


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("atss_alrp-small", {"backbone", "neck"}),
        ("atss_alrp_published-small", {"backbone", "neck", "head"}),
        ("faster_rcnn_alrp-small", {"backbone", "neck"}),
        ("faster_rcnn_alrp_published-small", {"backbone", "neck", "first", "second"}),
    ],
)
def test_what_is_compiled(
    name: str, compiled: set[str], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: asked.append(self))
    found = discover(digits)
    images, validation = found.splits["train"], found.splits["val"]

    def parts(recipe: Recipe) -> Any:
        hardware = Hardware(accelerator="cpu")
        plan = make_plan(recipe, len(images), hardware)
        return make_parts(recipe, images, validation, plan, hardware)

    made = parts(recipe_of(name))
    names = {child_name for child_name, child in made.detector.named_children()
             if any(child is each for each in asked)}  # fmt: skip
    assert names == compiled
    asked.clear()
    parts(load_recipe(name, ("data.workers=0",)))
    assert asked == []
