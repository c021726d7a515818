"""Whole steps and detections on a GPU that is none: nothing meets that lies on two devices.

How often the host waits for the device is held here too. A step has to learn how many positives
there are; to wait for more keeps a GPU idle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from pretend_gpu import move, on_cpu, on_gpu, pretended
from torch import Tensor, nn
from torch.testing import assert_close

from rankdet.config.build_criterion import build_criterion
from rankdet.config.build_model import build_detector, build_post_process
from rankdet.config.load import load_recipe, shipped
from rankdet.engine.detecting import predict
from rankdet.structures import Targets

SMALL = [name for name, _ in shipped() if name.endswith("-small")]
CLASSES = 3


class Step(NamedTuple):
    total: Tensor
    grads: list[Tensor]


def batch() -> tuple[Tensor, Targets]:
    """Return two images, one of them padded, with objects and a crowd region."""
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    corner = torch.rand(2, 4, 2) * 50
    boxes = torch.cat([corner, corner + 12 + torch.rand(2, 4, 2) * 28], -1)
    labels = torch.randint(0, CLASSES, (2, 4))
    boxes[1, 2:], labels[1, 2:] = 0, -1
    crowd = torch.zeros(2, 4, dtype=torch.bool)
    crowd[0, 3] = True
    return images, Targets(boxes, labels, crowd, torch.tensor([[96, 96], [96, 80]]))


def build(name: str) -> tuple[nn.Module, Any, Any]:
    recipe = load_recipe(name, ["model.fpn_channels=16", "model.head_convs=1"])
    torch.manual_seed(0)
    detector = build_detector(recipe, CLASSES)
    return detector.train(), build_criterion(recipe), build_post_process(recipe)


def step(detector: nn.Module, criterion: Any, images: Tensor, targets: Targets) -> Step:
    """Take a step, and forget its gradients; the draws are always the same."""
    torch.manual_seed(1)
    terms = criterion(predict(detector, images, targets.sizes, targets), targets)
    terms.total.backward()
    weights = [w for w in detector.parameters() if w.grad is not None]
    grads = [on_cpu(w.grad) for w in weights if w.grad is not None]
    detector.zero_grad()
    return Step(on_cpu(terms.total), grads)


def waits_of_a_step(name: str) -> int:
    """Return how often the host waits, where plain torch ranks."""
    if name.startswith("faster_rcnn"):
        # Proposals of two images: which, how many, suppression twice; then how many of each level.
        # Cross-entropy lets the second stage see the objects: which, and how many.
        return 5 + (2 + 2 if "_ce" in name else 2 * 4)
    if name.startswith("free_anchor"):
        return 6
    return 1 if set(name.split("-")[0].split("_")) & {"focal", "varifocal", "dr"} else 4


@pytest.mark.parametrize("name", SMALL)
def test_a_step_and_detections_are_those_of_a_cpu(name: str) -> None:
    images, targets = batch()
    detector, criterion, post_process = build(name)
    expected = [step(detector, criterion, images, targets) for _ in range(2)]
    detector.eval()
    with torch.no_grad():
        wanted = post_process(predict(detector, images, targets.sizes), targets.sizes)

    detector, criterion, post_process = build(name)
    move(detector)
    move(criterion)
    with pretended() as gpu:
        there = targets._each(on_gpu)
        steps = [step(detector, criterion, on_gpu(images), there)]
        gpu.waits.clear()  # what is asked once and never again
        steps.append(step(detector, criterion, on_gpu(images), there))
        of_step = gpu.waits[:]
        gpu.waits.clear()
        detector.eval()
        with torch.no_grad():
            found = post_process(predict(detector, on_gpu(images), there.sizes), there.sizes)
        of_detection = gpu.waits[:]
    for each, other in zip(steps, expected, strict=True):
        assert_close(each.total, other.total)
        assert_close(each.grads, other.grads)
    for of_image, other_image in zip(found, wanted, strict=True):
        assert torch.equal(on_cpu(of_image.labels), other_image.labels)
        assert_close(on_cpu(of_image.boxes), other_image.boxes)
        assert_close(on_cpu(of_image.scores), other_image.scores)

    if name.startswith("paa"):  # until the last mixture has converged
        assert sum("goes_on" not in where for where in of_step) == 6, of_step
    else:
        assert len(of_step) == waits_of_a_step(name), of_step
    # Which candidates, how many of each image, suppression in each; of regions, in each image.
    assert len(of_detection) == (9 if name.startswith("faster_rcnn") else 4), of_detection
