"""What the report is about, with everything in it worked out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankdet.eval.instances import Floats, Instances, Ints, read_instances
from rankdet.eval.lrp import LRPCurve, lrp_curve
from rankdet.eval.matching import AREA_RANGES, Matches, match
from rankdet.eval.report.confusion import Outcomes, outcomes
from rankdet.eval.score import Score


@dataclass(frozen=True)
class RunForReport:
    """A detector's results on one data set, for `write_report`."""

    name: str
    """As people call it; any text."""
    score: Score
    """From `rankdet.eval.score.score` on the two below."""
    ground_truth: Mapping[str, Any]
    """COCO instances dictionary."""
    detections: Sequence[Mapping[str, Any]]
    """COCO results list."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One class of one run, as drawn."""

    recall: Floats
    precision: Floats
    """Best precision at this recall or a larger one, as COCO's AP takes it."""
    threshold: Floats
    """Falling."""
    lrp: Floats
    best: tuple[float, float, float, float] | None
    """Recall, precision, threshold, and LRP at the optimum."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run, matched."""

    name: str
    score: Score
    instances: Instances
    matches: Matches
    outcomes: Outcomes
    curves: tuple[Curve, ...]
    """[K]."""
    class_of: Ints
    """[D] class of each detection of the matches."""


def analyse(run: RunForReport) -> Run:
    """Match a run and work out its curves and outcomes.

    Raises:
        ValueError: a record is wrong, or the score is of other data.
    """
    instances = read_instances(run.ground_truth, run.detections)
    score = run.score
    names = tuple(each.name for each in score.per_class)
    told = (len(names), score.images, score.objects, score.detections)
    objects = int((~instances.gt_crowd).sum())
    found = (len(instances.names), len(instances.image_ids), objects, len(instances.dt_scores))
    if names != instances.names or told != found:
        raise ValueError(
            f"the score of run {run.name!r} is of other data: it has {_counts(told)}; ground truth "
            f"and detections have {_counts(found)}"
        )
    tau = score.tau
    matches = match(instances, iou_thresholds=(tau,), area_ranges=AREA_RANGES[:1])
    thresholds = [each.threshold for each in score.per_class]
    return Run(
        name=run.name,
        score=score,
        instances=instances,
        matches=matches,
        outcomes=outcomes(instances, matches, thresholds, tau=tau),
        curves=tuple(
            _curve(lrp_curve(matches, k, tau=tau), int(matches.objects[0, k]))
            for k in range(len(names))
        ),
        class_of=np.repeat(np.arange(len(names)), np.diff(matches.starts)),
    )


def _counts(numbers: tuple[int, ...]) -> str:
    words = ("classes", "images", "objects", "detections")
    return ", ".join(f"{number} {word}" for number, word in zip(numbers, words, strict=True))


def _curve(curve: LRPCurve, objects: int) -> Curve:
    if not objects or not len(curve.score):
        nothing = np.zeros(0)
        return Curve(nothing, nothing, nothing, nothing, None)
    best = int(np.argmin(curve.lrp))
    at = (curve.recall[best], curve.precision[best], curve.score[best], curve.lrp[best])
    return Curve(
        recall=curve.recall,
        precision=np.maximum.accumulate(curve.precision[::-1])[::-1],
        threshold=curve.score,
        lrp=curve.lrp,
        best=(float(at[0]), float(at[1]), float(at[2]), float(at[3])) if at[0] > 0 else None,
    )
