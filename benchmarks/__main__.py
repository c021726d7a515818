"""Time the losses on this machine.

Examples:
    python -m benchmarks                    the whole table and both plots, some minutes
    python -m benchmarks --only losses      the table alone
    python -m benchmarks --only steps       whole training steps of the demonstration
    python -m benchmarks --quick --out /tmp/rows   a glance, not kept with the project
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import cases, growth, losses, results


def table(device: str, seconds: float, out: Path, quick: bool) -> None:
    sizes = cases.SIZES[:1] if quick else cases.SIZES
    which = [cases.Case(*size, regime) for size in sizes for regime in cases.REGIMES]
    for row in losses.rows(which, device=device, seconds=seconds):
        results.append(out / f"losses-{device}.csv", [row])
        print(results.show(row), flush=True)


def steps(device: str, seconds: float, out: Path, quick: bool) -> None:
    from benchmarks import training_step

    del quick
    for row in training_step.rows(device=device, seconds=seconds):
        results.append(out / f"steps-{device}.csv", [row])
        print(training_step.show(row), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", choices=["losses", "growth", "steps"], help="one part instead of all"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=10.0, help="time spent on each case")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the rows")
    parser.add_argument("--quick", action="store_true", help="small sizes, half a second each")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: PyTorch sees no CUDA device here.", file=sys.stderr)
        return 2
    seconds = 0.5 if options.quick else options.seconds
    losses.check(options.device)
    print("equal to the reference and to the loop over positives; timing now", flush=True)
    for name, part in (("losses", table), ("growth", growth.measure), ("steps", steps)):
        if options.only in (None, name):
            part(options.device, seconds, options.out, options.quick)
    print(f"rows are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
