"""What a detector does at thresholds that somebody has chosen, rather than at the best ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rankdet.eval.instances import Instances
from rankdet.eval.lrp import lrp_at
from rankdet.eval.matching import Matches
from rankdet.eval.means import present, present_mean

Thresholds = float | Mapping[str, float | None]
"""One threshold for all classes, or by name of the class; None keeps nothing of a class."""


@dataclass(frozen=True)
class ClassAtThreshold:
    """One class at its threshold."""

    id: int
    """Category id."""
    name: str
    """As in `rankdet.eval.score.ClassScore`."""
    threshold: float | None
    """Scores at or above it are kept; None keeps nothing."""
    LRP: float | None
    LRP_loc: float | None
    LRP_loc_normalised: float | None
    LRP_fp: float | None
    LRP_fn: float | None
    right: int
    """Detections kept that are right."""
    wrong: int
    """Detections kept that are wrong; those on crowd regions are neither."""
    missed: int
    """Objects that no detection kept is right for."""


@dataclass(frozen=True)
class ScoreAtThreshold:
    """Means over the classes with objects, and sums of counts."""

    LRP: float | None
    """Error at the thresholds, in [0, 1]; less is better, as for its parts."""
    LRP_loc: float | None
    """Mean 1 - IoU of the right ones, in [0, 1 - tau]."""
    LRP_loc_normalised: float | None
    """The same divided by 1 - tau, in [0, 1]."""
    LRP_fp: float | None
    """Share of wrong ones among the detections kept."""
    LRP_fn: float | None
    """Share of objects missed."""
    right: int
    wrong: int
    missed: int
    per_class: tuple[ClassAtThreshold, ...]
    """By ascending category id."""


def score_at(
    instances: Instances, matches: Matches, threshold: Thresholds, *, tau: float = 0.5
) -> ScoreAtThreshold:
    """Compute LRP, its parts, and counts at given score thresholds.

    Args:
        instances: that were matched.
        matches: made with ``tau`` among their IoU thresholds; the first area range is used.
        threshold: detections of this score and above are kept: one for all classes, or by name of
            the class. None, or a class that is left out, keeps nothing.
        tau: IoU from which on a detection is right, in (0, 1).

    Returns:
        The numbers; conventions as in `rankdet.eval.lrp`, None for -1 and NaN.

    Raises:
        ValueError: a threshold is not finite, or of a class that the ground truth does not have.
    """
    each = _each(instances.names, threshold)
    lrp = lrp_at(matches, each, tau=tau, max_detections=matches.max_detections)
    columns = {
        "LRP": lrp.lrp,
        "LRP_loc": lrp.localisation,
        "LRP_loc_normalised": lrp.normalised_localisation,
        "LRP_fp": lrp.false_positive,
        "LRP_fn": lrp.false_negative,
    }
    missed = lrp.objects - lrp.true_positives
    classes = []
    for k, name in enumerate(instances.names):
        values = {key: present(column[k])[0] for key, column in columns.items()}
        classes.append(
            ClassAtThreshold(
                id=int(instances.category_ids[k]),
                name=name,
                threshold=None if np.isnan(each[k]) else float(each[k]),
                right=int(lrp.true_positives[k]),
                wrong=int(lrp.false_positives[k]),
                missed=int(missed[k]),
                **values,
            )
        )
    means = {key: present(present_mean(column))[0] for key, column in columns.items()}
    return ScoreAtThreshold(
        right=int(lrp.true_positives.sum()),
        wrong=int(lrp.false_positives.sum()),
        missed=int(missed.sum()),
        per_class=tuple(classes),
        **means,
    )


def _each(
    names: tuple[str, ...], threshold: Thresholds
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if not isinstance(threshold, Mapping):
        threshold = dict.fromkeys(names, threshold)
    unknown = [name for name in threshold if name not in names]
    if unknown:
        raise ValueError(
            f"there is a threshold for class {unknown[0]!r} ({len(unknown)} such in all), which "
            f"the ground truth does not have; its classes are {', '.join(names[:8])}"
            + (", ..." if len(names) > 8 else "")
        )
    for name, value in threshold.items():
        if value is not None and not np.isfinite(value):
            raise ValueError(
                f"the threshold of class {name!r} must be a finite number, got {value}"
            )
    values = [threshold.get(name) for name in names]
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
