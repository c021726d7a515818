"""How cost grows with N, P and the number of processes: rows, plots, and the fitted slopes.

Examples:
    python -m benchmarks --only growth      measure against N and P, then draw
    python -m benchmarks.processes          measure against the number of processes
    python -m benchmarks.growth             draw the latest rows again and print the slopes
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import cases, losses, results

NEGATIVES = (10**4, 10**5, 10**6, 10**7, 3 * 10**7)
POSITIVES = (10, 100, 1000, 10_000)
_TIME = {"median_ms": "forward + backward, ms"}
_MEMORY = {"extra_memory_mb": "memory beyond both, MB"}


class Growth(NamedTuple):
    """One thing that grows, and what is drawn against it."""

    column: str
    file: str
    """Name of the rows, with a place for the device."""
    picture: str
    measure_with: str
    """The command that measures it."""
    fixed: dict[str, str]
    """Columns whose value does not change, and that value."""
    title: str
    fit: tuple[int, float]
    """From where to where a slope is fitted: where the work is more than the price of starting
    operations, and where each process has a core of its own."""
    measures: dict[str, str]
    """Columns that are drawn, and their labels."""


GROWTHS = (
    Growth("N", "growth-n-{}.csv", "growth-n-{}.png", "python -m benchmarks --only growth",
           {}, "P = 1000", (10**6, math.inf), {**_TIME, **_MEMORY}),
    Growth("P", "growth-p-{}.csv", "growth-p-{}.png", "python -m benchmarks --only growth",
           {}, "N = 1,000,000", (100, math.inf), {**_TIME, **_MEMORY}),
    Growth("processes", "processes-{}.csv", "growth-processes-{}.png",
           "python -m benchmarks.processes", {"P": "1000", "N of each": "1000000"},
           "one ranking: P = 1000 of all, N = 1,000,000 of each", (1, 2),
           {**_TIME, **_MEMORY, "bytes_sent": "sent by a process, bytes"}),
)  # fmt: skip

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
        (growth,) = (each for each in GROWTHS if each.column == against)
        draw(latest(results.read(path), growth), growth, path.with_suffix(".png"))


def latest(rows: Rows, growth: Growth) -> Rows:
    """Return the last row of each loss and case that is drawn, in the order they first came."""
    found = {
        (row["loss"], row[growth.column], row["regime"]): row
        for row in rows
        if all(row[column] == value for column, value in growth.fixed.items())
    }
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


def slopes(rows: Rows, growth: Growth, measured: str) -> dict[tuple[str, str], float]:
    """Return the fitted exponent of what was measured, by loss and regime."""
    keys = dict.fromkeys((row["loss"], row["regime"]) for row in rows)
    least, most = growth.fit
    return {
        key: slope(
            (float(row[growth.column]), float(row[measured]))
            for row in rows
            if (row["loss"], row["regime"]) == key and least <= float(row[growth.column]) <= most
        )
        for key in keys
    }


def draw(rows: Rows, growth: Growth, path: Path) -> None:
    """Draw time, with its 20 % to 80 % band, and the rest, a column of plots for each regime."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    regimes = list(dict.fromkeys(row["regime"] for row in rows))
    figure, axes = plt.subplots(
        len(growth.measures), len(regimes),
        figsize=(5.5 * len(regimes), 3.6 * len(growth.measures)), squeeze=False, sharex=True,
    )  # fmt: skip
    for line, (measured, label) in zip(axes, growth.measures.items(), strict=True):
        found = slopes(rows, growth, measured)
        for axis, regime in zip(line, regimes, strict=True):
            for name in dict.fromkeys(row["loss"] for row in rows):
                mine = [row for row in rows if (row["loss"], row["regime"]) == (name, regime)]
                mine.sort(key=lambda row: float(row[growth.column]))
                x = [float(row[growth.column]) for row in mine]
                y = [float(row[measured]) or math.nan for row in mine]
                axis.plot(x, y, marker="o", label=f"{name}: slope {found[name, regime]:.2f}")
                if measured == "median_ms":
                    low, high = ([float(row[end]) for row in mine] for end in ("low_ms", "high_ms"))
                    axis.fill_between(x, low, high, alpha=0.2)
            axis.set(xscale="log", yscale="log", title=regime, ylabel=label)
            axis.grid(True, which="both", alpha=0.25)
            axis.legend(fontsize="x-small")
    for axis in axes[-1]:
        axis.set_xlabel(f"{growth.column} (slopes {_where(growth)})")
    threads = "1 thread" if rows[0]["threads"] == "1" else f"{rows[0]['threads']} threads"
    figure.suptitle(f"{growth.title}, {rows[0]['machine']}, {threads}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _where(growth: Growth) -> str:
    least, most = growth.fit
    return f"from {least:,} on" if most == math.inf else f"from {least:,} to {most:,}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", type=Path, default=results.RESULTS, help="folder of the rows")
    options = parser.parse_args(arguments)
    for growth in GROWTHS:
        path = options.rows / growth.file.format(options.device)
        if not path.exists() and growth.column == "processes" and options.device == "cuda":
            continue  # there is no such benchmark
        if not path.exists():
            print(f"{path} is not there; measure with: {growth.measure_with}", file=sys.stderr)
            return 1
        rows = latest(results.read(path), growth)
        draw(rows, growth, options.rows / growth.picture.format(options.device))
        print(f"against {growth.column}, {_where(growth)}")
        for measured in growth.measures:
            for (name, regime), exponent in slopes(rows, growth, measured).items():
                print(f"  {measured:<16} {name:<32} {regime:<8} {exponent:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
