"""A data set in memory: records of images with their boxes, and what was wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankdet.data.errors import DataError


@dataclass(frozen=True)
class Problem:
    """Something in the data that was repaired or left out rather than used as it is."""

    file: Path
    """The file that says it: annotations, or the image itself."""
    record: str
    """Which entry of the file, in words: "annotation 17 of street.jpg"."""
    message: str
    """What is wrong in general ("box reaches beyond the image; clipped"): equal for all faults
    of one kind, so that they can be counted."""
    value: str = ""
    """The value of this record, as the file has it."""

    def __str__(self) -> str:
        value = f" {self.value}" if self.value else ""
        return f"{self.file}: {self.record}{value}: {self.message}"


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its G boxes; the image itself stays on the disk."""

    path: Path
    id: int
    """Unique within the image set; COCO's image id where there is one."""
    width: int
    """In pixels, of the image that the boxes refer to (see `rankdet.data.images.read_image_as`)."""
    height: int
    boxes: NDArray[np.float32]
    """[G, 4] xyxy in pixels, within the image, of positive width and height."""
    labels: NDArray[np.int64]
    """[G] class 0 .. C-1: places in `ImageSet.classes`."""
    crowd: NDArray[np.bool_]
    """[G] a region of objects nobody boxed one by one."""
    areas: NDArray[np.float64]
    """[G] in square pixels: the annotated area (COCO: of the mask), else that of the box."""

    @classmethod
    def empty(cls, path: Path, image_id: int, width: int, height: int) -> Record:
        """Return the record of an image without objects."""
        return cls(
            path=path,
            id=image_id,
            width=width,
            height=height,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            crowd=np.zeros(0, np.bool_),
            areas=np.zeros(0, np.float64),
        )


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images of one split with their boxes, classes and problems."""

    name: str
    """The split: "train", "val", "test"."""
    root: Path
    """The folder the data were found in."""
    records: tuple[Record, ...]
    classes: tuple[str, ...]
    """The C names, in the order of the labels."""
    category_ids: tuple[int, ...]
    """The C ids that the file has for the classes; gaps are allowed."""
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.category_ids):
            raise ValueError(
                f"{len(self.classes)} classes need as many category ids,"
                f" got {len(self.category_ids)}"
            )

    def __len__(self) -> int:
        return len(self.records)

    def subset(self, indices: Iterable[int], name: str) -> ImageSet:
        """Return some of the records under another name, without the problems.

        Args:
            indices: places in `records`, in the order wanted.
            name: of the new set.
        """
        chosen = tuple(self.records[i] for i in indices)
        return replace(self, name=name, records=chosen, problems=())


def to_coco(image_set: ImageSet) -> dict[str, Any]:
    """Return the image set as the content of a COCO instances file.

    Image ids and category ids are the original ones, annotation ids count from 1 in the order of
    the records. Crowd regions have ``iscrowd`` 1. The boxes are those in memory: clipped to the
    image, faulty ones left out.

    Args:
        image_set: what to write down.

    Returns:
        A dictionary of plain Python values with ``images``, ``annotations`` and ``categories``.
        ``file_name`` is relative to the root of the set where the image lies below it.

    Raises:
        DataError: If two records have the same id.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    seen: dict[int, Path] = {}
    for record in image_set.records:
        if record.id in seen:
            raise DataError(
                f"{record.path} and {seen[record.id]} both have the image id {record.id};"
                " ids must be unique within a split"
            )
        seen[record.id] = record.path
        below = record.path.is_relative_to(image_set.root)
        path = record.path.relative_to(image_set.root) if below else record.path
        images.append(
            {
                "id": record.id,
                "file_name": path.as_posix(),
                "width": record.width,
                "height": record.height,
            }
        )
        corners = record.boxes.astype(np.float64)
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        for box, label, crowd, area in zip(
            sides.tolist(),
            record.labels.tolist(),
            record.crowd.tolist(),
            record.areas.tolist(),
            strict=True,
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": image_set.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(image_set.category_ids, image_set.classes, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
