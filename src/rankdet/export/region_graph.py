"""A detector of two stages and its post-processing as one graph, whose shapes no value decides.

It computes what `rankdet.models.faster_rcnn.FasterRCNN` and
`rankdet.models.region_postprocess.RegionPostProcess` compute. There each image has as many regions
as were found; here each has the same number, and those that do not exist are marked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align

from rankdet.export.graph import PriorGrid, chosen, fixed_best
from rankdet.export.suppression import Suppress
from rankdet.models.candidates import boxes_at, clipped, has_area
from rankdet.models.faster_rcnn import FasterRCNN
from rankdet.models.region_postprocess import RegionPostProcess
from rankdet.structures import Predictions


class RegionGraph(nn.Module):
    """Images to detections, for a detector of two stages.

    Args:
        detector: in evaluation mode.
        post_process: with hard NMS.
        suppress: how duplicates are removed, among the regions too.
        final: whether they are removed among the detections; if not, all candidates are returned.
    """

    def __init__(
        self,
        detector: FasterRCNN,
        post_process: RegionPostProcess,
        suppress: Suppress,
        *,
        final: bool = True,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.post_process = post_process
        self.suppress = suppress
        self.final = final
        self.grid = PriorGrid(detector.priors)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the detections of a batch; see `rankdet.export.graph.DenseGraph`."""
        detector, settings = self.detector, self.post_process
        maps = detector.neck(detector.backbone(detector.normalise(images)))
        regions, there = self._propose(maps, sizes)
        number = regions.shape[1]
        orders, scores, codes = self._look_again(maps, regions)
        classes = detector.classes
        orders = orders.unflatten(0, (-1, number)).flatten(1)  # [B, R C]
        usable = there.repeat_interleave(classes, 1) & (orders > -torch.inf)
        best = torch.where(usable, orders, -torch.inf).topk(
            min(settings.candidates, number * classes)
        )
        region = best.indices.div(classes, rounding_mode="floor")
        labels = best.indices - region * classes
        score = scores.unflatten(0, (-1, number)).flatten(1).gather(1, best.indices)
        # [R, 1, 4] where all classes share a box
        each = codes.unflatten(0, (-1, number)).flatten(1, 2)
        at = region if codes.shape[1] == 1 else best.indices
        code = each.gather(1, at[..., None].expand(-1, -1, 4))
        start = regions.gather(1, region[..., None].expand(-1, -1, 4))
        boxes = clipped(detector.region_coder.decode(start, code), sizes)
        keep = (best.values > -torch.inf) & has_area(boxes)
        if settings.score_threshold is not None:
            keep = keep & (score > settings.score_threshold)
        detections = chosen(
            boxes,
            score,
            labels,
            keep,
            classes=classes,
            most=settings.max_detections,
            nms_iou=settings.nms_iou,
            suppress=self.suppress if self.final else None,
        )
        return tuple(detections)

    def _propose(self, maps: Sequence[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the regions [B, R, 4], and which of them exist [B, R]."""
        detector, settings = self.detector, self.detector.propose
        head = detector.first
        logits, codes = [], []
        for each in maps:
            x = functional.relu(head.shared(each))
            logits.append(head.to_logits(x).permute(0, 2, 3, 1).flatten(1)[..., None])
            codes.append(head.to_codes(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
        priors = self.grid(maps)
        joined = torch.cat(logits, 1)
        usable = priors.inside(sizes)[..., None] & (joined > -torch.inf)
        orders = torch.where(usable, joined, -torch.inf)
        best, places, _ = fixed_best(orders, priors.counts, settings.candidates)
        found = Predictions(joined, torch.cat(codes, 1), priors, detector.coder)
        boxes = boxes_at(found, places, sizes)
        keep = (best > -torch.inf) & has_area(boxes)
        levels = torch.arange(len(maps), device=boxes.device).repeat_interleave(settings.candidates)
        # By rank: the order of the logits, but 0 and more, as is asked for.
        order = torch.where(keep, best, -torch.inf).sort(dim=1, descending=True, stable=True)
        count = best.shape[1]
        falling = torch.arange(count, 0, -1, device=boxes.device).float() / count
        ranks = torch.zeros_like(best).scatter(1, order.indices, falling.expand_as(best))
        regions = chosen(
            boxes,
            ranks,
            levels.expand_as(places),
            keep,
            classes=len(maps),
            most=settings.number,
            nms_iou=settings.nms_iou,
            suppress=self.suppress,
        )
        return regions.boxes, regions.labels >= 0

    def _look_again(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return of all regions in turn what orders them, and scores: [B R, C]; codes [B R, C, 4].

        Each region is cut out of every map, but from all maps except its own as a region without
        a size, which costs nothing and gives 0.
        """
        pooling, head = self.detector.pooling, self.detector.second
        image = torch.arange(regions.shape[0], device=regions.device).to(regions.dtype)
        image = image[:, None].expand(-1, regions.shape[1]).flatten()[:, None]
        boxes = regions.flatten(0, 1)
        sides = boxes[:, 2:] - boxes[:, :2]
        octave = (sides.prod(1).sqrt() / pooling.finest_side + 1e-6).log2().floor()
        levels = octave.clamp(0, len(pooling.strides) - 1)
        pooled = []
        for level, (each, stride) in enumerate(zip(maps, pooling.strides, strict=False)):
            own = torch.where((levels == level)[:, None], boxes, 0.0)
            pooled.append(
                roi_align(
                    each,
                    torch.cat([image, own], 1),
                    pooling.size,
                    spatial_scale=1 / stride,
                    sampling_ratio=pooling.points or -1,
                    aligned=True,
                )
            )
        x = functional.relu(head.first(torch.stack(pooled).sum(0).flatten(1)))
        x = functional.relu(head.second(x))
        logits = head.to_logits(x)
        codes = head.to_codes(x).unflatten(1, (-1, 4))
        if head.background:
            orders = logits.log_softmax(1)[:, :-1]
            return orders, orders.exp(), codes
        return logits, logits.sigmoid(), codes
