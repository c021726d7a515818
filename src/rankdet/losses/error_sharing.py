"""What the ranking losses have in common: who is ranked, and the gradient that shares errors.

A ranking loss is a mean of errors e_i over the positives. Its gradient is not a derivative.
Each positive i hands its error out to the examples that rank above it, in proportion to how far
they do: a negative j receives + H(s_j - p_i) w_i, where w_i = e_i / (FP_i P), and the positive
itself receives - e_i / P. So what a loss has to say is, for each positive, the gradient of its
own logit and the weight w_i, both [P]; the operator spreads the weights over the negatives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankdet.ops.checks import (
    raise_unknown_kind,
    require_floating,
    require_shape,
    require_tensor,
)
from rankdet.ops.few import few_nonzero
from rankdet.ops.rank import RankOperator, rank_operator


class Ranked(NamedTuple):
    """Who is ranked.

    Attributes:
        skip: [S] int64, ascending: the logits that are not negatives.
        pos_index: [P] int64, ascending: the positives among them.
        pos: [P] their logits, float32 at least.
        negatives: K over all logits but ``skip``.
        positives: K over the positives themselves, the pairs (i, i) included.
    """

    skip: Tensor
    pos_index: Tensor
    pos: Tensor
    negatives: RankOperator
    positives: RankOperator


def check_flat(logits: Tensor, targets: Tensor) -> None:
    """Check the two arguments that every ranking loss has; shapes and dtypes only."""
    require_floating("logits", logits)
    require_tensor("targets", targets)
    require_shape("logits", logits, "M")
    require_shape("targets", targets, logits.shape[0])
    if targets.dtype.is_complex:
        raise TypeError(f"targets must be real numbers, got {targets.dtype}")
    if logits.device != targets.device:
        raise ValueError(
            f"logits and targets must be on one device, got {logits.device} and {targets.device}"
        )


def rank(logits: Tensor, targets: Tensor, delta: float, backend: str) -> Ranked:
    """Find the positives and prepare both operators.

    Args:
        logits: [M] any floating dtype.
        targets: [M] 1 positive, 0 negative, -1 ignored.
        delta: half-width of the ramp.
        backend: see `rank_operator`.

    Raises:
        ValueError: for a target that is none of the three.
    """
    skip = few_nonzero(targets)
    kinds = targets.index_select(0, skip)
    is_pos = kinds == 1
    known = is_pos if kinds.dtype == torch.bool else is_pos | (kinds == -1)
    if not bool(known.all()):
        unknown = torch.zeros_like(targets, dtype=torch.bool).index_copy_(0, skip, ~known)
        raise_unknown_kind("targets", targets, unknown)
    pos_index = skip[is_pos]
    pos = logits.index_select(0, pos_index)
    pos = pos.to(torch.promote_types(pos.dtype, torch.float32))
    negatives = rank_operator(pos, logits, delta, backend, skip=skip)
    positives = rank_operator(pos, pos, delta, backend)
    return Ranked(skip, pos_index, pos, negatives, positives)


def check_per_positive(name: str, values: Tensor, pos: Tensor) -> None:
    """Raise `ValueError` unless there is one value for each positive."""
    if values.shape != pos.shape:
        raise ValueError(
            f"{name} must have one entry for each of the {pos.numel()} positives in targets, "
            f"got shape {list(values.shape)}"
        )


def self_pair(delta: float) -> float:
    """Return H(0), what the pair (i, i) adds to the operator over the positives."""
    return 0.5 if delta > 0 else 1.0


def result_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype of a loss of these logits: float64 for float64, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def mean_or_zero(logits: Tensor, skip: Tensor, errors: Tensor) -> Tensor:
    """Return the mean over positives, 0-d float64; without positives 0, or NaN for bad logits.

    Bad logits (NaN or infinite, and not ignored) reach the errors by themselves where there is
    a positive; where there is none, nobody has looked at them yet.
    """
    if errors.numel():
        return errors.mean()
    finite = logits.index_fill(0, skip, 0.0).isfinite().all()
    return errors.new_zeros(()).masked_fill(~finite, torch.nan)


@torch.library.custom_op("rankdet::share_errors", mutates_args=())
def share_errors(
    logits: Tensor,
    skip: Tensor,
    pos_index: Tensor,
    pos_grads: Tensor,
    weights: Tensor,
    delta: float,
    backend: str,
) -> Tensor:
    """Return the gradient of a ranking loss for its logits.

    Args:
        logits: [M] any floating dtype.
        skip: [S] int64, ascending: the logits that are not negatives.
        pos_index: [P] int64, the positives among them.
        pos_grads: [P] float64, gradient of each positive's logit.
        weights: [P] float64, what each positive hands out to the negatives.
        delta: half-width of the ramp.
        backend: see `rank_operator`.

    Returns:
        [M] in the dtype of ``logits``; 0 where ignored.
    """
    pos = logits.index_select(0, pos_index)
    operator = rank_operator(pos, logits, delta, backend, skip=skip)
    grad = operator.spread(weights, dtype=logits.dtype)
    return grad.index_copy_(0, pos_index, pos_grads.to(logits.dtype))


@share_errors.register_fake
def _(logits: Tensor, *_: object) -> Tensor:
    return torch.empty_like(logits)


def _refuse_second(*_: object) -> None:
    raise RuntimeError(
        "ranking losses have no second derivative: their gradient shares errors out and is not "
        "the derivative of a function. Call backward or torch.autograd.grad without create_graph."
    )


share_errors.register_autograd(_refuse_second)


def save_for_sharing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what `shared_gradient` needs; the set-up half of a loss's autograd formula.

    A loss that uses it takes (logits, targets, delta, backend, ...) and returns
    (values [T], skip [S], pos_index [P], pos_grads [T, P], weights [T, P], ...).
    """
    logits, _, delta, backend = inputs[:4]
    _, skip, pos_index, pos_grads, weights = output[:5]
    ctx.save_for_backward(logits, skip, pos_index, pos_grads, weights)
    ctx.delta, ctx.backend, ctx.inputs = delta, backend, len(inputs)


def shared_gradient(ctx: Any, grad_values: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Share the errors out; the gradient half of a loss's autograd formula.

    Each of the T terms has its own upstream gradient; one pass over the logits serves them all.
    """
    logits, skip, pos_index, pos_grads, weights = ctx.saved_tensors
    upstream = grad_values.double()
    grad = share_errors(
        logits,
        skip,
        pos_index,
        (upstream[:, None] * pos_grads).sum(0),
        (upstream[:, None] * weights).sum(0),
        ctx.delta,
        ctx.backend,
    )
    return (grad, *[None] * (ctx.inputs - 1))


def fake_outputs(
    logits: Tensor, terms: int, positives: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return tensors of the right shapes for `torch.compile`: the first five outputs of a loss."""
    context = torch.library.get_ctx()
    count: Any = context.new_dynamic_size() if positives is None else positives
    return (
        logits.new_empty(terms, dtype=result_dtype(logits)),
        logits.new_empty(context.new_dynamic_size(), dtype=torch.int64),
        logits.new_empty(count, dtype=torch.int64),
        logits.new_empty((terms, count), dtype=torch.float64),
        logits.new_empty((terms, count), dtype=torch.float64),
    )
