"""The losses are those of our criteria on torchvision's own matching, outputs and box coders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_detectors import CLASSES, Batch, batch, build, gradients
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.ops import box_iou

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria import (
    AlreadyMatched,
    ALRPCriterion,
    APClassification,
    DenseCriterion,
    IoUBox,
    RankSortCriterion,
    RegionCriterion,
    SelfBalance,
)
from rankdet.criteria.alrp import Frame
from rankdet.integrations.torchvision import use_ranking_loss
from rankdet.integrations.torchvision_methods import _Coder, softmax_logits
from rankdet.ops.box_codes import DeltaCoder, DistanceCoder
from rankdet.structures import (
    Assignment,
    LossTerms,
    Predictions,
    Priors,
    RegionPredictions,
    Regions,
    Targets,
)

KINDS: list[Any] = ["alrp", "ap", "rank_sort"]


@dataclass
class Given:
    """An assigner that says what it was told."""

    matched: Tensor

    def __call__(self, priors: Priors, targets: Targets) -> Assignment:  # noqa: ARG002 - as any
        return Assignment(self.matched)


def criterion_of(
    kind: str, assigner: Any, *, tau: float = 0.5, frame: Frame = "pixels"
) -> nn.Module:
    if kind == "alrp":
        return ALRPCriterion(assigner, SelfBalance(), tau=tau, frame=frame)
    if kind == "ap":
        return DenseCriterion(assigner, APClassification(), IoUBox())
    return RankSortCriterion(assigner)


def stacked(targets: list[dict[str, Tensor]], start: int = 0) -> Targets:
    none = [torch.zeros(len(t["labels"]), dtype=torch.bool) for t in targets]
    boxes, labels = [t["boxes"] for t in targets], [t["labels"] - start for t in targets]
    return Targets.stack(boxes, labels, none, [(64, 64)] * len(targets))


def doubled(given: Batch) -> Batch:
    images, targets = given
    boxes = [{**target, "boxes": target["boxes"].double()} for target in targets]
    return [image.double() for image in images], boxes


def as_priors(boxes: Tensor) -> Priors:
    return Priors(boxes, (len(boxes),), (8,))


def require_same(
    model: nn.Module, ours: dict[str, Tensor], theirs: LossTerms, rtol: float = 1e-9
) -> None:
    classification, localisation = ours.values()
    assert theirs.parts["positives"] > 2
    assert_close(classification, theirs.parts["classification"], rtol=rtol, atol=0)
    assert_close(classification + localisation, theirs.total, rtol=rtol, atol=0)
    parameters = list(model.parameters())
    of_theirs = torch.autograd.grad(theirs.total, parameters, allow_unused=True)
    of_ours = torch.autograd.grad(classification + localisation, parameters, allow_unused=True)
    reached = [each for each in of_ours if each is not None]
    # Of a bias before a norm nothing but rounding is left.
    scale = max(float(each.abs().max()) for each in reached)
    assert scale > 1e-4
    for one, other in zip(of_ours, of_theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, rtol=0, atol=rtol * scale)


def spied(model: Any, module: Any, name: str, targets: Any, images: Any) -> list[Any]:
    """Return the arguments that torchvision gives to a method of its own."""
    seen: list[Any] = []
    plain = getattr(module, name)

    def spy(*args: Any) -> Any:
        seen.append(args)
        return plain(*args)

    setattr(module, name, spy)
    model(images, targets)
    delattr(module, name)
    return list(seen[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_one_stage_is_our_criterion_on_their_matching(name: str, kind: Any) -> None:
    model = build(name).double()
    coder: Any
    images, targets = doubled(batch(name))
    _, outputs, anchors, matched = spied(model, model.head, "compute_loss", targets, images)
    if name == "retinanet":  # once more with their parts, so that the spy is no oracle of its own
        for target, priors, own in zip(targets, anchors, matched, strict=True):
            assert torch.equal(model.proposal_matcher(box_iou(target["boxes"], priors)), own)
        logits, coder = outputs["cls_logits"], DeltaCoder(stds=(1.0,) * 4)
        assert (torch.stack(matched) == -2).any()
    else:
        score = outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()
        logits, coder = score.logit(), DistanceCoder(unit="side")
    predictions = Predictions(logits, outputs["bbox_regression"], as_priors(anchors[0]), coder)
    theirs = criterion_of(kind, Given(torch.stack(matched)))(predictions, stacked(targets))

    use_ranking_loss(model, kind)
    require_same(model, model(images, targets), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_of_two_stages_is_our_criterion_on_all_anchors(kind: Any) -> None:
    model = build("faster_rcnn").double()
    images, targets = doubled(batch("faster_rcnn"))
    anchors, _ = spied(model, model.rpn, "assign_targets_to_anchors", targets, images)
    objectness, deltas, labels, _ = spied(model, model.rpn, "compute_loss", targets, images)
    matched = [
        model.rpn.proposal_matcher(box_iou(t["boxes"], a))
        for t, a in zip(targets, anchors, strict=True)
    ]
    assert torch.equal(torch.stack(matched).clamp(-2, 0) == 0, torch.stack(labels) == 1)
    coder = DeltaCoder(stds=(1.0,) * 4)
    predictions = Predictions(
        objectness.view(2, -1, 1), deltas.view(2, -1, 4), as_priors(anchors[0]), coder
    )
    something = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
    criterion = criterion_of(kind, Given(torch.stack(matched)), tau=0.7, frame="prior")
    theirs = criterion(predictions, stacked(something))

    use_ranking_loss(model, kind, first_weight=1.0)
    ours = model(images, targets)
    # Boxes are compared in the frame of the anchor, where eps of the box losses weighs more.
    rtol = 1e-9 if kind == "alrp" else 1e-6
    of_first = {k: ours[k] for k in ("loss_objectness", "loss_rpn_box_reg")}
    require_same(model, of_first, theirs, rtol)
    use_ranking_loss(model, kind)
    assert_close(model(images, targets)["loss_objectness"], 0.2 * ours["loss_objectness"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_stage_is_our_criterion_on_all_regions(kind: Any) -> None:
    model = build("faster_rcnn", rpn_post_nms_top_n_train=600).double()
    images, targets = doubled(batch("faster_rcnn"))
    _, proposals, *_ = spied(model, model.roi_heads, "forward", targets, images)
    # torchvision adds the objects to the regions.
    regions = [torch.cat([p, t["boxes"]]) for p, t in zip(proposals, targets, strict=True)]
    heads = model.roi_heads
    features = model.backbone(model.transform(images)[0].tensors)
    class_logits, codes = heads.box_predictor(
        heads.box_head(heads.box_roi_pool(features, regions, [(64, 64)] * 2))
    )
    score = class_logits.softmax(1)[:, 1:]
    predictions = RegionPredictions(
        Regions(torch.cat(regions), tuple(map(len, regions))),
        score.logit(),
        codes.view(len(codes), CLASSES + 1, 4)[:, 1:],
        DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2)),
    )
    overlap = MaxIoUAssigner(positive=0.5, negative=0.5, low_quality=False)
    theirs = RegionCriterion(overlap, criterion_of(kind, AlreadyMatched()))(
        predictions, stacked(targets, start=1)
    )

    use_ranking_loss(model, kind)
    sizes: list[int] = []
    model.roi_heads.forward.loss.register_forward_pre_hook(lambda _, a: sizes.append(len(a[0])))
    ours = model(images, targets)
    assert sizes == [CLASSES * len(codes)]  # no sample of them
    require_same(model, {k: ours[k] for k in ("loss_classifier", "loss_box_reg")}, theirs)


def test_each_loss_reaches_its_own_branch_only() -> None:
    model = build("retinanet")
    use_ranking_loss(model)
    losses = model(*batch("retinanet"))
    head = model.head
    branches = {
        "classification": head.classification_head.cls_logits.weight,
        "bbox_regression": head.regression_head.bbox_reg.weight,
    }
    for name, loss in losses.items():
        for of, weight in branches.items():
            (found,) = torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)
            reached = found is not None and bool((found != 0).any())
            assert reached == (name == of)


@pytest.mark.parametrize("classes", [2, 5])
def test_softmax_logits_are_exact_also_where_one_class_has_it_all(classes: int) -> None:
    x = torch.randn(40, classes, dtype=torch.float64) * 20
    x[0] = 0  # all tied
    x = x.requires_grad_()
    others = torch.stack([
        torch.cat([x[:, :k], x[:, k + 1 :]], 1).logsumexp(1) for k in range(classes)
    ], 1)  # fmt: skip
    assert_close(softmax_logits(x), x - others, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(x)
    (ours,) = torch.autograd.grad(softmax_logits(x), x, cotangent)
    (theirs,) = torch.autograd.grad(x - others, x, cotangent)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert_close(softmax_logits(x.float()), (x - others).float(), rtol=1e-5, atol=1e-5)


def test_their_coders_are_ours() -> None:
    priors = torch.tensor([[0.0, 0, 16, 8], [10, 10, 30, 50]])
    boxes = torch.tensor([[2.0, 1, 15, 9], [5, 12, 40, 44]])
    squares = torch.tensor([[0.0, 0, 16, 16], [10, 10, 42, 42]])
    cases: list[tuple[Any, Any, Tensor]] = [
        (build("retinanet").box_coder, DeltaCoder(stds=(1.0,) * 4), priors),
        (build("faster_rcnn").roi_heads.box_coder, DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2)), priors),
        (build("fcos").box_coder, DistanceCoder(unit="side"), squares),
    ]
    for theirs, ours, starts in cases:
        coder = _Coder(theirs)
        codes = coder.encode(starts, boxes)
        assert_close(codes, ours.encode(starts, boxes))
        assert_close(coder.decode(starts, codes), boxes, rtol=1e-5, atol=1e-4)
        if isinstance(ours, DeltaCoder):
            both = torch.stack([codes, codes / 2])
            assert_close(coder.decode_relative(both), ours.decode_relative(both))


def test_a_batch_without_objects_costs_nothing_and_reaches_every_parameter() -> None:
    for name in ("retinanet", "fcos", "faster_rcnn"):
        model = build(name)
        for kind in KINDS:
            loss = use_ranking_loss(model, kind)
            losses = model(*batch(name, [[], []]))
            assert all(float(each.detach()) == 0 for each in losses.values())
            assert all(bool((each == 0).all()) for each in gradients(model, losses))
            for key, value in loss.state_dict().items():
                assert key.endswith("weight") or not value.any()
        # One image without objects beside another: torchvision's own way out is not taken twice.
        losses = model(*batch(name, [[[4, 6, 30, 28]], []]))
        assert all(each.isfinite().all() for each in gradients(model, losses))
        assert all(float(each.detach()) > 0 for each in losses.values())


def test_half_precision_is_ranked_in_full() -> None:
    for name in ("retinanet", "fcos", "faster_rcnn"):
        model = build(name)
        use_ranking_loss(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(*batch(name))
        assert all(each.dtype == torch.float32 for each in losses.values())
        assert all(each.isfinite().all() for each in gradients(model, losses))
