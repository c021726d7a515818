"""LRP against the authors' program, against a slow transcription, and by what must hold."""

from __future__ import annotations

import contextlib
import io
import random
from typing import Any

import numpy as np
import pytest
from conftest import GoldenReader
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_coco_ap import LRP_CASES, Case, cases, pycocotools_evaluation, read_case, small

from rankdet.eval import Matches, lrp_at, lrp_curve, match, optimal_lrp, read_instances

# Best LRP, localisation, false positive, false negative, threshold.
Values = tuple[float, float, float, float, float]


@pytest.mark.parametrize("name", LRP_CASES)
def test_golden(golden: GoldenReader, name: str) -> None:
    expected = golden(f"lrp/{name}.npz")
    ranges = [(float(low), float(high)) for low, high in expected["area_ranges"]]
    instances = read_instances(*read_case("lrp", name))
    found = optimal_lrp(
        match(instances, area_ranges=ranges), max_detections=expected["max_dets"].tolist()
    )
    np.testing.assert_array_equal(instances.category_ids, expected["category_ids"])
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-9, "equal_nan": True}
    np.testing.assert_allclose(found.olrp, expected["olrp"], **close)
    np.testing.assert_allclose(found.localisation, expected["olrp_loc"], **close)
    np.testing.assert_allclose(found.false_positive, expected["olrp_fp"], **close)
    np.testing.assert_allclose(found.false_negative, expected["olrp_fn"], **close)
    np.testing.assert_allclose(found.threshold, expected["lrp_opt_thr"], **close)
    means = np.array([found.means(area=area) for area in range(4)])  # [size, part]
    np.testing.assert_allclose(means.T, expected["size_summary"], **close)
    summary = [*means[0], *means[1:, 0]]
    np.testing.assert_allclose(summary, expected["olrp_summary"], **close)


def transcription(case: Case, tau: float, area: int, limit: int) -> list[Values]:
    """Compute oLRP of each class with pycocotools' matching, one threshold after the other."""
    oracle = pycocotools_evaluation(case)
    oracle.params.iouThrs = np.array([tau])
    with contextlib.redirect_stdout(io.StringIO()):
        oracle.evaluate()
    truths = {each["id"]: each for each in case[0]["annotations"]}
    images = len(oracle.params.imgIds)
    values: list[Values] = []
    for k in range(len(oracle.params.catIds)):
        first = (k * 4 + area) * images
        cells = [each for each in oracle.evalImgs[first : first + images] if each is not None]
        objects = sum(int((np.asarray(cell["gtIgnore"]) == 0).sum()) for cell in cells)
        listed = []
        for cell in cells:
            for place in range(min(limit, len(cell["dtIds"]))):
                truth = int(cell["dtMatches"][0, place])
                box = case[1][cell["dtIds"][place] - 1]["bbox"]
                error = 1 - plain_iou(box, truths[truth]["bbox"]) if truth else 0.0
                ignored = bool(cell["dtIgnore"][0, place])
                listed.append((cell["dtScores"][place], truth > 0, error, ignored))
        listed.sort(key=lambda each: -each[0])
        if objects == 0:
            values.append((-1, -1, -1, -1, -1))
            continue
        best: Values = (1, np.nan, np.nan, 1, np.nan)
        lowest = 2.0
        any_right = any(right and not ignored for _, right, _, ignored in listed)
        for last in range(1, len(listed) + 1 if any_right else 0):
            kept = [each for each in listed[:last] if not each[3]]
            errors = [error for _, right, error, _ in kept if right]
            tp, fp = len(errors), len(kept) - len(errors)
            fn = objects - tp
            lrp = (sum(errors) / (1 - tau) + fp + fn) / (tp + fp + fn)
            if lrp < lowest - 1e-12:
                lowest = lrp
                loc = sum(errors) / tp if tp else np.nan
                wrong = fp / (tp + fp) if tp + fp else np.nan
                best = (lrp, loc, wrong, fn / objects, listed[last - 1][0])
        values.append(best)
    return values


def plain_iou(first: list[float], second: list[float]) -> float:
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


@settings(max_examples=100, deadline=None)
@given(
    cases(), st.sampled_from((0.25, 0.5, 0.7)), st.integers(0, 3), st.sampled_from((1, 2, 10, 100))
)
def test_equals_a_slow_transcription(case: Case, tau: float, area: int, limit: int) -> None:
    found = optimal_lrp(
        match(read_instances(*case), iou_thresholds=(0.9, tau)), tau=tau, max_detections=(limit,)
    )
    parts = (found.olrp, found.localisation, found.false_positive, found.false_negative)
    mine = np.stack([part[:, area, 0] for part in (*parts, found.threshold)], axis=1)
    expected = np.array(transcription(case, tau, area, limit))
    np.testing.assert_allclose(mine[:, 0], expected[:, 0], rtol=0, atol=1e-9)
    # Of equal minima rounding may pick another: there only their value can be compared.
    single = np.array(
        [_one_minimum(case, tau, area, limit, k) for k in range(len(expected))], dtype=bool
    )
    np.testing.assert_allclose(mine[single], expected[single], rtol=0, atol=1e-9, equal_nan=True)


def _one_minimum(case: Case, tau: float, area: int, limit: int, k: int) -> bool:
    matches = match(read_instances(*case), iou_thresholds=(tau,))
    curve = lrp_curve(matches, k, tau=tau, area=area, max_detections=limit).lrp
    return int((curve < curve.min(initial=1) + 1e-12).sum()) < 2


def definition(case: Case, klass: int, threshold: float, tau: float) -> float:
    """Compute LRP as it is defined, matching included: plain lists, no crowd, one class.

    The detections of score at or above the threshold choose, best first, the free object of
    largest overlap; LRP = (sum of (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN).
    """
    errors, wrong, missed = [], 0, 0
    for image in (each["id"] for each in case[0]["images"]):
        free = [a["bbox"] for a in case[0]["annotations"]
                if (a["image_id"], a["category_id"]) == (image, klass)]  # fmt: skip
        kept = [d for d in case[1] if (d["image_id"], d["category_id"]) == (image, klass)
                and d["score"] >= threshold]  # fmt: skip
        for detection in sorted(kept, key=lambda d: -d["score"]):
            overlaps = [plain_iou(detection["bbox"], box) for box in free]
            if overlaps and max(overlaps) >= tau:
                # Of equal ones the last listed, as COCO does.
                best = len(overlaps) - 1 - overlaps[::-1].index(max(overlaps))
                errors.append(1 - overlaps[best])
                del free[best]
            else:
                wrong += 1
        missed += len(free)
    total = len(errors) + wrong + missed
    return (sum(errors) / (1 - tau) + wrong + missed) / total


@settings(max_examples=40, deadline=None)
@given(cases(crowd=False, distinct=True), st.sampled_from((0.25, 0.5, 0.75)), st.floats(-3, 3))
def test_equals_the_definition_at_any_threshold(case: Case, tau: float, other: float) -> None:
    instances = read_instances(*case)
    matches = match(instances, iou_thresholds=(tau,))
    found = optimal_lrp(matches, tau=tau)
    thresholds = [other, *(each["score"] for each in case[1])]
    for k, klass in enumerate(instances.category_ids.tolist()):
        if not matches.objects[0, k]:
            continue
        values = [definition(case, klass, each, tau) for each in thresholds]
        for threshold, value in zip(thresholds, values, strict=True):
            mine = lrp_at(matches, threshold, tau=tau).lrp[k]
            np.testing.assert_allclose(mine, value, rtol=0, atol=1e-9)
        # oLRP is the smallest over all thresholds, that of keeping nothing (1) among them.
        np.testing.assert_allclose(found.olrp[k, 0, 2], min(*values, 1), rtol=0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(cases(distinct=True), st.randoms(use_true_random=False))
def test_the_order_of_detections_and_images_does_not_matter(
    case: Case, shuffler: random.Random
) -> None:
    truth, results = case
    first = optimal_lrp(match(read_instances(truth, results)))
    shuffler.shuffle(results)
    shuffler.shuffle(truth["images"])
    second = optimal_lrp(match(read_instances(truth, results)))
    for part in ("olrp", "localisation", "false_positive", "false_negative", "threshold"):
        np.testing.assert_array_equal(getattr(first, part), getattr(second, part))


@settings(max_examples=40, deadline=None)
@given(cases(crowd=False))
def test_a_perfect_detector_has_no_error(case: Case) -> None:
    truth, _ = case
    # Without duplicates, which an equal box of another object could match.
    perfect = [{**each, "score": 0.5} for each in truth["annotations"]]
    found = optimal_lrp(match(read_instances(truth, perfect)))
    there = found.olrp[:, 0, 2] > -1
    for part in (found.olrp, found.localisation, found.false_positive, found.false_negative):
        np.testing.assert_array_equal(part[there, 0, 2], 0)
    np.testing.assert_array_equal(found.threshold[there, 0, 2], 0.5)


@settings(max_examples=40, deadline=None)
@given(cases(), st.floats(-1, 1), st.data())
def test_a_further_false_positive_never_lowers_olrp(
    case: Case, value: float, data: st.DataObject
) -> None:
    truth, results = case
    before = optimal_lrp(match(read_instances(truth, results)), max_detections=(100,)).olrp
    wrong = {
        "image_id": data.draw(st.sampled_from(truth["images"]))["id"],
        "category_id": data.draw(st.sampled_from(truth["categories"]))["id"],
        "bbox": [5000.0, 5000.0, 40.0, 40.0],
        "score": value,
    }
    after = optimal_lrp(match(read_instances(truth, [*results, wrong])), max_detections=(100,)).olrp
    assert (after >= before - 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(cases(distinct=True), st.integers(0, 3))
def test_lrp_at_the_optimal_threshold_is_olrp(case: Case, area: int) -> None:
    matches = match(read_instances(*case))
    found = optimal_lrp(matches)
    at = lrp_at(matches, found.threshold[:, area, 2], area=area)
    np.testing.assert_allclose(at.lrp, found.olrp[:, area, 2], rtol=0, atol=1e-12)
    for part in ("localisation", "false_positive", "false_negative"):
        np.testing.assert_allclose(
            getattr(at, part), getattr(found, part)[:, area, 2], rtol=0, atol=1e-12
        )
    assert (at.true_positives <= at.objects).all()
    for k in range(matches.classes):
        curve = lrp_curve(matches, k, area=area)
        assert (np.diff(curve.score) < 0).all()
        if at.objects[k]:
            assert curve.lrp.min(initial=1) == pytest.approx(found.olrp[k, area, 2], abs=1e-12)


def matched() -> Matches:
    truth, results = small()
    results.append({"image_id": 3, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9})
    results.append({"image_id": 3, "category_id": 2, "bbox": [5, 5, 15, 10], "score": 0.95})
    return match(read_instances(truth, results))


def test_lrp_by_hand() -> None:
    # Cats: one right and one wrong at score .9. Dogs: half the dog at .95 uses it up, then a whole
    # one at .8 is a duplicate.
    matches = matched()
    everything = lrp_at(matches, 0.5)
    np.testing.assert_allclose(everything.lrp, [1 / 2, 1])
    np.testing.assert_allclose(everything.localisation, [0, 0.5])
    np.testing.assert_allclose(everything.normalised_localisation, [0, 1])
    np.testing.assert_allclose(everything.false_positive, [0.5, 0.5])
    np.testing.assert_array_equal(everything.true_positives, [1, 1])
    np.testing.assert_array_equal(everything.false_positives, [1, 1])
    # Equal scores are kept together: oLRP may stop between the two.
    best = optimal_lrp(matches)
    np.testing.assert_allclose(best.olrp[:, 0, 2], [1 / 2, 1])
    np.testing.assert_allclose(best.threshold[:, 0, 2], [0.9, 0.95])
    np.testing.assert_allclose(best.normalised_localisation[:, 0, 2], [0, 1])


def test_thresholds_of_each_class() -> None:
    matches = matched()
    nothing = lrp_at(matches, {0: 0.5})
    np.testing.assert_array_equal(nothing.lrp, [0.5, 1])
    np.testing.assert_array_equal(nothing.false_negative, [0, 1])
    np.testing.assert_array_equal(np.isnan(nothing.false_positive), [False, True])
    np.testing.assert_array_equal(lrp_at(matches, [0.5, np.nan]).lrp, nothing.lrp)
    with pytest.raises(ValueError, match="one for each of 2 classes"):
        lrp_at(matches, [0.1, 0.2, 0.3])


def test_no_objects_and_no_detections() -> None:
    truth, results = small()
    found = optimal_lrp(match(read_instances({**truth, "annotations": []}, results)))
    assert (found.olrp == -1).all()
    assert (found.normalised_localisation == -1).all()
    assert found.means() == (-1, -1, -1, -1)
    found = optimal_lrp(match(read_instances(truth, [])))
    assert found.means() == (1, -1, -1, 1)
    assert np.isnan(found.threshold[:, 0]).all()
    matches = match(read_instances({**truth, "annotations": []}, results))
    curve = lrp_curve(matches, 0)
    assert np.isnan(curve.recall).all()
    assert curve.precision.tolist() == [0]


def test_settings_are_checked() -> None:
    matches = matched()
    with pytest.raises(ValueError, match=r"no matching at an IoU of 0\.7, only at 0\.5"):
        optimal_lrp(matches, tau=0.7)
    with pytest.raises(ValueError, match="tau must be above 0"):
        optimal_lrp(matches, tau=1)
    with pytest.raises(ValueError, match="max_detections must be from 1 to 100"):
        lrp_at(matches, 0.5, max_detections=300)
    instances = read_instances(*small())
    with pytest.raises(ValueError, match="iou_thresholds"):
        match(instances, iou_thresholds=())
    with pytest.raises(ValueError, match="area_ranges"):
        match(instances, area_ranges=((3, 2),))
    with pytest.raises(ValueError, match="max_detections"):
        match(instances, max_detections=0)


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = read_case("lrp", "dense")
    whole = match(read_instances(*case))
    monkeypatch.setattr("rankdet.eval.matching._PAIRS", 7)
    pieces = match(read_instances(*case))
    np.testing.assert_array_equal(whole.matched, pieces.matched)
    np.testing.assert_array_equal(whole.iou, pieces.iou)


@settings(max_examples=20, deadline=None)
@given(cases())
def test_a_smaller_limit_is_a_cut_of_the_larger(case: Case) -> None:
    assume(case[1])
    instances = read_instances(*case)
    cut = optimal_lrp(match(instances, max_detections=2), max_detections=(1, 2))
    whole = optimal_lrp(match(instances), max_detections=(1, 2))
    np.testing.assert_array_equal(cut.olrp, whole.olrp)
    np.testing.assert_array_equal(cut.threshold, whole.threshold)
