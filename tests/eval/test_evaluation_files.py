"""Files of ground truth and results: what is read, and what is said of those that cannot be."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coco_ap import small

from rankdet.eval import add_detections, read_instances, read_truth, score
from rankdet.eval.files import (
    EvaluationFileError,
    read_detections,
    read_ground_truth,
    read_json,
    read_score,
    read_thresholds,
)


def written(path: Path, content: Any) -> Path:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".gz.json"])
def test_plain_and_gzip_are_told_apart_by_content(ending: str, tmp_path: Path) -> None:
    truth, results = small()
    content, columns = read_ground_truth(written(tmp_path / f"truth{ending}", truth))
    assert content == truth
    found, instances = read_detections(written(tmp_path / f"found{ending}", results), columns)
    assert found == results
    expected = read_instances(truth, results)
    for name in ("gt_boxes", "gt_class", "dt_boxes", "dt_scores", "dt_image", "image_sizes"):
        np.testing.assert_array_equal(getattr(instances, name), getattr(expected, name))
    misnamed = tmp_path / "plain.json.gz"
    misnamed.write_text(json.dumps(truth))
    assert read_json(misnamed) == truth


def test_ground_truth_is_read_once_for_several_detectors() -> None:
    truth, results = small()
    columns = read_truth(truth)
    assert len(columns.dt_scores) == 0
    for found in (results, results[:1], []):
        both, expected = add_detections(columns, found), read_instances(truth, found)
        np.testing.assert_array_equal(both.dt_boxes, expected.dt_boxes)
        np.testing.assert_array_equal(both.dt_class, expected.dt_class)
    with pytest.raises(TypeError, match="must be a list of COCO results"):
        add_detections(columns, {"annotations": results})  # type: ignore[arg-type]


UNREADABLE = {
    "empty": (b"", "the file is empty; copy or write it again"),
    "blank": (b" \n", "the file is empty"),
    "text": (b"hello", "no valid JSON at line 1, column 1 .* near 'hello'"),
    "half": (b'[{"image_id": 1, "bbox": [1, 2', "at the end|cut off; copy or write it again"),
    "in a word": (b'[{"score": tru', "cut off"),
    "in a name": (b'[{"image_i', "cut off"),
    "comma": (b'{"a": 1,, "b": 2}' + b" " * 20 + b"1" * 20, "column 9.*correct the file there"),
    "bytes": (b"\x80\x81\x82", "no valid JSON: .*UTF-8"),
    "digits": (b"[" + b"1" * 5000 + b"]", "no valid JSON: .*digits"),
    "gzip cut off": (gzip.compress(b"[]" * 999)[:-9], "gzip content is cut off or damaged"),
    "gzip of rubbish": (b"\x1f\x8b" + b"\0" * 40, "gzip content is cut off or damaged"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_json_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    raw, message = UNREADABLE[kind]
    path.write_bytes(raw)
    with pytest.raises(EvaluationFileError, match=message) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")


def test_other_faults_of_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationFileError, match="there is no such file; check the path"):
        read_json(tmp_path / "none.json")
    (tmp_path / "val.json").write_text("[]")
    with pytest.raises(EvaluationFileError, match=r"a folder; name a file, such as val\.json"):
        read_json(tmp_path)
    wrong = tmp_path / "x.json.gz"
    wrong.write_text("hello")
    with pytest.raises(EvaluationFileError, match="no valid JSON, nor gzip as the name says"):
        read_json(wrong)
    if os.geteuid() != 0:
        (tmp_path / "val.json").chmod(0)
        with pytest.raises(EvaluationFileError, match="no permission"):
            read_json(tmp_path / "val.json")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10_000))
def test_a_file_that_ends_anywhere_is_never_taken_for_a_whole_one(end: int) -> None:
    import tempfile

    text = json.dumps(small()[0]).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.json"
        path.write_bytes(text[: end % (len(text) - 1) + 1])
        with pytest.raises(EvaluationFileError, match="cut off"):
            read_json(path)


TRUTHS = [
    ([], "must be an object with images, categories and annotations, found a list of 0"),
    (small()[1], "These look like detections: are the two files swapped"),
    ("x", "found 'x'"),
    ({"images": [{"id": 1}]}, "'categories' is missing; COCO instances need a list of .* id, name"),
    ({**small()[0], "categories": []}, "has no categories: the list 'categories' is empty. Add"),
    ({"images": [], "categories": [{"id": 1}], "annotations": []}, "has no images"),
    ({**small()[0], "images": [{"id": 2**70}]}, r"images\[0\]: id 1180.* is too large"),
    ({**small()[0], "images": [{"id": "7"}]}, r"whole number, got '7': write 7"),
]


@pytest.mark.parametrize(("content", "message"), TRUTHS)
def test_faulty_ground_truth_is_named(content: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "truth.json", content)
    with pytest.raises(EvaluationFileError, match=message) as error:
        read_ground_truth(path)
    assert str(error.value).startswith(f"{path}: ")


def test_flags_of_crowd_are_0_or_1(tmp_path: Path) -> None:
    truth, _ = small()
    truth["annotations"][1]["iscrowd"] = "0"
    with pytest.raises(EvaluationFileError, match=r"annotations\[1\]: iscrowd must be 0 or 1"):
        read_ground_truth(written(tmp_path / "truth.json", truth))
    for value, crowd in ((True, True), (None, False), (1, True), (0, False)):
        truth["annotations"][1]["iscrowd"] = value
        assert read_truth(truth).gt_crowd.tolist() == [False, crowd]


DETECTIONS = [
    ({"annotations": []}, "a list of COCO results.* Write the list under 'annotations'"),
    (small()[0], "This looks like ground truth: are the two files swapped"),
    ({}, "found an object with nothing in it"),
    (3, "found 3"),
    ([{"file": "a.jpg", "detections": []}], "as `rankdet predict` writes them"),
    ([3], r"detections\[0\] must be a dictionary, got int"),
]


@pytest.mark.parametrize(("content", "message"), DETECTIONS)
def test_faulty_detections_are_named(content: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "found.json", content)
    with pytest.raises(EvaluationFileError, match=message) as error:
        read_detections(path, read_truth(small()[0]))
    assert str(error.value).startswith(f"{path}: ")


def test_boxes_without_a_side_are_refused_unless_asked_for(tmp_path: Path) -> None:
    truth, results = small()
    results[1]["bbox"][2] = 0
    found, columns = written(tmp_path / "found.json", results), read_truth(truth)
    message = r"detections\[1\]: bbox \[5.0, 5.0, 0.0, 10.0\] has no width .*\(1 such of 2\)"
    with pytest.raises(EvaluationFileError, match=message):
        read_detections(found, columns)
    assert len(read_detections(found, columns, empty_boxes=True)[1].dt_scores) == 2
    truth["annotations"][0]["bbox"][3] = 0
    path = written(tmp_path / "truth.json", truth)
    with pytest.raises(EvaluationFileError, match=r"annotations\[0\].*no height"):
        read_ground_truth(path)
    assert len(read_ground_truth(path, empty_boxes=True)[1].gt_boxes) == 2


def test_scores_and_thresholds_are_read(tmp_path: Path) -> None:
    result = score(*small(), threshold=0.85)
    path = written(tmp_path / "score.json", result.to_json())
    assert read_score(path) == result
    assert read_thresholds(path) == {"cat": 0.9, "dog": 0.8}
    alone = written(tmp_path / "thresholds.json", {"cat": 0.5, "dog": None})
    assert read_thresholds(alone) == {"cat": 0.5, "dog": None}
    with pytest.raises(EvaluationFileError, match=r"found schema None.*`rankdet score --json`"):
        read_score(alone)
    for content, message in (
        ([1], "found a list of 1"),
        ({"schema": 1}, "thresholds must be an object"),
        ({"cat": "0.5"}, "threshold of class 'cat' is '0.5'; write a finite number, or null"),
        ({"cat": True}, "is True"),
        ({"cat": float("nan")}, "is nan"),
    ):
        with pytest.raises(EvaluationFileError, match=message):
            read_thresholds(written(tmp_path / "bad.json", content))
