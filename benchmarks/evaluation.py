"""Time the evaluation beside the two programs that compute COCO's AP.

Ours does everything together: AP, LRP, thresholds, by number of objects, by class, correlation. The
others compute AP alone. Each run is a fresh process that begins by importing its library and
reading both files. Evaluators and sizes take turns, round by round, so that whatever else the
machine does hits all of them alike. That all find the same AP is checked before a row is written.

Examples:
    python -m benchmarks.evaluation truth.json detections.json     .gz too; some minutes
    python -m benchmarks.evaluation                                on a made-up set
    python -m benchmarks.evaluation --images 100 --out /tmp/rows   a glance, not kept
"""

# Nothing heavy is imported up here: every process that is measured reads this module.

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import results

SEED = 0
CLASSES = 80
RIVAL = "faster-coco-eval, AP alone"
OURS = "rankdet, everything"

Records = list[dict[str, Any]]


class Run(NamedTuple):
    """What one process measured of itself."""

    seconds: float
    cpu_seconds: float  # user and system, of all threads
    peak_mb: float
    ap: float


class DataSet(NamedTuple):
    """Two plain JSON files, and what is in them."""

    name: str
    copies: int
    truth: Path
    found: Path
    images: int
    boxes: int
    detections: int


def rankdet(truth: str, found: str) -> float:
    from rankdet.eval.files import read_detections, read_ground_truth
    from rankdet.eval.score import score_of

    # As `rankdet score` does it, which keeps the records for its report.
    _records, columns = read_ground_truth(Path(truth))
    _results, instances = read_detections(Path(found), columns)
    ap = score_of(instances).AP
    return -1.0 if ap is None else ap


def faster_coco_eval(truth: str, found: str) -> float:
    from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]

    ground_truth = COCO(truth)
    return _stats(COCOeval_faster(ground_truth, ground_truth.loadRes(found), iouType="bbox"))


def pycocotools(truth: str, found: str) -> float:
    from pycocotools.coco import COCO  # type: ignore[import-untyped]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    ground_truth = COCO(truth)
    return _stats(COCOeval(ground_truth, ground_truth.loadRes(found), iouType="bbox"))


EVALUATORS: dict[str, Callable[[str, str], float]] = {
    RIVAL: faster_coco_eval,
    "pycocotools, AP alone": pycocotools,
    OURS: rankdet,
}


def rows(sets: Sequence[DataSet], *, rounds: int) -> Iterator[dict[str, Any]]:
    """Run all evaluators on the first set, the rival and ours on the others; yield a row for each.

    Args:
        sets: the set itself, then the same set several times over.
        rounds: how often each runs, 1 or more.

    Raises:
        ValueError: they do not agree on AP.
    """
    # Imported here for the reason given on top.
    from benchmarks.measure import origin

    runs: dict[tuple[DataSet, str], list[Run]] = {}
    for number in range(rounds):
        for data in sets:
            for name in EVALUATORS if data is sets[0] else (RIVAL, OURS):
                runs.setdefault((data, name), []).append(measured(name, data))
        print(f"round {number + 1} of {rounds} is done", flush=True)
    for (data, name), found in runs.items():
        expected = runs[data, RIVAL][0].ap
        if any(abs(run.ap - expected) > 1e-9 for run in found):
            raise ValueError(
                f"{name} finds an AP of {found[0].ap:.12f}, {RIVAL} one of {expected:.12f}"
            )
    for (data, name), found in runs.items():
        seconds = [run.seconds for run in found]
        # Of each round, not of the medians: the machine is equally fast within a round.
        ratios, cpu_ratios = _ratios(found, runs[data, RIVAL])
        growth, cpu_growth = _ratios(found, runs[sets[0], name])
        yield {
            "evaluator": name,
            "data": data.name,
            "copies": data.copies,
            "images": data.images,
            "boxes": data.boxes,
            "detections": data.detections,
            "rounds": rounds,
            "seconds": round(statistics.median(seconds), 3),
            "seconds_low": round(min(seconds), 3),
            "seconds_high": round(max(seconds), 3),
            "cpu_seconds": round(statistics.median(run.cpu_seconds for run in found), 3),
            "peak_mb": round(max(run.peak_mb for run in found), 1),
            "rival": RIVAL,
            "ratio": round(statistics.median(ratios), 4),
            "ratio_low": round(min(ratios), 4),
            "ratio_high": round(max(ratios), 4),
            "cpu_ratio": round(statistics.median(cpu_ratios), 4),
            # As a multiple of the same evaluator on the set itself; `copies` would be linear.
            "growth": round(statistics.median(growth), 4),
            "cpu_growth": round(statistics.median(cpu_growth), 4),
            "ap": round(found[0].ap, 9),
            **_versions(),
            **origin("cpu", SEED),
        }


def measured(name: str, data: DataSet) -> Run:
    """Evaluate in a fresh process and return what it measured.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.evaluation", "--once", name]
    done = subprocess.run(
        [*command, str(data.truth), str(data.found)],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed on {data.truth} and {data.found}:\n{done.stderr}")
    return Run(**json.loads(done.stdout))


def synthetic(images: int, seed: int = SEED) -> tuple[dict[str, Any], Records]:
    """Return made-up ground truth and detections: boxes moved, missed, doubled, misread, invented.

    About 7 objects and 29 detections in an image, of 80 classes, and scores of two digits so that
    many are equal.
    """
    draw = random.Random(seed)
    annotations: Records = []
    found: Records = []

    def box() -> list[float]:
        width, height = (round(math.exp(draw.uniform(2, 5.5)), 2) for _ in range(2))
        x, y = draw.uniform(0, 640 - width), draw.uniform(0, 480 - height)
        return [round(x, 2), round(y, 2), width, height]

    def detect(image: int, category: int, bbox: list[float], score: float) -> None:
        # All of them are made to lie in (0, 1).
        score = round(1 / (1 + math.exp(-score)), 2)
        found.append({"image_id": image, "category_id": category, "bbox": bbox, "score": score})

    for image in range(1, images + 1):
        for _ in range(draw.randint(0, 14)):
            category, bbox = draw.randint(1, CLASSES), box()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(draw.random() < 0.01),
                }
            )
            for _ in range(draw.choice((0, 1, 1, 1, 2))):
                moved = [
                    round(value + draw.gauss(0, 0.08) * side, 2)
                    for value, side in zip(bbox, bbox[2:] * 2, strict=True)
                ]
                moved[2:] = (max(side, 1.0) for side in moved[2:])
                seen = category if draw.random() < 0.9 else draw.randint(1, CLASSES)
                detect(image, seen, moved, draw.gauss(1, 1.5))
        for _ in range(draw.randint(0, 44)):
            detect(image, draw.randint(1, CLASSES), box(), draw.gauss(-2, 1.5))
    truth = {
        "images": [{"id": i, "width": 640, "height": 480} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)],
        "annotations": annotations,
    }
    return truth, found


def write(name: str, truth: dict[str, Any], found: Records, copies: int, folder: Path) -> DataSet:
    """Write a set so many times over, each copy with images of its own, as plain JSON."""
    image_step = 1 + max((image["id"] for image in truth["images"]), default=0)
    box_step = 1 + max((box["id"] for box in truth["annotations"]), default=0)
    whole: dict[str, Any] = {"categories": truth["categories"], "images": [], "annotations": []}
    detections: Records = []
    for copy in range(copies):
        by = copy * image_step
        whole["images"] += [{**each, "id": each["id"] + by} for each in truth["images"]]
        whole["annotations"] += [
            {**each, "id": each["id"] + copy * box_step, "image_id": each["image_id"] + by}
            for each in truth["annotations"]
        ]
        detections += [{**each, "image_id": each["image_id"] + by} for each in found]
    paths = folder / f"truth-{copies}.json", folder / f"detections-{copies}.json"
    for path, content in zip(paths, (whole, detections), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    counts = (len(whole["images"]), len(whole["annotations"]), len(detections))
    return DataSet(name, copies, *paths, *counts)


def show(row: dict[str, Any]) -> str:
    """Return a row as a line for the terminal."""
    return (
        f"{row['evaluator']:<28}{row['images']:>7} images{row['seconds']:>9.2f} s "
        f"({row['seconds_low']:.2f} to {row['seconds_high']:.2f}){row['peak_mb']:>8.0f} MB"
        f"{row['ratio']:>8.3f} x {row['rival']} (CPU time {row['cpu_ratio']:.3f})"
        f"{row['growth']:>7.2f} x itself on one copy (CPU time {row['cpu_growth']:.2f})"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", help="COCO ground truth and results; made up if absent")
    parser.add_argument("--images", type=int, default=2000, help="of the made-up set")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each evaluator and size")
    parser.add_argument(
        "--copies", type=int, nargs="*", default=[2, 4, 8], help="also the set so many times"
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the rows")
    parser.add_argument("--once", choices=list(EVALUATORS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if len(options.files) not in (0, 2):
        parser.error("name the ground truth and the detections, or neither")
    if min(options.rounds, options.images, *options.copies, 1) < 1:
        parser.error("--rounds, --images and --copies must be 1 or more")
    if options.once:
        print(json.dumps(_once(options.once, *options.files)._asdict()))
        return 0
    if options.files:
        truth, found = (_read(path) for path in options.files)
        name = Path(options.files[0]).name
    else:
        truth, found = synthetic(options.images)
        name = "synthetic"
    with tempfile.TemporaryDirectory() as folder:
        sizes = dict.fromkeys((1, *options.copies))
        sets = [write(name, truth, found, copies, Path(folder)) for copies in sizes]
        del truth, found
        for row in rows(sets, rounds=options.rounds):
            results.append(options.out / "evaluation-cpu.csv", [row])
            print(show(row), flush=True)
    print(f"rows are in {options.out}")
    return 0


def _ratios(found: list[Run], others: list[Run]) -> tuple[list[float], list[float]]:
    """Return the ratios of seconds and of CPU seconds, round by round."""
    both = list(zip(found, others, strict=True))
    return [a.seconds / b.seconds for a, b in both], [
        a.cpu_seconds / b.cpu_seconds for a, b in both
    ]


def _once(name: str, truth: str, found: str) -> Run:
    cpu, start = time.process_time(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # both programs print a table
        ap = EVALUATORS[name](truth, found)
    return Run(time.perf_counter() - start, time.process_time() - cpu, _peak_mb(), ap)


def _peak_mb() -> float:
    # Not `getrusage`: its peak begins with that of the process which started this one.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")  # not Linux
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / 1e6


def _stats(evaluation: Any) -> float:
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def _read(path: str) -> Any:
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name.replace("-", "_"): version(name)
            for name in ("numpy", "faster-coco-eval", "pycocotools")}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
