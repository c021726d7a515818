"""Train small detectors on given folders through the command a user types; a row for each run.

Examples:
    python -m benchmarks.first_runs blood/ boards/ --steps 1000 --jobs 2
    python -m benchmarks.first_runs blood/ --recipes atss_alrp-small --seeds 0 1 2

Runs are folders below --work; a finished one is not run again, so an interruption costs one run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import measure, results

RECIPES = ("atss_alrp-small", "atss_focal-small", "atss_focal_giou-small")
NUMBERS = ("AP", "AP50", "AP75", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn")


def command(data: Path, recipe: str, seed: int, steps: int, changes: list[str]) -> list[str]:
    """Return what a user would type, without the folder of the run."""
    sets = [f"schedule.steps={steps}", f"training.seed={seed}", *changes]
    typed = ["rankdet", "train", "--data", str(data), "--recipe", recipe]
    return [*typed, *(part for each in sets for part in ("--set", each))]


def run(typed: list[str], folder: Path, threads: int) -> None:
    """Run the command in its folder unless it is finished there; resume it where it was begun."""
    state = folder / "score.json"
    if state.is_file() and (folder / "report.html").is_file():
        return
    begun = (folder / "recipe.yaml").is_file()
    rest = ["train", "--resume", str(folder)] if begun else [*typed[1:], "--out", str(folder)]
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        subprocess.run(
            [sys.executable, "-m", "rankdet.cli.main", *rest],
            check=True,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )


def row(folder: Path, typed: list[str], data: str, recipe: str, seed: int) -> dict[str, Any]:
    """Return what came out of a finished run."""
    score = json.loads((folder / "score.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {
        "data": data,
        "recipe": recipe,
        "steps": last["step"],
        **{name: None if score[name] is None else round(score[name], 4) for name in NUMBERS},
        "images": score["images"],
        "training_s": round(float(last["seconds"]), 1),
        "command": " ".join(typed),
        **measure.origin("cpu", seed),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run all, two at a time if asked to, and write the rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--work", type=Path, default=Path("runs/first"))
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    options = parser.parse_args(arguments)
    threads = max((os.cpu_count() or 1) // options.jobs, 1)

    writing = threading.Lock()

    def one(what: tuple[Path, str, int]) -> None:
        data, recipe, seed = what
        name = data.resolve().name
        folder = options.work / f"{name}-{recipe}-{options.steps}-{seed}"
        # The row's command names the data by its folder alone: where it lies is nobody's business.
        shown = command(Path(name), recipe, seed, options.steps, options.set)
        run(command(data, recipe, seed, options.steps, options.set), folder, threads)
        found = {**row(folder, shown, name, recipe, seed), "threads": str(threads)}
        with writing:
            results.append(options.out / "first-runs-cpu.csv", [found])
        print(f"{name:<12}{recipe:<26}AP {found['AP']}  oLRP {found['oLRP']}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, product(options.data, options.recipes, options.seeds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
