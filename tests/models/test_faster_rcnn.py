"""Faster R-CNN as a whole: shapes, what a step reaches, and that it learns with each loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.testing import assert_close
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.assign.sampling import SampledAssigner
from rankdet.criteria import ALRPCriterion, IoUBox, SelfBalance, SmoothL1Box
from rankdet.criteria.cross_entropy import CrossEntropyCriterion
from rankdet.criteria.dense import Box
from rankdet.criteria.regions import AlreadyMatched, RegionCriterion
from rankdet.criteria.two_stage import TwoStageCriterion
from rankdet.engine.detecting import detect, predict
from rankdet.engine.module import TrainingModule
from rankdet.models.backbones import build_backbone
from rankdet.models.faster_rcnn import FasterRCNN, faster_rcnn
from rankdet.models.fpn import FPN
from rankdet.models.proposals import Propose
from rankdet.models.region_postprocess import RegionPostProcess
from rankdet.models.retinanet import retinanet
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import Regions, Targets, TwoStagePredictions

PROPOSING = MaxIoUAssigner(positive=0.7, negative=0.3, min_positive=0.3)
OVERLAP = MaxIoUAssigner(positive=0.5, negative=0.5, low_quality=False)
# With cross-entropy, as published.
SOFTMAX: dict[str, Any] = {
    "background": True,
    "adds_known": True,
    "proposal_prior": 0.5,
    "coder": DeltaCoder((1.0, 1.0, 1.0, 1.0)),
}


def with_cross_entropy(box: Box, weight: float) -> TwoStageCriterion:
    first = SampledAssigner(PROPOSING, 64, 0.5)
    loss = CrossEntropyCriterion(AlreadyMatched(), box, scores="softmax", box_weight=weight)
    return TwoStageCriterion(
        CrossEntropyCriterion(first, SmoothL1Box()),
        RegionCriterion(SampledAssigner(OVERLAP, 32, 0.25), loss),
    )


def with_alrp() -> TwoStageCriterion:
    return TwoStageCriterion(
        ALRPCriterion(PROPOSING, SelfBalance(5.0), tau=0.7),
        RegionCriterion(OVERLAP, ALRPCriterion(AlreadyMatched(), SelfBalance(5.0), frame="pixels")),
        first_weight=0.2,
    )


LOSSES: dict[str, tuple[Callable[[], TwoStageCriterion], dict[str, Any]]] = {
    "CE + smooth L1": (partial(with_cross_entropy, SmoothL1Box(), 1.0), SOFTMAX),
    "CE + GIoU": (partial(with_cross_entropy, IoUBox("giou"), 10.0), SOFTMAX),
    "aLRP": (with_alrp, {}),
}
every_loss = pytest.mark.parametrize("name", list(LOSSES))


def small(**settings: Any) -> FasterRCNN:
    given: dict[str, Any] = {
        "channels": 16,
        "hidden": 32,
        "pooled_size": 3,
        "scale": 4.0,
        "propose": Propose(60, 0.7, 30),
        "propose_in_training": Propose(60, 0.7, 40),
        **settings,
    }
    backbone = build_backbone("tiny", stages=given.pop("stages", (2, 3, 4, 5)))
    return faster_rcnn(3, backbone=backbone, **given)


def images(*size: int) -> Tensor:
    return torch.randint(0, 256, size or (2, 3, 96, 96), dtype=torch.uint8)


def objects(kind: str = "usual") -> Targets:
    """Return the ground truth of two images of 96 x 96 px."""
    empty: tuple[list[list[float]], list[int]] = ([], [])
    many = [[4.0 * (i % 20), 5.0 * (i // 20), 4.0 * (i % 20) + 9, 5.0 * (i // 20) + 9]
            for i in range(300)]  # fmt: skip
    found = {
        "usual": (([[10.0, 10, 40, 40], [50, 20, 90, 60]], [0, 2]), ([[5.0, 5, 30, 50]], [1])),
        "none": (empty, empty),
        "one": (([[20.0, 20, 50, 60]], [1]), empty),
        "300": ((many, [i % 3 for i in range(300)]), empty),
        "identical": (([[20.0, 20, 50, 60]] * 3, [1, 1, 2]), empty),
        "one pixel": (([[20.0, 20, 21, 21]], [1]), ([[95.0, 95, 96, 96]], [0])),
        "border": (([[0.0, 0, 96, 96], [80.0, 80, 96, 96]], [1, 0]), ([[-9.0, 40, 20, 99]], [2])),
        "crowd": (([[10.0, 10, 40, 40], [40.0, 0, 96, 96]], [0, -2]), ([[0.0, 0, 96, 96]], [-1])),
    }[kind]
    labels = [torch.tensor(each, dtype=torch.int64) for _, each in found]
    return Targets.stack(
        boxes=[torch.tensor(boxes).view(-1, 4) for boxes, _ in found],
        labels=[torch.where(each < 0, -1 - each, each) for each in labels],
        crowd=[each < 0 for each in labels],
        sizes=[(96, 96)] * 2,
    )


@pytest.mark.parametrize("background", [False, True])
def test_there_is_a_prediction_for_each_anchor_and_each_region(background: bool) -> None:
    model = small(background=background).eval()
    # A size that no stride divides.
    found = model(images(2, 3, 65, 100))
    places = 17 * 25 + 9 * 13 + 5 * 7 + 3 * 4 + 2 * 2
    assert found.first.priors.strides == (4, 8, 16, 32, 64)
    assert found.first.logits.shape == (2, places * 3, 1)
    assert found.first.codes.shape == (2, places * 3, 4)
    assert found.second.regions.counts == (30, 30)
    assert found.second.logits.shape == (60, 3)
    assert found.second.codes.shape == (60, 3, 4)
    assert model.classes == 3
    assert model.branches == found.second.branches.keys()
    assert model.train()(images()).second.regions.counts == (40, 40)


def test_the_pyramid_from_stride_4_on_is_that_of_torchvision() -> None:
    ours = FPN((4, 6, 8, 12), 16, levels=5, extra="pool", finest_stride=4)
    theirs = FeaturePyramidNetwork([4, 6, 8, 12], 16, extra_blocks=LastLevelMaxPool())
    assert ours.strides == (4, 8, 16, 32, 64)
    assert not any(key.startswith("coarser") for key in ours.state_dict())
    for level in range(4):
        theirs.inner_blocks[level][0].load_state_dict(ours.lateral[level].state_dict())
        theirs.layer_blocks[level][0].load_state_dict(ours.output[level].state_dict())
    sizes = [(25, 17), (13, 9), (7, 5), (4, 3)]
    features = [
        torch.randn(2, width, *size) for width, size in zip((4, 6, 8, 12), sizes, strict=True)
    ]
    expected = theirs({str(level): each for level, each in enumerate(features)})
    found = ours(features)
    assert_close(found, list(expected.values()))
    assert found[4].shape[-2:] == (2, 2)
    two = FPN((4, 6, 8, 12), 16, levels=6, extra="pool", finest_stride=4)(features)
    assert torch.equal(two[5], two[4][..., ::2, ::2])


def test_nothing_is_proposed_on_the_padding() -> None:
    model = small().eval()
    batch = images(2, 3, 96, 128)
    sizes = torch.tensor([[64, 80], [96, 128]])
    found = predict(model, batch, sizes)
    assert isinstance(found, TwoStagePredictions)
    first, second = found.second.regions.split()
    assert (first <= torch.tensor([80, 64, 80, 64])).all()
    assert (second[:, 2] > 80).any()
    # By default the whole image counts.
    assert torch.equal(model(batch).second.regions.split()[1], second)
    # A detector of one stage is not asked about it.
    single = retinanet(3, backbone=build_backbone("tiny"), channels=16, levels=3, convs=1)
    assert predict(single, batch, sizes).logits.shape[0] == 2  # type: ignore[union-attr]


def test_known_objects_are_regions_where_that_is_wanted() -> None:
    targets = objects("crowd")
    for wanted in (False, True):
        model = small(adds_known=wanted)
        found = predict(model, images(), targets.sizes, targets)
        assert isinstance(found, TwoStagePredictions)
        # Neither padding nor crowd regions are added.
        assert found.second.regions.counts == (40 + wanted, 40)
        is_first = torch.equal(found.second.regions.boxes[0], targets.boxes[0, 0])
        assert is_first == wanted
        assert model(images()).second.regions.counts == (40, 40)


@every_loss
@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_of_training_reaches_every_weight(name: str, bf16: bool) -> None:
    make, settings = LOSSES[name]
    model = small(**{**settings, "adds_known": True}).to(memory_format=torch.channels_last)
    targets = objects()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        predictions = model(images(), targets.sizes, targets.boxes)
        terms = make()(predictions, targets)
    assert predictions.second.regions.boxes.dtype == torch.float32
    terms.total.backward()
    assert terms.total.isfinite()
    for part, parameter in model.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
    for layer in (model.first.to_codes, model.second.to_codes, next(model.backbone.children())):
        assert any(p.grad is not None and p.grad.any() for p in layer.parameters())


@every_loss
@pytest.mark.parametrize(
    "kind", ["none", "one", "300", "identical", "one pixel", "border", "crowd"]
)
def test_any_objects_can_be_learned_from(name: str, kind: str) -> None:
    make, settings = LOSSES[name]
    model, criterion, targets = small(**settings), make(), objects(kind)
    terms = criterion(predict(model, images(), targets.sizes, targets), targets)
    assert terms.total.isfinite()
    terms.total.backward()
    for part, parameter in model.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
    # No anchor overlaps a single pixel enough.
    assert (terms.parts["rpn_positives"] > 0) == (kind not in ("none", "one pixel"))


@every_loss
def test_without_a_single_proposal_the_first_stage_still_learns(name: str) -> None:
    make, settings = LOSSES[name]
    model = small(**{**settings, "adds_known": False})
    nothing = Regions(torch.zeros(0, 4), (0, 0))
    model.propose_in_training = lambda *_: nothing  # type: ignore[assignment]
    predictions, targets = model(images()), objects()
    assert predictions.second.regions.counts == (0, 0)
    terms = make()(predictions, targets)
    terms.total.backward()
    assert terms.parts["positives"] == terms.parts["classification"] == 0
    # Weights that had nothing to do have a gradient all the same: processes exchange them.
    for part, parameter in model.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
    assert model.first.to_logits.weight.grad is not None
    assert model.first.to_logits.weight.grad.any()
    for found in RegionPostProcess()(predictions, targets.sizes):
        assert len(found.scores) == 0


def near_and_far(targets: Targets) -> Regions:
    """Return the same regions whatever is proposed: about the objects, and anywhere."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for boxes, labels in zip(targets.boxes, targets.labels, strict=True):
        own = boxes[labels >= 0].repeat(4, 1)
        own = own + 4 * torch.randn(own.shape, generator=generator)
        corner = torch.rand(16, 2, generator=generator) * 60
        other = torch.cat([corner, corner + 30], 1)
        found.append(torch.cat([own, other]).clamp(0, 96))
    return Regions(torch.cat(found), tuple(len(each) for each in found))


@every_loss
def test_it_learns_two_images(name: str) -> None:
    make, settings = LOSSES[name]
    torch.manual_seed(1)
    targets = objects()
    batch = images() // 3
    for image, (boxes, labels) in enumerate(zip(targets.boxes, targets.labels, strict=True)):
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            if label >= 0:
                batch[image, label, y1:y2, x1:x2] = 230
    settings = {**settings, "adds_known": True, "propose_in_training": Propose(40, 0.7, 20)}
    model, criterion = small(**settings), make()
    regions = near_and_far(targets)

    def losses() -> Tensor:
        """Return the sum of all losses before their weights, on regions that stay the same."""
        usual: Any = model.propose
        model.propose = lambda *_: regions  # type: ignore[assignment]
        torch.manual_seed(0)  # for the sampling
        with torch.no_grad():
            parts = criterion.eval()(model.eval()(batch), targets).parts
        model.propose = usual
        return torch.stack([part for key, part in parts.items() if key.endswith("ation")]).sum()

    before = losses()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(12):
        predictions = predict(model.train(), batch, targets.sizes, targets)
        terms = criterion.train()(predictions, targets)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    assert losses() < 0.75 * before

    other = small(**settings).eval()
    other.load_state_dict(model.eval().state_dict())
    found = [RegionPostProcess()(each(batch), targets.sizes) for each in (model, other)]
    for mine, restored in zip(*found, strict=True):
        assert torch.equal(mine.boxes, restored.boxes)
        assert torch.equal(mine.scores, restored.scores)


def test_the_engine_trains_and_evaluates_it() -> None:
    make, settings = LOSSES["CE + GIoU"]

    def optimizer_of(model: nn.Module) -> tuple[Any, LambdaLR]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        return optimizer, LambdaLR(optimizer, lambda _: 1.0)

    module = TrainingModule(
        small(**settings), make(), make_optimizer=optimizer_of, average_decay=0.9, balance_period=2
    )
    batch: Any = SimpleNamespace(images=images(), targets=objects(), ids=(1, 2))
    loss = module.training_step(batch, 0)
    assert loss.isfinite()
    assert {"loss", "rpn_classification", "localisation"} <= module.last_parts.keys()
    test: Any = SimpleNamespace(
        images=images(2, 3, 96, 128), sizes=torch.tensor([[96, 100], [80, 128]]),
        scales=torch.ones(2, 2), ids=(7, 8),
    )  # fmt: skip
    found = dict(detect(module.evaluated, RegionPostProcess(), [test], device=torch.device("cpu")))
    assert found.keys() == {7, 8}
    assert (found[7].boxes[:, 2] <= 100).all()
    assert len(found[8].scores) > 0


def test_an_image_is_predicted_alike_alone_and_in_a_batch() -> None:
    # In float64: a batch is added up in another order, and in float32 what that changes can swap
    # proposals of nearly the same score.
    model = small().double().eval()
    batch = images()
    together, alone = model(batch), model(batch[1:])
    assert_close(together.first.codes[1:], alone.first.codes, rtol=1e-4, atol=1e-5)
    assert_close(
        together.second.regions.split()[1], alone.second.regions.boxes, rtol=1e-4, atol=1e-3
    )
    assert_close(together.second.logits[30:], alone.second.logits, rtol=1e-4, atol=1e-4)


def test_in_float64_the_numbers_are_the_same() -> None:
    model = small().eval()
    batch = images()
    single = model(batch)
    double = model.double()(batch)
    assert double.second.logits.dtype == double.second.regions.boxes.dtype == torch.float64
    assert_close(single.first.logits.double(), double.first.logits, rtol=1e-4, atol=1e-4)


def test_other_strides_and_what_does_not_fit() -> None:
    coarse = small(stages=(3, 4, 5), levels=4)
    assert coarse(images()).first.priors.strides == (8, 16, 32, 64)
    assert coarse.pooling.strides == (8, 16, 32)
    assert coarse.pooling.finest_side == 112
    model = small()
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, H, W\], got \[2, 1, "):
        model(images(2, 1, 64, 64))
    with pytest.raises(ValueError, match=r"sizes must have shape \[2, 2\], got \[1, 2\]"):
        model(images(), torch.tensor([[96, 96]]))
    model.priors = coarse.priors
    with pytest.raises(ValueError, match=r"the first head predicts for .* priors, but there are"):
        model(images())
    parts = (model.backbone, model.neck, model.first, model.priors, model.coder, model.pooling,
             model.second, model.region_coder)  # fmt: skip
    rules: dict[str, Any] = {"propose": Propose(), "propose_in_training": Propose()}
    with pytest.raises(ValueError, match="mean must be three numbers"):
        FasterRCNN(*parts, **rules, mean=(1.0,))
    with pytest.raises(ValueError, match="std must be above zero"):
        FasterRCNN(*parts, **rules, std=(1.0, 0.0, 1.0))
