"""Whole training steps are timed in turn, of networks of one size, and their rows are whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import detector_step, results
from benchmarks.detector_step import ALRP, COMPILED, FOCAL, PARTS, TORCHVISION, Clock, Setting

TINY = Setting("cpu", "float32", batch=1, size=64)


def test_all_three_train_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[int] = []
    still: list[int] = []

    def count(network: nn.Module, _loss: object, _clock: object, _setting: object) -> None:
        kernels = [(w.numel(), w.requires_grad) for w in network.parameters() if w.dim() == 4]
        learned.append(sum(size for size, learns in kernels if learns))
        still.append(sum(size for size, learns in kernels if not learns))

    monkeypatch.setattr(detector_step, "Rival", count)
    assert list(detector_step.rivals(TINY)) == [ALRP, FOCAL, TORCHVISION]
    assert len(set(learned)) == 1
    assert learned[0] > 30_000_000
    assert set(still) == {222_400}  # of the stem and the first stage


def test_a_compiled_one_differs_in_being_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    class Watched(detector_step.Rival):
        def __init__(
            self, network: nn.Module, loss: detector_step.Loss, clock: Clock, setting: Setting
        ) -> None:
            made.append(network)
            super().__init__(network, loss, clock, setting)

    monkeypatch.setattr(detector_step, "Rival", Watched)
    names = list(detector_step.rivals(TINY, compiled=True))
    assert names == [ALRP, FOCAL, COMPILED, TORCHVISION]
    plain, compiled = made[0], made[2]
    torch.testing.assert_close(dict(compiled.state_dict()), dict(plain.state_dict()))
    assert [_is_compiled(plain, part) for part in ("backbone", "neck", "head")] == [False] * 3
    assert [_is_compiled(compiled, part) for part in ("backbone", "neck", "head")] == [True] * 3


def _is_compiled(network: nn.Module, part: str) -> bool:
    return network.get_submodule(part)._compiled_call_impl is not None


def test_a_clock_counts_inner_parts_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Criterion:
        def assigner(self) -> None:
            spend(2)

        def forward(self) -> None:
            spend(1)
            self.assigner()
            spend(4)

    monkeypatch.setattr(detector_step, "_now", lambda: now)
    clock, criterion = Clock(), Criterion()
    clock.watch("assignment", criterion, "assigner")
    clock.watch("criterion", criterion, "forward")

    def step() -> None:
        spend(100)  # in no part
        criterion.forward()
        for _ in range(2):
            clock.run("optimizer", spend, 8)

    step()
    times = clock.times(step)
    assert list(times) == list(PARTS)
    assert {k: v for k, v in times.items() if v} == {
        "criterion": 5e3, "assignment": 2e3, "optimizer": 16e3,
    }  # fmt: skip


def test_rows_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector_step, "WARM_UP", 1)
    monkeypatch.setattr(detector_step, "LEAST_ROUNDS", 2)
    arguments = ["--device", "cpu", "--batch", "1", "--size", "64", "--seconds", "0"]
    table = tmp_path / "profile.txt"
    assert detector_step.main([*arguments, "--out", str(tmp_path), "--profile", str(table)]) == 0
    assert "SGD.step" in table.read_text()
    assert "One step, aLRP" in table.read_text()
    rows = results.read(tmp_path / "train-cpu.csv")
    assert [row["what"] for row in rows] == [ALRP, FOCAL, TORCHVISION]
    for row in rows:
        assert (row["device"], row["precision"], row["tf32"]) == ("cpu", "float32", "false")
        assert (row["batch"], row["size"], row["steps"]) == ("1", "64", "2")
        step = float(row["step_ms"])
        assert 0 < float(row["low_ms"]) <= step <= float(row["high_ms"])
        # Three decimals are written.
        assert float(row["images_per_s"]) == pytest.approx(1e3 / step, rel=1e-3, abs=5.1e-4)
        parts = [float(row[f"{part}_ms"]) for part in PARTS]
        # How they compare is no test's business: on a busy machine, in any way.
        assert min(parts) > 0
        assert 0 < float(row["loss"]) < 20
        assert 100 < float(row["extra_memory_mb"]) < 1000 or row["extra_memory_mb"] == "nan"
        for key, rival in (("ratio_alrp", rows[0]), ("ratio_focal", rows[1])):
            ratio = float(row[key])
            assert float(row[f"{key}_low"]) <= ratio <= float(row[f"{key}_high"])
            assert ratio == 1 if row is rival else ratio > 0
        assert all(row[name] for name in ("commit", "machine", "torch", "threads", "seed", "date"))
    assert "images/s" in capsys.readouterr().out


class Pretended:
    """A rival whose steps take given times, in ms, then one."""

    def __init__(self, spend: Callable[[float], None], times: list[float], loss: float) -> None:
        self.spend, self.loss, self.clock = spend, loss, Clock()
        self.left = iter([1.0] * detector_step.WARM_UP + times)

    def step(self) -> Tensor:
        self.spend(next(self.left, 1.0) / 1e3)
        return torch.tensor(self.loss)


def pretend(monkeypatch: pytest.MonkeyPatch, loss: float = 1.0) -> dict[str, dict[str, Any]]:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    found = {
        ALRP: Pretended(spend, [3.0, 8.0, 12.0], 1.0),
        FOCAL: Pretended(spend, [2.0, 8.0, 4.0], loss),
        TORCHVISION: Pretended(spend, [6.0, 4.0, 4.0], 1.0),
    }
    monkeypatch.setattr(detector_step, "_now", lambda: now)
    monkeypatch.setattr(detector_step, "rivals", lambda _, **_options: found)
    return {row["what"]: row for row in detector_step.rows(TINY, 0.0)}


def test_ratios_are_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pretend(monkeypatch)
    assert [rows[ALRP][key] for key in ("low_ms", "step_ms", "high_ms")] == [5, 8, 10.4]
    assert rows[ALRP]["images_per_s"] == 125
    # 8 / 4 = 2 would be the ratio of the medians.
    ratios = [rows[ALRP][f"ratio_focal{end}"] for end in ("_low", "", "_high")]
    assert ratios == pytest.approx([1.2, 1.5, 2.4])
    assert rows[TORCHVISION]["ratio_alrp"] == 0.5
    assert rows[TORCHVISION]["ratio_focal"] == 1
    assert rows[FOCAL]["ratio_alrp"] == pytest.approx(2 / 3, abs=1e-4)


def test_a_training_whose_loss_is_not_finite_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the loss of focal \+ smooth L1 became nan"):
        pretend(monkeypatch, torch.nan)


def test_tf32_is_put_back() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    def interrupted(allowed: bool) -> None:
        with detector_step._tf32(allowed):
            assert torch.backends.cudnn.allow_tf32 is allowed
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            raise KeyboardInterrupt

    for allowed in (True, False):
        with pytest.raises(KeyboardInterrupt):
            interrupted(allowed)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_without_a_gpu_one_cannot_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert detector_step.main(["--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
