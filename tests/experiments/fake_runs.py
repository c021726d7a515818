"""Folders that look like finished runs, with the numbers a test wants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from rankdet.config.load import dump
from rankdet.engine.progress import MetricsFile
from rankdet.eval.score import Score, score
from rankdet.experiments.folders import Images
from rankdet.experiments.table import Run

IMAGES = Images(Path("/data/cats"), training=100, validation=2, objects=3, classes=2)


@cache
def some_score() -> Score:
    """Return the score of two images, with 1 and 2 objects, found perfectly."""
    boxes = [(1, 1, [5, 5, 20, 20]), (2, 1, [5, 5, 20, 20]), (2, 2, [40, 40, 9, 9])]
    found = [{"image_id": i, "category_id": c, "bbox": box} for i, c, box in boxes]
    truth = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "tail"}],
        "annotations": found,
    }
    return score(truth, [{**each, "score": 0.9} for each in found])


def write_run(
    folder: Path,
    run: Run,
    *,
    steps: int = 1000,
    ap: Sequence[float] = (0.4,),
    olrp: float = 0.7,
    by_count: Mapping[int, tuple[int, float]] | None = None,
    images: Images = IMAGES,
    begun: bool = False,
    step_seconds: float = 0.5,
) -> Path:
    """Write the folder of a run.

    Args:
        folder: of the run.
        run: whose recipe it has.
        steps: that it did.
        ap: at evenly spread evaluations; the last is its score.
        olrp: at the end; the parts are a tenth, a fifth and two fifths of it.
        by_count: images and AP by the least number of objects of a bin; others have none.
        images: of its data.
        begun: leave out score and report.
        step_seconds: of training.
    """
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(run.wanted))
    settings = {"data": str(images.source), "commit": "abc", "rankdet": "0.1", "python": "3.11",
                "platform": "Linux", "cpu_threads": 2, "gpus": [], "packages": {"torch": "2.15"},
                "command": "rankdet train", "started": "2026-01-01"}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(settings))
    metrics = MetricsFile(folder / "metrics.csv", step=0)
    parts = {"oLRP": olrp, "oLRP_loc": olrp / 10, "oLRP_fp": olrp / 5, "oLRP_fn": 2 * olrp / 5}
    every = steps // len(ap)
    for number, value in enumerate(ap, start=1):
        step = number * every
        for note in (step - every // 2, step):
            metrics.add({"step": note, "seconds": note * step_seconds, "lr": 0.1, "loss": 1.0})
        metrics.add({"step": step, "seconds": step * step_seconds, "AP": value, **parts})
    if begun:
        return folder
    base = some_score()
    bins = tuple(
        replace(each, images=0, objects=0, AP=None, AP50=None)
        if each.low not in (by_count or {})
        else replace(each, images=(by_count or {})[each.low][0], AP=(by_count or {})[each.low][1])
        for each in base.by_count
    )
    classes = tuple(replace(base.per_class[0], id=i, name=f"class {i}")
                    for i in range(1, images.classes + 1))  # fmt: skip
    made = replace(
        base,
        AP=ap[-1],
        oLRP=parts["oLRP"],
        by_count=bins,
        images=images.validation,
        objects=images.objects,
        per_class=classes,
    )
    (folder / "score.json").write_text(json.dumps(made.to_json()))
    (folder / "report.html").write_text("<html></html>")
    return folder
