"""Everything that needs a GPU, in one command: correctness on it, then times, then a training.

Examples:
    python -m benchmarks.gpu_check --out results      rows and a summary go to this folder
    python -m benchmarks.gpu_check --only checks kernels   some parts alone
    python -m benchmarks.gpu_check --device cpu --quick   try the script itself without a GPU

Whatever fails is named with the end of its traceback, the rest goes on, and the exit code is 1.
Where a check failed no speed is measured. What needs a package that is missing is left out.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib
import io
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import cases, gpu_check_kernels, losses, measure, results
from benchmarks.gpu_check_kernels import NotRunError, forced, naming
from rankdet.losses import alrp_loss, ap_loss, rank_sort_loss
from rankdet.ops.rank import passes, rank_operator

PARTS = ("checks", "losses", "kernels", "steps", "training", "growth")
DEFAULT = PARTS[:-1]
SIZES = (*cases.SIZES, (1000, 31_000_000), (5000, 31_000_000))
KERNEL_DTYPES = (torch.float32, torch.bfloat16)
TRACEBACK_LINES = 12


# Each loss as one scalar, of logits, targets and a number for each positive.
LOSSES: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda x, t, e: torch.stack(alrp_loss(x, t, e)).sum(),
    lambda x, t, _: ap_loss(x, t),
    lambda x, t, e: torch.stack(rank_sort_loss(x, t, e)).sum(),
)


@dataclass
class Report:
    """What is printed, with the seconds since the start, and kept in a file line by line."""

    path: Path
    begin: float = field(default_factory=time.perf_counter)
    lines: list[str] = field(default_factory=list)
    failed: bool = False

    def say(self, text: str) -> None:
        """Print a line, or several, and keep it even if this program is ended a moment later."""
        self.lines.append(f"{time.perf_counter() - self.begin:5.0f} s  {text}")
        print(self.lines[-1], flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def attempt(self, name: str, run: Callable[[], object]) -> bool:
        """Run something; say how it failed, or what it needs, and go on. Return whether it ran."""
        try:
            run()
        except NotRunError as error:
            self.say(f"not run: {name}: {error}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] in ("benchmarks", "rankdet"):
                self._failed(name, error)
            else:
                self.say(f"left out: {name}: the package {error.name} is not installed here")
        except Exception as error:
            self._failed(name, error)
        else:
            return True
        return False

    def rows(self, path: Path, rows: Iterable[dict[str, Any]], show: Callable[[Any], str]) -> None:
        """Append rows to a file as they come, and show them."""
        for row in rows:
            results.append(path, [row])
            self.say(show(row))

    def _failed(self, name: str, error: Exception) -> None:
        self.failed = True
        end = "".join(traceback.format_exception(error)).rstrip().split("\n")[-TRACEBACK_LINES:]
        self.say("\n".join([f"FAILED: {name}", *(f"         | {line}" for line in end)]))


def check_operator(device: str) -> None:
    """Compare with the definition, on the device, over dtypes, regimes and ramps."""
    for regime in cases.REGIMES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            for delta in (1.0, 0.5, 0.0):
                with naming(regime, dtype, f"delta {delta}"):
                    _check_operator(regime, dtype, delta, device)


def _check_operator(regime: str, dtype: torch.dtype, delta: float, device: str) -> None:
    data = cases.make(cases.Case(300, 40_000, regime), seed=2, device=device)
    neg, skip = data.logits.to(dtype), data.targets.nonzero().squeeze(1)
    pos, weights = neg[skip], torch.rand(300, device=device)
    fast = rank_operator(pos, neg, delta, "vectorised", skip=skip)
    slow = rank_operator(pos, neg, delta, "reference", skip=skip)
    torch.testing.assert_close(fast.counts(), slow.counts(), rtol=1e-9, atol=1e-9)
    expected = slow.spread(weights, dtype=torch.float64)
    spread = fast.spread(weights, dtype=torch.float64)
    torch.testing.assert_close(spread, expected, rtol=0, atol=1e-9 * float(expected.max()))


def check_losses(device: str, backend: passes.Backend | None = None) -> None:
    """Compare values and gradients with the same on the CPU in float64.

    Args:
        device: that computes.
        backend: of the ranking there; None: the one that is chosen by itself.
    """
    for regime in cases.REGIMES:
        data = cases.make(cases.Case(700, 100_000, regime), seed=3)
        for name, loss in zip(losses.LOSSES, LOSSES, strict=True):
            wide = data.logits.double().requires_grad_()
            value = loss(wide, data.targets, data.per_positive)
            (gradient,) = torch.autograd.grad(value, wide)
            here = data.logits.to(device).requires_grad_()
            with naming(name, regime), forced(backend) if backend else nullcontext():
                result = loss(here, data.targets.to(device), data.per_positive.to(device))
                (grad,) = torch.autograd.grad(result, here)
                torch.testing.assert_close(result.cpu().double(), value, rtol=1e-6, atol=0)
                atol = 1e-6 * float(gradient.abs().max())
                torch.testing.assert_close(grad.cpu().double(), gradient, rtol=0, atol=atol)


def checks(report: Report, device: str) -> None:
    """Run every check, also after one that failed."""
    found: dict[str, Callable[[], None]] = {
        "operator equals the reference": lambda: check_operator(device),
        "losses equal float64 on the CPU": lambda: check_losses(device),
        "losses equal the loop over positives": lambda: losses.check(device),
    }
    if device == "cuda":
        backends: tuple[passes.Backend, ...] = ("triton", "vectorised")
        for backend in backends:
            run = functools.partial(check_losses, device, backend)
            found[f"losses by the backend {backend} equal float64 on the CPU"] = run
        found |= gpu_check_kernels.CHECKS
    for name, check in found.items():
        if report.attempt(name, check):
            report.say(f"passed: {name}")
    if device != "cuda":
        report.say("not run: compiled kernels, which need a CUDA device")


def losses_and_kernels(
    report: Report, parts: Iterable[str], device: str, quick: bool, out: Path
) -> None:
    """Time losses and kernels on the same data: at full size they take seconds to draw."""
    sizes = SIZES[:1] if quick else SIZES
    which = [cases.Case(*size, regime) for size in sizes for regime in cases.REGIMES]
    for_losses, for_kernels = (0.3, 0.1) if quick else (1.0, 0.5)
    with mock.patch.object(cases, "make", functools.lru_cache(maxsize=1)(cases.make)):
        for case in which:
            if "losses" in parts:
                found = losses.rows([case], device=device, seconds=for_losses)
                run = functools.partial(
                    report.rows, out / f"losses-{device}.csv", found, results.show
                )
                report.attempt(f"losses, {case}", run)
            if "kernels" in parts:
                found = gpu_check_kernels.rows([case], device, KERNEL_DTYPES, for_kernels)
                run = functools.partial(
                    report.rows, out / f"kernels-{device}.csv", found, gpu_check_kernels.show
                )
                report.attempt(f"kernels, {case}", run)


def steps(report: Report, device: str, quick: bool, out: Path) -> None:
    """Time whole training steps: of RetinaNet with ResNet-50, and in the demonstration."""

    def retinanet() -> None:
        from benchmarks import detector_step

        for precision in detector_step.PRECISIONS[device]:
            batch, size = (1, 64) if quick else (detector_step.BATCH[device], 512)
            setting = detector_step.Setting(device, precision, batch, size)
            rows = detector_step.rows(setting, 0.0 if quick else 3.0)
            report.rows(out / f"train-{device}.csv", rows, detector_step.show)

    def demo() -> None:
        from benchmarks import training_step

        rows = training_step.rows(device=device, seconds=0.0 if quick else 2.0)
        report.rows(out / f"steps-{device}.csv", rows, training_step.show)

    report.attempt("training steps of RetinaNet with ResNet-50", retinanet)
    report.attempt("training steps of the demonstration", demo)


def growth(device: str, quick: bool, out: Path) -> None:
    """Time the losses over N and over P, and draw it."""
    from benchmarks.growth import measure as over_sizes

    over_sizes(device, 0.5 if quick else 2.0, out, quick)


def train(report: Report, device: str, quick: bool) -> None:
    """Train as a user would, by the command; say what came out.

    Raises:
        RuntimeError: the command failed.
        AssertionError: the loss is not finite, or did not fall.
    """
    importlib.import_module("rankdet.cli.running")  # what is missing shows before any work
    from rankdet.cli.main import main as command

    images, side, count = ((32, 8), 64, 40) if quick else ((600, 100), 128, 200)
    changes = [f"schedule.steps={count}", "training.evaluations=1", "training.log_every=10"]
    if quick:
        sides = ("train_size", "test_shorter", "test_longer")
        changes += ["data.workers=0", *(f"data.{name}={side}" for name in sides)]

    def call(*typed: object) -> None:
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = command([str(word) for word in typed])
        if code:
            end = said.getvalue().rstrip()[-1000:]
            raise RuntimeError(f"`rankdet {typed[0]}` failed with exit code {code}: ...{end}")

    with tempfile.TemporaryDirectory(prefix="rankdet-gpu-check-") as name:
        data, run = Path(name) / "digits", Path(name) / "run"
        call("data", "digits", "--out", data, "--train", images[0], "--val", images[1],
             "--size", side)  # fmt: skip
        begin = time.perf_counter()
        call("train", "--recipe", "demo", "--data", data, "--out", run,
             "--accelerator", "cpu" if device == "cpu" else "auto",
             *(word for change in changes for word in ("--set", change)))  # fmt: skip
        seconds = time.perf_counter() - begin
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        ap = json.loads((run / "score.json").read_text(encoding="utf-8"))["AP"]
    rows = [row for row in rows if row["loss"]]
    # aLRP Loss itself. In what is minimised, the weight of localisation is still finding its place.
    values = [float(row["classification"]) + float(row["localisation"]) for row in rows]
    report.say(
        f"trained: demo, {count} steps in {float(rows[-1]['seconds']):.1f} s ({seconds:.1f} s with "
        f"evaluation and report), aLRP Loss {values[0]:.3f} to {values[-1]:.3f}, AP {ap:.3f}"
    )
    for row in rows:
        assert math.isfinite(float(row["loss"])), f"the loss is not finite: {row}"
    assert values[-1] < values[0], f"the loss did not fall: {values}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the rows")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="the smallest size only")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=DEFAULT, help="default: all but growth"
    )
    options = parser.parse_args(arguments)
    device, quick, out = options.device, options.quick, options.out
    if device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here: nothing was checked, no row was written.")
        return 1
    report = Report(out / f"gpu-check-{device}.txt")
    report.say(f"{measure.origin(device, 0)['machine']}, PyTorch {torch.__version__}")

    runs: dict[str, Callable[[], object]] = {
        "checks": lambda: checks(report, device),
        "losses and kernels": lambda: losses_and_kernels(report, options.only, device, quick, out),
        "steps": lambda: steps(report, device, quick, out),
        "training": lambda: train(report, device, quick),
        "growth": lambda: growth(device, quick, out),
    }
    if "checks" not in options.only:
        report.say("not run: checks")
    checked = True
    for name, run in runs.items():
        wanted = " and ".join(part for part in name.split(" and ") if part in options.only)
        if not wanted:
            continue
        if not checked and name != "training":
            report.say(f"not measured, because a check failed: {wanted}")
            continue
        begin = time.perf_counter()
        report.attempt(wanted, run)
        report.say(f"{wanted} took {time.perf_counter() - begin:.0f} s")
        checked = checked and not (name == "checks" and report.failed)
    report.say("something FAILED, see above" if report.failed else "nothing failed")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
