"""What `benchmarks.assignment` times: heads of all detectors, on made-up maps, and their losses.

All have the sizes they have on a ResNet-50 with COCO's 80 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankdet.assign.atss import ATSSAssigner
from rankdet.assign.fcos import FCOSAssigner
from rankdet.assign.fovea import FoveaAssigner
from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.assign.sampling import SampledAssigner
from rankdet.criteria import (
    ALRPCriterion,
    APClassification,
    DenseCriterion,
    FocalClassification,
    IoUBox,
    RankSortCriterion,
    SelfBalance,
    SmoothL1Box,
)
from rankdet.criteria.cross_entropy import CrossEntropyCriterion
from rankdet.criteria.regions import AlreadyMatched, RegionCriterion
from rankdet.criteria.two_stage import TwoStageCriterion
from rankdet.models.heads import DenseHead
from rankdet.models.priors import AnchorGenerator, PointGenerator
from rankdet.models.proposals import ProposalHead, Propose, with_known
from rankdet.models.region_head import RegionHead, RegionPooling
from rankdet.ops.box_codes import DeltaCoder, DistanceCoder, LogDistanceCoder
from rankdet.structures import (
    Assigner,
    BoxCoder,
    Predictions,
    Priors,
    RegionPredictions,
    Targets,
    TwoStagePredictions,
)

CLASSES = 80
CHANNELS = 256
STRIDES = (8, 16, 32, 64, 128)
SEED = 0
REGIMES = ("init", "trained")
# Regions about each object once a first stage is trained.
ABOUT_EACH = 20

Losses = dict[str, Callable[[Assigner], nn.Module]]


@dataclass(frozen=True)
class Dense:
    """A dense detector beyond its feature maps."""

    priors: AnchorGenerator | PointGenerator
    assigner: Assigner
    coder: BoxCoder
    head: dict[str, Any] = field(default_factory=dict)
    """Settings of its `DenseHead`."""
    losses: Losses = field(default_factory=dict)
    """Its own, besides `LOSSES`."""


# What a head is trained with; the first is the rival.
LOSSES: Losses = {
    "focal + smooth L1": lambda a: DenseCriterion(a, FocalClassification(), SmoothL1Box()),
    "focal + GIoU": lambda a: DenseCriterion(a, FocalClassification(), IoUBox(), box_weight=2.0),
    "AP + smooth L1": lambda a: DenseCriterion(a, APClassification(), SmoothL1Box()),
    "aLRP, self-balance": lambda a: ALRPCriterion(a, SelfBalance()),
    "Rank & Sort": RankSortCriterion,
}
# RetinaNet's and FoveaBox's priors and assigners are those of the authors of aLRP Loss.
DENSE = {
    "RetinaNet": Dense(AnchorGenerator(STRIDES), MaxIoUAssigner(), DeltaCoder()),
    "RetinaNet + ATSS": Dense(
        AnchorGenerator(STRIDES, ratios=(1.0,)), ATSSAssigner(), DeltaCoder()
    ),
    "FoveaBox": Dense(
        PointGenerator(STRIDES, tuple(2.0 * each for each in STRIDES)),
        FoveaAssigner(),
        LogDistanceCoder(),
    ),
    "FCOS": Dense(
        PointGenerator(STRIDES, tuple(float(each) for each in STRIDES)),
        FCOSAssigner(),
        DistanceCoder(unit="side", rectify=True),
        head={"norm": "group", "level_scales": True, "centreness": True},
        losses={
            "focal + GIoU, centreness": lambda a: DenseCriterion(
                a, FocalClassification(), IoUBox(), centreness=True
            )
        },
    ),
}
TWO_STAGE = "Faster R-CNN"
NAMES = (*DENSE, TWO_STAGE)
ANCHORS = AnchorGenerator((4, 8, 16, 32, 64), scale=8.0, octave_scales=1)
PROPOSING = MaxIoUAssigner(positive=0.7, negative=0.3, min_positive=0.3)
OVERLAP = MaxIoUAssigner(positive=0.5, negative=0.5, min_positive=0.5, low_quality=False)


def _sampled(box: SmoothL1Box | IoUBox, box_weight: float) -> TwoStageCriterion:
    """Return the losses of Faster R-CNN itself, of a sample, with any box loss of regions."""
    second = CrossEntropyCriterion(AlreadyMatched(), box, scores="softmax", box_weight=box_weight)
    return TwoStageCriterion(
        CrossEntropyCriterion(SampledAssigner(PROPOSING, 256, 0.5), SmoothL1Box(beta=0.0)),
        RegionCriterion(SampledAssigner(OVERLAP, 512, 0.25), second),
    )


def _alrp() -> TwoStageCriterion:
    """Return aLRP Loss in both stages as published, of all anchors and regions."""
    second = ALRPCriterion(AlreadyMatched(), SelfBalance(), frame="pixels")
    first = ALRPCriterion(PROPOSING, SelfBalance(), tau=0.7)
    return TwoStageCriterion(first, RegionCriterion(OVERLAP, second), first_weight=0.2)


def _same(loss: str) -> Callable[[], TwoStageCriterion]:
    """Return how to make a loss of `LOSSES` that of both stages, of all anchors and regions."""

    def make() -> TwoStageCriterion:
        second = RegionCriterion(OVERLAP, LOSSES[loss](AlreadyMatched()))
        return TwoStageCriterion(LOSSES[loss](PROPOSING), second)

    return make


# Those of both stages; the first is the rival again.
TWO_STAGE_LOSSES: dict[str, Callable[[], TwoStageCriterion]] = {
    "CE + smooth L1, sampled": lambda: _sampled(SmoothL1Box(beta=0.0), 1.0),
    "CE + GIoU, sampled": lambda: _sampled(IoUBox(), 10.0),
    "focal + smooth L1": _same("focal + smooth L1"),
    "aLRP, self-balance": _alrp,
    "Rank & Sort": _same("Rank & Sort"),
}


@dataclass(frozen=True, eq=False)
class Setting:
    """One detector, or a stage of one, on one batch."""

    name: str
    regime: str
    head: nn.Module
    run: Callable[[], list[Tensor]]
    """Runs the head: what it says."""
    predictions: Predictions | RegionPredictions | TwoStagePredictions
    """What the losses are given: without gradients, and without branches."""
    priors: int
    """Of an image: those of the first stage, and regions."""
    targets: Targets
    criteria: dict[str, nn.Module]
    """By the names of their losses, the rival first."""


def settings(
    name: str, regime: str, *, batch: int, count: int, side: int, channels: int, device: str
) -> Iterator[Setting]:
    """Yield a detector with random feature maps and objects; one of two stages in three parts.

    Args:
        name: in `NAMES`.
        regime: ``"init"``, the logits of a fresh head, or ``"trained"``, see `drawn_logits`.
        batch: number of images.
        count: objects in each.
        side: of the images in pixels.
        channels: of the feature maps.
        device: where.
    """
    torch.manual_seed(SEED)
    targets = objects(batch, count, side).to(device)
    make = _two_stage if name == TWO_STAGE else _dense
    for each in make(name, regime, targets, side=side, channels=channels):
        for criterion in each.criteria.values():
            criterion.to(device)
        yield each


def objects(batch: int, count: int, side: int, seed: int = SEED) -> Targets:
    """Draw objects of a batch of square images: sides from 4 pixels up, small ones more often."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(batch, count, 2, generator=generator) * side
    span = torch.rand(batch, count, 2, generator=generator)
    size = 4 * (side / 8) ** span  # 4 pixels to half the image, evenly in the logarithm
    low, high = (centre - size / 2).clamp(min=0), (centre + size / 2).clamp(max=side)
    return Targets(
        boxes=torch.cat([low, high], -1),
        labels=torch.randint(CLASSES, (batch, count), generator=generator),
        crowd=torch.zeros(batch, count, dtype=torch.bool),
        sizes=torch.full((batch, 2), side),
    )


def drawn_logits(logits: Tensor, matched: Tensor, labels: Tensor, regime: str) -> Tensor:
    """Return logits [B, A, C] to rank: the head's own, or such as a trained one gives.

    ``trained``: N(-6, 1.5), and N(-1, 2) where a positive prior meets the class of its object.
    """
    if regime == "init":
        return logits.detach()
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(logits.shape, generator=generator).to(logits.device)
    own = labels.gather(1, matched.clamp(min=0))  # [B, A]
    classes = torch.arange(logits.shape[2], device=labels.device)
    positive = (matched >= 0)[..., None] & (own[..., None] == classes)
    return torch.where(positive, noise * 2 - 1, noise * 1.5 - 6)


def about(targets: Targets, number: int) -> Tensor:
    """Return boxes about each object, their sides within 15 % of its size: [B, G * number, 4]."""
    boxes = targets.boxes.repeat(1, number, 1)
    size = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.rand(boxes.shape, generator=generator).to(boxes.device)
    return boxes + (noise - 0.5) * 0.3 * size


def assign(criterion: nn.Module, predictions: Any, targets: Targets) -> list[Tensor]:
    """Return what a criterion assigns, of each stage and image."""
    if isinstance(criterion, TwoStageCriterion):
        first = assign(criterion.first, predictions.first, of_one_class(targets))
        return [*first, *assign(criterion.second, predictions.second, targets)]
    assigner: Any = criterion.assigner
    if not isinstance(criterion, RegionCriterion):
        return [assigner(predictions.priors, targets).matched]
    regions = [Priors(each, (len(each),), (2**20,)) for each in predictions.regions.split()]
    return [
        assigner(each, targets.of_images(slice(image, image + 1))).matched
        for image, each in enumerate(regions)
    ]


def of_one_class(targets: Targets) -> Targets:
    """Return the objects as a first stage sees them."""
    return replace(targets, labels=targets.labels.clamp(max=0))


def leaves(predictions: Any, needs: frozenset[str]) -> Any:
    """Return predictions to differentiate for, with the branches that a criterion needs."""
    if isinstance(predictions, TwoStagePredictions):
        first = leaves(predictions.first, frozenset())
        return TwoStagePredictions(first, leaves(predictions.second, needs))
    logits = predictions.logits.clone().requires_grad_()
    branches = {name: torch.zeros_like(logits[..., 0], requires_grad=True) for name in needs}
    codes = predictions.codes.clone().requires_grad_()
    return replace(predictions, logits=logits, codes=codes, branches=branches)


def _maps(targets: Targets, strides: Sequence[int], side: int, channels: int) -> list[Tensor]:
    sizes = [-(-side // stride) for stride in strides]
    maps = [torch.randn(len(targets.boxes), channels, n, n) for n in sizes]
    return [x.to(targets.boxes.device, memory_format=torch.channels_last) for x in maps]


def _dense(
    name: str, regime: str, targets: Targets, *, side: int, channels: int
) -> Iterator[Setting]:
    detector, device = DENSE[name], targets.boxes.device
    per_place = detector.priors.per_place
    head = DenseHead(channels, CLASSES, per_place, levels=len(STRIDES), **detector.head)
    head = head.to(device).to(memory_format=torch.channels_last)
    features = _maps(targets, STRIDES, side, channels)
    priors = detector.priors((side, side), device=device, dtype=torch.float32)
    with torch.no_grad():
        found = head(features)
    matched = detector.assigner(priors, targets).matched
    logits = drawn_logits(found.logits, matched, targets.labels, regime)

    def run() -> list[Tensor]:
        found = head(features)
        return [found.logits, found.codes, *found.branches.values()]

    losses = {**LOSSES, **detector.losses}
    yield Setting(
        name=name,
        regime=regime,
        head=head,
        run=run,
        predictions=Predictions(logits, found.codes, priors, detector.coder),
        priors=len(priors.boxes),
        targets=targets,
        criteria={loss: make(detector.assigner) for loss, make in losses.items()},
    )


def _two_stage(
    name: str, regime: str, targets: Targets, *, side: int, channels: int
) -> Iterator[Setting]:
    device, coder = targets.boxes.device, DeltaCoder()
    first_head: nn.Module = ProposalHead(channels, ANCHORS.per_place)
    first_head = first_head.to(device).to(memory_format=torch.channels_last)
    second_head = RegionHead(channels, CLASSES, hidden=4 * channels).to(device)
    features = _maps(targets, ANCHORS.strides, side, channels)
    priors = ANCHORS((side, side), device=device, dtype=torch.float32)
    matched = PROPOSING(priors, targets).matched
    with torch.no_grad():
        found = first_head(features)
    logits = drawn_logits(found.logits, matched, of_one_class(targets).labels, regime)
    first = Predictions(logits, found.codes, priors, coder)

    # All losses see the same regions: the objects too, though aLRP Loss is not given these few.
    regions = Propose(candidates=2000)(first, targets.sizes)
    regions = with_known(regions, targets.boxes, targets.sizes)
    if regime == "trained":
        regions = with_known(regions, about(targets, ABOUT_EACH), targets.sizes)
    pooling = RegionPooling()
    with torch.no_grad():
        said = second_head(pooling(features, regions))
    second = RegionPredictions(regions, said.logits, said.codes, coder)
    # The objects of all images in turn, as if the regions were of one image.
    overlap = RegionCriterion(OVERLAP, RankSortCriterion(AlreadyMatched()))
    matched = torch.cat(
        [
            torch.where(each >= 0, each + image * targets.boxes.shape[1], each)
            for image, each in enumerate(assign(overlap, second, targets))
        ],
        1,
    )
    logits = drawn_logits(said.logits[None], matched, targets.labels.reshape(1, -1), regime)[0]
    second = replace(second, logits=logits)

    def run_first() -> list[Tensor]:
        return list(first_head(features)[:2])

    def run_second() -> list[Tensor]:
        return list(second_head(pooling(features, regions))[:2])

    both = nn.ModuleList([first_head, second_head])
    whole = Setting(
        name=name,
        regime=regime,
        head=both,
        run=lambda: run_first() + run_second(),
        predictions=TwoStagePredictions(first, second),
        priors=len(priors.boxes) + len(regions.boxes) // len(targets.boxes),
        targets=targets,
        criteria={loss: make() for loss, make in TWO_STAGE_LOSSES.items()},
    )
    yield whole
    yield replace(
        whole,
        name=f"{name}, first stage",
        head=first_head,
        run=run_first,
        predictions=first,
        priors=len(priors.boxes),
        targets=of_one_class(targets),
        criteria={loss: make().first for loss, make in TWO_STAGE_LOSSES.items()},
    )
    yield replace(
        whole,
        name=f"{name}, second stage",
        head=second_head,
        run=run_second,
        predictions=second,
        priors=len(regions.boxes) // len(targets.boxes),
        criteria={loss: make().second for loss, make in TWO_STAGE_LOSSES.items()},
    )
