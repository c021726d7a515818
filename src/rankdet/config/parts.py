"""The parts of a recipe that come in several kinds, and what all groups of keys have in common.

Here are assigners, augmentation and schedules; `rankdet.config.losses` has what is minimised.

Each kind is a class, and `kind` the key that names it. The text below a field is what the command
line shows as its explanation.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=10**9)]
# YAML has lists only; a recipe is frozen throughout.
Shares = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Strict(False)]
Ratios = Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1, max_length=64)]
Scales = Annotated[tuple[Positive, Positive], Strict(False)]
Range = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1e9)], Annotated[float, Field(gt=0, le=1e9)]],
    Strict(False),
]
Ranges = Annotated[tuple[Range, ...], Strict(False), Field(min_length=1, max_length=16)]
Stds = Annotated[tuple[Positive, Positive, Positive, Positive], Strict(False)]


class Section(BaseModel):
    """A group of keys: frozen, no unknown ones, and no conversion but from integer to number."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class MaxIoU(Section):
    """Positive by the overlap of anchor and object."""

    kind: Literal["max_iou"] = "max_iou"
    positive: Annotated[float, Field(gt=0, le=1)] = 0.5
    """IoU from which an anchor is positive."""
    negative: Share = 0.4
    """IoU below which an anchor is negative; it is ignored between the two."""
    min_positive: Share = 0.0
    """IoU that an object's best anchor needs in order to be positive whatever it is."""
    low_quality: bool = True
    """Whether the best anchor of every object is positive."""
    crowd_overlap: Share | None = 0.5
    """Share of an anchor within a crowd region from which it is ignored; null: never."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.negative > self.positive:
            raise ValueError(
                f"negative ({self.negative:g}) must not exceed positive ({self.positive:g})"
            )
        return self


class ATSS(Section):
    """Positive by an IoU threshold for each object, from the statistics of its nearest anchors."""

    kind: Literal["atss"] = "atss"
    top_k: Annotated[int, Field(ge=1, le=1000)] = 9
    """Nearest anchors of each level that are candidates."""
    crowd_overlap: Share | None = 0.5
    """Share of an anchor within a crowd region from which it is ignored; null: never."""


class FCOS(Section):
    """Positive are the points within an object, on the level that is meant for its distances."""

    kind: Literal["fcos"] = "fcos"
    regress_ranges: Ranges = ((0, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
    """For each level, the largest distance to a side of the object, in pixels: from, to."""
    centre_radius: Positive | None = 1.5
    """How far from the centre of an object, in strides; null: anywhere within it."""
    crowd_overlap: Share | None = 0.5
    """Share of a place within a crowd region from which it is ignored; null: never."""


class Fovea(Section):
    """Positive are the points in the middle of an object, on the levels meant for its size."""

    kind: Literal["fovea"] = "fovea"
    scale_ranges: Ranges = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
    """For each level, the square root of an object's area in pixels: from, to."""
    sigma: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the sides of an object that is its middle."""
    crowd_overlap: Share | None = 0.5
    """Share of a place within a crowd region from which it is ignored; null: never."""


class PAA(Section):
    """Positive are the anchors that the detector itself does best with, split by a mixture."""

    kind: Literal["paa"] = "paa"
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.1
    """IoU from which an anchor is a candidate."""
    top_k: Annotated[int, Field(ge=1, le=1000)] = 9
    """Best candidates of each level that the mixture is fitted to."""
    box_weight: Weight = 1.0
    """Of the box loss in the cost of an anchor."""


class NoAssigner(Section):
    """None: the criterion learns who is positive (free_anchor)."""

    kind: Literal["none"] = "none"


class SSDAugment(Section):
    """Strong, as in SSD: colours, zoom out, crops of a minimum IoU, mirrored left to right."""

    kind: Literal["ssd"] = "ssd"


class LightAugment(Section):
    """Mild, for training from scratch on little data: scale, crop, colours, flips."""

    kind: Literal["light"] = "light"
    scale: Scales = (0.7, 1.5)
    """Smallest and largest factor on the size of the image."""
    stretch: Annotated[float, Field(ge=1, le=10)] = 1.1
    """Largest change of width relative to height."""
    colour: Share = 0.2
    """Strength of the change of colours; 0 leaves them alone."""
    horizontal_flip: bool = True
    """Whether half of the images are mirrored left to right; wrong for letters and digits."""
    vertical_flip: bool = False
    """Whether half of them are turned upside down; right where up and down mean nothing."""
    min_visible: Share = 0.3
    """Share of an object's area that must be left of it by a crop."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be two ascending numbers, got {list(self.scale)}")
        return self


class PlainResize(Section):
    """None but flips: the image is fitted into the square."""

    kind: Literal["plain"] = "plain"
    keep_aspect: bool = True
    """Whether the rest of the square is padded, rather than the image squeezed."""
    horizontal_flip: bool = False
    """Whether half of the images are mirrored left to right."""


Augment = Annotated[SSDAugment | LightAugment | PlainResize, Field(discriminator="kind")]


class Drops(Section):
    """The learning rate falls at given moments."""

    kind: Literal["drops"] = "drops"
    at: Shares = (0.75, 0.95)
    """Shares of the run after which it falls."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What it is multiplied by each time."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at must ascend, got {list(self.at)}")
        return self


class FlatLinear(Section):
    """The learning rate stays, then falls in a straight line to 0 at the end."""

    kind: Literal["flat_linear"] = "flat_linear"
    share: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Share of the run in which it falls."""


Assigner = Annotated[MaxIoU | ATSS | FCOS | Fovea | PAA | NoAssigner, Field(discriminator="kind")]
Decay = Annotated[Drops | FlatLinear, Field(discriminator="kind")]
