"""Boxes as the numbers a network predicts: deltas from an anchor, distances from a point.

Girshick, Donahue, Darrell, Malik, "Rich Feature Hierarchies for Accurate Object Detection and
Semantic Segmentation", CVPR 2014, appendix C (deltas).
Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019 (distances).
Kong, Sun, Liu, Jiang, Li, Shi, "FoveaBox: Beyound Anchor-Based Object Detection", IEEE Transactions
on Image Processing, 2020 (logarithms of distances).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rankdet.ops.checks import require_choice, require_floating, require_positive

Unit = Literal["pixel", "side"]


@dataclass(frozen=True)
class DeltaCoder:
    """Code a box by how its centre and its sides differ from a prior's.

    With centres (x, y) and sides (w, h), those of the prior with index p:

        dx = (x - x_p) / w_p / σ_x      dw = log(w / w_p) / σ_w

    and dy, dh likewise. ``decode`` is the inverse, but limits the logarithms, so that no code
    makes a box of absurd size.

    Args:
        stds: σ of dx, dy, dw, dh, above 0: about how much each of them varies over the positives.
        max_log_ratio: log(w / w_p) and log(h / h_p) are kept within plus and minus this when
            decoding; above 0.

    Raises:
        ValueError: stds are not four numbers above 0, or max_log_ratio is not above 0.

    Example:
        >>> coder = DeltaCoder(stds=(1.0, 1.0, 1.0, 1.0))
        >>> prior, box = torch.tensor([0.0, 0.0, 8.0, 8.0]), torch.tensor([4.0, 0.0, 12.0, 8.0])
        >>> coder.encode(prior, box)
        tensor([0.5000, 0.0000, 0.0000, 0.0000])
        >>> coder.decode(prior, torch.tensor([0.5, 0.0, 0.0, 0.0]))
        tensor([ 4.,  0., 12.,  8.])
    """

    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    max_log_ratio: float = math.log(1000 / 16)

    def __post_init__(self) -> None:
        if len(self.stds) != 4:
            raise ValueError(f"stds must be four numbers (dx, dy, dw, dh), got {self.stds}")
        for std in self.stds:
            require_positive("each of stds", std)
        require_positive("max_log_ratio", self.max_log_ratio)

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """Return the codes of boxes relative to priors.

        Args:
            priors: [..., 4] xyxy in pixels, floating, with sides above 0.
            boxes: [..., 4] likewise; a side of 0 has the code -inf.

        Returns:
            [..., 4], shapes broadcast, float32 or float64.

        Raises:
            TypeError: priors or boxes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative.
        """
        priors, boxes = _prepared(("priors", priors), ("boxes", boxes))
        centre, sides = _centre_and_sides(priors)
        target_centre, target_sides = _centre_and_sides(boxes)
        raw = torch.cat([(target_centre - centre) / sides, (target_sides / sides).log()], -1)
        return raw / raw.new_tensor(self.stds)

    def decode(self, priors: Tensor, codes: Tensor) -> Tensor:
        """Return the boxes that codes stand for.

        Args:
            priors: [..., 4] xyxy in pixels, floating.
            codes: [..., 4], floating.

        Returns:
            [..., 4] xyxy in pixels, shapes broadcast, float32 or float64; not clipped to an image.

        Raises:
            TypeError: priors or codes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative; 0 for a side whose code is beyond the limit.
        """
        priors, codes = _prepared(("priors", priors), ("codes", codes))
        centre, sides = _centre_and_sides(priors)
        shift, half = self._shift_and_half(codes)
        return _from_centre(centre + shift * sides, half * sides)

    def decode_relative(self, codes: Tensor) -> Tensor:
        """Return the boxes in a frame where the prior is (-½, -½, ½, ½).

        Boxes of one prior have the same IoU there as in pixels, for both axes are scaled alike
        for both boxes.

        Args:
            codes: [..., 4], floating.

        Returns:
            [..., 4] xyxy in sides of the prior, float32 or float64.

        Raises:
            TypeError: codes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative; 0 for a side whose code is beyond the limit.
        """
        (codes,) = _prepared(("codes", codes))
        return _from_centre(*self._shift_and_half(codes))

    def _shift_and_half(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Move of the centre, and half of each side, both in sides of the prior: [..., 2] each."""
        shift, log_ratio = (codes * codes.new_tensor(self.stds)).split(2, -1)
        return shift, log_ratio.clamp(-self.max_log_ratio, self.max_log_ratio).exp() / 2


@dataclass(frozen=True)
class DistanceCoder:
    """Code a box by the distances from a prior's centre to its left, top, right and bottom side.

    They are negative where the centre is not in the box.

    Args:
        unit: ``"pixel"``; or ``"side"``, the width of the prior for left and right and its height
            for top and bottom. With priors of one stride that is the unit of FCOS with its boxes
            normalised.
        rectify: whether codes below 0 stand for distances of 0, so that every code is a box: to
            be set where a network may say what it likes. A box that does not hold the centre
            has no code then that decoding would undo.

    Raises:
        ValueError: unit is unknown.

    References:
        Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019,
        equation 1.

    Example:
        >>> coder = DistanceCoder()
        >>> point = torch.tensor([4.0, 4.0, 4.0, 4.0])
        >>> coder.encode(point, torch.tensor([0.0, 2.0, 9.0, 8.0]))
        tensor([4., 2., 5., 4.])
        >>> coder.decode(point, torch.tensor([4.0, 2.0, 5.0, 4.0]))
        tensor([0., 2., 9., 8.])
    """

    unit: Unit = "pixel"
    rectify: bool = False

    def __post_init__(self) -> None:
        require_choice("unit", self.unit, get_args(Unit))

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """Return the distances from the priors' centres to the sides of boxes.

        Args:
            priors: [..., 4] xyxy in pixels, floating; a point is a prior of no size, which as
                unit gives NaN.
            boxes: [..., 4] likewise.

        Returns:
            [..., 4] left, top, right, bottom, shapes broadcast, float32 or float64.

        Raises:
            TypeError: priors or boxes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative.
        """
        return _distances(priors, boxes, self.unit)

    def decode(self, priors: Tensor, codes: Tensor) -> Tensor:
        """Return the boxes whose sides are at these distances from the priors' centres.

        Args:
            priors: [..., 4] xyxy in pixels, floating; a point is a prior of no size, which as
                unit gives NaN.
            codes: [..., 4] left, top, right, bottom, floating.

        Returns:
            [..., 4] xyxy in pixels, shapes broadcast, float32 or float64; not clipped to an image.

        Raises:
            TypeError: priors or codes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative; 0 for codes below 0 if they are rectified.
        """
        priors, codes = _prepared(("priors", priors), ("codes", codes))
        return _from_distances(priors, self._rectified(codes), self.unit)

    def decode_relative(self, codes: Tensor) -> Tensor:
        """Return the boxes in a frame whose origin is the prior's centre.

        Args:
            codes: [..., 4] left, top, right, bottom, floating.

        Returns:
            [..., 4] xyxy in the unit of the coder, float32 or float64.

        Raises:
            TypeError: codes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative; 0 for codes below 0 if they are rectified.
        """
        (codes,) = _prepared(("codes", codes))
        return _about_origin(self._rectified(codes))

    def _rectified(self, codes: Tensor) -> Tensor:
        # Not `clamp`, whose derivative at 0 depends on the version of torch: a box that is a
        # point can open again.
        return torch.where(codes < 0, 0, codes) if self.rectify else codes


@dataclass(frozen=True)
class LogDistanceCoder:
    """Code a box by the logarithms of its sides' distances from a prior's centre.

    With d the distance from the centre to the left, top, right or bottom side, and u its unit:

        code = log(min(max(d / u, least), most))

    Decoding takes no note of ``least`` and ``most``: predictions may go further than targets do.
    FoveaBox has priors as large as the base edges of its levels and takes these for units; the
    first version of FCOS is ``LogDistanceCoder(unit="pixel", most=2.0**16)``.

    Args:
        unit: ``"pixel"``; or ``"side"``, the width of the prior for left and right and its height
            for top and bottom.
        least: smallest distance that is encoded, in units, above 0. It also stands for those
            below 0, where the centre is not in the box.
        most: largest distance that is encoded, in units, above ``least``.
        max_log: codes are kept within plus and minus this when decoding; above 0. e^12 is
            160,000, which is as good as no limit, and far from overflow.

    Raises:
        ValueError: unit is unknown, or a number is out of its range.

    References:
        Kong, Sun, Liu, Jiang, Li, Shi, "FoveaBox: Beyound Anchor-Based Object Detection", IEEE
        Transactions on Image Processing, 2020 (there the limits are in the authors' code).

    Example:
        >>> prior, box = torch.tensor([-4.0, 0.0, 12.0, 16.0]), torch.tensor([3.5, 0.0, 20.0, 9.0])
        >>> (LogDistanceCoder().encode(prior, box) / math.log(2)).round(decimals=1)
        tensor([-4., -1.,  0., -4.])
    """

    unit: Unit = "side"
    least: float = 1 / 16
    most: float = 16.0
    max_log: float = 12.0

    def __post_init__(self) -> None:
        require_choice("unit", self.unit, get_args(Unit))
        require_positive("least", self.least)
        if not self.most > self.least:
            raise ValueError(f"most must be above least, got least={self.least}, most={self.most}")
        require_positive("max_log", self.max_log)

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """Return the logarithms of the distances, limited, from the priors' centres.

        Args:
            priors: [..., 4] xyxy in pixels, floating; a point is a prior of no size, which as
                unit gives NaN.
            boxes: [..., 4] likewise.

        Returns:
            [..., 4] left, top, right, bottom, shapes broadcast, float32 or float64.

        Raises:
            TypeError: priors or boxes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative; 0 beyond the limits.
        """
        return _distances(priors, boxes, self.unit).clamp(self.least, self.most).log()

    def decode(self, priors: Tensor, codes: Tensor) -> Tensor:
        """Return the boxes whose sides are at these distances from the priors' centres.

        Args:
            priors: [..., 4] xyxy in pixels, floating; a point is a prior of no size, which as
                unit gives NaN.
            codes: [..., 4] logarithms for left, top, right, bottom, floating.

        Returns:
            [..., 4] xyxy in pixels, shapes broadcast, float32 or float64; not clipped to an image.

        Raises:
            TypeError: priors or codes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative; 0 for a code beyond ``max_log``.
        """
        priors, codes = _prepared(("priors", priors), ("codes", codes))
        return _from_distances(priors, self._exponential(codes), self.unit)

    def decode_relative(self, codes: Tensor) -> Tensor:
        """Return the boxes in a frame whose origin is the prior's centre.

        Args:
            codes: [..., 4] logarithms for left, top, right, bottom, floating.

        Returns:
            [..., 4] xyxy in the unit of the coder, float32 or float64.

        Raises:
            TypeError: codes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative; 0 for a code beyond ``max_log``.
        """
        (codes,) = _prepared(("codes", codes))
        return _about_origin(self._exponential(codes))

    def _exponential(self, codes: Tensor) -> Tensor:
        return codes.clamp(-self.max_log, self.max_log).exp()


def _distances(priors: Tensor, boxes: Tensor, unit: Unit) -> Tensor:
    """Distances from the priors' centres to left, top, right and bottom side: [..., 4]."""
    priors, boxes = _prepared(("priors", priors), ("boxes", boxes))
    centre, sides = _centre_and_sides(priors)
    low, high = boxes.split(2, -1)
    before, after = centre - low, high - centre
    if unit == "side":
        sides = _no_point(sides)
        before, after = before / sides, after / sides
    return torch.cat([before, after], -1)


def _from_distances(priors: Tensor, distances: Tensor, unit: Unit) -> Tensor:
    """Boxes at these distances from the priors' centres, xyxy in pixels."""
    centre, sides = _centre_and_sides(priors)
    before, after = distances.split(2, -1)
    if unit == "side":
        sides = _no_point(sides)
        before, after = before * sides, after * sides
    return torch.cat([centre - before, centre + after], -1)


def _no_point(sides: Tensor) -> Tensor:
    """Return the sides, NaN where they are 0: no unit, rather than an endless or no distance."""
    return torch.where(sides == 0, torch.nan, sides)


def _about_origin(distances: Tensor) -> Tensor:
    before, after = distances.split(2, -1)
    return torch.cat([-before, after], -1)


def _prepared(*named: tuple[str, Tensor]) -> list[Tensor]:
    """Return the tensors in one dtype: coordinates of an image are too coarse in 16 bits."""
    dtype = torch.float32
    for name, value in named:
        require_floating(name, value)
        if value.dim() == 0 or value.shape[-1] != 4:
            raise ValueError(f"{name} must have shape [..., 4], got {list(value.shape)}")
        dtype = torch.promote_types(dtype, value.dtype)
    return [value.to(dtype) for _, value in named]


def _centre_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.split(2, -1)
    return (low + high) / 2, high - low


def _from_centre(centre: Tensor, half: Tensor) -> Tensor:
    return torch.cat([centre - half, centre + half], -1)
