"""Heads of mmdetection with our losses have the values and gradients of our own detectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

pytest.importorskip("mmcv_stand_in", reason="the extra mmdet is not installed")

import tiny_mmdet as tiny
from mmengine.structures import InstanceData

from rankdet.assign import ATSSAssigner, FCOSAssigner, FoveaAssigner, MaxIoUAssigner
from rankdet.criteria import ALRPCriterion, RankSortCriterion, ScalarBalance, SelfBalance
from rankdet.criteria.regions import AlreadyMatched, RegionCriterion
from rankdet.models.detector import dense_predictions
from rankdet.models.heads import DenseHead
from rankdet.models.priors import AnchorGenerator, PointGenerator
from rankdet.models.proposals import ProposalHead
from rankdet.models.region_head import RegionHead, RegionPooling
from rankdet.ops.box_codes import DeltaCoder, DistanceCoder, LogDistanceCoder
from rankdet.structures import LossTerms, RegionPredictions, Regions, Targets

pytestmark = tiny.QUIET
SIZE = 128
STRIDES = (8, 16, 32, 64, 128)
INFINITY = 1e8
ONES = (1.0, 1.0, 1.0, 1.0)


@dataclass
class Pair:
    """A head of mmdetection and one of ours with the same weights."""

    theirs: Any
    ours: Any
    same: list[tuple[Tensor, Tensor]]
    """Parameters of theirs and of ours."""
    priors: Callable[..., Any]
    coder: Any
    assigner: Any
    strides: tuple[int, ...] = STRIDES


def same_towers(theirs: Any, ours: Any, *names: str) -> list[tuple[Tensor, Tensor]]:
    """Return the parameters of two dense heads, pair by pair."""
    logits, codes = (getattr(theirs, name) for name in names)
    same = [(logits.weight, ours.to_logits.weight), (logits.bias, ours.to_logits.bias),
            (codes.weight, ours.to_codes.weight), (codes.bias, ours.to_codes.bias)]  # fmt: skip
    towers = ((theirs.cls_convs, ours.class_tower), (theirs.reg_convs, ours.box_tower))
    for modules, tower in towers:
        for module, conv, norms in zip(modules, tower.convs, tower.norms, strict=True):
            same += zip(module.conv.parameters(), conv.parameters(), strict=True)
            for norm in norms:
                same += zip(module.norm.parameters(), norm.parameters(), strict=True)
    return same


def pair_of(name: str, **of_head: Any) -> Pair:
    """Return the head of a configuration of the documentation, and ours."""
    config = tiny.tiny_model("faster_rcnn" if name == "rpn" else name)
    part = config.model.rpn_head if name == "rpn" else config.model.bbox_head
    part.loss_cls.update(of_head.pop("loss_cls", {}))
    part.update(of_head)
    detector = tiny.build(config)
    head = detector.rpn_head if name == "rpn" else detector.bbox_head
    classes, channels = len(tiny.CLASSES), tiny.CHANNELS
    own: DenseHead | ProposalHead
    match name:
        case "retinanet":
            own = DenseHead(channels, classes, 9, convs=1)
            same = same_towers(head, own, "retina_cls", "retina_reg")
            anchors = AnchorGenerator(STRIDES, octave_scales=3)
            pair = Pair(head, own, same, anchors, DeltaCoder(ONES), MaxIoUAssigner())
        case "atss":
            own = DenseHead(channels, classes, 1, convs=1, norm="group", level_scales=True)
            same = same_towers(head, own, "atss_cls", "atss_reg")
            anchors = AnchorGenerator(STRIDES, scale=8.0, octave_scales=1, ratios=(1.0,))
            pair = Pair(head, own, same, anchors, DeltaCoder(), ATSSAssigner())
        case "fovea":
            own = DenseHead(channels, classes, 1, convs=1)
            same = same_towers(head, own, "conv_cls", "conv_reg")
            points = PointGenerator(STRIDES, tuple(2.0 * stride for stride in STRIDES))
            ranges = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
            pair = Pair(head, own, same, points, LogDistanceCoder(), FoveaAssigner(ranges))
        case "fcos":
            own = DenseHead(channels, classes, 1, convs=1, norm="group", level_scales=True)
            same = same_towers(head, own, "conv_cls", "conv_reg")
            points = PointGenerator(STRIDES, tuple(float(stride) for stride in STRIDES))
            normalised = head.norm_on_bbox
            coder = (
                DistanceCoder(unit="side", rectify=True)
                if normalised
                else LogDistanceCoder(unit="pixel", most=2.0**16)
            )
            far = tuple(pairwise((0.0, 64.0, 128.0, 256.0, 512.0, INFINITY)))
            inside = FCOSAssigner(far, centre_radius=1.5 if head.center_sampling else None)
            pair = Pair(head, own, same, points, coder, inside)
        case _:
            own = ProposalHead(channels, 3)
            layers = (head.rpn_conv, head.rpn_cls, head.rpn_reg)
            parameters = [each for layer in layers for each in layer.parameters()]
            same = list(zip(parameters, own.parameters(), strict=True))
            strides = (4, 8, 16, 32, 64)
            anchors = AnchorGenerator(strides, scale=8.0, octave_scales=1)
            assigner = MaxIoUAssigner(positive=0.7, negative=0.3, min_positive=0.3)
            pair = Pair(head, own, same, anchors, DeltaCoder(ONES), assigner, strides)
    scatter(own)
    with torch.no_grad():
        if isinstance(own, DenseHead) and own.scales is not None:
            for level, scale in enumerate(head.scales):
                scale.scale.copy_(own.scales[level])
        for mine, other in pair.same:
            mine.copy_(other)
    return pair


@torch.no_grad()
def scatter(head: nn.Module) -> None:
    """Give a head weights with which its scores and boxes differ from place to place."""
    for name, parameter in head.named_parameters():
        if name == "scales":
            parameter.copy_(torch.linspace(0.8, 1.2, len(parameter)))
        elif "norm" not in name and parameter.dim() > 1:
            parameter.normal_(std=0.5 / parameter[0].numel() ** 0.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.2)


def scene(count: int = 4) -> tuple[list[InstanceData], list[dict[str, Any]], Targets]:
    """Return two images with objects, as mmdetection has them and as we do."""
    generator = torch.Generator().manual_seed(11)
    boxes, labels = [], []
    for index in range(2):
        objects = count - index
        sides = 14 + 80 * torch.rand(objects, 2, generator=generator)
        corner = (SIZE - sides) * torch.rand(objects, 2, generator=generator)
        boxes.append(torch.cat([corner, corner + sides], 1))
        labels.append(torch.randint(0, len(tiny.CLASSES), (objects,), generator=generator))
    instances = [InstanceData(bboxes=b, labels=n) for b, n in zip(boxes, labels, strict=True)]
    shape = (SIZE, SIZE)
    metas = [{"img_shape": shape, "pad_shape": shape, "batch_input_shape": shape}] * 2
    crowd = [torch.zeros(len(n), dtype=torch.bool) for n in labels]
    return instances, metas, Targets.stack(boxes, labels, crowd, [shape] * 2)


def features(strides: tuple[int, ...]) -> list[Tensor]:
    """Return random maps of two images, which take gradients."""
    generator = torch.Generator().manual_seed(6)
    sides = [-(-SIZE // stride) for stride in strides]
    shapes = [(2, tiny.CHANNELS, side, side) for side in sides]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def require_equal(
    theirs: dict[str, Tensor],
    ours: LossTerms,
    pair_of_inputs: list[tuple[Tensor, Tensor]],
    prefix: str = "",
    weight: float = 1.0,
) -> None:
    """Compare values by name, and the gradients of each pair of tensors."""
    total = ours.total * weight
    assert_close(theirs[f"{prefix}loss_rank"], total, rtol=1e-5, atol=0)
    for name, value in ours.parts.items():
        assert_close(theirs[f"{prefix}rank_{name}"], value.float(), rtol=1e-5, atol=0)
    assert len(theirs) == len(ours.parts) + 1
    assert ours.parts["positives"] > 5
    mine, others = zip(*pair_of_inputs, strict=True)
    found = torch.autograd.grad(theirs[f"{prefix}loss_rank"], mine)
    wanted = torch.autograd.grad(total, others)
    nonzero = sum(bool(other.any()) for other in wanted)
    assert nonzero > len(wanted) - 4  # no region is of the coarsest maps
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=0, atol=2e-5 * other.abs().max().item())


def require_whole_head(pair: Pair, criterion: nn.Module, **of_loss: Any) -> None:
    """Compare a dense head of mmdetection with ours on the same maps."""
    instances, metas, targets = scene()
    if isinstance(pair.ours, ProposalHead):
        for one in instances:
            one.labels.zero_()
        targets.labels.clamp_(max=0)
    maps, same_maps = features(pair.strides), features(pair.strides)
    pair.theirs.train()
    theirs = pair.theirs.loss_by_feat(*pair.theirs(maps), instances, metas)
    outputs = pair.ours(same_maps)
    predictions = dense_predictions(
        outputs, pair.priors, pair.coder, (SIZE, SIZE), dtype=torch.float32
    )
    ours = criterion(predictions, targets)
    require_equal(theirs, ours, [*zip(maps, same_maps, strict=True), *pair.same], **of_loss)


HEADS = {
    "retinanet": {},
    "atss": {},
    "fovea": {},
    "fcos": {},
    "fcos, normalised": {"norm_on_bbox": True, "center_sampling": True},
}
EVERY_HEAD = pytest.mark.parametrize("name", HEADS)


@EVERY_HEAD
@pytest.mark.parametrize("loc_ranking", ["smooth", "hard"])
def test_alrp_of_a_whole_dense_head(name: str, loc_ranking: Any) -> None:
    pair = pair_of(name.split(",")[0], loss_cls={"loc_ranking": loc_ranking}, **HEADS[name])
    criterion = ALRPCriterion(pair.assigner, SelfBalance(), loc_ranking=loc_ranking)
    require_whole_head(pair, criterion)


@EVERY_HEAD
def test_alrp_in_pixels_with_other_settings(name: str) -> None:
    settings: dict[str, Any] = {"delta": 0.5, "tau": 0.3, "box": "ciou", "eps": 1e-7,
                                "frame": "pixels"}  # fmt: skip
    pair = pair_of(
        name.split(",")[0], loss_cls={**settings, "balance": 2.5, "initial": 7.0}, **HEADS[name]
    )
    require_whole_head(pair, ALRPCriterion(pair.assigner, ScalarBalance(2.5), **settings))


@EVERY_HEAD
def test_rank_and_sort_of_a_whole_dense_head(name: str) -> None:
    loss = {"type": "RankDetRankSortLoss"}
    pair = pair_of(name.split(",")[0], loss_cls=loss, **HEADS[name])
    require_whole_head(pair, RankSortCriterion(pair.assigner))


def test_alrp_of_the_first_stage() -> None:
    pair = pair_of("rpn")
    criterion = ALRPCriterion(pair.assigner, SelfBalance(), tau=0.7)
    require_whole_head(pair, criterion, prefix="rpn_", weight=0.2)


@pytest.mark.parametrize("agnostic", [False, True])
def test_alrp_of_the_second_stage(agnostic: bool) -> None:
    config = tiny.tiny_model("faster_rcnn")
    config.model.roi_head.bbox_head.reg_class_agnostic = agnostic
    theirs = tiny.build(config).roi_head.train()
    ours = RegionHead(tiny.CHANNELS, len(tiny.CLASSES), hidden=32, agnostic=agnostic)
    scatter(ours)
    head = theirs.bbox_head
    layers = [*head.shared_fcs, head.fc_cls, head.fc_reg]
    same = list(zip([p for layer in layers for p in layer.parameters()], ours.parameters(),
                    strict=True))  # fmt: skip
    with torch.no_grad():
        for mine, other in same:
            mine.copy_(other)
    instances, metas, targets = scene()
    strides = (4, 8, 16, 32)
    maps, same_maps = features(strides), features(strides)
    regions = regions_near(targets)

    samples = tiny.batch()["data_samples"]
    for sample, objects, meta in zip(samples, instances, metas, strict=True):
        sample.set_metainfo(meta)
        sample.gt_instances = objects
    proposals = [InstanceData(bboxes=b.clone(), scores=torch.ones(len(b))) for b in regions.split()]
    found = theirs.loss(maps, proposals, samples)

    outputs = ours(RegionPooling(strides)(same_maps, regions))
    predictions = RegionPredictions(regions, outputs.logits, outputs.codes, DeltaCoder())
    assigner = MaxIoUAssigner(positive=0.5, negative=0.5, min_positive=0.5, low_quality=False)
    criterion = ALRPCriterion(AlreadyMatched(), SelfBalance(), frame="pixels")
    terms = RegionCriterion(assigner, criterion)(predictions, targets)
    require_equal(found, terms, [*zip(maps, same_maps, strict=True), *same])


def regions_near(targets: Targets) -> Regions:
    """Return some boxes near the objects and some anywhere, 20 in the first image and 12 then."""
    generator = torch.Generator().manual_seed(7)
    boxes = []
    for image, count in enumerate((20, 12)):
        objects = targets.boxes[image][targets.is_object[image]]
        near = objects.repeat(-(-count // 2 // len(objects)), 1)[: count // 2]
        near = near + 4 * torch.randn(near.shape, generator=generator)
        corner = 90 * torch.rand(count - len(near), 2, generator=generator)
        sides = 10 + 25 * torch.rand(corner.shape, generator=generator)
        boxes.append(torch.cat([near, torch.cat([corner, corner + sides], 1)]).clamp(0, SIZE))
    return Regions(torch.cat(boxes), tuple(len(one) for one in boxes))
