"""`rankdet score`: AP, LRP and thresholds of anybody's detections."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankdet.cli.common import path_text, plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXAMPLES = """\
examples:
  rankdet score --ground-truth val.json --detections results.json
  rankdet score --ground-truth val.json.gz --detections results.json.gz \\
      --json score.json --html report.html --images val/
  rankdet score --ground-truth test.json --detections found.json --thresholds score.json
  rankdet score --ground-truth val.json --detections results.json --bins 0-5,6-20,21+
"""

Bin = tuple[int, int | None]

# Names of files that say nothing: the folder's name is taken instead.
_GENERIC = ("detections", "predictions", "results")


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "score",
        help="print COCO's numbers and LRP of any detector's results",
        description="Compare detections with ground truth, both in COCO's format, plain or gzip: "
        "AP, LRP, each class's best threshold, and where the errors come from. No model is needed, "
        "and the detections may come from any program.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ground-truth", required=True, type=path_text, metavar="GT.json", help="COCO instances"
    )
    parser.add_argument(
        "--detections",
        required=True,
        type=path_text,
        metavar="DT.json",
        help="COCO results: a list with image_id, category_id, bbox (x, y, width, height), score",
    )
    parser.add_argument("--json", type=path_text, metavar="FILE", help="write all numbers")
    parser.add_argument(
        "--html", type=path_text, metavar="FILE", help="write the report: one file, opens anywhere"
    )
    parser.add_argument(
        "--images",
        type=path_text,
        metavar="DIR",
        help="show pictures in the report: the folder that file_name of the ground truth is "
        "relative to",
    )
    parser.add_argument(
        "--bins",
        type=bins,
        metavar="BINS",
        help="objects per image to tell apart (0-3,4-10,11-20,21-62,63+)",
    )
    parser.add_argument(
        "--tau",
        type=_tau,
        default=0.5,
        metavar="IOU",
        help="IoU from which on LRP takes a box as right (0.5)",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--threshold",
        type=_finite,
        metavar="SCORE",
        help="also say what happens when all classes keep scores from this on",
    )
    chosen.add_argument(
        "--thresholds",
        type=path_text,
        metavar="FILE",
        help="the same with a threshold for each class: score.json of another split, or a JSON "
        "object of names and numbers",
    )
    parser.add_argument(
        "--few",
        type=_count,
        default=10,
        metavar="N",
        help="warn of numbers that rest on fewer objects (10)",
    )
    parser.add_argument(
        "--empty-boxes",
        action="store_true",
        help="count boxes without width or height as wrong instead of refusing them",
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the report")
    parser.add_argument(
        "--classes", type=_count, default=100, metavar="N", help="most classes to print (100)"
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Score; files are written when everything is done, or not at all."""
    from rankdet.cli.common import Voice, command_line
    from rankdet.engine.files import RunError, write_json
    from rankdet.eval.by_count import BINS
    from rankdet.eval.files import read_detections, read_ground_truth, read_thresholds
    from rankdet.eval.score import score_of
    from rankdet.eval.table import table

    truth_file, detections_file = Path(given.ground_truth), Path(given.detections)
    inputs = [truth_file, detections_file, *([Path(given.thresholds)] if given.thresholds else [])]
    check_outputs([given.json, given.html], inputs)
    if given.images and not given.html:
        raise RunError("--images shows pictures in the report: add --html FILE")
    truth, columns = read_ground_truth(truth_file, empty_boxes=given.empty_boxes)
    detections, instances = read_detections(detections_file, columns, empty_boxes=given.empty_boxes)
    threshold = read_thresholds(Path(given.thresholds)) if given.thresholds else given.threshold
    pixels = image_reader(truth, Path(given.images)) if given.images else None
    try:
        result = score_of(
            instances,
            bins=given.bins or BINS,
            tau=given.tau,
            few=given.few,
            threshold=threshold,
        )
    except ValueError as error:  # a threshold of a class that is not there
        raise RunError(f"{given.thresholds}: {error}") from error
    outputs: list[tuple[Path, Callable[[Path], None]]] = []
    if given.html:
        from rankdet.eval import report

        name = stem(detections_file)
        if name in _GENERIC:
            name = detections_file.resolve().parent.name
        run_ = report.RunForReport(name, result, truth, detections)
        title = given.title or f"{name} on {stem(truth_file)}"
        facts = {
            "detections": str(detections_file),
            "ground truth": str(truth_file),
            "command": command_line(),
        }
        outputs.append(
            (
                Path(given.html),
                lambda part: report.write_report(
                    part, [run_], images=pixels, title=title, facts=facts
                ),
            )
        )
    if given.json:
        outputs.append(
            (Path(given.json), lambda part: write_json(part, result.to_json(), indent=1))
        )
    write_together(outputs)
    voice = Voice()
    voice.show(table(result, classes=given.classes))
    import numpy as np

    looked_at = np.unique(instances.gt_image)
    silent = np.setdiff1d(looked_at, instances.dt_image).size
    if instances.dt_image.size and 2 * silent > looked_at.size:
        voice.warn(
            f"{silent} of the {looked_at.size} images with objects have no detection at all: are "
            "the detections of this split?"
        )
    for kind, path in (("numbers", given.json), ("report", given.html)):
        if path:
            voice.say(f"{kind:8}{plain(path)}")
    return 0


def bins(text: str) -> tuple[Bin, ...]:
    """Read ranges of counts as people write them.

    Raises:
        ArgumentTypeError: they are no ranges, or not ascending.

    Example:
        >>> bins("0-3,4-10,11+")
        ((0, 3), (4, 10), (11, None))
    """
    made: list[Bin] = []
    for part in text.split(","):
        low, dash, high = part.strip().removesuffix("+").partition("-")
        open_ended = part.strip().endswith("+")
        if not low.isdecimal() or (dash and not high.isdecimal()) or (dash and open_ended):
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} is no range of counts; write 0-3,4-10,11+"
            )
        made.append((int(low), None if open_ended else int(high or low)))
    last: int | None = -1
    for least, most in made:
        if last is None or least <= last or (most is not None and most < least):
            raise argparse.ArgumentTypeError(
                f"{text!r}: ranges must ascend without overlap, such as 0-3,4-10,11+"
            )
        last = most
    return tuple(made)


def stem(path: Path) -> str:
    """Return the name of a file without the endings of its format.

    Example:
        >>> stem(Path("a/results.v2.json.gz"))
        'results.v2'
    """
    return path.name.removesuffix(".gz").removesuffix(".json")


def check_outputs(outputs: Sequence[str | None], inputs: Sequence[Path]) -> None:
    """Refuse, before any work is done, files that cannot be written or would replace an input.

    Raises:
        RunError: one of the outputs is a folder, an input, or named twice.
    """
    from rankdet.engine.files import RunError

    seen = {path.resolve() for path in inputs}
    for output in outputs:
        if output is None:
            continue
        path = Path(output)
        if path.is_dir():
            raise RunError(f"{output} is a folder; name a file in it, such as {path / 'out'}")
        if path.resolve() in seen:
            raise RunError(f"{output} is named twice; writing it would destroy what is read there")
        seen.add(path.resolve())


def write_together(outputs: Sequence[tuple[Path, Callable[[Path], None]]]) -> None:
    """Write several files, none of which appears before all are complete.

    Args:
        outputs: each file, and what writes its content to a given path.

    Raises:
        RunError: one of them cannot be written; none has been.
    """
    from rankdet.engine.files import write_atomically

    if not outputs:
        return
    (path, write), *others = outputs

    def complete(part: Path) -> None:
        write(part)
        write_together(others)

    write_atomically(path, complete)


def image_reader(
    truth: Mapping[str, Any], folder: Path
) -> Callable[[int], NDArray[np.uint8] | None]:
    """Return what reads the picture of an image id; None for those that cannot be read.

    Args:
        truth: COCO instances dictionary.
        folder: that ``file_name`` is relative to, or that holds files of the same names.

    Raises:
        RunError: none of the images is there.
    """
    from rankdet.data.errors import DataError
    from rankdet.data.images import read_image, read_image_as
    from rankdet.engine.files import RunError

    entries = {entry["id"]: entry for entry in truth["images"]}

    def path_of(entry: Mapping[str, Any]) -> Path | None:
        name = str(entry.get("file_name", "")).replace("\\", "/")
        for path in (folder / name, folder / Path(name).name):
            if name and path.is_file():
                return path
        return None

    if not any(path_of(entry) for entry in entries.values()):
        first = next(iter(entries.values())).get("file_name")
        raise RunError(
            f"--images {folder}: none of the {len(entries)} images is there, the first is "
            f"{first!r}; name the folder that file_name of the ground truth is relative to"
        )

    def pixels(image_id: int) -> NDArray[np.uint8] | None:
        entry = entries[image_id]
        path = path_of(entry)
        if path is None:
            return None
        width, height = entry.get("width"), entry.get("height")
        try:
            if isinstance(width, int) and isinstance(height, int):
                return read_image_as(path, width, height)
            return read_image(path)
        except DataError:
            return None

    return pixels


def _finite(text: str) -> float:
    import math

    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def _tau(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value
