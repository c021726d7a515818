"""The Triton kernels on a CPU, in Triton's interpreter: against the definition and plain torch.

Not collected by itself: the interpreter has to be switched on before Triton is imported, so
`test_triton_kernels.py` runs this file in a process of its own. By hand:

    TRITON_INTERPRET=1 python -m pytest tests/ops/rank/triton_in_the_interpreter.py

Both passes over three tiles take it half a second, so cases are few and small.
The interpreter cuts float32 off on the way to bfloat16, where a GPU rounds: 2^-7 instead of 2^-8.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter_marks import MARKS
from ranking_losses import LOSSES, outcome
from torch import Tensor

from rankdet.losses import alrp_loss, error_sharing
from rankdet.losses.alrp import ALRPTerms, LocRanking
from rankdet.ops.rank import passes, rank_operator, vectorised
from rankdet.ops.rank.knots import Knots, Pieces, counts_from_bins, make_knots, pieces
from rankdet.ops.rank.pairs import Pairs
from rankdet.ops.rank.vectorised import Bins

# Triton itself may be there already: torchvision imports the compiler, and that Triton.
KERNELS_CAME_ALONG = "rankdet.ops.rank.triton" in sys.modules

pytestmark = MARKS

TILE = 64
CELLS = 128
# Of the largest entry. What is returned in float64 is computed in it.
SPREAD_TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 5e-7,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}
REGIMES = [
    ("init", 1.0), ("trained", 1.0), ("trained", 0.5), ("trained", 0.0), ("separated", 1.0),
    ("reversed", 0.5), ("equal", 1.0), ("equal", 0.0), ("edges", 1.0), ("edges", 0.0),
    ("wide", 0.5), ("extreme", 1.0), ("near zero", 1.0), ("near zero", 0.0),
]  # fmt: skip


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    from rankdet.ops.rank import triton

    return triton


def scores(regime: str, positives: int, negatives: int, delta: float) -> tuple[Tensor, Tensor]:
    p, n = torch.randn(positives), torch.randn(negatives)
    step = delta / 2 if delta else 0.5
    made: dict[str, tuple[Tensor, Tensor]] = {
        "init": (-4.6 + 0.01 * p, -4.6 + 0.01 * n),
        "trained": (-1 + 2 * p, -6 + 3 * n),
        "separated": (20 + p, -20 + n),
        "reversed": (-20 + p, 20 + n),
        "equal": (torch.full_like(p, 0.25), torch.full_like(n, 0.25)),
        "edges": ((p * 3).round() * step, (n * 3).round() * step),  # scores lie on knots
        "wide": (50 * p, 50 * n),
        "extreme": (p.where(p < 1, 1e30), n.where(n.abs() < 1, 2e30 * n)),
        "near zero": (1e-3 * p - step, n.where(n < 0, 1e-42) * 1e-42),
    }
    return made[regime]


class Result:
    """Both passes of the kernels and of the definition, on the same scores."""

    def __init__(
        self, kernels: ModuleType, pos: Tensor, neg: Tensor, delta: float, skip: Tensor
    ) -> None:
        self.kernels, self.neg, self.skip = kernels, neg, skip
        self.knots: Knots = make_knots(pos, delta)
        self.bins: Bins = kernels.fill_bins(
            self.knots.base, neg, skip, tile=TILE, programs=3, cells=CELLS
        )
        self.counts = counts_from_bins(self.knots, self.bins.number, self.bins.beyond)
        self.weights = torch.rand(pos.numel(), dtype=torch.float64)
        self.function: Pieces = pieces(self.knots, self.weights)
        self.reference = rank_operator(pos, neg, delta, "reference", skip=skip)

    def spread(self, dtype: torch.dtype) -> Tensor:
        result: Tensor = self.kernels.evaluate(
            self.knots.base, self.function, self.neg, self.skip, self.bins.notes, dtype, tile=TILE
        )
        assert result.dtype == dtype
        return result

    def check(self, *dtypes: torch.dtype) -> None:
        """Compare with the definition, and what the bins hold with what plain torch finds."""
        assert bool(self.bins.finite)
        torch.testing.assert_close(self.counts, self.reference.counts(), rtol=1e-9, atol=0)
        plain = vectorised.fill_bins(self.knots.base, self.neg.double(), self.skip)
        assert torch.equal(self.bins.number[1:], plain.number[1:])
        torch.testing.assert_close(
            self.bins.beyond[1:-1], plain.beyond[1:-1], rtol=1e-9, atol=1e-300, msg="distances"
        )
        expected = self.reference.spread(self.weights, dtype=torch.float64)
        largest = float(expected.max()) if expected.numel() else 0.0
        for dtype in dtypes:
            result = self.spread(dtype)
            torch.testing.assert_close(
                result.double(), expected, rtol=0, atol=SPREAD_TOLERANCE[dtype] * largest
            )
            smallest = float(torch.finfo(dtype).tiny)
            assert torch.equal(result == 0, (expected == 0) | (expected < smallest))


def no_skip() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


def test_importing_the_operator_and_the_losses_does_not_import_the_kernels() -> None:
    assert not KERNELS_CAME_ALONG


@pytest.mark.parametrize(("regime", "delta"), REGIMES)
def test_every_regime(kernels: ModuleType, regime: str, delta: float) -> None:
    pos, neg = scores(regime, 20, 2 * TILE + 11, delta)
    result = Result(kernels, pos, neg, delta, no_skip())
    result.check(torch.float64, torch.float32)


@pytest.mark.parametrize(
    ("positives", "negatives"),
    [(0, 0), (0, 5), (3, 0), (1, 1), (9, TILE - 1), (1, TILE), (9, TILE + 1)],
)
def test_every_size(kernels: ModuleType, positives: int, negatives: int) -> None:
    pos, neg = scores("trained", positives, negatives, 1.0)
    Result(kernels, pos, neg, 1.0, no_skip()).check(torch.float32)


@pytest.mark.parametrize(
    ("dtype", "skipped"),
    [
        (torch.float64, "some"),
        (torch.float32, "all"),
        (torch.float32, "first and last"),
        (torch.bfloat16, "over a border"),
        (torch.float16, "some"),
    ],
)
def test_every_dtype_with_entries_left_out(
    kernels: ModuleType, dtype: torch.dtype, skipped: str
) -> None:
    total = 2 * TILE + 5
    pos, neg = (part.to(dtype) for part in scores("trained", 12, total, 1.0))
    skip = {
        "all": torch.arange(total),
        "first and last": torch.tensor([0, total - 1]),
        "over a border": torch.arange(TILE - 7, TILE + 20),
        "some": (torch.rand(total) < 0.2).nonzero().squeeze(1),
    }[skipped]
    neg[skip[0]], neg[skip[-1]] = torch.inf, torch.nan  # left out, whatever it is
    before = neg.clone()
    result = Result(kernels, pos, neg, 1.0, skip)
    assert bool(result.bins.finite)
    torch.testing.assert_close(result.counts, result.reference.counts(), rtol=1e-9, atol=0)
    expected = result.reference.spread(result.weights, dtype=torch.float64)
    for kind in {dtype, torch.float64}:
        spread = result.spread(kind)
        assert (spread[skip] == 0).all()
        torch.testing.assert_close(
            spread.double(), expected, rtol=0, atol=SPREAD_TOLERANCE[kind] * float(expected.max())
        )
    torch.testing.assert_close(neg, before, rtol=0, atol=0, equal_nan=True)  # not changed


@pytest.mark.parametrize("regime", ["init", "trained"])
def test_no_order_of_the_tiles_changes_a_bit(
    kernels: ModuleType, regime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankdet.ops.rank import triton_bins

    tiles = 4
    pos, neg = scores(regime, 15, tiles * TILE, 1.0)
    knots = make_knots(pos, 1.0)
    skip = torch.tensor([3, TILE - 1, TILE, 2 * TILE + 7])

    def fill(scores: Tensor, skip: Tensor, programs: int) -> Bins:
        bins: Bins = kernels.fill_bins(
            knots.base, scores, skip, tile=TILE, programs=programs, cells=CELLS
        )
        return bins

    once = fill(neg, skip, 1)
    for attempt in range(2):
        order = torch.randperm(tiles)
        moved = neg.view(tiles, TILE)[order].reshape(-1)
        places = order.argsort()[skip // TILE] * TILE + skip % TILE
        if attempt == 1:  # sums in many copies, each of which holds few tiles
            monkeypatch.setattr(triton_bins, "_COPY_HOLDS", TILE)
            monkeypatch.setattr(triton_bins, "_CELL_COPIES", 2)
        again = fill(moved, places.sort().values, attempt + 2)
        assert torch.equal(again.number, once.number)
        assert torch.equal(again.beyond, once.beyond)


def test_many_equal_knots_and_one_far_away(kernels: ModuleType) -> None:
    pos = torch.cat([torch.full((700,), 0.125), torch.randn(50) * 0.01, torch.tensor([4e4])])
    neg = torch.cat([torch.randn(100), torch.tensor([0.125, -0.875, 1.125])])
    Result(kernels, pos, neg, 1.0, no_skip()).check(torch.float64)


def test_distances_keep_their_digits_however_many_scores_there_are(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankdet.ops.rank import triton_fill

    monkeypatch.setattr(triton_fill, "digits_for", lambda _: 62 - (2**31).bit_length())
    pos, neg = torch.randn(20).double(), torch.full((2 * TILE,), -50.0).double()
    neg[5] = pos.min() - 1 + 1e-5  # one only just on a ramp, and nothing else
    Result(kernels, pos, neg, 1.0, no_skip()).check(torch.float64)


def test_scores_next_to_zero_keep_all_their_digits(kernels: ModuleType) -> None:
    # One cell is 2^-6 wide; the knot lies in the one below the one below zero.
    pos, neg = torch.tensor([1 - 1.5 * 2**-6]), torch.full((TILE,), -50.0)
    neg[7] = 3e-9
    Result(kernels, pos, neg, 1.0, no_skip()).check(torch.float32)


def test_a_copy_can_be_full_of_one_cell(kernels: ModuleType) -> None:
    from rankdet.ops.rank import triton_bins

    most, largest_part = 1 << 20, (1 << 23) - 1
    sums = torch.zeros(2, 3, dtype=torch.int64)
    sums[:, 1] = most * largest_part - 2**63  # 2^20 scores times 2^43 set the sign
    running, totals = torch.empty(3, 3, dtype=torch.int64), torch.empty(3, 1, dtype=torch.int64)
    triton_bins.sum_cells_kernel[(1,)](sums.view(-1), running, totals, 2, CELLS=3, ROWS=16, BLOCK=4)
    expected = [2 * most, 2 * most, 2 * most * largest_part]
    assert running.T.tolist() == [[0, 0, 0], expected, expected]
    assert totals[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("bad", "regime", "dtype"),
    [
        (torch.nan, "trained", torch.float32),
        (torch.nan, "separated", torch.float64),
        (torch.inf, "init", torch.float32),
        (-torch.inf, "separated", torch.float32),
        (-torch.inf, "trained", torch.bfloat16),
    ],
)
def test_a_score_that_is_not_finite_is_seen(
    kernels: ModuleType, bad: float, regime: str, dtype: torch.dtype
) -> None:
    pos, neg = (part.to(dtype) for part in scores(regime, 5, 2 * TILE, 1.0))
    neg[TILE + 3] = bad
    result = Result(kernels, pos, neg, 1.0, no_skip())
    assert not bool(result.bins.finite)
    spread = result.spread(torch.float32)
    assert spread.isnan().nonzero().tolist() == [[TILE + 3]]
    expected = result.reference.spread(result.weights, dtype=torch.float64)
    torch.testing.assert_close(spread.double(), expected, rtol=0, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("who", "bad"),
    [("pos", torch.nan), ("pos", -torch.inf), ("neg", torch.inf), ("weight", torch.nan)],
)
def test_the_operator_by_name(who: str, bad: float) -> None:
    pos, neg = scores("trained", 5, TILE, 1.0)
    weights = torch.rand(5)
    {"pos": pos, "neg": neg, "weight": weights}[who][3] = bad
    operator = rank_operator(pos, neg, 1.0, "triton")
    spread = operator.spread(weights)
    if who == "neg":
        assert operator.counts().isnan().all()
        assert spread.isnan().nonzero().tolist() == [[3]]
    else:
        assert operator.counts().isnan().all() == (who == "pos")
        assert spread.isnan().all()


def by(backend: passes.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the losses take one backend."""
    for name in ("fill_bins", "evaluate", "find_by_triton", "rank_by_triton"):
        function = functools.partial(getattr(passes, name), backend=backend)
        monkeypatch.setattr(error_sharing, name, function)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("positives", [0, 1, 20])
def test_a_loss_by_the_kernels(loss: str, positives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2 * TILE) * 2 - 2
    targets = -(torch.rand(2 * TILE) < 0.1).to(torch.int8)
    targets[torch.randperm(2 * TILE)[:positives]] = 1
    each = torch.rand(int((targets == 1).sum()))
    backends: tuple[passes.Backend, ...] = ("vectorised", "triton")
    results = []
    for backend in backends:
        by(backend, monkeypatch)
        results.append(outcome(loss, logits, targets, each))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loc_ranking", ["smooth", "hard"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_alrp_by_the_kernels(
    loc_ranking: LocRanking, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the loss in float64 by plain torch, term by term."""
    for positives, delta in [(1, 1.0), (20, 0.7), (20, 0.0), (70, 1.0)]:
        logits = (torch.randn(6 * TILE + 3) * 2 - 2).to(dtype)[::2]  # not contiguous
        targets = -(torch.rand(len(logits)) < 0.1).long()
        targets[torch.randperm(len(logits))[:positives]] = 1
        each = torch.rand(int((targets == 1).sum())).to(dtype)

        def loss(
            logits: Tensor,
            each: Tensor,
            targets: Tensor = targets,
            delta: float = delta,
        ) -> ALRPTerms:
            return alrp_loss(logits, targets, each, delta=delta, loc_ranking=loc_ranking)

        by("vectorised", monkeypatch)
        wide, wide_each = logits.double().requires_grad_(), each.double().requires_grad_()
        plain = loss(wide, wide_each)
        expected = [
            torch.autograd.grad(plain.classification, wide)[0],
            torch.autograd.grad(plain.localisation, wide_each)[0],
        ]
        by("triton", monkeypatch)
        logits, each = logits.requires_grad_(), each.requires_grad_()
        terms = loss(logits, each)
        assert "ByKernels" in type(terms.classification.grad_fn).__name__
        assert terms[0].dtype == terms[1].dtype == torch.promote_types(dtype, torch.float32)
        for term, theirs in zip(terms, plain, strict=True):
            torch.testing.assert_close(term.double(), theirs, rtol=1e-6, atol=1e-9)
        # Each term on its own, and times a factor; what the other one is not given stays away.
        for term, input_, wanted in zip(terms, (logits, each), expected, strict=True):
            (grad,) = torch.autograd.grad(3 * term, input_, retain_graph=True)
            atol = SPREAD_TOLERANCE[dtype] * 3 * float(wanted.abs().max())
            assert grad.dtype == dtype
            torch.testing.assert_close(grad.double(), 3 * wanted, rtol=0, atol=atol)
        for term, input_ in zip(terms, (each, logits), strict=True):
            (nothing,) = torch.autograd.grad(term, input_, retain_graph=True, allow_unused=True)
            assert nothing is None


def test_alrp_by_the_kernels_has_no_second_derivative_but_that_of_localisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by("triton", monkeypatch)
    logits, each = torch.randn(TILE, requires_grad=True), torch.rand(3, requires_grad=True)
    targets = torch.zeros(TILE).index_fill(0, torch.tensor([2, 9, 40]), 1)
    terms = alrp_loss(logits, targets, each)
    (grad,) = torch.autograd.grad(terms.classification**2, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.sum(), logits)
    (grad,) = torch.autograd.grad(terms.localisation**2, each, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), each)
    weights = torch.autograd.grad(alrp_loss(logits, targets, each).localisation, each)[0]
    torch.testing.assert_close(second, 2 * weights * weights.sum())


def test_alrp_by_the_kernels_differentiates_only_what_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by("triton", monkeypatch)
    logits, each, targets = torch.randn(TILE), torch.rand(1), torch.zeros(TILE)
    targets[5] = 1
    assert not any(term.requires_grad for term in alrp_loss(logits, targets, each))
    terms = alrp_loss(logits.clone().requires_grad_(), targets, each)
    assert [term.requires_grad for term in terms] == [True, False]
    terms = alrp_loss(logits, targets, each.clone().requires_grad_())
    assert [term.requires_grad for term in terms] == [False, True]


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int8, torch.uint8, torch.int64, torch.float32, torch.bfloat16]
)
@pytest.mark.parametrize("total", [0, 1, TILE - 1, 3 * TILE, 3 * TILE + 1])
def test_what_is_no_negative_is_found(dtype: torch.dtype, total: int) -> None:
    from rankdet.ops.rank.triton_find import find

    targets = (torch.rand(total) < 0.2).long()
    if dtype not in (torch.bool, torch.uint8):
        targets[torch.rand(total) < 0.1] = -1
    logits = torch.randn(total, dtype=torch.float16)
    found = find(targets.to(dtype), logits, tile=TILE)
    assert found is not None
    assert torch.equal(found.skip, targets.nonzero()[:, 0])
    assert torch.equal(found.pos_index, (targets == 1).nonzero()[:, 0])
    assert torch.equal(found.pos, logits.float()[targets == 1])


@pytest.mark.parametrize("bad", [2, -2, 0.5, torch.nan])
def test_a_target_of_no_kind_is_named(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankdet.ops.rank.triton_find import find

    targets = torch.zeros(3 * TILE, dtype=torch.float64)
    targets[2 * TILE + 3] = bad
    assert find(targets, torch.randn(3 * TILE), tile=TILE) is None
    by("triton", monkeypatch)
    with pytest.raises(ValueError, match="targets"):
        alrp_loss(torch.randn(3 * TILE), targets, torch.rand(0))


class Ranked:
    """A ranking by kernels from end to end, beside plain torch."""

    def __init__(self, pos: Tensor, neg: Tensor, delta: float, skip: Tensor) -> None:
        from rankdet.ops.rank.triton_ranked import RankedPositives

        self.pos, self.neg, self.delta, self.skip = pos, neg, delta, skip
        self.ranked = RankedPositives(pos, neg, skip, delta, tile=TILE, programs=3, cells=CELLS)
        self.knots = make_knots(pos, delta)

    def check(self, kernels: ModuleType) -> None:
        """Compare all that it has."""
        ranked, knots = self.ranked, self.knots
        assert bool(ranked.finite)
        assert torch.equal(ranked.base, knots.base)
        reference = rank_operator(self.pos, self.neg, self.delta, "reference", skip=self.skip)
        torch.testing.assert_close(ranked.counts, reference.counts(), rtol=1e-9, atol=0)

        values, pairs = torch.rand(2, len(self.pos)), Pairs(self.pos, knots, self.delta)
        expected = pairs.counts(values.double())
        torch.testing.assert_close(ranked.pair_counts(values), expected, rtol=1e-12, atol=1e-12)
        expected = pairs.spread(values[1].double())
        torch.testing.assert_close(ranked.pair_spread(values[1]), expected, rtol=1e-12, atol=1e-12)
        keys = torch.rand(len(self.pos)).mul(9).round()  # some are equal
        expected = pairs.counts(values.double(), keys)
        found = ranked.pair_counts(values, keys)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        expected = pairs.spread(values[1].double(), keys)
        found = ranked.pair_spread(values[1], keys)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

        weights = values.double()
        function, plain = ranked.pieces(weights), pieces(knots, weights)
        wide = torch.nn.functional.pad(knots.gap != 0, (1, 0))  # in others no score ever lies
        for mine, theirs in zip(function, plain, strict=True):
            torch.testing.assert_close(mine[:, wide], theirs[:, wide], rtol=1e-9, atol=1e-12)
        for each, weight in zip(range(2), weights, strict=True):
            one = Pieces(function.value[each], function.slope[each])
            args = (ranked.base, one, self.neg, self.skip, ranked.notes, torch.float64)
            expected = reference.spread(weight, dtype=torch.float64)
            torch.testing.assert_close(
                kernels.evaluate(*args, tile=TILE),
                expected,
                rtol=0,
                atol=1e-12 * float(expected.max()) if expected.numel() else 0,
            )


@pytest.mark.parametrize(("regime", "delta"), REGIMES)
def test_a_ranking_from_end_to_end(kernels: ModuleType, regime: str, delta: float) -> None:
    pos, neg = scores(regime, 33, 2 * TILE + 11, delta)
    Ranked(pos, torch.cat([neg, pos]), delta, torch.tensor([3, TILE, TILE + 1])).check(kernels)


@pytest.mark.parametrize(
    ("positives", "negatives", "skipped"),
    [(1, 1, 0), (1, 0, 0), (2, TILE, TILE), (300, TILE + 1, 1), (700, 3, 2)],
)
def test_a_ranking_of_any_size(
    kernels: ModuleType, positives: int, negatives: int, skipped: int
) -> None:
    pos, neg = scores("trained", positives, negatives, 1.0)
    Ranked(pos, neg, 1.0, torch.arange(skipped)).check(kernels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("delta", [0.7, 0.0])
def test_a_ranking_of_any_dtype(kernels: ModuleType, dtype: torch.dtype, delta: float) -> None:
    pos, neg = (part.to(dtype) for part in scores("trained", 20, 2 * TILE, 1.0))
    pos = pos.to(torch.promote_types(dtype, torch.float32))
    Ranked(pos, neg, delta, no_skip()).check(kernels)


@pytest.mark.parametrize(
    ("who", "bad"), [("pos", torch.nan), ("pos", -torch.inf), ("neg", torch.inf)]
)
def test_a_ranking_with_a_number_that_is_none(who: str, bad: float) -> None:
    pos, neg = scores("trained", 5, TILE, 1.0)
    {"pos": pos, "neg": neg}[who][3] = bad
    ranked = Ranked(pos, neg, 1.0, no_skip()).ranked
    assert not bool(ranked.finite)
    assert ranked.counts.isnan().all()
    assert ranked.pieces(torch.full((1, 5), torch.nan, dtype=torch.float64)).value.isnan().all()


def test_scores_that_are_not_contiguous(kernels: ModuleType) -> None:
    pos, neg = scores("trained", 5, 2 * TILE, 1.0)
    Result(kernels, pos, neg[::2], 1.0, no_skip()).check(torch.float32)


# Few different numbers, so that ties and knots are common, and some far away.
number = st.one_of(
    st.integers(-12, 12).map(lambda k: k / 4),
    st.floats(-60, 60, width=32),
    st.sampled_from([1e30, -1e30, 1e6, -1e6, 2e30, -1e-45, 1e-45, 0.0]),
)


@settings(deadline=None, max_examples=15)
@given(
    pos=st.lists(number, min_size=1, max_size=9),
    neg=st.lists(number, min_size=1, max_size=24),
    delta=st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_scores(
    kernels: ModuleType, pos: list[float], neg: list[float], delta: float, dtype: torch.dtype
) -> None:
    p, n = torch.tensor(pos, dtype=dtype), torch.tensor(neg, dtype=dtype)
    knots = make_knots(p, delta)
    bins = kernels.fill_bins(knots.base, n, no_skip(), tile=32, cells=64)
    plain = vectorised.fill_bins(knots.base, n, no_skip())
    assert torch.equal(bins.number[1:], plain.number[1:])
    counts = counts_from_bins(knots, bins.number, bins.beyond)
    expected = counts_from_bins(knots, plain.number, plain.beyond)
    torch.testing.assert_close(counts, expected, rtol=1e-9, atol=1e-12)
    function = pieces(knots, torch.rand(len(pos), dtype=torch.float64))
    spread = kernels.evaluate(
        knots.base, function, n, no_skip(), bins.notes, torch.float64, tile=32
    )
    expected = vectorised.evaluate(knots.base, function, n, no_skip(), plain.notes, torch.float64)
    torch.testing.assert_close(spread, expected, rtol=1e-9, atol=1e-12)
    Ranked(p, n, delta, no_skip()).check(kernels)
