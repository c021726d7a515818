"""Box losses: published values, degenerate boxes, and the public door."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import ops

from rankdet.losses.boxes import (
    ciou_loss,
    diou_loss,
    giou_loss,
    iou_loss,
    localisation_errors,
    smooth_l1,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]
    BoxLoss = Callable[..., torch.Tensor]

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}  # float64 against float64 of other code
LARGEST = {iou_loss: 1.0, giou_loss: 2.0, diou_loss: 2.0, ciou_loss: 2.5}
EVERY = pytest.mark.parametrize("loss_of", list(LARGEST), ids=lambda loss: loss.__name__)

LINE = [0.0, 0.0, 19.0, 0.0]
DEGENERATE = {
    "points that coincide": ([5.0, 5, 5, 5], [5.0, 5, 5, 5]),
    "point in a box": ([5.0, 5, 5, 5], [0.0, 0, 10, 10]),
    "box around a point": ([0.0, 0, 10, 10], [5.0, 5, 5, 5]),
    "points apart": ([3.0, 3, 3, 3], [7.0, 9, 7, 9]),
    "lines that coincide": (LINE, LINE),
    "lines on one line": (LINE, [30.0, 0, 40, 0]),
    "lines apart": (LINE, [0.0, 2, 19, 2]),
    "line on a side": (LINE, [0.0, 0, 19, 19]),
    "corners of the first swapped": ([19.0, 19, 0, 0], [0.0, 0, 19, 19]),
    "corners of the second swapped": ([0.0, 0, 19, 19], [19.0, 19, 0, 0]),
    "both swapped": ([19.0, 19, 0, 0], [19.0, 19, 0, 0]),
    "one side swapped": ([19.0, 0, 0, 19], [0.0, 0, 19, 19]),
    "tiny": ([0.0, 0, 1e-4, 1e-4], [0.0, 0, 1e-4, 1e-4]),
    "far apart": ([0.0, 0, 19, 19], [1e9, 1e9, 1e9 + 1000, 1e9 + 1000]),
    "the same box": ([0.0, 0, 19, 19], [0.0, 0, 19, 19]),
    "touching": ([0.0, 0, 19, 19], [19.0, 0, 38, 19]),
}


def refuse_to_wait(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """Fail on what makes the host wait for the device: reading a value, counting a mask."""
    assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "item"}
    return func(*args, **(kwargs or {}))


RefuseToWait = type("RefuseToWait", (TorchDispatchMode,), {"__torch_dispatch__": refuse_to_wait})


def pair_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    pred, target = DEGENERATE[name]
    return torch.tensor([pred], dtype=dtype, requires_grad=True), torch.tensor(
        [target], dtype=dtype
    )


def pairs_of(
    data: dict[str, np.ndarray], rows: slice = slice(None)
) -> tuple[torch.Tensor, torch.Tensor]:
    pred, target = (torch.from_numpy(data[name]).double()[rows] for name in ("pred", "target"))
    return pred.requires_grad_(), target


def random_boxes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs that overlap more or less, sides 5 to 100 px."""
    generator = torch.Generator().manual_seed(seed)
    corner, side, moved, grown = torch.rand(
        4, count, 2, dtype=torch.float64, generator=generator
    ).unbind()
    corner, side = corner * 200, 5 + side * 95
    other, other_side = corner + (moved - 0.5) * 80, side * (0.5 + grown)
    return torch.cat([corner, corner + side], 1), torch.cat([other, other + other_side], 1)


def gradient_of(loss: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(loss.sum(), boxes)
    return gradient


def test_giou_of_ordinary_pairs_is_that_of_the_authors(golden: Golden) -> None:
    data = golden("giou.npz")
    ordinary = slice(0, int(data["num_random"]))
    pred, target = pairs_of(data, ordinary)
    # The authors add 1e-6 to union and enclosing area, as we do when asked to.
    loss = giou_loss(pred, target, eps=float(data["eps"]))
    assert_close(loss, torch.from_numpy(data["giou_loss"])[ordinary], **EXACT)
    published = torch.from_numpy(data["grad_pred"])[ordinary]
    assert_close(gradient_of(loss, pred), published, **EXACT)
    # Their other repository takes max(area, 1e-6): for ordinary pairs the bare area.
    bare = giou_loss(pred, target, eps=1e-12)
    assert_close(bare, torch.from_numpy(data["giou_loss_ranksort_repo"])[ordinary], **EXACT)
    iou = 1 - iou_loss(pred, target, eps=1e-12)
    assert_close(iou, torch.from_numpy(data["iou_ranksort_repo"])[ordinary], **EXACT)


def test_giou_of_odd_pairs_is_that_of_the_authors_where_theirs_is_right(golden: Golden) -> None:
    data = golden("giou.npz")
    odd = slice(int(data["num_random"]), None)
    pred, target = pairs_of(data, odd)
    loss = giou_loss(pred, target, eps=float(data["eps"]))
    gradient = gradient_of(loss, pred)
    swapped = ((pred[:, 2:] < pred[:, :2]) | (target[:, 2:] < target[:, :2])).any(1)
    published = torch.from_numpy(data["giou_loss"])[odd]
    # Swapped corners: two negative sides make a positive area there, and so a perfect match.
    assert (published[swapped] < 1e-8).all()
    assert (loss[swapped] >= 1).all()
    # All others within 1e-2: a pair of 1e-8 px² is nothing to us, one part in 100 to them.
    assert_close(loss[~swapped], published[~swapped], rtol=0.0, atol=1.01e-2)
    tiny = ((target[:, 2:] - target[:, :2]) - 1e-4).abs().amax(1) < 1e-9
    sized = ~swapped & ~tiny
    assert_close(loss[sized], published[sized], **EXACT)
    assert abs(data["grad_pred"]).max() > 1e7
    assert gradient.abs().max() < 1


def test_localisation_errors_are_those_of_the_authors(golden: Golden) -> None:
    data = golden("giou.npz")
    ordinary = slice(0, int(data["num_random"]))
    pred, target = pairs_of(data, ordinary)
    for tau, name in ((0.5, "loc_error_tau05"), (0.7, "loc_error_tau07")):
        errors = localisation_errors(pred, target, tau=tau, eps=float(data["eps"]))
        assert_close(errors, torch.from_numpy(data[name])[ordinary], **EXACT)


def test_giou_and_diou_are_those_of_mmdetection(golden: Golden) -> None:
    data = golden("losses_other/box_iou.npz")
    pred, target = pairs_of(data)
    weight = torch.from_numpy(data["weight"]).double()
    avg_factor = float(data["avg_factor"]) + torch.finfo(torch.float32).eps
    # There GIoU takes max(area, 1e-6), the bare area here; DIoU adds 1e-6 as ours does.
    for loss_of, name, eps in ((giou_loss, "giou", 1e-12), (diou_loss, "diou", 1e-6)):
        each = loss_of(pred, target, eps=eps)
        assert_close(each, torch.from_numpy(data[f"{name}_none"]), **EXACT)
        loss = (each * weight).sum() / avg_factor
        assert_close(loss, torch.tensor(data[name]), **EXACT)
        published = torch.from_numpy(data[f"{name}_grad"])
        assert_close(gradient_of(loss, pred), published, **EXACT)


def test_ciou_and_iou_are_those_of_mmdetection_up_to_their_eps(golden: Golden) -> None:
    data = golden("losses_other/box_iou.npz")
    pred, target = pairs_of(data)
    weight = torch.from_numpy(data["weight"]).double()
    for each, name, atol in (
        # There 1e-6 is added to heights in the aspect, and to 1 - IoU + v.
        (ciou_loss(pred, target, min_iou=0.5, eps=1e-6), "ciou", 5e-9),
        # There IoU is at least 1e-6, so that disjoint boxes have a linear loss of 1 - 1e-6.
        (iou_loss(pred, target, eps=1e-12).clamp(max=1 - 1e-6), "iou_linear", 1e-12),
        # There the union is max(union, 1e-6); ours adds 1e-6 to unions of 20 px² and more.
        (iou_loss(pred, target, form="log", eps=1e-6), "iou_log", 1e-7),
    ):
        assert_close(each, torch.from_numpy(data[f"{name}_none"]), rtol=0.0, atol=atol)
        loss = (each * weight).sum() / (float(data["avg_factor"]) + torch.finfo(torch.float32).eps)
        published = torch.from_numpy(data[f"{name}_grad"])
        largest = published.abs().max().item()
        assert_close(gradient_of(loss, pred), published, rtol=0.0, atol=atol * largest)


@pytest.mark.parametrize(
    ("name", "beta"),
    [("l1", 0.0), ("smooth_l1_b1_9", 1 / 9), ("smooth_l1_b011", 0.11), ("smooth_l1_b1", 1.0)],
)
def test_smooth_l1_is_that_of_mmdetection(golden: Golden, name: str, beta: float) -> None:
    data = golden("losses_other/box_deltas.npz")
    pred, target = pairs_of(data)
    each = smooth_l1(pred, target, beta=beta)
    assert_close(each, torch.from_numpy(data[f"{name}_none"]), **EXACT)
    avg_factor = float(data["avg_factor"]) + torch.finfo(torch.float32).eps
    loss = (each * torch.from_numpy(data["weight"])).sum() / avg_factor
    assert_close(loss, torch.tensor(data[name]), **EXACT)
    assert_close(gradient_of(loss, pred), torch.from_numpy(data[f"{name}_grad"]), **EXACT)


def test_ordinary_pairs_have_the_values_and_gradients_of_torchvision() -> None:
    pred, target = random_boxes(200)
    for ours, theirs in (
        (giou_loss, ops.generalized_box_iou_loss),
        (diou_loss, ops.distance_box_iou_loss),
        (ciou_loss, ops.complete_box_iou_loss),
    ):
        mine, other = pred.clone().requires_grad_(), pred.clone().requires_grad_()
        loss, wanted = ours(mine, target), theirs(other, target)
        # Its CIoU adds 1e-7 to the denominator of α as well, against at least 1e-2 here.
        close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-8} if ours is ciou_loss else EXACT
        assert_close(loss, wanted, **close)
        assert_close(gradient_of(loss, mine), gradient_of(wanted, other), **close)


def test_values_by_hand() -> None:
    pred = torch.tensor([[0.0, 0, 4, 4]], dtype=torch.float64)
    target = torch.tensor([[2.0, 0, 6, 8]], dtype=torch.float64)
    # Intersection 8, union 16 + 32 - 8 = 40, enclosing 6 x 8 = 48, centres (2, 2) and (4, 4).
    iou, penalty, distance = 8 / 40, (48 - 40) / 48, 8 / 100
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(0.5)) ** 2
    aspect = v / (1 - iou + v) * v
    for loss, wanted in (
        (iou_loss(pred, target), 1 - iou),
        (iou_loss(pred, target, form="log"), -math.log(iou)),
        (giou_loss(pred, target), 1 - iou + penalty),
        (diou_loss(pred, target), 1 - iou + distance),
        (ciou_loss(pred, target), 1 - iou + distance + aspect),
        (ciou_loss(pred, target, min_iou=0.5), 1 - iou + distance),
        (localisation_errors(pred, target, kind="iou"), (1 - iou) / 0.5),
        (localisation_errors(pred, target, kind="giou"), 1 - iou + penalty),
        (localisation_errors(pred, target, kind="giou", tau=0.7), (1 - iou + penalty) / 0.6),
        (localisation_errors(pred, target, kind="diou", tau=0.0), (1 - iou + distance) / 2),
        (localisation_errors(pred, target, kind="ciou"), 1 - iou + distance + aspect),
    ):
        # eps = 1e-7 over a union of 40.
        assert loss.item() == pytest.approx(wanted, rel=1e-8)


@EVERY
def test_identical_boxes_have_no_loss_and_no_error(loss_of: BoxLoss) -> None:
    pred, _ = random_boxes(20)
    assert_close(loss_of(pred, pred), torch.zeros(20).double(), rtol=0.0, atol=1e-8)
    kind = loss_of.__name__.removesuffix("_loss")
    errors = localisation_errors(pred.float(), pred.float(), kind=kind)
    assert (errors >= 0).all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DEGENERATE)
def test_odd_pairs_have_values_in_range_and_small_gradients(
    loss_of: BoxLoss, dtype: torch.dtype, name: str
) -> None:
    pred, target = pair_of(name, dtype)
    loss = loss_of(pred, target)
    assert 0 <= loss.item() <= LARGEST[loss_of]
    # No side or distance below 2 px but those of zero, and of the tiny pair, which has no area.
    assert gradient_of(loss, pred).abs().max() <= 1


@pytest.mark.parametrize("name", ["points that coincide", "lines that coincide", "tiny"])
def test_coincident_boxes_without_area_have_a_loss_of_one_without_gradient(name: str) -> None:
    for loss_of in (iou_loss, giou_loss):
        pred, target = pair_of(name)
        loss = loss_of(pred, target)
        assert loss.item() == 1
        assert (gradient_of(loss, pred) == 0).all()


def test_a_line_within_a_box_is_pulled_open() -> None:
    pred, target = pair_of("line on a side")
    gradient = gradient_of(giou_loss(pred, target), pred)
    assert gradient[0, 3] < 0


def test_swapped_corners_are_no_perfect_match() -> None:
    for name in DEGENERATE:
        if "swapped" in name:
            pred, target = pair_of(name)
            for loss_of in LARGEST:
                assert loss_of(pred, target).item() >= 1


side = st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 0.5, 3.0, 40.0, 1000.0])
place = st.sampled_from([-40.0, 0.0, 1e-6, 1.0, 40.0, 900.0])
box = st.tuples(place, place, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(deadline=None, max_examples=150)
@given(box, box)
@example((0.0, 0.0, 1000.0, 1e-9), (0.0, 0.0, 1000.0, 1e-9))
@example((0.0, 0.0, 1000.0, 1e-6), (0.0, 0.0, 1000.0, 1e-9))
def test_gradients_are_of_the_order_of_one_over_the_larger_side(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    pred = torch.tensor([first], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([second], dtype=torch.float64)
    width, height = (
        torch.maximum(pred[:, 2:] - pred[:, :2], target[:, 2:] - target[:, :2])[0].detach().unbind()
    )
    for loss_of in (iou_loss, giou_loss):
        loss = loss_of(pred, target)
        assert 0 <= loss.item() <= LARGEST[loss_of]
        assert_close(loss_of(target, pred.detach()), loss.detach(), rtol=1e-9, atol=1e-12)
        across, down, right, up = gradient_of(loss, pred)[0].abs().unbind()
        assert torch.maximum(across, right) <= 5 / width
        assert torch.maximum(down, up) <= 5 / height
    for loss_of in (diou_loss, ciou_loss):
        loss = loss_of(pred, target)
        assert 0 <= loss.item() <= LARGEST[loss_of]
        assert gradient_of(loss, pred).isfinite().all()


@EVERY
def test_the_gradient_is_the_derivative(loss_of: BoxLoss) -> None:
    pred, target = random_boxes(12, seed=3)
    settings_of = {"min_iou": 1.0} if loss_of is ciou_loss else {}
    # α of CIoU is held constant, so its aspect term is checked against torchvision instead.
    assert torch.autograd.gradcheck(
        lambda x, y: loss_of(x, y, **settings_of),
        (pred.requires_grad_(), target.requires_grad_()),
        eps=1e-5,
    )


def test_the_gradient_of_smooth_l1_is_the_derivative() -> None:
    pred = torch.tensor([[0.01, -0.05, 0.3, -2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: smooth_l1(x, torch.zeros_like(x)), (pred,))


@EVERY
def test_no_pairs_give_no_values_and_a_gradient(loss_of: BoxLoss) -> None:
    pred = torch.zeros(0, 4, requires_grad=True)
    kind = loss_of.__name__.removesuffix("_loss")
    for values in (
        loss_of(pred, torch.zeros(0, 4)),
        localisation_errors(pred, torch.zeros(0, 4), kind=kind),
        smooth_l1(pred, torch.zeros(0, 4)).sum(-1),
    ):
        assert values.shape == (0,)
        pred.grad = None
        torch.autograd.backward(values.sum())
        assert pred.grad is not None


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_float32(loss_of: BoxLoss, dtype: torch.dtype) -> None:
    boxes, target = random_boxes(30)
    pred = boxes.to(dtype).requires_grad_()
    target = target.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(pred, target)
        codes = smooth_l1(pred, target)
    torch.autograd.backward(loss.sum())
    assert pred.grad is not None
    assert loss.dtype == codes.dtype == torch.float32
    double = loss_of(pred.detach().double(), target.double())
    assert_close(loss.detach().double(), double, rtol=0.0, atol=1e-5)


@EVERY
def test_a_corner_that_is_nan_never_gives_a_plausible_number(loss_of: BoxLoss) -> None:
    for corner in range(4):
        pred = torch.tensor([[0.0, 0, 10, 10]])
        pred[0, corner] = math.nan
        assert loss_of(pred, torch.tensor([[2.0, 2, 8, 8]])).isnan().all()


@EVERY
def test_the_host_never_waits_for_the_device(loss_of: BoxLoss) -> None:
    pred, target = random_boxes(5)
    pred[0] = torch.tensor([1.0, 1, 1, 1])  # zeros make `prod` count them
    pred.requires_grad_()
    with RefuseToWait():
        torch.autograd.backward(loss_of(pred, target).sum())


def test_it_compiles_without_a_graph_break() -> None:
    pred, target = random_boxes(5)
    compiled = torch.compile(localisation_errors, fullgraph=True, backend="eager")
    wanted = localisation_errors(pred, target, kind="ciou")
    assert_close(compiled(pred, target, kind="ciou"), wanted, rtol=0, atol=0)


@EVERY
def test_wrong_boxes_are_refused_by_name(loss_of: BoxLoss) -> None:
    boxes = torch.zeros(2, 4)
    with pytest.raises(TypeError, match="pred"):
        loss_of(boxes.long(), boxes)
    with pytest.raises(TypeError, match="target"):
        loss_of(boxes, boxes.tolist())
    with pytest.raises(ValueError, match="pred"):
        loss_of(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="target"):
        loss_of(boxes, torch.zeros(2, 5))
    with pytest.raises(ValueError, match="pred and target"):
        loss_of(boxes, torch.zeros(1, 4))
    for eps in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="eps"):
            loss_of(boxes, boxes, eps=eps)


def test_wrong_settings_are_refused_by_name() -> None:
    boxes = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"kind must be one of 'iou', 'giou', 'diou', 'ciou'"):
        localisation_errors(boxes, boxes, kind="GIoU")
    for tau in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="tau"):
            localisation_errors(boxes, boxes, tau=tau)
    with pytest.raises(ValueError, match="form"):
        iou_loss(boxes, boxes, form="square")
    with pytest.raises(ValueError, match="min_iou"):
        ciou_loss(boxes, boxes, min_iou=-0.5)
    with pytest.raises(ValueError, match="beta"):
        smooth_l1(boxes, boxes, beta=-1.0)
    with pytest.raises(TypeError, match="target"):
        smooth_l1(boxes, boxes.long())
    with pytest.raises(ValueError, match="pred and target"):
        smooth_l1(boxes, torch.zeros(2, 1))
