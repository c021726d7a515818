"""FoveaBox and FCOS: published detections, odd images with every criterion, and that they learn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.ops import box_iou

from rankdet.assign.fcos import FCOSAssigner
from rankdet.assign.fovea import FoveaAssigner
from rankdet.criteria import (
    ALRPCriterion,
    APClassification,
    DenseCriterion,
    FocalClassification,
    IoUBox,
    RankSortCriterion,
    ScalarBalance,
    SmoothL1Box,
    match,
)
from rankdet.models.backbones import build_backbone
from rankdet.models.detector import Detector
from rankdet.models.fcos import fcos
from rankdet.models.fovea import fovea
from rankdet.models.heads import DenseHead
from rankdet.models.postprocess import PostProcess
from rankdet.models.priors import PointGenerator
from rankdet.ops.box_codes import DistanceCoder, LogDistanceCoder
from rankdet.structures import (
    IGNORED,
    Assigner,
    BoxCoder,
    Detections,
    LossTerms,
    Predictions,
    Targets,
)

if TYPE_CHECKING:
    import numpy as np

    Data = dict[str, np.ndarray[Any, Any]]
    Golden = Callable[[str], Data]

TOLERANCE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-8}
STRIDES = (8, 16, 32, 64, 128)
EDGES = tuple(2.0 * stride for stride in STRIDES)
PUBLISHED: dict[str, tuple[PointGenerator, BoxCoder]] = {
    "fcos": (PointGenerator(STRIDES), DistanceCoder()),
    "fovea": (PointGenerator(STRIDES, EDGES), LogDistanceCoder()),
}
RANGES = ((0.0, 32.0), (32.0, 64.0), (64.0, 1e8))
SCALES = ((1.0, 32.0), (16.0, 64.0), (32.0, 2048.0))


class Kind(NamedTuple):
    make: Callable[..., Detector]
    assigner: Assigner
    settings: dict[str, Any]


KINDS = {
    "fovea": Kind(fovea, FoveaAssigner(SCALES), {}),
    "fcos": Kind(fcos, FCOSAssigner(RANGES), {"centreness": False}),
    "fcos, centreness": Kind(fcos, FCOSAssigner(RANGES), {}),
    "fcos, first version": Kind(
        fcos,
        FCOSAssigner(RANGES, centre_radius=None),
        {"centreness": False, "coder": LogDistanceCoder(unit="pixel", most=2.0**16)},
    ),
}
# The last two cannot train a branch "centreness".
CRITERIA: dict[str, Callable[[Assigner, bool], nn.Module]] = {
    "focal + smooth L1": lambda a, c: DenseCriterion(
        a, FocalClassification(), SmoothL1Box(), centreness=c
    ),
    "focal + GIoU": lambda a, c: DenseCriterion(a, FocalClassification(), IoUBox(), centreness=c),
    "AP + smooth L1": lambda a, c: DenseCriterion(
        a, APClassification(), SmoothL1Box(), centreness=c
    ),
    "aLRP": lambda a, _: ALRPCriterion(a, ScalarBalance(5.0)),
    "Rank & Sort": lambda a, _: RankSortCriterion(a),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


class Patches(nn.Module):
    """A backbone of one layer, for sides that are multiples of 32."""

    channels = (8, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 8, side, stride=side) for side in (8, 16, 32))

    def forward(self, batch: Tensor) -> list[Tensor]:
        return [layer(batch).relu() for layer in self.layers]


def small(kind: str, **settings: Any) -> Detector:
    given: dict[str, Any] = {"channels": 16, "levels": 3, "convs": 1, **KINDS[kind].settings}
    return KINDS[kind].make(3, **{"backbone": build_backbone("tiny"), **given, **settings})


def criterion_of(kind: str, criterion: str) -> nn.Module:
    return CRITERIA[criterion](KINDS[kind].assigner, kind == "fcos, centreness")


def criteria_of(kind: str) -> list[str]:
    """Return which criteria this detector can be trained with."""
    return [name for name in CRITERIA
            if kind != "fcos, centreness" or name not in ("aLRP", "Rank & Sort")]  # fmt: skip


def images(*size: int) -> Tensor:
    return torch.randint(0, 256, size or (2, 3, 64, 96), dtype=torch.uint8)


def targets_of(
    *each: list[list[float]], crowd: int = 0, size: tuple[int, int] = (64, 96)
) -> Targets:
    """Return the objects of some images; the last ``crowd`` of each are crowd regions."""
    boxes = [torch.tensor(image).reshape(-1, 4) for image in each]
    return Targets.stack(
        boxes,
        [torch.arange(len(image)) % 2 for image in boxes],  # class 2 never appears
        [torch.arange(len(image)) >= len(image) - crowd for image in boxes],
        [size] * len(boxes),
    )


def grid(count: int) -> list[list[float]]:
    """Return objects of 6 x 5 px, row by row; they overlap."""
    places = [(4.0 * (i % 22), 4.0 * (i // 22)) for i in range(count)]
    return [[x, y, x + 6, y + 5] for x, y in places]


IMAGES: dict[str, Targets] = {
    "no object": targets_of([], []),
    "one object, and none": targets_of([[10.0, 10.0, 40.0, 40.0]], []),
    "300 objects": targets_of(grid(300), [[10.0, 10.0, 40.0, 40.0]]),
    "at the border": targets_of([[0.0, 0.0, 9.0, 64.0], [0.0, 56.0, 96.0, 64.0]],
                                [[70.0, 40.0, 96.0, 64.0], [94.0, 0.0, 96.0, 2.0]]),
    # Between whole pixels a point may lie within one.
    "one pixel": targets_of([[11.5, 11.5, 12.5, 12.5], [21.0, 21.0, 22.0, 22.0]],
                            [[95.0, 63.0, 96.0, 64.0]]),
    "identical": targets_of([[10.0, 10.0, 40.0, 40.0]] * 5, [[20.0, 10.0, 80.0, 60.0]] * 2),
    "a crowd region": targets_of([[10.0, 10.0, 40.0, 40.0], [20.0, 0.0, 96.0, 64.0]],
                                 [[0.0, 0.0, 96.0, 64.0]], crowd=1),
}  # fmt: skip


def flattened(data: Data, name: str, numbers: int) -> Tensor:
    """Return a head's output [B, numbers, H, W] of all levels as [B, A, numbers]."""
    levels = [torch.from_numpy(data[f"{name}_{i}"]).double() for i in range(5)]
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, numbers) for x in levels], 1)


def published(data: Data, kind: str) -> tuple[Predictions, PostProcess, Tensor]:
    """Return predictions, settings and sizes of images of a golden file."""
    generator, coder = PUBLISHED[kind]
    priors = generator((128, 160), device="cpu", dtype=torch.float64)
    # There places on the padding of the second image take part.
    priors = replace(priors, strides=(10_000,) * 5)
    branches = {}
    if kind == "fcos":
        branches["centreness"] = flattened(data, "centerness", 1)[..., 0]
    predictions = Predictions(
        flattened(data, "cls_score", 5), flattened(data, "bbox_pred", 4), priors, coder, branches
    )
    process = PostProcess(
        candidates=int(data["nms_pre"]),
        score_threshold=float(data["score_thr"]),
        nms_iou=float(data["nms_iou"]),
        max_detections=int(data["max_per_img"]),
    )
    sizes = torch.tensor([data["img_shape_0"].tolist(), data["img_shape_1"].tolist()])
    return predictions, process, sizes


def assert_same(ours: Detections, wanted: Detections) -> None:
    assert torch.equal(ours.labels, wanted.labels)
    assert_close(ours.scores, wanted.scores, **TOLERANCE)
    assert_close(ours.boxes, wanted.boxes, **TOLERANCE)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_detections_are_those_of_mmdetection(golden: Golden, kind: str) -> None:
    data = golden(f"predict/{kind}.npz")
    predictions, process, sizes = published(data, kind)
    if kind == "fovea":
        sizes = sizes - 1  # there the last pixel is beyond the image; see the next test
    for step in ("", "before_nms_"):
        if step:  # nothing overlaps by more than 1
            process = replace(process, nms_iou=1.0, max_detections=10_000)
        for n, found in enumerate(process(predictions, sizes)):
            boxes, scores, labels = (
                torch.from_numpy(data[f"{step}{name}_{n}"])
                for name in ("boxes", "scores", "labels")
            )
            order = scores.argsort(descending=True)
            wanted = Detections(boxes[order], scores[order], labels[order])
            assert_same(found, wanted)
            for planted in (replace(wanted, boxes=wanted.boxes + 1e-7),
                            replace(wanted, scores=wanted.scores + 1e-7)):  # fmt: skip
                with pytest.raises(AssertionError):
                    assert_same(found, planted)


def test_foveabox_may_detect_up_to_the_border_of_the_image(golden: Golden) -> None:
    """mmdetection clips FoveaBox to width - 1 and height - 1, and all other detectors to width and
    height. An object that touches the border ends there, so we clip to it for every detector.
    """
    data = golden("predict/fovea.npz")
    predictions, process, sizes = published(data, "fovea")
    process = replace(process, nms_iou=1.0, max_detections=10_000)
    for n, found in enumerate(process(predictions, sizes)):
        scores = torch.from_numpy(data[f"before_nms_scores_{n}"])
        theirs = torch.from_numpy(data[f"before_nms_boxes_{n}"])[scores.argsort(descending=True)]
        limits = sizes[n].flip(0).repeat(2)
        clipped = torch.minimum(found.boxes, limits - 1.0)
        # What lies in the last pixel alone is lost there.
        left = (clipped[:, 2:] > clipped[:, :2]).all(1)
        assert_close(clipped[left], theirs, **TOLERANCE)
        beyond = found.boxes[left] > limits - 1.0
        assert beyond.any()
        assert (found.boxes <= limits).all()
        assert_close(found.boxes[left][~beyond], theirs[~beyond], **TOLERANCE)
    # An object in the corner, exactly as predicted, is found whole.
    priors = predictions.priors
    whole = torch.tensor([[100.0, 60.0, 160.0, 128.0]]).double()
    codes = predictions.coder.encode(priors.boxes, whole)[None]
    logits = torch.full((1, len(priors.boxes), 1), -9.0).double()
    middle = (priors.centres - torch.tensor([130.0, 94.0])).square().sum(1).argmin()
    logits[0, middle] = 9
    exact = Predictions(logits, codes, priors, predictions.coder)
    (found,) = PostProcess(max_detections=1)(exact, torch.tensor([[128, 160]]))
    assert_close(found.boxes, whole)
    (earlier,) = PostProcess(max_detections=1)(exact, torch.tensor([[127, 159]]))
    assert box_iou(earlier.boxes, whole).item() == pytest.approx(59 * 67 / (60 * 68))


@EVERY_KIND
def test_there_is_a_prediction_for_each_point(kind: str) -> None:
    model = small(kind, levels=5)
    found = model(images(2, 3, 65, 100))  # a size that no stride divides
    places = 9 * 13 + 5 * 7 + 3 * 4 + 2 * 2 + 1
    assert found.logits.shape == (2, places, 3)
    assert found.codes.shape == (2, places, 4)
    assert found.priors.strides == STRIDES
    assert found.priors.centres[:2].tolist() == [[4, 4], [12, 4]]
    assert model.branches == found.branches.keys()
    assert model.branches == ({"centreness"} if kind == "fcos, centreness" else set())


def test_the_published_settings() -> None:
    backbone = build_backbone("tiny")
    one = fovea(3, backbone=backbone, channels=32)
    assert one.priors == PointGenerator(STRIDES, (16, 32, 64, 128, 256))
    assert one.coder == LogDistanceCoder(unit="side", least=1 / 16, most=16)
    assert not any(isinstance(module, nn.GroupNorm) for module in one.head.modules())
    other = fcos(3, backbone=backbone, channels=32)
    assert other.priors == PointGenerator(STRIDES, STRIDES)
    assert other.coder == DistanceCoder(unit="side", rectify=True)
    assert other.head.scales is not None
    assert sum(isinstance(module, nn.GroupNorm) for module in other.head.modules()) == 8
    edges = (20.0, 40.0, 80.0)
    given = fovea(3, backbone=backbone, channels=32, levels=3, base_edges=edges)
    assert given.priors == PointGenerator((8, 16, 32), edges)


@pytest.mark.parametrize("tower", ["boxes", "classes"])
def test_centreness_comes_from_the_tower_that_is_named(tower: Any) -> None:
    head = fcos(
        2, backbone=build_backbone("tiny"), channels=8, levels=3, centreness_from=tower
    ).head
    feature = [torch.randn(1, 8, 4, 4)] * 3
    centreness = head(feature).branches["centreness"]
    for named, module in (("boxes", head.box_tower), ("classes", head.class_tower)):
        gradients = torch.autograd.grad(
            centreness.sum(), list(module.parameters()), retain_graph=True, allow_unused=True
        )
        assert all((each is not None) == (named == tower) for each in gradients)
    if tower == "classes":
        assert fcos(2, backbone=build_backbone("tiny"), channels=8).head.centreness_from == tower


def test_settings_that_do_not_fit_are_refused() -> None:
    backbone = build_backbone("tiny")
    with pytest.raises(ValueError, match=r"base_edges must be one number .* each of the 3 levels"):
        fovea(3, backbone=backbone, levels=3, base_edges=(16.0, 32.0))
    with pytest.raises(ValueError, match="base_edges must be one number above zero"):
        fovea(3, backbone=backbone, levels=3, base_edges=(16.0, 32.0, 0.0))
    with pytest.raises(ValueError, match="centreness_from must be one of 'boxes', 'classes'"):
        DenseHead(8, 2, 1, centreness=True, centreness_from="both")  # type: ignore[arg-type]


@EVERY_KIND
@pytest.mark.parametrize("case", IMAGES)
def test_odd_images_give_finite_losses_and_gradients(kind: str, case: str) -> None:
    targets, predictions = IMAGES[case], small(kind, backbone=Patches())(images())
    outputs = [predictions.logits, predictions.codes, *predictions.branches.values()]
    matched = KINDS[kind].assigner(predictions.priors, targets).matched
    assert (matched == IGNORED).any() == (case == "a crowd region")
    assert (matched >= 0).any() == (case != "no object")
    image, prior = (matched >= 0).nonzero().unbind(1)
    labels = targets.labels[image, matched[image, prior]]
    for criterion in criteria_of(kind):
        terms: LossTerms = criterion_of(kind, criterion)(predictions, targets)
        assert terms.parts["positives"] == len(image)
        for name, part in {**terms.parts, "total": terms.total}.items():
            assert part.isfinite(), (criterion, name)
        found = torch.autograd.grad(terms.total, outputs, retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in found), criterion
        for_logits, for_codes, *for_branches = found
        # Boxes and branches are learned where there are positives and nowhere else.
        for gradient in (for_codes.abs().amax(2), *for_branches):
            assert not gradient[matched < 0].any()
        assert not for_logits[matched == IGNORED].any()
        if case == "no object":
            # Focal loss still pushes background down; a ranking has nothing to say.
            assert terms.parts["localisation"] == 0
            assert (for_logits > 0).all() if criterion.startswith("focal") else terms.total == 0
            continue
        assert terms.total.item() > 0
        # A positive is pushed up at the class of its object, a class that never appears nowhere.
        assert (for_logits[image, prior, labels] <= 0).all()
        assert (for_logits[..., 2] >= 0).all()


@EVERY_KIND
def test_crowd_regions_are_not_learned_as_background(kind: str) -> None:
    model = small(kind)
    predictions = model(images())
    assigner = KINDS[kind].assigner
    matched = assigner(predictions.priors, IMAGES["a crowd region"]).matched
    x, _ = predictions.priors.centres.unbind(1)
    assert (matched[1] == IGNORED).all()  # a region as large as the image
    assert (matched[0, x > 40] == IGNORED).all()
    assert (matched[0, x < 20] != IGNORED).all()


@EVERY_KIND
def test_of_identical_objects_the_first_is_found(kind: str) -> None:
    priors = small(kind)(images()).priors
    matched = KINDS[kind].assigner(priors, IMAGES["identical"]).matched
    assert matched.max() == 0
    assert (matched == 0).any(1).all()


@pytest.mark.parametrize(
    ("kind", "criterion"), [(kind, name) for kind in KINDS for name in criteria_of(kind)]
)
def test_a_few_steps_make_the_loss_fall_and_what_is_learned_can_be_kept(
    kind: str, criterion: str
) -> None:
    torch.manual_seed(1)
    model = small(kind, class_prior=0.1, backbone=Patches())
    measure = criterion_of(kind, criterion)
    targets = targets_of([[6.0, 6.0, 36.0, 36.0]], [[20.0, 4.0, 50.0, 44.0]], size=(64, 64))
    batch = images(2, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    for _ in range(12):
        predictions = model(batch)
        terms: LossTerms = measure(predictions, targets)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        # Before any weights: that of aLRP Loss rises as the ranks fall.
        loss = terms.parts["classification"] + terms.parts["localisation"]
        ious = match(KINDS[kind].assigner, predictions, targets).ious()
        found.append((loss.item(), ious.mean().item()))
    (first, coarse), (last, fine) = found[0], found[-1]
    assert last < 0.7 * first
    assert fine > coarse

    restored = small(kind, backbone=Patches())
    restored.load_state_dict(copy.deepcopy(model.state_dict()))
    model.eval()
    restored.eval()
    ours, theirs = (PostProcess()(each(batch), targets.sizes) for each in (model, restored))
    for one, other in zip(ours, theirs, strict=True):
        assert len(one.scores) > 0
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)


@EVERY_KIND
@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_of_training_reaches_every_weight(kind: str, bf16: bool) -> None:
    model = small(kind, levels=3).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        terms = criterion_of(kind, "focal + GIoU")(model(images()), IMAGES["at the border"])
    terms.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    first = next(model.backbone.parameters())
    assert first.grad is not None
    assert first.grad.any()


@pytest.mark.parametrize("criterion", ["aLRP", "Rank & Sort"])
def test_ranking_criteria_refuse_fcos_with_centreness(criterion: str) -> None:
    model = small("fcos, centreness")
    with pytest.raises(ValueError, match="the detector has the branch 'centreness'"):
        criterion_of("fcos", criterion)(model(images()), IMAGES["identical"])
