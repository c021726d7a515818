"""aLRP Loss as a criterion: one ranking of all logits of a batch, and its balance.

K. Oksuz, B. C. Cam, E. Akbas, S. Kalkan, "A Ranking-based, Balanced Loss Function Unifying
Classification and Localisation in Object Detection", NeurIPS 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor, nn

from rankdet.criteria.matching import match, normaliser_of, require_branches
from rankdet.losses.alrp import LocRanking, alrp_loss
from rankdet.losses.boxes import localisation_errors
from rankdet.ops.checks import require_choice
from rankdet.ops.rank.distributed import Processes, Ranking, carry, group_of
from rankdet.structures import LossTerms

if TYPE_CHECKING:
    from rankdet.criteria.balance import Balance
    from rankdet.criteria.matching import PredictiveAssigner
    from rankdet.structures import Assigner, Predictions, Targets

Frame = Literal["prior", "pixels"]
Localisation = Literal["ranked", "mean"]


class ALRPCriterion(nn.Module):
    """aLRP Loss of a batch: all logits of all its images, levels and classes in one ranking.

        total = classification + weight * localisation

    with the weight of ``balance``. The localisation error of a positive is that of its predicted
    box and its object.

    Args:
        assigner: decides who is positive.
        balance: weighs localisation against classification: `SelfBalance` in the paper, or
            `GradientBalance`, `ScalarBalance`, `LearnedBalance`.
        delta: half-width of the smoothed step, in units of the logits.
        tau: IoU from which a positive counts as such, in [0, 1).
        box: box loss of the localisation error: ``"iou"``, ``"giou"``, ``"diou"`` or ``"ciou"``.
        localisation: ``"ranked"``: the localisation part of aLRP Loss, in which the error of a
            positive is divided by its rank. ``"mean"``: the mean error of the positives, which all
            count alike; over the positives of all processes. Classification is the same.
        loc_ranking: how positives rank among themselves in the localisation part; ``"hard"`` is
            the authors' code, see `rankdet.losses.alrp_loss`.
        eps: of the box loss, in the square of the unit of ``frame``.
        frame: where IoU and GIoU are taken. ``"prior"``: both boxes go through the box codes into
            the frame of the prior, as in the authors' dense heads; ``"pixels"``, as in their
            head for regions. The two differ by ``eps`` and by the limits of the codes. DIoU and
            CIoU are always in pixels.
        ranking: in a distributed training. ``"local"``: each process ranks its own batch, and
            notes its own losses in the balance. ``"global"``: one ranking of all processes, whose
            losses and averaged gradients are those of one big batch; all processes must call the
            criterion alike, see `rankdet.losses.alrp_loss`. The same with one process.

    Gradient: error sharing for the logits, ordinary derivative for the codes; see
    `rankdet.losses.alrp_loss`.

    References:
        Oksuz, Cam, Akbas, Kalkan, NeurIPS 2020 (see the top of this file), sections 3 and 4.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        assigner: Assigner | PredictiveAssigner,
        balance: Balance,
        *,
        delta: float = 1.0,
        tau: float = 0.5,
        box: str = "giou",
        localisation: Localisation = "ranked",
        loc_ranking: LocRanking = "smooth",
        eps: float = 1e-6,
        frame: Frame = "prior",
        ranking: Ranking = "local",
    ) -> None:
        super().__init__()
        require_choice("box", box, ("iou", "giou", "diou", "ciou"))
        require_choice("localisation", localisation, get_args(Localisation))
        require_choice("frame", frame, get_args(Frame))
        require_choice("ranking", ranking, get_args(Ranking))
        self.assigner = assigner
        self.balance = balance
        self.delta, self.tau, self.box, self.eps = delta, tau, box, eps
        self.localisation: Localisation = localisation
        self.loc_ranking: LocRanking = loc_ranking
        self.frame: Frame = frame
        self.ranking: Ranking = ranking

    def forward(self, predictions: Predictions, targets: Targets) -> LossTerms:
        """Return the loss of a batch.

        Args:
            predictions: of B images; without further branches.
            targets: of the same images.

        Returns:
            The loss, and its parts "classification", "localisation" (before its weight),
            "balance" (the weight) and "positives", of this process. Without positives, of any
            process that ranks with this one, the losses are 0, with gradients of 0, and the
            balance takes no note of the batch.

        Raises:
            TypeError: logits or codes are not floating point.
            ValueError: shapes do not fit, or the predictions have a branch.
        """
        require_branches(self.needs, predictions.branches)
        matches = match(self.assigner, predictions, targets)
        relative = self.frame == "prior" and self.box in ("iou", "giou")
        pred, target = matches.in_prior_frame() if relative else matches.in_pixels()
        errors = localisation_errors(pred, target, kind=self.box, tau=self.tau, eps=self.eps)
        group = group_of(self.ranking)
        terms = alrp_loss(
            predictions.logits.reshape(-1),
            matches.targets,
            errors,
            delta=self.delta,
            loc_ranking=self.loc_ranking,
            group=group,
        )
        localisation = terms.localisation
        if self.localisation == "mean":
            localisation = _mean(errors, matches.count, group)
        # The balance is to do the same on all processes that have the same losses.
        count = matches.count > 0 if group is None else group.add(matches.counted())
        balanced = self.balance(terms.classification, localisation, count, predictions.shared)
        parts = {
            "classification": terms.classification.detach(),
            "localisation": localisation.detach(),
            "balance": balanced.weight,
            "positives": matches.counted(),
        }
        return LossTerms(balanced.total, parts)

    def end_period(self) -> None:
        """End an epoch of the balance. All processes must call this together."""
        self.balance.end_epoch()

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"assigner={self.assigner}, delta={self.delta}, tau={self.tau}, box={self.box}, "
            f"localisation={self.localisation}, loc_ranking={self.loc_ranking}, eps={self.eps}, "
            f"frame={self.frame}, ranking={self.ranking}"
        )


def _mean(errors: Tensor, count: int, group: Processes | None) -> Tensor:
    """Return the mean error over the positives of all processes, 0-d; 0 without any.

    Gradient: such that the mean over the processes of the gradients is that of one big batch.
    """
    share = errors.sum() / normaliser_of(count, device=errors.device)
    if group is None:
        return share
    return carry(group.add(share.detach()) / group.size, share)
