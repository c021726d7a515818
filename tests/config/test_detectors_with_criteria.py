"""Every pair of detector and criterion that the documentation ticks: it learns, and can be kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torchvision.ops import box_iou

from rankdet.config.build import build_optimizer
from rankdet.config.build_criterion import build_criterion
from rankdet.config.build_model import build_detector, build_post_process
from rankdet.config.load import load_recipe
from rankdet.engine.detecting import predict
from rankdet.structures import Detections, Targets

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "choose-a-detector-and-a-loss.md"
GIOU = ("box.kind=giou", "box_weight=2")
# What each row of the table sets, below the key that holds the loss.
CRITERIA: dict[str, tuple[str, ...]] = {
    "aLRP, mean, by gradients": ("kind=alrp", "localisation=mean", "balance.kind=gradient"),
    "aLRP, self-balance": (
        "kind=alrp", "localisation=ranked", "balance.kind=self", "balance.initial=5"
    ),
    "aLRP, scalar weight": ("kind=alrp", "localisation=ranked", "balance.kind=scalar"),
    "aLRP, learned weight": ("kind=alrp", "localisation=ranked", "balance.kind=learned"),
    "Rank & Sort": ("kind=rank_sort",),
    "AP + smooth L1": ("kind=dense", "classification.kind=ap"),
    "AP + GIoU": ("kind=dense", "classification.kind=ap", *GIOU),
    "focal + smooth L1": ("kind=dense",),
    "focal + GIoU": ("kind=dense", *GIOU),
    "focal + GIoU + centreness": ("kind=dense", *GIOU),
    "quality focal + GIoU": (
        "kind=dense", "classification.kind=quality_focal", "weighting=score", *GIOU
    ),
    "varifocal + GIoU": ("kind=dense", "classification.kind=varifocal", "weighting=iou", *GIOU),
    "DR + smooth L1": ("kind=dense", "classification.kind=dr"),
    "FreeAnchor": ("kind=free_anchor",),
    "PAA": ("kind=paa",),
    "cross-entropy + smooth L1": ("kind=cross_entropy",),
    "cross-entropy + GIoU": ("kind=cross_entropy", *GIOU),
}  # fmt: skip
BASES = {
    "retinanet": "retinanet_alrp-small",
    "atss": "atss_alrp-small",
    "fovea": "fovea_alrp-small",
    "fcos": "fcos_alrp-small",
    "faster_rcnn": "faster_rcnn_alrp-small",
}
STEPS = 20
SLOW = ("aLRP, self-balance", "aLRP, scalar weight", "DR + smooth L1", "varifocal + GIoU")


def ticked() -> list[tuple[str, str]]:
    """Return the pairs of detector and row that the page has a mark for."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    detectors = rows[0][1:]
    return [
        (detector, row[0])
        for row in rows[2:]
        for detector, mark in zip(detectors, row[1:], strict=True)
        if mark
    ]


def changes(detector: str, row: str) -> list[str]:
    """Return what is set on the command line for a pair."""
    small = ["model.fpn_channels=16", "model.head_convs=1", "optimizer.clip=5"]
    if detector != "faster_rcnn":
        beside = {
            "FreeAnchor": ["assigner.kind=none", "criterion.bag=9"],
            "PAA": ["assigner.kind=paa", "model.iou_branch=true"],
            "focal + GIoU + centreness": ["model.centreness=true"],
        }
        return [*small, *(f"criterion.{key}" for key in CRITERIA[row]), *beside.get(row, [])]
    stages = [f"criterion.{stage}.{key}" for stage in ("first", "second") for key in CRITERIA[row]]
    small += ["model.regions.hidden=32", "model.regions.number=40", "model.regions.pooled_size=3"]
    if row.startswith("cross-entropy"):
        small += ["model.regions.background=true", "model.regions.add_objects=true"]
        small += ["criterion.first_sample=64", "criterion.second_sample=32"]
    return [*small, *stages]


def scene() -> tuple[torch.Tensor, Targets]:
    """Return two images with squares of two colours, and where they are."""
    images = torch.full((2, 3, 96, 96), 90, dtype=torch.uint8)
    places = [[(8, 8, 40, 40, 0), (52, 40, 84, 76, 1)], [(30, 50, 60, 82, 0)]]
    for image, objects in zip(images, places, strict=True):
        for left, top, right, bottom, label in objects:
            colour = torch.tensor([[220, 40, 40], [30, 60, 230]][label], dtype=torch.uint8)
            image[:, top:bottom, left:right] = colour[:, None, None]
    boxes = [torch.tensor([o[:4] for o in objects]).float() for objects in places]
    labels = [torch.tensor([o[4] for o in objects]) for objects in places]
    crowd = [torch.zeros(len(objects), dtype=torch.bool) for objects in places]
    return images, Targets.stack(boxes, labels, crowd, [(96, 96), (96, 96)])


def test_the_table_has_every_row_and_detector() -> None:
    pairs = ticked()
    assert {row for _, row in pairs} == set(CRITERIA)
    assert {detector for detector, _ in pairs} == set(BASES)
    assert len(pairs) > 60


def steps_of(name: str, row: str) -> int:
    """Return after how many steps a pair has learned the two images."""
    if row not in SLOW:
        return STEPS
    return 3 * STEPS if name == "faster_rcnn" else 2 * STEPS


@pytest.mark.parametrize(("name", "row"), ticked())
def test_a_pair_learns_by_heart_and_survives_being_saved(name: str, row: str) -> None:
    recipe = load_recipe(BASES[name], changes(name, row))
    torch.manual_seed(0)
    detector: Any = build_detector(recipe, 3)  # a class that never appears, too
    criterion: Any = build_criterion(recipe)
    optimizer = build_optimizer(recipe, nn.ModuleDict({"d": detector, "c": criterion}))
    images, targets = scene()
    values = []
    for _ in range(steps_of(name, row)):
        predictions = predict(detector, images, targets.sizes, targets)
        terms = criterion(predictions, targets)
        values.append(float(terms.total.detach()))
        optimizer.zero_grad()
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
    assert all(torch.tensor(values).isfinite())
    # Where targets depend on the boxes found, and where boxes count for more the better classes
    # are ranked, the loss first rises.
    assert sum(values[-3:]) / 3 < 0.6 * max(values[:6]), values

    criterion.end_period()
    judge: Any = build_criterion(recipe)
    judge.load_state_dict(load_tensors(save_tensors(criterion.state_dict())))
    losses = []
    for each in (criterion, judge):
        torch.manual_seed(0)  # what is drawn
        with torch.no_grad():
            losses.append(each(predictions, targets).total)
    assert torch.equal(*losses)

    detector.eval()
    restored: Any = build_detector(recipe, 3)
    restored.load_state_dict(load_tensors(save_tensors(detector.state_dict())))
    restored.eval()
    post_process: Any = build_post_process(recipe)
    with torch.no_grad():
        found, again = (
            post_process(predict(each, images, targets.sizes), targets.sizes)
            for each in (detector, restored)
        )
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
        assert len(one.scores) > 0
    assert objects_found(again, targets) >= 2  # of 3


def objects_found(found: list[Detections], targets: Targets) -> int:
    """Return how many objects are among the 20 best detections of their image."""
    count = 0
    for best, boxes, labels in zip(found, targets.boxes, targets.labels, strict=True):
        for box, label in zip(boxes[labels >= 0], labels[labels >= 0], strict=True):
            fits = box_iou(box[None], best.boxes[:20])[0] > 0.5
            count += int((fits & (best.labels[:20] == label)).any())
    return count
