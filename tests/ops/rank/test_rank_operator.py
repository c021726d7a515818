"""The operator against its definition: values, adjoint, dtypes, edges, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankdet.ops.rank import rank_operator, vectorised

pytestmark = pytest.mark.usefixtures("poisoned_memory")

FAST: list[str] = ["vectorised"]
# Scores are exact inputs whatever their dtype, so only what is returned in float32 is rounded.
COUNTS_RTOL = 1e-12
SPREAD_RTOL = {torch.float64: 1e-12, torch.float32: 5e-7}

SHAPES = [
    (0, 0), (0, 5), (3, 0), (1, 1), (1, 1000), (2, 63), (7, 4095), (63, 4096), (60, 4099),
    (400, 9001), (1000, 100), (41, 300_001),
]  # fmt: skip
REGIMES = ["init", "trained", "separated", "reversed", "equal", "edges", "wide"]


def scores(regime: str, positives: int, negatives: int, delta: float) -> tuple[Tensor, Tensor]:
    """Return scores as they occur at some moment of a training, or as they break things."""
    noise_p, noise_n = torch.randn(positives), torch.randn(negatives)
    if regime == "init":
        return -4.6 + 0.01 * noise_p, -4.6 + 0.01 * noise_n
    if regime == "trained":
        return -1 + 2 * noise_p, -6 + 1.5 * noise_n
    if regime == "separated":
        return 20 + noise_p, -20 + noise_n
    if regime == "reversed":
        return -20 + noise_p, 20 + noise_n
    if regime == "equal":
        return torch.full_like(noise_p, 0.25), torch.full_like(noise_n, 0.25)
    if regime == "edges":  # every difference is a multiple of half the ramp
        step = delta / 2 if delta else 0.5
        return (noise_p * 3).round() * step, (noise_n * 3).round() * step
    return 50 * noise_p, 50 * noise_n


def assert_matches(result: Tensor, expected: Tensor, rtol: float, name: str) -> None:
    """Compare, relative to the largest entry; zeros must be zeros."""
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(
        result.double(), expected, rtol=0, atol=rtol * scale, msg=lambda m: f"{name}: {m}"
    )
    assert torch.equal(result == 0, expected == 0), f"{name}: not the same zeros"


@pytest.mark.parametrize("delta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("positives", "negatives"), SHAPES)
@pytest.mark.parametrize("backend", FAST)
def test_equals_the_reference(
    backend: str, positives: int, negatives: int, regime: str, delta: float
) -> None:
    pos, neg = scores(regime, positives, negatives, delta)
    # The matrix of the largest shape would not fit: it is checked in two halves.
    pieces = [slice(0, 100_000), slice(100_000, None)] if negatives > 100_000 else [slice(None)]
    per_pos = torch.rand(positives, dtype=torch.float64)
    operator = rank_operator(pos, neg, delta, backend)
    references = [rank_operator(pos, neg[piece], delta, "reference") for piece in pieces]
    expected = sum((r.counts() for r in references), torch.zeros(positives, dtype=torch.float64))
    assert_matches(operator.counts(), expected, COUNTS_RTOL, "counts")
    torch.testing.assert_close(operator.counts(), expected, rtol=1e-9, atol=0)  # each by itself
    expected = torch.cat([r.spread(per_pos, dtype=torch.float64) for r in references])
    for dtype, rtol in SPREAD_RTOL.items():
        result = operator.spread(per_pos, dtype=dtype)
        assert result.dtype == dtype
        # A share below float32's smallest number becomes a zero of its own.
        assert_matches(result, expected.where(expected > 1e-37, 0.0), rtol, f"spread {dtype}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("search_only", [False, True])
@pytest.mark.parametrize("backend", FAST)
def test_every_dtype_with_entries_left_out(
    backend: str, search_only: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if search_only:  # the way of a GPU, which needs no grid
        monkeypatch.setattr(vectorised, "_GRID_FROM", 10**9)
    monkeypatch.setattr(vectorised, "_CHUNK_CPU", 4096)
    pos, neg = (part.to(dtype) for part in scores("trained", 50, 10_007, 1.0))
    skip = (torch.rand(10_007) < 0.1).nonzero().squeeze(1)
    neg[skip[0]], neg[skip[1]] = torch.nan, torch.inf  # left out, whatever it is
    before = pos.clone(), neg.clone()
    weights = torch.rand(50)
    operator = rank_operator(pos, neg, 1.0, backend, skip=skip)
    reference = rank_operator(pos, neg, 1.0, "reference", skip=skip)
    assert_matches(operator.counts(), reference.counts(), COUNTS_RTOL, "counts")
    assert_matches(
        operator.spread(weights), reference.spread(weights, dtype=torch.float64), 5e-7, "spread"
    )
    assert (operator.spread(weights)[skip] == 0).all()
    assert operator.spread(weights, dtype=dtype).dtype == dtype
    for score, kept in zip((pos, neg), before, strict=True):
        torch.testing.assert_close(score, kept, rtol=0, atol=0, equal_nan=True)  # not changed


def slow_counts(pos: list[float], neg: list[float], delta: float) -> list[float]:
    """Return the counts by the definition, with Python's own numbers."""

    def step(x: float) -> float:
        if delta == 0:
            return 1.0 if x >= 0 else 0.0
        return 0.0 if x < -delta else 1.0 if x > delta else x / (2 * delta) + 0.5

    return [math.fsum(step(s - p) for s in neg) for p in pos]


# Few different numbers, so that ties and edges of the ramp are common, and some far away.
number = st.one_of(
    st.integers(-12, 12).map(lambda k: k / 4),
    st.floats(-60, 60, width=32),
    st.sampled_from([1e30, -1e30, 1e6, -1e6, 2e30]),
)


@settings(deadline=None, max_examples=300)
@given(
    pos=st.lists(number, max_size=12),
    neg=st.lists(number, max_size=40),
    delta=st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]),
    backend=st.sampled_from(["reference", "vectorised"]),
    grid=st.booleans(),
)
def test_any_scores(
    pos: list[float], neg: list[float], delta: float, backend: str, grid: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectorised, "_GRID_FROM", 1 if grid else 10**9)
        patch.setattr(vectorised, "_CHUNK_CPU", 7)
        p, n = torch.tensor(pos), torch.tensor(neg)
        operator = rank_operator(p, n, delta, backend)
        counts = operator.counts()
        expected = torch.tensor(slow_counts(p.tolist(), n.tolist(), delta), dtype=torch.float64)
        # At a million a float64 knot is exact to 1e-10.
        torch.testing.assert_close(counts, expected, rtol=1e-9, atol=1e-9)
        weights = torch.rand(len(pos), dtype=torch.float64)
        values = torch.rand(len(neg), dtype=torch.float64)
        left = operator.counts(values) @ weights
        right = operator.spread(weights, dtype=torch.float64) @ values
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("delta", [1.0, 0.0])
@pytest.mark.parametrize("backend", ["reference", "vectorised"])
def test_counts_and_spread_are_adjoint(backend: str, delta: float) -> None:
    pos, neg = (part.double() for part in scores("trained", 300, 20_000, delta))
    operator = rank_operator(pos, neg, delta, backend)
    per_pos = torch.rand(300, dtype=torch.float64)
    per_neg = torch.rand(20_000, dtype=torch.float64)
    left = operator.counts(per_neg) @ per_pos
    right = operator.spread(per_pos) @ per_neg
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)
    ones = torch.ones_like(per_neg)
    torch.testing.assert_close(operator.counts(), operator.counts(ones), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", ["reference", "vectorised"])
def test_nothing_changes_under_shift_common_scale_and_order(backend: str) -> None:
    pos, neg = (part.double() for part in scores("trained", 97, 6000, 1.0))
    weights = torch.rand(97, dtype=torch.float64)
    operator = rank_operator(pos, neg, 1.0, backend)
    counts, spread = operator.counts(), operator.spread(weights)
    shifted = rank_operator(pos + 1024, neg + 1024, 1.0, backend)
    torch.testing.assert_close(shifted.counts(), counts, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(shifted.spread(weights), spread, rtol=1e-10, atol=1e-10)
    scaled = rank_operator(8 * pos, 8 * neg, 8.0, backend)
    torch.testing.assert_close(scaled.counts(), counts, rtol=1e-13, atol=0)
    torch.testing.assert_close(scaled.spread(weights), spread, rtol=1e-13, atol=1e-15)
    order_p, order_n = torch.randperm(97), torch.randperm(6000)
    moved = rank_operator(pos[order_p], neg[order_n], 1.0, backend)
    torch.testing.assert_close(moved.counts(), counts[order_p], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        moved.spread(weights[order_p]), spread[order_n], rtol=1e-12, atol=1e-15
    )


def test_a_narrow_ramp_tends_to_the_hard_step() -> None:
    pos, neg = scores("trained", 50, 5000, 1.0)
    hard = rank_operator(pos, neg, 0.0, "vectorised").counts()
    soft = rank_operator(pos, neg, 1e-9, "vectorised").counts()  # no two scores are that close
    torch.testing.assert_close(soft, hard, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("who", ["pos", "neg", "weight"])
@pytest.mark.parametrize("size", [10, 20_000])
@pytest.mark.parametrize("backend", ["reference", "vectorised"])
def test_what_is_not_finite_never_passes_unseen(
    backend: str, size: int, who: str, bad: float
) -> None:
    pos, neg = scores("trained", 5, size, 1.0)
    weights = torch.rand(5)
    {"pos": pos, "neg": neg, "weight": weights}[who][3] = bad
    operator = rank_operator(pos, neg, 1.0, backend)
    spread = operator.spread(weights)
    if who == "neg":
        assert operator.counts().isnan().all()
        assert spread.isnan().nonzero().tolist() == [[3]]
    else:
        assert operator.counts().isnan().all() == (who == "pos")
        assert spread.isnan().all()


@pytest.mark.parametrize("backend", ["reference", "vectorised"])
@pytest.mark.parametrize("size", [10, 20_000])
def test_a_bad_negative_shows_without_positives_too(backend: str, size: int) -> None:
    neg = torch.zeros(size)
    neg[3], neg[5] = torch.nan, torch.inf
    operator = rank_operator(neg[:0], neg, 1.0, backend, skip=torch.tensor([5]))
    assert operator.spread(neg[:0]).isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("backend", ["reference", "vectorised"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_shares_are_of_the_dtype_of_the_scores(backend: str, dtype: torch.dtype) -> None:
    pos, neg = torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=dtype)
    spread = rank_operator(pos, neg, 1.0, backend).spread(pos)
    assert spread.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("backend", ["reference", "vectorised"])
def test_an_outlier_costs_no_precision(backend: str) -> None:
    pos, neg = (part.double() for part in scores("trained", 40, 5000, 1.0))
    far_pos, far_neg = torch.cat([pos, neg.new_tensor([1e30])]), neg.clone()
    far_neg[0] = 2e30
    counts = rank_operator(far_pos, far_neg, 1.0, backend).counts()
    expected = rank_operator(pos, far_neg, 1.0, "reference").counts()
    torch.testing.assert_close(counts[:-1], expected, rtol=1e-12, atol=0)
    assert counts[-1] == 1


def test_so_many_positives_that_bins_need_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    pos, neg = scores("trained", 17_000, 20_000, 1.0)
    weights = torch.rand(17_000)
    by_grid = rank_operator(pos, neg, 1.0, "vectorised")
    monkeypatch.setattr(vectorised, "_GRID_FROM", 10**9)
    by_search = rank_operator(pos, neg, 1.0, "vectorised")
    assert_matches(by_grid.counts(), by_search.counts(), COUNTS_RTOL, "counts")
    assert_matches(by_grid.spread(weights), by_search.spread(weights).double(), 5e-7, "spread")


def test_thirty_million_scores_in_one_band() -> None:
    total = 30_000_000
    neg = torch.randint(-(2**20), 2**20, (total,), dtype=torch.int32)
    exact = int(neg.sum())  # each score is neg / 2^20, each difference exact
    operator = rank_operator(torch.zeros(3), neg / 2**20, 1.0)
    expected = exact / 2**21 + total / 2
    assert operator.counts().tolist() == pytest.approx([expected] * 3, rel=1e-12)
    spread = operator.spread(torch.full((3,), 1 / 3))
    assert float(spread.sum(dtype=torch.float64)) == pytest.approx(expected, rel=1e-6)
    assert float(spread.min()) >= 0
    assert float(spread.max()) <= 1


def test_bad_arguments_are_named() -> None:
    pos, neg = torch.zeros(2), torch.zeros(3)
    with pytest.raises(TypeError, match=r"pos must be a torch\.Tensor, got list"):
        rank_operator([1.0], neg, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"neg must be floating point, got torch\.int64"):
        rank_operator(pos, torch.zeros(3, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match=r"pos must have shape \[P\], got \[2, 1\]"):
        rank_operator(pos[:, None], neg, 1.0)
    for delta in (-1.0, math.nan):
        with pytest.raises(ValueError, match="delta must be zero or more"):
            rank_operator(pos, neg, delta)
    with pytest.raises(ValueError, match="delta must be finite, got inf"):
        rank_operator(pos, neg, math.inf)
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'reference', 'vector"):
        rank_operator(pos, neg, 1.0, "cuda")
    with pytest.raises(ValueError, match=r"per_pos must have shape \[2\], got \[3\]"):
        rank_operator(pos, neg, 1.0).spread(torch.zeros(3))
    with pytest.raises(ValueError, match=r"per_neg must have shape \[3\], got \[2\]"):
        rank_operator(pos, neg, 1.0).counts(torch.zeros(2))
