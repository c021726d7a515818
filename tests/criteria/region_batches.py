"""Read the golden vectors of heads on regions, and make small batches of regions for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import RegionPredictions, Regions, Targets

if TYPE_CHECKING:
    import numpy as np


class RegionBatch(NamedTuple):
    """What a criterion of regions is given."""

    predictions: RegionPredictions
    targets: Targets


def targets_of(*images: tuple[list[list[float]], list[int]], side: int = 64) -> Targets:
    """Return ground truth from boxes and labels of each image; a negative label, -1 - k, means
    a crowd region of class k."""
    labels = [torch.tensor(each, dtype=torch.int64) for _, each in images]
    return Targets.stack(
        boxes=[torch.tensor(boxes).view(-1, 4) for boxes, _ in images],
        labels=[torch.where(each < 0, -1 - each, each) for each in labels],
        crowd=[each < 0 for each in labels],
        sizes=[(side, side)] * len(images),
    )


def read_regions(data: dict[str, np.ndarray[Any, Any]], dtype: torch.dtype) -> RegionBatch:
    """Return predictions that want gradients, and the ground truth."""
    rois = torch.from_numpy(data["rois"]).to(dtype)
    counts = tuple(int((rois[:, 0] == image).sum()) for image in range(2))
    logits = torch.from_numpy(data["cls_score"]).to(dtype).requires_grad_()
    codes = torch.from_numpy(data["bbox_pred"]).to(dtype)
    codes = codes.view(len(codes), -1, 4).requires_grad_()
    boxes = [torch.from_numpy(data[f"gt_boxes_{image}"]).to(dtype) for image in range(2)]
    labels = [torch.from_numpy(data[f"gt_labels_{image}"]) for image in range(2)]
    crowd = [torch.zeros(len(each), dtype=torch.bool) for each in labels]
    targets = Targets.stack(boxes, labels, crowd, [(512, 512)] * 2)
    regions = Regions(rois[:, 1:], counts)
    return RegionBatch(RegionPredictions(regions, logits, codes, DeltaCoder()), targets)


def region_batch(
    targets: Targets,
    *,
    regions: int = 12,
    classes: int = 3,
    agnostic: bool = False,
    background: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> RegionBatch:
    """Return random predictions for regions about the objects and elsewhere, 64 x 64 px."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for boxes, labels in zip(targets.boxes, targets.labels, strict=True):
        places = torch.rand(regions, 2, generator=generator) * 40
        random = torch.cat([places, places + 24], 1)
        moved = boxes[labels >= 0] + torch.rand(int((labels >= 0).sum()), 4, generator=generator)
        found.append(torch.cat([moved.clamp(0, 64), random])[:regions] if regions else boxes[:0])
    total = sum(len(each) for each in found)
    logits = torch.randn(total, classes, generator=generator).to(dtype).requires_grad_()
    shape = (total, 1 if agnostic else classes, 4)
    codes = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    branches = {}
    if background:
        random = torch.randn(total, generator=generator)
        branches["background"] = random.to(dtype).requires_grad_()
    boxes = torch.cat(found).to(targets.boxes.dtype)
    together = Regions(boxes, tuple(len(each) for each in found))
    predictions = RegionPredictions(together, logits, codes, DeltaCoder(), branches)
    return RegionBatch(predictions, targets)


def region_gradients(total: Tensor, predictions: RegionPredictions) -> tuple[Tensor, ...]:
    """Return the gradients for logits, codes and branches."""
    inputs = (predictions.logits, predictions.codes, *predictions.branches.values())
    return torch.autograd.grad(total, inputs, retain_graph=True)
