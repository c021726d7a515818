"""Does a better box get a better score? The correlation of scores and IoUs of true positives.

Ranking losses that tie classification to localisation, such as aLRP, claim to raise it: Oksuz,
Cam, Akbas, Kalkan, "A Ranking-based, Balanced Loss Function Unifying Classification and
Localisation in Object Detection", NeurIPS 2020, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankdet.eval.instances import Floats
from rankdet.eval.matching import Matches


@dataclass(frozen=True)
class Correlation:
    """Correlation of score and IoU over the true positives of all classes."""

    pearson: float | None
    """In [-1, 1]; None with fewer than two pairs, or where one of both is the same everywhere."""
    spearman: float | None
    """Pearson of the ranks, equal values sharing their mean rank: sees the order alone."""
    pairs: int
    """Number of true positives."""


def score_iou_correlation(matches: Matches) -> Correlation:
    """Correlate the score and the IoU of true positives at IoU .5.

    Args:
        matches: made with .5 among their IoU thresholds; the first area range is used. Crowd and
            other ignored detections are left out.

    Raises:
        ValueError: there are no matches at IoU .5.
    """
    half = matches.threshold_index(0.5)
    right = (matches.matched[0, half] >= 0) & ~matches.ignored[0, half]
    scores, ious = matches.score[right], matches.iou[0, half, right]
    return Correlation(pearson(scores, ious), spearman(scores, ious), int(right.sum()))


def pearson(first: Floats, second: Floats) -> float | None:
    """Return Pearson's correlation, or None where it is not defined.

    Args:
        first: [N] finite.
        second: [N] finite.

    Example:
        >>> round(pearson(np.array([1.0, 2.0, 3.0]), np.array([4.0, 2.0, 0.0])), 9)
        -1.0
    """
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    # Scaled first: squares of very large or very small scores would leave the range of floats.
    parts = []
    for values in (first, second):
        scaled = values / np.abs(values).max()
        centred = scaled - scaled.mean()
        parts.append(centred / np.linalg.norm(centred))
    return float(np.clip(parts[0] @ parts[1], -1.0, 1.0))


def spearman(first: Floats, second: Floats) -> float | None:
    """Return Spearman's rank correlation, or None where it is not defined.

    Args:
        first: [N] finite.
        second: [N] finite.

    Example:
        >>> round(spearman(np.array([1.0, 2.0, 30.0]), np.array([0.1, 0.2, 0.3])), 9)
        1.0
    """
    return pearson(mean_ranks(first), mean_ranks(second))


def mean_ranks(values: Floats) -> Floats:
    """Return ranks from 1 up; equal values share the mean of theirs: [N].

    Example:
        >>> mean_ranks(np.array([0.3, 0.1, 0.3])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Floats = (last - (counts - 1) / 2)[inverse]
    return means
