"""`rankdet data`: look at a folder of labelled images, make the built-in one, or fetch COCO."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankdet.cli import data_coco, data_minitrain
from rankdet.cli.common import count_from, path_text, plain
from rankdet.wording import counted

EXAMPLES = """\
examples:
  rankdet data check photos/                    what is in it, is it sound, a sheet of samples
  rankdet data check photos/ --sheet look.png --images 24
  rankdet data digits --out digits/             make the built-in data set
  rankdet data coco --out coco/                 fetch COCO 2017
  rankdet data minitrain --coco coco/ --out minitrain/   a part of it that stands for the whole
"""

CHECK_EXAMPLES = """\
examples:
  rankdet data check photos/                    numbers, problems, a sheet of 12 samples
  rankdet data check photos/ --decode           also whether every image can be read
  rankdet data check photos/ --sheet look.png --images 24 --seed 1
  rankdet data check photos/ --images 0 --problems 0   every problem, and no sheet
"""

DIGITS_EXAMPLES = """\
examples:
  rankdet data digits --out digits/             4000 + 300 images of 128 x 128 pixels
  rankdet data digits --out tiny/ --train 64 --val 16 --size 64
  rankdet train --data digits/ --recipe demo    train on them
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
        "box sizes, problems; and draw a sheet of samples. Reads every image with --decode. The "
        "exit code is 1 if an image cannot be read as annotated.",
        epilog=CHECK_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("folder", type=path_text, metavar="DIR")
    check.add_argument(
        "--sheet",
        type=path_text,
        metavar="FILE",
        help="picture of samples; default: DIR-sample.png",
    )
    check.add_argument(
        "--images", type=count_from(0), default=12, help="number of samples (12); 0: no sheet"
    )
    check.add_argument("--seed", type=count_from(0), default=0, help="which samples")
    check.add_argument(
        "--problems",
        type=count_from(0),
        default=10,
        help="list so many problems of each split (10); 0: all",
    )
    check.add_argument("--decode", action="store_true", help="also decode every image")
    check.set_defaults(run=run_check)

    digits = actions.add_parser(
        "digits",
        help="make the built-in data set: handwritten digits on photographs",
        description="Write the built-in data set in COCO's format: real handwritten digits (those "
        "of scikit-learn, 8 x 8 pixels) in many sizes and colours on two photographs. No digit is "
        "in two splits, but the same writers and the same two photographs are. An earlier set of "
        "digits in the folder is replaced.",
        epilog=DIGITS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    digits.add_argument("--out", type=path_text, required=True, metavar="DIR")
    digits.add_argument("--train", type=count_from(1), default=4000, help="training images (4000)")
    digits.add_argument("--val", type=count_from(1), default=300, help="validation images (300)")
    digits.add_argument(
        "--size", type=_side, default=128, help="side of the images in pixels, 64 to 1024 (128)"
    )
    digits.add_argument("--seed", type=count_from(0), default=0, help="other images (0)")
    digits.add_argument(
        "--overwrite",
        action="store_true",
        help="write into a folder that holds something "
        "else: its images, annotations and digits.json are replaced",
    )
    digits.set_defaults(run=run_digits)
    data_coco.add_to(actions)
    data_minitrain.add_to(actions)


def _side(text: str) -> int:
    value = count_from(64)(text)
    if value > 1024:
        raise argparse.ArgumentTypeError(f"must be in 64 .. 1024, got {text}")
    return value


def run_check(given: argparse.Namespace) -> int:
    """Check a folder; the exit code is 1 if an image cannot be read as annotated."""
    from rankdet.cli.common import Voice, find_data
    from rankdet.data.images import UNUSABLE

    voice = Voice()
    name = Path(given.folder).resolve().name
    path = Path(given.sheet or f"{name}-sample.png")
    kind = _picture_format(path) if given.images else ""
    found = find_data(given.folder, voice)
    code = 0
    for split in found.splits.values():
        shown = split.problems[: given.problems or None]
        for problem in shown:
            voice.say(f"  {plain(problem)}")
        if len(split.problems) > len(shown):
            more = len(split.problems) - len(shown)
            voice.say(f"  ... and {more} more in {split.name} (--problems 0 lists them all)")
        if any(problem.message == UNUSABLE for problem in split.problems):
            code = 1
    if given.decode:
        code = max(code, _decode_all(found, voice))
    if given.images:
        drawn, faults = _draw_sheet(found, path, kind, given.images, given.seed)
        for fault in faults:
            voice.say(f"  not on the sheet: {plain(fault)}")
        if drawn:
            voice.say(f"samples: {plain(path)}")
        code = 1 if faults else code
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
    voice.say(f"{plain(out)}: {train} + {val} images of {size} x {size} px")


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
            voice.say(f"  {plain(error)}")
    voice.say(f"{counted(len(records), 'image')}, {bad} of which cannot be read")
    return 1 if bad else 0


def _picture_format(path: Path) -> str:
    """Return Pillow's name for the kind of picture that a file's ending stands for."""
    from rankdet.engine.files import RunError

    known = {"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    if path.suffix.lower() not in known:
        raise RunError(f"--sheet {path}: cannot draw a {path.suffix} file; name a .png or .jpg")
    return known[path.suffix.lower()]


def _draw_sheet(found: Any, path: Path, kind: str, count: int, seed: int) -> tuple[int, list[str]]:
    """Draw samples of all splits; return how many, and what kept others from being drawn."""
    from rankdet.data.errors import DataError
    from rankdet.data.images import read_image_as
    from rankdet.data.sampling import epoch_order
    from rankdet.engine.files import write_atomically
    from rankdet.pictures import draw, sheet

    pictures = []
    faults: list[str] = []
    for split in found.splits.values():
        share = -(-count // len(found.splits))
        for index in epoch_order(len(split), seed=seed, epoch=0)[:share]:
            record = split.records[index]
            try:
                image = read_image_as(record.path, record.width, record.height)
            except DataError as fault:
                faults.append(str(fault))
                continue
            pictures.append(draw(image, record.boxes, record.labels, None, split.classes))
    if pictures:
        made = sheet(pictures, columns=min(4, len(pictures)))
        write_atomically(path, lambda part: made.save(part, format=kind))
    return len(pictures), faults
