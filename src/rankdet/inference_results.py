"""What was found, in the forms that other tools take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rankdet.engine.detecting import Result, to_results
from rankdet.inference_images import Source, read
from rankdet.pictures import draw
from rankdet.structures import Detections
from rankdet.wording import counted

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """The objects of one image, best first; D of them."""

    source: Source = field(repr=False)
    """The image as it was given."""
    width: int
    """Of the image as displayed, in pixels."""
    height: int
    boxes: NDArray[np.float32] = field(repr=False)
    """[D, 4] xyxy in pixels of the image."""
    scores: NDArray[np.float32] = field(repr=False)
    """[D] in [0, 1], descending."""
    labels: NDArray[np.int64] = field(repr=False)
    """[D] class 0 .. C-1."""
    classes: tuple[str, ...] = field(repr=False)
    """C names."""
    category_ids: tuple[int, ...] = field(repr=False)
    """What the annotations that the model was trained on call these classes."""

    def __len__(self) -> int:
        """Return D."""
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        """The class of each object."""
        return [self.classes[label] for label in self.labels]

    def to_supervision(self) -> supervision.Detections:
        """Return the objects as `supervision.Detections`, class names under ``class_name``.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        try:
            from supervision import Detections as Theirs
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_supervision needs the library supervision, which is not installed: "
                "pip install supervision, or 'rankdet[supervision]'",
                name=error.name,
            ) from error
        return Theirs(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )

    def to_coco(self, image_id: int) -> list[Result]:
        """Return the objects as entries of a COCO results list.

        Args:
            image_id: of the image in the annotations.

        Returns:
            ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels, to a
            thousandth) and ``score`` of each object.
        """
        found = Detections(*map(torch.from_numpy, (self.boxes, self.scores, self.labels)))
        return to_results(image_id, found, self.category_ids)

    def draw(self, *, smallest: int = 640) -> Image.Image:
        """Return a picture of the image with its boxes; a file is read again for it.

        Args:
            smallest: a small image is enlarged by a whole number until its longer side has at
                least so many pixels; 1 for never.

        Raises:
            DataError: the file can no longer be read.
        """
        image = read(self.source, 0)
        return draw(image, self.boxes, self.labels, self.scores, self.classes, smallest=smallest)


class DetectionList(Sequence[ImageDetections]):
    """The detections of several images, in the order in which these were given.

    Args:
        items: of each image that could be read.
        unreadable: why each of the others could not.
    """

    def __init__(self, items: Sequence[ImageDetections], unreadable: Sequence[str] = ()) -> None:
        self._items = tuple(items)
        self.unreadable = tuple(unreadable)

    @overload
    def __getitem__(self, index: int) -> ImageDetections: ...
    @overload
    def __getitem__(self, index: slice) -> DetectionList: ...
    def __getitem__(self, index: int | slice) -> ImageDetections | DetectionList:
        """Return the detections of one image, or of several."""
        if isinstance(index, slice):
            return DetectionList(self._items[index])
        return self._items[index]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._items)

    def __repr__(self) -> str:
        """Say how much was found."""
        return (
            f"<{counted(sum(map(len, self._items)), 'detection')} in {counted(len(self), 'image')}>"
        )

    def to_supervision(self) -> list[supervision.Detections]:
        """Return a `supervision.Detections` for each image.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        return [each.to_supervision() for each in self._items]

    def to_coco(self, image_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return the detections of all images as one COCO results list.

        Args:
            image_ids: of each image in the annotations; None: their places, from 0.

        Raises:
            ValueError: there are not as many ids as images.
        """
        ids = range(len(self)) if image_ids is None else image_ids
        if len(ids) != len(self):
            raise ValueError(f"image_ids must be {len(self)}, one for each image, got {len(ids)}")
        return [
            result
            for image_id, each in zip(ids, self._items, strict=True)
            for result in each.to_coco(image_id)
        ]

    def draw(self, *, smallest: int = 640) -> list[Image.Image]:
        """Return a picture of each image with its boxes; see `ImageDetections.draw`.

        Raises:
            DataError: a file can no longer be read.
        """
        return [each.draw(smallest=smallest) for each in self._items]
