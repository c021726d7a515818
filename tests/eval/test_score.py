"""The one object with all numbers: its values, its JSON form, its warnings."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import subprocess
import sys
from typing import Any

import pytest
from conftest import GoldenReader
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coco_ap import Case, cases, read_case, small

from rankdet.eval import STATS, Score, score

KEYS = {
    *STATS,
    *("schema", "images", "objects", "crowd", "detections", "tau", "correlation", "warnings"),
    *("oLRP", "oLRP_loc", "oLRP_loc_normalised", "oLRP_fp", "oLRP_fn"),
    *("by_size", "by_count", "per_class", "thresholds", "few", "at_threshold"),
}


@pytest.mark.parametrize("name", ["coco_val2014_100", "crowd", "odd_classes", "all_false"])
def test_numbers_are_those_of_the_golden_set(golden: GoldenReader, name: str) -> None:
    expected = golden(f"lrp/{name}.npz")
    found = score(*read_case("lrp", name))

    def same(value: float | None, wanted: float) -> None:
        missing = not wanted > -1
        assert (value is None) == missing
        if value is not None:
            assert value == pytest.approx(wanted, abs=1e-9)

    for key, wanted in zip(STATS, expected["coco_stats"], strict=True):
        same(getattr(found, key), wanted)
    summary = expected["size_summary"]
    for row, key in enumerate(("oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn")):
        same(getattr(found, key), summary[row, 0])
        for column, size in enumerate(found.by_size, start=1):
            same(getattr(size, key), summary[row, column])
    for k, each in enumerate(found.per_class):
        assert each.id == expected["category_ids"][k]
        assert (each.objects, each.detections) == (
            expected["num_gt"][k],
            expected["num_dt"][k],
        )
        same(each.AP, expected["ap_per_class"][k])
        same(each.oLRP, expected["olrp"][k, 0, 2])
        same(each.oLRP_loc, expected["olrp_loc"][k, 0, 2])
        same(each.oLRP_fp, expected["olrp_fp"][k, 0, 2])
        same(each.oLRP_fn, expected["olrp_fn"][k, 0, 2])
        same(each.threshold, expected["lrp_opt_thr"][k, 0, 2])
        assert found.thresholds[each.name] == each.threshold


@settings(max_examples=30, deadline=None)
@given(cases())
def test_json_there_and_back(case: Case) -> None:
    before = copy.deepcopy(case)
    found = score(*case)
    assert case == before
    text = json.dumps(found.to_json(), allow_nan=False)
    plain = json.loads(text)
    assert set(plain) == KEYS
    assert plain == found.to_json()
    again = Score.from_json(plain)
    assert again == found
    assert json.dumps(again.to_json()) == text
    for key in (*STATS, "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn"):
        assert plain[key] is None or -1e-12 <= plain[key] <= 1 + 1e-12


@settings(max_examples=30, deadline=None)
@given(cases(distinct=True), st.randoms(use_true_random=False))
def test_the_order_of_detections_images_and_classes_does_not_matter(
    case: Case, shuffler: random.Random
) -> None:
    truth, results = case
    before = score(truth, results, threshold=0.2)
    for part in (results, truth["images"], truth["categories"]):
        shuffler.shuffle(part)
    after = score(truth, results, threshold=0.2)
    # Sums over pairs in another order may differ in a last digit.
    one, other = before.correlation, after.correlation
    assert one.pairs == other.pairs
    for first, second in ((one.pearson, other.pearson), (one.spearman, other.spearman)):
        assert first == pytest.approx(second, abs=1e-9)
    assert dataclasses.replace(after, correlation=one, warnings=before.warnings) == before


@settings(max_examples=30, deadline=None)
@given(cases(crowd=False))
def test_a_perfect_detector_has_ap_1_and_olrp_0(case: Case) -> None:
    truth, _ = case
    found = score(truth, [{**each, "score": 0.5} for each in truth["annotations"]], threshold=0.5)
    if not truth["annotations"]:
        assert (found.AP, found.oLRP) == (None, None)
        return
    groups: list[Any] = [found, *found.per_class, *found.by_count]
    precisions = [each.AP for each in groups if each.AP is not None]
    assert precisions == pytest.approx([1] * len(precisions), abs=1e-9)
    whole = [found.AP50, found.AP75, found.AR100]
    assert whole == pytest.approx([1] * 3, abs=1e-9)
    for each in groups:
        errors = (each.oLRP, each.oLRP_loc, each.oLRP_fp, each.oLRP_fn)
        assert errors in ((0,) * 4, (None,) * 4)
    assert found.at_threshold is not None
    assert (found.at_threshold.LRP, found.at_threshold.wrong, found.at_threshold.missed) == (0,) * 3


@settings(max_examples=30, deadline=None)
@given(cases(), st.floats(-1, 1), st.data())
def test_a_further_false_positive_improves_nothing(
    case: Case, value: float, data: st.DataObject
) -> None:
    truth, results = case
    wrong = {
        "image_id": data.draw(st.sampled_from(truth["images"]))["id"],
        "category_id": data.draw(st.sampled_from(truth["categories"]))["id"],
        "bbox": [5000.0, 5000.0, 40.0, 40.0],
        "score": value,
    }
    before, after = score(truth, results), score(truth, [*results, wrong])
    assert (after.oLRP or 0) >= (before.oLRP or 0) - 1e-12
    assert (after.AP or 0) <= (before.AP or 0) + 1e-12


def test_the_normalised_localisation_is_there_by_name() -> None:
    truth, results = small()
    results[0]["bbox"] = [10, 10, 20, 14]  # IoU .7
    plain = score(truth, results, tau=0.6).to_json()
    for each in (plain, plain["per_class"][0], plain["by_size"][0]):
        assert each["oLRP_loc_normalised"] == pytest.approx(each["oLRP_loc"] / 0.4)
    assert plain["per_class"][0]["oLRP_loc_normalised"] == pytest.approx(0.3 / 0.4)
    few = plain["by_count"][0]
    assert few["oLRP_loc_normalised"] == pytest.approx(few["oLRP_loc"] / 0.5), "counts stay at .5"
    # Files of earlier versions lack these and what could not be asked for.
    for each in (*plain["per_class"], *plain["by_size"], *plain["by_count"]):
        del each["oLRP_loc_normalised"]
    del plain["few"], plain["at_threshold"]
    again = Score.from_json(plain)
    assert again.per_class[0].oLRP_loc_normalised is None
    assert (again.few, again.at_threshold) == (10, None)


def test_lrp_at_thresholds_that_are_asked_for() -> None:
    truth, results = small()
    results += [
        {"image_id": 7, "category_id": 1, "bbox": [60, 60, 9, 9], "score": 0.85},
        {"image_id": 3, "category_id": 2, "bbox": [5, 5, 30, 9], "score": 0.1},
    ]
    found = score(truth, results, threshold=0.85).at_threshold
    assert found is not None
    cat, dog = found.per_class
    assert (cat.LRP, cat.LRP_fp, cat.LRP_fn) == pytest.approx((0.5, 0.5, 0))
    assert (cat.right, cat.wrong, cat.missed, cat.threshold) == (1, 1, 0, 0.85)
    assert (dog.LRP, dog.LRP_loc, dog.LRP_fp, dog.LRP_fn) == (1, None, None, 1)
    assert (found.LRP, found.LRP_loc, found.LRP_fp, found.LRP_fn) == pytest.approx(
        (0.75, 0, 0.5, 0.5)
    )
    assert (found.right, found.wrong, found.missed) == (1, 1, 1)
    each = score(truth, results, threshold={"dog": 0.8}).at_threshold
    assert each is not None
    assert [(c.threshold, c.right, c.missed) for c in each.per_class] == [(None, 0, 1), (0.8, 1, 0)]
    with pytest.raises(ValueError, match=r"class 'horse' \(1 such in all\).*classes are cat, dog"):
        score(truth, results, threshold={"horse": 0.5})
    with pytest.raises(ValueError, match="class 'cat' must be a finite number, got inf"):
        score(truth, results, threshold=float("inf"))


@settings(max_examples=30, deadline=None)
@given(cases(distinct=True))
def test_at_the_optimal_thresholds_stands_the_optimum(case: Case) -> None:
    first = score(*case)
    at = score(*case, threshold=first.thresholds).at_threshold
    assert at is not None
    for key in ("", "_loc", "_loc_normalised", "_fp", "_fn"):
        expected = [getattr(first, f"oLRP{key}")] if hasattr(first, f"oLRP{key}") else []
        expected += [getattr(each, f"oLRP{key}") for each in first.per_class]
        found = [getattr(each, f"LRP{key}") for each in (at, *at.per_class)]
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_perfect_detector() -> None:
    found = score(*small())
    assert (found.AP, found.AP50, found.oLRP, found.oLRP_fn) == pytest.approx((1, 1, 0, 0))
    assert found.APm is None
    assert found.thresholds == {"cat": 0.9, "dog": 0.8}
    assert (found.images, found.objects, found.crowd, found.detections) == (2, 2, 0, 2)
    assert [(b.low, b.high, b.images) for b in found.by_count[:2]] == [(0, 3, 2), (4, 10, 0)]
    assert (found.by_count[0].AP, found.by_count[0].oLRP) == pytest.approx((1, 0))
    assert found.by_count[4].high is None
    assert found.correlation.pairs == 2
    assert found.correlation.pearson is None


def test_empty_detections_and_empty_ground_truth() -> None:
    truth, results = small()
    nothing = score(truth, [])
    assert (nothing.AP, nothing.oLRP, nothing.oLRP_fn) == (0, 1, 1)
    assert (nothing.oLRP_loc, nothing.oLRP_loc_normalised, nothing.oLRP_fp) == (None,) * 3
    assert nothing.thresholds == {"cat": None, "dog": None}
    assert "There are no detections." in nothing.warnings
    no_objects = score({**truth, "annotations": []}, results)
    assert (no_objects.AP, no_objects.oLRP, no_objects.per_class[0].AP) == (None,) * 3
    assert any("No objects" in w and "cat, dog" in w for w in no_objects.warnings)
    empty = score({"images": [], "categories": [], "annotations": []}, [])
    assert (empty.AP, empty.per_class, empty.by_count[0].images) == (None, (), 0)


def test_scores_are_any_real_numbers() -> None:
    truth, results = small()
    changed = [{**each, "score": each["score"] * 1000 - 950} for each in results]
    before, after = score(truth, results), score(truth, changed)
    assert after.thresholds == pytest.approx({"cat": -50, "dog": -150})
    assert (before.AP, before.oLRP) == (after.AP, after.oLRP)
    # -1 stands for "missing" among the numbers underneath, but as a score it is one.
    least = [{**each, "score": -1} for each in results]
    assert score(truth, least).thresholds == {"cat": -1, "dog": -1}


def test_tau_and_bins() -> None:
    truth, results = small()
    results[0]["bbox"] = [10, 10, 20, 14]  # IoU .7
    found = score(truth, results, tau=0.6, bins=((0, 0), (1, None)))
    assert found.tau == 0.6
    assert found.per_class[0].oLRP == pytest.approx(0.3 / 0.4)
    assert found.oLRP_loc == pytest.approx(0.15)
    assert found.oLRP_loc_normalised == pytest.approx(0.15 / 0.4)
    assert score(truth, results, tau=0.75).per_class[0].oLRP == 1
    assert [(b.low, b.high, b.images) for b in found.by_count] == [(0, 0, 0), (1, None, 2)]
    for tau in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="tau must be above 0"):
            score(truth, results, tau=tau)
    with pytest.raises(ValueError, match="bins must be pairs"):
        score(truth, results, bins=((3, 2),))


def test_warnings_name_what_rests_on_little() -> None:
    truth, results = small()
    truth["categories"].append({"id": 3, "name": "unicorn"})
    few = score(truth, results).warnings
    assert few[0] == (
        "Rests on fewer than 10 objects: cat (1), dog (1), small objects (2), "
        "images with 0-3 objects (2)."
    )
    assert few[1] == "No objects, so left out of all means: unicorn."
    assert score(truth, results, few=1).warnings == few[1:]
    many = [{"id": k, "name": f"c{k}"} for k in range(1, 30)]
    absent = score({**truth, "categories": many}, results).warnings[1]
    assert absent.endswith("c9, c10 and 19 more.")


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    score(*small())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "no score of schema 1: found schema 2"),
        ({"AP": ...}, r"score: missing keys \['AP'\]"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"per_class": [{}]}, r"per_class\[0\]: missing keys"),
        ({"correlation": 3}, "correlation must be a dictionary, got int"),
    ],
)
def test_other_json_is_refused(change: dict[str, Any], message: str) -> None:
    plain = {**score(*small()).to_json(), **change}
    plain = {k: v for k, v in plain.items() if v is not ...}
    with pytest.raises(ValueError, match=message):
        Score.from_json(plain)
    with pytest.raises(ValueError, match="no score of schema 1"):
        Score.from_json([plain])  # type: ignore[arg-type]


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'faster_coco_eval', 'rich', 'matplotlib', 'scipy'}"
    code = f"import sys, rankdet.eval; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
