"""Holding images back for validation, the same ones on every machine."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

from rankdet.data.errors import DataError
from rankdet.data.imageset import ImageSet, Record
from rankdet.wording import counted


def hold_out(
    image_set: ImageSet, *, fraction: float = 0.2, seed: int = 0
) -> tuple[ImageSet, ImageSet]:
    """Split an image set into one to train on and one to validate on.

    The images are taken in the order of a hash of the seed and of their path below the root, so
    the split depends neither on the machine nor on the order of the records. An image whose class
    would not occur in training any more is passed over. Images that resemble each other (frames
    of one video) may be divided; where that matters, split by hand.

    Args:
        image_set: at least two images.
        fraction: of the images to hold back, in (0, 1).
        seed: another seed, another split.

    Returns:
        The two sets, "train" and "val", each in the order of the records; the problems stay with
        the first. At least one image is in each.

    Raises:
        DataError: If there are fewer than two images.
        ValueError: If the fraction is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    total = len(image_set)
    if total < 2:
        raise DataError(
            f"{image_set.root}: {counted(total, 'image')} cannot be split into training and"
            " validation; two are needed at least, or a folder with its own validation split"
        )
    wanted = min(max(round(fraction * total), 1), total - 1)
    records = image_set.records
    order = sorted(range(total), key=lambda place: _key(image_set, records[place], seed))
    classes = [frozenset(record.labels[~record.crowd].tolist()) for record in records]
    left = Counter(label for labels in classes for label in labels)
    held: set[int] = set()
    for place in order:
        if len(held) == wanted:
            break
        if all(left[label] > 1 for label in classes[place]):
            held.add(place)
            left.subtract(classes[place])
    if not held:
        held.add(order[0])
    train = image_set.subset((i for i in range(total) if i not in held), "train")
    return replace(train, problems=image_set.problems), image_set.subset(sorted(held), "val")


def _key(image_set: ImageSet, record: Record, seed: int) -> bytes:
    path, root = record.path, image_set.root
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return hashlib.sha256(f"{seed}/{name}".encode()).digest() + str(record.id).encode()
