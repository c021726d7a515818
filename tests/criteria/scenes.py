"""Ground truth at the edges, and a small detector that learns it: for the tests of criteria."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from golden_heads import Head, small_batch
from torch import Tensor, nn

from rankdet.models.atss import atss
from rankdet.models.backbones import build_backbone
from rankdet.models.detector import Detector
from rankdet.structures import LossTerms, Predictions, Targets


def many(count: int) -> Tensor:
    """Return random boxes within 64 x 64 px, of sides from 1 px up."""
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(count, 2, generator=generator) * 60
    far = torch.minimum(
        corner + 1 + torch.rand(count, 2, generator=generator) * 30, torch.tensor(64.0)
    )
    return torch.cat([corner, far], 1)


SCENES = {
    "none": torch.zeros(0, 4),
    "one": torch.tensor([[10.0, 12.0, 30.0, 28.0]]),
    "300": many(300),
    "identical": torch.tensor([[10.0, 12.0, 30.0, 28.0]]).repeat(3, 1),
    "one pixel": torch.tensor([[20.0, 20.0, 21.0, 21.0], [40.0, 40.0, 41.0, 41.0]]),
    "at the border": torch.tensor([[0.0, 0.0, 9.0, 14.0], [52.0, 60.0, 64.0, 64.0]]),
    "beyond the border": torch.tensor([[-20.0, -20.0, 9.0, 14.0], [60.0, 60.0, 90.0, 90.0]]),
    "the whole image": torch.tensor([[0.0, 0.0, 64.0, 64.0]]),
}


def scene(name: str, *, crowd: bool = False, dtype: torch.dtype = torch.float32) -> Head:
    """Return predictions of two images of which the second has the boxes of a scene.

    All objects are of class 1 of 3. With crowd, the lower half of the second image is a crowd
    region.
    """
    boxes = SCENES[name]
    regions = torch.tensor([[0.0, 32.0, 64.0, 64.0]] if crowd else []).reshape(-1, 4)
    own = torch.tensor([[6.0, 6.0, 24.0, 24.0]])
    count = len(boxes) + len(regions)
    targets = Targets.stack(
        [own, torch.cat([boxes, regions])],
        [torch.tensor([1]), torch.ones(count, dtype=torch.int64)],
        [torch.tensor([False]), torch.arange(count) >= len(boxes)],
        [(64, 64)] * 2,
    )
    return Head(small_batch(dtype=dtype).predictions, targets)


def on_crowd(head: Head) -> Tensor:
    """Return the priors with more than half of their area on the crowd region of a scene, [A]."""
    return (head.predictions.priors.centres > torch.tensor([1.0, 33.0])).all(1)


def with_branches(criterion: nn.Module, head: Head) -> Head:
    """Return the batch with the branches that the criterion needs."""
    needs: Any = criterion.needs
    logits = head.predictions.logits
    branches = {
        name: torch.zeros(logits.shape[:2], dtype=logits.dtype, requires_grad=True)
        for name in needs
    }
    return Head(replace(head.predictions, branches=branches), head.targets)


def require_sound(criterion: nn.Module, head: Head) -> tuple[LossTerms, Tensor, Tensor]:
    """Return loss and gradients, all finite; a class that never appears is only pushed down."""
    head = with_branches(criterion, head)
    terms: LossTerms = criterion(*head)
    predictions = head.predictions
    inputs = [predictions.logits, predictions.codes, *predictions.branches.values()]
    logits, codes, *branches = torch.autograd.grad(terms.total, inputs)
    for each in (terms.total, logits, codes, *branches, *terms.parts.values()):
        assert each.isfinite().all()
    assert (logits[..., [0, 2]] >= 0).all()
    return terms, logits, codes


def losses_while_learning(
    criterion: nn.Module,
    *,
    make: Callable[..., Detector] = atss,
    steps: int = 8,
    **settings: Any,
) -> list[float]:
    """Return the losses of a tiny detector on two images learnt by heart."""
    torch.manual_seed(1)
    backbone = build_backbone("tiny")
    model = make(3, backbone=backbone, channels=16, levels=3, convs=1, **settings)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    targets = Targets.stack(
        [torch.tensor([[8.0, 8.0, 40.0, 40.0], [50.0, 10.0, 90.0, 60.0]]),
         torch.tensor([[20.0, 16.0, 60.0, 50.0]])],
        [torch.tensor([0, 2]), torch.tensor([1])],
        [torch.zeros(2, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)],
        [(64, 96)] * 2,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    needs: Any = criterion.needs
    losses = []
    for _ in range(steps):
        found: Predictions = model(images)
        # The head may know its one branch by another name.
        branches = dict(zip(sorted(needs), found.branches.values(), strict=True))
        terms: LossTerms = criterion(replace(found, branches=branches), targets)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append(terms.total.item())
    return losses
