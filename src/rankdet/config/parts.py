"""The parts of a recipe that come in several kinds, and what all groups of keys have in common.

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
IoUKind = Literal["iou", "giou", "diou", "ciou"]
# YAML has lists only; a recipe is frozen throughout.
Shares = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Strict(False)]
Ratios = Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1, max_length=64)]
Scales = Annotated[tuple[Positive, Positive], Strict(False)]
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


class Focal(Section):
    """Focal loss, per positive."""

    kind: Literal["focal"] = "focal"
    alpha: Share = 0.25
    """Weight of the positives; the negatives have the rest."""
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """How little what is nearly right counts: 0, or 1 and more."""

    @model_validator(mode="after")
    def _has_a_gradient(self) -> Self:
        if 0 < self.gamma < 1:
            raise ValueError(f"gamma must be 0, or 1 and more, got {self.gamma:g}")
        return self


class AveragePrecision(Section):
    """AP Loss, of one ranking of a whole micro-batch."""

    kind: Literal["ap"] = "ap"
    delta: Weight = 1.0
    """Half-width of the smoothed step, in units of the logits."""
    interpolated: bool = True
    """Whether precision is interpolated."""


class SmoothL1(Section):
    """Smooth L1 loss of the box codes."""

    kind: Literal["smooth_l1"] = "smooth_l1"
    beta: Weight = 0.11
    """Where its quadratic and its linear piece meet, in units of the codes."""
    per: Literal["positive", "number"] = "positive"
    """Whether the four numbers of a box are added up or averaged."""


class IoUFamily(Section):
    """A loss of the overlap of predicted box and object."""

    kind: IoUKind = "giou"


class Dense(Section):
    """Any classification loss and any box loss, added up."""

    kind: Literal["dense"] = "dense"
    classification: Annotated[Focal | AveragePrecision, Field(discriminator="kind")] = Focal()
    """How classes are learned."""
    box: Annotated[SmoothL1 | IoUFamily, Field(discriminator="kind")] = SmoothL1()
    """How boxes are learned."""
    box_weight: Weight = 1.0
    """What the box loss is multiplied by."""


class SelfBalance(Section):
    """Localisation counts as much as the whole loss did in the last period."""

    kind: Literal["self"] = "self"
    initial: Positive = 50.0
    """Weight of localisation until the first period ends."""


class ScalarBalance(Section):
    """A constant weight."""

    kind: Literal["scalar"] = "scalar"
    w_r: Weight = 10.0
    """What localisation is multiplied by."""


class LearnedBalance(Section):
    """Two learned uncertainties."""

    kind: Literal["learned"] = "learned"


class ALRP(Section):
    """aLRP Loss: classification and localisation in one ranking of a whole micro-batch."""

    kind: Literal["alrp"] = "alrp"
    delta: Weight = 1.0
    """Half-width of the smoothed step, in units of the logits."""
    tau: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """IoU from which a positive counts as such."""
    box: IoUKind = "giou"
    """What the localisation error is measured by."""
    loc_ranking: Literal["smooth", "hard"] = "smooth"
    """How positives rank among themselves in the localisation part; hard: as the authors' code."""
    balance: Annotated[
        SelfBalance | ScalarBalance | LearnedBalance, Field(discriminator="kind")
    ] = SelfBalance()
    """How localisation is weighed against classification."""


class RankSort(Section):
    """Rank & Sort Loss, of one ranking of a whole micro-batch."""

    kind: Literal["rank_sort"] = "rank_sort"
    delta: Weight = 0.5
    """Half-width of the smoothed step, in units of the logits."""


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


Assigner = Annotated[MaxIoU | ATSS, Field(discriminator="kind")]
Criterion = Annotated[Dense | ALRP | RankSort, Field(discriminator="kind")]
Decay = Annotated[Drops | FlatLinear, Field(discriminator="kind")]
