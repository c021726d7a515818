"""What the rooms of the package hand to each other, with every shape documented once.

B images, A priors, C classes, G ground truths of one image at most, L feature levels, R regions
of all images together. Boxes are xyxy in pixels of the image as the detector sees it: x to the
right, y downwards, width = x2 - x1. Everything but regions is padded to whole tensors, so that a
batch is handled without a loop over its images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor

# Values of `Assignment.matched` that are no index of a ground truth.
NEGATIVE = -1
IGNORED = -2


class BoxCoder(Protocol):
    """Translates boxes to the numbers a network predicts, and back; broadcasts over [..., 4]."""

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """Return the codes of boxes relative to priors."""
        ...

    def decode(self, priors: Tensor, codes: Tensor) -> Tensor:
        """Return the boxes that codes stand for, xyxy in pixels."""
        ...

    def decode_relative(self, codes: Tensor) -> Tensor:
        """Return the boxes in the prior's own frame (unit: the prior's, origin: its centre).

        The IoU of two boxes of one prior is the same there as in pixels.
        """
        ...


@dataclass(frozen=True, eq=False)
class _Tensors:
    """Something made of tensors that moves as one."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the same on another device."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the same in page-locked memory; a data loader calls it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: object) -> Self:
        assert callable(change)
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)})


@dataclass(frozen=True, eq=False)
class Targets(_Tensors):
    """Ground truth of a batch, padded to the largest number of objects in one of its images."""

    boxes: Tensor
    """[B, G, 4] floating, xyxy in pixels; zeros where padded."""
    labels: Tensor
    """[B, G] int64: class 0 .. C-1, or -1 where padded."""
    crowd: Tensor
    """[B, G] bool: a region that holds objects nobody boxed one by one; neither object nor
    background."""
    sizes: Tensor
    """[B, 2] int64: height and width of each image within the padded batch, in pixels."""

    @property
    def is_object(self) -> Tensor:
        """[B, G] bool: to be detected."""
        return (self.labels >= 0) & ~self.crowd

    @property
    def is_crowd(self) -> Tensor:
        """[B, G] bool: to be left alone."""
        return (self.labels >= 0) & self.crowd

    def of_images(self, some: slice) -> Targets:
        """Return the ground truth of some of the images, padded as it is."""
        return Targets(self.boxes[some], self.labels[some], self.crowd[some], self.sizes[some])

    @classmethod
    def stack(
        cls,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        crowd: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> Targets:
        """Pad the ground truth of single images to one batch.

        Args:
            boxes: for each image [G_b, 4], floating.
            labels: for each image [G_b], int64.
            crowd: for each image [G_b], bool.
            sizes: for each image its height and width.

        Returns:
            The batch, on the device of its parts.
        """
        pad = torch.nn.utils.rnn.pad_sequence
        return cls(
            boxes=pad(list(boxes), batch_first=True),
            labels=pad(list(labels), batch_first=True, padding_value=-1),
            crowd=pad(list(crowd), batch_first=True),
            sizes=torch.tensor(list(sizes), dtype=torch.int64, device=boxes[0].device),
        )


@dataclass(frozen=True, eq=False)
class Priors(_Tensors):
    """The places and shapes that predictions start from, of all levels in turn.

    Within a level: row y (slowest), column x, then the shape at a place (fastest).
    """

    boxes: Tensor
    """[A, 4] floating, xyxy in pixels; may reach beyond the image."""
    counts: tuple[int, ...]
    """L numbers of priors, finest level first; their sum is A."""
    strides: tuple[int, ...]
    """L strides, in pixels."""

    @property
    def centres(self) -> Tensor:
        """[A, 2] x and y in pixels."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def inside(self, sizes: Tensor) -> Tensor:
        """Return which priors stand on the image rather than on its padding: [B, A] bool.

        A feature map covers ceil(size / stride) places; those beyond see padding alone.

        Args:
            sizes: [B, 2] int64, height and width in pixels.
        """
        strides = torch.tensor(self.strides, device=sizes.device)[:, None]  # [L, 1]
        # A quarter of a stride less: a centre computed from corners may round to either side.
        reach = -(sizes[:, None] // -strides) * strides - strides / 4  # [B, L, 2] height, width
        # Level by level, which is faster than a reach for each prior.
        x, y = (along.split(list(self.counts)) for along in self.centres.unbind(1))
        levels = zip(x, y, reach.unbind(1), strict=True)
        return torch.cat([(b < far[:, :1]) & (a < far[:, 1:]) for a, b, far in levels], 1)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a detector says of a batch, before any choice is made."""

    logits: Tensor
    """[B, A, C] class logits."""
    codes: Tensor
    """[B, A, 4] boxes as codes of `coder` relative to the priors."""
    priors: Priors
    coder: BoxCoder
    branches: Mapping[str, Tensor] = field(default_factory=dict)
    """Further outputs by name, each [B, A]: "centreness" logits."""
    shared: tuple[Tensor, ...] = ()
    """What logits and codes are both computed from, such as the feature maps of all levels."""


@dataclass(frozen=True, eq=False)
class Regions(_Tensors):
    """Boxes that a detector looks at a second time, R in all, image by image."""

    boxes: Tensor
    """[R, 4] floating, xyxy in pixels; within the image, with an area. No gradient."""
    counts: tuple[int, ...]
    """B numbers of regions, of each image in turn, 0 and more; their sum is R."""

    @property
    def image(self) -> Tensor:
        """[R] int64, ascending: the image of each region, 0 .. B-1."""
        counts = torch.tensor(self.counts, dtype=torch.int64, device=self.boxes.device)
        index = torch.arange(len(counts), device=counts.device)
        return index.repeat_interleave(counts, output_size=len(self.boxes))

    def split(self) -> tuple[Tensor, ...]:
        """Return the boxes of each image, [R_b, 4]."""
        return tuple(self.boxes.split(list(self.counts)))


@dataclass(frozen=True, eq=False)
class RegionPredictions:
    """What the second stage of a detector says of its regions."""

    regions: Regions
    logits: Tensor
    """[R, C] class logits."""
    codes: Tensor
    """[R, C, 4] boxes of each class as codes of `coder` relative to the regions; [R, 1, 4] where
    all classes share one box."""
    coder: BoxCoder
    branches: Mapping[str, Tensor] = field(default_factory=dict)
    """Further outputs by name, each [R]: "background", the logit of being no object. With it the
    scores are a softmax over the classes and it; without, a sigmoid of each class."""
    shared: tuple[Tensor, ...] = ()
    """What logits and codes are both computed from: the last hidden layer, [R, channels]."""


@dataclass(frozen=True, eq=False)
class TwoStagePredictions:
    """What a detector of two stages says of a batch."""

    first: Predictions
    """Of one class: how likely each prior is an object of any class, and where it is."""
    second: RegionPredictions
    """Of the regions that were proposed by the first."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which ground truth each prior has to find."""

    matched: Tensor
    """[B, A] int64: index of a ground truth of the image (0 .. G-1), `NEGATIVE` or `IGNORED`."""


class Assigner(Protocol):
    """Decides who is positive; never differentiated."""

    def __call__(self, priors: Priors, targets: Targets) -> Assignment:
        """Return the assignment of a batch."""
        ...


@dataclass(frozen=True, eq=False)
class Detections(_Tensors):
    """What was found in one image, best first."""

    boxes: Tensor
    """[D, 4] float32, xyxy in pixels."""
    scores: Tensor
    """[D] float32 in [0, 1], descending."""
    labels: Tensor
    """[D] int64, class 0 .. C-1."""


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The loss of one batch: one scalar to differentiate, and its parts for the log."""

    total: Tensor
    """0-d, float32 or float64."""
    parts: Mapping[str, Tensor]
    """0-d each, detached: "classification", "localisation", ... and "positives", a count."""
