"""What a recipe may say: every key of a run with its type, range, unit and default.

A default is the published setting where there is one (Oksuz, Cam, Akbas, Kalkan, NeurIPS 2020, and
the authors' configuration files), so that a recipe has to name what it does otherwise. Where
several parts can take one place, `kind` says which, and decides which further keys there are.

The text below each field is what the command line shows as its explanation. Nothing here imports
PyTorch: a recipe is read and checked before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rankdet.config.losses import ALRP, Criterion, Dense, FreeAnchor, PAALoss, TwoStage
from rankdet.config.parts import (
    FCOS,
    Assigner,
    Augment,
    Count,
    Decay,
    Drops,
    Fovea,
    MaxIoU,
    Positive,
    Ratios,
    Section,
    Share,
    SSDAugment,
    Stds,
)


class RecipeError(ValueError):
    """A recipe that cannot be used; the message says where, which key, and what would do."""


BackboneName = (
    Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_64x4d", "tiny"]
    | Annotated[str, Field(pattern=r"^timm:[\w.-]+$")]
)


class Anchors(Section):
    """The boxes that predictions start from, at each place of each level."""

    scale: Positive = 4.0
    """Side of the smallest square anchor, in strides."""
    octave_scales: Annotated[int, Field(ge=1, le=16)] = 2
    """Number of sizes between one level and the next."""
    ratios: Ratios = (0.5, 1.0, 2.0)
    """Height / width of the anchors."""


class Regions(Section):
    """The second stage of faster_rcnn; other detectors have none."""

    hidden: Annotated[int, Field(ge=8, le=65536)] = 1024
    """Width of its two layers."""
    pooled_size: Annotated[int, Field(ge=1, le=64)] = 7
    """Cells along a side of a region."""
    background: bool = False
    """Whether scores are a softmax over classes and background, not a sigmoid of each class."""
    agnostic: bool = False
    """Whether all classes share one box."""
    class_prior: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability that it gives to every class before it is trained; not with background."""
    box_stds: Stds = (0.1, 0.1, 0.2, 0.2)
    """What its box codes are divided by."""
    number: Annotated[int, Field(ge=1, le=10**5)] = 1000
    """Regions of an image."""
    candidates: Annotated[int, Field(ge=1, le=10**6)] = 1000
    """Anchors of each level that may become regions; twice as many in training."""
    nms_iou: Share = 0.7
    """IoU above which the lower of two regions of a level is a duplicate."""
    add_objects: bool = False
    """Whether the objects of a training image become regions as well."""


class Model(Section):
    """The network."""

    detector: Literal["retinanet", "atss", "fovea", "fcos", "faster_rcnn"] = "retinanet"
    """retinanet and atss start from anchors, fovea and fcos from points, with two towers shared by
    all levels; faster_rcnn looks twice. Who is positive is assigner.kind."""
    backbone: BackboneName = "resnet50"
    """tiny has 16 to 128 channels and trains from scratch on a CPU; timm:NAME is any network of the
    timm library, which has to be installed."""
    weights: str | None = "IMAGENET1K_V1"
    """Where the backbone starts: a torchvision name (IMAGENET1K_V1, DEFAULT), the path of a
    .safetensors or .pth file, or null for random weights."""
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 1
    """First stages of the backbone that are not trained; the stem is frozen with the first."""
    norm: Literal["frozen", "frozen_statistics", "batch", "group"] = "frozen_statistics"
    """Normalisation in the backbone; frozen: batch norm that keeps what it starts with;
    frozen_statistics: its scale and shift are learned."""
    deformable_stages: Annotated[int, Field(ge=0, le=3)] = 0
    """Last stages of the backbone whose 3 x 3 convolutions are deformable."""
    fpn_channels: Annotated[int, Field(ge=8, le=4096)] = 256
    """Channels of every level of the feature pyramid, and of the towers."""
    levels: Annotated[int, Field(ge=3, le=7)] = 5
    """Feature levels, of strides 8, 16, 32, ... pixels."""
    extra_levels: Literal["p5", "c5"] = "c5"
    """What the levels above stride 32 are made from: the pyramid's or the backbone's last map;
    faster_rcnn takes every second place of the pyramid's last map."""
    head_convs: Annotated[int, Field(ge=0, le=16)] = 4
    """Convolutions of each of the two towers."""
    head_norm: Literal["group", "batch"] | None = None
    """Normalisation in the towers; group depends on how far an image is padded, batch does not."""
    class_prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Probability that an untrained detector gives to every class at every place. Ranking losses
    barely move the general level of the scores, so this also sets how high they end."""
    centreness: bool = False
    """Whether a branch learns how central a place is to its object; for atss and fcos with dense
    losses."""
    iou_branch: bool = False
    """Whether a branch learns the IoU of a box with its object; for atss with criterion paa."""
    level_scales: bool = False
    """Whether the box codes of each level are multiplied by a learned number; atss and fcos."""
    anchors: Anchors = Anchors()
    """The boxes that predictions start from; fovea and fcos have none."""
    regions: Regions = Regions()
    """The second stage of faster_rcnn."""
    box_stds: Stds = (0.1, 0.1, 0.2, 0.2)
    """What the box codes dx, dy, dw, dh are divided by."""

    @model_validator(mode="after")
    def _detector_has_it(self) -> Self:
        having = {
            "centreness": ("atss", "fcos"),
            "iou_branch": ("atss",),
            "level_scales": ("atss", "fcos"),
        }
        for key, detectors in having.items():
            if getattr(self, key) and self.detector not in detectors:
                raise ValueError(
                    f"{key} needs detector {' or '.join(detectors)}, got {self.detector}"
                )
        if self.centreness and self.iou_branch:
            raise ValueError("a detector has centreness or iou_branch, not both")
        return self


class Data(Section):
    """What happens to the images."""

    train_size: Annotated[int, Field(ge=32, le=4096)] = 512
    """Side of the square images of training, in pixels."""
    augment: Augment = SSDAugment()
    """How they are varied."""
    test_shorter: Annotated[int, Field(ge=32, le=8192)] = 500
    """Shorter side of the images of a test, in pixels."""
    test_longer: Annotated[int, Field(ge=32, le=8192)] = 833
    """What the longer side is limited to, in pixels."""
    cache_mb: Annotated[int, Field(ge=0, le=10**7)] = 0
    """Memory for decoded images, in MB, of each training process; 0: decode every time."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=1024)] = "auto"
    """Processes that load images for one device; 0: in the training process."""
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Which images are held out for validation where the data have no such split. A seed of its
    own: runs that differ in training.seed are validated on the same images."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.test_shorter > self.test_longer:
            raise ValueError(
                f"test_shorter ({self.test_shorter}) must not exceed test_longer "
                f"({self.test_longer})"
            )
        return self


class Batch(Section):
    """How many images."""

    size: Annotated[int, Field(ge=1, le=65536)] = 32
    """Images of one optimiser step, of all devices together."""
    micro: Annotated[int, Field(ge=1, le=65536)] = 8
    """Images that one device takes at once; a ranking spans these, with criterion.ranking global
    those of all devices. Gradients are accumulated over size / (micro * devices) of them."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.size % self.micro:
            raise ValueError(f"size ({self.size}) must be a multiple of micro ({self.micro})")
        return self


class Optimizer(Section):
    """How weights move."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, or AdamW."""
    lr: Annotated[float, Field(gt=0, le=100)] = 0.008
    """Learning rate for a batch of reference_batch images; scaled in proportion to batch.size."""
    reference_batch: Annotated[int, Field(ge=1, le=65536)] = 32
    """Images per step that lr is meant for."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the gradient; AdamW's first beta."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """L2 penalty of sgd, decoupled decay of adamw."""
    decay_norms_and_biases: bool = True
    """Whether normalisation layers and biases decay as well."""
    clip: Positive | None = None
    """Largest norm of the gradient; null: any."""


class Schedule(Section):
    """How long, and how the learning rate moves."""

    epochs: Annotated[float, Field(gt=0, le=1e5)] | None = None
    """Length of the run in passes over the training images; this or steps."""
    steps: Count | None = None
    """Length of the run in optimiser steps; this or epochs."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**7)] = 500
    """Optimiser steps in which the learning rate rises in a straight line."""
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 0.001
    """Share of the learning rate that the first step has."""
    decay: Decay = Drops()
    """How the learning rate falls."""
    balance_period: Literal["epoch"] | Count = "epoch"
    """Optimiser steps after which self-balance is renewed, or "epoch"."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class Training(Section):
    """How a run is done; none of it but seed, ema and precision changes what is learned."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the first weights, the order of the images, and the augmentation."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the average of the weights, which is then what is evaluated; null: no average."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 on a GPU that has it, float32 elsewhere."""
    channels_last: bool = True
    """Memory layout of the convolutions; usually faster."""
    compile: bool = False
    """Whether torch.compile translates the network, which takes minutes at the start. Heads are
    left out where criterion.balance.kind is gradient."""
    evaluations: Count = 10
    """How often a run is evaluated: evenly spread, the last at its end."""
    checkpoint_every: Count = 500
    """Optimiser steps between two writes of the state that --resume goes on from."""
    log_every: Count = 20
    """Optimiser steps between two rows of the log."""


class Detecting(Section):
    """From predictions to detections."""

    candidates: Annotated[int, Field(ge=1, le=10**6)] = 1000
    """Pairs of place and class that each level may hand on."""
    score_threshold: Share | None = None
    """Score that a detection needs; null: any. Ranking losses give low scores to good boxes: a
    fixed threshold throws those away."""
    nms: Literal["hard", "soft"] = "hard"
    """What happens to duplicates: they go, or their scores decay with the overlap."""
    nms_iou: Share = 0.5
    """IoU above which the lower of two detections of a class is a duplicate."""
    max_detections: Annotated[int, Field(ge=1, le=10**5)] = 100
    """Detections of one image."""


class Recipe(Section):
    """Everything of one run but the data."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """What the recipe is called."""
    description: str = ""
    """What it is for, in a line."""
    model: Model = Model()
    """The network."""
    assigner: Assigner = MaxIoU()
    """Who is positive."""
    criterion: Criterion = ALRP()
    """What is minimised."""
    data: Data = Data()
    """What happens to the images."""
    batch: Batch = Batch()
    """How many images."""
    optimizer: Optimizer = Optimizer()
    """How weights move."""
    schedule: Schedule
    """How long, and how the learning rate moves."""
    training: Training = Training()
    """How a run is done."""
    test: Detecting = Detecting()
    """From predictions to detections."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for fault in _misfits(self):
            raise ValueError(fault)
        return self


def _misfits(recipe: Recipe) -> Iterator[str]:
    """Say what in a recipe cannot go together."""
    model, criterion, assigner = recipe.model, recipe.criterion, recipe.assigner
    two_stages = isinstance(criterion, TwoStage)
    learned = isinstance(criterion, FreeAnchor)
    predicts_iou = isinstance(criterion, PAALoss)
    if model.centreness and not isinstance(criterion, Dense):
        yield (
            f"model.centreness needs criterion.kind dense: {criterion.kind} gives the branch "
            f"nothing to learn from"
        )
    if model.iou_branch != predicts_iou:
        yield "model.iou_branch and criterion.kind paa need each other"
    if (model.detector == "faster_rcnn") != two_stages:
        yield (
            f"model.detector faster_rcnn and criterion.kind two_stage need each other, got "
            f"{model.detector} and {criterion.kind}"
        )
    if (assigner.kind == "none") != learned:
        yield (
            f"assigner.kind none and criterion.kind free_anchor need each other, got "
            f"{assigner.kind} and {criterion.kind}"
        )
    if two_stages and assigner.kind == "paa":
        yield "model.detector faster_rcnn needs assigner.kind max_iou or atss, got paa"
    points = model.detector in ("fovea", "fcos")
    if points != isinstance(assigner, Fovea | FCOS):
        needed = "fcos or fovea" if points else "max_iou or atss"
        yield f"model.detector {model.detector} needs assigner.kind {needed}, got {assigner.kind}"
    ranges = {}
    if isinstance(assigner, Fovea):
        ranges["scale_ranges"] = assigner.scale_ranges
    if isinstance(assigner, FCOS):
        ranges["regress_ranges"] = assigner.regress_ranges
    for key, given in ranges.items():
        if len(given) != model.levels:
            yield (
                f"assigner.{key} must hold one range for each of the model.levels "
                f"({model.levels}), got {len(given)}"
            )
    if isinstance(criterion, Dense) and criterion.weighting and model.centreness:
        yield "criterion.weighting has no place beside model.centreness"
