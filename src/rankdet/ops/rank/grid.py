"""A uniform grid over the knots: the bin of most scores without a search.

The cell of a score is a multiplication by a power of two, an addition and a rounding away, each
of them monotone. So a score in a higher cell than a knot lies above it and one in a lower cell
below it, whatever the rounding did, and every cell without a knot belongs to one bin. Only the
scores that share a cell with a knot need the binary search; they are few because there are many
more cells than knots.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankdet.ops.rank.arrays import Array, quiet, to_array
from rankdet.ops.rank.knots import Pieces

_CELLS_MIN = 1 << 10
_CELLS_MAX = 1 << 17  # of more, the table of the second pass would leave the cache
# A search costs about as much as this many cells cost in set-up.
_CELLS_PER_SEARCH = 4


class Grid(NamedTuple):
    """Cells 1 .. size cover the knots; cell 0 lies below all of them, cell size + 1 above.

    Attributes:
        below: [size + 2] int32, how many knots lie in this cell or lower: the bin of its scores,
            where it holds no knot itself.
        bins: [size + 2] the bin of each cell, and where a cell is mixed, that is holds a knot,
            the number past the last bin; int16 if they fit, for then `torch.bincount` takes
            half the time, else int32.
        geometry: [2] float64, width of a cell, and what is added to a score in units of this
            width to get its place among the cells.
    """

    below: Tensor
    bins: Tensor
    geometry: Tensor


def lay_grid(knots: Array, dtype: torch.dtype, scores: int) -> Grid:
    """Lay a grid over the knots.

    Args:
        knots: [K] float64 of numpy, ascending, finite, K >= 1.
        dtype: of the scores to come, float32 or float64.
        scores: how many will come; the more, the finer the grid.
    """
    # Of C cells about a share K / C is mixed: C + searches * scores * K / C is least here.
    ideal = math.isqrt(_CELLS_PER_SEARCH * scores * len(knots))
    wanted = min(max(1 << ideal.bit_length(), _CELLS_MIN), _CELLS_MAX)
    first, last = float(knots[0]), float(knots[-1])
    # Cells stay wide enough that their numbers and edges are exact in the scores' dtype.
    finest = max(abs(first), abs(last)) * torch.finfo(dtype).eps * 8
    width = 2.0 ** math.ceil(math.log2(max((last - first) / wanted, finest, 2.0**-100)))
    lowest = math.floor(first / width)
    size = math.floor(last / width) - lowest + 1
    shift = 1.0 - lowest
    rounded = _round_down(knots, dtype)
    place = _place(rounded, width, shift, size, torch.empty_like(rounded))
    knot_cells = place.to(torch.int64).numpy()
    # From the cell of each knot up to that of the next, one more knot lies in this cell or lower.
    ends = np.concatenate([[0], knot_cells, [size + 2]])
    below = np.arange(len(knots) + 1, dtype=np.int32).repeat(ends[1:] - ends[:-1])
    mixed = len(knots) + 1
    bins = below.astype(np.int16 if mixed <= np.iinfo(np.int16).max else np.int32)
    bins[knot_cells] = mixed
    geometry = torch.from_numpy(np.array([width, shift]))
    return Grid(torch.from_numpy(below), torch.from_numpy(bins), geometry)


def find_cells(
    grid: Grid, scores: Tensor, leave_out: Tensor | None, cells: Tensor, scratch: Tensor
) -> None:
    """Write the cell of each score.

    Args:
        grid: the grid.
        scores: [n] in the dtype that the grid was made for.
        leave_out: [m] int64, indices of scores to put into cell 0. So is a NaN.
        cells: [n] int32, written.
        scratch: [n] in the dtype of the scores, overwritten.
    """
    width, shift = grid.geometry.tolist()
    place = _place(scores, width, shift, grid.below.numel() - 2, scratch)
    if leave_out is not None:
        place.index_fill_(0, leave_out, 0.0)
    cells.copy_(place).clamp_(min=0)


def find_offsets(geometry: Tensor, scores: Tensor, cells: Tensor, offsets: Tensor) -> None:
    """Write how far scores [n] lie above the lower edges of their cells, in their own dtype."""
    width, shift = geometry.tolist()
    edge = offsets.copy_(cells).sub_(shift).mul_(width)
    torch.sub(scores, edge, out=offsets)


def tabulate(
    below: Tensor, geometry: Tensor, base: Tensor, function: Pieces, dtype: torch.dtype
) -> Tensor:
    """Tabulate a piecewise linear function of the score.

    Args:
        below: of the grid.
        geometry: of the grid.
        base: [K + 1] float64, the knot just below each bin.
        function: of K + 1 bins.
        dtype: of the parts of the result.

    Returns:
        [size + 2] complex: the value at the lower edge of each cell and the slope, in mixed
        cells of no use. A complex number moves both in one look-up.
    """
    width, shift = geometry.tolist()
    bin_, knots = below.numpy(), base.numpy()
    slope = to_array(function.slope)[bin_]
    ahead = np.arange(len(bin_), dtype=np.float64)
    ahead -= shift
    ahead *= width
    ahead -= knots[bin_]
    ahead[0] = 0  # nothing lies below cell 0
    ahead *= slope
    ahead += to_array(function.value)[bin_]
    table = np.zeros(len(bin_), np.complex64 if dtype == torch.float32 else np.complex128)
    table.real, table.imag = ahead, slope
    return torch.from_numpy(table)


def _place(scores: Tensor, width: float, shift: float, size: int, result: Tensor) -> Tensor:
    return torch.mul(scores, 1 / width, out=result).add_(shift).clamp_(0, size + 1)


@quiet
def _round_down(values: Array, dtype: torch.dtype) -> Tensor:
    """Return the largest numbers of ``dtype`` that are not above ``values`` (float64 of numpy)."""
    rounded = values.astype(np.float32 if dtype == torch.float32 else np.float64)
    below = np.nextafter(rounded, np.full_like(rounded, -np.inf))
    return torch.from_numpy(np.where(rounded > values, below, rounded))
