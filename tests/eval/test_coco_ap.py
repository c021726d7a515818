"""COCO's numbers against pycocotools, and what is refused at the door."""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import _GOLDEN, GoldenReader
from hypothesis import given, settings
from hypothesis import strategies as st

from rankdet.eval import IOU_THRESHOLDS, STATS, coco_ap, coco_ap_of, match, read_instances

Case = tuple[dict[str, Any], list[dict[str, Any]]]

LRP_CASES = (
    *("all_false", "areas", "basic", "crowd", "dense", "duplicates", "empty_images"),
    *("many_detections", "odd_classes", "ties", "coco_val2014_100", "coco_val2017_synthetic"),
)
_DATA_SETS = {
    "coco_val2014_100": (
        "coco_val2014_100/instances_val2014_100.json",
        "coco_val2014_100/instances_val2014_fakebbox100_results.json",
    ),
    "coco_val2017_synthetic": (
        "coco_val2017/instances_val2017_boxes.json.gz",
        "coco_val2017/synthetic_detections.json.gz",
    ),
}


def read_case(folder: str, name: str) -> Case:
    """Read ground truth and detections that golden results belong to."""
    if name in _DATA_SETS:
        paths = [_GOLDEN[0].parent / "data" / path for path in _DATA_SETS[name]]
    else:
        paths = [_GOLDEN[0] / folder / f"{name}_{kind}.json.gz" for kind in ("gt", "dt")]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"{paths[0]} is not here")
    truth, detections = (_read(path) for path in paths)
    return truth, detections


@functools.cache
def _read(path: Path) -> Any:
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


@st.composite
def cases(draw: st.DrawFn, *, crowd: bool = True, distinct: bool = False) -> Case:
    """Small data sets on a coarse grid, so that IoUs and scores tie often and sizes vary."""
    images = draw(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
    classes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
    side = st.sampled_from((1, 2, 3, 4))
    unit = st.sampled_from((7, 16, 40))
    scale = draw(unit)
    box = st.tuples(st.integers(0, 3), st.integers(0, 3), side, side).map(
        lambda b: [float(scale * v) for v in b]
    )
    objects: list[dict[str, Any]] = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "image_id": st.sampled_from(images),
                    "category_id": st.sampled_from(classes),
                    "bbox": box,
                    "iscrowd": st.sampled_from((0, 0, 0, 1)) if crowd else st.just(0),
                }
            ),
            max_size=10,
        )
    )
    for number, each in enumerate(objects):
        each["id"] = number + 1
        each["area"] = each["bbox"][2] * each["bbox"][3] * draw(st.sampled_from((1.0, 0.5)))
    count = draw(st.integers(0, 14))
    scores = st.floats(-3, 3) if distinct else st.sampled_from((-0.5, 0.1, 0.2, 0.5, 0.9))
    values = draw(st.lists(scores, min_size=count, max_size=count, unique=distinct))
    results = [
        {
            "image_id": draw(st.sampled_from(images)),
            "category_id": draw(st.sampled_from(classes)),
            "bbox": draw(box),
            "score": value,
        }
        for value in values
    ]
    truth = {
        "images": [{"id": i} for i in images],
        "categories": [{"id": c, "name": f"class {c}"} for c in classes],
        "annotations": objects,
    }
    return truth, results


def pycocotools_evaluation(case: Case) -> Any:
    """Return pycocotools' evaluation object, ready to evaluate."""
    from pycocotools.coco import COCO  # type: ignore[import-untyped]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    truth, results = copy.deepcopy(case)
    for number, each in enumerate(results):
        area = each["bbox"][2] * each["bbox"][3]
        each.update(id=number + 1, area=area, iscrowd=0)
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for annotations in (truth["annotations"], results):
            side = COCO()
            side.dataset = {**truth, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        return COCOeval(*sides, iouType="bbox")


@pytest.mark.parametrize("name", LRP_CASES)
def test_golden(golden: GoldenReader, name: str) -> None:
    expected = golden(f"lrp/{name}.npz")
    ap = coco_ap(read_instances(*read_case("lrp", name)))
    np.testing.assert_allclose(ap.stats, expected["coco_stats"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ap.ap_per_class, expected["ap_per_class"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ap.ar_per_class, expected["ar_per_class"], rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_equals_pycocotools(case: Case) -> None:
    oracle = pycocotools_evaluation(case)
    with contextlib.redirect_stdout(io.StringIO()):
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    ap = coco_ap(read_instances(*case))
    np.testing.assert_allclose(ap.stats, oracle.stats, rtol=0, atol=1e-9)
    precision, recall = oracle.eval["precision"], oracle.eval["recall"]
    np.testing.assert_allclose(
        ap.ap_per_class, precision[:, :, :, 0, 2].mean(axis=(0, 1)), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(
        ap.ap50_per_class, precision[0, :, :, 0, 2].mean(axis=0), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(ap.ar_per_class, recall[:, :, 0, 2].mean(axis=0), rtol=0, atol=1e-9)


def many() -> Case:
    """Hundreds of detections of a class in an image, crowd, ties, and areas of all sizes."""
    random = np.random.default_rng(5)
    truth: dict[str, Any] = {
        "images": [{"id": i} for i in (9, 4, 30)],
        "categories": [{"id": k, "name": str(k)} for k in (7, 2, 5)],
        "annotations": [],
    }
    results = []
    for number in range(150):
        where = {
            "image_id": int(random.choice([9, 4, 30])),
            "category_id": int(random.choice([7, 2])),
        }
        side = float(random.choice([8, 20, 50, 150]))
        box = [*random.uniform(0, 300, 2).tolist(), side, side]
        area = side * side * float(random.choice([1, 0.5]))
        truth["annotations"].append(
            {"id": number, **where, "bbox": box, "area": area, "iscrowd": int(number % 9 == 0)}
        )
        for _ in range(8):
            moved = (np.array(box) + random.normal(0, 0.1 * side, 4)).clip(1).tolist()
            value = round(float(random.random()), 1)
            results.append({**where, "bbox": moved, "score": value})
    return truth, results


def test_equals_pycocotools_with_more_detections_than_count() -> None:
    case = many()
    oracle = pycocotools_evaluation(case)
    with contextlib.redirect_stdout(io.StringIO()):
        # An annotation of id 0 is no match in COCO's program.
        for each in oracle.cocoGt.dataset["annotations"]:
            each["id"] += 1
        oracle.cocoGt.createIndex()
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    ap = coco_ap(read_instances(*case))
    assert np.bincount(read_instances(*case).dt_class).max() > 300
    np.testing.assert_allclose(ap.stats, oracle.stats, rtol=0, atol=1e-9)
    precision, recall = oracle.eval["precision"], oracle.eval["recall"]
    np.testing.assert_allclose(
        ap.ap_per_class, precision[:, :, :, 0, 2].mean(axis=(0, 1)), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(ap.ar_per_class, recall[:, :, 0, 2].mean(axis=0), rtol=0, atol=1e-9)


def test_matches_of_other_settings_are_refused() -> None:
    instances = read_instances(*small())
    for other in (match(instances), match(instances, iou_thresholds=IOU_THRESHOLDS,
                                          max_detections=10)):  # fmt: skip
        with pytest.raises(ValueError, match=r"COCO's numbers need matches at IoU \.5 to \.95"):
            coco_ap_of(other)
    both = coco_ap_of(match(instances, iou_thresholds=IOU_THRESHOLDS))
    np.testing.assert_array_equal(both.stats, coco_ap(instances).stats)


def small() -> Case:
    truth = {
        "images": [{"id": 7, "width": 100, "height": 100}, {"id": 3}],
        "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 20]},
            {"image_id": 3, "category_id": 2, "bbox": [5, 5, 30, 10]},
        ],
    }
    results = [
        {"image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9},
        {"image_id": 3, "category_id": 2, "bbox": [5, 5, 30, 10], "score": 0.8},
    ]
    return truth, results


def test_the_least_of_ground_truth_is_enough_and_nothing_is_changed_or_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    truth, results = small()
    before = copy.deepcopy((truth, results))
    instances = read_instances(truth, results)
    ap = coco_ap(instances)
    assert dict(zip(STATS, ap.stats.tolist(), strict=True))["AP"] == pytest.approx(1)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")
    assert instances.names == ("cat", "dog")
    np.testing.assert_array_equal(instances.gt_areas, [400, 300])
    np.testing.assert_array_equal(instances.image_sizes, [[np.nan] * 2, [100, 100]])


def test_records_are_numbered_anew_so_that_an_id_of_zero_is_a_match() -> None:
    truth, results = small()
    for number, each in enumerate(truth["annotations"]):
        each["id"] = number
    assert coco_ap(read_instances(truth, results)).stats[0] == pytest.approx(1)


def test_nothing_found_is_zero_and_nothing_to_find_is_minus_one() -> None:
    truth, results = small()
    none = coco_ap(read_instances(truth, []))
    np.testing.assert_array_equal(none.stats, [0, 0, 0, 0, -1, -1, 0, 0, 0, 0, -1, -1])
    np.testing.assert_array_equal(none.ap_per_class, [0, 0])
    for objects in ([], [{**truth["annotations"][0], "iscrowd": 1}]):
        empty = coco_ap(read_instances({**truth, "annotations": objects}, results))
        np.testing.assert_array_equal(empty.stats, np.full(12, -1))
        np.testing.assert_array_equal(empty.ap50_per_class, [-1, -1])
    nothing = read_instances({"images": [], "categories": [], "annotations": []}, [])
    assert coco_ap(nothing).ap_per_class.shape == (0,)


def test_two_classes_of_one_name_are_told_apart() -> None:
    truth, results = small()
    truth["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
    assert read_instances(truth, results).names == ("cat (1)", "cat (2)")
    truth["categories"] = [{"id": 1}, {"id": 2, "name": "cat"}]
    assert read_instances(truth, results).names == ("class 1", "cat")


BAD_RECORDS = [
    ({"image_id": 8}, r"detections: 1 of 2 have an unknown image, first detections\[1\].* 8"),
    ({"image_id": "3"}, r"image_id '3'; write it as the number"),
    ({"image_id": [3]}, r"unknown image"),
    ({"category_id": 5}, r"1 of 2 have an unknown category.*category_id 5"),
    ({"score": float("nan")}, r"detections\[1\]: score is nan"),
    ({"score": float("inf")}, r"score is inf"),
    ({"score": "0.5"}, r"detections\[1\]: score must be a number, got '0.5'"),
    ({"score": None}, r"score must be a number, got None"),
    ({"bbox": [1, 2, float("nan"), 4]}, r"detections\[1\]: bbox .* is not finite"),
    ({"bbox": [1, 2, float("inf"), 4]}, r"is not finite"),
    ({"bbox": [50, 50, -20, 4]}, r"detections\[1\]: bbox .* negative width.*x, y, width, height"),
    ({"bbox": [1, 2, 3]}, r"detections\[1\]: bbox must be four numbers"),
    ({"bbox": ["1", "2", "3", "4"]}, r"bbox must be four numbers"),
    ({"bbox": None}, r"bbox must be four numbers"),
]


@pytest.mark.parametrize(("change", "message"), BAD_RECORDS)
def test_a_bad_detection_is_named(change: dict[str, Any], message: str) -> None:
    truth, results = small()
    results[1].update(change)
    with pytest.raises(ValueError, match=message):
        read_instances(truth, results)


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "score"])
def test_a_missing_key_is_named(key: str) -> None:
    truth, results = small()
    del results[1][key]
    with pytest.raises(ValueError, match=rf"detections\[1\] has no '{key}'"):
        read_instances(truth, results)


@pytest.mark.parametrize("key", ["images", "categories", "annotations"])
def test_bad_ground_truth_is_named(key: str) -> None:
    truth, results = small()
    without = {k: v for k, v in truth.items() if k != key}
    with pytest.raises(ValueError, match=rf"ground truth: '{key}' is missing"):
        read_instances(without, results)
    with pytest.raises(ValueError, match=rf"'{key}' is a dict"):
        read_instances({**truth, key: {}}, results)
    with pytest.raises(ValueError, match=rf"{key}\[0\] must be a dictionary"):
        read_instances({**truth, key: [3]}, results)
    twice = [{**truth[key][0], "id": 4}, {**truth[key][0], "id": 4}]
    with pytest.raises(ValueError, match=rf"{key}: id 4 .*{key}\[0\] and {key}\[1\]"):
        read_instances({**truth, key: twice}, results)
    with pytest.raises(ValueError, match=rf"{key}\[0\]: id must be a whole number"):
        read_instances({**truth, key: [{**truth[key][0], "id": "a"}]}, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, -3, 4]}, r"annotations\[0\]: bbox .* negative"),
        ({"area": float("nan")}, r"annotations\[0\]: area is nan"),
        ({"image_id": 12}, r"annotations: 1 of 2 have an unknown image"),
    ],
)
def test_a_bad_annotation_is_named(change: dict[str, Any], message: str) -> None:
    truth, results = small()
    truth["annotations"][0].update(change)
    with pytest.raises(ValueError, match=message):
        read_instances(truth, results)


def test_detections_must_be_a_list_and_ground_truth_a_dictionary() -> None:
    truth, results = small()
    for wrong in ({"annotations": results}, "results.json", None, 3):
        with pytest.raises(TypeError, match="detections must be a list of COCO results"):
            read_instances(truth, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ground_truth must be a dictionary"):
        read_instances([truth], results)  # type: ignore[arg-type]
