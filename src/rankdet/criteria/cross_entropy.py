"""Cross-entropy beside any box loss, both per example, as Faster R-CNN trains its two stages.

Girshick, "Fast R-CNN", ICCV 2015 (softmax, Smooth L1 loss).
Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
Networks", NeurIPS 2015 (object or not).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankdet.criteria.matching import match, normaliser_of, require_branches
from rankdet.ops.checks import require_choice, require_positive
from rankdet.structures import LossTerms

if TYPE_CHECKING:
    from rankdet.criteria.dense import Box
    from rankdet.criteria.matching import Matches, PredictiveAssigner
    from rankdet.structures import Assigner, Predictions, Targets

Scores = Literal["sigmoid", "softmax"]
# What `cross_entropy` leaves out.
_IGNORED = -100
# A logit whose loss, if it is to be 0, and whose gradient both are exactly 0.
_NOTHING = -1e4


class CrossEntropyCriterion(nn.Module):
    """Cross-entropy of the examples that are not ignored, and a box loss of the positives.

        total = classification + box_weight * localisation

    Both are sums over the number of priors that are not ignored, positive or negative: the mean
    number of all processes, at least 1. So the more negatives there are, the less the boxes
    count, which is why a sampler (`rankdet.assign.sampling`) usually keeps their share constant.

    With ``"softmax"`` the classes and the branch "background" exclude each other; with
    ``"sigmoid"`` each class is decided on its own, and the losses of the classes are added.

    Args:
        assigner: decides who is positive, negative and ignored.
        box: `rankdet.criteria.SmoothL1Box`, `rankdet.criteria.IoUBox` or your own.
        scores: ``"sigmoid"`` or ``"softmax"``.
        box_weight: zero or more; 10 is usual for GIoU in a second stage.

    Gradient: ordinary derivative.

    References:
        Girshick, ICCV 2015, equations 1 to 3; Ren et al., NeurIPS 2015, equation 1 with both
        normalisers equal (see the top of this file).
    """

    needs: frozenset[str]

    def __init__(
        self,
        assigner: Assigner | PredictiveAssigner,
        box: Box,
        *,
        scores: Scores = "sigmoid",
        box_weight: float = 1.0,
    ) -> None:
        super().__init__()
        require_choice("scores", scores, get_args(Scores))
        require_positive("box_weight", box_weight, zero_allowed=True)
        self.assigner = assigner
        self.box = box
        self.scores: Scores = scores
        self.box_weight = box_weight
        self.needs = frozenset({"background"}) if scores == "softmax" else frozenset()

    def forward(self, predictions: Predictions, targets: Targets) -> LossTerms:
        """Return the loss of a batch.

        Args:
            predictions: of B images; with the branch "background" or without branches.
            targets: of the same images.

        Returns:
            The loss, and its parts "classification", "localisation" (before its weight),
            "positives" and "examples": how many are not ignored. If no process has examples the
            losses are 0, with gradients of 0.

        Raises:
            TypeError: logits or codes are not floating point.
            ValueError: shapes do not fit, or the predictions have other branches.
        """
        require_branches(self.needs, predictions.branches)
        matches = match(self.assigner, predictions, targets)
        classes = predictions.logits.shape[2]
        dtype = torch.promote_types(predictions.logits.dtype, torch.float32)
        logits = predictions.logits.reshape(-1, classes).to(dtype)
        kinds = matches.targets.view(-1, classes)
        if self.scores == "softmax":
            background = predictions.branches["background"].reshape(-1, 1).to(dtype)
            summed = _softmax(torch.cat([logits, background], 1), kinds, matches)
        else:
            summed = _sigmoid(logits, kinds)
        examples = (kinds[:, 0] >= 0).sum(dtype=dtype)
        normaliser = normaliser_of(examples, device=logits.device)
        classification = summed / normaliser
        localisation = self.box(matches).sum() / normaliser
        parts = {
            "classification": classification.detach(),
            "localisation": localisation.detach(),
            "positives": matches.counted(),
            "examples": examples,
        }
        total = torch.add(classification, localisation, alpha=self.box_weight)
        return LossTerms(total, parts)

    def end_period(self) -> None:
        """Do nothing: the weight is a constant."""

    def extra_repr(self) -> str:
        """Show the parts."""
        return (
            f"assigner={self.assigner}, box={self.box}, scores={self.scores}, "
            f"box_weight={self.box_weight:g}"
        )


def _softmax(logits: Tensor, kinds: Tensor, matches: Matches) -> Tensor:
    """Return the sum of the losses; logits [M, C + 1], background last."""
    # What is ignored may be anything; torch's own way to ignore gives NaN a gradient of NaN.
    logits = logits.masked_fill(kinds[:, :1] < 0, 0)
    wanted = torch.full_like(kinds[:, 0], logits.shape[1] - 1, dtype=torch.int64)
    wanted = wanted.masked_fill(kinds[:, 0] < 0, _IGNORED)
    wanted = wanted.index_copy(0, matches.places, matches.labels)
    return functional.cross_entropy(logits, wanted, ignore_index=_IGNORED, reduction="sum")


def _sigmoid(logits: Tensor, kinds: Tensor) -> Tensor:
    """Return the sum of the losses; logits [M, C]."""
    # Not by a weight of 0: what is ignored may be anything, NaN too.
    logits = logits.masked_fill(kinds < 0, _NOTHING)
    wanted = (kinds > 0).to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
