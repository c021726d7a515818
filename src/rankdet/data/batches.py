"""Batches: single images put together for the network, padded to one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rankdet.data.transforms import MEAN_COLOUR, Example
from rankdet.structures import Targets


class Sample(NamedTuple):
    """One image of a training batch."""

    example: Example
    id: int


@dataclass(frozen=True, eq=False)
class Batch:
    """A training batch."""

    images: Tensor
    """[B, 3, H, W] uint8, RGB; padded on the right and below."""
    targets: Targets
    ids: tuple[int, ...]
    """B ids of the images."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the same on another device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """Return the same in page-locked memory; a data loader calls it."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


@dataclass(frozen=True, eq=False)
class TestSample:
    """One image to find objects in."""

    __test__ = False  # pytest takes classes of this name for tests

    image: Tensor
    """[3, h, w] uint8, RGB."""
    id: int
    scale: tuple[float, float]
    """x and y in pixels of ``image`` over pixels of the original."""
    original: tuple[int, int]
    """Height and width of the original."""


@dataclass(frozen=True, eq=False)
class TestBatch:
    """Images to find objects in."""

    __test__ = False

    images: Tensor
    """[B, 3, H, W] uint8, RGB; padded on the right and below."""
    sizes: Tensor
    """[B, 2] int64: height and width of each image within the padded batch."""
    scales: Tensor
    """[B, 2] float64: x and y in pixels of the batch over pixels of the original."""
    originals: Tensor
    """[B, 2] int64: height and width of the originals."""
    ids: tuple[int, ...]
    """B ids of the images."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TestBatch:
        """Return the same with images and sizes on another device.

        Scales and original sizes stay: they are needed where detections are written down.
        """
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            sizes=self.sizes.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> TestBatch:
        """Return the same in page-locked memory; a data loader calls it."""
        return replace(self, images=self.images.pin_memory(), sizes=self.sizes.pin_memory())


def collate(
    samples: Sequence[Sample],
    *,
    divisor: int = 32,
    fill: tuple[int, int, int] = MEAN_COLOUR,
) -> Batch:
    """Put training samples into one batch.

    Args:
        samples: at least one.
        divisor: height and width of the batch become multiples of this.
        fill: RGB of the padding.

    Returns:
        The batch, as large as its largest image, rounded up.
    """
    examples = [sample.example for sample in samples]
    return Batch(
        images=_stack([example.image for example in examples], divisor, fill),
        targets=Targets.stack(
            [example.boxes for example in examples],
            [example.labels for example in examples],
            [example.crowd for example in examples],
            [example.size for example in examples],
        ),
        ids=tuple(sample.id for sample in samples),
    )


def collate_test(
    samples: Sequence[TestSample],
    *,
    divisor: int = 32,
    fill: tuple[int, int, int] = MEAN_COLOUR,
) -> TestBatch:
    """Put test samples into one batch; see `collate`."""
    return TestBatch(
        images=_stack([sample.image for sample in samples], divisor, fill),
        sizes=torch.tensor([sample.image.shape[-2:] for sample in samples], dtype=torch.int64),
        scales=torch.tensor([sample.scale for sample in samples], dtype=torch.float64),
        originals=torch.tensor([sample.original for sample in samples], dtype=torch.int64),
        ids=tuple(sample.id for sample in samples),
    )


def _stack(images: Sequence[Tensor], divisor: int, fill: tuple[int, int, int]) -> Tensor:
    if divisor < 1:
        raise ValueError(f"divisor must be at least 1, got {divisor}")
    height = -(-max(image.shape[-2] for image in images) // divisor) * divisor
    width = -(-max(image.shape[-1] for image in images) // divisor) * divisor
    if all(image.shape[-2:] == (height, width) for image in images):
        return torch.stack([image.contiguous() for image in images])
    colour = torch.tensor(fill, dtype=torch.uint8)[None, :, None, None]
    batch = colour.repeat(len(images), 1, height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[-2], : image.shape[-1]] = image
    return batch
