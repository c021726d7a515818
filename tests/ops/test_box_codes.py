"""Box coders: published values, and that each is the inverse of itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.ops import box_iou

from rankdet.ops.box_codes import DeltaCoder, DistanceCoder, LogDistanceCoder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from rankdet.structures import BoxCoder

    Golden = Callable[[str], dict[str, np.ndarray]]

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}  # float64 against float64 of other code
CODERS: list[BoxCoder] = [
    DeltaCoder(),
    DeltaCoder(stds=(1.0, 2.0, 0.5, 0.1), max_log_ratio=9.0),
    DistanceCoder(),
    DistanceCoder(unit="side"),
]
# These have a code only for a box that holds the centre of the prior.
AROUND: list[BoxCoder] = [
    DistanceCoder(rectify=True),
    DistanceCoder(unit="side", rectify=True),
    LogDistanceCoder(least=1e-3, most=1e3),
    LogDistanceCoder(unit="pixel", most=2.0**16),
]
EVERY = pytest.mark.parametrize("coder", CODERS + AROUND, ids=repr)


def boxes_of(count: int, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, count, 2, dtype=torch.float64, generator=generator)
    return torch.cat([corner * 200, corner * 200 + 5 + side * 95], 1)


def boxes_for(coder: BoxCoder, priors: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Return one box for each prior that this coder has a code for."""
    boxes = boxes_of(len(priors), seed=seed)
    if coder in CODERS:
        return boxes
    centre = (priors[:, :2] + priors[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([centre - sides / 3, centre + sides], 1)


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
def test_decoding_undoes_encoding(coder: BoxCoder) -> None:
    priors = boxes_of(50, seed=0)
    boxes = boxes_for(coder, priors, seed=1)
    assert_close(coder.decode(priors, coder.encode(priors, boxes)), boxes, **EXACT)


@EVERY
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_iou_is_the_same_in_the_frame_of_the_prior(coder: BoxCoder, seed: int) -> None:
    prior = boxes_of(1, seed=seed)
    codes = coder.encode(prior, boxes_of(9, seed=seed + 1))
    boxes = coder.decode(prior, codes)
    relative = coder.decode_relative(codes)
    assert_close(box_iou(relative, relative), box_iou(boxes, boxes), **EXACT)
    unit = torch.tensor([[-0.5, -0.5, 0.5, 0.5]], dtype=torch.float64)
    assert_close(relative, coder.decode(unit, codes), **EXACT)


@EVERY
def test_gradient_is_the_derivative(coder: BoxCoder) -> None:
    priors = boxes_of(6, seed=0)
    codes = coder.encode(priors, boxes_for(coder, priors, seed=1)).requires_grad_()
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
def test_bfloat16_codes_are_decoded_in_float32(coder: BoxCoder) -> None:
    priors, codes = boxes_of(5, seed=0).float(), torch.randn(5, 4).bfloat16()
    assert coder.decode(priors, codes).dtype == torch.float32
    assert_close(coder.decode(priors, codes), coder.decode(priors, codes.float()))
    assert_close(coder.decode_relative(codes), coder.decode_relative(codes.float()))
    assert coder.encode(priors, priors).dtype == torch.float32


@EVERY
def test_a_box_that_is_not_finite_stays_so(coder: BoxCoder) -> None:
    prior = torch.tensor([0.0, 0.0, 8.0, 8.0])
    assert coder.encode(prior, torch.full((4,), torch.nan)).isnan().all()
    assert coder.decode(prior, torch.full((4,), torch.nan)).isnan().all()


def test_distances_in_sides_are_those_in_pixels_divided() -> None:
    data = boxes_of(40, seed=0), boxes_of(40, seed=1)
    priors, boxes = data
    width, height = (priors[:, 2:] - priors[:, :2]).unbind(1)
    sides = torch.stack([width, height, width, height], 1)
    pixels = DistanceCoder().encode(priors, boxes)
    assert_close(DistanceCoder(unit="side").encode(priors, boxes) * sides, pixels, **EXACT)
    limited = (pixels / sides).clamp(0.25, 3)
    codes = LogDistanceCoder(least=0.25, most=3).encode(priors, boxes)
    assert_close(codes, limited.log(), **EXACT)
    assert (limited == 0.25).any()
    assert (limited == 3).any()
    assert_close(DistanceCoder().decode(priors, limited * sides),
                 LogDistanceCoder().decode(priors, codes), **EXACT)  # fmt: skip


@pytest.mark.parametrize("case", ["few", "many"])
def test_targets_of_foveabox_are_those_of_mmdetection(golden: Golden, case: str) -> None:
    data, levels = golden(f"assign/{case}.npz"), golden("assign/anchors.npz")
    counts = torch.from_numpy(levels["featmap_sizes"].prod(1))
    edges = 2 * torch.from_numpy(levels["strides"]).repeat_interleave(counts)[:, None]
    points, boxes = double(data["points"]), double(data["gt_boxes"])
    priors = torch.cat([points - edges / 2, points + edges / 2], 1)
    index = torch.from_numpy(data["fovea_alrp_pos_index"])
    wanted = double(data["fovea_alrp_pos_box_targets"])
    codes = LogDistanceCoder().encode(priors[index, None], boxes)  # for each object
    assert (codes - wanted[:, None]).abs().amax(2).amin(1).max() < 1e-10
    assert len(index) > 10


def test_negative_codes_are_distances_of_0_if_rectified() -> None:
    prior = torch.tensor([0.0, 0.0, 16.0, 16.0])
    coder = DistanceCoder(unit="side", rectify=True)
    codes = torch.tensor([-1.0, 0.5, 0.0, -0.1], requires_grad=True)
    box = coder.decode(prior, codes)
    assert box.tolist() == [8, 0, 8, 8]
    (gradient,) = torch.autograd.grad(box.sum(), codes)
    assert gradient.tolist() == [0, -16, 16, 0]  # at 0 a box can still open
    assert coder.decode_relative(codes).tolist() == [0, -0.5, 0, 0]
    # What the network is to say is not rectified.
    assert coder.encode(prior, torch.tensor([12.0, 0.0, 16.0, 8.0])).tolist() == [
        -0.25,
        0.5,
        0.5,
        0,
    ]


def test_logarithms_are_limited_to_what_is_no_overflow() -> None:
    prior = torch.tensor([0.0, 0.0, 16.0, 16.0])
    coder = LogDistanceCoder()
    for sign in (1, -1):
        codes = torch.full((4,), sign * 1e6, requires_grad=True)
        reach = 16 * math.exp(sign * 12)
        box = coder.decode(prior, codes)
        wanted = torch.tensor([8 - reach, 8 - reach, 8 + reach, 8 + reach])
        assert_close(box, wanted)
        (gradient,) = torch.autograd.grad(box.sum(), codes)
        assert gradient.eq(0).all()
    # Targets stop earlier than predictions.
    codes = torch.full((4,), 5.0)
    assert coder.decode(prior, codes)[2] > 16 * 16
    again = coder.encode(prior, coder.decode(prior, codes))
    assert_close(again, torch.full((4,), math.log(16)))
    beside = coder.encode(prior, torch.tensor([9.0, 9.0, 10.0, 10.0]))
    assert_close(beside[:2], torch.full((2,), math.log(1 / 16)))


@pytest.mark.parametrize(
    "coder",
    [DistanceCoder(unit="side"), LogDistanceCoder()],
    ids=repr,
)
def test_a_point_is_no_unit(coder: BoxCoder) -> None:
    point, box = torch.tensor([4.0, 4.0, 4.0, 4.0]), torch.tensor([0.0, 0.0, 8.0, 8.0])
    assert coder.encode(point, box).isnan().all()
    assert coder.decode(point, torch.zeros(4)).isnan().all()


def test_a_box_of_no_size_has_no_delta_to_learn() -> None:
    codes = DeltaCoder().encode(torch.tensor([0.0, 0, 8, 8]), torch.tensor([4.0, 4, 4, 4]))
    assert codes.tolist() == [0, 0, -torch.inf, -torch.inf]


@EVERY
def test_wrong_tensors_are_refused_by_name(coder: BoxCoder) -> None:
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
    for make in (DistanceCoder, LogDistanceCoder):
        with pytest.raises(ValueError, match="unit must be one of 'pixel', 'side', got 'stride'"):
            make(unit="stride")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"least must be above zero, got 0\.0"):
        LogDistanceCoder(least=0.0)
    with pytest.raises(
        ValueError, match=r"most must be above least, got least=0\.0625, most=0\.01"
    ):
        LogDistanceCoder(most=0.01)
    with pytest.raises(ValueError, match="max_log must be above zero"):
        LogDistanceCoder(max_log=0)
