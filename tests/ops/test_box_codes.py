"""Box coders: published values, and that each is the inverse of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.ops import box_iou

from rankdet.ops.box_codes import DeltaCoder, DistanceCoder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}  # float64 against float64 of other code
CODERS = [DeltaCoder(), DeltaCoder(stds=(1.0, 2.0, 0.5, 0.1), max_log_ratio=9.0), DistanceCoder()]
EVERY = pytest.mark.parametrize("coder", CODERS, ids=repr)


def boxes_of(count: int, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, count, 2, dtype=torch.float64, generator=generator)
    return torch.cat([corner * 200, corner * 200 + 5 + side * 95], 1)


def double(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(array).double()


@pytest.mark.parametrize("name", ["std1", "std_frcnn"])
def test_deltas_are_those_of_mmdetection(golden: Golden, name: str) -> None:
    data = golden("priors/delta_coder.npz")
    priors, boxes, deltas = (double(data[key]) for key in ("priors", "gt_boxes", "deltas"))
    coder = DeltaCoder(stds=tuple(data[f"target_stds_{name}"].tolist()))
    assert_close(coder.encode(priors, boxes), double(data[f"encoded_{name}"]), **EXACT)
    assert_close(coder.decode(priors, deltas), double(data[f"decoded_{name}"]), **EXACT)
    # Broadcasting is all that boxes per class need.
    per_class = double(data["deltas_3class"]).view(-1, 3, 4)
    wanted = double(data[f"decoded_3class_{name}"]).view(-1, 3, 4)
    assert_close(coder.decode(priors[:, None], per_class), wanted, **EXACT)
    assert (coder.decode(priors, deltas) - coder.decode(priors, deltas + 1e-9)).abs().max() > 1e-9


def test_distances_are_those_of_mmdetection(golden: Golden) -> None:
    data = golden("priors/distance_coder.npz")
    points, distances, boxes = (double(data[key]) for key in ("points", "distances", "gt_boxes"))
    priors = points.repeat(1, 2)
    coder = DistanceCoder()
    assert_close(coder.decode(priors, distances), double(data["decoded"]), **EXACT)
    assert_close(coder.encode(priors, boxes), double(data["encoded"]), **EXACT)


@EVERY
def test_decoding_undoes_encoding(coder: DeltaCoder | DistanceCoder) -> None:
    priors, boxes = boxes_of(50, seed=0), boxes_of(50, seed=1)
    assert_close(coder.decode(priors, coder.encode(priors, boxes)), boxes, **EXACT)


@EVERY
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_iou_is_the_same_in_the_frame_of_the_prior(
    coder: DeltaCoder | DistanceCoder, seed: int
) -> None:
    prior, boxes = boxes_of(1, seed=seed), boxes_of(9, seed=seed + 1)
    codes = coder.encode(prior, boxes)
    relative = coder.decode_relative(codes)
    assert_close(box_iou(relative, relative), box_iou(boxes, boxes), **EXACT)
    if isinstance(coder, DeltaCoder):
        unit = torch.tensor([[-0.5, -0.5, 0.5, 0.5]], dtype=torch.float64)
        assert_close(relative, coder.decode(unit, codes), **EXACT)
    else:
        assert_close(relative, coder.decode(torch.zeros_like(prior), codes), **EXACT)


@EVERY
def test_gradient_is_the_derivative(coder: DeltaCoder | DistanceCoder) -> None:
    priors = boxes_of(6, seed=0)
    codes = coder.encode(priors, boxes_of(6, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: coder.decode(priors, c), codes)
    assert torch.autograd.gradcheck(coder.decode_relative, codes)


def test_no_code_makes_a_box_of_absurd_size() -> None:
    prior = torch.tensor([0.0, 0.0, 16.0, 16.0])
    for sign, side in ((1, 1000.0), (-1, 16 * 16 / 1000)):
        codes = torch.tensor([0.0, 0.0, sign * 1e6, sign * 1e6], requires_grad=True)
        box = DeltaCoder().decode(prior, codes)
        assert_close(box[2:] - box[:2], torch.tensor([side, side]))
        (gradient,) = torch.autograd.grad(box.sum(), codes)
        assert gradient[2:].eq(0).all()


@EVERY
def test_bfloat16_codes_are_decoded_in_float32(coder: DeltaCoder | DistanceCoder) -> None:
    priors, codes = boxes_of(5, seed=0).float(), torch.randn(5, 4).bfloat16()
    assert coder.decode(priors, codes).dtype == torch.float32
    assert_close(coder.decode(priors, codes), coder.decode(priors, codes.float()))
    assert_close(coder.decode_relative(codes), coder.decode_relative(codes.float()))
    assert coder.encode(priors, priors).dtype == torch.float32


@EVERY
def test_a_box_that_is_not_finite_stays_so(coder: DeltaCoder | DistanceCoder) -> None:
    prior = torch.tensor([0.0, 0.0, 8.0, 8.0])
    assert coder.encode(prior, torch.full((4,), torch.nan)).isnan().all()
    assert coder.decode(prior, torch.full((4,), torch.nan)).isnan().all()


def test_a_box_of_no_size_has_no_delta_to_learn() -> None:
    codes = DeltaCoder().encode(torch.tensor([0.0, 0, 8, 8]), torch.tensor([4.0, 4, 4, 4]))
    assert codes.tolist() == [0, 0, -torch.inf, -torch.inf]


@EVERY
def test_wrong_tensors_are_refused_by_name(coder: DeltaCoder | DistanceCoder) -> None:
    boxes = torch.zeros(3, 4)
    with pytest.raises(TypeError, match=r"priors must be floating point, got torch\.int64"):
        coder.encode(boxes.long(), boxes)
    with pytest.raises(ValueError, match=r"codes must have shape \[\.\.\., 4\], got \[3, 5\]"):
        coder.decode(boxes, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="codes must have shape"):
        coder.decode_relative(torch.tensor(0.0))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stds must be above zero, got 0\.0"):
        DeltaCoder(stds=(0.1, 0.0, 0.2, 0.2))
    with pytest.raises(ValueError, match="stds must be four numbers"):
        DeltaCoder(stds=(0.1, 0.1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_log_ratio must be above zero"):
        DeltaCoder(max_log_ratio=0)
