"""A ranking on a GPU from end to end: positives and negatives in, counts and K^T w out.

Five launches count the negatives above each positive, one each does a sum over pairs of positives
and K^T w. Nothing here makes the host wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankdet.ops.rank import triton_bins, triton_fill, triton_positives, triton_sums
from rankdet.ops.rank.knots import Pieces
from rankdet.ops.rank.triton_grid import DIGITS, WIDEST, cells_log2_for, empty_grid, notes_of
from rankdet.ops.rank.triton_launch import cdiv, float64_bits, launch
from rankdet.ops.rank.vectorised import Notes, compute_dtype

# The matrix of all pairs of positives is summed up, not kept: 1e9 pairs take some milliseconds.
MOST_POSITIVES = 1 << 14

_BLOCK = 256
_ZERO_BLOCK = 4096
_SCAN_BLOCK = 1024
PAIRS_BLOCK = 16
PAIRS_OTHERS = 128


class RankedPositives:
    """The operator for P >= 1 positives and N scores on one device.

    Args:
        pos: [P] float32 or float64.
        scores: [N] any floating dtype.
        skip: [S] int64, ascending, the scores that are no negatives.
        delta: half-width of the ramp, >= 0.
        tile: how many scores a program of the first pass looks at in one go, a power of two.
        programs: how many of them work side by side, by default enough for the device.
        cells: of the grid over the knots, by default as many as suit their number.

    Attributes:
        counts: [P] float64, K 1; NaN throughout where a score or a positive is not finite.
        base: [2P + 1] float64, the knot just below each bin; the first entry is no knot.
        finite: 0-d bool, whether all scores are that were not to be left out, and all positives.
        sorted: [P] the positives, ascending.
        order: [P] int64, which positive each of these is.
        ends: [2, P] int32, the places of the ends of each of their ramps among the knots.
        grid: over the knots, for the second pass.
    """

    def __init__(
        self,
        pos: Tensor,
        scores: Tensor,
        skip: Tensor,
        delta: float,
        *,
        tile: int = triton_fill.TILE,
        programs: int | None = None,
        cells: int | None = None,
    ) -> None:
        """Make the first pass."""
        with torch.cuda.device_of(scores):
            self._rank(pos, scores.contiguous(), skip, delta, tile, programs, cells)

    def _rank(
        self,
        pos: Tensor,
        scores: Tensor,
        skip: Tensor,
        delta: float,
        tile: int,
        programs: int | None,
        cells: int | None,
    ) -> None:
        self._delta_bits = float64_bits(delta)
        self.sorted, self.order = pos.sort(stable=True)  # as on a CPU, also among ties
        positives, device, dtype = pos.numel(), pos.device, compute_dtype(scores)
        bins = 2 * positives + 1
        cells_log2 = cells_log2_for(2 * positives, cells)
        self.grid = grid = empty_grid(cells_log2, device)
        tiles = cdiv(scores.numel(), tile)
        shape = triton_bins.layout(scores, grid, tile)
        zeros = shape.sums(bins)
        sums = torch.empty(zeros, dtype=torch.int64, device=device)
        finite = torch.empty((), dtype=torch.int8, device=device)
        self.base = torch.empty(bins, dtype=torch.float64, device=device)
        self.ends = torch.empty(2, positives, dtype=torch.int32, device=device)
        cut_tiles = tiles if skip.numel() else -1
        cuts = torch.empty(cut_tiles + 1, dtype=torch.int64, device=device)
        jobs = (
            cdiv(positives, _BLOCK)
            + cdiv(grid.entries.numel(), _BLOCK)
            + cdiv(cut_tiles + 1, _BLOCK)
            + cdiv(zeros, _ZERO_BLOCK)
        )
        launch(
            triton_positives.prepare_kernel,
            (jobs,),
            self.sorted,
            skip,
            self.base,
            self.ends,
            grid.entries,
            grid.geometry,
            cuts,
            sums,
            finite,
            positives,
            skip.numel(),
            cut_tiles,
            zeros,
            self._delta_bits,
            positives.bit_length(),
            skip.numel().bit_length(),
            TILE=tile,
            CELLS_LOG2=cells_log2,
            DIGITS=DIGITS[dtype],
            WIDEST=WIDEST[dtype],
            BLOCK=_BLOCK,
            ZERO_BLOCK=_ZERO_BLOCK,
            num_warps=4,
        )
        triton_fill.add_scores(self.base, scores, skip, cuts, grid, sums, finite, shape, programs)
        running, totals = triton_bins.add_copies(sums, shape)
        self.counts = torch.empty(positives, dtype=torch.float64, device=device)
        room = torch.empty(3 * totals.shape[1] + 2 * bins, dtype=torch.int64, device=device)
        before, above, excess = room.split([3 * totals.shape[1], bins, bins])
        launch(
            triton_positives.count_kernel,
            (1,),
            self.sorted,
            self.order,
            self.base,
            self.ends,
            grid.geometry,
            running,
            totals,
            sums[shape.copies * shape.cells :],
            finite,
            before,
            above,
            excess.view(torch.float64),
            self.counts,
            positives,
            triton_fill.digits_for(scores.numel()),
            self._delta_bits,
            CELLS=shape.cells,
            SUM_BLOCK=triton_bins.SUM_BLOCK,
            SUM_BLOCKS=1 << (totals.shape[1] - 1).bit_length(),
            BIN_COPIES=triton_bins.BIN_COPIES,
            BLOCK=_SCAN_BLOCK,
            num_warps=8,
        )
        self.finite = finite.view(torch.bool)

    @property
    def notes(self) -> Notes:
        """What `rankdet.ops.rank.triton.evaluate` needs to know."""
        return notes_of(self.grid)

    def pair_counts(self, values: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the sum over k of H(p_k - p_i) v_k for T sets of values, [T, P] float64.

        With keys [P], over those k whose key is below that of i.
        """
        return self._pairs(values, keys, adjoint=False)

    def pair_spread(self, values: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the adjoint, the sum over i of H(p_k - p_i) v_i for one set, [P] float64.

        With keys [P], over those i whose key is above that of k.
        """
        return self._pairs(values[None], keys, adjoint=True)[0]

    def pieces(self, weights: Tensor) -> Pieces:
        """Return K^T w for T sets of weights [T, P] float64 as a function of the score."""
        sets, positives = weights.shape
        weights = weights.contiguous()
        result = weights.new_empty(2, sets, self.base.numel())
        with torch.cuda.device_of(weights):
            launch(
                triton_sums.pieces_kernel,
                (sets,),
                self.sorted,
                self.order,
                self.base,
                self.ends,
                weights,
                result[0],
                result[1],
                positives,
                self.base.numel(),
                self._delta_bits,
                BLOCK=_SCAN_BLOCK,
                num_warps=8,
            )
        return Pieces(result[0], result[1])

    def _pairs(self, values: Tensor, keys: Tensor | None, *, adjoint: bool) -> Tensor:
        sets, positives = values.shape
        values = values.contiguous()
        result = torch.empty(values.shape, dtype=torch.float64, device=values.device)
        with torch.cuda.device_of(values):
            launch(
                triton_sums.pairs_kernel,
                (cdiv(positives, PAIRS_BLOCK), sets),
                self.sorted,
                self.order,
                values if keys is None else keys.contiguous(),
                values,
                result,
                positives,
                self._delta_bits,
                ADJOINT=adjoint,
                KEYED=keys is not None,
                BLOCK=PAIRS_BLOCK,
                OTHERS=PAIRS_OTHERS,
                num_warps=4,
            )
        return result
