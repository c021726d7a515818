"""`rankdet data coco`: fetch COCO 2017."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankdet.cli.common import path_text

EXAMPLES = """\
examples:
  rankdet data coco --out coco/                 train and val: 20.4 GB to fetch
  rankdet data coco --out coco/ --splits val    5000 images: 1.1 GB to fetch
  rankdet data coco --out coco/                 again: goes on where it was interrupted
  rankdet data coco --out coco/ --base-url http://mirror.example/coco
"""
LICENCE = (
    "licence: the annotations are CC BY 4.0; the images are from Flickr and belong to their "
    "photographers, each under Flickr's terms of use (https://cocodataset.org/#termsofuse)"
)


def add_to(actions: Any) -> None:
    """Add the action to the verb `data`."""
    coco = actions.add_parser(
        "coco",
        help="fetch COCO 2017: download, unpack, verify",
        description="Fetch COCO 2017 from its official archives: download with checksums, unpack, "
        "and verify that every image is there. Interrupted anywhere, the same command goes on. "
        "The archives are deleted once their images are verified, unless --keep-archives is "
        "given; archives that you put into DIR/archives yourself are used and kept.",
        epilog=f"{EXAMPLES}\n{LICENCE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    coco.add_argument("--out", type=path_text, required=True, metavar="DIR")
    coco.add_argument(
        "--splits",
        nargs="+",
        choices=("train", "val"),
        default=("train", "val"),
        help="what to fetch; default: both",
    )
    coco.add_argument(
        "--base-url",
        metavar="URL",
        help="a mirror that holds zips/ and annotations/ as the official server does",
    )
    coco.add_argument(
        "--keep-archives",
        action="store_true",
        help="keep the archives in DIR/archives; default: delete each once verified",
    )
    coco.set_defaults(run=run_coco)


def run_coco(given: argparse.Namespace) -> int:
    """Fetch COCO 2017 with progress bars."""
    from rich.markup import escape

    from rankdet.cli.common import Voice
    from rankdet.data.coco_download import SOURCE, download_coco

    voice = Voice()
    voice.say(f"COCO 2017 from {escape(given.base_url or SOURCE)}")
    voice.say(LICENCE)
    with _bars(voice) as bars:
        try:
            outcomes = download_coco(
                Path(given.out),
                splits=given.splits,
                base_url=given.base_url or SOURCE,
                keep_archives=given.keep_archives,
                progress=_shown_by(bars),
                note=lambda sentence: voice.say(escape(sentence)),
            )
        except KeyboardInterrupt:
            voice.say("what was fetched is kept: the same command goes on from it")
            raise
    for outcome in outcomes:
        done = "fetched and verified" if outcome.fetched else "complete already, nothing to do"
        voice.say(f"{outcome.split}: {outcome.images} images, {done}")
    voice.say(f"look at it: rankdet data check {escape(given.out)}")
    return 0


def _bars(voice: Any) -> Any:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=voice.console,
        transient=True,
    )


def _shown_by(bars: Any) -> Callable[[str, int, int | None], None]:
    """Return what shows progress, with one bar for each thing that is done."""
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, total: int | None) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    return show
