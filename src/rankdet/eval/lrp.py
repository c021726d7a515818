"""Localisation Recall Precision: one error for missed objects, false alarms, and poor boxes.

Oksuz, Cam, Akbas, Kalkan, "Localization Recall Precision (LRP): A New Performance Metric for
Object Detection", ECCV 2018; and Oksuz, Cam, Kalkan, Akbas, "One Metric to Measure Them All:
Localisation Recall Precision (LRP) for Evaluating Visual Detection Tasks", TPAMI 2021.

For the detections of a class whose score is at least s, with TP, FP, FN counted by COCO's matching
at IoU τ:

    LRP(s) = (Σ_TP (1 - IoU) / (1 - τ) + FP + FN) / (TP + FP + FN)

0 is perfect, 1 is nothing found. oLRP is the smallest value over s, and the s where it is reached
is the threshold to use. LRP falls apart into three means (the first is in [0, 1 - τ]):

    localisation = Σ_TP (1 - IoU) / TP,  false positive = FP / (TP + FP),  false negative = FN / G

Conventions, those of the authors' program:
- The sum is followed detection by detection, also in the midst of equal scores; of equal minima
  the one of highest score counts. `lrp_at` keeps or drops equal scores together.
- A class without objects to be found has -1 everywhere and takes no part in means.
- A class with objects but without a true positive has oLRP 1 and false negative 1; its
  localisation, false positive and threshold are NaN and take no part in means.
- A mean of nothing is -1.
- The localisation part is not divided by 1 - τ; `normalised_localisation` is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankdet.eval.instances import Floats, Ints
from rankdet.eval.matching import Matches
from rankdet.eval.means import present_mean


@dataclass(frozen=True, eq=False)
class OptimalLRP:
    """oLRP and its parts for K classes, A area ranges, M limits of detections: each [K, A, M]."""

    tau: float
    """IoU from which on a detection is a true positive."""
    max_detections: tuple[int, ...]
    """M limits of detections per image and class."""
    olrp: Floats
    """In [0, 1]; -1 without objects."""
    localisation: Floats
    """Mean 1 - IoU of the true positives at the optimum, in [0, 1 - tau]."""
    false_positive: Floats
    """FP / (TP + FP) at the optimum, in [0, 1]: 1 - precision."""
    false_negative: Floats
    """FN / objects at the optimum, in [0, 1]: 1 - recall."""
    threshold: Floats
    """Score of the last detection kept at the optimum; keep scores at or above it."""

    @property
    def normalised_localisation(self) -> Floats:
        """[K, A, M] localisation / (1 - tau), in [0, 1]; -1 and NaN as in `localisation`."""
        return _normalised(self.localisation, self.tau)

    def means(self, *, area: int = 0, limit: int = -1) -> tuple[float, float, float, float]:
        """Return the means over classes of oLRP, localisation, false positive, false negative.

        Args:
            area: index of the area range.
            limit: index of the limit of detections.
        """
        parts = (self.olrp, self.localisation, self.false_positive, self.false_negative)
        first, second, third, fourth = (present_mean(part[:, area, limit]) for part in parts)
        return first, second, third, fourth


@dataclass(frozen=True, eq=False)
class LRP:
    """LRP at given thresholds for K classes: each [K]; -1 and NaN as in `OptimalLRP`."""

    tau: float
    """IoU from which on a detection is a true positive."""
    lrp: Floats
    """In [0, 1]."""
    localisation: Floats
    """Mean 1 - IoU of the true positives, in [0, 1 - tau]."""
    false_positive: Floats
    """FP / (TP + FP); NaN where nothing is kept, 1 where all of it is wrong."""
    false_negative: Floats
    """FN / objects."""
    true_positives: Ints
    """Detections kept that are right."""
    false_positives: Ints
    """Detections kept that are wrong; ignored ones are neither."""
    objects: Ints
    """Ground truths to be found."""

    @property
    def normalised_localisation(self) -> Floats:
        """[K] localisation / (1 - tau), in [0, 1]; -1 and NaN as in `localisation`."""
        return _normalised(self.localisation, self.tau)


@dataclass(frozen=True, eq=False)
class LRPCurve:
    """What happens to one class as the threshold falls: N points, highest score first."""

    score: Floats
    """[N] scores of the detections, falling; those ignored are left out."""
    lrp: Floats
    """[N] LRP when this detection is the last one kept."""
    precision: Floats
    """[N] TP / (TP + FP)."""
    recall: Floats
    """[N] TP / objects."""
    localisation: Floats
    """[N] mean 1 - IoU of the true positives; NaN before the first."""


def optimal_lrp(
    matches: Matches, *, tau: float = 0.5, max_detections: Sequence[int] = (1, 10, 100)
) -> OptimalLRP:
    """Find the smallest LRP of each class, its parts, and the score where it is reached.

    Args:
        matches: made with ``tau`` among their IoU thresholds.
        tau: IoU from which on a detection is a true positive, in (0, 1).
        max_detections: limits per image and class, none above that of the matches.

    Returns:
        oLRP and parts of K classes for all area ranges of the matches and all limits.

    Raises:
        ValueError: tau is not in (0, 1) or has no matches; a limit is above that of the matches.

    References:
        Oksuz, Cam, Akbas, Kalkan, "Localization Recall Precision (LRP): A New Performance
        Metric for Object Detection", ECCV 2018, equations 3 to 5 and section 4.
    """
    limits = tuple(max_detections)
    _check(matches, tau, limits)
    shape = (matches.classes, len(matches.area_ranges), len(limits))
    cells = np.full((5, *shape), -1.0)
    for place in np.argwhere(np.broadcast_to(matches.objects.T[..., None] > 0, shape)):
        k, area, limit = (int(i) for i in place)
        run = _run(matches, tau, k, area, limits[limit])
        cell = cells[:, k, area, limit]
        if not run.true.any():
            cell[:] = 1.0, np.nan, np.nan, 1.0, np.nan
            continue
        lrp = run.lrp()
        best = int(np.argmin(lrp))
        cell[:] = lrp[best], *run.parts(best), run.score[best]
    olrp, localisation, false_positive, false_negative, threshold = cells
    return OptimalLRP(tau, limits, olrp, localisation, false_positive, false_negative, threshold)


def lrp_at(
    matches: Matches,
    threshold: float | Sequence[float] | Floats | Mapping[int, float],
    *,
    tau: float = 0.5,
    area: int = 0,
    max_detections: int = 100,
) -> LRP:
    """Compute the LRP of each class at given score thresholds.

    Args:
        matches: made with ``tau`` among their IoU thresholds.
        threshold: detections of this score and above are kept: one for all classes, or [K] one
            for each, or by class index. A NaN, or a class that is left out, keeps nothing.
        tau: IoU from which on a detection is a true positive, in (0, 1).
        area: index of the area range.
        max_detections: limit per image and class, not above that of the matches.

    Returns:
        LRP, its parts, and the counts.

    Raises:
        ValueError: tau is not in (0, 1) or has no matches; the limit is above that of the
            matches; thresholds of another number than the classes.
    """
    _check(matches, tau, (max_detections,))
    classes = matches.classes
    if isinstance(threshold, Mapping):
        each = np.array([threshold.get(k, np.nan) for k in range(classes)], dtype=np.float64)
    else:
        each = np.asarray(threshold, dtype=np.float64)
    if each.shape not in ((), (classes,)):
        raise ValueError(
            f"threshold must be one number or one for each of {classes} classes, "
            f"got shape {each.shape}"
        )
    each = np.broadcast_to(each, (classes,))
    lrp, localisation, false_positive, false_negative = (np.full(classes, -1.0) for _ in range(4))
    right, wrong = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for k in range(classes):
        run = _run(matches, tau, k, area, max_detections)
        last = int((run.score >= each[k]).sum()) - 1
        if last >= 0:
            right[k], wrong[k] = run.true[last], run.false[last]
        if run.objects == 0:
            continue
        if last < 0:
            lrp[k], localisation[k], false_positive[k], false_negative[k] = 1, np.nan, np.nan, 1
            continue
        lrp[k] = run.lrp()[last]
        localisation[k], false_positive[k], false_negative[k] = run.parts(last)
    return LRP(
        tau=tau,
        lrp=lrp,
        localisation=localisation,
        false_positive=false_positive,
        false_negative=false_negative,
        true_positives=right,
        false_positives=wrong,
        objects=matches.objects[area].copy(),
    )


def lrp_curve(
    matches: Matches, klass: int, *, tau: float = 0.5, area: int = 0, max_detections: int = 100
) -> LRPCurve:
    """Return LRP, precision and recall of one class against the score.

    Args:
        matches: made with ``tau`` among their IoU thresholds.
        klass: index of the class, 0 to K - 1.
        tau: IoU from which on a detection is a true positive, in (0, 1).
        area: index of the area range.
        max_detections: limit per image and class, not above that of the matches.

    Returns:
        One point for each detection that is right or wrong. The smallest ``lrp`` is the oLRP of
        the class (1 if there is no point). Without objects LRP and recall are NaN.

    Raises:
        ValueError: tau is not in (0, 1) or has no matches; the limit is above that of the matches.
    """
    _check(matches, tau, (max_detections,))
    run = _run(matches, tau, klass, area, max_detections)
    counted = np.diff(run.true + run.false, prepend=0) > 0
    true, false = run.true[counted], run.false[counted]
    with np.errstate(invalid="ignore"):
        return LRPCurve(
            score=run.score[counted],
            lrp=run.lrp()[counted] if run.objects else np.full(len(true), np.nan),
            precision=true / (true + false),
            recall=true / np.float64(run.objects) if run.objects else np.full(len(true), np.nan),
            localisation=run.error[counted] / true,
        )


@dataclass(frozen=True, eq=False)
class _Run:
    """Running sums over the detections of one class, best score first."""

    tau: float
    objects: int
    score: Floats
    true: Ints
    false: Ints
    error: Floats
    """Sum of 1 - IoU of the true positives."""

    def lrp(self) -> Floats:
        missed = self.objects - self.true
        total = self.error / (1 - self.tau) + self.false + missed
        return total / (self.true + self.false + missed)

    def parts(self, last: int) -> tuple[float, float, float]:
        """Return localisation, false positive, false negative with this detection the last."""
        true, kept = self.true[last], self.true[last] + self.false[last]
        return (
            float(self.error[last] / true) if true else np.nan,
            float(self.false[last] / kept) if kept else np.nan,
            float((self.objects - true) / self.objects),
        )


def _run(matches: Matches, tau: float, klass: int, area: int, limit: int) -> _Run:
    here = slice(matches.starts[klass], matches.starts[klass + 1])
    at = matches.threshold_index(tau)
    # Ignored detections keep their place: it does not matter, and the authors' program does so.
    kept = matches.rank[here] < limit
    found = matches.matched[area, at, here][kept] >= 0
    counts = ~matches.ignored[area, at, here][kept]
    right = found & counts
    error = np.where(right, 1 - matches.iou[area, at, here][kept], 0.0)
    return _Run(
        tau=tau,
        objects=int(matches.objects[area, klass]),
        score=matches.score[here][kept],
        true=np.cumsum(right),
        false=np.cumsum(~found & counts),
        # Rounding may put the IoU of equal boxes above 1 by a last digit.
        error=np.cumsum(np.maximum(error, 0.0)),
    )


def _check(matches: Matches, tau: float, limits: Sequence[int]) -> None:
    if not 0 < tau < 1:
        raise ValueError(f"tau must be above 0 and below 1, got {tau}")
    matches.threshold_index(tau)
    for limit in limits:
        if not 1 <= limit <= matches.max_detections:
            raise ValueError(
                f"max_detections must be from 1 to {matches.max_detections}, the limit of the "
                f"matching, got {limit}"
            )


def _normalised(localisation: Floats, tau: float) -> Floats:
    return np.where(localisation == -1, -1.0, localisation / (1 - tau))
