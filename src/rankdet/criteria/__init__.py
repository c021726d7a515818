"""Criteria: from predictions and ground truth to losses, and how these are balanced."""

from __future__ import annotations

from rankdet.criteria.balance import (
    Balance,
    Balanced,
    LearnedBalance,
    ScalarBalance,
    SelfBalance,
)

__all__ = ["Balance", "Balanced", "LearnedBalance", "ScalarBalance", "SelfBalance"]
