"""Means over what is there, and numbers that may be missing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def present_mean(values: NDArray[np.float64]) -> float:
    """Return the mean of what is there: neither -1 nor NaN; -1 if nothing is.

    Example:
        >>> present_mean(np.array([0.5, -1.0, 1.0]))
        0.75
    """
    there = values[values > -1]
    return float(there.mean()) if there.size else -1.0


def present(*values: float) -> tuple[float | None, ...]:
    """Return plain numbers, None for -1 and NaN.

    Example:
        >>> present(0.5, -1.0, float("nan"))
        (0.5, None, None)
    """
    return tuple(float(v) if v > -1 else None for v in values)
