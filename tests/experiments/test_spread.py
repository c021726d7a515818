"""Mean, spread and what exceeds it, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from rankdet.experiments.spread import (
    Verdict,
    difference,
    student_cdf,
    student_quantile,
    summarise,
)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29, 100])
@pytest.mark.parametrize("probability", [0.501, 0.9, 0.975, 0.9995])
def test_the_quantile_is_students(freedom: int, probability: float) -> None:
    expected = stats.t.ppf(probability, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


@given(value=st.floats(0, 50), freedom=st.integers(1, 60))
def test_the_distribution_is_students(value: float, freedom: int) -> None:
    # SciPy itself is off near zero: by 1.4e-11 at 1e-6 with freedom 1, where the exact value is
    # 1/2 + atan(t) / pi.
    assert student_cdf(value, freedom) == pytest.approx(stats.t.cdf(value, freedom), abs=1e-10)
    assert student_cdf(value, 1) == pytest.approx(0.5 + math.atan(value) / math.pi, abs=1e-14)


@pytest.mark.parametrize(("probability", "freedom"), [(0.5, 3), (1.0, 3), (0.975, 0)])
def test_what_has_no_quantile(probability: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="probability must be"):
        student_quantile(probability, freedom)


@given(
    pairs=st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=8, unique=True
    )
)
def test_the_interval_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    first, second = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    found = difference(first, second)
    each = np.array([one - other for one, other in pairs])
    half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
    assert found.n == len(pairs)
    assert found.low is not None
    assert found.high is not None
    assert found.low == pytest.approx(each.mean() - half, rel=1e-8, abs=1e-8)
    assert found.high == pytest.approx(each.mean() + half, rel=1e-8, abs=1e-8)


def test_numbers_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, s = 1, t = 4.303 with two degrees of freedom.
    found = difference({0: 11.0, 1: 12.0, 2: 13.0}, {0: 10.0, 1: 10.0, 2: 10.0, 7: 99.0})
    assert (found.n, found.mean) == (3, 2.0)
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6)
    assert found.verdict is Verdict.WITHIN
    assert difference({0: 2.0, 1: 2.1}, {0: 1.0, 1: 1.1}).verdict is Verdict.EXCEEDS


def test_pairs_take_out_what_a_seed_does_to_both() -> None:
    """The seeds differ by far more than the rows do, but in both rows alike."""
    found = difference({0: 11.0, 1: 31.1, 2: 51.0}, {0: 10.0, 1: 30.0, 2: 50.0})
    assert found.verdict is Verdict.EXCEEDS


def test_few_seeds() -> None:
    assert difference({0: 2.0}, {0: 1.0, 1: 1.0}).verdict is Verdict.ONE_SEED
    assert difference({0: 2.0}, {1: 1.0}).verdict is Verdict.NOTHING
    assert difference({0: 2.0, 1: 2.0}, {0: 2.0, 1: 2.0}).verdict is Verdict.WITHIN
    assert summarise([]) is None
    one, two = summarise([4.0]), summarise([4.0, 6.0])
    assert one is not None
    assert two is not None
    assert (one.n, one.mean, one.spread) == (1, 4.0, None)
    assert two.spread == pytest.approx(2**0.5)
