"""From a loader of test images to detections in COCO's form, and to the score of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rankdet.structures import Detections, Predictions, Targets, TwoStagePredictions

Result = dict[str, Any]
# Detector, post-processing, images and sizes to detections: several looks put together.
Look = Callable[[nn.Module, Any, Tensor, Tensor], list[Detections]]


class TestBatch(Protocol):
    """What a loader for testing yields."""

    @property
    def images(self) -> Tensor:
        """[B, 3, H, W] uint8, padded."""
        ...

    @property
    def sizes(self) -> Tensor:
        """[B, 2] int64, height and width of each image within the padding."""
        ...

    @property
    def scales(self) -> Tensor:
        """[B, 2] what x and y were multiplied with when the images were resized."""
        ...

    @property
    def ids(self) -> tuple[int, ...]:
        """B ids of images."""
        ...


def predict(
    detector: nn.Module, images: Tensor, sizes: Tensor, targets: Targets | None = None
) -> Predictions | TwoStagePredictions:
    """Return a detector's predictions of a batch, telling it as much as it wants to know.

    A detector of two stages has the attribute ``wants_sizes``: it is told where each image ends,
    and in training the objects, which it may add to its regions.

    Args:
        detector: any.
        images: [B, 3, H, W], padded.
        sizes: [B, 2] int64, height and width of each image within the padding.
        targets: of the same images, in training.
    """
    if not getattr(detector, "wants_sizes", False):
        found: Predictions = detector(images)
        return found
    known = None
    if targets is not None:
        known = targets.boxes.masked_fill(~targets.is_object[..., None], 0)
    both: TwoStagePredictions = detector(images, sizes, known)
    return both


@torch.inference_mode()
def detect(
    detector: nn.Module,
    post_process: Callable[[Any, Tensor], list[Detections]],
    batches: Iterable[TestBatch],
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    look: Look | None = None,
) -> Iterator[tuple[int, Detections]]:
    """Yield each image's id and its detections, in pixels of the image as it was read.

    Args:
        detector: in the mode it should run in; set back to it afterwards.
        post_process: the detector's predictions and sizes [B, 2] to detections of each image.
        batches: see `TestBatch`.
        device: where the detector is.
        dtype: of autocast, None for full precision.
        look: how to look at a batch; None: once, as it is.
    """
    was_training = detector.training
    detector.eval()
    try:
        for batch in batches:
            images = batch.images.to(device, non_blocking=True)
            sizes = batch.sizes.to(device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                if look is None:
                    batch_found = post_process(predict(detector, images, sizes), sizes)
                else:
                    batch_found = look(detector, post_process, images, sizes)
            for index, found in enumerate(batch_found):
                found = found.to("cpu")
                scale = batch.scales[index].to(found.boxes).repeat(2)
                boxes = found.boxes / scale
                yield batch.ids[index], Detections(boxes, found.scores, found.labels)
    finally:
        detector.train(was_training)


def to_results(
    image_id: int, detections: Detections, category_ids: tuple[int, ...]
) -> list[Result]:
    """Return the detections of one image as entries of a COCO results list.

    Coordinates are rounded to a thousandth of a pixel; scores keep all digits, since the scores
    of ranking losses are small and close to each other.
    """
    corners = detections.boxes.double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(value, 3) for value in box],
            "score": score,
        }
        for box, score, label in zip(
            boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]
