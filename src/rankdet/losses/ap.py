"""AP Loss: one minus average precision.

K. Chen, J. Li, W. Lin, J. See, J. Wang, L. Duan, Z. Chen, C. He, J. Zou, "Towards Accurate
One-Stage Object Detection with AP-Loss", CVPR 2019; the version of TPAMI 2021 interpolates
precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rankdet.losses import error_sharing
from rankdet.ops.checks import require_positive
from rankdet.ops.rank.arrays import ascending, least_so_far, library_of, put, quiet
from rankdet.ops.rank.distributed import Processes, processes_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def ap_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    delta: float = 1.0,
    interpolated: bool = True,
    group: ProcessGroup | Processes | None = None,
) -> Tensor:
    """AP Loss: the mean over positives of one minus the precision at their rank.

    With FP_i the smoothed number of negatives above positive i and rank_i the smoothed number
    of examples at or above it, the error of i is e_i = FP_i / rank_i. Interpolation replaces the
    precision at i by the best one at any positive that scores no higher, so e_i by the least.

    Gradient: error sharing, not a derivative. Positive i receives - e_i / P, negative j
    receives the sum over i of H(s_j - p_i) e_i / (FP_i P).

    With a group, the positives and negatives of all its processes form one ranking. Every process
    gets the same value, that of the one big batch, with P the positives of all; its gradients are
    those of its own logits times the number of processes, so that averaging over the
    processes, as `DistributedDataParallel` does, makes the gradient of the one big batch. All
    processes must call the loss alike, whatever their data: a process without positives or
    without logits too, see `rankdet.ops.rank.distributed`. `torch.compile` leaves such a call to
    eager mode.

    Args:
        logits: [M] any floating dtype, raw scores of all classes and places in one ranking.
        targets: [M] 1 positive, 0 negative, -1 ignored; any integer, bool or floating dtype.
        delta: half-width of the smoothed step, >= 0, in units of the logits.
        interpolated: whether precision is interpolated.
        group: the processes that rank together, a group of `torch.distributed`; None: this
            process on its own. See above.

    Returns:
        0-d tensor in [0, 1], float32 (float64 for float64 logits). 0 without positives. NaN if
        a logit that is not ignored is NaN or infinite.

    Raises:
        TypeError: for logits that are not floating point, for no group.
        ValueError: for other shapes, a target that is none of the three, a negative ``delta``;
            with a group also where another process has such targets.

    References:
        Chen et al., CVPR 2019 (see the top of this file): the loss and its error-driven update.

    >>> logits = torch.tensor([2.0, 1.0, -3.0], requires_grad=True)
    >>> loss = ap_loss(logits, torch.tensor([0, 1, 0]))
    >>> loss
    tensor(0.5000, grad_fn=<UnbindBackward0>)
    """
    error_sharing.check_flat(logits, targets)
    require_positive("delta", delta, zero_allowed=True)
    values: Tensor
    if group is None and torch.compiler.is_compiling():
        values = _ap(logits, targets, float(delta), interpolated)[0]
    else:
        processes = None if group is None else processes_of(group)
        values = _eager(logits, targets, float(delta), interpolated, processes)
    return values.unbind()[0]


class APLoss(nn.Module):
    """`ap_loss` with its settings kept."""

    def __init__(self, *, delta: float = 1.0, interpolated: bool = True) -> None:
        """Keep the settings of `ap_loss`."""
        super().__init__()
        self.delta = delta
        self.interpolated = interpolated

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        group: ProcessGroup | Processes | None = None,
    ) -> Tensor:
        """Return `ap_loss`."""
        return ap_loss(
            logits, targets, delta=self.delta, interpolated=self.interpolated, group=group
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"delta={self.delta}, interpolated={self.interpolated}"


@error_sharing.not_compiled
def _eager(
    logits: Tensor, targets: Tensor, delta: float, interpolated: bool, processes: Processes | None
) -> Tensor:
    with torch.no_grad():
        ranked = error_sharing.rank(logits, targets, delta, processes=processes)
        values, needed = _outputs(logits.detach(), ranked, delta, interpolated)
    return error_sharing.with_gradient(logits, values, needed)


@torch.library.custom_op("rankdet::ap", mutates_args=())
def _ap(
    logits: Tensor, targets: Tensor, delta: float, interpolated: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return `error_sharing.outputs`."""
    ranked = error_sharing.rank(logits, targets, delta)
    return _outputs(logits, ranked, delta, interpolated)


@quiet
def _outputs(
    logits: Tensor, ranked: error_sharing.Ranked, delta: float, interpolated: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return `error_sharing.outputs`."""
    false_positives = ranked.false_positives
    xp = library_of(false_positives)
    others = ranked.pair_counts(xp.ones_like(false_positives)[None])[0]
    others = others - error_sharing.self_pair(delta)
    errors = false_positives / (others + 1 + false_positives)
    if interpolated:
        order = ascending(ranked.pos)
        errors[order] = least_so_far(errors[order])
    weights = put(errors / false_positives, false_positives == 0, 0.0)
    return error_sharing.outputs(logits, ranked, errors[None], -errors[None], weights[None])


@_ap.register_fake
def _(logits: Tensor, *_: object) -> tuple[Tensor, list[Tensor]]:
    return error_sharing.fake_outputs(logits, terms=1, positives=None)


error_sharing.register_gradient(_ap)
