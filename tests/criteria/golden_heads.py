"""Read the golden vectors of whole heads, and make small batches for the tests of criteria."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rankdet.models.priors import AnchorGenerator, PointGenerator
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import Assignment, BoxCoder, Predictions, Priors, Targets

if TYPE_CHECKING:
    import numpy as np

CLASSES = 5
LEVELS = 5


class Given:
    """An assigner that returns an assignment it was given."""

    def __init__(self, matched: Tensor) -> None:
        self.matched = matched

    def __call__(self, priors: Priors, targets: Targets) -> Assignment:
        assert self.matched.shape == (len(targets.boxes), len(priors.boxes))
        return Assignment(self.matched)


class Head(NamedTuple):
    """One golden file as a criterion sees it."""

    predictions: Predictions
    targets: Targets


def from_maps(data: dict[str, np.ndarray[Any, Any]], name: str, numbers: int) -> Tensor:
    """Turn maps [B, shapes * numbers, H, W] of all levels into [B, A, numbers]."""
    maps = [torch.from_numpy(data[f"{name}_{level}"]) for level in range(LEVELS)]
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, numbers) for x in maps], 1)


def from_flat(data: dict[str, np.ndarray[Any, Any]], name: str) -> Tensor:
    """Turn a flat array (level, image, place, shape, class) into [B, A, C]."""
    counts = [data[f"cls_score_{level}"][0].size for level in range(LEVELS)]
    parts = torch.from_numpy(data[name]).split([2 * count for count in counts])
    return torch.cat([part.reshape(2, -1, CLASSES) for part in parts], 1)


def read_head(
    data: dict[str, np.ndarray[Any, Any]],
    *,
    dtype: torch.dtype,
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    generator: AnchorGenerator | PointGenerator | None = None,
    coder: BoxCoder | None = None,
) -> Head:
    """Return predictions that want gradients, and the ground truth.

    Anchors of these ratios and deltas, unless there are a generator and a coder.
    """
    logits = from_maps(data, "cls_score", CLASSES).to(dtype).requires_grad_()
    codes = from_maps(data, "bbox_pred", 4).to(dtype).requires_grad_()
    branches = {}
    if "centerness_0" in data:
        branches["centreness"] = from_maps(data, "centerness", 1)[..., 0].to(dtype).requires_grad_()
    height, width = data["cls_score_0"].shape[2:]
    generator = generator or AnchorGenerator(ratios=ratios)
    priors = generator((height * 8, width * 8), device="cpu", dtype=dtype)
    boxes = [torch.from_numpy(data[f"gt_boxes_{image}"]).to(dtype) for image in range(2)]
    labels = [torch.from_numpy(data[f"gt_labels_{image}"]) for image in range(2)]
    crowd = [torch.zeros(len(each), dtype=torch.bool) for each in labels]
    names = ["pad_shape_0", "pad_shape_1"] if "pad_shape_0" in data else ["image_size_hw"] * 2
    sizes = [(int(data[name][0]), int(data[name][1])) for name in names]
    targets = Targets.stack(boxes, labels, crowd, sizes)
    return Head(Predictions(logits, codes, priors, coder or DeltaCoder(), branches), targets)


def small_batch(
    *, images: int = 2, objects: tuple[int, ...] = (3, 2), dtype: torch.dtype = torch.float32
) -> Head:
    """Return a batch of 64 x 64 px with random predictions, 3 classes, levels 8 and 16."""
    generator = torch.Generator().manual_seed(1)
    anchors = AnchorGenerator(strides=(8, 16), scale=2.0, octave_scales=1, ratios=(1.0,))
    priors = anchors((64, 64), device="cpu", dtype=torch.float32)
    total = len(priors.boxes)
    logits = torch.randn(images, total, 3, generator=generator).to(dtype).requires_grad_()
    codes = torch.randn(images, total, 4, generator=generator).to(dtype).requires_grad_()
    boxes, labels = [], []
    for count in objects:
        corner = torch.rand(count, 2, generator=generator) * 40
        side = 10 + torch.rand(count, 2, generator=generator) * 14
        boxes.append(torch.cat([corner, corner + side], 1))
        labels.append(torch.randint(3, (count,), generator=generator))
    crowd = [torch.zeros(count, dtype=torch.bool) for count in objects]
    targets = Targets.stack(boxes, labels, crowd, [(64, 64)] * images)
    return Head(Predictions(logits, codes, priors, DeltaCoder()), targets)


def gradients(total: Tensor, predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Return the gradients for logits and codes."""
    logits, codes = torch.autograd.grad(
        total, (predictions.logits, predictions.codes), retain_graph=True
    )
    return logits, codes
