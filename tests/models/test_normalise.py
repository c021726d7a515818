"""Normalisation of images: torchvision's, in any precision, and no part of saved weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.transforms.v2 import functional

from rankdet.models.atss import atss
from rankdet.models.backbones import build_backbone
from rankdet.models.faster_rcnn import faster_rcnn
from rankdet.models.normalise import MEAN, STD, Normalise

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}


def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 7, 5), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_it_is_that_of_torchvision(dtype: torch.dtype) -> None:
    batch, mean, std = images(), [10.0, 120.0, 200.0], [5.0, 60.0, 250.0]
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of the buffers
    try:
        normalise = Normalise(mean=mean, std=std)
    finally:
        torch.set_default_dtype(usual)
    wanted = functional.normalize(batch.double(), mean, std).to(dtype)
    atol = TOLERANCE[dtype] * wanted.abs().max().item()
    for given in (batch, batch.to(dtype), batch.double()):
        found = normalise(given)
        assert found.dtype == normalise.dtype == dtype
        assert_close(found, wanted, rtol=0, atol=atol)
        with pytest.raises(AssertionError):
            assert_close(found + 10 * atol, wanted, rtol=0, atol=atol)


def test_the_default_is_that_of_imagenet() -> None:
    batch = images().float()
    assert_close(Normalise()(batch), functional.normalize(batch, list(MEAN), list(STD)))
    # As in torchvision's recipes, which have colours from 0 to 1.
    assert_close(torch.tensor(MEAN) / 255, torch.tensor([0.485, 0.456, 0.406]))
    assert_close(torch.tensor(STD) / 255, torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize(
    ("make", "stages", "parts"),
    [
        (atss, (3, 4, 5), {"backbone", "neck", "head"}),
        (faster_rcnn, (2, 3, 4, 5), {"backbone", "neck", "first", "second"}),
    ],
    ids=["one stage", "two stages"],
)
def test_saved_weights_hold_nothing_of_it(
    make: Callable[..., nn.Module], stages: tuple[int, ...], parts: set[str]
) -> None:
    model = make(3, backbone=build_backbone("tiny", stages=stages), channels=16)
    names = model.state_dict().keys()
    assert {name.partition(".")[0] for name in names} == parts
    assert not Normalise().state_dict()
    assert model.load_state_dict(dict(model.state_dict()), strict=True)
    # Still it goes where the weights go.
    buffers = dict(model.double().named_buffers())
    assert buffers["normalise.scale"].dtype == buffers["normalise.shift"].dtype == torch.float64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (1.0,)}, r"mean must be three numbers, got \(1.0,\)"),
        ({"std": (1.0, 2.0)}, r"std must be three numbers, got \(1.0, 2.0\)"),
        ({"std": (1.0, 0.0, 1.0)}, r"std must be above zero, got \(1.0, 0.0, 1.0\)"),
    ],
)
def test_what_is_no_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalise(**settings)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, H, W\], got "):
        Normalise()(torch.zeros(shape))
