"""The one object with all numbers: its values, its JSON form, its warnings."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
from conftest import GoldenReader
from hypothesis import given, settings
from test_coco_ap import Case, cases, read_case, small

from rankdet.eval import STATS, Score, score

KEYS = {
    *STATS,
    *("schema", "images", "objects", "crowd", "detections", "tau", "correlation", "warnings"),
    *("oLRP", "oLRP_loc", "oLRP_loc_normalised", "oLRP_fp", "oLRP_fn"),
    *("by_size", "by_count", "per_class", "thresholds"),
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


def test_corners_given_for_sizes_are_noticed() -> None:
    truth, results = small()
    truth["images"] = [{"id": i, "width": 100, "height": 100} for i in (3, 7)]
    assert not any("corners" in w for w in score(truth, results).warnings)
    for each in results:
        each["bbox"] = [60, 60, 90, 90]
    found = score(truth, results).warnings
    assert any("2 of 2 boxes of detections reach beyond" in w and "corners" in w for w in found)
    results[0]["bbox"] = [60, 60, 0, 10]
    assert any("1 of 2 detections have a width" in w for w in score(truth, results).warnings)


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
