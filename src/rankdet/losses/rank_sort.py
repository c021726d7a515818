"""Rank & Sort Loss: positives above negatives, and among themselves by localisation quality.

K. Oksuz, B. C. Cam, E. Akbas, S. Kalkan, "Rank & Sort Loss for Object Detection and Instance
Segmentation", ICCV 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from rankdet.losses import error_sharing
from rankdet.ops.checks import require_floating, require_positive, require_shape
from rankdet.ops.rank.arrays import double, library_of, put, quiet
from rankdet.ops.rank.distributed import Processes, processes_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RankSortTerms(NamedTuple):
    """The two parts of Rank & Sort Loss; their sum is the loss."""

    ranking: Tensor
    sorting: Tensor


def rank_sort_loss(
    logits: Tensor,
    targets: Tensor,
    ious: Tensor,
    *,
    delta: float = 0.5,
    eps: float = 1e-10,
    group: ProcessGroup | Processes | None = None,
) -> RankSortTerms:
    """Rank & Sort: the ranking error of each positive, and its excess sorting error.

    With FP_i the smoothed number of negatives above positive i, t_k the IoU of positive k,
    H the smoothed step and r+_i = sum over positives k (i included) of H(p_k - p_i):

        ranking = mean_i FP_i / (r+_i + FP_i)
        sorting = mean_i (current_i - target_i)

    where current_i is the mean of 1 - t_k over the positives at or above i, weighted by H, and
    target_i the same over those of them with t_k >= t_i: what it would be if none were above i
    that is worse localised than i.

    Gradient: error sharing, not a derivative, each term with its own upstream gradient.
    Ranking: positive i receives - R_i / P and negative j the sum of H(s_j - p_i) R_i / (FP_i P).
    Sorting: positive i receives - e_i / P, with e_i = current_i - target_i, and each positive k
    with t_k < t_i its share H(p_k - p_i) e_i / (D_i P), where D_i is the sum of these H.

    With a group, the positives and negatives of all its processes form one ranking. Every process
    gets the same values, that of the one big batch, with P the positives of all; its gradients are
    those of its own logits times the number of processes, so that averaging over the
    processes, as `DistributedDataParallel` does, makes the gradient of the one big batch. All
    processes must call the loss alike, whatever their data: a process without positives or
    without logits too, see `rankdet.ops.rank.distributed`. `torch.compile` leaves such a call to
    eager mode.

    Args:
        logits: [M] any floating dtype, raw scores of all classes and places in one ranking.
        targets: [M] 1 positive, 0 negative, -1 ignored; any integer, bool or floating dtype. A
            positive is a positive whatever its IoU, 0 included.
        ious: [P] any floating dtype, in [0, 1], in the order in which the positives stand in
            ``targets``. No gradient flows to it.
        delta: half-width of the smoothed step, >= 0, in units of the logits.
        eps: a positive with D_i <= eps has no sorting error to share out.
        group: the processes that rank together, a group of `torch.distributed`; None: this
            process on its own. See above.

    Returns:
        `RankSortTerms` of 0-d tensors, float32 (float64 for float64 logits). Both 0 without
        positives. Both NaN if a logit that is not ignored is NaN or infinite; a bad IoU spoils
        ``sorting``.

    Raises:
        TypeError: for logits or ious that are not floating point, for no group.
        ValueError: for other shapes, another number of ious than of positives, a target that is
            none of the three, a negative ``delta`` or ``eps``; with a group also where another
            process has such targets or ious.

    References:
        Oksuz, Cam, Akbas, Kalkan, ICCV 2021 (see the top of this file): ranking and sorting
        errors and the identity update.

    >>> logits = torch.tensor([2.0, 1.0, -3.0], requires_grad=True)
    >>> terms = rank_sort_loss(logits, torch.tensor([1, 1, 0]), torch.tensor([0.6, 0.9]))
    >>> round(terms.ranking.item(), 4), round(terms.sorting.item(), 4)
    (0.0, 0.1)
    """
    error_sharing.check_flat(logits, targets)
    require_floating("ious", ious)
    require_shape("ious", ious, "P")
    require_positive("delta", delta, zero_allowed=True)
    require_positive("eps", eps, zero_allowed=True)
    settings = (float(delta), float(eps))
    if group is None and torch.compiler.is_compiling():
        values = _rank_sort(logits, targets, ious.detach(), *settings)[0]
    else:
        processes = None if group is None else processes_of(group)
        values = _eager(logits, targets, ious, settings, processes)
    ranking, sorting = values.unbind()
    return RankSortTerms(ranking, sorting)


class RankSortLoss(nn.Module):
    """`rank_sort_loss` with its settings kept."""

    def __init__(self, *, delta: float = 0.5, eps: float = 1e-10) -> None:
        """Keep the settings of `rank_sort_loss`."""
        super().__init__()
        self.delta = delta
        self.eps = eps

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        ious: Tensor,
        group: ProcessGroup | Processes | None = None,
    ) -> RankSortTerms:
        """Return `rank_sort_loss`."""
        return rank_sort_loss(logits, targets, ious, delta=self.delta, eps=self.eps, group=group)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"delta={self.delta}, eps={self.eps}"


@error_sharing.not_compiled
def _eager(
    logits: Tensor,
    targets: Tensor,
    ious: Tensor,
    settings: tuple[float, float],
    processes: Processes | None,
) -> Tensor:
    with torch.no_grad():
        of_positives = ("ious", ious.detach())
        ranked = error_sharing.rank(logits, targets, settings[0], of_positives, processes)
        values, needed = _outputs(logits.detach(), ranked, settings[1])
    return error_sharing.with_gradient(logits, values, needed)


@torch.library.custom_op("rankdet::rank_sort", mutates_args=())
def _rank_sort(
    logits: Tensor, targets: Tensor, ious: Tensor, delta: float, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """Return `error_sharing.outputs`."""
    ranked = error_sharing.rank(logits, targets, delta, ("ious", ious))
    return _outputs(logits, ranked, eps)


@quiet
def _outputs(
    logits: Tensor, ranked: error_sharing.Ranked, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """Return `error_sharing.outputs`."""
    false_positives, ious = ranked.false_positives, double(ranked.each)
    xp = library_of(false_positives)
    badness = 1 - ious
    values = xp.stack([xp.ones_like(badness), badness])
    # The pair (i, i) stays in: i is among those at or above i, by half.
    above, above_badness = ranked.pair_counts(values)

    ranking = false_positives / (above + false_positives)
    weights = put(ranking / false_positives, false_positives == 0, 0.0)

    misplaced, misplaced_badness = ranked.pair_counts(values, ious)
    target = (above_badness - misplaced_badness) / (above - misplaced)
    in_order = misplaced <= eps
    sorting = put(above_badness / above - target, in_order, 0.0)
    shares = put(sorting / misplaced, in_order, 0.0)
    received = ranked.pair_spread(shares, ious)
    # A bad logit spoils both terms, also the one that does not look at negatives.
    sorting = sorting + 0 * ranking
    return error_sharing.outputs(
        logits,
        ranked,
        errors=xp.stack([ranking, sorting]),
        pos_grads=xp.stack([-ranking, received - sorting]),
        weights=xp.stack([weights, xp.zeros_like(weights)]),
    )


@_rank_sort.register_fake
def _(logits: Tensor, _targets: Tensor, ious: Tensor, *_: object) -> tuple[Tensor, list[Tensor]]:
    return error_sharing.fake_outputs(logits, terms=2, positives=ious.shape[0])


error_sharing.register_gradient(_rank_sort)
