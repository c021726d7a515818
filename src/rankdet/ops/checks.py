"""Checks at the public doors: what was expected, what came, and by which name.

Each looks at shapes and dtypes only, which costs nothing and never waits for a device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def require_tensor(name: str, value: object) -> None:
    """Raise `TypeError` unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def require_floating(name: str, value: object) -> None:
    """Raise `TypeError` unless ``value`` is a tensor of floating point numbers."""
    require_tensor(name, value)
    assert isinstance(value, Tensor)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {value.dtype}")


def require_shape(name: str, value: Tensor, *sizes: int | str) -> None:
    """Raise `ValueError` unless ``value`` has the given sizes.

    Args:
        name: the argument's name as the caller typed it.
        value: the tensor.
        sizes: one entry per dimension: a number that must be met, or a letter for any size.
    """
    fits = value.dim() == len(sizes) and all(
        isinstance(want, str) or want == have for want, have in zip(sizes, value.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in sizes)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(value.shape)}")


def require_same_shape(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise `ValueError` unless both tensors have the same shape."""
    if value.shape != other.shape:
        raise ValueError(
            f"{name} and {other_name} must have the same shape, "
            f"got {list(value.shape)} and {list(other.shape)}"
        )


def require_positive(name: str, value: float, *, zero_allowed: bool = False) -> None:
    """Raise `ValueError` unless the number is finite and above zero (or not below it)."""
    if not (value >= 0 if zero_allowed else value > 0):  # also refuses NaN
        bound = "zero or more" if zero_allowed else "above zero"
        raise ValueError(f"{name} must be {bound}, got {value}")
    if value == math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless the word is one of the known ones, which the message lists."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def require_fraction(name: str, value: float) -> None:
    """Raise `ValueError` unless the number lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def require_exponent(name: str, value: float) -> None:
    """Raise `ValueError` unless x^value has a finite derivative at x = 0."""
    if not (value == 0 or value >= 1):
        raise ValueError(f"{name} must be 0, or 1 and more, got {value}")


def require_kinds(name: str, targets: Tensor) -> None:
    """Raise `ValueError` unless every entry is 1 (positive), 0 (negative) or -1 (ignored).

    The one check that looks at values. It does so where that costs no waiting: on the CPU, and
    not in compiled code.
    """
    if torch.compiler.is_compiling() or not targets.is_cpu:
        return
    unknown = (targets != 0) & (targets != 1)
    if targets.dtype != torch.bool:
        unknown &= targets != -1
    if unknown.any():
        raise_unknown_kind(name, targets, unknown)


def raise_unknown_kind(name: str, targets: Tensor, unknown: Tensor) -> None:
    """Raise the error that names the first entry marked as unknown."""
    place = tuple(unknown.nonzero()[0].tolist())
    where = place[0] if len(place) == 1 else list(place)
    raise ValueError(
        f"{name} must be 1 (positive), 0 (negative) or -1 (ignored), "
        f"got {targets[place].item()} at index {where}"
    )
