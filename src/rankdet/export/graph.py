"""A detector of one stage and its post-processing as one graph, whose shapes no value decides.

It computes what `rankdet.models.postprocess.PostProcess` computes. There, what takes no part is
left out; here it is marked, so that a graph can be made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankdet.export.suppression import Suppress
from rankdet.models.candidates import boxes_at, has_area
from rankdet.models.detector import Detector
from rankdet.models.postprocess import PostProcess
from rankdet.structures import Predictions, Priors

_QUALITIES = ("centreness", "iou")


class Outputs(NamedTuple):
    """What a graph returns: D places for each image, best first."""

    boxes: Tensor
    """[B, D, 4] float32, xyxy in pixels of the batch; zeros where nothing was found."""
    scores: Tensor
    """[B, D] float32 in [0, 1], descending; 0 where nothing was found."""
    labels: Tensor
    """[B, D] int64, class 0 .. C-1; -1 where nothing was found."""


class DenseGraph(nn.Module):
    """Images to detections, for a detector of one stage.

    Args:
        detector: in evaluation mode.
        post_process: what of it can be written: hard NMS without score voting, or none at all.
        suppress: how duplicates are removed; None leaves them in, and returns all candidates.
    """

    def __init__(
        self, detector: Detector, post_process: PostProcess, suppress: Suppress | None
    ) -> None:
        super().__init__()
        self.detector = detector
        self.post_process = post_process
        self.suppress = suppress
        self.grid = PriorGrid(detector.priors)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the detections of a batch, the fields of `Outputs`.

        Args:
            images: [B, 3, H, W] uint8, RGB, padded on the right and below.
            sizes: [B, 2] int64, height and width of each image within the padding.
        """
        detector, settings = self.detector, self.post_process
        maps = detector.neck(detector.backbone(detector.normalise(images)))
        found = detector.head(maps)
        priors = self.grid(maps)
        branch = next((found.branches[name] for name in _QUALITIES if name in found.branches), None)
        usable = priors.inside(sizes)[..., None] & (found.logits > -torch.inf)
        by_score = branch is not None and settings.combine == "root"
        orders = found.logits
        if branch is not None and by_score:
            if settings.score_threshold is not None:
                usable = usable & (found.logits.sigmoid() > settings.score_threshold)
            orders = functional.logsigmoid(orders) + functional.logsigmoid(branch)[..., None]
            usable = usable & (orders > -torch.inf)
        best, places, labels = fixed_best(
            torch.where(usable, orders, -torch.inf), priors.counts, settings.candidates
        )
        keep = best > -torch.inf
        if by_score:
            scores = (best / 2).exp()
        else:
            scores = best.sigmoid()
            if settings.score_threshold is not None:
                keep = keep & (scores > settings.score_threshold)
            if branch is not None:
                scores = scores * branch.gather(1, places).sigmoid()
                keep = keep & (scores >= 0)
        predictions = Predictions(found.logits, found.codes, priors, detector.coder)
        boxes = boxes_at(predictions, places, sizes)
        detections = chosen(
            boxes,
            scores,
            labels,
            keep & has_area(boxes),
            classes=detector.classes,
            most=settings.max_detections,
            nms_iou=settings.nms_iou,
            suppress=self.suppress,
        )
        return tuple(detections)  # a file knows no named tuples


class PriorGrid(nn.Module):
    """The priors of maps of any size: those of the first place of each level, moved about.

    Args:
        priors: called with (height, width), ``device`` and ``dtype``, as a detector has it.
    """

    def __init__(self, priors: object) -> None:
        super().__init__()
        assert callable(priors)
        # An image of one pixel has one place in each level.
        first: Priors = priors((1, 1), device="cpu", dtype=torch.float64)
        self.strides = first.strides
        for level, boxes in enumerate(first.boxes.clone().split(list(first.counts))):
            self.register_buffer(f"first_{level}", boxes, persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> Priors:
        """Return the priors of maps [B, channels, H, W], finest first."""
        levels, counts = [], []
        for level, (stride, one) in enumerate(zip(self.strides, maps, strict=False)):
            first = self.get_buffer(f"first_{level}")  # [shapes, 4] float64
            rows, columns = one.shape[2], one.shape[3]
            y = torch.arange(rows, device=first.device) * stride
            x = torch.arange(columns, device=first.device) * stride
            x = x[None, :].expand(rows, columns)
            y = y[:, None].expand(rows, columns)
            shift = torch.stack([x, y, x, y], -1).double()[:, :, None]  # [H, W, 1, 4]
            levels.append((shift + first).flatten(0, 2).float())
            counts.append(rows * columns * len(first))
        return Priors(torch.cat(levels), tuple(counts), self.strides)


def fixed_best(orders: Tensor, counts: Sequence[int], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best pairs (place, class) of each level, ``most`` of them even if there are fewer.

    Args:
        orders: [B, A, C], -inf for what takes no part.
        counts: places of each level, finest first; A in all.
        most: pairs per level.

    Returns:
        What they were ordered by, -inf where there are too few; places and classes; [B, K] each
        with K the levels times ``most``.
    """
    classes = orders.shape[2]
    values, places, labels = [], [], []
    start = 0
    for level in orders.split(list(counts), 1):
        flat = level.flatten(1)
        filled = functional.pad(flat, (0, most), value=-torch.inf)
        best = filled.topk(most)
        pair = torch.where(best.values > -torch.inf, best.indices, 0)
        place = pair.div(classes, rounding_mode="floor")
        values.append(best.values)
        places.append(place + start)
        labels.append(pair - place * classes)
        start = start + level.shape[1]
    return torch.cat(values, 1), torch.cat(places, 1), torch.cat(labels, 1)


def chosen(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    keep: Tensor,
    *,
    classes: int,
    most: int,
    nms_iou: float,
    suppress: Suppress | None,
) -> Outputs:
    """Return the best candidates without duplicates, or all of them in order.

    Args:
        boxes: [B, K, 4] xyxy in pixels; anything where they are not kept.
        scores: [B, K].
        labels: [B, K] int64.
        keep: [B, K] bool.
        classes: C.
        most: D, or K if that is less.
        nms_iou: in [0, 1].
        suppress: None to leave the duplicates in; D is K then.
    """
    boxes = torch.where(keep[..., None], boxes, 0.0)
    marked = torch.where(keep, scores, -1.0)
    if suppress is not None:
        stays = suppress(boxes, marked, labels, of=classes, most=most, nms_iou=nms_iou)
        marked = torch.where(stays, marked, -1.0)
    order = marked.sort(dim=1, descending=True, stable=True)
    count = marked.shape[1] if suppress is None else min(most, marked.shape[1])
    best, index = order.values[:, :count], order.indices[:, :count]
    there = best >= 0
    at = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return Outputs(
        torch.where(there[..., None], at, 0.0),
        torch.where(there, best, 0.0),
        torch.where(there, labels.gather(1, index), -1),
    )
