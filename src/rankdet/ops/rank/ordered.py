"""Smoothed counts among positives, restricted to pairs that a second key puts in order.

Rank & Sort Loss ranks by score and sorts by quality: it needs, for each positive i, the sum over
those k with key_k < key_i of H(s_k - s_i) v_k. The matrix of all pairs gives it in O(P^2); above
a few hundred positives, going through the bits of the key's rank gives the same in
O(P log^2 P), all but the sorts in O(P log P).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankdet.ops.rank.arrays import Array, of_kind, to_tensor
from rankdet.ops.rank.reference import smoothed_step

# Up to here the matrix of all pairs is faster (measured on a CPU).
_MATRIX_UP_TO = 512


def ordered_counts(scores: Array, keys: Array, values: Array, delta: float) -> Array:
    """Return, for each i, the sum over k with keys[k] < keys[i] of H(scores[k] - scores[i]) v_k.

    Args:
        scores: [P] array of any floating dtype, finite.
        keys: [P] likewise, without NaN; equal keys are not in order.
        values: [T, P] likewise, T sets of weights v.
        delta: half-width of the ramp of H, >= 0.

    Returns:
        [T, P] float64, of the kind of the values.
    """
    way = _by_matrix if len(scores) <= _MATRIX_UP_TO else _by_bits
    result = way(to_tensor(scores).double(), to_tensor(keys), to_tensor(values).double(), delta)
    return of_kind(result, values)


def ordered_spread(scores: Array, keys: Array, values: Array, delta: float) -> Array:
    """Return the adjoint: for each k, the sum over i with keys[k] < keys[i] of H(..) values[:, i].

    Seen from k, the pairs are the same with scores and keys negated.
    """
    return ordered_counts(-scores, -keys, values, delta)


def _by_matrix(scores: Tensor, keys: Tensor, values: Tensor, delta: float) -> Tensor:
    step = smoothed_step(scores[None, :] - scores[:, None], delta)  # [i, k]
    return values @ step.masked_fill_(keys[None, :] >= keys[:, None], 0.0).T


def _by_bits(scores: Tensor, keys: Tensor, values: Tensor, delta: float) -> Tensor:
    """Sum over pairs in order, one bit of the key's rank at a time.

    For ranks r_k < r_i there is exactly one bit at which they differ first, k with 0 and i with
    1 there and all higher bits equal. Sorted by score, the sum over k is one over a range of
    places, taken from prefix sums. Bit by bit, from the highest, the examples with a 0 move
    before those with a 1, each side in the order it was in (a wavelet matrix): so the examples
    whose higher bits equal those of i stay together, and the range for i moves along by counting
    zeros. All bits are arranged at once; only the ranges go through them one after the other.
    """
    sets, count = values.shape
    scores, order = scores.sort()
    values = values.index_select(1, order)
    # Only differences up to delta matter, so wide gaps may be narrowed: numbers stay small.
    narrow = _running(scores.diff().clamp_(max=2 * delta))
    if delta > 0:
        ramps = torch.stack([scores - delta, scores + delta])
        # Who stands at its very end is on the ramp, with a share of 0: so ties count 1/2 also
        # where the scores are too large for `delta` to move them.
        begin = torch.searchsorted(scores, ramps[0])
        end = torch.searchsorted(scores, ramps[1], right=True)
    else:
        begin = end = torch.searchsorted(scores, scores)
    # Places at which the ramp of i begins and ends, and the end of all.
    cuts = torch.stack([begin, end, torch.full_like(end, count)])  # [3, P]

    ranks = keys.index_select(0, order).unique(return_inverse=True)[1]
    steps = max(int(ranks.max()).bit_length(), 1)
    step = torch.arange(steps, device=ranks.device)[:, None]
    bits = ranks >> (steps - 1 - step) & 1  # [steps, P], the highest first
    after = (bits << step).cumsum(0).argsort(dim=1, stable=True)  # who stands where after a step
    standing = torch.cat([torch.arange(count, device=ranks.device)[None], after[:-1]])
    zeros = _running(1 - bits.gather(1, standing))  # [steps, P + 1], before each place

    befores = []
    for place, bit in zip(zeros, bits.bool(), strict=True):
        befores.append(place.index_select(0, cuts.view(-1)).view_as(cuts))
        cuts = torch.where(bit, place[-1] + cuts - befores[-1], befores[-1])
    reads = (torch.stack(befores) + step[:, None] * (count + 1)).view(-1)

    # Zeros stand first after a step, so a count of them is a place in the prefix sums there.
    data = torch.cat([values, values * narrow]).T.contiguous()  # [P, 2T]
    prefix = data.index_select(0, after.view(-1)).view(steps, count, -1).cumsum(1)
    prefix = torch.nn.functional.pad(prefix, (0, 0, 1, 0)).view(-1, 2 * sets)
    read = prefix.index_select(0, reads).view(steps, 3, count, -1)
    read = (read * bits[:, None, :, None]).sum(0)  # [3, P, 2T]
    weight, moment = read.permute(2, 0, 1).split(sets)  # both [T, 3, P]
    result = weight[:, 2] - weight[:, 1]
    if delta > 0:
        on_ramp = weight[:, 1] - weight[:, 0]
        rise = moment[:, 1] - moment[:, 0] - narrow * on_ramp
        result += rise / (2 * delta) + on_ramp / 2
    return torch.empty_like(result).index_copy_(1, order, result)


def _running(values: Tensor) -> Tensor:
    """Return the sums of what comes before each place, [..., n + 1]."""
    return torch.nn.functional.pad(values.cumsum(-1), (1, 0))
