"""Where positives are and what is no negative, as Triton kernels: one read of the targets.

What has to be found is few among many. A first kernel counts it tile by tile, a second one adds up,
then the host learns how many there are and makes room, and a third one opens only those tiles that
hold any. `torch.nonzero` reads the targets twice, and would be needed twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdet.ops.rank.passes import Found
from rankdet.ops.rank.triton_launch import cdiv, launch
from rankdet.ops.rank.vectorised import compute_dtype

TILE = 4096
_PART = 1024
_SCAN_BLOCK = 1024


def find(targets: Tensor, scores: Tensor, *, tile: int = TILE) -> Found | None:
    """Find the positives and what else is no negative; the host waits for their number.

    Args:
        targets: [N] 1 positive, 0 negative, -1 ignored; any integer, bool or floating dtype.
        scores: [N] any floating dtype, on the same device.
        tile: how many entries a program looks at, a power of two.

    Returns:
        None where there is any other target.
    """
    total, device = targets.numel(), scores.device
    tiles = cdiv(total, tile)
    if targets.dtype == torch.bool:
        targets = targets.view(torch.int8)
    targets, scores = targets.contiguous(), scores.contiguous()
    kinds = {"FLOATING": targets.is_floating_point(), "TILE": tile, "PART": min(tile, _PART)}
    with torch.cuda.device_of(scores):
        tallies = torch.empty(3, tiles + 1, dtype=torch.int64, device=device)
        launch(tally_kernel, (max(tiles, 1),), targets, tallies, total, tiles, **kinds, num_warps=4)
        launch(add_up_kernel, (1,), tallies, tiles, BLOCK=_SCAN_BLOCK, num_warps=4)
        positives, skipped, unknown = tallies[:, tiles].tolist()
        if unknown:
            return None
        skip = torch.empty(skipped, dtype=torch.int64, device=device)
        pos_index = torch.empty(positives, dtype=torch.int64, device=device)
        pos = torch.empty(positives, dtype=compute_dtype(scores), device=device)
        if skipped:
            launch(
                place_kernel,
                (tiles,),
                *(targets, scores, tallies, skip, pos_index, pos, total, tiles),
                **kinds,
                num_warps=4,
            )
    return Found(skip, pos_index, pos)


@triton.jit
def _kinds(
    targets: tl.tensor, start: tl.tensor, total: tl.tensor, FLOATING: tl.constexpr,
    PART: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Return which of the entries from `start` on are positives, no negatives, of no kind."""
    inside = tl.arange(0, PART) < tl.minimum(total - start, PART).to(tl.int32)
    kind = tl.load(targets + start + tl.arange(0, PART), mask=inside, other=0)
    kind = kind.to(tl.float64) if FLOATING else kind.to(tl.int64)
    unknown = (kind != 0) & (kind != 1) & (kind != -1)
    return kind == 1, kind != 0, unknown


@triton.jit(do_not_specialize=["tiles"])
def tally_kernel(
    targets: tl.tensor,
    tallies: tl.tensor,
    total: tl.tensor,
    tiles: tl.tensor,
    FLOATING: tl.constexpr,
    TILE: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Count in a tile the positives, what is no negative, and what is of no kind.

    Args:
        targets: [N].
        tallies: [3, tiles + 1] int64, written but for the last column.
        total: N.
        tiles: how many there are.
        FLOATING: whether targets are.
        TILE: entries in a tile.
        PART: entries at a time.
    """
    tile = tl.program_id(0)
    positive = tl.zeros([PART], tl.int32)
    skipped = tl.zeros([PART], tl.int32)
    odd = tl.zeros([PART], tl.int32)
    for part in tl.static_range(TILE // PART):
        start = tile.to(tl.int64) * TILE + part * PART
        is_pos, is_skipped, unknown = _kinds(targets, start, total, FLOATING, PART)
        positive += is_pos.to(tl.int32)
        skipped += is_skipped.to(tl.int32)
        odd += unknown.to(tl.int32)
    here = tile < tiles
    tl.store(tallies + tile, tl.sum(positive).to(tl.int64), mask=here)
    tl.store(tallies + tiles + 1 + tile, tl.sum(skipped).to(tl.int64), mask=here)
    tl.store(tallies + 2 * (tiles + 1) + tile, tl.sum(odd).to(tl.int64), mask=here)


@triton.jit(do_not_specialize=["tiles"])
def add_up_kernel(tallies: tl.tensor, tiles: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Put in the place of each tally the sum of those before it, and that of all at the end."""
    lane = tl.arange(0, BLOCK)
    for row in tl.static_range(3):
        so_far = tl.cast(0, tl.int64)
        at = tallies + row * (tiles + 1)
        for start in range(0, tiles, BLOCK):
            inside = start + lane < tiles
            tally = tl.load(at + start + lane, mask=inside, other=0)
            tl.store(at + start + lane, so_far + tl.cumsum(tally, 0) - tally, mask=inside)
            so_far += tl.sum(tally, 0)
        tl.store(at + tiles, so_far)


@triton.jit(do_not_specialize=["tiles"])
def place_kernel(
    targets: tl.tensor,
    scores: tl.tensor,
    tallies: tl.tensor,
    skip: tl.tensor,
    pos_index: tl.tensor,
    pos: tl.tensor,
    total: tl.tensor,
    tiles: tl.tensor,
    FLOATING: tl.constexpr,
    TILE: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Write where the positives of a tile are, their scores, and what is no negative.

    Args:
        targets: [N].
        scores: [N].
        tallies: from `add_up_kernel`.
        skip: [S] int64, written.
        pos_index: [P] int64, written.
        pos: [P] float32 or float64, written.
        total: N.
        tiles: how many there are.
        FLOATING: whether targets are.
        TILE: entries in a tile.
        PART: entries at a time.
    """
    tile = tl.program_id(0)
    at_pos = tl.load(tallies + tile)
    at_skip = tl.load(tallies + tiles + 1 + tile)
    if tl.load(tallies + tiles + 2 + tile) > at_skip:
        lane = tl.arange(0, PART)
        for part in range(TILE // PART):
            start = tile.to(tl.int64) * TILE + part * PART
            is_pos, is_skipped, _unknown = _kinds(targets, start, total, FLOATING, PART)
            one_pos, one_skipped = is_pos.to(tl.int64), is_skipped.to(tl.int64)
            before = at_skip + tl.cumsum(one_skipped, 0) - one_skipped
            tl.store(skip + before, start + lane, mask=is_skipped)
            before = at_pos + tl.cumsum(one_pos, 0) - one_pos
            score = tl.load(scores + start + lane, mask=is_pos, other=0)
            tl.store(pos_index + before, start + lane, mask=is_pos)
            tl.store(pos + before, score.to(pos.dtype.element_ty), mask=is_pos)
            at_pos += tl.sum(one_pos, 0)
            at_skip += tl.sum(one_skipped, 0)
