"""Whole detectors: normalisation, precision, memory format, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rankdet.assign.atss import ATSSAssigner
from rankdet.criteria import (
    ALRPCriterion,
    DenseCriterion,
    FocalClassification,
    IoUBox,
    ScalarBalance,
)
from rankdet.models.atss import atss
from rankdet.models.backbones import build_backbone
from rankdet.models.detector import Detector
from rankdet.models.postprocess import PostProcess
from rankdet.models.retinanet import retinanet
from rankdet.structures import Targets

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def small(make: Callable[..., Detector] = retinanet, **settings: Any) -> Detector:
    backbone = build_backbone("tiny")
    given: dict[str, Any] = {"channels": 16, "levels": 4, "convs": 1, **settings}
    return make(3, backbone=backbone, **given)


def images(*size: int) -> Tensor:
    return torch.randint(0, 256, size or (2, 3, 64, 96), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("make", "per_place", "branches"),
    [(retinanet, 6, frozenset()), (atss, 1, frozenset({"centreness"}))],
)
def test_there_is_a_prediction_for_each_prior(
    make: Callable[..., Detector], per_place: int, branches: frozenset[str]
) -> None:
    model = small(make, levels=5)
    # A size that no stride divides.
    found = model(images(2, 3, 65, 100))
    places = 9 * 13 + 5 * 7 + 3 * 4 + 2 * 2 + 1
    assert found.logits.shape == (2, places * per_place, 3)
    assert found.codes.shape == (2, places * per_place, 4)
    assert found.priors.strides == (8, 16, 32, 64, 128)
    assert found.priors.boxes.shape == (places * per_place, 4)
    assert model.classes == 3
    assert model.branches == branches == found.branches.keys()


def test_the_published_shapes_of_anchors() -> None:
    model = retinanet(3, backbone=build_backbone("tiny"), channels=16)
    first = model(images()).priors.boxes[:6]
    widths, heights = (first[:, 2:] - first[:, :2]).unbind(1)
    assert_close(heights / widths, torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    assert_close((heights * widths).sqrt(), 32 * torch.tensor([1, 2**0.5]).repeat(3))
    one = small(atss, levels=3)(images()).priors.boxes[0]
    assert one.tolist() == [-32, -32, 32, 32]


def test_images_are_normalised_inside() -> None:
    model = small().eval()
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = images()
    model(batch)
    model(batch.float())
    mean, std = (torch.tensor(x)[None, :, None, None] for x in (MEAN, STD))
    assert_close(seen[0], (batch - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(*seen)


def test_in_float64_the_numbers_are_the_same() -> None:
    model = small(atss).eval()
    batch = images()
    single = model(batch)
    double = model.double()(batch)
    assert double.logits.dtype == double.priors.boxes.dtype == torch.float64
    assert_close(single.logits.double(), double.logits, rtol=1e-4, atol=1e-4)


def test_an_image_is_predicted_alike_alone_and_in_a_batch() -> None:
    model = small(atss).eval()
    batch = images()
    assert_close(model(batch).codes[1:], model(batch[1:]).codes, rtol=1e-4, atol=1e-5)


def objects() -> Targets:
    boxes = [torch.tensor([[10.0, 10, 40, 40], [50, 20, 90, 60]]), torch.tensor([[5.0, 5, 30, 50]])]
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    crowd = [torch.zeros(2, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)]
    return Targets.stack(boxes, labels, crowd, [(64, 96)] * 2)


@pytest.mark.parametrize("make", [retinanet, atss])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_of_training_reaches_every_weight(
    make: Callable[..., Detector], channels_last: bool, bf16: bool
) -> None:
    model = small(make)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    centreness = "centreness" in model.branches
    criterion = DenseCriterion(
        ATSSAssigner(), FocalClassification(), IoUBox(), centreness=centreness
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        predictions = model(images())
        terms = criterion(predictions, objects())
    assert predictions.priors.boxes.dtype == torch.float32
    terms.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    first = next(model.backbone.parameters())
    assert first.grad is not None
    assert first.grad.any()


def test_channels_last_is_kept_from_the_images_to_the_head() -> None:
    model = small(atss).to(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    model.head.to_logits.register_forward_hook(lambda _, __, output: seen.append(output))
    model(images())
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_a_detector_learns_two_images() -> None:
    torch.manual_seed(1)
    model = small(atss, centreness=False, levels=3, scale=4.0, octave_scales=2, class_prior=0.1)
    criterion = ALRPCriterion(ATSSAssigner(), ScalarBalance(5.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch, targets = images(), objects()
    for _ in range(40):
        terms = criterion(model(batch), targets)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    assert terms.parts["classification"] < 0.05
    found = PostProcess()(model(batch), targets.sizes)
    for image, expected in enumerate(targets.labels):
        labels = expected[expected >= 0]
        best = found[image].labels[: len(labels)]
        assert best.sort().values.tolist() == labels.sort().values.tolist()


def test_what_does_not_fit_is_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, H, W\], got \[2, 1, "):
        model(images(2, 1, 64, 64))
    backbone, neck, head = model.backbone, model.neck, model.head
    other = Detector(backbone, neck, head, small(atss).priors, model.coder)
    with pytest.raises(ValueError, match=r"the head predicts for .* priors, but there are"):
        other(images())
    with pytest.raises(ValueError, match="mean must be three numbers"):
        Detector(backbone, neck, head, model.priors, model.coder, mean=(1.0,))
    with pytest.raises(ValueError, match="std must be above zero"):
        Detector(backbone, neck, head, model.priors, model.coder, std=(1.0, 0.0, 1.0))
