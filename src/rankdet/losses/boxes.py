"""Box losses: smooth L1 on codes, and the IoU family on corners.

Girshick, "Fast R-CNN", ICCV 2015 (smooth L1).
Yu, Jiang, Wang, Cao, Huang, "UnitBox: An Advanced Object Detection Network", ACM MM 2016 (IoU).
Rezatofighi, Tsoi, Gwak, Sadeghian, Reid, Savarese, "Generalized Intersection over Union:
A Metric and a Loss for Bounding Box Regression", CVPR 2019 (GIoU).
Zheng, Wang, Liu, Li, Ye, Ren, "Distance-IoU Loss: Faster and Better Learning for Bounding Box
Regression", AAAI 2020 (DIoU, CIoU).

Written here rather than taken from torchvision.ops, with the same values and gradients for
ordinary boxes. There, coincident boxes of no height get a GIoU gradient of 1e8 and a CIoU of NaN,
a box with both corners swapped counts as a perfect match, and a boolean index makes the host wait
for the device at every call.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rankdet.ops.checks import (
    require_choice,
    require_floating,
    require_positive,
    require_same_shape,
    require_shape,
)

# Largest value of each loss that localisation errors are scaled by. CIoU can reach 2.5 (its aspect
# term adds up to 1/2 to disjoint boxes); 2 keeps its errors comparable with those of the others.
_RANGES = {"iou": 1.0, "giou": 2.0, "diou": 2.0, "ciou": 2.0}


def smooth_l1(pred: Tensor, target: Tensor, *, beta: float = 1 / 9) -> Tensor:
    """Smooth L1 loss of each number: quadratic below ``beta``, linear above.

    With d = |pred - target|: d² / (2 β) where d < β, else d - β / 2.

    Nothing is summed: whoever knows weights and normaliser does (usually the 4 numbers of a box
    are added up and the sum divided by the number of positives).

    Args:
        pred: any shape, usually box codes [P, 4], floating; computed in float32 at least.
        target: the same shape, floating, in the unit of ``pred``.
        beta: where the two pieces meet, 0 or more, in the unit of ``pred``; 0 is the L1 loss.

    Returns:
        The shape of ``pred``, float32 or float64.

    Raises:
        TypeError: pred or target are not floating point.
        ValueError: shapes differ, or beta is negative.

    Gradient: ordinary derivative.

    References:
        Girshick, "Fast R-CNN", ICCV 2015, equation 3 (there β = 1).

    Example:
        >>> smooth_l1(torch.tensor([0.0, 2.0]), torch.tensor([0.5, 0.0]), beta=1.0)
        tensor([0.1250, 1.5000])
    """
    require_floating("pred", pred)
    require_floating("target", target)
    require_same_shape("pred", pred, "target", target)
    require_positive("beta", beta, zero_allowed=True)
    dtype = _compute_dtype(pred, target)
    return functional.smooth_l1_loss(pred.to(dtype), target.to(dtype), reduction="none", beta=beta)


def iou_loss(pred: Tensor, target: Tensor, *, form: str = "linear", eps: float = 1e-7) -> Tensor:
    """Loss of the intersection over union of each pair of boxes.

    ``"linear"``: 1 - IoU, in [0, 1]. ``"log"``: -log(max(IoU, eps)), from 0 up; used by FCOS.
    Boxes that do not overlap get no gradient.

    Args:
        pred: [P, 4] boxes xyxy in pixels, floating; computed in float32 at least. A box whose
            corners are swapped has no area.
        target: [P, 4], likewise.
        form: ``"linear"`` or ``"log"``.
        eps: added to the union, in px². A pair whose union is at most this has IoU 0 and no
            gradient.

    Returns:
        [P], float32 or float64.

    Raises:
        TypeError: pred or target are not floating point.
        ValueError: shapes are not [P, 4] or differ; form is unknown; eps is not above zero.

    Gradient: ordinary derivative, of the order of 1 / side of the larger box.

    References:
        Yu, Jiang, Wang, Cao, Huang, "UnitBox: An Advanced Object Detection Network", ACM MM
        2016, section 3 (logarithm).

    Example:
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> target = torch.tensor([[0.0, 0.0, 4.0, 8.0]])
        >>> iou_loss(pred, target)
        tensor([0.5000])
    """
    require_choice("form", form, ("linear", "log"))
    pair = _overlap(pred, target, eps)
    iou = _ratio(pair.inter, pair.union, eps)
    return 1 - iou if form == "linear" else -iou.clamp(min=eps).log()


def giou_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-7) -> Tensor:
    """1 - GIoU of each pair of boxes, in [0, 2].

    With A the area of the smallest box around both and U their union:

        loss = 1 - IoU + (A - U) / A

    Args:
        pred: [P, 4] boxes xyxy in pixels, floating; computed in float32 at least. A box whose
            corners are swapped has no area.
        target: [P, 4], likewise.
        eps: added to U and A in the denominators, in px². A pair whose U is at most this has
            IoU 0, one whose A is at most this has penalty 0, both without gradient: such boxes
            have a loss of 1. Published values of aLRP need 1e-6; mmdetection uses max(A, 1e-6)
            instead, a relative difference of 1e-6 / A.

    Returns:
        [P], float32 or float64.

    Raises:
        TypeError: pred or target are not floating point.
        ValueError: shapes are not [P, 4] or differ; eps is not above zero.

    Gradient: ordinary derivative, of the order of 1 / side of the larger box.

    References:
        Rezatofighi, Tsoi, Gwak, Sadeghian, Reid, Savarese, "Generalized Intersection over
        Union: A Metric and a Loss for Bounding Box Regression", CVPR 2019, algorithm 2.

    Example:
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> target = torch.tensor([[4.0, 0.0, 8.0, 8.0]])
        >>> giou_loss(pred, target)
        tensor([1.2500])
    """
    pair = _overlap(pred, target, eps)
    # Rounding may put U above A by a last digit; a loss below 0 would be no valid error.
    empty = _not_negative(pair.hull_area - pair.union)
    parts = torch.stack([pair.inter, empty])
    iou, penalty = _ratio(parts, torch.stack([pair.union, pair.hull_area]), eps).unbind()
    return 1 - iou + penalty


def diou_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-7) -> Tensor:
    """1 - DIoU of each pair of boxes, in [0, 2] where corners are in order.

    With ρ the distance of the centres and c the diagonal of the smallest box around both:

        loss = 1 - IoU + ρ² / c²

    Args:
        pred: [P, 4] boxes xyxy in pixels, floating; computed in float32 at least. A box whose
            corners are swapped has no area; its term of distance has no bound, as in published
            code.
        target: [P, 4], likewise.
        eps: added to the union and to c² in the denominators, in px². A ratio whose denominator
            is at most this is 0 without gradient.

    Returns:
        [P], float32 or float64.

    Raises:
        TypeError: pred or target are not floating point.
        ValueError: shapes are not [P, 4] or differ; eps is not above zero.

    Gradient: ordinary derivative, of the order of 1 / side of the larger box.

    References:
        Zheng, Wang, Liu, Li, Ye, Ren, "Distance-IoU Loss: Faster and Better Learning for
        Bounding Box Regression", AAAI 2020, equation 7.

    Example:
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> target = torch.tensor([[4.0, 0.0, 8.0, 4.0]])
        >>> diou_loss(pred, target)
        tensor([1.2000])
    """
    pair = _overlap(pred, target, eps)
    return 1 - _ratio(pair.inter, pair.union, eps) + _centre_distance(pair, eps)


def ciou_loss(pred: Tensor, target: Tensor, *, min_iou: float = 0.0, eps: float = 1e-7) -> Tensor:
    """1 - CIoU of each pair of boxes, in [0, 2.5] where corners are in order.

    DIoU and a term for the aspect ratio, with a = atan(width / height):

        loss = 1 - IoU + ρ² / c² + α v,  v = 4 / π² (a_target - a_pred)²,  α = v / (1 - IoU + v)

    Args:
        pred: [P, 4] boxes xyxy in pixels, floating; computed in float32 at least. A box whose
            corners are swapped has no area; its term of distance has no bound, as in published
            code.
        target: [P, 4], likewise.
        min_iou: the aspect term counts where IoU is at least this. 0 is the paper of 2020; its
            successor (see References) and mmdetection take 0.5.
        eps: added to the union and to c² in the denominators, in px². A ratio whose denominator
            is at most this is 0 without gradient; the aspect of a box whose squared diagonal is
            at most this gets no gradient.

    Returns:
        [P], float32 or float64.

    Raises:
        TypeError: pred or target are not floating point.
        ValueError: shapes are not [P, 4] or differ; min_iou is not in [0, 1]; eps is not above
            zero.

    Gradient: ordinary derivative with α held constant, as published code has it.

    References:
        Zheng, Wang, Liu, Li, Ye, Ren, "Distance-IoU Loss: Faster and Better Learning for
        Bounding Box Regression", AAAI 2020, equations 8 to 12.
        Zheng, Wang, Ren, Liu, Ye, Hu, Zuo, "Enhancing Geometric Factors in Model Learning and
        Inference for Object Detection and Instance Segmentation", IEEE Transactions on
        Cybernetics 2021 (α = 0 below IoU 0.5).

    Example:
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> ciou_loss(pred, pred)
        tensor([0.])
    """
    if not 0 <= min_iou <= 1:
        raise ValueError(f"min_iou must be between 0 and 1, got {min_iou}")
    pair = _overlap(pred, target, eps)
    iou = _ratio(pair.inter, pair.union, eps)
    v = 4 / math.pi**2 * (_aspect(pair.target, eps) - _aspect(pair.pred, eps)).square()
    with torch.no_grad():
        # Boxes of one shape that coincide have v = 0 and 1 - IoU = 0.
        alpha = torch.where(v > 0, v / (1 - iou + v), 0) * (iou >= min_iou)
    return 1 - iou + _centre_distance(pair, eps) + alpha * v


def localisation_errors(
    pred: Tensor, target: Tensor, *, kind: str = "giou", tau: float = 0.5, eps: float = 1e-7
) -> Tensor:
    """Localisation error E of each positive, as LRP and aLRP weigh it against a false positive.

    E = L / r / (1 - τ) with L the box loss and r the size of its range: 1 for IoU; 2 for GIoU and
    DIoU; 2 for CIoU as well, whose aspect term can lift it to 2.5. E is not clipped: it exceeds
    1 where the pair is worse than IoU = τ would be. At τ = 0.5, GIoU gives 1 - GIoU.

    Args:
        pred: [P, 4] boxes xyxy in pixels, floating; computed in float32 at least.
        target: [P, 4], likewise: the object each positive is assigned to.
        kind: ``"iou"``, ``"giou"``, ``"diou"`` or ``"ciou"``.
        tau: IoU from which a positive counts as such, in [0, 1): 0.5, or 0.7 for a first stage
            whose positives start there.
        eps: as in the box loss.

    Returns:
        [P], 0 and more, float32 or float64.

    Raises:
        TypeError: pred or target are not floating point.
        ValueError: shapes are not [P, 4] or differ; kind is unknown; tau or eps is out of range.

    Gradient: ordinary derivative.

    References:
        Oksuz, Cam, Akbas, Kalkan, "A Ranking-based, Balanced Loss Function Unifying
        Classification and Localisation in Object Detection", NeurIPS 2020, section 3.

    Example:
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> target = torch.tensor([[0.0, 0.0, 4.0, 8.0]])
        >>> localisation_errors(pred, target, kind="iou", tau=0.75)
        tensor([2.])
    """
    require_choice("kind", kind, tuple(_RANGES))
    if not 0 <= tau < 1:
        raise ValueError(f"tau must be in [0, 1), got {tau}")
    losses = {"iou": iou_loss, "giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
    each: Tensor = losses[kind](pred, target, eps=eps)
    return each / (_RANGES[kind] * (1 - tau))


class _Overlap(NamedTuple):
    """What the IoU losses share; P pairs of boxes."""

    pred: Tensor  # [P, 4]
    target: Tensor  # [P, 4]
    inter: Tensor  # [P] px²
    union: Tensor  # [P] px²
    hull: Tensor  # [P, 2] width and height of the smallest box around both
    hull_area: Tensor  # [P] px²


def _overlap(pred: Tensor, target: Tensor, eps: float) -> _Overlap:
    for name, boxes in (("pred", pred), ("target", target)):
        require_floating(name, boxes)
        require_shape(name, boxes, "P", 4)
    require_same_shape("pred", pred, "target", target)
    require_positive("eps", eps)

    dtype = _compute_dtype(pred, target)
    pred, target = pred.to(dtype), target.to(dtype)
    low, high = pred.split(2, 1)
    target_low, target_high = target.split(2, 1)
    common = torch.minimum(high, target_high) - torch.maximum(low, target_low)
    around = torch.maximum(high, target_high) - torch.minimum(low, target_low)
    # All widths and heights together: for the few pairs that there are, the time is in the number
    # of operations, not in their size.
    sides = _not_negative(torch.stack([common, around, high - low, target_high - target_low]))
    inter, hull, own, other = _product(sides).unbind()
    # In this order no rounding can make the union smaller than the intersection.
    union = own + (other - inter)
    return _Overlap(pred, target, inter, union, sides[1], hull)


def _ratio(part: Tensor, whole: Tensor, eps: float) -> Tensor:
    """Return part / (whole + eps); 0 without gradient where there is hardly a whole.

    Between boxes of no area the quotient is 0 / eps, and its derivative side / eps: a number
    about the choice of eps, large enough to end a training.
    """
    # `whole <= eps`, not `whole > eps`: NaN must come out as NaN.
    return torch.where(whole <= eps, 0, part / (whole + eps))


def _centre_distance(pair: _Overlap, eps: float) -> Tensor:
    """ρ² / c²: squared distance of the centres over the squared diagonal around both."""
    pred_twice = pair.pred[:, :2] + pair.pred[:, 2:]
    target_twice = pair.target[:, :2] + pair.target[:, 2:]
    squared = ((target_twice - pred_twice) / 2).square().sum(-1)
    return _ratio(squared, pair.hull.square().sum(-1), eps)


def _aspect(boxes: Tensor, eps: float) -> Tensor:
    """Angle atan(width / height) of each box, 0 for a point."""
    sides = _sides(boxes)
    width, height = sides.unbind(-1)
    # Replaced before the arc tangent: its derivative at a point is 0 / 0, which a mask
    # afterwards would let through as NaN.
    point = sides.square().sum(-1) <= eps
    return torch.atan2(torch.where(point, 0, width), torch.where(point, 1, height))


def _product(sides: Tensor) -> Tensor:
    """Width times height; not `prod`, whose backward pass waits for the device to count zeros."""
    width, height = sides.unbind(-1)
    return width * height


def _sides(boxes: Tensor) -> Tensor:
    """Width and height of each box, 0 where the corners are swapped."""
    return _not_negative(boxes[:, 2:] - boxes[:, :2])


def _not_negative(x: Tensor) -> Tensor:
    """Return x, or 0 below 0.

    Unlike `clamp`, whose derivative at 0 depends on the version of torch, this lets the gradient
    through there: a prediction without width can open again.
    """
    return torch.where(x < 0, 0, x)


def _compute_dtype(pred: Tensor, target: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
