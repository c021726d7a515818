"""How cost grows with N and P: rows, plots, and the fitted slopes.

Examples:
    python -m benchmarks --only growth      measure, then draw
    python -m benchmarks.growth             draw the latest rows again and print the slopes
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks import cases, losses, results

NEGATIVES = (10**4, 10**5, 10**6, 10**7, 3 * 10**7)
POSITIVES = (10, 100, 1000, 10_000)
# Slopes are fitted where the work is more than the price of starting operations.
_FITTED = {"N": 10**6, "P": 100}
_MEASURES = {"median_ms": "forward + backward, ms", "extra_memory_mb": "memory beyond both, MB"}

Rows = Sequence[dict[str, str]]


def measure(device: str, seconds: float, out: Path, quick: bool) -> None:
    """Measure both and draw them."""
    panels = {
        "N": [cases.Case(1000, n, r) for r in cases.REGIMES for n in NEGATIVES],
        "P": [cases.Case(p, 10**6, r) for r in cases.REGIMES for p in POSITIVES],
    }
    for against, which in panels.items():
        if quick:
            which = [case for case in which if case.positives * case.negatives <= 10**8]
        path = out / f"growth-{against.lower()}-{device}.csv"
        for row in losses.rows(which, device=device, seconds=seconds / 2, with_loop=False):
            results.append(path, [row])
            print(results.show(row), flush=True)
        draw(latest(results.read(path)), against, path.with_suffix(".png"))


def latest(rows: Rows) -> Rows:
    """Return the last row of each loss and case, in the order they first came."""
    found = {(row["loss"], row["P"], row["N"], row["regime"]): row for row in rows}
    return list(found.values())


def slope(points: Iterable[tuple[float, float]]) -> float:
    """Return the exponent b of y = a x^b, by least squares of the logarithms; NaN of fewer than 2.

    Where y is 0, a point says nothing and is left out.
    """
    pairs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len(pairs) < 2:
        return math.nan
    x, y = torch.tensor(pairs, dtype=torch.float64).T
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def slopes(rows: Rows, against: str, measured: str) -> dict[tuple[str, str], float]:
    """Return the fitted exponent of time or memory against N or P, by loss and regime."""
    keys = dict.fromkeys((row["loss"], row["regime"]) for row in rows)
    return {
        key: slope(
            (float(row[against]), float(row[measured]))
            for row in rows
            if (row["loss"], row["regime"]) == key and float(row[against]) >= _FITTED[against]
        )
        for key in keys
    }


def draw(rows: Rows, against: str, path: Path) -> None:
    """Draw time, with its 20 % to 80 % band, and memory against N or P, a column per regime."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    regimes = list(dict.fromkeys(row["regime"] for row in rows))
    figure, axes = plt.subplots(
        len(_MEASURES), len(regimes), figsize=(5.5 * len(regimes), 3.6 * len(_MEASURES)),
        squeeze=False, sharex=True,
    )  # fmt: skip
    for line, (measured, label) in zip(axes, _MEASURES.items(), strict=True):
        found = slopes(rows, against, measured)
        for axis, regime in zip(line, regimes, strict=True):
            for name in dict.fromkeys(row["loss"] for row in rows):
                mine = [row for row in rows if (row["loss"], row["regime"]) == (name, regime)]
                mine.sort(key=lambda row: float(row[against]))
                x = [float(row[against]) for row in mine]
                y = [float(row[measured]) or math.nan for row in mine]
                axis.plot(x, y, marker="o", label=f"{name}: slope {found[name, regime]:.2f}")
                if measured == "median_ms":
                    low, high = ([float(row[end]) for row in mine] for end in ("low_ms", "high_ms"))
                    axis.fill_between(x, low, high, alpha=0.2)
            axis.set(xscale="log", yscale="log", title=regime, ylabel=label)
            axis.grid(True, which="both", alpha=0.25)
            axis.legend(fontsize="x-small")
    for axis in axes[-1]:
        axis.set_xlabel(f"{against} (slopes from {_FITTED[against]:,} on)")
    fixed = "P = 1000" if against == "N" else "N = 1,000,000"
    figure.suptitle(f"{fixed}, {rows[0]['machine']}, {rows[0]['threads']} threads")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", type=Path, default=results.RESULTS, help="folder of the rows")
    options = parser.parse_args(arguments)
    for against in _FITTED:
        path = options.rows / f"growth-{against.lower()}-{options.device}.csv"
        if not path.exists():
            print(f"{path} is not there; measure with: python -m benchmarks --only growth",
                  file=sys.stderr)  # fmt: skip
            return 1
        rows = latest(results.read(path))
        draw(rows, against, path.with_suffix(".png"))
        print(f"against {against}, from {_FITTED[against]:,} on")
        for measured in _MEASURES:
            for (name, regime), exponent in slopes(rows, against, measured).items():
                print(f"  {measured:<16} {name:<32} {regime:<8} {exponent:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
