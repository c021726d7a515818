"""Boxes as the numbers a network predicts: deltas from an anchor, distances from a point.

Girshick, Donahue, Darrell, Malik, "Rich Feature Hierarchies for Accurate Object Detection and
Semantic Segmentation", CVPR 2014, appendix C (deltas).
Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019 (distances).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankdet.ops.checks import require_floating, require_positive


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

    The distances are in pixels, and negative where the centre is not in the box.

    Example:
        >>> coder = DistanceCoder()
        >>> point = torch.tensor([4.0, 4.0, 4.0, 4.0])
        >>> coder.encode(point, torch.tensor([0.0, 2.0, 9.0, 8.0]))
        tensor([4., 2., 5., 4.])
        >>> coder.decode(point, torch.tensor([4.0, 2.0, 5.0, 4.0]))
        tensor([0., 2., 9., 8.])
    """

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """Return the distances from the priors' centres to the sides of boxes.

        Args:
            priors: [..., 4] xyxy in pixels, floating; a point is a prior of no size.
            boxes: [..., 4] likewise.

        Returns:
            [..., 4] left, top, right, bottom in pixels, shapes broadcast, float32 or float64.

        Raises:
            TypeError: priors or boxes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative.
        """
        priors, boxes = _prepared(("priors", priors), ("boxes", boxes))
        centre, _ = _centre_and_sides(priors)
        return torch.cat([centre - boxes[..., :2], boxes[..., 2:] - centre], -1)

    def decode(self, priors: Tensor, codes: Tensor) -> Tensor:
        """Return the boxes whose sides are at these distances from the priors' centres.

        Args:
            priors: [..., 4] xyxy in pixels, floating; a point is a prior of no size.
            codes: [..., 4] left, top, right, bottom in pixels, floating.

        Returns:
            [..., 4] xyxy in pixels, shapes broadcast, float32 or float64; not clipped to an image.

        Raises:
            TypeError: priors or codes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative.
        """
        priors, codes = _prepared(("priors", priors), ("codes", codes))
        centre, _ = _centre_and_sides(priors)
        return torch.cat([centre - codes[..., :2], centre + codes[..., 2:]], -1)

    def decode_relative(self, codes: Tensor) -> Tensor:
        """Return the boxes in a frame whose origin is the prior's centre.

        Args:
            codes: [..., 4] left, top, right, bottom in pixels, floating.

        Returns:
            [..., 4] xyxy in pixels, float32 or float64.

        Raises:
            TypeError: codes are not floating point.
            ValueError: their last dimension is not 4.

        Gradient: ordinary derivative.
        """
        (codes,) = _prepared(("codes", codes))
        return torch.cat([-codes[..., :2], codes[..., 2:]], -1)


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
