"""What a recipe may minimise: criteria, and the losses they are made of.

Each kind is a class, and `kind` the key that names it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rankdet.config.parts import MaxIoU, Positive, Section, Share, Weight

IoUKind = Literal["iou", "giou", "diou", "ciou"]
Ranking = Literal["local", "global"]


class Focal(Section):
    """Focal loss, per positive."""

    kind: Literal["focal"] = "focal"
    alpha: Share = 0.25
    """Weight of the positives; the negatives have the rest."""
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """How little what is nearly right counts: 0, or 1 and more."""
    count_images: bool = False
    """Whether each image counts as one more positive in what the loss is divided by."""

    @model_validator(mode="after")
    def _has_a_gradient(self) -> Self:
        if 0 < self.gamma < 1:
            raise ValueError(f"gamma must be 0, or 1 and more, got {self.gamma:g}")
        return self


class QualityFocal(Section):
    """Quality focal loss: the class of a positive is to score its IoU."""

    kind: Literal["quality_focal"] = "quality_focal"
    beta: Annotated[float, Field(ge=1, le=10)] = 2.0
    """How little what is nearly right counts."""


class Varifocal(Section):
    """Varifocal loss: the class of a positive is to score its IoU, negatives are focal."""

    kind: Literal["varifocal"] = "varifocal"
    alpha: Weight = 0.75
    """Weight of the negatives."""
    gamma: Annotated[float, Field(ge=1, le=10)] = 2.0
    """How little easy negatives count."""
    iou_weighted: bool = True
    """Whether a positive is weighted by its IoU."""


class DR(Section):
    """DR loss: the distributions of positives and negatives of a whole micro-batch, a margin apart.

    What the authors call L is `smoothness` here.
    """

    kind: Literal["dr"] = "dr"
    margin: Annotated[float, Field(ge=0, le=1)] = 0.5
    """By how much positives shall exceed negatives, as a probability."""
    pos_lambda: Positive = 1.0
    """The smaller, the more the lowest positive counts."""
    neg_lambda: Positive = 0.0798
    """The smaller, the more the highest negative counts; 0.1 / ln 3.5."""
    smoothness: Positive = 6.0
    """How sharp the hinge is."""
    tau: Positive = 4.0
    """Scale of the loss."""


class AveragePrecision(Section):
    """AP Loss, of one ranking of a whole micro-batch; see the ranking key of its criterion."""

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

    kind: Literal["iou", "log_iou", "giou", "diou", "ciou"] = "giou"


BoxLoss = Annotated[SmoothL1 | IoUFamily, Field(discriminator="kind")]
Classification = Annotated[
    Focal | AveragePrecision | QualityFocal | Varifocal | DR, Field(discriminator="kind")
]


class Dense(Section):
    """Any classification loss and any box loss, added up."""

    kind: Literal["dense"] = "dense"
    classification: Classification = Focal()
    """How classes are learned."""
    box: BoxLoss = SmoothL1()
    """How boxes are learned."""
    box_weight: Weight = 1.0
    """What the box loss is multiplied by."""
    weighting: Literal["score", "iou"] | None = None
    """What the box loss of each positive is weighted by: its best class probability (with
    quality_focal), its IoU (with varifocal), or nothing. With model.centreness it is that."""
    ranking: Ranking = "local"
    """Of classification.kind ap. local: each process ranks its own micro-batch; global: one ranking
    of the micro-batches of all processes."""

    @model_validator(mode="after")
    def _has_a_ranking(self) -> Self:
        _require_ranking(self.ranking, self.classification)
        return self


class SelfBalance(Section):
    """Localisation counts as much as the whole loss did in the last period."""

    kind: Literal["self"] = "self"
    initial: Positive | Literal["measured"] = 50.0
    """Weight of localisation until the first period ends; measured: from its iterations so far."""


class ScalarBalance(Section):
    """A constant weight."""

    kind: Literal["scalar"] = "scalar"
    w_r: Weight = 10.0
    """What localisation is multiplied by."""


class LearnedBalance(Section):
    """Two learned uncertainties."""

    kind: Literal["learned"] = "learned"


class GradientBalance(Section):
    """Localisation moves what both share as much as classification does, by measured gradients."""

    kind: Literal["gradient"] = "gradient"


class ALRP(Section):
    """aLRP Loss: classification and localisation in one ranking of a whole micro-batch."""

    kind: Literal["alrp"] = "alrp"
    delta: Weight = 1.0
    """Half-width of the smoothed step, in units of the logits."""
    tau: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """IoU from which a positive counts as such."""
    box: IoUKind = "giou"
    """What the localisation error is measured by."""
    localisation: Literal["ranked", "mean"] = "ranked"
    """ranked: as published, the error of each positive divided by its rank; mean: all alike."""
    loc_ranking: Literal["smooth", "hard"] = "smooth"
    """How positives rank among themselves in the localisation part; hard: as the authors' code."""
    balance: Annotated[
        SelfBalance | GradientBalance | ScalarBalance | LearnedBalance, Field(discriminator="kind")
    ] = SelfBalance()
    """How localisation is weighed against classification."""
    ranking: Ranking = "local"
    """local: each process ranks its own micro-batch; global: one ranking of the micro-batches of
    all processes."""


class RankSort(Section):
    """Rank & Sort Loss, of one ranking of a whole micro-batch."""

    kind: Literal["rank_sort"] = "rank_sort"
    delta: Weight = 0.5
    """Half-width of the smoothed step, in units of the logits."""
    ranking: Ranking = "local"
    """local: each process ranks its own micro-batch; global: one ranking of the micro-batches of
    all processes."""


class FreeAnchor(Section):
    """FreeAnchor: who is positive is learned together with classes and boxes."""

    kind: Literal["free_anchor"] = "free_anchor"
    box: BoxLoss = SmoothL1()
    """How boxes are learned."""
    box_weight: Weight = 0.75
    """Of the box loss in the exponent."""
    bag: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Anchors of an object that may stand for it."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.6
    """IoU up to which a predicted box is on no object."""
    alpha: Share = 0.5
    """Weight of the positive part."""
    gamma: Annotated[float, Field(ge=1, le=10)] = 2.0
    """How little easy negatives count."""
    crowd_overlap: Share | None = 0.5
    """Share of an anchor within a crowd region from which it is no background; null: never."""


class PAALoss(Section):
    """Focal loss, an IoU-weighted box loss, and a branch that predicts the IoU."""

    kind: Literal["paa"] = "paa"
    classification: Classification = Focal()
    """How classes are learned."""
    box: BoxLoss = IoUFamily()
    """How boxes are learned."""
    box_weight: Weight = 1.3
    """What the box loss is multiplied by."""
    branch_weight: Weight = 0.5
    """What the loss of the predicted IoU is multiplied by."""
    ranking: Ranking = "local"
    """Of classification.kind ap. local: each process ranks its own micro-batch; global: one ranking
    of the micro-batches of all processes."""

    @model_validator(mode="after")
    def _has_a_ranking(self) -> Self:
        _require_ranking(self.ranking, self.classification)
        return self


class CrossEntropy(Section):
    """Cross-entropy of all that is not ignored, and a box loss."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    box: BoxLoss = SmoothL1()
    """How boxes are learned."""
    box_weight: Weight = 1.0
    """What the box loss is multiplied by."""


StageLoss = Annotated[CrossEntropy | Dense | ALRP | RankSort, Field(discriminator="kind")]


class TwoStage(Section):
    """A criterion for each stage of a faster_rcnn; `assigner` decides for the first.

    In the second stage cross-entropy is a softmax where model.regions.background is set.
    """

    kind: Literal["two_stage"] = "two_stage"
    first: StageLoss = ALRP(tau=0.7)
    """Of the anchors, which know one class only."""
    first_weight: Weight = 0.2
    """What it is multiplied by."""
    first_sample: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Anchors drawn from each image, half of them positive at most; null: all."""
    second: StageLoss = ALRP()
    """Of the regions."""
    second_assigner: MaxIoU = MaxIoU(
        positive=0.5, negative=0.5, min_positive=0.5, low_quality=False
    )
    """Which regions are positive."""
    second_sample: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Regions drawn from each image, a quarter of them positive at most; null: all."""


Criterion = Annotated[
    Dense | ALRP | RankSort | FreeAnchor | PAALoss | TwoStage, Field(discriminator="kind")
]


def rankings_of(criterion: Criterion) -> tuple[Ranking, ...]:
    """Return how each ranking loss of a criterion ranks, stage by stage; () if none ranks."""
    return tuple(
        stage.ranking
        for stage in _stages(criterion)
        if isinstance(stage, ALRP | RankSort)
        or (isinstance(stage, Dense | PAALoss) and stage.classification.kind == "ap")
    )


def measures_gradients(criterion: Criterion) -> bool:
    """Tell whether a criterion takes gradients by itself, before the backward pass."""
    return any(
        isinstance(stage, ALRP) and isinstance(stage.balance, GradientBalance)
        for stage in _stages(criterion)
    )


def _stages(criterion: Criterion) -> tuple[Criterion | StageLoss, ...]:
    return (criterion.first, criterion.second) if isinstance(criterion, TwoStage) else (criterion,)


def _require_ranking(ranking: Ranking, classification: Classification) -> None:
    if ranking == "global" and classification.kind != "ap":
        raise ValueError(
            f"ranking global needs classification.kind ap: {classification.kind} ranks nothing"
        )
