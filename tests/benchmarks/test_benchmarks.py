"""The benchmarks: their baseline is right, their rows are whole, and they run."""

from __future__ import annotations

import importlib
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GoldenReader

from benchmarks import __main__ as bench
from benchmarks import cases, detector_step, gpu_check, measure, results, training_step
from benchmarks.gpu_check_kernels import NotRunError
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


def test_rows_of_one_process_name_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first row lies in the tree by then.
    said = itertools.chain(["abc1234\n"], itertools.repeat("abc1234-dirty\n"))

    def git(*_given: object, **_options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout=next(said))

    monkeypatch.setattr(subprocess, "run", git)
    measure._commit.cache_clear()
    try:
        assert [measure.origin("cpu", 0)["commit"] for _ in range(2)] == ["abc1234"] * 2
    finally:
        measure._commit.cache_clear()


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
        "torchvision sigmoid_focal_loss", "focal in parts", "aLRP", "AP", "Rank & Sort",
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


def quick(tmp_path: Path, *parts: str) -> tuple[int, str]:
    """Run the check on the CPU; return its exit code and its summary."""
    only = ["--only", *parts] if parts else []
    code = gpu_check.main(["--device", "cpu", "--quick", "--out", str(tmp_path), *only])
    return code, (tmp_path / "gpu-check-cpu.txt").read_text()


def test_the_gpu_check_itself_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    make = cases.make

    def making(case: cases.Case, seed: int = 0, device: str = "cpu") -> cases.Input:
        drawn.append((case, seed))
        return make(case, seed, device)

    monkeypatch.setattr(cases, "make", making)
    code, summary = quick(tmp_path, "checks", "losses", "kernels")
    assert code == 0
    assert summary.count("passed") == 3
    assert "not run: compiled kernels" in summary
    assert "losses and kernels took" in summary
    for regime in cases.REGIMES:  # once for losses and kernels together
        assert drawn.count((cases.Case(100, 10**5, regime), 0)) == 1
    assert len(results.read(tmp_path / "losses-cpu.csv")) == 10
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


def test_a_failing_check_stops_no_other_but_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise AssertionError("half of it is wrong")

    monkeypatch.setattr(gpu_check, "check_losses", wrong)
    monkeypatch.setattr(gpu_check, "_check_operator", lambda *_: None)
    monkeypatch.setattr(gpu_check, "train", lambda report, *_: report.say("it trains"))
    code, summary = quick(tmp_path)
    assert code == 1
    failure = re.search("FAILED: (.*)\n((?: +[|] .*\n)+)", summary)
    assert failure is not None
    assert failure[1] == "losses equal float64 on the CPU"
    assert failure[2].endswith("AssertionError: half of it is wrong\n")
    assert summary.count("passed") == 2
    assert "not measured, because a check failed: losses and kernels" in summary
    assert "not measured, because a check failed: steps" in summary
    assert "it trains" in summary
    assert "something FAILED" in summary
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-check-cpu.txt"]


def test_a_failure_says_in_what_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(regime: str, dtype: torch.dtype, delta: float, _: str) -> None:
        assert (regime, dtype, delta) != ("trained", torch.bfloat16, 0.5)

    monkeypatch.setattr(gpu_check, "_check_operator", wrong)
    monkeypatch.setattr(gpu_check, "check_losses", lambda *_: None)
    code, summary = quick(tmp_path, "checks")
    assert code == 1
    assert "| in the case trained, torch.bfloat16, delta 0.5\n" in summary


def test_what_cannot_be_run_is_no_failure(tmp_path: Path) -> None:
    report = gpu_check.Report(tmp_path / "new" / "summary.txt")

    def too_large() -> None:
        raise NotRunError("it needs 20 GiB, and 1.0 are free")

    assert report.attempt("nothing", lambda: None)
    assert not report.attempt("this", lambda: importlib.import_module("a_missing.package"))
    assert not report.attempt("that", too_large)
    assert report.failed is False
    assert not report.attempt("ours", lambda: importlib.import_module("rankdet.not_there"))
    said = [line.split("s  ", 1)[-1] for line in report.path.read_text().splitlines()]
    assert said[:3] == [
        "left out: this: the package a_missing is not installed here",
        "not run: that: it needs 20 GiB, and 1.0 are free",
        "FAILED: ours",
    ]
    assert report == gpu_check.Report(report.path, report.begin, report.lines, failed=True)


def test_without_pydantic_the_gpu_check_leaves_out_what_trains(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['pydantic'] = None; from benchmarks import gpu_check; "
        f"sys.exit(gpu_check.main('--device cpu --quick --only steps training --out "
        f"{tmp_path}'.split()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, cwd=results.RESULTS.parents[1], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("RetinaNet with ResNet-50", "the demonstration"):
        assert f"left out: training steps of {part}: the package pydantic is not" in done.stdout
    assert "left out: training: the package pydantic is not installed here" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-check-cpu.txt"]


def test_the_gpu_check_times_steps_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def rows(setting: detector_step.Setting, seconds: float) -> Any:
        asked.append((setting, seconds))
        yield dict.fromkeys(
            ("images_per_s", "step_ms", "ratio_alrp", "ratio_focal", "ratio_focal_low",
             "ratio_focal_high", *(f"{part}_ms" for part in detector_step.PARTS)), 1.0,
        ) | {"what": "a rival", "precision": "float32"}  # fmt: skip

    monkeypatch.setattr(detector_step, "rows", rows)
    monkeypatch.setattr(training_step, "BATCHES", 1)
    monkeypatch.setattr(training_step, "LEAST_ROUNDS", 2)
    code, summary = quick(tmp_path, "steps", "training")
    assert code == 0, summary
    assert asked == [(detector_step.Setting("cpu", "float32", 1, 64), 0.0)]
    assert len(results.read(tmp_path / "train-cpu.csv")) == 1
    assert len(results.read(tmp_path / "steps-cpu.csv")) == len(training_step.LOSSES)
    trained = re.search(r"trained: demo, 40 steps .* aLRP Loss (\S+) to (\S+), AP \d", summary)
    assert trained is not None
    assert float(trained[1]) > float(trained[2]) > 0


@pytest.mark.parametrize("loss", ["nan", "1.0"])
def test_a_training_that_does_not_learn_is_a_failure(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankdet.cli import main as cli

    def pretend(typed: list[str]) -> int:
        if typed[0] == "train":
            folder = Path(typed[typed.index("--out") + 1])
            folder.mkdir()
            rows = ("5,1.0,0.9,0.1\n", f"10,{loss},0.9,0.2\n", "10,,,\n")
            head = "seconds,loss,classification,localisation\n"
            (folder / "metrics.csv").write_text(head + "".join(rows))
            (folder / "score.json").write_text('{"AP": 0.5}')
        return 0

    monkeypatch.setattr(cli, "main", pretend)
    code, summary = quick(tmp_path, "training")
    assert code == 1
    assert "FAILED: training" in summary
    assert ("is not finite" if loss == "nan" else "did not fall") in summary


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
