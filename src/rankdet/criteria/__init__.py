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
from rankdet.criteria.dense import (
    APClassification,
    Box,
    Classification,
    DenseCriterion,
    FocalClassification,
    IoUBox,
    SmoothL1Box,
)
from rankdet.criteria.matching import Matches, match
from rankdet.criteria.rank_sort import RankSortCriterion

__all__ = [
    "ALRPCriterion",
    "APClassification",
    "Balance",
    "Balanced",
    "Box",
    "Classification",
    "DenseCriterion",
    "FocalClassification",
    "IoUBox",
    "LearnedBalance",
    "Matches",
    "RankSortCriterion",
    "ScalarBalance",
    "SelfBalance",
    "SmoothL1Box",
    "match",
]
