"""`rankdet predict`: detect objects in new images."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankdet.cli.common import add_device, add_tta, few, path_text, plain
from rankdet.wording import counted

RESULTS = "predictions.json"
EXAMPLES = """\
examples:
  rankdet predict runs/photos-1/best.safetensors new/ --out found/
  rankdet predict runs/photos-1 a.jpg b.png --out found/ --threshold 0.1
"""


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "predict",
        help="detect objects in images",
        description="Write a picture with boxes for each image, and one predictions.json. Boxes "
        "are kept from the threshold of their class on: the LRP-optimal one that the model "
        "carries, unless --threshold says otherwise.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", type=path_text, metavar="CKPT", help="best.safetensors of a run, or its folder"
    )
    parser.add_argument("images", nargs="+", type=path_text, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--out", type=path_text, required=True, metavar="DIR")
    parser.add_argument("--threshold", type=_score, help="keep scores from this on, in all classes")
    parser.add_argument("--no-pictures", action="store_true", help="write predictions.json only")
    add_tta(parser)
    add_device(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Predict; images that cannot be read are named and left out, the exit code is then 1."""
    import json

    from rich.progress import Progress

    from rankdet.cli.common import Voice, device_of, load
    from rankdet.data.errors import DataError
    from rankdet.data.images import read_image
    from rankdet.engine.files import write_atomically

    voice = Voice()
    out = Path(given.out)
    model = load(Path(given.model), device_of(given))
    predictor = model.predictor(given.threshold, tta=given.tta)
    voice.say(_thresholds(model.card, given.threshold))
    unknown = _without_threshold(model.card)
    if given.threshold is None and unknown:
        voice.warn(
            f"no threshold is known for {plain(few(unknown))}, of which validation found nothing "
            "right: whatever is among the best 100 boxes of an image is kept; see --threshold"
        )
    paths = list(find_images(given.images, out))
    _spare([path for path, _ in paths], out, [] if given.no_pictures else [p for _, p in paths])
    bad: list[str] = []
    boxes = 0

    def write(part: Path) -> None:
        nonlocal boxes
        # One image at a time, so that any number of them fits.
        with (
            part.open("w", encoding="utf-8") as file,
            Progress(console=voice.console, transient=True) as progress,
        ):
            task = progress.add_task("detecting", total=len(paths))
            file.write("[")
            comma = "\n"
            for path, place in paths:
                try:
                    found = predictor.predict(read_image(path))
                except DataError as error:
                    bad.append(str(error))
                    voice.say(f"[red]skipped[/red] {plain(error)}")
                    continue
                finally:
                    progress.advance(task)
                height, width = found.image.shape[:2]
                boxes += len(found.boxes)
                entry = {"file": str(path), "width": width, "height": height,
                         "detections": found.entries}  # fmt: skip
                file.write(comma + json.dumps(entry, ensure_ascii=False))
                comma = ",\n"
                if not given.no_pictures:
                    found.save_picture(out / place)
            file.write("\n]\n")

    write_atomically(out / RESULTS, write)
    done = len(paths) - len(bad)
    said = f"{counted(boxes, 'box', 'boxes')} in {counted(done, 'image')}"
    voice.say(f"{said} -> {plain(out / RESULTS)}")
    if bad:
        voice.say(f"{counted(len(bad), 'image')} could not be read: left out")
    return 1 if bad else 0


def find_images(names: list[str], out: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each image and where its picture goes below the folder of results.

    Folders are searched throughout, hidden files are passed over. Of two images that would get
    the same place, the second gets a number.

    Raises:
        RunError: something does not exist, or nothing is an image.
    """
    from rankdet.data.files import IMAGE_SUFFIXES, is_image
    from rankdet.engine.files import RunError

    taken: set[Path] = set()
    for name in names:
        given = Path(name)
        if given.is_dir():
            files = sorted(p for p in given.rglob("*") if is_image(p.name) and p.is_file())
            files = [p for p in files if not p.resolve().is_relative_to(out.resolve())]
        elif given.exists():
            files = [given]
        else:
            raise RunError(f"{name} does not exist")
        for path in files:
            below = path.relative_to(given) if given.is_dir() else Path(path.name)
            place, count = below.with_suffix(".jpg"), 1
            while place in taken:
                count += 1
                place = below.with_name(f"{below.stem}-{count}.jpg")
            taken.add(place)
            yield path, place
    if not taken:
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        raise RunError(
            f"no images in {', '.join(names)} (endings: {endings}; what lies in --out {out} is not "
            "looked at)"
        )


def _spare(images: list[Path], out: Path, pictures: list[Path]) -> None:
    """Refuse to write over an image that is to be read, or over what no prediction wrote.

    Raises:
        RunError: with the first file that would be lost.
    """
    from rankdet.engine.files import RunError

    read = {path.resolve() for path in images}
    again = (out / RESULTS).is_file()
    for place in pictures:
        file = out / place
        if file.resolve() in read or (not again and file.exists()):
            raise RunError(
                f"{file} is there already, and its picture with boxes would replace it; give --out "
                "a folder of its own, or write no pictures (--no-pictures)"
            )


def _thresholds(card: Any, threshold: float | None) -> str:
    if threshold is not None:
        return f"threshold {threshold:g} for all classes (--threshold)"
    known = [t for t in card.thresholds if t is not None]
    if not known:
        return (
            "the model carries no thresholds: all of the best 100 boxes are kept; see --threshold"
        )
    return (
        f"LRP-optimal thresholds of the validation split, by class: {min(known):.3g} to "
        f"{max(known):.3g} (--threshold overrides)"
    )


def _without_threshold(card: Any) -> list[str]:
    """Return the classes without a threshold, none where no class has one."""
    if all(threshold is None for threshold in card.thresholds):
        return []
    pairs = zip(card.classes, card.thresholds, strict=True)
    return [name for name, threshold in pairs if threshold is None]


def _score(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value
