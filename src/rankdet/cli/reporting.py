"""The report of a run or an evaluation: one page, and the pictures beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankdet.data.errors import DataError
from rankdet.data.images import read_image_as
from rankdet.data.imageset import ImageSet, Record, to_coco
from rankdet.engine.files import write_atomically
from rankdet.eval import report
from rankdet.eval.score import Score
from rankdet.pictures import draw, sheet

PICTURES = 12


def write_report(
    folder: Path, images: ImageSet, result: Score, *, title: str, facts: Mapping[str, str]
) -> Path:
    """Write the report, and pictures of what was found, kept at the LRP-optimal thresholds.

    Args:
        folder: holds `detections.json`; gets `report.html`, `pictures.png` and `pictures/`.
        images: that were detected on.
        result: their score.
        title: of the page.
        facts: lines about the run.

    Returns:
        The file to look at first.

    Raises:
        RunError: a file cannot be written.
    """
    results = json.loads((folder / "detections.json").read_text(encoding="utf-8"))
    records = {record.id: record for record in images.records}

    def pixels(image_id: int) -> NDArray[np.uint8] | None:
        record = records[image_id]
        try:
            return read_image_as(record.path, record.width, record.height)
        except DataError:
            return None

    _draw_pictures(folder, images, result, results)
    page = folder / "report.html"
    run = report.RunForReport(folder.name, result, to_coco(images), results)
    write_atomically(
        page, lambda part: report.write_report(part, [run], images=pixels, title=title, facts=facts)
    )
    return page


def spread(records: tuple[Record, ...], count: int) -> list[Record]:
    """Return so many records, from those with few objects to those with many, evenly."""
    order = sorted(records, key=lambda record: (record.labels.size, record.id))
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in places]


def _draw_pictures(
    folder: Path, images: ImageSet, result: Score, results: list[dict[str, Any]]
) -> None:
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in results:
        found.setdefault(entry["image_id"], []).append(entry)
    thresholds = {entry.id: entry.threshold for entry in result.per_class}
    drawn = []
    shown = spread(images.records, PICTURES)
    for record, name in zip(shown, picture_names(shown), strict=True):
        kept = [
            entry
            for entry in found.get(record.id, [])
            if (least := thresholds[entry["category_id"]]) is not None and entry["score"] >= least
        ]
        try:
            image = read_image_as(record.path, record.width, record.height)
        except DataError:
            continue
        boxes = np.array([entry["bbox"] for entry in kept], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [images.category_ids.index(entry["category_id"]) for entry in kept]
        drawn.append(draw(image, boxes, labels, [e["score"] for e in kept], images.classes))
        _save(drawn[-1], folder / "pictures" / name)
    if drawn:
        _save(sheet(drawn, columns=4), folder / "pictures.png")


def picture_names(records: Sequence[Record]) -> list[str]:
    """Return the name of each image's picture: its own, with its id where several have the same."""
    counts = Counter(record.path.stem for record in records)
    return [
        f"{record.path.stem}-{record.id}.png"
        if counts[record.path.stem] > 1
        else f"{record.path.stem}.png"
        for record in records
    ]


def _save(picture: Any, path: Path) -> None:
    write_atomically(path, lambda part: picture.save(part, format="PNG"))
