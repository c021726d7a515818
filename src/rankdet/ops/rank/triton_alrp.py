"""aLRP Loss between the two passes over the scores, as Triton kernels.

On a GPU the loss is a matter of launches. What `rankdet.losses.alrp` says in thirty operations of
torch for P positives is said here in three kernels, and its gradient in three more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdet.ops.rank.knots import Pieces
from rankdet.ops.rank.triton import EVALUATE_TILE
from rankdet.ops.rank.triton_evaluate import read_off
from rankdet.ops.rank.triton_grid import DeviceGrid, count_below
from rankdet.ops.rank.triton_launch import cdiv, float64_bits, launch
from rankdet.ops.rank.triton_ranked import PAIRS_BLOCK, PAIRS_OTHERS, RankedPositives
from rankdet.ops.rank.triton_sums import smoothed_step, write_pieces

_BLOCK = 1024
_SPREAD_BLOCK = 256


class ALRPNotes(NamedTuple):
    """What the gradient needs to know.

    Attributes:
        base: [2P + 1] float64, of the ranking.
        rows: [5, P] float64: FP / rank, the gradient of a positive's logit, what it hands out to
            the negatives, 1 / (P rank), and the weight of its localisation error.
        value: [2P + 1] float64, K^T w as a function of the score.
        slope: [2P + 1] float64.
        entries: of the grid of the ranking.
        geometry: of the grid.
    """

    base: Tensor
    rows: Tensor
    value: Tensor
    slope: Tensor
    entries: Tensor
    geometry: Tensor


def terms(
    ranked: RankedPositives,
    loc_errors: Tensor,
    delta: float,
    eps: float,
    hard: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, ALRPNotes]:
    """Return classification and localisation of aLRP Loss, and what their gradient needs.

    Args:
        ranked: the ranking of P >= 1 positives.
        loc_errors: [P] any floating dtype.
        delta: half-width of the ramp, that of the ranking.
        eps: a positive of no more false positives has no error.
        hard: whether positives rank among themselves by sorting.
        dtype: of both terms, float32 or float64.
    """
    loc_errors = loc_errors.contiguous()
    positives, device = loc_errors.numel(), loc_errors.device
    rows = torch.empty(5, positives, dtype=torch.float64, device=device)
    function = torch.empty(2, 2 * positives + 1, dtype=torch.float64, device=device)
    classification = torch.empty((), dtype=dtype, device=device)
    localisation = torch.empty((), dtype=dtype, device=device)
    value, slope = function.unbind()
    delta_bits, eps_bits = float64_bits(delta), float64_bits(eps)
    with torch.cuda.device_of(rows):
        launch(
            errors_kernel,
            (cdiv(positives, PAIRS_BLOCK),),
            *(ranked.sorted, ranked.order, ranked.counts, loc_errors, rows),
            *(positives, delta_bits, eps_bits),
            BLOCK=PAIRS_BLOCK,
            OTHERS=PAIRS_OTHERS,
            num_warps=4,
        )
        # By sorting, it is a running sum of that row, made where it is needed.
        spread = rows[3] if hard else ranked.pair_spread(rows[3])
        launch(
            finish_kernel,
            (1,),
            *(ranked.sorted, ranked.order, ranked.base, ranked.ends, rows, spread, loc_errors),
            *(value, slope, classification, localisation, positives, delta_bits),
            HARD=hard,
            BLOCK=_BLOCK,
            num_warps=8,
        )
    notes = ALRPNotes(ranked.base, rows, value, slope, *ranked.grid)
    return classification, localisation, notes


def gradients(
    logits: Tensor,
    loc_errors: Tensor,
    skip: Tensor,
    pos_index: Tensor,
    notes: ALRPNotes,
    upstream: Tensor | None,
    error_upstream: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of logits and of localisation errors, each where it is wanted.

    Args:
        logits: [M] any floating dtype.
        loc_errors: [P] any floating dtype.
        skip: [S] int64, ascending, the logits that are no negatives.
        pos_index: [P] int64, ascending, the positives among them.
        notes: from `terms`.
        upstream: 0-d, gradient of the classification; None where none is wanted of the logits.
        error_upstream: the same of the localisation, for the errors.
    """
    grad = error_grad = None
    if upstream is not None:
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if error_upstream is not None:
        error_grad = torch.empty_like(loc_errors, memory_format=torch.contiguous_format)
    few = 0 if grad is None else cdiv(skip.numel(), _SPREAD_BLOCK)
    own = 0 if error_grad is None else cdiv(pos_index.numel(), _SPREAD_BLOCK)
    if few + own == 0:
        return None, None
    with torch.cuda.device_of(logits):
        if grad is not None:
            read_off(
                notes.base,
                Pieces(notes.value, notes.slope),
                logits.contiguous(),
                DeviceGrid(notes.entries, notes.geometry),
                grad,
                tile=EVALUATE_TILE,
                scale=upstream,
            )
        nothing = notes.rows
        written = (grad, error_grad, upstream, error_upstream)
        launch(
            own_gradients_kernel,
            (few + own,),
            *(skip, pos_index, notes.rows),
            *(nothing if each is None else each for each in written),
            *(pos_index.numel(), skip.numel(), few, pos_index.numel().bit_length()),
            BLOCK=_SPREAD_BLOCK,
            num_warps=4,
        )
    return grad, error_grad


@triton.jit(do_not_specialize=["positives", "delta_bits", "eps_bits"])
def errors_kernel(
    scores: tl.tensor,
    order: tl.tensor,
    counts: tl.tensor,
    loc_errors: tl.tensor,
    rows: tl.tensor,
    positives: tl.tensor,
    delta_bits: tl.tensor,
    eps_bits: tl.tensor,
    BLOCK: tl.constexpr,
    OTHERS: tl.constexpr,
) -> None:
    """Rank positives among themselves, and note what the loss is made of, a block in each program.

    Args:
        scores: [P] the positives, ascending.
        order: [P] int64, which positive each of these is.
        counts: [P] float64, FP.
        loc_errors: [P] any floating dtype.
        rows: [4, P] float64, written: FP / rank, the gradient of the positive's logit, what it
            hands out to the negatives, and 1 / (P rank).
        positives: P.
        delta_bits: half-width of the ramp, the bits of a float64.
        eps_bits: a positive of no more FP has no error, the bits of a float64.
        BLOCK: positives in a program.
        OTHERS: how many of the others at a time.
    """
    delta = delta_bits.to(tl.int64).to(tl.float64, bitcast=True)
    eps = eps_bits.to(tl.int64).to(tl.float64, bitcast=True)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < positives
    mine = tl.load(scores + i, mask=inside, other=0).to(tl.float64)
    at_or_above = tl.zeros([BLOCK], tl.float64)
    loc_above = tl.zeros([BLOCK], tl.float64)
    for start in range(0, positives, OTHERS):
        k = start + tl.arange(0, OTHERS)
        there = k < positives
        other = tl.load(scores + k, mask=there, other=0).to(tl.float64)
        place = tl.load(order + k, mask=there, other=0)
        error = tl.load(loc_errors + place, mask=there, other=0).to(tl.float64)
        share = smoothed_step(other[None, :] - mine[:, None], delta)
        at_or_above += tl.sum(tl.where(there[None, :], share, 0.0), axis=1)
        loc_above += tl.sum(tl.where(there[None, :], share * error[None, :], 0.0), axis=1)
    place = tl.load(order + i, mask=inside, other=0)
    # The pair (i, i) is taken out of the smoothed sums; where i counts, it counts as itself.
    own = tl.where(delta > 0, 0.5, 1.0)
    own_error = tl.load(loc_errors + place, mask=inside, other=0).to(tl.float64)
    false_positives = tl.load(counts + place, mask=inside, other=1.0)
    rank = at_or_above - own + 1 + false_positives
    faultless = false_positives <= eps
    error = (false_positives + loc_above - own * own_error) / rank
    error = tl.where(faultless, 0.0, error)
    weight = tl.where(faultless, 0.0, error / false_positives)
    tl.store(rows + place, false_positives / rank, mask=inside)
    tl.store(rows + positives + place, -error / positives, mask=inside)
    tl.store(rows + 2 * positives + place, weight / positives, mask=inside)
    tl.store(rows + 3 * positives + place, 1 / (rank * positives), mask=inside)


@triton.jit(do_not_specialize=["positives", "delta_bits"])
def finish_kernel(
    scores: tl.tensor,
    order: tl.tensor,
    base: tl.tensor,
    ends: tl.tensor,
    rows: tl.tensor,
    spread: tl.tensor,
    loc_errors: tl.tensor,
    value: tl.tensor,
    slope: tl.tensor,
    classification: tl.tensor,
    localisation: tl.tensor,
    positives: tl.tensor,
    delta_bits: tl.tensor,
    HARD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the two terms, the weight of each localisation error, and K^T w; one program.

    Args:
        scores: [P] the positives, ascending.
        order: [P] int64, which positive each of these is.
        base: see `rankdet.ops.rank.triton_positives.prepare_kernel`; so are ends.
        ends: see there.
        rows: [5, P] float64, from `errors_kernel`; the last row is written, the weights.
        spread: [P] float64, the sum over i of H(p_k - p_i) of the fourth row; not used where HARD.
        loc_errors: [P] any floating dtype.
        value: [2P + 1] float64, written, K^T w.
        slope: [2P + 1] float64, written, K^T w.
        classification: 0-d, written.
        localisation: 0-d, written.
        positives: P.
        delta_bits: half-width of the ramp, the bits of a float64.
        HARD: whether positives rank among themselves by sorting.
        BLOCK: how many bins or positives at a time.
    """
    delta = delta_bits.to(tl.int64).to(tl.float64, bitcast=True)
    own = tl.where(delta > 0, 0.5, 1.0)
    lane = tl.arange(0, BLOCK)
    classified = tl.cast(0.0, tl.float64)
    localised = tl.cast(0.0, tl.float64)
    below = tl.cast(0.0, tl.float64)
    for start in range(0, positives, BLOCK):
        i = start + lane
        inside = i < positives
        place = tl.load(order + i, mask=inside, other=0)
        per_rank = tl.load(rows + 3 * positives + place, mask=inside, other=0.0)
        if HARD:
            weight = below + tl.cumsum(per_rank, 0)
            below += tl.sum(per_rank, 0)
        else:
            received = tl.load(spread + place, mask=inside, other=0.0)
            weight = received + (1 - own) * per_rank
        tl.store(rows + 4 * positives + place, weight, mask=inside)
        error = tl.load(loc_errors + place, mask=inside, other=0).to(tl.float64)
        localised += tl.sum(tl.where(inside, weight * error, 0.0), 0)
        classified += tl.sum(tl.load(rows + place, mask=inside, other=0.0), 0)
    kind = classification.dtype.element_ty
    tl.store(classification, (classified / positives).to(kind))
    tl.store(localisation, localised.to(kind))
    write_pieces(
        scores, order, base, ends, rows + 2 * positives, value, slope, positives, delta, BLOCK
    )


@triton.jit(do_not_specialize=["positives", "skipped", "few", "steps"])
def own_gradients_kernel(
    skip: tl.tensor,
    pos_index: tl.tensor,
    rows: tl.tensor,
    grad: tl.tensor,
    error_grad: tl.tensor,
    upstream: tl.tensor,
    error_upstream: tl.tensor,
    positives: tl.tensor,
    skipped: tl.tensor,
    few: tl.tensor,
    steps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write the gradients of what is no negative, and those of the localisation errors.

    Args:
        skip: [S] int64, ascending, what is no negative.
        pos_index: [P] int64, ascending, the positives among them.
        rows: [5, P] float64, see `finish_kernel`.
        grad: [M], written at the places in skip: gradients of positives, else 0.
        error_grad: [P], written.
        upstream: 0-d, factor of the gradients of positives.
        error_upstream: 0-d, factor of the gradients of localisation errors.
        positives: P.
        skipped: S.
        few: how many programs do the first; those after them do the second.
        steps: number of digits of P.
        BLOCK: how many in each program.
    """
    job = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    if job < few:
        k = job * BLOCK + lane
        inside = k < skipped
        place = tl.load(skip + k, mask=inside, other=0)
        nothing = tl.zeros_like(place)
        i = count_below(place, pos_index, nothing, nothing + steps, steps, positives)
        found = inside & (i < positives)
        found = found & (tl.load(pos_index + i, mask=found, other=-1) == place)
        own = tl.load(rows + positives + i, mask=found, other=0.0)
        own = own * tl.load(upstream).to(tl.float64)
        kind: tl.constexpr = grad.dtype.element_ty
        near: tl.constexpr = tl.float64 if kind == tl.float64 else tl.float32
        tl.store(grad + place, tl.where(found, own, 0.0).to(near).to(kind), mask=inside)
    else:
        positive = (job - few) * BLOCK + lane
        among = positive < positives
        weight = tl.load(rows + 4 * positives + positive, mask=among, other=0.0)
        weight = weight * tl.load(error_upstream).to(tl.float64)
        error_kind: tl.constexpr = error_grad.dtype.element_ty
        error_near: tl.constexpr = tl.float64 if error_kind == tl.float64 else tl.float32
        tl.store(error_grad + positive, weight.to(error_near).to(error_kind), mask=among)
