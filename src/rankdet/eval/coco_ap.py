"""COCO's average precision and recall of boxes.

Lin, Maire, Belongie, Hays, Perona, Ramanan, Dollár, Zitnick, "Microsoft COCO: Common Objects in
Context", ECCV 2014. The twelve numbers and their names are those of its evaluation program. They
come from the same matching as everything else here, so that it is done only once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankdet.eval.instances import Floats, Instances
from rankdet.eval.matching import AREA_RANGES, IOU_THRESHOLDS, Matches, match
from rankdet.eval.means import present_mean

STATS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
"""Names of COCO's twelve numbers, in COCO's order."""

_RECALLS = np.linspace(0.0, 1.0, 101)
_LIMITS = (1, 10, 100)


@dataclass(frozen=True, eq=False)
class CocoAP:
    """COCO's numbers; -1 where there is no object to be found, as in COCO's own program."""

    stats: Floats
    """[12] in the order of `STATS`."""
    ap_per_class: Floats
    """[K] AP at IoU .5 to .95, all areas, 100 detections per image and class."""
    ap50_per_class: Floats
    """[K] AP at IoU .5."""
    ar_per_class: Floats
    """[K] AR at IoU .5 to .95, 100 detections per image and class."""


def coco_ap(instances: Instances) -> CocoAP:
    """Compute COCO's average precision and recall of boxes.

    Args:
        instances: from `read_instances`.

    Returns:
        The twelve numbers and those of each class. A class with objects but without detections
        has AP 0; one without objects -1, and it takes no part in the means.
    """
    return coco_ap_of(match(instances, iou_thresholds=IOU_THRESHOLDS))


def coco_ap_of(matches: Matches) -> CocoAP:
    """Compute COCO's average precision and recall from matches that were made with its settings.

    Args:
        matches: made with COCO's ten IoU thresholds, four area ranges, and 100 detections.

    Returns:
        As `coco_ap`.

    Raises:
        ValueError: the matches were made with other settings.
    """
    settings = (matches.iou_thresholds, matches.area_ranges, matches.max_detections)
    if settings != (IOU_THRESHOLDS, AREA_RANGES, _LIMITS[-1]):
        raise ValueError(
            "COCO's numbers need matches at IoU .5 to .95, with its four area ranges and 100 "
            "detections per image and class: match(instances, iou_thresholds=IOU_THRESHOLDS)"
        )
    precision = [average_precision(matches, area=area) for area in range(len(AREA_RANGES))]
    recall = [best_recall(matches, area=area) for area in range(len(AREA_RANGES))]
    stats = [
        present_mean(precision[0]),
        present_mean(precision[0][matches.threshold_index(0.5)]),
        present_mean(precision[0][matches.threshold_index(0.75)]),
        *(present_mean(each) for each in precision[1:]),
        *(present_mean(best_recall(matches, limit=limit)) for limit in _LIMITS),
        *(present_mean(each) for each in recall[1:]),
    ]
    return CocoAP(
        stats=np.array(stats),
        # A class has objects at all thresholds or at none.
        ap_per_class=precision[0].mean(axis=0),
        ap50_per_class=precision[0][matches.threshold_index(0.5)],
        ar_per_class=recall[0].mean(axis=0),
    )


def average_precision(matches: Matches, *, area: int = 0) -> Floats:
    """Return COCO's AP of each IoU threshold and class: [T, K].

    The mean over 101 recalls 0, .01, .., 1 of the best precision at that recall or a larger one, 0
    where the recall is not reached; all detections of the matches. -1 for a class without objects.

    Args:
        matches: with any IoU thresholds.
        area: index of the area range.
    """
    result = np.full((len(matches.iou_thresholds), matches.classes), -1.0)
    for k, objects in enumerate(matches.objects[area].tolist()):
        if not objects:
            continue
        here = slice(matches.starts[k], matches.starts[k + 1])
        found = matches.matched[area, :, here] >= 0
        counts = ~matches.ignored[area, :, here]
        # How many true positives each recall takes, in the same division as COCO's.
        needed = np.searchsorted(np.arange(objects + 1) / objects, _RECALLS)
        for t in range(len(result)):
            right = found[t] & counts[t]
            kept = np.cumsum(counts[t])[right]
            precision = np.arange(1, len(kept) + 1) / (kept + np.spacing(1.0))
            best = np.maximum.accumulate(precision[::-1])[::-1]
            reached = needed[needed <= len(best)]
            # Recall 0 is had by the first true positive, if there is one.
            result[t, k] = best[np.maximum(reached, 1) - 1].sum() / 101 if len(best) else 0.0
    return result


def best_recall(matches: Matches, *, area: int = 0, limit: int | None = None) -> Floats:
    """Return the share of objects found by any detection, by IoU threshold and class: [T, K].

    Args:
        matches: with any IoU thresholds.
        area: index of the area range.
        limit: of detections per image and class; None for that of the matches.

    Returns:
        Shares; -1 for a class without objects.
    """
    right = (matches.matched[area] >= 0) & ~matches.ignored[area]
    if limit is not None:
        right &= matches.rank < limit
    before = np.pad(np.cumsum(right, axis=1), ((0, 0), (1, 0)))
    found = before[:, matches.starts[1:]] - before[:, matches.starts[:-1]]
    objects = matches.objects[area]
    shares: Floats = np.where(objects > 0, found / np.maximum(objects, 1), -1.0)
    return shares
