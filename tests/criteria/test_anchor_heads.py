"""RetinaNet and ATSS with focal loss: published whole heads, through the usual criteria."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from golden_heads import Head, from_maps, read_head
from torch import Tensor
from torch.testing import assert_close

from rankdet.assign.atss import ATSSAssigner
from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria import DenseCriterion, FocalClassification, IoUBox, SmoothL1Box
from rankdet.criteria.dense import Box, _centreness
from rankdet.criteria.matching import match
from rankdet.models.priors import AnchorGenerator
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Data = dict[str, np.ndarray[Any, Any]]
    Golden = Callable[[str], Data]

# Relative to the largest number of each tensor. In mmdetection 1.2e-7 is added to normalisers, of
# ATSS to one that is 1 for each level, and GIoU has another small number in its denominator.
TOLERANCE = {torch.float64: 5e-8, torch.float32: 1e-5}
ATSS = {torch.float64: 5e-7, torch.float32: 1e-5}
EVERY_DTYPE = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
PLAIN = (1.0, 1.0, 1.0, 1.0)


class Published(NamedTuple):
    """The settings of a file."""

    octave_scales: int
    stds: tuple[float, float, float, float]
    box: Box
    box_weight: float


HEADS = {
    "retina_focal_l1": Published(3, PLAIN, SmoothL1Box(beta=0.0), 1.0),
    "retina_focal_smoothl1_one_empty_image": Published(2, PLAIN, SmoothL1Box(beta=1 / 9), 1.0),
    "retina_focal_giou_decoded": Published(2, (0.1, 0.1, 0.2, 0.2), IoUBox("giou"), 2.0),
}


def read(golden: Golden, name: str, dtype: torch.dtype) -> tuple[Head, DenseCriterion, Data]:
    data, given = golden(f"losses_other/{name}.npz"), HEADS[name]
    anchors, coder = AnchorGenerator(octave_scales=given.octave_scales), DeltaCoder(given.stds)
    head = read_head(data, dtype=dtype, generator=anchors, coder=coder)
    criterion = DenseCriterion(
        MaxIoUAssigner(), FocalClassification(), given.box, box_weight=given.box_weight
    )
    return head, criterion, data


def require_equal(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = theirs.abs().max().item()
    assert scale > 0
    assert_close(ours.detach().double(), theirs.double(), rtol=0, atol=tolerance * scale)


def require_published(
    criterion: DenseCriterion, head: Head, data: Data, tolerance: float, divided_by: float = 1.0
) -> None:
    """Compare values and gradients with a published head.

    Args:
        criterion: the losses.
        head: predictions and ground truth.
        data: what was published.
        tolerance: relative to the largest number of each tensor.
        divided_by: by what more all losses are divided there.
    """
    terms = criterion(*head)
    named = {"classification": "loss_cls", "localisation": "loss_bbox"}
    wanted = [(head.predictions.logits, "loss_cls_cls_score", 5),
              (head.predictions.codes, "loss_bbox_bbox_pred", 4)]  # fmt: skip
    for branch in head.predictions.branches.values():
        named["centreness"] = "loss_centerness"
        wanted.append((branch, "loss_centerness_centerness", 1))
    for part, name in named.items():
        weight = criterion.box_weight if part == "localisation" else 1.0
        theirs = torch.from_numpy(data[name]).sum()  # one number for each level
        require_equal(terms.parts[part] * weight / divided_by, theirs, tolerance)
    found = torch.autograd.grad(terms.total, [tensor for tensor, _, _ in wanted])
    for ours, (_, name, numbers) in zip(found, wanted, strict=True):
        theirs = from_maps(data, f"grad_{name}", numbers).reshape(ours.shape)
        require_equal(ours / divided_by, theirs, tolerance)


@EVERY_DTYPE
@pytest.mark.parametrize("name", [name for name in HEADS if "empty" not in name])
def test_a_whole_retinanet_head_is_that_of_mmdetection(
    golden: Golden, name: str, dtype: torch.dtype
) -> None:
    head, criterion, data = read(golden, name, dtype)
    assert data["avg_factor"] == data["num_pos"]
    require_published(criterion, head, data, TOLERANCE[dtype])


@EVERY_DTYPE
@pytest.mark.parametrize("name", HEADS)
def test_the_anchors_of_a_retinanet_head_are_matched_as_in_mmdetection(
    golden: Golden, name: str, dtype: torch.dtype
) -> None:
    head, _, data = read(golden, name, dtype)
    matched = MaxIoUAssigner()(head.predictions.priors, head.targets).matched
    for image, ours in enumerate(matched):
        theirs = torch.from_numpy(data[f"assigned_gt_{image}"]).long()
        assert torch.equal(torch.where(ours == IGNORED, -1, ours + 1), theirs)
    assert (matched >= 0).sum() == data["num_pos"]
    levels = range(len(data["strides"]))
    weights = torch.cat([torch.from_numpy(data[f"label_weights_{i}"]) for i in levels], 1)
    assert torch.equal(matched == IGNORED, weights == 0)
    labels = torch.cat([torch.from_numpy(data[f"labels_{i}"]) for i in levels], 1).long()
    found = head.targets.labels.gather(1, matched.clamp(min=0))
    assert torch.equal(torch.where(matched >= 0, found, 5), labels)


@EVERY_DTYPE
def test_an_image_without_objects_does_not_count_as_a_positive(
    golden: Golden, dtype: torch.dtype
) -> None:
    """In mmdetection each image counts as one positive at least in what the losses are divided by,
    so that the same positives teach less if an image without objects is beside them, and a batch
    cut in two is another batch. Here only positives count; all else is the same.
    """
    head, criterion, data = read(golden, "retina_focal_smoothl1_one_empty_image", dtype)
    positives = int(data["num_pos"])
    assert data["avg_factor"] == positives + 1
    ratio = (positives + 1) / positives
    require_published(criterion, head, data, TOLERANCE[dtype], divided_by=ratio)
    with pytest.raises(AssertionError):
        require_published(criterion, head, data, TOLERANCE[dtype])


@EVERY_DTYPE
def test_a_whole_atss_head_is_that_of_mmdetection(golden: Golden, dtype: torch.dtype) -> None:
    data = golden("losses_other/atss.npz")
    anchors = AnchorGenerator(scale=8.0, octave_scales=1, ratios=(1.0,))
    head = read_head(data, dtype=dtype, generator=anchors)
    criterion = DenseCriterion(
        ATSSAssigner(), FocalClassification(), IoUBox("giou"), box_weight=2.0, centreness=True
    )
    matches = match(criterion.assigner, *head)
    assert matches.count == data["avg_factor"]
    classes = torch.full((2 * len(head.predictions.priors.boxes),), 5)
    classes[matches.places] = matches.labels
    levels = range(len(data["strides"]))
    labels = torch.cat([torch.from_numpy(data[f"labels_{i}"]) for i in levels], 1).long()
    assert torch.equal(classes.view(2, -1), labels)
    # All positives are on the finest level here.
    image, anchor = torch.from_numpy(data["pos_index_0"]).long().unbind(1)
    order = (image * len(head.predictions.priors.boxes) + anchor).argsort()
    theirs = torch.from_numpy(data["pos_centerness_targets_0"])[order]
    require_equal(_centreness(matches), theirs, ATSS[dtype])
    require_published(criterion, head, data, ATSS[dtype])
