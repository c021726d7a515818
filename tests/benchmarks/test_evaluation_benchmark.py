"""The benchmark of the evaluation: its sets are sound, and its rows are whole and right."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import evaluation, results


def test_the_made_up_set_is_alike_each_time_and_has_what_makes_evaluating_hard() -> None:
    truth, found = evaluation.synthetic(200)
    assert (truth, found) == evaluation.synthetic(200)
    assert (truth, found) != evaluation.synthetic(200, seed=1)
    assert len(truth["images"]) == 200
    assert len(truth["annotations"]) == pytest.approx(7 * 200, rel=0.15)
    assert len(found) == pytest.approx(29 * 200, rel=0.15)
    assert any(box["iscrowd"] for box in truth["annotations"])
    assert all(min(box["bbox"][2:]) > 0 for box in (*truth["annotations"], *found))
    assert all(0 <= each["score"] <= 1 for each in found)
    same = Counter((each["category_id"], each["score"]) for each in found)
    assert max(same.values()) > 5, "equal scores inside a class"


def test_copies_have_ids_of_their_own_and_are_otherwise_the_same(tmp_path: Path) -> None:
    truth, found = evaluation.synthetic(5)
    data = evaluation.write("a set", truth, found, 3, tmp_path)
    counts = (15, 3 * len(truth["annotations"]), 3 * len(found))
    assert (data.images, data.boxes, data.detections) == counts
    whole = json.loads(data.truth.read_text())
    detections = json.loads(data.found.read_text())
    assert (len(whole["images"]), len(whole["annotations"]), len(detections)) == counts
    for key in ("images", "annotations"):
        assert len({each["id"] for each in whole[key]}) == len(whole[key])
    for records, original in ((whole["annotations"], truth["annotations"]), (detections, found)):
        assert [each["bbox"] for each in records] == 3 * [each["bbox"] for each in original]
        per_image = Counter(each["image_id"] for each in records)
        expected = Counter(each["image_id"] for each in original)
        assert sorted(per_image.values()) == sorted(3 * list(expected.values()))
        assert per_image.keys() <= {image["id"] for image in whole["images"]}


def test_rows_tell_time_memory_and_ratio_of_all_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, found = evaluation.synthetic(8)
    files = [str(tmp_path / name) for name in ("truth.json.gz", "found.json.gz")]
    for path, content in zip(files, (truth, found), strict=True):
        with gzip.open(path, "wt") as file:
            json.dump(content, file)
    arguments = ["--rounds", "1", "--copies", "2", "--out", str(tmp_path)]
    assert evaluation.main([*files, *arguments]) == 0
    rows = results.read(tmp_path / "evaluation-cpu.csv")
    assert [(row["copies"], row["evaluator"]) for row in rows] == [
        *(("1", name) for name in evaluation.EVALUATORS),
        *(("2", name) for name in (evaluation.RIVAL, evaluation.OURS)),
    ]
    for row in rows:
        assert row["data"] == "truth.json.gz"
        assert int(row["images"]) == 8 * int(row["copies"])
        assert int(row["detections"]) == len(found) * int(row["copies"])
        rival = rows[0] if row["copies"] == "1" else rows[3]
        assert float(row["ratio"]) == pytest.approx(
            float(row["seconds"]) / float(rival["seconds"]), rel=0.01
        )
        smaller = next(each for each in rows if each["evaluator"] == row["evaluator"])
        assert float(row["growth"]) == pytest.approx(
            float(row["seconds"]) / float(smaller["seconds"]), rel=0.01
        )
        assert float(row["cpu_seconds"]) > 0
        # An interpreter with NumPy takes more than 20 MB; PyTorch, which these tests
        # have loaded, several hundred: it must not be counted.
        assert 20 < float(row["peak_mb"]) < 200
        assert float(row["ap"]) == pytest.approx(float(rows[0]["ap"]), abs=0.2)
        assert all(row[name] for name in ("commit", "machine", "faster_coco_eval", "date"))
    assert "x faster-coco-eval" in capsys.readouterr().out


def plan(monkeypatch: pytest.MonkeyPatch, runs: list[tuple[float, float]]) -> None:
    """Let the processes have measured these seconds and found these APs, one after the other."""
    measured = iter([evaluation.Run(seconds, seconds / 2, 50.0, ap) for seconds, ap in runs])
    monkeypatch.setattr(evaluation, "measured", lambda *_: next(measured))


def test_no_row_is_written_where_the_evaluators_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(monkeypatch, [(1.0, 0.25), (1.0, 0.25), (1.0, 0.25 + 1e-8)])
    data = evaluation.write("a set", *evaluation.synthetic(1), 1, tmp_path)
    with pytest.raises(ValueError, match=r"rankdet, everything finds an AP of 0\.25000001"):
        next(evaluation.rows([data], rounds=1))


def test_ratios_are_within_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In each round: rival, pycocotools, ours; then rival and ours on two copies.
    rounds = ((2, 10, 3, 4, 6), (8, 10, 8, 16, 32), (4, 10, 12, 12, 12))
    plan(monkeypatch, [(float(each), 0.25) for seconds in rounds for each in seconds])
    truth, found = evaluation.synthetic(1)
    sets = [evaluation.write("a set", truth, found, copies, tmp_path) for copies in (1, 2)]
    rows = {(row["copies"], row["evaluator"]): row for row in evaluation.rows(sets, rounds=3)}
    assert len(rows) == 5
    ours = rows[1, evaluation.OURS]
    assert (ours["seconds_low"], ours["seconds"], ours["seconds_high"]) == (3, 8, 12)
    # 8 / 4 = 2 would be the ratio of the medians.
    assert (ours["ratio_low"], ours["ratio"], ours["ratio_high"]) == (1, 1.5, 3)
    assert (ours["cpu_seconds"], ours["cpu_ratio"], ours["growth"]) == (4, 1.5, 1)
    twice = rows[2, evaluation.OURS]
    assert (twice["ratio_low"], twice["ratio"], twice["ratio_high"]) == (1, 1.5, 2)
    assert (twice["growth"], twice["cpu_growth"]) == (2, 2)
    rival = rows[2, evaluation.RIVAL]
    assert (rival["ratio"], rival["growth"], rival["cpu_growth"]) == (1, 2, 2)


def test_a_failing_evaluator_is_named_with_its_message(tmp_path: Path) -> None:
    truth, found = evaluation.synthetic(1)
    found.append({"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5})
    data = evaluation.write("a set", truth, found, 1, tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)rankdet, everything failed.*unknown image"):
        evaluation.measured(evaluation.OURS, data)


def test_one_file_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluation.main(["truth.json"])
    assert "name the ground truth and the detections" in capsys.readouterr().err
