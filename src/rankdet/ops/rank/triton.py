"""The two passes over the scores as Triton kernels; imported only when chosen.

Drop-in replacements of `rankdet.ops.rank.vectorised.fill_bins` and `evaluate`: each reads the
scores once, sorts and copies nothing, widens half precision in registers, and never makes the
host wait for the device. The result is the same to the bit whatever order the programs run in.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from rankdet.ops.rank import triton_evaluate, triton_fill
from rankdet.ops.rank.knots import Pieces
from rankdet.ops.rank.triton_grid import DeviceGrid, lay_grid, notes_of
from rankdet.ops.rank.vectorised import Bins, Notes, compute_dtype

# Scores that a program of the second pass looks at in one go.
EVALUATE_TILE = 4096


def fill_bins(
    base: Tensor,
    scores: Tensor,
    skip: Tensor,
    *,
    tile: int = triton_fill.TILE,
    programs: int | None = None,
    cells: int | None = None,
) -> Bins:
    """Make the first pass, as `rankdet.ops.rank.vectorised.fill_bins`.

    Bin 0 and the distances in the last bin, which no count needs, are left at 0; so are all
    bins of tiles that hold a score that is not finite, which makes every count NaN.

    Args:
        base: [2P + 1] float64, the knot just below each bin; the first entry is no knot.
        scores: [N] any floating dtype; copied only if they are not contiguous.
        skip: [S] int64, ascending, the scores to leave out, whatever they are.
        tile: how many scores a program looks at in one go, a power of two.
        programs: how many work side by side, by default enough for the device. Neither this nor
            the order in which they run changes a bit of the result.
        cells: of the grid over the knots, by default as many as suit their number.

    Raises:
        ValueError: the scores are not on a CUDA device (unless Triton's interpreter runs).
    """
    if not scores.is_cuda and isinstance(triton_evaluate.read_off_kernel, triton.JITFunction):
        raise ValueError(
            f"Triton kernels need scores on a CUDA device, got {scores.device}: choose the backend "
            "'auto' or 'vectorised'"
        )
    with torch.cuda.device_of(scores):
        scores, knots = scores.contiguous(), _with_a_knot(base)
        grid = lay_grid(knots, compute_dtype(scores), cells)
        number, beyond, finite = triton_fill.fill(
            knots, scores, skip, grid, tile=tile, programs=programs
        )
    notes = notes_of(grid)
    return Bins(number[: base.numel()], beyond[: base.numel()], finite, notes)


def evaluate(
    base: Tensor,
    function: Pieces,
    scores: Tensor,
    skip: Tensor,
    notes: Notes,
    dtype: torch.dtype,
    *,
    tile: int = EVALUATE_TILE,
) -> Tensor:
    """Make the second pass, as `rankdet.ops.rank.vectorised.evaluate`.

    Args:
        base: [2P + 1] float64, the knot just below each bin; the first entry is no knot.
        function: of 2P + 1 bins.
        scores: [N] any floating dtype; copied only if they are not contiguous.
        skip: [S] int64, ascending, the scores to leave out.
        notes: from `fill_bins` of this file, over the same base.
        dtype: of the result.
        tile: how many scores each program looks at, a power of two.

    Returns:
        [N] in ``dtype``. 0 where left out; NaN where a score is NaN or infinite.
    """
    with torch.cuda.device_of(scores):
        scores = scores.contiguous()
        result = torch.empty_like(scores, dtype=dtype)
        value, slope = (_with_a_bin(each, base) for each in function)
        grid = DeviceGrid(notes.below, notes.geometry)
        triton_evaluate.read_off(
            _with_a_knot(base), Pieces(value, slope), scores, grid, result, tile=tile
        )
        return result.index_fill_(0, skip, 0.0)


def try_out(device: torch.device) -> None:
    """Build and launch a small kernel; raises whatever Triton raises where it does not work."""
    with torch.cuda.device(device):
        lay_grid(torch.zeros(2, dtype=torch.float64, device=device), torch.float32)


def _with_a_knot(base: Tensor) -> Tensor:
    """Return base, with a knot above everything where there is none at all."""
    return base.contiguous() if base.numel() > 1 else pad(base, (0, 1), value=torch.inf)


def _with_a_bin(values: Tensor, base: Tensor) -> Tensor:
    return values.contiguous() if base.numel() > 1 else pad(values, (0, 1))
