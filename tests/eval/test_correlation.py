"""Correlations against scipy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coco_ap import small

from rankdet.eval import match, read_instances, score_iou_correlation
from rankdet.eval.correlation import mean_ranks, pearson, spearman

PAIRS = st.lists(
    st.tuples(st.integers(-20, 20) | st.floats(-5, 5), st.integers(0, 6) | st.floats(0, 1)),
    min_size=2,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_equals_scipy(pairs: list[tuple[float, float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = (np.array(values, dtype=np.float64) for values in zip(*pairs, strict=True))
    np.testing.assert_array_equal(mean_ranks(first), stats.rankdata(first))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert pearson(first, second) is None
        assert spearman(first, second) is None
        return
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second)[0], abs=1e-12)
    if np.ptp(first) < 1e-3 or np.ptp(second) < 1e-3:
        return  # the answer is rounding
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = stats.pearsonr(first, second)[0]
    assert pearson(first, second) == pytest.approx(expected, abs=1e-10)


def test_undefined_and_extreme() -> None:
    one = np.array([0.5])
    assert pearson(one, one) is None
    assert spearman(np.zeros(0), np.zeros(0)) is None
    assert pearson(np.array([1e300, -1e300, 5e299]), np.array([2.0, -2, 1])) == pytest.approx(1)
    assert pearson(np.array([1e-300, 3e-300]), np.array([2.0, -2])) == pytest.approx(-1)
    close = np.array([1.0, np.nextafter(1.0, 2)])
    value = pearson(close, np.array([0.0, 1.0]))
    assert value is not None
    assert -1 <= value <= 1


def test_only_true_positives_count() -> None:
    truth, results = small()
    crowd = {"image_id": 3, "category_id": 1, "bbox": [60, 60, 30, 30], "iscrowd": 1}
    truth["annotations"].append(crowd)
    results += [
        {"image_id": 3, "category_id": 1, "bbox": [62, 62, 9, 9], "score": 0.99},  # in the crowd
        {"image_id": 7, "category_id": 1, "bbox": [70, 70, 9, 9], "score": 0.97},  # wrong
    ]
    truth["annotations"].append({"image_id": 7, "category_id": 2, "bbox": [0, 0, 10, 10]})
    results.append({"image_id": 7, "category_id": 2, "bbox": [0, 0, 10, 6], "score": 0.1})
    found = score_iou_correlation(match(read_instances(truth, results)))
    # IoU 1 at .9 and .8, .6 at .1.
    assert found.pairs == 3
    scores, ious = np.array([0.9, 0.8, 0.1]), np.array([1, 1, 0.6])
    assert found.pearson == pytest.approx(np.corrcoef(scores, ious)[0, 1], abs=1e-12)
    assert found.spearman == pytest.approx(np.sqrt(3) / 2, abs=1e-12)


def test_matches_at_half_are_needed() -> None:
    matches = match(read_instances(*small()), iou_thresholds=(0.75,))
    with pytest.raises(ValueError, match=r"no matching at an IoU of 0\.5"):
        score_iou_correlation(matches)
