"""Whose scores, whose boxes: AP and LRP of one model's scores on another's boxes.

Two dense detectors with the same priors predict for every image; the scores of the one are put to
the boxes of the other, and what comes out is evaluated. If a loss ranks better and another
localises better, this tells them apart.

Examples:
    python -m benchmarks.exchange runs/alrp runs/focal --data digits/
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure, results
from rankdet.cli.common import Voice, find_data, load, relabel
from rankdet.cli.running import splits
from rankdet.config.assemble import Hardware, testing_loader, workers_for
from rankdet.config.build_model import build_post_process
from rankdet.data.imageset import to_coco
from rankdet.engine.detecting import detect, to_results
from rankdet.eval.score import score
from rankdet.structures import Predictions


class Exchanged(nn.Module):
    """Predicts the scores of one detector and the boxes of another."""

    def __init__(self, scores: nn.Module, boxes: nn.Module) -> None:
        super().__init__()
        self.scores, self.boxes = scores, boxes

    def forward(self, images: Tensor) -> Predictions:
        """Return the predictions of both, put together.

        Raises:
            ValueError: their priors differ.
        """
        scores: Predictions = self.scores(images)
        if self.scores is self.boxes:
            return scores
        boxes: Predictions = self.boxes(images)
        if scores.logits.shape != boxes.logits.shape or scores.branches or boxes.branches:
            raise ValueError(
                "scores and boxes can be exchanged between detectors with the same priors and "
                f"classes and without branches; got logits of {tuple(scores.logits.shape)} and "
                f"{tuple(boxes.logits.shape)}, branches {[*scores.branches, *boxes.branches]}"
            )
        return replace(boxes, logits=scores.logits)


def rows(runs: list[Path], data: Path) -> list[dict[str, Any]]:
    """Evaluate all pairs on the validation images; return a row for each."""
    models = {run.name: load(run, "cpu") for run in runs}
    first = next(iter(models.values()))
    images = splits(find_data(str(data), Voice(quiet=True)), first.recipe, Voice(quiet=True))[1]
    images = relabel(images, first.card, str(data))
    workers = workers_for(first.recipe, Hardware(accelerator="cpu"))
    loader = testing_loader(first.recipe, images, workers=workers)
    post_process = build_post_process(first.recipe)
    found = []
    for one, other in product(models, models):
        detector = Exchanged(models[one].detector, models[other].detector)
        with torch.inference_mode():
            detections = [
                result
                for image_id, each in detect(detector, post_process, loader,
                                             device=torch.device("cpu"))
                for result in to_results(image_id, each, first.card.category_ids)
            ]  # fmt: skip
        scored = score(to_coco(images), detections)
        pearson = scored.correlation.pearson if scored.correlation else None
        numbers = {"AP": scored.AP, "AP50": scored.AP50, "AP75": scored.AP75, "oLRP": scored.oLRP,
                   "oLRP_loc": scored.oLRP_loc, "oLRP_fp": scored.oLRP_fp,
                   "oLRP_fn": scored.oLRP_fn, "correlation": pearson}  # fmt: skip
        found.append(
            {
                "scores": one,
                "boxes": other,
                "data": data.resolve().name,
                "images": len(images),
                **{key: "" if value is None else round(value, 5) for key, value in numbers.items()},
                **measure.origin("cpu", 0),
            }
        )
        print(f"scores {one:<24} boxes {other:<24} AP {numbers['AP']:.4f}  "
              f"oLRP {numbers['oLRP']:.4f}", flush=True)  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exchange",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of `rankdet train`")
    parser.add_argument("--data", type=Path, required=True, help="images and annotations")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the rows")
    options = parser.parse_args(arguments)
    results.append(options.out / "exchange-cpu.csv", rows(options.runs, options.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
