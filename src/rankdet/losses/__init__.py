"""Losses for training detectors: pure functions of tensors, each with a thin module beside it.

The ranking losses (`alrp_loss`, `ap_loss`, `rank_sort_loss`) take flat logits of all places and
classes and have a gradient that shares errors out; all others have ordinary derivatives.
"""

from rankdet.losses.alrp import ALRPLoss, ALRPTerms, alrp_loss
from rankdet.losses.ap import APLoss, ap_loss
from rankdet.losses.boxes import (
    ciou_loss,
    diou_loss,
    giou_loss,
    iou_loss,
    localisation_errors,
    smooth_l1,
)
from rankdet.losses.dr import DRLoss, dr_loss
from rankdet.losses.focal import FocalLoss, focal_loss
from rankdet.losses.quality import (
    QualityFocalLoss,
    VarifocalLoss,
    quality_focal_loss,
    varifocal_loss,
)
from rankdet.losses.rank_sort import RankSortLoss, RankSortTerms, rank_sort_loss

__all__ = [
    "ALRPLoss",
    "ALRPTerms",
    "APLoss",
    "DRLoss",
    "FocalLoss",
    "QualityFocalLoss",
    "RankSortLoss",
    "RankSortTerms",
    "VarifocalLoss",
    "alrp_loss",
    "ap_loss",
    "ciou_loss",
    "diou_loss",
    "dr_loss",
    "focal_loss",
    "giou_loss",
    "iou_loss",
    "localisation_errors",
    "quality_focal_loss",
    "rank_sort_loss",
    "smooth_l1",
    "varifocal_loss",
]
