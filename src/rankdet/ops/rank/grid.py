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

from rankdet.ops.rank.knots import Knots, Pieces

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

    def __init__(self, knots: Knots, dtype: torch.dtype, scores: int) -> None:
        """Lay the grid.

        Args:
            knots: at least one, finite, on the CPU.
            dtype: of the scores to come, float32 or float64.
            scores: how many will come; the more, the finer the grid.
        """
        values = knots.values
        wanted = 1 << (scores // _SCORES_PER_CELL).bit_length()
        wanted = min(max(wanted, _CELLS_MIN), _CELLS_MAX)
        first, last = float(values[0]), float(values[-1])
        # Cells stay wide enough that their numbers and edges are exact in the scores' dtype.
        finest = max(abs(first), abs(last)) * torch.finfo(dtype).eps * 8
        width = 2.0 ** math.ceil(math.log2(max((last - first) / wanted, finest, 2.0**-100)))
        lowest = math.floor(first / width)
        self._dtype = dtype
        self._width = width
        self._shift = 1.0 - lowest
        self._shift_tensor = torch.tensor(self._shift, dtype=dtype)
        self.size = math.floor(last / width) - lowest + 1
        self.mixed_bin = values.numel() + 1

        knot_cells = self.place(_round_down(values, dtype)).to(torch.int32)
        inside = torch.bincount(knot_cells, minlength=self.size + 2)
        self._below = inside.cumsum(0)  # knots in this cell or lower; the bin, where not mixed
        self._mixed = inside > 0
        self.bins = self._below.masked_fill(self._mixed, self.mixed_bin).to(torch.int32)

    def place(self, scores: Tensor) -> Tensor:
        """Return where scores lie, in cells: the whole part is the number of the cell."""
        place = torch.add(self._shift_tensor, scores, alpha=1 / self._width)
        return place.clamp_(0, self.size + 1)

    def offset(self, scores: Tensor, place: Tensor) -> Tensor:
        """Return how far scores lie above the lower edge of their cell; uses up ``place``."""
        edge = place.floor_().sub_(self._shift).mul_(self._width)
        return torch.sub(scores, edge, out=edge)

    def table(self, knots: Knots, function: Pieces) -> Tensor:
        """Tabulate a piecewise linear function of the score.

        Returns:
            [size + 2] complex: the value at the lower edge of each cell, NaN where it is mixed,
            and the slope. A complex number moves both in one look-up.
        """
        edge = (torch.arange(self.size + 2, dtype=torch.float64) - self._shift) * self._width
        ahead = edge - knots.base[self._below]
        ahead[0] = 0  # nothing lies below cell 0
        slope = function.slope[self._below]
        value = (function.value[self._below] + slope * ahead).masked_fill_(self._mixed, torch.nan)
        return torch.complex(value.to(self._dtype), slope.to(self._dtype))


def _round_down(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest numbers of ``dtype`` that are not above ``values`` (float64)."""
    rounded = values.to(dtype)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.double() > values, below, rounded)
