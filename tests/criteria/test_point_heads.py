"""FoveaBox and FCOS through the criteria of all detectors: published whole heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from golden_heads import Head, from_flat, from_maps, read_head
from torch import Tensor
from torch.testing import assert_close

from rankdet.assign.fcos import FCOSAssigner
from rankdet.assign.fovea import FoveaAssigner
from rankdet.criteria import (
    ALRPCriterion,
    APClassification,
    DenseCriterion,
    FocalClassification,
    IoUBox,
    ScalarBalance,
    SmoothL1Box,
    match,
)
from rankdet.criteria.alrp import Frame
from rankdet.criteria.dense import _centreness
from rankdet.losses import localisation_errors
from rankdet.models.priors import PointGenerator
from rankdet.ops.box_codes import DistanceCoder, LogDistanceCoder
from rankdet.structures import Assigner, Predictions, Targets

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Data = dict[str, np.ndarray[Any, Any]]
    Golden = Callable[[str], Data]

# Relative to the largest number of each tensor. In mmdetection normalisers have 1.2e-7 added, and
# GIoU another small number in the denominator.
MMDET = {torch.float64: 2e-8, torch.float32: 1e-5}
# In the authors' code of aLRP FoveaBox takes another level's unit for most points, which only the
# small number in the denominator of GIoU notices.
ALRP = {torch.float64: 1e-8, torch.float32: 1e-5}
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}
# Theirs is 1e-6 px². In squares of base edges, 16 to 256 px, that is another number on each level.
EPS: dict[Frame, float] = {"pixels": 1e-6, "prior": 1e-6 / 32**2}
EVERY_DTYPE = pytest.mark.parametrize("dtype", list(MMDET), ids=["float64", "float32"])

STRIDES = (8, 16, 32, 64, 128)
EDGES = PointGenerator(STRIDES, tuple(2.0 * stride for stride in STRIDES))
SQUARES = PointGenerator(STRIDES, tuple(float(stride) for stride in STRIDES))
FCOS: dict[str, tuple[DistanceCoder, Assigner, IoUBox]] = {
    "fcos": (DistanceCoder(), FCOSAssigner(centre_radius=None), IoUBox("log_iou")),
    "fcos_center_norm_giou": (
        DistanceCoder(unit="side", rectify=True),
        FCOSAssigner(centre_radius=1.5),
        IoUBox("giou"),
    ),
}


def require_equal(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = theirs.abs().max().item()
    assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance * scale)


def number(data: Data, name: str) -> Tensor:
    """Return a loss, which may be one number for each level."""
    return torch.from_numpy(data[name]).sum()


def require_published(criterion: torch.nn.Module, head: Head, data: Data, tolerance: float) -> None:
    """Compare values and gradients with a published head."""
    terms = criterion(head.predictions, head.targets)
    named = {"classification": "loss_cls", "localisation": "loss_bbox"}
    wanted = [(head.predictions.logits, "loss_cls_cls_score", 5),
              (head.predictions.codes, "loss_bbox_bbox_pred", 4)]  # fmt: skip
    for branch in head.predictions.branches.values():
        named["centreness"] = "loss_centerness"
        wanted.append((branch, "loss_centerness_centerness", 1))
    for part, name in named.items():
        require_equal(terms.parts[part], number(data, name), tolerance)
    found = torch.autograd.grad(terms.total, [tensor for tensor, _, _ in wanted])
    for ours, (_, name, numbers) in zip(found, wanted, strict=True):
        theirs = from_maps(data, f"grad_{name}", numbers).reshape(ours.shape)
        assert theirs.any()
        require_equal(ours, theirs, tolerance)


def read_fovea(data: Data, dtype: torch.dtype) -> Head:
    return read_head(data, dtype=dtype, generator=EDGES, coder=LogDistanceCoder())


@EVERY_DTYPE
def test_a_whole_foveabox_head_is_that_of_mmdetection(golden: Golden, dtype: torch.dtype) -> None:
    data = golden("losses_other/fovea.npz")
    head = read_fovea(data, dtype)
    criterion = DenseCriterion(
        FoveaAssigner(),
        FocalClassification(alpha=0.4, gamma=1.5, count_images=True),
        SmoothL1Box(beta=0.11),
    )
    require_published(criterion, head, data, MMDET[dtype])
    assert match(FoveaAssigner(), *head).count == data["num_pos"]


@EVERY_DTYPE
@pytest.mark.parametrize("name", FCOS)
def test_a_whole_fcos_head_is_that_of_mmdetection(
    golden: Golden, name: str, dtype: torch.dtype
) -> None:
    data = golden(f"losses_other/{name}.npz")
    coder, assigner, box = FCOS[name]
    head = read_head(data, dtype=dtype, generator=SQUARES, coder=coder)
    criterion = DenseCriterion(assigner, FocalClassification(), box, centreness=True)
    require_published(criterion, head, data, MMDET[dtype])
    matched = assigner(head.predictions.priors, head.targets).matched
    assert (matched >= 0).sum() == data["num_pos"]
    labels = torch.cat([torch.from_numpy(data[f"labels_{level}"]) for level in range(5)], 1)
    found = head.targets.labels.gather(1, matched.clamp(min=0))
    assert torch.equal(torch.where(matched >= 0, found, 5), labels.long())


@EVERY_DTYPE
@pytest.mark.parametrize("case", ["one", "few", "overlap", "huge", "many"])
@pytest.mark.parametrize("radius", [None, 1.5])
def test_the_centreness_of_points_is_that_of_mmdetection(
    golden: Golden, case: str, radius: float | None, dtype: torch.dtype
) -> None:
    data, levels = golden(f"assign/{case}.npz"), golden("assign/anchors.npz")
    name = "fcos" if radius is None else "fcos_center"
    size = tuple(levels["image_size_hw"].tolist())
    priors = SQUARES(size, device="cpu", dtype=dtype)
    count = len(priors.boxes)
    predictions = Predictions(
        torch.zeros(1, count, 5), torch.zeros(1, count, 4), priors, DistanceCoder()
    )
    targets = Targets.stack(
        [torch.from_numpy(data["gt_boxes"]).to(dtype)],
        [torch.from_numpy(data["gt_labels"])],
        [torch.zeros(len(data["gt_labels"]), dtype=torch.bool)],
        [size],
    )
    matches = match(FCOSAssigner(centre_radius=radius), predictions, targets)
    assert torch.equal(matches.places, torch.from_numpy(data[f"{name}_pos_index"]))
    wanted = torch.from_numpy(data[f"{name}_pos_centerness"])
    require_equal(_centreness(matches), wanted, EXACT[dtype])


@EVERY_DTYPE
@pytest.mark.parametrize("name", ["fovea", "fovea_one_empty_image"])
@pytest.mark.parametrize("frame", EPS)
def test_a_whole_foveabox_head_with_alrp_loss_is_that_of_the_authors(
    golden: Golden, name: str, frame: Frame, dtype: torch.dtype
) -> None:
    data = golden(f"alrp_heads/{name}.npz")
    head = read_fovea(data, dtype)
    criterion = ALRPCriterion(
        FoveaAssigner(), ScalarBalance(1.0), loc_ranking="hard", eps=EPS[frame], frame=frame
    )
    require_published(criterion, head, data, ALRP[dtype])
    matches = match(FoveaAssigner(), *head)
    assert torch.equal(matches.targets.view(2, -1, 5), from_flat(data, "flat_targets"))
    pairs = matches.in_prior_frame() if frame == "prior" else matches.in_pixels()
    errors = localisation_errors(*pairs, eps=EPS[frame])
    published = torch.zeros(data["flat_targets"].shape, dtype=torch.float64)
    published[torch.from_numpy(data["pos_index"])] = torch.from_numpy(data["loc_error"])
    theirs = from_flat({**data, "placed": published.numpy()}, "placed").flatten()
    require_equal(errors.detach(), theirs[matches.entries], ALRP[dtype])


def test_in_the_frame_of_the_prior_eps_is_in_base_edges(golden: Golden) -> None:
    data = golden("alrp_heads/fovea.npz")
    head = read_fovea(data, torch.float64)
    criterion = ALRPCriterion(FoveaAssigner(), ScalarBalance(1.0), loc_ranking="hard")
    require_published(criterion, head, data, 1e-6)
    with pytest.raises(AssertionError):
        require_published(criterion, head, data, ALRP[torch.float64])


@EVERY_DTYPE
def test_a_whole_foveabox_head_with_ap_loss_is_that_of_the_authors(
    golden: Golden, dtype: torch.dtype
) -> None:
    data = golden("alrp_heads/ap_fovea.npz")
    head = read_fovea(data, dtype)
    criterion = DenseCriterion(
        FoveaAssigner(), APClassification(), SmoothL1Box(beta=0.11, per="number")
    )
    require_published(criterion, head, data, EXACT[dtype])
    kinds = match(FoveaAssigner(), *head).targets
    assert torch.equal(kinds.view(2, -1, 5), from_flat(data, "flat_targets"))
