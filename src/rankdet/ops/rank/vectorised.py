"""The operator in plain torch: O((N + P) log P), the negatives neither sorted nor copied.

Two ways to find the bin of a score. The exact one is a binary search among the knots
(`torch.bucketize`, 40-60 ns for each score on a CPU). On a CPU, large inputs go through a
uniform grid of cells first (see `rankdet.ops.rank.grid`), and chunks whose scores all lie in
one bin, which is every chunk at the start of a training, need neither.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rankdet.ops.few import few_nonzero
from rankdet.ops.rank.grid import Grid
from rankdet.ops.rank.knots import Pieces, counts_from_bins, make_knots, pieces

# Scores per chunk: on a CPU a handful of temporaries of this size stay in the cache and are
# long enough to be shared between threads; on a GPU it only bounds the memory.
_CHUNK_CPU = 1 << 18
_CHUNK_GPU = 1 << 24
# Below this many scores the search costs less than laying the grid.
_GRID_FROM = 1 << 12


class VectorisedOperator:
    """K_ij = H(neg_j - pos_i), never formed. See `rankdet.ops.rank.rank_operator`."""

    def __init__(self, pos: Tensor, neg: Tensor, delta: float, skip: Tensor | None) -> None:
        """Sort the knots; the scores are read by `counts` and again by `spread`."""
        self._neg = neg
        self._skip = skip
        self._dtype = torch.promote_types(torch.promote_types(pos.dtype, neg.dtype), torch.float32)
        self._knots = make_knots(pos, delta)
        self._finite = pos.isfinite().all()
        self._on_cpu = neg.device.type == "cpu"

    def counts(self, per_neg: Tensor | None) -> Tensor:
        """Return K v, [P] float64."""
        bins = self._knots.values.numel() + 1
        exact = torch.int64 if per_neg is None else torch.float64
        number = torch.zeros(bins, dtype=exact, device=self._neg.device)
        beyond = torch.zeros(bins, dtype=torch.float64, device=self._neg.device)
        if per_neg is None and self._streams():
            finite = self._fill_by_grid(number, beyond)
        else:
            finite = self._fill_by_search(number, beyond, per_neg)
        return counts_from_bins(self._knots, number, beyond).masked_fill_(~finite, torch.nan)

    def spread(self, per_pos: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return K^T w, [N] in ``dtype``."""
        result = torch.empty_like(self._neg, dtype=dtype or self._dtype)
        function = pieces(self._knots, per_pos.double())
        if self._streams():
            self._spread_by_grid(function, result)
        else:
            self._spread_by_search(function, result)
        return result

    def _streams(self) -> bool:
        """Tell whether the grid serves: a CPU, enough scores, and knots to lay it over."""
        enough = self._neg.numel() >= _GRID_FROM and self._knots.values.numel() > 0
        return self._on_cpu and enough and bool(self._finite)

    def _chunks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yield place, scores in ``dtype`` and the indices among them to leave out."""
        size, total = _CHUNK_CPU if self._on_cpu else _CHUNK_GPU, self._neg.numel()
        begins = range(0, total, size)
        skip = self._neg.new_zeros(0, dtype=torch.int64) if self._skip is None else self._skip
        cuts = torch.searchsorted(skip, torch.tensor([*begins, total], device=skip.device)).tolist()
        for begin, first, last in zip(begins, cuts[:-1], cuts[1:], strict=True):
            place = slice(begin, min(begin + size, total))
            out = skip[first:last] - begin if first < last else None
            yield place, self._neg[place].to(dtype), out

    def _fill_by_search(self, number: Tensor, beyond: Tensor, per_neg: Tensor | None) -> Tensor:
        """Fill the bins on any device, with or without weights; return whether all was finite."""
        finite = self._finite
        for place, scores, out in self._chunks(torch.float64):
            if out is not None:
                scores = scores.index_fill(0, out, 0.0)
            finite = finite & scores.isfinite().all()
            bin_ = torch.bucketize(scores, self._knots.values)
            if out is not None:
                bin_ = bin_.index_fill_(0, out, 0)
            weight = torch.ones_like(bin_) if per_neg is None else per_neg[place].double()
            number.scatter_add_(0, bin_, weight)
            beyond.scatter_add_(0, bin_, (scores - self._knots.base[bin_]) * weight)
        return finite

    def _spread_by_search(self, function: Pieces, result: Tensor) -> None:
        """Evaluate K^T w at every score, on any device."""
        finite = self._finite
        for place, scores, out in self._chunks(torch.float64):
            if out is not None:
                scores = scores.index_fill(0, out, 0.0)
            finite = finite & scores.isfinite().all()
            value = self._evaluate(function, scores)
            if out is not None:
                value = value.index_fill_(0, out, 0.0)
            result[place] = value
        result.masked_fill_(~finite, torch.nan)

    def _fill_by_grid(self, number: Tensor, beyond: Tensor) -> Tensor:
        """Fill the bins on a CPU; return whether all was finite.

        A chunk within one bin needs two sums. Any other goes through the cells of the grid, and
        the few scores in mixed cells through the search.
        """
        base, bins = self._knots.base, number.numel()
        total = torch.zeros(bins + 1, dtype=torch.float64)  # sums of scores, one more bin: mixed
        inside = torch.zeros(bins + 1, dtype=torch.int64)
        grid: Grid | None = None
        for _, scores, out in self._chunks(self._dtype):
            low, high = _range(scores, out)
            if not (abs(low) < torch.inf and abs(high) < torch.inf):
                return torch.tensor(False)
            only = self._only_bin(low, high)
            if only == 0:
                continue
            if only is not None:
                wide = scores.double() - base[only]
                number[only] += wide.numel() - (0 if out is None else out.numel())
                beyond[only] += (wide if out is None else wide.index_fill_(0, out, 0.0)).sum()
                continue
            if grid is None:
                grid = Grid(self._knots, self._dtype, self._neg.numel())
            place = grid.place(scores)
            if out is not None:
                place.index_fill_(0, out, 0.0)
            bin_ = grid.bins.index_select(0, place.to(torch.int32))
            inside += torch.bincount(bin_, minlength=bins + 1)
            total += torch.bincount(bin_, weights=scores.double(), minlength=bins + 1)
            mixed = few_nonzero(bin_ == grid.mixed_bin)
            searched = scores.index_select(0, mixed).double()
            bin_ = torch.bucketize(searched, self._knots.values)
            number += torch.bincount(bin_, minlength=bins)
            distance = searched - base.index_select(0, bin_)
            beyond += torch.bincount(bin_, weights=distance, minlength=bins)
        number += inside[:-1]
        # What was left out may be anything, but it was put into bin 0, which takes no part.
        beyond[1:] += total[1:-1] - inside[1:-1] * base[1:]
        return torch.tensor(True)

    def _spread_by_grid(self, function: Pieces, result: Tensor) -> None:
        """Evaluate K^T w on a CPU, chunk by chunk as in `_fill_by_grid`."""
        dtype = torch.promote_types(self._dtype, result.dtype)
        grid: Grid | None = None
        for where, scores, out in self._chunks(dtype):
            low, high = _range(scores, out)
            if not (abs(low) < torch.inf and abs(high) < torch.inf):
                result.fill_(torch.nan)
                return
            only = self._only_bin(low, high)
            if only == 0:
                result[where] = 0.0
                continue
            if only is not None:
                base, value, slope = (
                    float(part[only]) for part in (self._knots.base, function.value, function.slope)
                )
                values = (scores - base).mul_(slope).add_(value)
            else:
                if grid is None:
                    grid = Grid(self._knots, dtype, self._neg.numel())
                    table = grid.table(self._knots, function)
                place = grid.place(scores)
                if out is not None:
                    place.index_fill_(0, out, 0.0)
                entry = table.index_select(0, place.to(torch.int32))
                offset = grid.offset(scores, place)
                values = torch.addcmul(entry.real, entry.imag, offset, out=offset)
                mixed = few_nonzero(values.isnan())
                searched = self._evaluate(function, scores.index_select(0, mixed).double())
                values.index_copy_(0, mixed, searched.to(values.dtype))
            if out is not None:
                values.index_fill_(0, out, 0.0)
            result[where] = values

    def _only_bin(self, low: float, high: float) -> int | None:
        """Return the bin that holds the whole range, None where there are several."""
        ends = torch.tensor([low, high], dtype=torch.float64)
        first, last = torch.bucketize(ends, self._knots.values).tolist()
        return first if first == last else None

    def _evaluate(self, function: Pieces, scores: Tensor) -> Tensor:
        """Return the piecewise linear function at each score, both float64."""
        bin_ = torch.bucketize(scores, self._knots.values)
        offset = scores - self._knots.base.index_select(0, bin_)
        slope = function.slope.index_select(0, bin_)
        return torch.addcmul(function.value.index_select(0, bin_), slope, offset)


def _range(scores: Tensor, out: Tensor | None) -> tuple[float, float]:
    """Return the least and the largest score; what is left out may widen it, if it is finite."""
    low, high = (float(end) for end in scores.aminmax())
    if out is not None and not (abs(low) < torch.inf and abs(high) < torch.inf):
        low, high = (float(end) for end in scores.index_fill(0, out, 0.0).aminmax())
    return low, high
