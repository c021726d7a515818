"""Classification beside boxes: published heads, formulas written out, several processes."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from golden_heads import from_flat, from_maps, gradients, read_head, small_batch
from torch import Tensor, distributed, nn
from torch.testing import assert_close
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.assign.paa import PAAAssigner
from rankdet.criteria import (
    APClassification,
    DenseCriterion,
    FocalClassification,
    IoUBox,
    Matches,
    SmoothL1Box,
    match,
)
from rankdet.criteria.free_anchor import FreeAnchorCriterion
from rankdet.criteria.paa import FocalGIoUCost, PAACriterion
from rankdet.criteria.quality import (
    IoUWeighting,
    QualityFocalClassification,
    ScoreWeighting,
    VarifocalClassification,
)
from rankdet.losses.boxes import iou_loss
from rankdet.structures import Predictions, Targets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
def test_a_whole_head_with_ap_loss_is_that_of_the_authors(
    golden: Golden, dtype: torch.dtype
) -> None:
    data = golden("alrp_heads/ap_retina.npz")
    head = read_head(data, dtype=dtype)
    box = SmoothL1Box(beta=1.0, per="number")
    criterion = DenseCriterion(MaxIoUAssigner(), APClassification(), box)
    kinds = match(MaxIoUAssigner(), *head).targets
    assert torch.equal(kinds.view(2, -1, 5), from_flat(data, "flat_targets"))
    terms = criterion(head.predictions, head.targets)
    for_logits, for_codes = gradients(terms.total, head.predictions)
    pairs = [
        (terms.parts["classification"], torch.from_numpy(data["loss_cls"])),
        (terms.parts["localisation"], torch.from_numpy(data["loss_bbox"])),
        (for_logits, from_maps(data, "grad_loss_cls_cls_score", 5)),
        (for_codes, from_maps(data, "grad_loss_bbox_bbox_pred", 4)),
    ]
    for ours, theirs in pairs:
        scale = theirs.abs().max().item()
        assert_close(ours.double(), theirs, rtol=0, atol=TOLERANCE[dtype] * scale)


def by_hand(predictions: Predictions, targets: Targets) -> tuple[Matches, Tensor, int]:
    """Return the positives, the sum of focal losses, and their number."""
    matches = match(MaxIoUAssigner(), predictions, targets)
    kinds = matches.targets
    counted = kinds >= 0
    focal = sigmoid_focal_loss(
        predictions.logits.flatten()[counted],
        kinds[counted].to(predictions.logits.dtype),
        alpha=0.25,
        gamma=2.0,
        reduction="sum",
    )
    return matches, focal, matches.count


def test_focal_and_smooth_l1_are_sums_over_the_number_of_positives() -> None:
    head = small_batch(dtype=torch.float64)
    matches, focal, count = by_hand(*head)
    difference = (matches.codes - matches.wanted_codes()).abs()
    smooth = torch.where(difference < 0.1, difference**2 / 0.2, difference - 0.05).sum()
    expected = focal / count + smooth / count
    criterion = DenseCriterion(MaxIoUAssigner(), FocalClassification(), SmoothL1Box(beta=0.1))
    terms = criterion(*head)
    assert_close(terms.total, expected)
    for our, their in zip(
        gradients(terms.total, head.predictions),
        gradients(expected, head.predictions),
        strict=True,
    ):
        assert_close(our, their)


@pytest.mark.parametrize(
    ("kind", "published"),
    [("giou", generalized_box_iou_loss), ("ciou", complete_box_iou_loss)],
)
def test_focal_and_boxes(kind: str, published: Callable[[Tensor, Tensor], Tensor]) -> None:
    head = small_batch(dtype=torch.float64)
    matches, focal, count = by_hand(*head)
    pred, target = matches.in_pixels()
    expected = focal / count + 2 * published(pred, target.double()).sum() / count
    terms = DenseCriterion(MaxIoUAssigner(), FocalClassification(), IoUBox(kind), box_weight=2)(
        *head
    )
    assert_close(terms.total, expected, rtol=1e-6, atol=0)
    assert_close(
        terms.total.detach(), terms.parts["classification"] + 2 * terms.parts["localisation"]
    )


@pytest.mark.parametrize("objects", [(3, 2), (3, 0), (0, 0)])
def test_images_may_count_as_positives(objects: tuple[int, int]) -> None:
    head = small_batch(objects=objects, dtype=torch.float64)
    _, focal, count = by_hand(*head)
    part = FocalClassification(count_images=True)
    terms = DenseCriterion(MaxIoUAssigner(), part, IoUBox())(*head)
    assert_close(terms.parts["classification"], (focal / (count + 2)).detach())


def test_the_logarithm_of_the_iou() -> None:
    matches, *_ = by_hand(*small_batch(dtype=torch.float64))
    each = IoUBox("log_iou", eps=1e-6)(matches)
    pred, target = matches.in_pixels()
    assert_close(each, iou_loss(pred, target, form="log", eps=1e-6), rtol=0, atol=0)
    linear = IoUBox("iou", eps=1e-6)(matches)
    apart = linear > 1 - 1e-6
    assert not apart.all()
    assert_close((-each).exp()[~apart], (1 - linear)[~apart], rtol=1e-9, atol=0)


def test_ignored_priors_take_no_part_in_classification() -> None:
    head = small_batch()
    # The right half of the second image is padding.
    targets = replace(head.targets, sizes=torch.tensor([[64, 64], [64, 32]]))
    outside = ~head.predictions.priors.inside(targets.sizes)
    assert outside.any()
    for part in (FocalClassification(), APClassification()):
        criterion = DenseCriterion(MaxIoUAssigner(), part, IoUBox())
        before = criterion(head.predictions, targets)
        logits = head.predictions.logits.detach().clone()
        logits[outside] = torch.nan
        wild = replace(head.predictions, logits=logits.requires_grad_())
        after = criterion(wild, targets)
        assert torch.equal(before.total, after.total)
        for_logits, _ = gradients(after.total, wild)
        assert not for_logits[outside].any()
        assert for_logits[~outside].any()


def test_centreness_is_learned_and_weighs_the_boxes() -> None:
    head = small_batch(dtype=torch.float64)
    branch = torch.randn(2, 80, dtype=torch.float64, requires_grad=True)
    predictions = replace(head.predictions, branches={"centreness": branch})
    criterion = DenseCriterion(
        MaxIoUAssigner(), FocalClassification(), IoUBox(), box_weight=2.0, centreness=True
    )
    assert criterion.needs == {"centreness"}
    terms = criterion(predictions, head.targets)

    matches, focal, count = by_hand(*head)
    wanted = []
    for prior, box in zip(matches.priors.tolist(), matches.boxes.tolist(), strict=True):
        x, y = (prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2
        left, top, right, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
        inside = min(left, top, right, bottom) > 0
        ratio = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
        wanted.append(ratio**0.5 if inside else 0.0)
    weight = torch.tensor(wanted, dtype=torch.float64)
    assert weight.sum() > 1
    score = branch.flatten()[matches.places].sigmoid()
    losses = -(weight * score.log() + (1 - weight) * (1 - score).log())
    box = (generalized_box_iou_loss(*matches.in_pixels()) * weight).sum() / weight.sum()
    expected = focal / count + 2 * box + losses.sum() / count
    assert_close(terms.total, expected, rtol=1e-5, atol=0)
    assert_close(terms.parts["centreness"], (losses.sum() / count).detach().float())
    ours, theirs = (torch.autograd.grad(x, branch)[0] for x in (terms.total, expected))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_parts_are_checked_when_they_are_made() -> None:
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        FocalClassification(alpha=2)
    with pytest.raises(ValueError, match="gamma must be 0, or 1 and more"):
        FocalClassification(gamma=0.5)
    with pytest.raises(ValueError, match="delta must be zero or more"):
        APClassification(delta=-1)
    with pytest.raises(ValueError, match="beta must be zero or more"):
        SmoothL1Box(beta=-1)
    with pytest.raises(ValueError, match="per must be one of 'positive', 'number', got 'box'"):
        SmoothL1Box(per="box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind must be one of"):
        IoUBox(kind="l1")
    with pytest.raises(ValueError, match="box_weight must be zero or more"):
        DenseCriterion(MaxIoUAssigner(), FocalClassification(), IoUBox(), box_weight=-1)


# All that divide by something that has to be averaged over the processes.
SEVERAL: dict[str, Callable[[], nn.Module]] = {
    "focal": lambda: DenseCriterion(MaxIoUAssigner(), FocalClassification(), IoUBox()),
    "images count": lambda: DenseCriterion(
        MaxIoUAssigner(), FocalClassification(count_images=True), IoUBox()
    ),
    "centreness": lambda: DenseCriterion(
        MaxIoUAssigner(), FocalClassification(), IoUBox(), centreness=True
    ),
    "quality focal": lambda: DenseCriterion(
        MaxIoUAssigner(), QualityFocalClassification(), IoUBox(), weighting=ScoreWeighting()
    ),
    "varifocal": lambda: DenseCriterion(
        MaxIoUAssigner(), VarifocalClassification(), IoUBox(), weighting=IoUWeighting()
    ),
    "PAA": lambda: PAACriterion(PAAAssigner(FocalGIoUCost())),
    "FreeAnchor": lambda: FreeAnchorCriterion(bag=9),
}


def _parts(name: str, images: slice, *, objects: bool = True) -> tuple[nn.Module, Any, Targets]:
    """Return a criterion, and some images of a batch of three with what it needs."""
    criterion = SEVERAL[name]()
    head = small_batch(images=3, objects=(3, 2, 0))
    needs: Any = criterion.needs
    branches = {x: torch.linspace(-2, 2, 240).reshape(3, 80).requires_grad_() for x in needs}
    whole = [head.predictions.logits, head.predictions.codes, *branches.values()]
    predictions = replace(
        head.predictions,
        logits=whole[0][images],
        codes=whole[1][images],
        branches={key: value[images] for key, value in branches.items()},
    )
    targets = head.targets.of_images(images)
    if not objects:
        targets = replace(targets, labels=torch.full_like(targets.labels, -1))
    return criterion, (predictions, whole), targets


def _outcome(name: str, images: slice) -> list[Tensor]:
    """Return the loss, its gradients, and the loss of the same images without objects."""
    criterion, (predictions, whole), targets = _parts(name, images)
    total = criterion(predictions, targets).total
    found = [total.detach(), *torch.autograd.grad(total, whole)]
    criterion, (predictions, _), nobody = _parts(name, images, objects=False)
    return [*found, criterion(predictions, nobody).total.detach()]


def _one_process(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    outcomes = {}
    for name in SEVERAL:
        # The second process has one image with objects and one without.
        outcomes[name] = _outcome(name, slice(0, 1) if rank == 0 else slice(1, 3))
        for each in outcomes[name]:
            distributed.all_reduce(each)
        # As DistributedDataParallel does: the mean over the processes.
        for each in outcomes[name][:-1]:
            each /= 2
    if rank == 0:
        torch.save(outcomes, f"{folder}/outcomes.pt")
    distributed.destroy_process_group()


def test_two_processes_do_what_one_with_the_whole_batch_does(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_one_process, args=(r, str(tmp_path))) for r in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    outcomes = torch.load(tmp_path / "outcomes.pt")
    for name in SEVERAL:
        *ours, empty = outcomes[name]
        *theirs, alone = _outcome(name, slice(0, 3))
        for our, their in zip(ours, theirs, strict=True):
            assert_close(our, their, msg=f"{name}: {our} is not {their}")
        # Nothing to divide by but images: the sum over all processes, or their mean.
        assert_close(empty / (2 if name == "images count" else 1), alone)
