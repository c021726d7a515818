"""Detectors of torchvision with a backbone of two convolutions, and a batch for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

CHANNELS, SIZE, CLASSES = 32, 64, 3
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class TwoMaps(nn.Module):
    """Maps of strides 8 and 16, by the names "0" and "1"."""

    out_channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 8, stride=8)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 2, stride=2)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps."""
        first = self.first(images).relu()
        return OrderedDict([("0", first), ("1", self.second(first).relu())])


_SCALE = {"min_size": SIZE, "max_size": SIZE}


def retinanet(**settings: Any) -> RetinaNet:
    """Return a RetinaNet of 3 classes."""
    anchors = AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2)
    return RetinaNet(TwoMaps(), num_classes=CLASSES, anchor_generator=anchors, **_SCALE, **settings)


def fcos(**settings: Any) -> FCOS:
    """Return an FCOS of 3 classes."""
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return FCOS(TwoMaps(), num_classes=CLASSES, anchor_generator=anchors, **_SCALE, **settings)


def faster_rcnn(**settings: Any) -> FasterRCNN:
    """Return a Faster R-CNN of 3 classes and the background."""
    return FasterRCNN(
        TwoMaps(),
        rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 1),
        box_head=TwoMLPHead(CHANNELS * 9, 16),
        box_predictor=FastRCNNPredictor(16, CLASSES + 1),
        **_SCALE,
        **settings,
    )


DETECTORS: Mapping[str, Callable[..., Any]] = {
    "retinanet": retinanet,
    "fcos": fcos,
    "faster_rcnn": faster_rcnn,
}


def build(name: str, **settings: Any) -> Any:
    """Return a detector in training whose weights are the same each time, and not all tiny."""
    torch.manual_seed(7)
    model = DETECTORS[name](**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    return model.train()


def batch(name: str, boxes: Sequence[Sequence[Sequence[float]]] | None = None) -> Batch:
    """Return images of 64 x 64 px with objects; the classes of Faster R-CNN start at 1."""
    if boxes is None:
        boxes = [[[4, 6, 30, 28], [20, 24, 60, 62]], [[10, 8, 40, 52]]]
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(3, SIZE, SIZE, generator=generator) for _ in boxes]
    start = 1 if name == "faster_rcnn" else 0
    targets = []
    for own in boxes:
        labels = (torch.arange(len(own)) + len(boxes)) % CLASSES + start
        targets.append({"boxes": torch.tensor(own).reshape(-1, 4).float(), "labels": labels})
    return images, targets


def copied(targets: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return targets that a model may change."""
    return [{key: value.clone() for key, value in target.items()} for target in targets]


def gradients(model: nn.Module, losses: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the gradients of the sum of the losses, of all parameters."""
    total = torch.stack(list(losses.values())).sum()
    return list(torch.autograd.grad(total, list(model.parameters())))
