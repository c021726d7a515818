"""Criteria: from predictions and ground truth to losses, and how these are balanced."""

from __future__ import annotations

from rankdet.criteria.alrp import ALRPCriterion
from rankdet.criteria.balance import (
    Balance,
    Balanced,
    LearnedBalance,
    ScalarBalance,
    SelfBalance,
)
from rankdet.criteria.balance_gradient import GradientBalance
from rankdet.criteria.cross_entropy import CrossEntropyCriterion
from rankdet.criteria.dense import (
    APClassification,
    Box,
    Classification,
    DenseCriterion,
    DRClassification,
    FocalClassification,
    IoUBox,
    SmoothL1Box,
    Weighting,
)
from rankdet.criteria.free_anchor import FreeAnchorCriterion
from rankdet.criteria.matching import Matches, PredictiveAssigner, match
from rankdet.criteria.paa import FocalGIoUCost, PAACriterion
from rankdet.criteria.quality import (
    IoUWeighting,
    QualityFocalClassification,
    ScoreWeighting,
    VarifocalClassification,
)
from rankdet.criteria.rank_sort import RankSortCriterion
from rankdet.criteria.regions import AlreadyMatched, RegionCriterion
from rankdet.criteria.two_stage import TwoStageCriterion

__all__ = [
    "ALRPCriterion",
    "APClassification",
    "AlreadyMatched",
    "Balance",
    "Balanced",
    "Box",
    "Classification",
    "CrossEntropyCriterion",
    "DRClassification",
    "DenseCriterion",
    "FocalClassification",
    "FocalGIoUCost",
    "FreeAnchorCriterion",
    "GradientBalance",
    "IoUBox",
    "IoUWeighting",
    "LearnedBalance",
    "Matches",
    "PAACriterion",
    "PredictiveAssigner",
    "QualityFocalClassification",
    "RankSortCriterion",
    "RegionCriterion",
    "ScalarBalance",
    "ScoreWeighting",
    "SelfBalance",
    "SmoothL1Box",
    "TwoStageCriterion",
    "VarifocalClassification",
    "Weighting",
    "match",
]
