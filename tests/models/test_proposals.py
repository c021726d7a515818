"""The first stage: order of its outputs, and regions that are those of mmdetection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_iou

from rankdet.models.priors import AnchorGenerator
from rankdet.models.proposals import ProposalHead, Propose, with_known
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import Predictions, Priors, Regions

Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]
ANCHORS = AnchorGenerator(strides=(4, 8, 16, 32, 64), scale=8.0, octave_scales=1)
PADDED = (128, 160)


class Everywhere(Priors):
    """Priors none of which is taken to be on the padding, as in mmdetection."""

    def inside(self, sizes: Tensor) -> Tensor:
        return torch.ones(len(sizes), len(self.boxes), dtype=torch.bool)


def from_maps(data: dict[str, np.ndarray[Any, Any]], name: str, numbers: int) -> Tensor:
    maps = [torch.from_numpy(data[f"{name}_{level}"]).double() for level in range(5)]
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, numbers) for x in maps], 1)


def random_predictions(seed: int = 0, *, batch: int = 2) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    anchors = AnchorGenerator(strides=(8, 16), scale=2.0, octave_scales=1)
    priors = anchors((64, 64), device="cpu", dtype=torch.float32)
    logits = torch.randn(batch, len(priors.boxes), 1, generator=generator)
    codes = torch.randn(batch, len(priors.boxes), 4, generator=generator)
    return Predictions(logits, codes, priors, DeltaCoder())


def test_regions_are_those_of_mmdetection(golden: Golden) -> None:
    data = golden("predict/rpn.npz")
    whole = ANCHORS(PADDED, device="cpu", dtype=torch.float64)
    predictions = Predictions(
        logits=from_maps(data, "cls_score", 1),
        codes=from_maps(data, "bbox_pred", 4),
        priors=Everywhere(whole.boxes, whole.counts, whole.strides),
        coder=DeltaCoder(),
    )
    sizes = torch.from_numpy(np.stack([data["img_shape_0"], data["img_shape_1"]]))
    propose = Propose(int(data["nms_pre"]), float(data["nms_iou"]), int(data["max_per_img"]))
    found = propose(predictions, sizes)
    assert found.counts == (150, 150)
    for image, boxes in enumerate(found.split()):
        wanted = torch.from_numpy(data[f"boxes_{image}"])
        assert_close(boxes, wanted, rtol=0, atol=1e-8)
        with pytest.raises(AssertionError):
            assert_close(boxes, wanted + 1e-7, rtol=0, atol=1e-8)


def test_the_anchors_of_the_first_stage(golden: Golden) -> None:
    for size in ((320, 416), (512, 512)):
        data = golden(f"priors/anchors_rpn_{size[0]}x{size[1]}.npz")
        found = ANCHORS(size, device="cpu", dtype=torch.float64)
        for level, boxes in enumerate(found.boxes.split(found.counts)):
            assert len(boxes) == data[f"num_anchors_{level}"]
            wanted = torch.from_numpy(data[f"anchors_{level}"]).double()
            index = torch.from_numpy(data[f"anchor_index_{level}"]).long()
            assert_close(boxes[index], wanted, rtol=0, atol=1e-4)


def test_outputs_stand_in_the_order_of_the_priors() -> None:
    """Each number says where it came from; compared with the anchors' own places and shapes."""
    head = ProposalHead(1, 3)
    with torch.no_grad():
        head.shared.weight.zero_()[..., 1, 1] = 1.0
        head.shared.bias.zero_()  # type: ignore[union-attr]
        for layer in (head.to_logits, head.to_codes):
            layer.weight.fill_(1.0)
            assert layer.bias is not None
            layer.bias.copy_(torch.arange(len(layer.bias)) / 100)
    strides = (8, 16)
    maps = []
    for level in range(2):
        rows, columns = 4 // 2**level, 6 // 2**level
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        maps.append((1000 * level + 10 * y + x)[None, None].float())
    found = head(maps)
    anchors = AnchorGenerator(strides=strides, octave_scales=1)
    priors = anchors((32, 48), device="cpu", dtype=torch.float32)
    assert found.branches == {}
    start = 0
    for level, (stride, count) in enumerate(zip(strides, priors.counts, strict=True)):
        centres = (priors.centres[start : start + count] / stride).round()
        shape = torch.arange(count) % 3
        place = 1000 * level + 10 * centres[:, 1] + centres[:, 0]
        assert_close(found.logits[0, start : start + count, 0], place + shape / 100)
        codes = place[:, None] + (shape[:, None] * 4 + torch.arange(4)) / 100
        assert_close(found.codes[0, start : start + count], codes)
        start += count


def test_at_the_start_nothing_is_certain() -> None:
    maps = [torch.zeros(1, 8, 4, 4)]
    for prior in (0.01, 0.5):
        found = ProposalHead(8, 3, prior=prior)(maps)
        assert_close(found.logits.sigmoid(), torch.full((1, 48, 1), prior))
        assert not found.codes.any()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 100),
    candidates=st.sampled_from([1, 7, 1000]),
    number=st.sampled_from([1, 20, 1000]),
    sizes=st.sampled_from([((64, 64), (64, 64)), ((64, 64), (30, 17)), ((1, 1), (64, 3))]),
)
def test_regions_are_distinct_and_within_the_image(
    seed: int, candidates: int, number: int, sizes: tuple[tuple[int, int], ...]
) -> None:
    predictions = random_predictions(seed)
    found = Propose(candidates, 0.7, number)(predictions, torch.tensor(sizes))
    for boxes, (height, width) in zip(found.split(), sizes, strict=True):
        assert 0 < len(boxes) <= min(number, 2 * candidates)
        assert ((boxes >= 0) & (boxes <= torch.tensor([width, height] * 2))).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        # There are two levels, so of any three two are of one level and do not overlap this much.
        alike = (box_iou(boxes, boxes) > 0.7 + 1e-6).float().fill_diagonal_(0)
        assert (alike @ alike @ alike).trace() == 0
    assert found.image.bincount(minlength=2).tolist() == list(found.counts)
    assert (found.image.diff() >= 0).all()


def test_the_best_come_first_and_levels_do_not_disturb_each_other() -> None:
    predictions = random_predictions(batch=1)
    sizes = torch.tensor([[64, 64]])
    whole = Propose(10_000, 0.7, 10_000)(predictions, sizes).boxes
    few = Propose(10_000, 0.7, 5)(predictions, sizes).boxes
    assert torch.equal(few, whole[:5])
    everything = Propose(10_000, 1.0, 10_000)(predictions, sizes).boxes
    order = predictions.logits[0, :, 0].argsort(descending=True)
    boxes = predictions.coder.decode(predictions.priors.boxes, predictions.codes[0])[order]
    boxes = boxes.clamp(0, 64)
    assert_close(everything, boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)])
    # What the finer level proposes is the same where the coarser one has nothing to say.
    finer, _ = predictions.priors.counts
    logits = predictions.logits.clone()
    logits[:, finer:] = -torch.inf
    alone = Propose(10_000, 0.7, 10_000)(replace(predictions, logits=logits), sizes).boxes
    known = {tuple(box) for box in whole.tolist()}
    assert all(tuple(box) in known for box in alone.tolist())
    assert 0 < len(alone) < len(whole)


def test_what_is_not_a_number_is_no_region_and_there_may_be_none() -> None:
    predictions = random_predictions()
    sizes = torch.tensor([[64, 64]] * 2)
    logits = predictions.logits.clone()
    logits[0] = torch.nan
    found = Propose()(replace(predictions, logits=logits), sizes)
    assert found.counts[0] == 0 < found.counts[1]
    codes = torch.full_like(predictions.codes, torch.nan)
    found = Propose()(replace(predictions, codes=codes), sizes)
    assert found.counts == (0, 0)
    assert found.boxes.shape == (0, 4)
    assert found.image.shape == (0,)


def test_regions_are_constants() -> None:
    predictions = random_predictions()
    predictions.codes.requires_grad_()
    found = Propose()(predictions, torch.tensor([[64, 64]] * 2))
    assert not found.boxes.requires_grad
    half = replace(predictions, logits=predictions.logits.bfloat16(),
                   codes=predictions.codes.bfloat16())  # fmt: skip
    assert Propose()(half, torch.tensor([[64, 64]] * 2)).boxes.dtype == torch.float32


def test_known_objects_come_first_but_for_padding() -> None:
    regions = Regions(torch.tensor([[0.0, 0, 9, 9], [1, 1, 8, 8], [2, 2, 7, 7]]), (1, 2))
    known = torch.tensor(
        [[[3.0, 3, 4, 4], [0, 0, 0, 0]], [[-5.0, 5, 90, 80], [9, 9, 9, 30]]], dtype=torch.float64
    )
    sizes = torch.tensor([[20, 20], [40, 50]])
    found = with_known(regions, known, sizes)
    assert found.counts == (2, 3)
    assert found.boxes.dtype == torch.float32
    assert found.boxes.tolist() == [
        [3, 3, 4, 4], [0, 0, 9, 9],
        [0, 5, 50, 40], [1, 1, 8, 8], [2, 2, 7, 7],
    ]  # fmt: skip
    none = with_known(Regions(torch.zeros(0, 4), (0, 0)), torch.zeros(2, 0, 4), sizes)
    assert none.counts == (0, 0)
    with pytest.raises(ValueError, match=r"known must have shape \[2, G, 4\], got \[1, 2, 4\]"):
        with_known(regions, known[:1], sizes)


@pytest.mark.parametrize(("name", "value"), [("candidates", 0), ("nms_iou", 1.5), ("number", 0)])
def test_wrong_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        Propose(**{name: value})  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    predictions = random_predictions()
    with pytest.raises(ValueError, match=r"sizes must have shape \[2, 2\], got \[1, 2\]"):
        Propose()(predictions, torch.tensor([[64, 64]]))
    two = replace(predictions, logits=predictions.logits.expand(-1, -1, 2))
    with pytest.raises(ValueError, match=r"logits must have shape \[B, \d+, 1\]"):
        Propose()(two, torch.tensor([[64, 64]] * 2))
    with pytest.raises(ValueError, match="prior must be between 0 and 1, got 1"):
        ProposalHead(8, 3, prior=1)
    with pytest.raises(ValueError, match="per_place must be above zero, got 0"):
        ProposalHead(8, 0)
