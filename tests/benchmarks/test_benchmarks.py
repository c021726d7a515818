"""The benchmarks: their baseline is right, their rows are whole, and they run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import GoldenReader

from benchmarks import __main__ as bench
from benchmarks import cases, gpu_check, measure, results, training_step
from benchmarks.published_loop import alrp_loop


@pytest.mark.parametrize("case", ["small", "edge", "ties_neg", "all_above", "extreme"])
def test_the_loop_over_positives_is_the_authors_algorithm(golden: GoldenReader, case: str) -> None:
    data = golden(f"alrp_{case}.npz")
    value, gradient = alrp_loop(
        torch.from_numpy(data["logits"]).double(),
        torch.from_numpy(data["targets"]),
        torch.from_numpy(data["loc_error"]).double(),
        delta=float(data["delta"]),
        eps=float(data["eps"]),
    )
    assert float(value) == pytest.approx(float(data["cls_loss"]), rel=1e-12)
    expected = torch.from_numpy(data["grad_logits"])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_a_case_is_drawn_as_described_and_alike_each_time() -> None:
    data = cases.make(cases.Case(1000, 50_000, "trained"))
    again = cases.make(cases.Case(1000, 50_000, "trained"))
    assert torch.equal(data.logits, again.logits)
    assert int(data.targets.sum()) == 1000
    positive, negative = data.logits[data.targets == 1], data.logits[data.targets == 0]
    for part, mean, spread in ((positive, -1, 2), (negative, -6, 1.5)):
        assert float(part.mean()) == pytest.approx(mean, abs=0.3)
        assert float(part.std()) == pytest.approx(spread, rel=0.1)
    with pytest.raises(ValueError, match="regime must be one of"):
        cases.make(cases.Case(1, 1, "other"))


def test_the_quick_benchmark_writes_rows_that_say_where_they_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        bench.main(["--quick", "--only", "losses", "--seconds", "0", "--out", str(tmp_path)]) == 0
    )
    rows = results.read(tmp_path / "losses-cpu.csv")
    assert {row["loss"] for row in rows} == {
        "torchvision sigmoid_focal_loss", "aLRP", "AP", "Rank & Sort",
    }  # fmt: skip
    for row in rows:
        assert float(row["ratio"]) == pytest.approx(
            float(row["median_ms"]) / float(row["rival_median_ms"]), rel=1e-2
        )
        assert all(row[name] for name in ("commit", "machine", "torch", "threads", "seed", "date"))
    assert "equal to the reference" in capsys.readouterr().out


def test_rows_of_another_kind_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    results.append(path, [{"a": 1}])
    with pytest.raises(ValueError, match="has the columns"):
        results.append(path, [{"b": 1}])
    assert results.read(path) == [{"a": "1"}]


def test_memory_is_what_a_call_needs_and_no_more() -> None:
    megabytes = measure.peak_memory(lambda: torch.ones(25_000_000), "cpu")
    assert math.isnan(megabytes) or megabytes == pytest.approx(100, abs=10)


def test_the_gpu_check_says_when_there_is_no_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    assert "nothing was checked" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_gpu_check_itself_runs(tmp_path: Path) -> None:
    assert gpu_check.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 0
    summary = (tmp_path / "gpu-check-cpu.txt").read_text()
    assert summary.count("passed") == 3
    assert "not run: compiled kernels" in summary
    assert len(results.read(tmp_path / "losses-cpu.csv")) == 8
    rows = results.read(tmp_path / "kernels-cpu.csv")
    # Two regimes, two dtypes; on a CPU there are the passes in plain torch and no others.
    assert len(rows) == 16
    assert {row["what"] for row in rows} == {
        "torchvision sigmoid_focal_loss", "aLRP, vectorised",
        "first pass, vectorised", "second pass, vectorised",
    }  # fmt: skip
    for row in rows:
        assert float(row["ratio_focal"]) == pytest.approx(
            float(row["median_ms"]) / float(row["focal_median_ms"]), rel=1e-2
        )
        size = {"float32": 4, "bfloat16": 2}[row["dtype"]]
        moved = {"first": size, "second": 2 * size}.get(row["what"].split()[0], 3 * size + 1)
        assert float(row["moved_mb"]) == pytest.approx(moved * float(row["N"]) / 1e6)
        assert float(row["copy_ms"]) > 0


def test_training_steps_are_timed_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "BATCHES", 2)
    monkeypatch.setattr(training_step, "LEAST_ROUNDS", 2)
    arguments = ["--only", "steps", "--seconds", "0", "--out", str(tmp_path)]
    assert bench.main(arguments) == 0
    rows = results.read(tmp_path / "steps-cpu.csv")
    assert [row["loss"] for row in rows] == list(training_step.LOSSES)
    assert float(rows[0]["ratio"]) == 1
    for row in rows:
        parts = sum(float(row[f"{part}_ms"]) for part in training_step.PARTS)
        assert parts == pytest.approx(float(row["step_ms"]), rel=0.5)
        assert row["commit"]
    assert "ms/step" in capsys.readouterr().out
