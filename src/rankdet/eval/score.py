"""All numbers of a detector on one data set, in one object with a stable JSON form.

Names are COCO's where COCO has one. A number that nothing stands behind is None here and null in
JSON (the functions underneath have -1 or NaN, see `rankdet.eval.lrp`, which has the conventions of
LRP too). The parts of LRP have these names wherever they appear:

- ``oLRP_loc``: mean 1 - IoU of the detections that are right, in [0, 1 - tau];
- ``oLRP_loc_normalised``: the same divided by 1 - tau, in [0, 1];
- ``oLRP_fp``: share of wrong ones among the detections kept;
- ``oLRP_fn``: share of the objects missed.
"""

# ruff: noqa: N815 - oLRP is how the paper writes it, and how the JSON does.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np

from rankdet.eval.at_threshold import (
    ClassAtThreshold,
    ScoreAtThreshold,
    Thresholds,
    score_at,
)
from rankdet.eval.by_count import BINS, by_count, check_bins
from rankdet.eval.caveats import caveats
from rankdet.eval.coco_ap import STATS, coco_ap_of
from rankdet.eval.correlation import Correlation, score_iou_correlation
from rankdet.eval.instances import Floats, Instances, read_instances
from rankdet.eval.lrp import OptimalLRP, optimal_lrp
from rankdet.eval.matching import IOU_THRESHOLDS, Matches, match
from rankdet.eval.means import present

SCHEMA = 1
"""Version of the JSON form; it rises when a key changes its meaning or goes away."""

SIZES = ("small", "medium", "large")

FEW = 10
"""Numbers that rest on fewer objects than this are marked, unless asked otherwise."""


@dataclass(frozen=True)
class ClassScore:
    """The numbers of one class."""

    id: int
    """Category id."""
    name: str
    """As the ground truth writes it; with the id behind it where two classes share a name."""
    objects: int
    """Ground truths without crowd."""
    detections: int
    """Detections given, before any limit."""
    AP: float | None
    AP50: float | None
    oLRP: float | None
    oLRP_loc: float | None
    oLRP_fp: float | None
    oLRP_fn: float | None
    threshold: float | None
    """The LRP-optimal one: keep scores at or above it. None without a true positive."""
    oLRP_loc_normalised: float | None = None

    @property
    def label(self) -> str:
        """What it is called among warnings."""
        return self.name


@dataclass(frozen=True)
class SizeScore:
    """Means over classes for objects of one size."""

    size: str
    """"small" (up to 32² px²), "medium" (up to 96²), "large"."""
    objects: int
    oLRP: float | None
    oLRP_loc: float | None
    oLRP_fp: float | None
    oLRP_fn: float | None
    oLRP_loc_normalised: float | None = None

    @property
    def label(self) -> str:
        """What it is called among warnings."""
        return f"{self.size} objects"


@dataclass(frozen=True)
class CountScore:
    """Means over classes for the images with so many objects."""

    low: int
    """Least number of objects in an image."""
    high: int | None
    """Largest number, or None for no limit."""
    images: int
    objects: int
    AP: float | None
    AP50: float | None
    oLRP: float | None
    oLRP_loc: float | None
    oLRP_fp: float | None
    oLRP_fn: float | None
    oLRP_loc_normalised: float | None = None

    @property
    def label(self) -> str:
        """What it is called among warnings."""
        return f"images with {count_label(self.low, self.high)} objects"


@dataclass(frozen=True)
class Score:
    """Everything `score` finds out; all errors and precisions are in [0, 1]."""

    images: int
    objects: int
    """Ground truths without crowd."""
    crowd: int
    """Crowd regions."""
    detections: int
    AP: float | None
    """Mean average precision, IoU .5 to .95; more is better, as for all AP and AR."""
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    """Recall with one detection per image and class, mean over IoU .5 to .95."""
    AR10: float | None
    AR100: float | None
    ARs: float | None
    ARm: float | None
    ARl: float | None
    oLRP: float | None
    """Optimal LRP error; less is better, as for its parts."""
    oLRP_loc: float | None
    """Mean 1 - IoU of true positives, in [0, 1 - tau]."""
    oLRP_loc_normalised: float | None
    """The same divided by 1 - tau, in [0, 1]."""
    oLRP_fp: float | None
    """Share of wrong ones among the detections kept."""
    oLRP_fn: float | None
    """Share of objects missed."""
    tau: float
    """IoU from which on LRP takes a detection as right."""
    by_size: tuple[SizeScore, ...]
    by_count: tuple[CountScore, ...]
    per_class: tuple[ClassScore, ...]
    """By ascending category id."""
    correlation: Correlation
    warnings: tuple[str, ...]
    """What to know before one believes a number."""
    few: int = FEW
    """Numbers that rest on fewer objects than this are named in the warnings."""
    at_threshold: ScoreAtThreshold | None = None
    """LRP at thresholds that were asked for; None where none were."""

    @property
    def thresholds(self) -> dict[str, float | None]:
        """The LRP-optimal threshold of each class, by its name."""
        return {each.name: each.threshold for each in self.per_class}

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and None, ready for ``json.dump``."""
        plain: dict[str, Any] = _plain(asdict(self))
        return {"schema": SCHEMA, **plain, "thresholds": self.thresholds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Score:
        """Read what `to_json` wrote.

        Raises:
            ValueError: another schema version, or keys are missing or unknown.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"this is no score of schema {SCHEMA}: found schema {found!r}")
        rest = {k: v for k, v in data.items() if k not in ("schema", "thresholds")}
        nested = {"by_size": SizeScore, "by_count": CountScore, "per_class": ClassScore}
        for key, kind in nested.items():
            if key in rest:
                rest[key] = _build_all(kind, rest[key], key)
        if "correlation" in rest:
            rest["correlation"] = _build(Correlation, rest["correlation"], "correlation")
        if "warnings" in rest:
            rest["warnings"] = tuple(rest["warnings"])
        if rest.get("at_threshold") is not None:
            at = dict(rest["at_threshold"])
            at["per_class"] = _build_all(ClassAtThreshold, at.get("per_class", ()), "at_threshold")
            rest["at_threshold"] = _build(ScoreAtThreshold, at, "at_threshold")
        made = _build(cls, rest, "score")
        assert isinstance(made, cls)
        return made


def score(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    bins: Sequence[tuple[int, int | None]] = BINS,
    tau: float = 0.5,
    few: int = FEW,
    threshold: Thresholds | None = None,
) -> Score:
    """Compute AP, LRP, thresholds, and all the rest for the detections of one data set.

    COCO's settings: 100 detections per image and class, its area ranges and IoU thresholds.

    Args:
        ground_truth: COCO instances dictionary; see `read_instances` for what it must hold.
        detections: COCO results list: image_id, category_id, bbox (x, y, width, height in pixels),
            score. May be empty.
        bins: least and largest number of objects in an image, ascending; None is no limit.
        tau: IoU from which on LRP takes a detection as right, in (0, 1). By-count LRP and the
            correlation stay at .5.
        few: numbers that rest on fewer objects than this are named in the warnings.
        threshold: also compute LRP with the detections of this score and above: one number for all
            classes, or by name of the class.

    Returns:
        The score. Without detections AP is 0 and oLRP 1; without objects both are None.

    Raises:
        TypeError: one of the two is no mapping or no list.
        ValueError: a record is wrong (it is named), bins overlap, or tau is out of range.

    Example:
        >>> cat = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
        >>> truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}],
        ...          "annotations": [cat]}
        >>> found = score(truth, [{**cat, "score": 0.9}])
        >>> round(found.AP, 6), found.oLRP, found.thresholds
        (1.0, 0.0, {'cat': 0.9})
    """
    _check(bins, tau)
    return score_of(
        read_instances(ground_truth, detections), bins=bins, tau=tau, few=few, threshold=threshold
    )


def score_of(
    instances: Instances,
    *,
    bins: Sequence[tuple[int, int | None]] = BINS,
    tau: float = 0.5,
    few: int = FEW,
    threshold: Thresholds | None = None,
) -> Score:
    """Compute the same as `score` from what has been read and checked already.

    Args:
        instances: from `read_instances`.
        bins: as for `score`, like all that follows.
        tau: IoU.
        few: number of objects.
        threshold: of scores.

    Raises:
        ValueError: bins overlap, tau is out of range, or a threshold is of no class.
    """
    _check(bins, tau)
    strict = match(instances, iou_thresholds=IOU_THRESHOLDS)
    sized = strict if tau in IOU_THRESHOLDS else match(instances, iou_thresholds=(tau,))
    ap = coco_ap_of(strict)
    lrp = optimal_lrp(sized, tau=tau, max_detections=(100,))
    counted = tuple(
        CountScore(
            part.low, part.high, len(part.images), part.objects,
            *present(part.ap, part.ap50), *_parts(part.olrp, 0.5),
        )
        for part in by_count(strict, images=len(instances.image_ids), bins=bins)
    )  # fmt: skip
    sizes = tuple(
        SizeScore(name, int(sized.objects[a].sum()), *_parts(lrp.means(area=a), tau))
        for a, name in enumerate(SIZES, start=1)
    )
    classes = _per_class(instances, sized, lrp, ap.ap_per_class, ap.ap50_per_class)
    olrp, loc, false_positive, false_negative, normalised = _parts(lrp.means(), tau)
    return Score(
        images=len(instances.image_ids),
        objects=int((~instances.gt_crowd).sum()),
        crowd=int(instances.gt_crowd.sum()),
        detections=len(instances.dt_scores),
        **dict(zip(STATS, present(*ap.stats), strict=True)),
        oLRP=olrp,
        oLRP_loc=loc,
        oLRP_loc_normalised=normalised,
        oLRP_fp=false_positive,
        oLRP_fn=false_negative,
        tau=float(tau),
        by_size=sizes,
        by_count=counted,
        per_class=classes,
        correlation=score_iou_correlation(strict),
        warnings=tuple(caveats(instances, classes, (*sizes, *counted), few=few)),
        few=few,
        at_threshold=None if threshold is None else score_at(instances, sized, threshold, tau=tau),
    )


def _check(bins: Sequence[tuple[int, int | None]], tau: float) -> None:
    check_bins(bins)
    if not 0 < tau < 1:
        raise ValueError(f"tau must be above 0 and below 1, got {tau}")


def _parts(lrp: Sequence[float], tau: float) -> tuple[float | None, ...]:
    """Return oLRP, localisation, false positive, false negative, normalised localisation."""
    olrp, loc, false_positive, false_negative = present(*lrp)
    normalised = None if loc is None else loc / (1 - tau)
    return olrp, loc, false_positive, false_negative, normalised


def _per_class(
    instances: Instances,
    sized: Matches,
    lrp: OptimalLRP,
    ap: Floats,
    ap50: Floats,
) -> tuple[ClassScore, ...]:
    classes = len(instances.names)
    given = np.bincount(instances.dt_class, minlength=classes)
    objects = sized.objects[0]
    scores = []
    for k, name in enumerate(instances.names):
        numbers = (lrp.olrp, lrp.localisation, lrp.false_positive, lrp.false_negative)
        olrp, loc, false_positive, false_negative, normalised = _parts(
            [n[k, 0, 0] for n in numbers], lrp.tau
        )
        # A threshold is any real number: even -1 is one where there are objects.
        threshold = float(lrp.threshold[k, 0, 0])
        known = objects[k] > 0 and np.isfinite(threshold)
        scores.append(
            ClassScore(
                id=int(instances.category_ids[k]),
                name=name,
                objects=int(objects[k]),
                detections=int(given[k]),
                AP=present(ap[k])[0],
                AP50=present(ap50[k])[0],
                oLRP=olrp,
                oLRP_loc=loc,
                oLRP_loc_normalised=normalised,
                oLRP_fp=false_positive,
                oLRP_fn=false_negative,
                threshold=threshold if known else None,
            )
        )
    return tuple(scores)


def count_label(low: int, high: int | None) -> str:
    """Return a bin of counts as people write it.

    Example:
        >>> count_label(4, 10), count_label(63, None)
        ('4-10', '63+')
    """
    return f"{low}+" if high is None else f"{low}-{high}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def _build_all(kind: type[Any], entries: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(entries, list | tuple):
        raise ValueError(f"{where} must be a list, got {type(entries).__name__}")
    return tuple(_build(kind, each, f"{where}[{n}]") for n, each in enumerate(entries))


def _build(kind: type[Any], data: Mapping[str, Any], where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a dictionary, got {type(data).__name__}")
    known = {f.name for f in fields(kind)}
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    missing, unknown = sorted(needed - set(data)), sorted(set(data) - known)
    if missing or unknown:
        raise ValueError(f"{where}: missing keys {missing}, unknown keys {unknown}")
    return kind(**data)
