"""The report of a run or an evaluation: one page, and the pictures beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankdet.data.errors import DataError
from rankdet.data.images import read_image_as
from rankdet.data.imageset import ImageSet, Record
from rankdet.engine.files import write_atomically
from rankdet.pictures import draw, sheet

if TYPE_CHECKING:
    from rankdet.eval.score import Score

PICTURES = 12


def write_report(
    folder: Path, images: ImageSet, result: Score, *, facts: Mapping[str, str] | None = None
) -> Path:
    """Write pictures of detections, kept at the LRP-optimal thresholds.

    Args:
        folder: holds `detections.json`.
        images: that were detected on.
        result: their score.
        facts: lines about the run.

    Returns:
        The file to look at first.
    """
    del facts
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in json.loads((folder / "detections.json").read_text(encoding="utf-8")):
        found.setdefault(entry["image_id"], []).append(entry)
    thresholds = {entry.id: entry.threshold for entry in result.per_class}
    drawn = []
    for record in spread(images.records, PICTURES):
        kept = [
            entry
            for entry in found.get(record.id, [])
            if entry["score"] >= (thresholds.get(entry["category_id"]) or np.inf)
        ]
        try:
            image = read_image_as(record.path, record.width, record.height)
        except DataError:
            continue
        boxes = np.array([entry["bbox"] for entry in kept], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [images.category_ids.index(entry["category_id"]) for entry in kept]
        scores = [entry["score"] for entry in kept]
        picture = draw(image, boxes, labels, scores, images.classes)
        drawn.append(picture)
        write_atomically(
            folder / "pictures" / f"{record.path.stem}.png",
            lambda part, picture=picture: picture.save(part, format="PNG"),  # type: ignore[misc]
        )
    whole = sheet(drawn, columns=4)
    write_atomically(folder / "pictures.png", lambda part: whole.save(part, format="PNG"))
    return folder / "pictures.png"


def spread(records: tuple[Record, ...], count: int) -> list[Record]:
    """Return so many records, from those with few objects to those with many, evenly."""
    order = sorted(records, key=lambda record: (record.labels.size, record.id))
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in places]
