"""The loss of a detector of two stages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rankdet.ops.checks import require_positive
from rankdet.structures import LossTerms

if TYPE_CHECKING:
    from rankdet.criteria.regions import RegionCriterion
    from rankdet.structures import Targets, TwoStagePredictions


class TwoStageCriterion(nn.Module):
    """The sum of a criterion for each stage.

        total = first_weight * first + second

    To the first stage all objects are of one class. Each criterion has a balance of its own, and
    its own ranking, which with ``ranking="global"`` is one of all processes of a distributed
    training: of all anchors in the first stage, of all regions in the second.

    Args:
        first: a criterion of dense predictions, which needs no branch.
        second: a criterion of regions.
        first_weight: zero or more; 0.2 with aLRP Loss, 1 with cross-entropy.

    Raises:
        ValueError: the first criterion needs a branch, or the weight is negative.

    Gradient: those of the two.

    References:
        Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region
        Proposal Networks", NeurIPS 2015 (trained jointly, as approximately there: regions are
        constants). The weight from the code of Oksuz, Cam, Akbas, Kalkan, "A Ranking-based,
        Balanced Loss Function Unifying Classification and Localisation in Object Detection",
        NeurIPS 2020.
    """

    needs: frozenset[str]

    def __init__(
        self, first: nn.Module, second: RegionCriterion, *, first_weight: float = 1.0
    ) -> None:
        super().__init__()
        require_positive("first_weight", first_weight, zero_allowed=True)
        if first.needs:
            raise ValueError(
                f"the criterion of the first stage must need no branch, got needs of {first.needs}"
            )
        self.first = first
        self.second = second
        self.first_weight = first_weight
        self.needs = second.needs

    def forward(self, predictions: TwoStagePredictions, targets: Targets) -> LossTerms:
        """Return the loss of a batch.

        Args:
            predictions: of B images.
            targets: of the same images.

        Returns:
            The loss; the parts of the second stage by their names, and those of the first by
            theirs after "rpn_", before the weight.

        Raises:
            TypeError: logits or codes are not floating point.
            ValueError: shapes or branches do not fit.
        """
        something = replace(targets, labels=targets.labels.clamp(max=0))  # -1 stays: padding
        first = self.first(predictions.first, something)
        assert isinstance(first, LossTerms)
        second = self.second(predictions.second, targets)
        assert isinstance(second, LossTerms)
        total = torch.add(second.total, first.total, alpha=self.first_weight)
        return LossTerms(total, {**second.parts, **{f"rpn_{k}": v for k, v in first.parts.items()}})

    def end_period(self) -> None:
        """End an epoch of both balances. All processes must call this together."""
        for criterion in (self.first, self.second):
            end: Any = criterion.end_period
            end()

    def extra_repr(self) -> str:
        """Show the weight."""
        return f"first_weight={self.first_weight:g}"
