"""`rankdet data`: look at a folder of labelled images, make the built-in one, or fetch COCO."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankdet.cli import data_coco, data_minitrain

EXAMPLES = """\
examples:
  rankdet data check photos/                    what is in it, is it sound, a sheet of samples
  rankdet data check photos/ --sheet look.png --images 24
  rankdet data digits --out digits/             make the built-in data set
  rankdet data coco --out coco/                 fetch COCO 2017
  rankdet data minitrain --coco coco/ --out minitrain/   a part of it that stands for the whole
"""


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "data",
        help="check a folder of labelled images, make the built-in data set, or fetch COCO",
        description="Look at data before training on them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    check = actions.add_parser(
        "check",
        help="say what a folder holds and draw samples of it",
        description="Say what a folder holds: layout, images, boxes, classes, objects per image, "
        "box sizes, problems; and draw a sheet of samples. Reads every image with --decode.",
    )
    check.add_argument("folder", metavar="DIR")
    check.add_argument(
        "--sheet", metavar="FILE", help="picture of samples; default: DIR-sample.png"
    )
    check.add_argument("--images", type=int, default=12, help="number of samples (12); 0: no sheet")
    check.add_argument("--seed", type=int, default=0, help="which samples")
    check.add_argument("--decode", action="store_true", help="also decode every image")
    check.set_defaults(run=run_check)

    digits = actions.add_parser(
        "digits",
        help="make the built-in data set: handwritten digits on photographs",
        description="Write the built-in data set in COCO's format: real handwritten digits (those "
        "of scikit-learn, 8 x 8 pixels) in many sizes and colours on two photographs. No digit is "
        "in two splits, but the same writers and the same two photographs are.",
    )
    digits.add_argument("--out", required=True, metavar="DIR")
    digits.add_argument("--train", type=int, default=4000, help="training images (4000)")
    digits.add_argument("--val", type=int, default=300, help="validation images (300)")
    digits.add_argument("--size", type=int, default=128, help="side of the images in pixels (128)")
    digits.add_argument("--seed", type=int, default=0)
    digits.add_argument("--overwrite", action="store_true", help="replace what is there")
    digits.set_defaults(run=run_digits)
    data_coco.add_to(actions)
    data_minitrain.add_to(actions)


def run_check(given: argparse.Namespace) -> int:
    """Check a folder; the exit code is 1 if images do not decode."""
    from rankdet.cli.common import Voice, find_data

    voice = Voice()
    found = find_data(given.folder, voice)
    code = 0
    for split in found.splits.values():
        for problem in split.problems[: 10 if given.images else None]:
            voice.say(f"  {problem}".replace("[", r"\["))
        if len(split.problems) > 10:
            voice.say(f"  ... and {len(split.problems) - 10} more in {split.name}")
    if given.decode:
        code = _decode_all(found, voice)
    if given.images:
        name = Path(given.folder).resolve().name
        path = Path(given.sheet or f"{name}-sample.png")
        _draw_sheet(found, path, given.images, given.seed)
        voice.say(f"samples: {path}")
    return code


def run_digits(given: argparse.Namespace) -> int:
    """Make the built-in data set."""
    from rankdet.cli.common import Voice

    make_digits(
        Path(given.out), given.train, given.val, given.size, given.seed, given.overwrite, Voice()
    )
    return 0


def make_digits(
    out: Path, train: int, val: int, size: int, seed: int, overwrite: bool, voice: Any
) -> None:
    """Make the built-in data set with a progress bar."""
    from rich.progress import Progress

    from rankdet.data.digits_files import write_digits

    with Progress(console=voice.console, transient=True) as progress:
        task = progress.add_task("drawing digits", total=train + val)
        write_digits(
            out,
            train=train,
            val=val,
            size=size,
            seed=seed,
            overwrite=overwrite,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    voice.say(f"{out}: {train} + {val} images of {size} x {size} px")


def _decode_all(found: Any, voice: Any) -> int:
    from rich.progress import track

    from rankdet.data.errors import DataError
    from rankdet.data.images import read_image_as

    bad = 0
    records = [record for split in found.splits.values() for record in split.records]
    for record in track(records, "decoding", console=voice.console, transient=True):
        try:
            read_image_as(record.path, record.width, record.height)
        except DataError as error:
            bad += 1
            voice.say(f"  {error}".replace("[", r"\["))
    voice.say(f"{len(records)} images, {bad} of which cannot be read")
    return 1 if bad else 0


def _draw_sheet(found: Any, path: Path, count: int, seed: int) -> None:
    from rankdet.data.images import read_image_as
    from rankdet.data.sampling import epoch_order
    from rankdet.engine.files import write_atomically
    from rankdet.pictures import draw, sheet

    pictures = []
    for split in found.splits.values():
        share = -(-count // len(found.splits))
        for index in epoch_order(len(split), seed=seed, epoch=0)[:share]:
            record = split.records[index]
            image = read_image_as(record.path, record.width, record.height)
            pictures.append(draw(image, record.boxes, record.labels, None, split.classes))
    if pictures:
        made = sheet(pictures, columns=min(4, len(pictures)))
        kind = path.suffix.lstrip(".").upper().replace("JPG", "JPEG") or "PNG"
        write_atomically(path, lambda part: made.save(part, format=kind))
