"""aLRP Loss: one ranking for classification and localisation.

K. Oksuz, B. C. Cam, E. Akbas, S. Kalkan, "A Ranking-based, Balanced Loss Function Unifying
Classification and Localisation in Object Detection", NeurIPS 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from rankdet.losses import error_sharing
from rankdet.ops.checks import (
    require_choice,
    require_floating,
    require_positive,
    require_shape,
)
from rankdet.ops.rank.arrays import ascending, double, library_of, put, quiet, to_tensor
from rankdet.ops.rank.distributed import Processes, carry, processes_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LocRanking = Literal["smooth", "hard"]


class ALRPTerms(NamedTuple):
    """The two parts of aLRP Loss; their sum is the loss before any balancing."""

    classification: Tensor
    localisation: Tensor


def alrp_loss(
    logits: Tensor,
    targets: Tensor,
    loc_errors: Tensor,
    *,
    delta: float = 1.0,
    eps: float = 1e-5,
    loc_ranking: LocRanking = "smooth",
    group: ProcessGroup | Processes | None = None,
) -> ALRPTerms:
    """Average LRP: the mean, over positives, of the LRP error of all that ranks at or above.

    With FP_i the smoothed number of negatives above positive i, rank_i the smoothed number of
    all examples at or above it, E_k the localisation error of positive k and H the smoothed
    step:

        classification = mean_i FP_i / rank_i
        localisation   = mean_i (E_i + sum over positives k != i of H(p_k - p_i) E_k) / rank_i

    Gradient: ``classification`` reaches ``logits`` by error sharing, not by a derivative:
    positive i receives - err_i / P, negative j the sum over i of H(s_j - p_i) err_i / (FP_i P),
    with err_i = (FP_i + sum over k != i of H(p_k - p_i) E_k) / rank_i; a badly localised
    positive that ranks high is thus an error too. ``localisation`` reaches ``loc_errors`` by its
    ordinary derivative; ranks are constants to it, and it has no gradient for the logits.

    With a group, the positives and negatives of all its processes form one ranking. Every process
    gets the same values, that of the one big batch, with P the positives of all; its gradients are
    those of its own logits and loc_errors times the number of processes, so that averaging over the
    processes, as `DistributedDataParallel` does, makes the gradient of the one big batch. All
    processes must call the loss alike, whatever their data: a process without positives or
    without logits too, see `rankdet.ops.rank.distributed`. `torch.compile` leaves such a call to
    eager mode.

    Args:
        logits: [M] any floating dtype, raw scores of all classes and places in one ranking.
        targets: [M] 1 positive, 0 negative, -1 ignored; any integer, bool or floating dtype.
        loc_errors: [P] any floating dtype, >= 0, in the order in which the positives stand in
            ``targets``: (1 - IoU) / (1 - tau), or see `rankdet.losses.localisation_errors`.
        delta: half-width of the smoothed step, >= 0, in units of the logits.
        eps: a positive with FP_i <= eps has no error to share out; it still counts in the value.
        loc_ranking: how positives rank among themselves in the localisation part: "smooth" as
            in the formula above, "hard" by sorting, as in the authors' code. Then the sum runs
            over the positives that score at least as high; of equal scores, the one that stands
            later in ``targets`` ranks above the others.
        group: the processes that rank together, a group of `torch.distributed`; None: this
            process on its own. See above.

    Returns:
        `ALRPTerms` of 0-d tensors >= 0, float32 (float64 for float64 logits). Both 0 without
        positives. Both NaN if a logit that is not ignored is NaN or infinite; a bad loc_error
        spoils ``localisation`` and the gradients of all logits that its error is shared out to.

    Raises:
        TypeError: for logits or loc_errors that are not floating point, for no group.
        ValueError: for other shapes, another number of loc_errors than of positives, a target
            that is none of the three, a negative ``delta`` or ``eps``; with a group also where
            another process has such targets or loc_errors.

    References:
        Oksuz, Cam, Akbas, Kalkan, NeurIPS 2020 (see the top of this file): the definition of aLRP
        and its error-driven update. "hard" is what the authors' code does.

    >>> logits = torch.tensor([2.0, 1.0, -3.0], requires_grad=True)
    >>> terms = alrp_loss(logits, torch.tensor([0, 1, 0]), torch.tensor([0.3]))
    >>> round(terms.classification.item(), 4), round(terms.localisation.item(), 4)
    (0.5, 0.15)
    """
    error_sharing.check_flat(logits, targets)
    require_floating("loc_errors", loc_errors)
    require_shape("loc_errors", loc_errors, "P")
    require_positive("delta", delta, zero_allowed=True)
    require_positive("eps", eps, zero_allowed=True)
    require_choice("loc_ranking", loc_ranking, get_args(LocRanking))
    settings = (float(delta), float(eps), loc_ranking == "hard")
    if group is not None or not torch.compiler.is_compiling():
        processes = None if group is None else processes_of(group)
        return _eager(logits, targets, loc_errors, settings, processes)
    outputs = _alrp(logits, targets, loc_errors.detach(), *settings)
    localisation = (outputs[-1].detach() * loc_errors.double()).sum()
    return _terms(outputs[0].unbind()[0], localisation)


class ALRPLoss(nn.Module):
    """`alrp_loss` with its settings kept."""

    def __init__(
        self, *, delta: float = 1.0, eps: float = 1e-5, loc_ranking: LocRanking = "smooth"
    ) -> None:
        """Keep the settings of `alrp_loss`."""
        super().__init__()
        self.delta = delta
        self.eps = eps
        self.loc_ranking: LocRanking = loc_ranking

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        loc_errors: Tensor,
        group: ProcessGroup | Processes | None = None,
    ) -> ALRPTerms:
        """Return `alrp_loss`."""
        return alrp_loss(
            logits,
            targets,
            loc_errors,
            delta=self.delta,
            eps=self.eps,
            loc_ranking=self.loc_ranking,
            group=group,
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"delta={self.delta}, eps={self.eps}, loc_ranking={self.loc_ranking}"


def _terms(classification: Tensor, localisation: Tensor) -> ALRPTerms:
    localisation = localisation.to(classification.dtype)
    # What ruins the ranking ruins its localisation too, also where no positive is left to tell.
    return ALRPTerms(classification, torch.add(localisation, classification.detach(), alpha=0))


@error_sharing.not_compiled
def _eager(
    logits: Tensor,
    targets: Tensor,
    loc_errors: Tensor,
    settings: tuple[float, float, bool],
    processes: Processes | None,
) -> ALRPTerms:
    with torch.no_grad():
        of_positives = ("loc_errors", loc_errors.detach())
        ranked = error_sharing.rank(logits, targets, settings[0], of_positives, processes)
    if ranked.by_triton is not None:
        from rankdet.losses.alrp_by_kernels import ALRPByKernels

        terms = ALRPByKernels.apply(
            logits, loc_errors, ranked.skip, ranked.pos_index, ranked.by_triton, settings
        )
        return ALRPTerms(*terms)
    with torch.no_grad():
        values, needed, loc_weights = _outputs(logits.detach(), ranked, *settings)
    (classification,) = error_sharing.with_gradient(logits, values, needed).unbind()
    if processes is None:
        return _terms(classification, (loc_weights * loc_errors.double()).sum())
    with torch.no_grad():
        whole = (loc_weights * to_tensor(ranked.each)).sum()
        loc_weights = loc_weights[ranked.own] * ranked.processes
    return _terms(classification, carry(whole, (loc_weights * loc_errors.double()).sum()))


@torch.library.custom_op("rankdet::alrp", mutates_args=())
def _alrp(
    logits: Tensor, targets: Tensor, loc_errors: Tensor, delta: float, eps: float, hard: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return `error_sharing.outputs`, then the weight of each loc_error, [P] float64."""
    ranked = error_sharing.rank(logits, targets, delta, ("loc_errors", loc_errors))
    return _outputs(logits, ranked, delta, eps, hard)


@quiet
def _outputs(
    logits: Tensor, ranked: error_sharing.Ranked, delta: float, eps: float, hard: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return `error_sharing.outputs`, then the weight of each loc_error, [P] float64."""
    false_positives, loc_errors = ranked.false_positives, double(ranked.each)
    xp = library_of(false_positives)
    own = error_sharing.self_pair(delta)
    values = xp.stack([xp.ones_like(loc_errors), loc_errors])
    # The pair (i, i) is taken out of the smoothed sums; where i counts, it counts as itself.
    others, others_loc = ranked.pair_counts(values) - own * values
    ranks = others + 1 + false_positives
    faultless = false_positives <= eps
    errors = put((false_positives + others_loc) / ranks, faultless, 0.0)
    weights = put(errors / false_positives, faultless, 0.0)

    per_rank = 1 / (ranks * max(len(ranks), 1))
    if hard:
        order = ascending(ranked.pos)
        loc_weights = xp.zeros_like(per_rank)
        loc_weights[order] = per_rank[order].cumsum(0)
    else:
        loc_weights = ranked.pair_spread(per_rank) + (1 - own) * per_rank
    values = (false_positives / ranks)[None]
    shared = error_sharing.outputs(logits, ranked, values, -errors[None], weights[None])
    return *shared, to_tensor(loc_weights)


@_alrp.register_fake
def _(
    logits: Tensor, _targets: Tensor, loc_errors: Tensor, *_: object
) -> tuple[Tensor, list[Tensor], Tensor]:
    positives = loc_errors.shape[0]
    shared = error_sharing.fake_outputs(logits, terms=1, positives=positives)
    return *shared, loc_errors.new_empty(positives, dtype=torch.float64)


error_sharing.register_gradient(_alrp)
