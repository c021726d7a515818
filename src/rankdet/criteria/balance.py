"""Balancing the localisation loss against the classification loss.

Oksuz, Cam, Akbas, Kalkan, "A Ranking-based, Balanced Loss Function Unifying Classification and
Localisation in Object Detection", NeurIPS 2020 (self-balance).
Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
and Semantics", CVPR 2018 (learned).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, distributed, nn

from rankdet.ops.checks import require_floating, require_positive, require_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Balanced(NamedTuple):
    """Balanced losses: three scalars to differentiate, and the weight for the log."""

    classification: Tensor
    localisation: Tensor
    regulariser: Tensor
    """What the balance itself wants minimised; 0 where it learns nothing."""
    weight: Tensor
    """What localisation was multiplied by; detached."""

    @property
    def total(self) -> Tensor:
        """The sum to differentiate."""
        return self.classification + self.localisation + self.regulariser


class Balance(nn.Module, ABC):
    """How two losses become one: what every balance can be asked."""

    @abstractmethod
    def forward(
        self,
        classification: Tensor,
        localisation: Tensor,
        has_positives: Tensor | bool,
        shared: Sequence[Tensor] = (),
    ) -> Balanced:
        """Balance the two losses of one iteration.

        Args:
            classification: 0-d, floating; computed in float32 at least.
            localisation: 0-d, floating, before any weight.
            has_positives: whether the iteration had a positive example; 0-d where a tensor, of
                any dtype (a count will do), on the device of the losses.
            shared: tensors of any shape that both losses were computed from, such as the feature
                maps of all levels; only `GradientBalance` looks at them.

        Returns:
            The balanced losses, 0-d, float32 or float64.

        Raises:
            TypeError: a loss is not floating point, or has_positives neither tensor nor bool.
            ValueError: a tensor is not 0-d.
        """

    @abstractmethod
    def end_epoch(self) -> None:
        """Take note that an epoch of training ended. All processes must call this together."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `module.bfloat16()` casts buffers too: a sum of thousands of losses would stand still.
        before = dict(self.named_buffers())
        inherited: Any = super()._apply  # torch gives it no types
        inherited(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self


class SelfBalance(Balance):
    """Multiply localisation so that it counts as much as the whole loss did in the last epoch.

    With means over the iterations of the last epoch, of all processes, that had positives:

        weight = (mean classification + mean localisation) / mean localisation

    and ``initial`` until the first epoch ends; with ``"measured"``, the same weight from the
    iterations of this process so far, this one included. Classification is left as it is. An
    iteration is one call in training mode; it counts if it has positives and both losses are
    finite, so one NaN does not spoil the weight of the next epoch (it still reaches the loss of
    its iteration). An epoch without such an iteration, or with zero localisation, leaves the weight
    unchanged.

    The state is in buffers: weight, the running sums of both losses (float64 whatever the module
    is cast to) and the number of iterations counted. A checkpoint within an epoch goes on where
    it stopped; with several processes each goes on with the sums that were saved.

    Where all processes share one ranking, each of them notes the same losses, and the means are
    those of what each has seen: then also a state saved by one process within an epoch is whole.

    `DistributedDataParallel` copies the buffers of process 0 to all at each step unless given
    ``broadcast_buffers=False`` (``forward_sync_buffers=False`` in newer versions). Without that
    the sums of the others are lost, and the means are nearly those of process 0.

    Args:
        initial: weight during the first epoch, above zero, or ``"measured"``: no number at all.

    Gradient: ordinary derivative; the weight is a constant.

    References:
        Oksuz, Cam, Akbas, Kalkan, "A Ranking-based, Balanced Loss Function Unifying
        Classification and Localisation in Object Detection", NeurIPS 2020, section 4
        (self-balancing); 50 from the authors' code.

    Example:
        >>> balance = SelfBalance()
        >>> balance(torch.tensor(0.9), torch.tensor(0.1), True).localisation
        tensor(5.)
        >>> balance.end_epoch()
        >>> balance(torch.tensor(0.9), torch.tensor(0.1), True).localisation
        tensor(1.)
    """

    weight: Tensor
    sums: Tensor
    count: Tensor

    def __init__(self, initial: float | Literal["measured"] = 50.0) -> None:
        super().__init__()
        self.measures = initial == "measured"
        if initial == "measured":
            initial = math.nan  # stands for no epoch yet
        else:
            require_positive("initial", initial)
        self.register_buffer("weight", torch.tensor(float(initial), dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        classification: Tensor,
        localisation: Tensor,
        has_positives: Tensor | bool,
        shared: Sequence[Tensor] = (),  # noqa: ARG002 - as any balance
    ) -> Balanced:
        """Multiply localisation by the weight and, in training, note both losses."""
        classification, localisation, counts = as_losses(
            classification, localisation, has_positives
        )
        if self.training:
            losses = torch.stack([classification.detach(), localisation.detach()])
            counts = counts & losses.isfinite().all()
            self.sums.add_(torch.where(counts, losses, 0))
            self.count.add_(counts)
        # A copy: the buffer may change before backward or the log reads it.
        weight = self.weight.to(localisation.dtype, copy=True)
        if self.measures:
            so_far = self.sums.sum() / self.sums[1]
            so_far = torch.where(so_far.isfinite(), so_far, 1).to(weight.dtype)
            weight = torch.where(weight.isnan(), so_far, weight)
        zero = torch.zeros_like(classification)
        return Balanced(classification, weight * localisation, zero, weight)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Set the weight from the losses noted since the last call, of all processes."""
        seen = torch.cat([self.sums, self.count.to(self.sums.dtype)[None]])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(seen)  # the sum
        classification, localisation, count = seen.unbind()
        # The means share their count, which cancels out.
        weight = (classification + localisation) / localisation
        usable = (count > 0) & (localisation > 0) & weight.isfinite()
        self.weight.copy_(torch.where(usable, weight, self.weight))
        self.sums.zero_()
        self.count.zero_()


class ScalarBalance(Balance):
    """Multiply localisation by a constant.

    Args:
        w_r: the weight, zero or more.

    Gradient: ordinary derivative.

    Example:
        >>> ScalarBalance(2.0)(torch.tensor(0.9), torch.tensor(0.1), True).total
        tensor(1.1000)
    """

    def __init__(self, w_r: float) -> None:
        super().__init__()
        require_positive("w_r", w_r, zero_allowed=True)
        self.w_r = w_r

    def forward(
        self,
        classification: Tensor,
        localisation: Tensor,
        has_positives: Tensor | bool,
        shared: Sequence[Tensor] = (),  # noqa: ARG002 - as any balance
    ) -> Balanced:
        """Multiply localisation by the constant."""
        classification, localisation, _ = as_losses(classification, localisation, has_positives)
        weight = torch.full_like(localisation, self.w_r, requires_grad=False)
        zero = torch.zeros_like(classification)
        return Balanced(classification, weight * localisation, zero, weight)

    def end_epoch(self) -> None:
        """Do nothing: the weight is a constant."""

    def extra_repr(self) -> str:
        """Show the weight."""
        return f"w_r={self.w_r:g}"


class LearnedBalance(Balance):
    """Weigh both losses by learned (homoscedastic) uncertainties.

    With s_c, s_l learned log-variances, both 0 at the start, that is the plain sum:

        total = exp(-s_c) L_c + s_c + exp(-s_l) L_l + s_l

    This is twice equation 7 of the paper, with s = log σ² as it advises, the same for both
    tasks: neither loss here is the Gaussian or softmax likelihood that equation 10 tells apart.
    The total may be negative. In an iteration without positives the variances stand still: its
    losses of 0 would otherwise pull them down without bound. Give these two numbers no weight
    decay.

    Gradient: ordinary derivative.

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
        Geometry and Semantics", CVPR 2018, equation 7.

    Example:
        >>> balance = LearnedBalance()
        >>> print(f"{balance(torch.tensor(0.9), torch.tensor(0.1), True).total.item():.4f}")
        1.0000
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(2))

    def forward(
        self,
        classification: Tensor,
        localisation: Tensor,
        has_positives: Tensor | bool,
        shared: Sequence[Tensor] = (),  # noqa: ARG002 - as any balance
    ) -> Balanced:
        """Weigh both losses; the regulariser is the sum of the log-variances."""
        classification, localisation, counts = as_losses(
            classification, localisation, has_positives
        )
        learned = self.log_variances.to(classification.dtype)
        logs = torch.where(counts, learned, learned.detach())
        for_classification, for_localisation = (-logs).exp().unbind()
        return Balanced(
            for_classification * classification,
            for_localisation * localisation,
            torch.where(counts, logs, 0).sum(),
            for_localisation.detach(),
        )

    def end_epoch(self) -> None:
        """Do nothing: the optimiser moves the variances."""


def as_losses(
    classification: Tensor, localisation: Tensor, has_positives: Tensor | bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return both losses in one dtype, float32 at least, and whether the iteration counts."""
    for name, loss in (("classification", classification), ("localisation", localisation)):
        require_floating(name, loss)
        require_shape(name, loss)
    if isinstance(has_positives, bool):
        # `full` runs on the device; a tensor made from the number would be copied there.
        counts = torch.full((), has_positives, dtype=torch.bool, device=classification.device)
    elif isinstance(has_positives, Tensor):
        require_shape("has_positives", has_positives)
        counts = has_positives.detach().bool()
    else:
        raise TypeError(
            f"has_positives must be a tensor or a bool, got {type(has_positives).__name__}"
        )
    dtype = torch.promote_types(classification.dtype, localisation.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    return classification.to(dtype), localisation.to(dtype), counts
