"""Mean and spread over seeds, and whether a difference exceeds the spread.

The rule: two rows are compared seed by seed, since runs of one seed share the order and the
augmentation of their images (and their first weights, where the networks are alike). Over the seeds
that both have, the differences have a mean and Student's 95 % interval. A difference exceeds the
spread if that interval leaves out zero. With one seed nothing can be said.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """A number over seeds."""

    n: int
    """Seeds."""
    mean: float
    spread: float | None
    """Standard deviation over the seeds (n - 1 below the line); None with one seed."""


class Verdict(Enum):
    """What a difference over seeds says."""

    EXCEEDS = "exceeds the spread"
    WITHIN = "within the spread"
    ONE_SEED = "one seed: cannot say"
    NOTHING = "not measured"


@dataclass(frozen=True)
class Difference:
    """First less second, over the seeds that both have."""

    n: int
    mean: float | None
    low: float | None
    """Lower end of the interval; None with fewer than two seeds."""
    high: float | None

    @property
    def verdict(self) -> Verdict:
        """What it says."""
        if self.n == 0:
            return Verdict.NOTHING
        if self.low is None or self.high is None:
            return Verdict.ONE_SEED
        return Verdict.EXCEEDS if self.low > 0 or self.high < 0 else Verdict.WITHIN


def summarise(values: Sequence[float]) -> Summary | None:
    """Return mean and spread, None of nothing.

    Example:
        >>> summarise([1.0, 2.0, 3.0])
        Summary(n=3, mean=2.0, spread=1.0)
    """
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Summary(len(values), statistics.fmean(values), spread)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Compare two rows seed by seed.

    Args:
        first: by seed.
        second: by seed.

    Returns:
        The mean of first less second over the seeds that both have, and the interval
        mean ± t · s / √n of Student's t with n - 1 degrees of freedom, s the standard deviation of
        the differences.

    References:
        Student (Gosset), "The Probable Error of a Mean", Biometrika 1908.

    Example:
        >>> found = difference({0: 3.0, 1: 4.0}, {0: 1.0, 1: 2.0, 2: 9.0})
        >>> found.n, found.mean, found.verdict.value
        (2, 2.0, 'exceeds the spread')
    """
    each = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    found = summarise(each)
    if found is None:
        return Difference(0, None, None, None)
    if found.spread is None:
        return Difference(1, found.mean, None, None)
    half = student_quantile(0.5 + CONFIDENCE / 2, found.n - 1) * found.spread / math.sqrt(found.n)
    return Difference(found.n, found.mean, found.mean - half, found.mean + half)


def student_quantile(probability: float, freedom: int) -> float:
    """Return the value that Student's t stays below with a probability.

    Args:
        probability: in (0.5, 1).
        freedom: degrees of freedom, 1 or more.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> round(student_quantile(0.975, 2), 3)
        4.303
    """
    if not 0.5 < probability < 1 or freedom < 1:
        raise ValueError(
            f"probability must be in (0.5, 1) and freedom 1 or more, got {probability}, {freedom}"
        )
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        if student_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return high


def student_cdf(value: float, freedom: int) -> float:
    """Return the probability that Student's t stays below a value of 0 or more.

    Args:
        value: 0 or more.
        freedom: degrees of freedom, an integer of 1 or more: only there the sum is finite.

    References:
        Abramowitz, Stegun, "Handbook of Mathematical Functions", 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(value / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    # Terms of cos θ, cos³ θ, ... (odd) or 1, cos² θ, ... (even), up to cos^(freedom - 2) θ.
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= square * (power + 1) / (power + 2)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2
