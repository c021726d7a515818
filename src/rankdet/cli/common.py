"""What several verbs share: talking to the user, finding the data, loading a model."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankdet.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from rankdet.config.recipe import Recipe
    from rankdet.data.discover import DataFolder
    from rankdet.data.imageset import ImageSet
    from rankdet.engine.checkpoint import ModelCard
    from rankdet.engine.detecting import Look
    from rankdet.engine.single import Predictor


class Voice:
    """Says things on the terminal and, once a run has a folder, in its `log.txt` as well.

    Args:
        quiet: say nothing, as all processes of a run but the first.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console

        self.console: Console = Console(quiet=quiet, highlight=False)
        self.quiet = quiet
        self._log: Path | None = None
        self._waiting: list[str] = []

    def say(self, text: str = "") -> None:
        """Print a line, with rich's markup."""
        from rich.text import Text

        self.console.print(text, soft_wrap=True)
        self._note(Text.from_markup(text).plain)

    def show(self, renderable: Any) -> None:
        """Print a table, and note it."""
        from rich.console import Console

        self.console.print(renderable)
        plain = Console(width=110, color_system=None, force_terminal=False)
        with plain.capture() as captured:
            plain.print(renderable)
        self._note(captured.get().rstrip())

    def warn(self, text: str) -> None:
        """Print a line that should be noticed."""
        self.say(f"[yellow]note:[/yellow] {text}")

    def log_to(self, path: Path) -> None:
        """Begin to note everything in a file, with what has been said so far."""
        self._log = path
        for line in self._waiting:
            self._note(line)
        self._waiting = []

    def _note(self, text: str) -> None:
        if self.quiet:
            return
        if self._log is None:
            self._waiting.append(text)
            return
        from rankdet.engine.files import append_text

        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        append_text(self._log, "".join(f"{now}  {line}\n" for line in text.split("\n")))


def plain(text: object) -> str:
    """Return text that rich prints as it is, though it may look like markup."""
    return str(text).replace("[", r"\[")


def count_from(least: int) -> Callable[[str], int]:
    """Return what reads a whole number of at least so much from the command line."""

    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number, {least} or more, got {text!r}"
            )
        return int(text)

    return count


def path_text(text: str) -> str:
    """Read a path from the command line: any but an empty one, which would be the current folder.

    An empty text is most often a variable of a shell that has no value.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a file or folder, got an empty text")
    return text


@dataclass(frozen=True)
class Model:
    """A trained detector, ready to use."""

    detector: Any
    card: ModelCard
    recipe: Recipe
    path: Path

    def predictor(self, threshold: float | None = None, *, tta: bool = False) -> Predictor:
        """Return the detector with what stands around it when it is used.

        Args:
            threshold: least score for all classes; None: those that the model carries.
            tta: look at each image in several sizes, and mirrored.
        """
        from rankdet.config.assemble import divisor_of
        from rankdet.config.build import build_test_resize
        from rankdet.config.build_model import build_post_process
        from rankdet.data.transforms import MEAN_COLOUR
        from rankdet.engine.single import Predictor

        own = self.card.thresholds or (None,) * len(self.card.classes)
        return Predictor(
            self.detector,
            resize=build_test_resize(self.recipe),
            post_process=build_post_process(self.recipe),
            classes=self.card.classes,
            thresholds=own if threshold is None else (threshold,) * len(own),
            divisor=divisor_of(self.recipe),
            fill=MEAN_COLOUR,
            look=self.look() if tta else None,
        )

    def look(self) -> Look:
        """Return what looks at images in several sizes, and mirrored."""
        from rankdet.config.assemble import divisor_of
        from rankdet.config.build_model import build_augmented_test

        return build_augmented_test(self.recipe, divisor_of(self.recipe))


def load(path: Path, device: str) -> Model:
    """Load the model of a run, in evaluation mode.

    Raises:
        RunError: the file is no model of ours, or does not fit its own recipe.
    """
    import torch

    from rankdet.config.build_model import build_detector
    from rankdet.config.load import parse_recipe
    from rankdet.engine.checkpoint import load_model, load_weights
    from rankdet.engine.files import RunError

    if path.is_dir():
        if not (path / "best.safetensors").is_file():
            raise RunError(
                f"{path} is a folder without best.safetensors, which a run writes when it is first "
                f"evaluated; give the folder of such a run, or the file"
            )
        path = path / "best.safetensors"
    weights, card = load_model(path)
    recipe = parse_recipe(card.recipe, source=str(path), overrides=["model.weights=null"])
    detector = build_detector(recipe, len(card.classes))
    load_weights(detector, weights, path)
    if recipe.training.channels_last:  # as it was evaluated, to the last digit
        detector = detector.to(memory_format=torch.channels_last)
    return Model(detector.to(device).eval(), card, recipe, path)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where to compute."""
    parser.add_argument(
        "--device", default="auto", help='"cpu", "cuda", "cuda:1"; default: a GPU if there is one'
    )


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Add the option for augmentation at test time."""
    parser.add_argument(
        "--tta",
        action="store_true",
        help="look at every image in three sizes, and mirrored if the model was trained so: "
        "slower, often a little better",
    )


def device_of(given: argparse.Namespace) -> str:
    """Return the device to compute on."""
    import torch

    from rankdet.engine.files import RunError

    if given.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=given.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise RunError(f"--device {given.device} cannot be used: {reason}") from error
    return str(given.device)


def find_data(folder: str, voice: Voice) -> DataFolder:
    """Return what a folder holds, and say so, with what is to be known of how it was read."""
    from rankdet.data.discover import discover
    from rankdet.data.summary import render, summarise

    found = discover(Path(folder))
    voice.say(f"[bold]{plain(folder)}[/bold]: {found.layout}")
    voice.show(render([summarise(split) for split in found.splits.values()]))
    for note in found.notes:
        voice.warn(plain(note))
    return found


def pick_split(found: DataFolder, name: str, folder: str) -> ImageSet:
    """Return a split by name.

    Raises:
        RunError: the folder has no such split; the message names those it has.
    """
    from rankdet.engine.files import RunError

    if name not in found.splits:
        known = ", ".join(found.splits)
        raise RunError(f"{folder} has no split {name!r}; it has {known} (--split)")
    return found.splits[name]


def command_line() -> str:
    """Return the command as it was typed, for the record."""
    import shlex

    return shlex.join(["rankdet", *sys.argv[1:]])


def relabel(images: ImageSet, card: ModelCard, source: str) -> ImageSet:
    """Return images whose labels and category ids are those of a model.

    Classes are matched by name, so that the order in a file does not matter.

    Raises:
        RunError: the images have classes that the model does not know.
    """
    from dataclasses import replace

    import numpy as np

    from rankdet.engine.files import RunError

    known = {name: index for index, name in enumerate(card.classes)}
    unknown = [name for name in images.classes if name not in known]
    used = {int(label) for record in images.records for label in np.unique(record.labels)}
    foreign = [name for name in unknown if images.classes.index(name) in used]
    if foreign:
        raise RunError(
            f"{source} has objects of {counted(len(foreign), 'class', 'classes')} that the model "
            "does not know: "
            f"{few(foreign)}; it was trained on {len(card.classes)}: {few(card.classes)}"
        )
    new = np.array([known.get(name, -1) for name in images.classes], dtype=np.int64)
    records = tuple(
        replace(record, labels=new[record.labels] if record.labels.size else record.labels)
        for record in images.records
    )
    return replace(images, records=records, classes=card.classes, category_ids=card.category_ids)


def few(names: Sequence[str], most: int = 8) -> str:
    """Return the first names in words, and how many there are if not all."""
    more = f", ... ({len(names)})" if len(names) > most else ""
    return ", ".join(names[:most]) + more
