"""Cross-entropy beside a box loss: torchvision's losses of both stages, and the edges."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from golden_heads import Given, gradients, small_batch
from region_batches import region_batch, region_gradients, targets_of
from torch.testing import assert_close
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.assign.sampling import SampledAssigner
from rankdet.criteria import IoUBox, SmoothL1Box
from rankdet.criteria.cross_entropy import CrossEntropyCriterion, Scores
from rankdet.criteria.regions import AlreadyMatched, RegionCriterion
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import IGNORED, NEGATIVE, Predictions, Priors

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]

RTOL = {torch.float64: 1e-12, torch.float32: 1e-5}
EVERY_DTYPE = pytest.mark.parametrize("dtype", list(RTOL), ids=["float64", "float32"])
OVERLAP = MaxIoUAssigner(positive=0.5, negative=0.5, low_quality=False)


@EVERY_DTYPE
def test_the_first_stage_is_that_of_torchvision(dtype: torch.dtype) -> None:
    head = small_batch(dtype=dtype)
    logits = head.predictions.logits[..., :1].detach().requires_grad_()
    priors = replace(head.predictions.priors, boxes=head.predictions.priors.boxes.to(dtype))
    predictions = replace(head.predictions, logits=logits, priors=priors)
    labels, objects = head.targets.labels.clamp(max=0), head.targets.boxes.to(dtype)
    targets = replace(head.targets, labels=labels, boxes=objects)
    sampled = SampledAssigner(MaxIoUAssigner(0.5, 0.3), number=20, positive_share=0.5)
    matched = sampled(predictions.priors, targets).matched
    assert (matched >= 0).sum() > 3
    terms = CrossEntropyCriterion(Given(matched), SmoothL1Box())(predictions, targets)
    assert terms.parts["examples"] == 40

    kinds = (matched >= 0).to(dtype).where(matched != IGNORED, -1)
    boxes = torch.stack([t[m.clamp(min=0)] for t, m in zip(objects, matched, strict=True)])
    wanted = predictions.coder.encode(priors.boxes, boxes)

    class Everyone:
        def fg_bg_sampler(self, labels: list[torch.Tensor]) -> Any:
            return [each == 1 for each in labels], [each == 0 for each in labels]

    # Theirs runs on any object that has a sampler.
    their_loss: Any = RegionProposalNetwork.compute_loss
    objectness, box = their_loss(
        Everyone(), logits, predictions.codes.reshape(-1, 4), list(kinds), list(wanted)
    )
    rtol = RTOL[dtype]
    assert_close(terms.parts["classification"], objectness.detach(), rtol=rtol, atol=0)
    assert_close(terms.parts["localisation"], box.detach(), rtol=rtol, atol=0)
    ours = gradients(terms.total, predictions)
    theirs = torch.autograd.grad(objectness + box, (logits, predictions.codes))
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, rtol=rtol, atol=rtol * other.abs().max().item())


@EVERY_DTYPE
@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_classification_is_that_of_mmdetection(
    golden: Golden, scores: Scores, dtype: torch.dtype
) -> None:
    data = golden("losses_other/classification.npz")
    file = "bce" if scores == "sigmoid" else "softmax_ce_weighted"
    said = torch.from_numpy(data["logits" if scores == "sigmoid" else "softmax_logits"]).to(dtype)
    said = said[None].requires_grad_()
    labels = torch.from_numpy(data["labels"])
    rows, classes = len(labels), 5
    # An object of each class, so that the number of an object is its class.
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]], dtype=dtype)
    priors = Priors(box.expand(rows, 4), (rows,), (8,))
    targets = targets_of((box.expand(classes, 4).tolist(), list(range(classes))))
    matched = torch.where(labels < classes, labels, NEGATIVE)[None]
    branches = {"background": said[..., classes]} if scores == "softmax" else {}
    codes = torch.zeros(1, rows, 4, dtype=dtype, requires_grad=True)
    predictions = Predictions(said[..., :classes], codes, priors, DeltaCoder(), branches)
    terms = CrossEntropyCriterion(Given(matched), SmoothL1Box(), scores=scores)(
        predictions, targets
    )
    assert terms.parts["examples"] == rows
    (slopes,) = torch.autograd.grad(terms.total, said)
    factor = rows / (float(data["avg_factor"]) + torch.finfo(torch.float32).eps)
    rtol = RTOL[dtype]
    if scores == "sigmoid":
        value = torch.as_tensor(data[file]).to(dtype)
        assert_close(terms.parts["classification"] * factor, value, rtol=rtol, atol=0)
    else:  # weighted row by row there
        slopes = slopes * torch.from_numpy(data["weight"])[:, None].to(dtype)
    theirs = torch.from_numpy(data[f"{file}_grad"]).to(dtype)
    assert_close(slopes[0] * factor, theirs, rtol=0, atol=rtol * theirs.abs().max().item())


@EVERY_DTYPE
def test_the_second_stage_is_that_of_torchvision(dtype: torch.dtype) -> None:
    targets = targets_of(
        ([[5.0, 5, 30, 30], [32.0, 30, 60, 62]], [0, 2]), ([[10.0, 20, 50, 44]], [1])
    )
    targets = replace(targets, boxes=targets.boxes.to(dtype))
    batch = region_batch(targets, background=True, dtype=dtype)
    loss = CrossEntropyCriterion(AlreadyMatched(), SmoothL1Box(), scores="softmax", box_weight=3.0)
    terms = RegionCriterion(OVERLAP, loss)(*batch)

    found = batch.predictions
    # Theirs has the background first, and codes for it too.
    logits = torch.cat([found.branches["background"][:, None], found.logits], 1)
    codes = torch.cat([torch.zeros_like(found.codes[:, :1]), found.codes], 1).flatten(1)
    labels, wanted = [], []
    for boxes, all_objects, all_labels in zip(
        found.regions.split(), targets.boxes, targets.labels, strict=True
    ):
        there = all_labels >= 0
        objects, kinds = all_objects[there], all_labels[there]
        overlaps = torch.stack([_ious(boxes, each) for each in objects], 1)
        best = overlaps.max(1)
        labels.append(torch.where(best.values >= 0.5, kinds[best.indices] + 1, 0))
        wanted.append(found.coder.encode(boxes, objects[best.indices]).to(dtype))
    classification, box = fastrcnn_loss(logits, codes, labels, wanted)
    rtol = RTOL[dtype]
    assert terms.parts["positives"] == sum((each > 0).sum() for each in labels) > 2
    assert_close(terms.parts["classification"], classification.detach(), rtol=rtol, atol=0)
    assert_close(terms.parts["localisation"], box.detach(), rtol=rtol, atol=0)
    assert_close(terms.total, classification + 3 * box, rtol=rtol, atol=0)
    inputs = (found.logits, found.codes, found.branches["background"])
    theirs = torch.autograd.grad(classification + 3 * box, inputs)
    for mine, other in zip(region_gradients(terms.total, found), theirs, strict=True):
        assert_close(mine, other, rtol=rtol, atol=rtol * other.abs().max().item())


def _ious(boxes: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    low, high = torch.maximum(boxes[:, :2], one[:2]), torch.minimum(boxes[:, 2:], one[2:])
    common = (high - low).clamp(min=0).prod(1)
    both = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (one[2:] - one[:2]).prod()
    return common / (both - common)


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_what_is_ignored_may_be_anything(scores: Any) -> None:
    head = small_batch()
    matched = MaxIoUAssigner()(head.predictions.priors, head.targets).matched
    matched[:, ::3] = IGNORED
    out = (matched == IGNORED)[..., None]
    background = torch.zeros(matched.shape, dtype=head.predictions.logits.dtype)
    worse = background.masked_fill(out[..., 0], torch.nan).requires_grad_()
    softmax = scores == "softmax"
    good = replace(head.predictions, branches={"background": background} if softmax else {})
    criterion = CrossEntropyCriterion(Given(matched), IoUBox(), scores=scores)
    expected = criterion(good, head.targets)
    bad = head.predictions.logits.detach().masked_fill(out, torch.nan).requires_grad_()
    branches = {"background": worse} if softmax else {}
    terms = criterion(replace(good, logits=bad, branches=branches), head.targets)
    assert torch.equal(terms.total, expected.total)
    assert terms.parts["examples"] == (matched != IGNORED).sum()
    (gradient,) = torch.autograd.grad(terms.total, bad, retain_graph=True)
    assert torch.equal(gradient == 0, out.expand_as(gradient))
    if softmax:
        (gradient,) = torch.autograd.grad(terms.total, worse)
        assert torch.equal(gradient == 0, out[..., 0])


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_where_nothing_takes_part_nothing_is_learned(scores: Any) -> None:
    head = small_batch()
    matched = torch.full(head.predictions.logits.shape[:2], IGNORED)
    branch = torch.zeros(matched.shape, requires_grad=True)
    branches = {"background": branch} if scores == "softmax" else {}
    predictions = replace(head.predictions, branches=branches)
    criterion = CrossEntropyCriterion(Given(matched), SmoothL1Box(), scores=scores)
    terms = criterion(predictions, head.targets)
    assert terms.total == terms.parts["examples"] == 0
    for gradient in gradients(terms.total, predictions):
        assert not gradient.any()


def test_a_not_a_number_that_takes_part_shows() -> None:
    head = small_batch()
    logits = head.predictions.logits.detach().index_fill(1, torch.tensor([5]), torch.nan)
    criterion = CrossEntropyCriterion(Given(torch.full(logits.shape[:2], -1)), SmoothL1Box())
    assert criterion(replace(head.predictions, logits=logits), head.targets).total.isnan()


def test_wrong_settings_and_branches_are_refused() -> None:
    given = Given(torch.zeros(0))
    with pytest.raises(ValueError, match="scores must be one of 'sigmoid', 'softmax', got 'tanh'"):
        CrossEntropyCriterion(given, SmoothL1Box(), scores="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="box_weight must be zero or more, got -1"):
        CrossEntropyCriterion(given, SmoothL1Box(), box_weight=-1)
    head = small_batch()
    with pytest.raises(ValueError, match="this criterion needs the branch 'background'"):
        CrossEntropyCriterion(given, SmoothL1Box(), scores="softmax")(*head)
