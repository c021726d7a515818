"""A whole training step of any detector on images made by hand, and what has to hold of each.

Every loss here, of whatever images, is also held against its definition: see `require_sound`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from test_detectors_with_criteria import BASES, changes
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from rankdet.config.build import build_optimizer
from rankdet.config.build_criterion import build_criterion
from rankdet.config.build_model import build_detector
from rankdet.config.load import load_recipe
from rankdet.config.recipe import Recipe
from rankdet.engine.detecting import predict
from rankdet.structures import (
    IGNORED,
    Priors,
    RegionPredictions,
    Regions,
    Targets,
    TwoStagePredictions,
)

FOCAL, ENTROPY = "focal + smooth L1", "cross-entropy + smooth L1"
# Half-width of the step of each ranking, and what a positive counts for in its own rank.
RANKINGS = {"aLRP, self-balance": (1.0, 1.0), "Rank & Sort": (0.5, 0.5)}
PAIRS = [(name, row) for name in BASES for row in (*RANKINGS, FOCAL)] + [("faster_rcnn", ENTROPY)]
every_pair = pytest.mark.parametrize(("name", "row"), PAIRS)
CLASSES = 3
ABSENT = 2  # no object is ever of this class
SIZES = [(64, 64), (64, 48)]  # the second image is padded
OBJECT = [17.0, 17.0, 47.0, 47.0]
APART = [OBJECT, [2.0, 1.0, 15.0, 12.0], [44.0, 50.0, 63.0, 60.0]]

Image = tuple[Tensor, Tensor, Tensor]
Change = Callable[[Tensor], Tensor]


class Stage(NamedTuple):
    """What a stage says and is taught: rows are its priors or regions, image by image, M in all.

    Logits are [M, C], with one more column where there is a branch "background", codes [M, K, 4]
    with one box or one for each class; beside them their gradients. What is matched is the index
    of an object of the image, `NEGATIVE` or `IGNORED`; its label and box, [M, 4], follow.
    """

    logits: Tensor
    for_logits: Tensor
    codes: Tensor
    for_codes: Tensor
    boxes: Tensor
    image: Tensor
    matched: Tensor
    labels: Tensor
    objects: Tensor
    weight: float
    parts: dict[str, Tensor]


class Step(NamedTuple):
    """A step of a detector."""

    row: str
    detector: Any
    criterion: Any
    predictions: list[Any]
    """Of each stage."""
    seen: list[Any]
    """The same as leaves, with the gradients of the loss."""
    total: Tensor
    stages: list[Stage]


def image_of(*boxes: list[float], labels: list[int] | None = None, crowd: int = 0) -> Image:
    """Return boxes, labels and crowd flags of an image; the last boxes are crowd regions."""
    classes = torch.tensor(labels or [i % 2 for i in range(len(boxes))], dtype=torch.int64)
    return torch.tensor(boxes).view(-1, 4), classes, torch.arange(len(boxes)) >= len(boxes) - crowd


NOTHING = image_of()


@cache
def built(name: str, row: str, known: bool, sampled: bool) -> tuple[Recipe, nn.Module]:
    """Return a recipe and its detector, whose scores and boxes differ as after some training."""
    sets = changes(name, row)
    if name == "faster_rcnn":
        sets.append(f"model.regions.add_objects={str(known).lower()}")
    if row == ENTROPY and not sampled:
        sets += ["criterion.first_sample=100000", "criterion.second_sample=100000"]
    recipe = load_recipe(BASES[name], sets)
    torch.manual_seed(0)
    detector = build_detector(recipe, CLASSES)
    with torch.no_grad():
        for key, weight in detector.named_parameters():
            if key.endswith(("to_logits.weight", "to_codes.weight")):
                weight.mul_(5 if "logits" in key else 20)
    return recipe, detector


def step(name: str, row: str, *images: Image, known: bool = True, sampled: bool = True) -> Step:
    """Take a whole step of a small detector on two images; all that comes of it is finite.

    Args:
        name: of the detector.
        row: its losses.
        images: as `image_of` returns them.
        known: whether a second stage looks at the objects, too.
        sampled: whether cross-entropy is of a sample.
    """
    recipe, fresh = built(name, row, known, sampled)
    detector, criterion = deepcopy(fresh), build_criterion(recipe)
    optimizer = build_optimizer(recipe, nn.ModuleDict({"d": detector, "c": criterion}))
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    targets = targets_of(images)
    said: Any = predict(detector, pictures, targets.sizes, targets)
    predictions = [said.first, said.second] if name == "faster_rcnn" else [said]
    done = again(Step(row, detector, criterion, predictions, [], torch.zeros(()), []), *images)
    outputs, leaves = ([x for each in some for x in tensors_of(each)]
                       for some in (predictions, done.seen))  # fmt: skip
    torch.autograd.backward(outputs, [each.grad for each in leaves])
    optimizer.step()
    weights = list(detector.parameters())
    slopes = [each.grad for each in weights if each.grad is not None]
    assert len(slopes) > len(weights) / 2
    assert all(x.isfinite().all() for x in (*weights, *slopes, *criterion.state_dict().values()))
    return done


def again(done: Step, *images: Image, change: Change = lambda logits: logits) -> Step:
    """Compute the losses of the same predictions, of the first image or of both, and check them.

    Args:
        done: whose predictions.
        images: what is to be found.
        change: what to make of the logits [..., C] before.
    """
    targets = targets_of(images)
    seen = [leaves_of(each, len(images), change) for each in done.predictions]
    torch.manual_seed(1)  # what is drawn
    terms = done.criterion(TwoStagePredictions(*seen) if len(seen) == 2 else seen[0], targets)
    terms.total.backward()
    torch.manual_seed(1)
    parts = {name: part for name, part in terms.parts.items() if name[:4] != "rpn_"}
    if len(seen) == 1:
        stages = [stage_of(seen[0], done.criterion.assigner, targets, 1.0, parts)]
    else:
        first = {name[4:]: part for name, part in terms.parts.items() if name not in parts}
        of_one_class = replace(targets, labels=targets.labels.clamp(max=0))
        weight, rules = done.criterion.first_weight, (done.criterion.first, done.criterion.second)
        stages = [
            stage_of(seen[0], rules[0].assigner, of_one_class, weight, first),
            stage_of(seen[1], rules[1].assigner, targets, 1.0, parts),
        ]
    total = torch.zeros(())
    for each, stage in zip(seen, stages, strict=True):
        require_sound(done.row, stage, each.coder)
        boxes = stage.parts.get("balance", 1) * stage.parts["localisation"]
        total += stage.weight * (stage.parts["classification"] + boxes)
    assert_close(terms.total.detach(), total)
    return done._replace(seen=seen, total=terms.total.detach(), stages=stages)


def tensors_of(said: Any) -> list[Tensor]:
    return [said.logits, said.codes, *said.branches.values()]


def targets_of(images: tuple[Image, ...]) -> Targets:
    boxes, labels, crowd = zip(*images, strict=True)
    return Targets.stack(boxes, labels, crowd, SIZES[: len(images)])


def leaves_of(said: Any, images: int, change: Change) -> Any:
    """Return what a stage says of the first images, to differentiate for."""
    count, regions = images, {}
    if isinstance(said, RegionPredictions):
        counts = said.regions.counts[:images]
        count = sum(counts)
        regions = {"regions": Regions(said.regions.boxes[:count], counts)}
    logits, codes, *branches = (each[:count].detach().clone() for each in tensors_of(said))
    branches = [change(each[:, None])[:, 0].requires_grad_() for each in branches]
    return replace(
        said,
        logits=change(logits).requires_grad_(),
        codes=codes.requires_grad_(),
        branches=dict(zip(said.branches, branches, strict=True)),
        **regions,
    )


def stage_of(
    said: Any, assigner: Any, targets: Targets, weight: float, parts: dict[str, Tensor]
) -> Stage:
    """Return what a stage says and is taught."""
    if isinstance(said, RegionPredictions):
        boxes, image = said.regions.boxes, said.regions.image
        priors = [Priors(each, (len(each),), (1024,)) for each in said.regions.split()]
        own = [targets.of_images(slice(i, i + 1)) for i in range(len(priors))]
        matched = torch.cat([assigner(*each).matched[0] for each in zip(priors, own, strict=True)])
    else:
        boxes = said.priors.boxes.repeat(len(said.logits), 1)
        image = torch.arange(len(said.logits)).repeat_interleave(len(said.priors.boxes))
        matched = assigner(said.priors, targets).matched.flatten()
    # One object more, for where there is none at all.
    index = image, matched.clamp(min=0)
    labels = functional.pad(targets.labels, (0, 1))[index].where(matched >= 0, matched)
    objects = functional.pad(targets.boxes, (0, 0, 0, 1))[index]
    scores = [said.logits, *said.branches.values()]
    logits, for_logits = (
        torch.cat([x.detach().reshape(len(boxes), -1) for x in each], 1)
        for each in (scores, [x.grad for x in scores])
    )
    codes, for_codes = (
        x.detach().reshape(len(boxes), -1, 4) for x in (said.codes, said.codes.grad)
    )
    learned = logits, for_logits, codes, for_codes
    assert all(each.isfinite().all() for each in (*learned, *parts.values()))
    return Stage(*learned, boxes, image, matched, labels, objects, weight, parts)


def require_sound(row: str, stage: Stage, coder: Any) -> None:
    """Hold the losses of a stage and their gradients against their definitions."""
    positive, taken = stage.matched >= 0, stage.matched > IGNORED
    assert stage.parts["positives"] == positive.sum()
    assert not stage.for_logits[~taken].any()
    assert not stage.for_codes[~positive].any()
    logits = stage.logits.double()[taken].requires_grad_()
    value, normaliser = classification(row, logits, stage.labels[taken])
    named = "ranking" if "ranking" in stage.parts else "classification"
    assert_close(stage.parts[named].double(), value.detach(), rtol=1e-5, atol=1e-7)
    if row in RANKINGS:
        # By as much as positives are pulled up, the others are pushed down.
        slopes = stage.for_logits.double()
        assert slopes.sum().abs() <= 1e-5 * slopes.abs().sum()
        own = functional.one_hot(stage.labels.clamp(min=0), slopes.shape[1]).bool()
        assert (slopes[~(own & positive[:, None])] >= 0).all()
        return
    (slopes,) = torch.autograd.grad(value * stage.weight, logits)
    assert_close(stage.for_logits[taken].double(), slopes, rtol=1e-4, atol=1e-8)
    own = stage.labels[positive].clamp(max=stage.codes.shape[1] - 1)
    codes = stage.codes[positive, own]
    wanted = coder.encode(stage.boxes[positive], stage.objects[positive])
    boxes = functional.smooth_l1_loss(codes, wanted, beta=0.11, reduction="sum")
    assert_close(stage.parts["localisation"], boxes / normaliser, rtol=1e-5, atol=0)


def classification(row: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return the classification loss of rows that take part, and what box losses are divided by."""
    classes, positives = logits.shape[1], max(int((labels >= 0).sum()), 1)
    own = functional.one_hot(labels.clamp(min=0), classes) * (labels >= 0)[:, None]
    if row in RANKINGS:
        delta, self_pair = RANKINGS[row]
        pos, neg = logits[own.bool()], logits[~own.bool()]
        false, true = (
            ((each - pos[:, None]) / (2 * delta) + 0.5).clamp(0, 1).sum(1) for each in (neg, pos)
        )
        return (false / (false + true - 0.5 + self_pair)).sum() / positives, positives
    if row == FOCAL:
        loss = sigmoid_focal_loss(logits, own.double(), alpha=0.25, gamma=2, reduction="sum")
        return loss / positives, positives
    examples = max(len(labels), 1)
    if classes > CLASSES:  # the last is the background
        chosen = labels.where(labels >= 0, CLASSES)[:, None]
        return -logits.log_softmax(1).gather(1, chosen).sum() / examples, examples
    return -functional.logsigmoid(torch.where(own > 0, logits, -logits)).sum() / examples, examples
