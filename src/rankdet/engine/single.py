"""Detecting objects in one image at a time, with the thresholds that a model was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankdet.engine.detecting import Look, predict
from rankdet.engine.files import write_atomically
from rankdet.pictures import draw
from rankdet.structures import Detections

# Pixels along a side of a JPEG; the format has no room for more.
_LONGEST = 65_500

Resize = Callable[[Tensor], tuple[Tensor, tuple[float, float]]]


@dataclass(frozen=True, eq=False)
class Found:
    """The objects of one image, best first."""

    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    boxes: NDArray[np.float32]
    """[D, 4] xyxy in pixels of the image."""
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The objects as plain values for JSON."""
        return [
            {
                "class": self.classes[label],
                "score": float(f"{score:.6g}"),
                "box": [round(float(value), 2) for value in box],
            }
            for box, score, label in zip(self.boxes, self.scores, self.labels, strict=True)
        ]

    def save_picture(self, path: Path) -> None:
        """Write the image with its boxes as a JPEG, made smaller if it is longer than those can be.

        Raises:
            RunError: the file cannot be written.
        """
        picture = draw(self.image, self.boxes, self.labels, self.scores, self.classes)
        picture.thumbnail((_LONGEST, _LONGEST))
        write_atomically(
            path, lambda part: picture.convert("RGB").save(part, format="JPEG", quality=90)
        )


class Predictor:
    """A detector with everything that stands around it when it is used.

    Args:
        detector: in evaluation mode, on its device.
        resize: [3, H, W] uint8 to the size that the detector works at, and the factors of x and y.
        post_process: predictions and sizes to detections.
        classes: names.
        thresholds: for each class the least score to keep; a class without one keeps what the
            post-processing gives.
        divisor: the sides of the input are padded to a multiple of this.
        fill: RGB of the padding.
        look: how to look at an image; None: once, as it is.
    """

    def __init__(
        self,
        detector: nn.Module,
        *,
        resize: Resize,
        post_process: Callable[[Any, Tensor], list[Detections]],
        classes: tuple[str, ...],
        thresholds: Sequence[float | None],
        divisor: int,
        fill: tuple[int, int, int],
        look: Look | None = None,
    ) -> None:
        self.detector = detector
        self.resize = resize
        self.post_process = post_process
        self.classes = classes
        self.thresholds = torch.tensor([-1.0 if t is None else t for t in thresholds])
        self.divisor = divisor
        self.look = look
        self.fill = torch.tensor(fill, dtype=torch.uint8)[:, None, None]

    @torch.inference_mode()
    def predict(self, image: NDArray[np.uint8]) -> Found:
        """Return the objects of an image [H, W, 3] uint8, RGB."""
        resized, scale = self.resize(torch.from_numpy(image).permute(2, 0, 1))
        height, width = resized.shape[-2:]
        rows, columns = (-(-side // self.divisor) * self.divisor for side in (height, width))
        padded = self.fill.expand(3, rows, columns).clone()
        padded[:, :height, :width] = resized
        device = next(self.detector.parameters()).device
        sizes = torch.tensor([[height, width]], device=device)
        images = padded[None].to(device)
        if self.look is None:
            (found,) = self.post_process(predict(self.detector, images, sizes), sizes)
        else:
            (found,) = self.look(self.detector, self.post_process, images, sizes)
        found = found.to("cpu")
        kept = found.scores >= self.thresholds[found.labels]
        boxes = found.boxes[kept] / torch.tensor([*scale, *scale])
        return Found(
            image=image,
            boxes=boxes.float().numpy(),
            scores=found.scores[kept].float().numpy(),
            labels=found.labels[kept].numpy(),
            classes=self.classes,
        )
