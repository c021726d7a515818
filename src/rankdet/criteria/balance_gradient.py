"""Balancing two losses by how much each moves what they share.

Chen, Badrinarayanan, Lee, Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing
in Deep Multitask Networks", ICML 2018 (norms of gradients in a shared layer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from rankdet.criteria.balance import Balance, Balanced, as_losses
from rankdet.ops.checks import require_fraction, require_positive

if TYPE_CHECKING:
    from collections.abc import Sequence


class GradientBalance(Balance):
    """Multiply localisation so that both losses pull equally at what logits and boxes share.

    With g_c and g_l the norms of the gradients of the two losses for the shared feature maps
    (those of all levels and images taken as one vector):

        weight = mean g_c / mean g_l

    The means run over the iterations of the past, the present one included, that were measured;
    each counts ``memory`` times as much as the one after it. The first 1 / (1 - memory) iterations
    are measured, and then each ``every``-th: a measurement is a backward pass through the towers,
    without their weights. Localisation alone is multiplied, so classification keeps the scale that
    learning rates are set for.

    Where a self-balance looks at the values of the losses, and so takes localisation for less and
    less important as classification gets solved, this looks at what they do. There is nothing to
    tune: the two arguments say how smooth the measurement is and what it may cost.

    An iteration counts if it is in training mode with gradients, has positives, and both norms are
    finite and above zero; the weight is 1 until one has counted. With several processes the norms
    and the positives are those of all: all must call this together, and all have the same weight.
    The state is in buffers: the two means (float64 whatever the module is cast to) and the number
    of calls.

    Args:
        every: iterations from one measurement to the next, 1 or more.
        memory: in [0, 1).

    Gradient: ordinary derivative; the weight is a constant.

    References:
        After Chen et al., ICML 2018 (see the top of this file), with equal norms as the aim, solved
        for the weight instead of learned.

    Example:
        >>> shared = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> balance = GradientBalance()
        >>> balance(3 * shared[0], shared[1] / 2, True, [shared]).weight
        tensor(6.)
    """

    norms: Tensor
    calls: Tensor

    def __init__(self, *, every: int = 10, memory: float = 0.9) -> None:
        super().__init__()
        require_positive("every", every)
        require_fraction("memory", memory)
        if memory == 1:
            raise ValueError("memory must be below 1, got 1")
        self.every = every
        self.memory = memory
        self.register_buffer("norms", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        # The same number where reading it waits for no device; None: not read yet.
        self._calls: int | None = None

    def forward(
        self,
        classification: Tensor,
        localisation: Tensor,
        has_positives: Tensor | bool,
        shared: Sequence[Tensor] = (),
    ) -> Balanced:
        """Multiply localisation by the weight and, in training, measure now and then.

        Args:
            classification: 0-d, floating; computed in float32 at least.
            localisation: 0-d, floating, before any weight.
            has_positives: whether the iteration had a positive example; see `Balance.forward`.
            shared: what both losses were computed from: tensors of any shape, with gradients.

        Raises:
            TypeError: a loss is not floating point, or has_positives neither tensor nor bool.
            ValueError: a tensor is not 0-d, or, in training, nothing is shared.
        """
        classification, localisation, counts = as_losses(
            classification, localisation, has_positives
        )
        if self.training and torch.is_grad_enabled() and self._is_due():
            norms, counts = _measure((classification, localisation), shared, counts)
            counts = counts & (norms.isfinite() & (norms > 0)).all()
            met = self.memory * self.norms + norms
            self.norms.copy_(torch.where(counts, met, self.norms))
        measured = self.norms[1] > 0
        weight = torch.where(measured, self.norms[0] / self.norms[1], 1.0)
        weight = weight.to(localisation.dtype)
        zero = torch.zeros_like(classification)
        return Balanced(classification, weight * localisation, zero, weight)

    def end_epoch(self) -> None:
        """Do nothing: the means move with each measurement."""

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"every={self.every}, memory={self.memory:g}"

    def _is_due(self) -> bool:
        """Count a call, and return whether it is one to measure."""
        if self._calls is None:
            self._calls = int(self.calls)
        done = self._calls
        self._calls += 1
        self.calls.add_(1)
        return done < round(1 / (1 - self.memory)) or done % self.every == 0

    def _load_from_state_dict(self, *args: Any) -> None:
        self._calls = None
        super()._load_from_state_dict(*args)


def _measure(
    losses: tuple[Tensor, Tensor], shared: Sequence[Tensor], has_positives: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the norm of the gradient of each loss for ``shared``, [2] float64, and if it counts.

    With several processes both are over what all of them share out, and the same for everybody:
    a process without positives has to take note of what the others measured.
    """
    if not shared:
        raise ValueError(
            "a gradient balance needs what logits and boxes are both computed from: the "
            "predictions must name it (shared=...)"
        )
    squares = []
    for loss in losses:
        grads: Sequence[Tensor | None] = ()
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, list(shared), retain_graph=True, allow_unused=True)
        # In float32 at least: squares of gradients leave the range of half precision.
        parts = [
            grad.to(torch.promote_types(grad.dtype, torch.float32)).square().sum().double()
            for grad in grads
            if grad is not None
        ]
        none = torch.zeros((), dtype=torch.float64, device=loss.device)
        squares.append(torch.stack([none, *parts]).sum())
    found = torch.stack([*squares, has_positives.to(squares[0])])
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(found)
    return found[:2].sqrt(), found[2] > 0
