"""Rows of results: appended to CSV files, printed as tables."""

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
