"""Evaluation: COCO's AP, LRP and its thresholds, objects per image, and how scores follow IoU.

`score` computes everything from COCO's dictionaries; `rankdet.eval.table` prints it (and is not
imported here, as it brings the terminal's library along). For single numbers:
`read_instances`, then `coco_ap`, or `match` and with it `optimal_lrp`, `lrp_at`, `lrp_curve`,
`by_count`, `score_iou_correlation`. Nothing here has a gradient.
"""

from rankdet.eval.by_count import BINS, CountBin, by_count
from rankdet.eval.coco_ap import STATS, CocoAP, average_precision, coco_ap, coco_ap_of
from rankdet.eval.correlation import Correlation, score_iou_correlation
from rankdet.eval.instances import Instances, add_detections, read_instances, read_truth
from rankdet.eval.lrp import LRP, LRPCurve, OptimalLRP, lrp_at, lrp_curve, optimal_lrp
from rankdet.eval.matching import AREA_RANGES, IOU_THRESHOLDS, Matches, match
from rankdet.eval.score import SCHEMA, ClassScore, CountScore, Score, SizeScore, score

__all__ = [
    "AREA_RANGES",
    "BINS",
    "IOU_THRESHOLDS",
    "LRP",
    "SCHEMA",
    "STATS",
    "ClassScore",
    "CocoAP",
    "Correlation",
    "CountBin",
    "CountScore",
    "Instances",
    "LRPCurve",
    "Matches",
    "OptimalLRP",
    "Score",
    "SizeScore",
    "add_detections",
    "average_precision",
    "by_count",
    "coco_ap",
    "coco_ap_of",
    "lrp_at",
    "lrp_curve",
    "match",
    "optimal_lrp",
    "read_instances",
    "read_truth",
    "score",
    "score_iou_correlation",
]
