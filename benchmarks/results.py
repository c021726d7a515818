"""Rows of results: appended to CSV files, printed as tables, drawn as plots."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a CSV file, row by row, so that an interruption loses nothing.

    Raises:
        ValueError: where the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        fresh = not path.exists() or path.stat().st_size == 0
        if not fresh:
            with path.open(newline="") as file:
                header = next(csv.reader(file))
            if header != list(row):
                raise ValueError(f"{path} has the columns {header}, a new row has {list(row)}")
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow(row)


def read(path: Path) -> list[dict[str, str]]:
    """Return all rows of a CSV file, oldest first."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def show(row: dict[str, Any]) -> str:
    """Return a row as a line for the terminal."""
    return (
        f"{row['loss']:<32} P {row['P']:>5}  N {row['N']:>9}  {row['regime']:<8}"
        f"{float(row['median_ms']):>10.2f} ms  {float(row['ratio']):>6.2f} x focal"
        f"{float(row['extra_memory_mb']):>9.1f} MB  loop {float(row['loop_ratio']):>8.1f} x"
    )


def plot(rows: list[dict[str, str]], against: str, title: str, path: Path) -> None:
    """Draw median times with their 20 % to 80 % band against N or P, one panel per regime."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    regimes = list(dict.fromkeys(row["regime"] for row in rows))
    figure, axes = plt.subplots(1, len(regimes), figsize=(5.5 * len(regimes), 4.2), squeeze=False)
    for axis, regime in zip(axes[0], regimes, strict=True):
        for name in dict.fromkeys(row["loss"] for row in rows):
            mine = [row for row in rows if row["loss"] == name and row["regime"] == regime]
            mine.sort(key=lambda row: float(row[against]))
            x = [float(row[against]) for row in mine]
            axis.plot(x, [float(row["median_ms"]) for row in mine], marker="o", label=name)
            low, high = ([float(row[end]) for row in mine] for end in ("low_ms", "high_ms"))
            axis.fill_between(x, low, high, alpha=0.2)
        axis.set(xscale="log", yscale="log", xlabel=against, title=regime)
        axis.set_ylabel("forward + backward, ms")
        axis.grid(True, which="both", alpha=0.25)
    axes[0][0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
