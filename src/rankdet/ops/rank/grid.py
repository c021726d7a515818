"""A uniform grid over the knots: the bin of most scores without a search.

The cell of a score is a multiplication by a power of two, an addition and a rounding away, each
of them monotone. So a score in a higher cell than a knot lies above it and one in a lower cell
below it, whatever the rounding did, and every cell without a knot belongs to one bin. Only the
scores that share a cell with a knot need the binary search; they are few because there are many
more cells than knots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rankdet.ops.rank.knots import Pieces

_CELLS_MIN = 1 << 10
_CELLS_MAX = 1 << 16
# A cell costs about as much in set-up as this many scores cost in searches.
_SCORES_PER_CELL = 16


class Grid:
    """Cells 1 .. size cover the knots; cell 0 lies below all of them, cell size + 1 above.

    Attributes:
        size: number of cells that cover the knots.
        mixed_bin: the number that stands in ``bins`` for "search for it": one past the last bin.
        bins: [size + 2] int32, the bin of each cell.
    """

    def __init__(self, knots: Tensor, dtype: torch.dtype, scores: int) -> None:
        """Lay the grid.

        Args:
            knots: [K] float64, ascending, finite, K >= 1, on the CPU.
            dtype: of the scores to come, float32 or float64.
            scores: how many will come; the more, the finer the grid.
        """
        wanted = 1 << (scores // _SCORES_PER_CELL).bit_length()
        wanted = min(max(wanted, _CELLS_MIN), _CELLS_MAX)
        first, last = knots[[0, -1]].tolist()
        # Cells stay wide enough that their numbers and edges are exact in the scores' dtype.
        finest = max(abs(first), abs(last)) * torch.finfo(dtype).eps * 8
        width = 2.0 ** math.ceil(math.log2(max((last - first) / wanted, finest, 2.0**-100)))
        lowest = math.floor(first / width)
        self._width = width
        self._shift = 1.0 - lowest
        self.size = math.floor(last / width) - lowest + 1
        self.mixed_bin = knots.numel() + 1

        inside = torch.bincount(self.cells(_round_down(knots, dtype))[0], minlength=self.size + 2)
        self._below = inside.cumsum(0)  # knots in this cell or lower: the bin, where not mixed
        self.bins = self._below.to(torch.int32).masked_fill_(inside > 0, self.mixed_bin)

    def cells(self, scores: Tensor, leave_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the cell of each score, and its place in units of cells.

        Args:
            scores: [n] in the dtype of the grid.
            leave_out: [m] int64, indices of scores to put into cell 0. So is a NaN.

        Returns:
            [n] int32 and [n] in the dtype of the scores; the first is the whole part.
        """
        place = scores.mul(1 / self._width).add_(self._shift).clamp_(0, self.size + 1)
        if leave_out is not None:
            place.index_fill_(0, leave_out, 0.0)
        return place.to(torch.int32).clamp_(min=0), place

    def offsets(self, scores: Tensor, place: Tensor, dtype: torch.dtype) -> Tensor:
        """Return how far scores lie above the lower edge of their cell; uses up ``place``."""
        edge = place.floor_().sub_(self._shift).mul_(self._width).to(dtype)
        return torch.sub(scores.to(dtype), edge, out=edge)

    def table(self, base: Tensor, function: Pieces, dtype: torch.dtype) -> Tensor:
        """Tabulate a piecewise linear function of the score.

        Args:
            base: [K + 1] float64, the knot just below each bin.
            function: of K + 1 bins.
            dtype: of the parts of the result.

        Returns:
            [size + 2] complex: the value at the lower edge of each cell and the slope, in mixed
            cells of no use. A complex number moves both in one look-up.
        """
        ahead = torch.arange(self.size + 2, dtype=torch.float64).sub_(self._shift)
        ahead.mul_(self._width).sub_(base.index_select(0, self._below))
        ahead[0] = 0  # nothing lies below cell 0
        slope = function.slope.index_select(0, self._below)
        value = function.value.index_select(0, self._below).addcmul_(slope, ahead)
        return torch.complex(value.to(dtype), slope.to(dtype))


def _round_down(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest numbers of ``dtype`` that are not above ``values`` (float64)."""
    rounded = values.to(dtype)
    below = torch.nextafter(rounded, rounded.new_tensor(-torch.inf))
    return torch.where(rounded.double() > values, below, rounded)
