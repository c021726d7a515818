"""Counts restricted to ordered pairs: bit by bit against the matrix, both against a loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankdet.ops.rank import ordered

few = st.integers(-8, 8).map(lambda k: k / 4)


@settings(deadline=None, max_examples=150)
@given(
    pairs=st.lists(st.tuples(few | st.floats(-50, 50), few), min_size=1, max_size=30),
    delta=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_bits_and_matrix_equal_a_loop(pairs: list[tuple[float, float]], delta: float) -> None:
    scores, keys = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    values = torch.rand(2, len(pairs), dtype=torch.float64)
    expected = torch.zeros_like(values)
    for i in range(len(pairs)):
        for k in range(len(pairs)):
            if keys[k] < keys[i]:
                x = float(scores[k] - scores[i])
                h = float(x >= 0) if delta == 0 else min(max(x / (2 * delta) + 0.5, 0.0), 1.0)
                expected[:, i] += h * values[:, k]
    for way in (ordered._by_matrix, ordered._by_bits):
        result = way(scores, keys, values, delta)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("count", [511, 513, 1500])
def test_spread_is_the_adjoint(count: int, delta: float) -> None:
    scores = torch.randn(count)
    keys = torch.rand(count).mul(50).round()  # ties
    left, right = torch.rand(2, 1, count, dtype=torch.float64)
    down = (ordered.ordered_counts(scores, keys, left, delta) * right).sum()
    up = (ordered.ordered_spread(scores, keys, right, delta) * left).sum()
    torch.testing.assert_close(down, up, rtol=1e-12, atol=0)


@pytest.mark.parametrize("delta", [1e-3, 1e-15, 1e-20])
def test_ties_count_one_half_however_narrow_the_ramp(delta: float) -> None:
    scores = torch.randint(-3, 4, (600,)).double()
    keys = torch.rand(600)
    values = torch.rand(1, 600, dtype=torch.float64)
    by_bits = ordered._by_bits(scores, keys, values, delta)
    matrix = ordered._by_matrix(scores, keys, values, delta)
    torch.testing.assert_close(by_bits, matrix, rtol=1e-11, atol=1e-11)


def test_an_outlier_costs_no_precision() -> None:
    scores, keys = torch.randn(500, dtype=torch.float64), torch.rand(500)
    scores[7] = 1e30
    values = torch.rand(1, 500, dtype=torch.float64)
    by_bits = ordered._by_bits(scores, keys, values, 0.5)
    torch.testing.assert_close(
        by_bits, ordered._by_matrix(scores, keys, values, 0.5), rtol=1e-11, atol=1e-11
    )
