"""What the ranking losses have in common: who is ranked, and the gradient that shares errors.

A ranking loss is a mean of errors e_i over the positives. Its gradient is not a derivative.
Each positive i hands its error out to the examples that rank above it, in proportion to how far
they do: a negative j receives + H(s_j - p_i) w_i, where w_i = e_i / (FP_i P), and the positive
itself receives - e_i / P. So what a loss has to say is, for each positive, the gradient of its
own logit and the weight w_i, both [P]; the operator spreads the weights over the negatives.

Over several processes there is one ranking of the positives and negatives of all: each knows all
positives, and the bins hold the negatives of all. What is [P] is then computed alike everywhere,
and each process reads off the gradient of the logits that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from rankdet.ops.checks import (
    raise_unknown_kind,
    require_floating,
    require_shape,
    require_tensor,
)
from rankdet.ops.few import few_nonzero
from rankdet.ops.rank.arrays import Array, library_of, put, quiet, to_array, to_tensor
from rankdet.ops.rank.distributed import (
    Processes,
    add_bins,
    announce_fault,
    gather_ragged,
)
from rankdet.ops.rank.knots import Pieces, counts_from_bins, make_knots, pieces
from rankdet.ops.rank.pairs import Pairs, PairSums
from rankdet.ops.rank.passes import (
    ByTriton,
    Found,
    evaluate,
    fill_bins,
    find_by_triton,
    rank_by_triton,
)
from rankdet.ops.rank.vectorised import Notes, compute_dtype

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Ranked(NamedTuple):
    """Who is ranked, and how far up; with several processes, P counts the positives of all.

    Arrays are numpy's on a CPU and tensors elsewhere, see `rankdet.ops.rank.arrays`.

    Attributes:
        skip: [S] int64, ascending: the logits that are not negatives.
        pos_index: [P_r] int64, ascending: the positives among them.
        own: which of the P positives these are; all of them for a process on its own.
        processes: how many rank together.
        pos: [P] array, logits of the positives, float32 at least.
        each: [P] array, what the loss is told of each positive; empty if nothing.
        false_positives: [P] float64 array, FP_i, the smoothed number of negatives above.
        pair_counts: of values [T, P], the sum over k of H(p_k - p_i) v_k, the pair (i, i) included;
            with keys [P], over those k whose key is below that of i.
        pair_spread: of values [P], the adjoint.
        pieces: of weights [T, P] float64, K^T w as a function of the score.
        base: [2P + 1] float64, the knots, see `rankdet.ops.rank.knots.Knots`.
        finite: 0-d bool, whether all negatives are, of all processes.
        by_triton: what kernels made of it, where they were chosen.
        own_notes: what the first pass over the negatives noted for the second, of this process;
            None where kernels have it.
    """

    skip: Tensor
    pos_index: Tensor
    own: slice
    processes: int
    pos: Array
    each: Array
    false_positives: Array
    pair_counts: PairSums
    pair_spread: PairSums
    pieces: Callable[[Array], Pieces]
    base: Tensor
    finite: Tensor
    by_triton: ByTriton | None
    own_notes: Notes | None

    @property
    def notes(self) -> Notes:
        """What the first pass noted for the second."""
        notes = self.by_triton.notes if self.by_triton is not None else self.own_notes
        assert notes is not None
        return notes


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


def rank(
    logits: Tensor,
    targets: Tensor,
    delta: float,
    each: tuple[str, Tensor] | None = None,
    processes: Processes | None = None,
) -> Ranked:
    """Find the positives and count the negatives above each.

    Args:
        logits: [M] any floating dtype.
        targets: [M] 1 positive, 0 negative, -1 ignored.
        delta: half-width of the ramp.
        each: a name for messages, and [P_r] any floating dtype, a number for each positive.
        processes: who ranks together; None: this process on its own. Then these are collectives:
            see `rankdet.ops.rank.distributed`.

    Raises:
        ValueError: for a target that is none of the three, for another number of entries in
            ``each`` than of positives; on all processes if one has such a fault.
    """
    try:
        skip, pos_index, pos = _find_positives(targets, logits)
        if each is not None:
            _check_per_positive(*each, pos_index)
    except ValueError:
        if processes is not None:
            announce_fault(processes, logits.device)
        raise
    numbers = pos.new_zeros(0, dtype=torch.float64) if each is None else each[1]
    own, size = slice(0, pos.numel()), 1
    if processes is None:
        by_triton = rank_by_triton(pos, logits, skip, delta)
        if by_triton is not None:
            return Ranked(
                *(skip, pos_index, own, size, pos, numbers),
                by_triton.counts,
                by_triton.pair_counts,
                by_triton.pair_spread,
                by_triton.pieces,
                by_triton.base,
                by_triton.finite,
                by_triton,
                None,
            )
    else:
        rows = [pos.double()] if each is None else [pos.double(), numbers.double()]
        (scores, *told), own = gather_ragged(torch.stack(rows), processes)
        # Exact: these were of this dtype before.
        pos, size = scores.to(pos.dtype), processes.size
        numbers = told[0] if told else numbers
    positives = to_array(pos)
    knots = make_knots(positives, delta)
    bins = fill_bins(to_tensor(knots.base), logits, skip)
    if processes is not None:
        number, beyond, finite = add_bins(bins.number, bins.beyond, bins.finite, processes)
        bins = bins._replace(number=number, beyond=beyond, finite=finite)
    counts = counts_from_bins(knots, to_array(bins.number), to_array(bins.beyond))
    pairs = Pairs(positives, knots, delta)
    return Ranked(
        *(skip, pos_index, own, size, positives, to_array(numbers.double())),
        _nan_unless(bins.finite, positives, counts),
        pairs.counts,
        pairs.spread,
        partial(pieces, knots),
        to_tensor(knots.base),
        bins.finite,
        None,
        bins.notes,
    )


@quiet
def _nan_unless(finite: Tensor, pos: Array, counts: Array) -> Array:
    """Return counts, or NaN throughout where a negative or a positive is not finite."""
    spoiled = ~(to_array(finite) & library_of(pos).isfinite(pos).all())
    return put(counts, spoiled, torch.nan)


def _find_positives(targets: Tensor, logits: Tensor) -> Found:
    """Return what is no negative, and the positives among it."""
    found = find_by_triton(targets, logits)
    if found is not None:
        return found
    skip = few_nonzero(targets)
    kinds = to_array(targets.index_select(0, skip).double())
    is_pos = kinds == 1
    pos_index = to_tensor(to_array(skip)[is_pos])
    if pos_index.numel() < skip.numel() and not bool((is_pos | (kinds == -1)).all()):
        unknown = torch.zeros_like(targets, dtype=torch.bool)
        unknown.index_copy_(0, skip, to_tensor((kinds != 1) & (kinds != -1)))
        raise_unknown_kind("targets", targets, unknown)
    pos = logits.index_select(0, pos_index)
    return Found(skip, pos_index, pos.to(compute_dtype(pos)))


def _check_per_positive(name: str, values: Tensor, pos_index: Tensor) -> None:
    if values.shape != pos_index.shape:
        raise ValueError(
            f"{name} must have one entry for each of the {pos_index.numel()} positives in "
            f"targets, got shape {list(values.shape)}"
        )


def self_pair(delta: float) -> float:
    """Return H(0), what the pair (i, i) adds to the operator over the positives."""
    return 0.5 if delta > 0 else 1.0


@quiet
def outputs(
    logits: Tensor, ranked: Ranked, errors: Array, pos_grads: Array, weights: Array
) -> tuple[Tensor, list[Tensor]]:
    """Return what a registered loss returns: its values [T], and what its gradient needs.

    Args:
        logits: [M].
        ranked: from `rank`.
        errors: [T, P] float64; each of the T values of the loss is a mean over positives.
        pos_grads: [T, P] float64, P times the gradient of each positive's logit.
        weights: [T, P] float64, P times what each positive hands out to the negatives.
    """
    # Gradients are averaged over processes: each is the share of its process, times their number.
    positives = max(len(ranked.pos), 1)
    count = positives / ranked.processes
    values = to_tensor(errors.sum(-1) / positives)
    if len(ranked.pos) == 0:  # there are no errors that bad logits would reach by themselves
        values = values.masked_fill_(~ranked.finite, torch.nan)
    function = ranked.pieces(weights / count)
    own = pos_grads[:, ranked.own] / count
    # In one tensor, so that one product with the upstream gradients serves them all.
    shares = library_of(own).concatenate([own, function.value, function.slope], -1)
    needed = [ranked.skip, ranked.pos_index, ranked.base, to_tensor(shares), *ranked.notes]
    return values.to(compute_dtype(logits)), needed


def fake_outputs(logits: Tensor, terms: int, positives: int | None) -> tuple[Tensor, list[Tensor]]:
    """Return tensors of the shapes of `outputs`, for `torch.compile`."""
    new_size = torch.library.get_ctx().new_dynamic_size
    count: Any = new_size() if positives is None else positives
    few: Any = new_size()

    def empty(dtype: torch.dtype, *sizes: Any) -> Tensor:
        return logits.new_empty(sizes, dtype=dtype)

    return empty(compute_dtype(logits), terms), [
        empty(torch.int64, new_size()),  # skip
        empty(torch.int64, count),  # pos_index
        empty(torch.float64, 2 * count + 1),  # base
        empty(torch.float64, terms, 5 * count + 2),  # gradients of positives, values, slopes
        empty(torch.int64, new_size()),  # within
        empty(torch.int32, new_size()),  # cells
        empty(torch.int32, new_size()),  # below
        empty(torch.float64, new_size()),  # geometry
        empty(torch.int64, few),  # searched
        empty(torch.int64, few),  # searched_bins
    ]


@torch.library.custom_op("rankdet::share_errors", mutates_args=())
def share_errors(
    logits: Tensor,
    skip: Tensor,
    pos_index: Tensor,
    pos_grads: Tensor,
    base: Tensor,
    value: Tensor,
    slope: Tensor,
    notes: list[Tensor],
) -> Tensor:
    """Return the gradient of a ranking loss for its logits, [M] in their dtype.

    pos_grads [P], value and slope [2P + 1] are sums over the terms of the loss, each times its
    upstream gradient; the other arguments are those of `outputs`.
    """
    return _share_errors(logits, skip, pos_index, pos_grads, base, Pieces(value, slope), notes)


def _share_errors(
    logits: Tensor,
    skip: Tensor,
    pos_index: Tensor,
    pos_grads: Tensor,
    base: Tensor,
    function: Pieces,
    notes: Sequence[Tensor],
) -> Tensor:
    grad = evaluate(base, function, logits, skip, Notes(*notes), logits.dtype)
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


def register_gradient(loss: Any) -> None:
    """Give a loss made by `torch.library.custom_op` its error-sharing gradient.

    Its first argument is the logits, and it returns `outputs`, and perhaps more.

    Each of the T terms has its own upstream gradient; one pass over the logits serves them all.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.save_for_backward(inputs[0], *output[1])
        ctx.set_materialize_grads(False)  # or each of them would get a gradient of zeros
        ctx.inputs = len(inputs)

    def gradient(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad = _gradient(grad_values, *ctx.saved_tensors)
        return (grad, *[None] * (ctx.inputs - 1))

    loss.register_autograd(gradient, setup_context=save)


def not_compiled(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Have `torch.compile` leave a function out: what is done eagerly.

    Losses are registered operators only where they are compiled. Where they are not, to pass
    through the registry costs more than many a loss; and it cannot be told of a group.
    """
    kept: Callable[_Arguments, _Result] = torch.compiler.disable(
        function, reason="a ranking over several processes is not compiled"
    )
    return kept


def with_gradient(logits: Tensor, values: Tensor, needed: list[Tensor]) -> Tensor:
    """Return the values of a loss, [T], with its error-sharing gradient for these logits.

    Args:
        logits: [M] of this process.
        values: from `outputs`.
        needed: from `outputs`.
    """
    attached: Tensor = _WithGradient.apply(logits, values, *needed)
    return attached


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, *needed: Tensor) -> Tensor:
        ctx.save_for_backward(logits, *needed)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        logits, *needed = ctx.saved_tensors
        with torch.no_grad():
            (skip, pos_index, base), (pos_grads, value, slope), notes = _scaled(grads[0], *needed)
            function = Pieces(value, slope)
            grad = _share_errors(logits, skip, pos_index, pos_grads, base, function, notes)
        if torch.is_grad_enabled():
            grad = refuse_second_derivative(grads[0], logits, grad)
        return (grad, None, *[None] * len(needed))


def refuse_second_derivative(upstream: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient made from these such that its own derivative is refused."""
    refusing: Tensor = _Once.apply(upstream, logits, grad)
    return refusing


class _Once(torch.autograd.Function):
    """Attach a gradient to what it was made from, only to refuse its derivative."""

    @staticmethod
    def forward(_ctx: Any, _upstream: Tensor, _logits: Tensor, grad: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(_ctx: Any, *_grads: Any) -> Any:
        _refuse_second()


def _gradient(grad_values: Tensor, logits: Tensor, *needed: Tensor) -> Tensor:
    """Return the gradient for the logits, given those of the values, [T], and `outputs`."""
    (skip, pos_index, base), (pos_grads, value, slope), notes = _scaled(grad_values, *needed)
    grad: Tensor = share_errors(logits, skip, pos_index, pos_grads, base, value, slope, list(notes))
    return grad


def _scaled(
    grad_values: Tensor,
    skip: Tensor,
    pos_index: Tensor,
    base: Tensor,
    shares: Tensor,
    *notes: Tensor,
) -> tuple[tuple[Tensor, Tensor, Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Return skip, positives and knots; what is shared, times the upstream gradients; notes."""
    upstream = grad_values.double()
    scaled = shares[0] * upstream if len(shares) == 1 else upstream @ shares
    parts = scaled.split([pos_index.shape[0], base.shape[0], base.shape[0]])
    return (skip, pos_index, base), parts, notes
