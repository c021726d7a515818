"""Using a trained model from Python: `rankdet.load`, and what it returns.

Nothing is imported before it is needed, so that whoever uses only the losses needs none of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args

import torch
from torch import Tensor

from rankdet.wording import counted

if TYPE_CHECKING:
    from rankdet.cli.common import Model as Loaded
    from rankdet.data.batches import TestBatch, TestSample
    from rankdet.engine.checkpoint import ModelCard
    from rankdet.inference_images import Source
    from rankdet.inference_results import DetectionList, ImageDetections

Thresholds = Literal["optimal"] | float | Mapping[str, float] | None
Unreadable = Literal["raise", "skip"]

# From so many images on a bar shows how far it is, where somebody can see it.
_LONG = 20
# So many batches of images are sorted by size before they are looked at.
_BATCHES_AHEAD = 8


def load(model: str | os.PathLike[str], *, device: str | torch.device = "auto") -> Model:
    """Load a trained model, ready to detect objects.

    Args:
        model: ``best.safetensors`` of a run, or the folder of the run.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"`` is a GPU if there is one.

    Returns:
        The model, in evaluation mode.

    Raises:
        RunError: there is no such file, it is no model of ours or damaged, or the device cannot
            be used.
        ModuleNotFoundError: the extra ``train`` is not installed.

    Example:
        ::

            model = rankdet.load("run/best.safetensors")
            detections = model.predict(["a.jpg", image_array])
            pictures = detections.draw()
    """
    try:
        from rankdet.cli.common import load as read_model

        usable = _usable(device)
        return Model(read_model(Path(model), str(usable)))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"rankdet.load needs what training needs, and {error.name} is not installed: "
            "pip install rankdet",
            name=error.name,
        ) from error


class Model:
    """A trained detector with all that it takes to use it; made by `load`."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def __repr__(self) -> str:
        """Say what it is."""
        classes = counted(len(self.classes), "class", "classes")
        return f"<rankdet model {self._loaded.recipe.name}, {classes}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """C names of classes, in the order of the labels."""
        return self.card.classes

    @property
    def card(self) -> ModelCard:
        """What the file says of the model: classes, recipe, thresholds and numbers."""
        return self._loaded.card

    @property
    def thresholds(self) -> dict[str, float | None]:
        """For each class the LRP-optimal least score; None where the evaluation found none."""
        own = self.card.thresholds or (None,) * len(self.classes)
        return dict(zip(self.classes, own, strict=True))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        place: Tensor = next(self._loaded.detector.parameters())
        return place.device

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device, and return it.

        Raises:
            RunError: the device cannot be used.
        """
        self._loaded.detector.to(_usable(device))
        return self

    def predict(
        self,
        images: Source | Iterable[Source],
        *,
        thresholds: Thresholds = "optimal",
        batch: int = 1,
        device: str | torch.device | None = None,
        tta: bool = False,
        unreadable: Unreadable = "raise",
        progress: bool | None = None,
    ) -> DetectionList:
        """Detect objects, as `rankdet predict` does.

        Args:
            images: paths of images, Pillow images, or arrays [H, W, 3] of uint8, RGB; a single
                one is taken for a list of one. A Pillow image is turned upright and made RGB as a
                file is. Pillow images and arrays are kept for drawing, not copied.
            thresholds: least scores: ``"optimal"`` for those that the model carries for each
                class (all boxes of a class that has none); a number for all classes; numbers by
                class, the others staying as the model says; or None for all boxes, at most as
                many as the recipe says (100).
            batch: images looked at together, 1 or more. Only images of the same size after
                resizing are put together, so that none is padded for its neighbours' sake. With 1
                the numbers are those of `rankdet predict` to the last digit; with more they may
                differ in the last digits.
            device: move the model there first; None: where it is.
            tta: look at each image in several sizes, and mirrored if the model was trained so.
            unreadable: ``"raise"`` an error for an image that cannot be read, or ``"skip"`` it
                and note why in the result's ``unreadable``.
            progress: whether a bar shows how far it is; None: for 20 images and more, on a
                terminal.

        Returns:
            The detections of each image, in the order given.

        Raises:
            DataError: an image cannot be read, or is no [H, W, 3] array of uint8.
            TypeError: something is no image at all.
            ValueError: a setting is out of its range, or there is no class of that name.
            RunError: the device cannot be used.
        """
        from rankdet.inference_images import as_list

        if batch < 1:
            raise ValueError(f"batch must be 1 or more, got {batch}")
        if unreadable not in get_args(Unreadable):
            raise ValueError(f"unreadable must be 'raise' or 'skip', got {unreadable!r}")
        least = self._least(thresholds)
        sources = as_list(images)
        if device is not None:
            self.to(device)
        return self._detect(
            sources, least, batch, tta, skip=unreadable == "skip", progress=progress
        )

    def _detect(
        self,
        sources: list[Source],
        least: Tensor,
        batch: int,
        tta: bool,
        *,
        skip: bool,
        progress: bool | None,
    ) -> DetectionList:
        from rich.progress import Progress

        from rankdet.config.build_model import build_post_process
        from rankdet.engine.detecting import detect
        from rankdet.inference_results import DetectionList, ImageDetections

        found: dict[int, ImageDetections] = {}
        bad: dict[int, str] = {}
        sizes: dict[int, tuple[int, int]] = {}
        shown = Progress(transient=True)
        if progress is None:
            seen = shown.console.is_terminal or shown.console.is_jupyter
            progress = len(sources) >= _LONG and seen
        shown.disable = not progress
        with shown:
            task = shown.add_task("detecting", total=len(sources))
            for index, detections in detect(
                self._loaded.detector,
                build_post_process(self._loaded.recipe),
                self._batches(sources, batch, sizes, bad if skip else None),
                device=self.device,
                look=self._loaded.look() if tta else None,
            ):
                kept = detections.scores >= least[detections.labels]
                height, width = sizes[index]
                found[index] = ImageDetections(
                    source=sources[index],
                    width=width,
                    height=height,
                    boxes=detections.boxes[kept].float().numpy(),
                    scores=detections.scores[kept].float().numpy(),
                    labels=detections.labels[kept].numpy(),
                    classes=self.classes,
                    category_ids=self.card.category_ids,
                )
                shown.update(task, completed=len(found) + len(bad))
        return DetectionList(
            [found[index] for index in sorted(found)], [bad[index] for index in sorted(bad)]
        )

    def _batches(
        self,
        sources: Sequence[Source],
        batch: int,
        sizes: dict[int, tuple[int, int]],
        bad: dict[int, str] | None,
    ) -> Iterator[TestBatch]:
        """Yield the images in batches of one padded size; note sizes and what cannot be read."""
        from rankdet.config.assemble import divisor_of
        from rankdet.config.build import build_test_resize
        from rankdet.data.batches import TestSample, collate_test
        from rankdet.data.errors import DataError
        from rankdet.inference_images import read

        resize, divisor = build_test_resize(self._loaded.recipe), divisor_of(self._loaded.recipe)
        ahead = 1 if batch == 1 else batch * _BATCHES_AHEAD
        for start in range(0, len(sources), ahead):
            alike: dict[tuple[int, ...], list[TestSample]] = {}
            for index in range(start, min(start + ahead, len(sources))):
                try:
                    image = read(sources[index], index)
                except DataError as error:
                    if bad is None:
                        raise
                    bad[index] = str(error)
                    continue
                sizes[index] = image.shape[:2]
                resized, scale = resize(torch.from_numpy(image).permute(2, 0, 1))
                padded = tuple(-(-side // divisor) for side in resized.shape[-2:])
                sample = TestSample(resized, index, scale, sizes[index])
                alike.setdefault(padded, []).append(sample)
            for samples in alike.values():
                for first in range(0, len(samples), batch):
                    yield collate_test(samples[first : first + batch], divisor=divisor)

    def _least(self, thresholds: Thresholds) -> Tensor:
        """Return the least score of each class, [C]; -1 for none."""
        own = self.thresholds
        if isinstance(thresholds, Mapping):
            unknown = [name for name in thresholds if name not in own]
            if unknown:
                known = ", ".join(self.classes[:8]) + (", ..." if len(own) > 8 else "")
                raise ValueError(f"thresholds: the model has no class {unknown[0]!r}, but {known}")
            own |= thresholds
        elif thresholds is None or isinstance(thresholds, (int, float)):
            own = dict.fromkeys(own, thresholds)
        elif thresholds != "optimal":
            raise ValueError(
                f"thresholds must be 'optimal', a number, numbers by class or None, got "
                f"{thresholds!r}"
            )
        for name, value in own.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"thresholds must be finite numbers, got {value} for {name!r}")
        return torch.tensor([-1.0 if value is None else value for value in own.values()])


def _usable(device: str | torch.device) -> torch.device:
    """Return a device that works here.

    Raises:
        RunError: it does not.
    """
    from rankdet.engine.files import RunError

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise RunError(f"device {str(device)!r} cannot be used: {reason}") from error
