"""How cost grows: slopes, plots, and what processes send each other."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torch import distributed

from benchmarks import growth, processes, reading, results
from benchmarks.cases import Case


def row(loss: str, p: int, n: int, regime: str, ms: float, mb: float) -> dict[str, str]:
    values = {"loss": loss, "P": p, "N": n, "regime": regime, "median_ms": ms, "low_ms": ms / 2,
              "high_ms": ms * 2, "extra_memory_mb": mb, "machine": "M", "threads": 2,
              "processes": 1, "N of each": n, "bytes_sent": 0}  # fmt: skip
    return {key: str(value) for key, value in values.items()}


def test_a_slope_is_the_exponent() -> None:
    assert growth.slope([(x, 3 * x**1.7) for x in (10.0, 100.0, 5000.0)]) == pytest.approx(1.7)
    assert growth.slope([(1, 0), (10, 7), (100, 7)]) == pytest.approx(0, abs=1e-12)
    assert math.isnan(growth.slope([(10, 1), (10, 0)]))


def test_slopes_leave_out_small_sizes_and_older_rows(tmp_path: Path) -> None:
    rows = [row("aLRP", 1000, 10**6, "init", 999.0, 1.0)]
    rows += [row("aLRP", 1000, n, "init", 1.0 if n < 10**6 else n * 1e-5, 2.0)
             for n in growth.NEGATIVES]  # fmt: skip
    path = tmp_path / "growth-n-cpu.csv"
    results.append(path, rows)
    against_n = growth.GROWTHS[0]
    found = growth.latest(results.read(path), against_n)
    assert len(found) == len(growth.NEGATIVES)
    assert growth.slopes(found, against_n, "median_ms") == {("aLRP", "init"): pytest.approx(1)}
    memory = growth.slopes(found, against_n, "extra_memory_mb")
    assert memory == {("aLRP", "init"): pytest.approx(0)}


def test_the_slope_against_processes_is_of_one_case_and_as_many_as_there_are_cores() -> None:
    against = growth.GROWTHS[2]
    base = row("aLRP", 1000, 10**6, "init", 2.0, 1.0)
    rows = [{**base, "processes": str(n), "median_ms": str(ms)}
            for n, ms in ((1, 2.0), (2, 8.0), (4, 999.0))]  # fmt: skip
    rows += [{**base, "P": "100", "median_ms": "5"}, {**base, "N of each": "7"}]
    found = growth.latest(rows, against)
    assert [each["processes"] for each in found] == ["1", "2", "4"]
    assert growth.slopes(found, against, "median_ms") == {("aLRP", "init"): pytest.approx(2)}


def test_plots_are_drawn_again_from_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert growth.main(["--rows", str(tmp_path)]) == 1
    assert "growth-n-cpu.csv is not there" in capsys.readouterr().err
    for against, values in (("n", growth.NEGATIVES), ("p", growth.POSITIVES)):
        rows = [row("aLRP", *((1000, v) if against == "n" else (v, 10**6)), "init", v, 0.0)
                for v in values]  # fmt: skip
        results.append(tmp_path / f"growth-{against}-cpu.csv", rows)
    assert growth.main(["--rows", str(tmp_path)]) == 1
    assert "python -m benchmarks.processes" in capsys.readouterr().err
    base = row("aLRP", 1000, 10**6, "trained", 1.0, 0.0)
    rows = [{**base, "processes": str(n), "median_ms": str(n)} for n in (1, 2, 4)]
    results.append(tmp_path / "processes-cpu.csv", rows)
    assert growth.main(["--rows", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("1.00") == 3
    assert "against processes, from 1 to 2" in out
    assert len(list(tmp_path.glob("growth-*-cpu.png"))) == 3


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_bytes_are_as_documented_and_independent_of_the_negatives(tmp_path: Path) -> None:
    """docs/maths/rank.md, section "One ranking over several processes"."""
    sent: dict[str, list[object]] = {}
    which = [Case(11, n, "init") for n in (100, 5000)]
    for found in processes.rows(2, which, rounds=1):
        sent.setdefault(str(found["loss"]), []).append(found["bytes_sent"])
        assert 0 < float(found["low_ms"]) <= float(found["median_ms"]) <= float(found["high_ms"])
        assert not float(found["extra_memory_mb"]) < 0
    # 11 positives: 6 of one process and 5 of the other, and all send as many as 6.
    scores, counted = 8 + 8 * 6, 32 * 11 + 24
    assert sent == {
        "aLRP": [scores + 8 * 6 + counted] * 2,
        "AP": [scores + counted] * 2,
        "Rank & Sort": [scores + 8 * 6 + counted] * 2,
    }


def test_reading_images_is_timed(digits: Path, tmp_path: Path) -> None:
    arguments = [str(digits), "--recipe", "atss_alrp-small", "--images", "5", "--rounds", "2"]
    assert reading.main([*arguments, "--out", str(tmp_path)]) == 0
    (found,) = results.read(tmp_path / "reading-cpu.csv")
    assert (found["images"], found["rounds"], found["augment"]) == ("5", "2", "light")
    least, middle, most = (float(found[name]) for name in ("least", "ms_per_image", "most"))
    assert 0 < least <= middle <= most
    assert float(found["images_per_second"]) == pytest.approx(1000 / middle, rel=0.02)
