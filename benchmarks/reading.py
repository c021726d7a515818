"""How many training images of a recipe one CPU core reads and augments in a second.

Examples:
    python -m benchmarks.reading coco/ --recipe retinanet_r50_alrp
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks import measure, results
from benchmarks.losses import Row
from rankdet.config.build import build_augment
from rankdet.config.load import load_recipe
from rankdet.data.discover import discover
from rankdet.data.loader import TrainingSet


def row(data: Path, name: str, *, images: int, rounds: int) -> Row:
    """Read images in one thread, from the files each time; a round is an epoch of them."""
    recipe = load_recipe(name)
    torch.set_num_threads(1)
    found = discover(data).splits["train"]
    found = found.subset(range(min(images, len(found))), "train")
    reading = TrainingSet(found, build_augment(recipe), seed=0, cache_bytes=0)
    times = []
    for epoch in range(rounds + 1):
        start = time.perf_counter()
        for index in range(len(reading)):
            _ = reading[epoch, index]
        times.append((time.perf_counter() - start) / len(reading))
    each = times[1:]  # the first fetched the files
    pixels = statistics.fmean(record.width * record.height for record in found.records)
    return {
        "recipe": recipe.name,
        "augment": recipe.data.augment.kind,
        "size": recipe.data.train_size,
        "data": data.resolve().name,
        "images": len(found),
        "mean_megapixels": round(pixels / 1e6, 3),
        "rounds": rounds,
        "ms_per_image": round(1e3 * statistics.median(each), 2),
        "least": round(1e3 * min(each), 2),
        "most": round(1e3 * max(each), 2),
        "images_per_second": round(1 / statistics.median(each), 1),
        **measure.origin("cpu", 0),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="folder of images with annotations")
    parser.add_argument("--recipe", default="retinanet_r50_alrp")
    parser.add_argument("--images", type=int, default=200, help="so many of them at most (200)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the row")
    options = parser.parse_args(arguments)
    found = row(options.data, options.recipe, images=options.images, rounds=options.rounds)
    results.append(options.out / "reading-cpu.csv", [found])
    print(f"{found['recipe']} on {found['data']}: {found['ms_per_image']} ms an image, "
          f"{found['images_per_second']} images per second on one core")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
