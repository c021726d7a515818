"""Training on some of the priors, drawn at random, as Faster R-CNN does with cross-entropy.

Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
Networks", NeurIPS 2015, section 3.1.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankdet.ops.checks import require_fraction, require_positive
from rankdet.structures import IGNORED, NEGATIVE, Assigner, Assignment, Priors, Targets


@dataclass(frozen=True)
class SampledAssigner:
    """Another assigner's positives and negatives, of which only some are kept in each image.

    At most floor(``number`` · ``positive_share``) positives, and so many negatives that there are
    ``number`` together, or as many as there are; the others are ignored. They are drawn without
    replacement by torch's generator of the device, so `torch.manual_seed` fixes them.

    Args:
        assigner: whose positives and negatives these are.
        number: of priors kept per image, 1 or more.
        positive_share: at most this part of them is positive, in [0, 1].

    Raises:
        ValueError: a setting is out of its range.

    References:
        Ren et al., NeurIPS 2015, section 3.1.3: 256, a half of them positive. Girshick, "Fast
        R-CNN", ICCV 2015, section 2.3: a quarter.
    """

    assigner: Assigner
    number: int
    positive_share: float

    def __post_init__(self) -> None:
        require_positive("number", self.number)
        require_fraction("positive_share", self.positive_share)

    @torch.no_grad()
    def __call__(self, priors: Priors, targets: Targets) -> Assignment:
        """Return the assignment of a batch; see `structures` for the shapes.

        Gradient: none.
        """
        matched = self.assigner(priors, targets).matched
        lots = torch.rand(matched.shape, device=matched.device)
        most = int(self.number * self.positive_share + 1e-9)  # 0.29 · 100 is a little below 29
        positive, count = self._drawn(lots, matched >= 0, matched.new_full((len(matched),), most))
        negative, _ = self._drawn(lots, matched == NEGATIVE, self.number - count)
        return Assignment(torch.where(positive | negative, matched, IGNORED))

    def _drawn(self, lots: Tensor, candidates: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from each row the candidates of the highest lots.

        Args:
            lots: [B, A] in [0, 1).
            candidates: [B, A] bool.
            most: [B] int64, how many are drawn at most; ``number`` or fewer.

        Returns:
            Which are drawn, [B, A] bool, and how many of each row, [B].
        """
        best = lots.masked_fill(~candidates, -1).topk(min(self.number, lots.shape[1]))
        rank = torch.arange(best.values.shape[1], device=lots.device)
        chosen = (best.values >= 0) & (rank < most[:, None])
        drawn = torch.zeros_like(candidates).scatter_(1, best.indices, chosen)
        return drawn, chosen.sum(1)
