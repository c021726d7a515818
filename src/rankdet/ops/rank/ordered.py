"""Smoothed counts among positives, restricted to pairs that a second key puts in order.

Rank & Sort Loss ranks by score and sorts by quality: it needs, for each positive i, the sum over
those k with key_k < key_i of H(s_k - s_i) v_k. The matrix of all pairs gives it in O(P^2); above
a few hundred positives, a merge over the bits of the key's rank gives the same in O(P log^2 P).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankdet.ops.rank.reference import smoothed_step

# Up to here the matrix of all pairs is faster (measured on a CPU).
_MATRIX_UP_TO = 384


def ordered_counts(scores: Tensor, keys: Tensor, values: Tensor, delta: float) -> Tensor:
    """Return, for each i, the sum over k with keys[k] < keys[i] of H(scores[k] - scores[i]) v_k.

    Args:
        scores: [P] any floating dtype, finite.
        keys: [P] any floating dtype, without NaN; equal keys are not in order.
        values: [T, P] any floating dtype, T sets of weights v.
        delta: half-width of the ramp of H, >= 0.

    Returns:
        [T, P] float64.
    """
    scores, values = scores.double(), values.double()
    if scores.numel() <= _MATRIX_UP_TO:
        return _by_matrix(scores, keys, values, delta)
    return _by_merging(scores, keys, values, delta)


def ordered_spread(scores: Tensor, keys: Tensor, values: Tensor, delta: float) -> Tensor:
    """Return the adjoint: for each k, the sum over i with keys[k] < keys[i] of H(..) values[:, i].

    Seen from k, the pairs are the same with scores and keys negated.
    """
    return ordered_counts(-scores, -keys, values, delta)


def _by_matrix(scores: Tensor, keys: Tensor, values: Tensor, delta: float) -> Tensor:
    step = smoothed_step(scores[None, :] - scores[:, None], delta)  # [i, k]
    return values @ step.masked_fill_(keys[None, :] >= keys[:, None], 0.0).T


def _by_merging(scores: Tensor, keys: Tensor, values: Tensor, delta: float) -> Tensor:
    """Sum over pairs in order, one bit of the key's rank at a time.

    For ranks r_k < r_i there is exactly one bit at which they differ first, k with 0 and i with 1
    there and all higher bits equal. So for each bit, the examples with equal higher bits form a
    group, those with a 0 are its sources, those with a 1 receive. Within a group the sum over
    sources is a difference of prefix sums in the order of the scores. All bits (rows) at once.
    """
    count = scores.numel()
    scores, order = scores.sort()
    ranks = keys[order].unique(return_inverse=True)[1]
    bits = torch.arange(max(int(ranks.max()).bit_length(), 1), device=scores.device)[:, None]
    group = ranks >> (bits + 1)  # [bits, P]
    receives = (ranks >> bits & 1).bool()

    # Sources of each row in the order of (group, score); what receives is put behind them all.
    place = torch.arange(count, device=scores.device)
    stride = count + 1
    key = torch.where(receives, stride * stride, group * stride + place)
    key, sources = key.sort(dim=1)
    weight = values[:, order][:, sources]  # [T, bits, P]
    weight = weight.masked_fill_(receives.gather(1, sources), 0.0)

    # Only differences up to delta matter, so wide gaps may be narrowed: numbers stay small.
    gaps = scores.diff().clamp(max=2 * delta)
    compact = torch.cat([scores.new_zeros(1), gaps.cumsum(0)])
    moment = weight * compact[sources]
    weight, moment = (torch.nn.functional.pad(x.cumsum(2), (1, 0)) for x in (weight, moment))

    if delta > 0:
        low = torch.searchsorted(scores, scores - delta, right=True)
        high = torch.searchsorted(scores, scores + delta, right=True)
    else:
        low = high = torch.searchsorted(scores, scores)
    # Where the ramp of i begins and ends among the sources of its group, and where these end.
    cuts = torch.stack([low, high, torch.full_like(low, count)], dim=1)  # [P, 3]
    cuts = torch.searchsorted(key, (group[:, :, None] * stride + cuts).flatten(1)).flatten()
    row = (bits * stride).repeat(1, 3 * count).flatten() + cuts
    begin, end, last = weight.flatten(1)[:, row].unflatten(1, (-1, count, 3)).unbind(3)
    result = last - end
    if delta > 0:
        moments = moment.flatten(1)[:, row].unflatten(1, (-1, count, 3))
        on_ramp = moments[..., 1] - moments[..., 0] - (compact - delta) * (end - begin)
        result = result + on_ramp / (2 * delta)
    result = (result * receives).sum(1)  # [T, P]
    return torch.empty_like(result).index_copy_(1, order, result)
