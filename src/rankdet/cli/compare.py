"""`rankdet compare`: two runs, or two detectors' results, side by side."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankdet.cli.common import path_text, plain
from rankdet.cli.score import check_outputs, image_reader, stem, write_together

if TYPE_CHECKING:
    from rankdet.eval.instances import Instances
    from rankdet.eval.score import Score

EXAMPLES = """\
examples:
  rankdet compare runs/focal runs/alrp                    two runs of `rankdet train`
  rankdet compare runs/focal runs/alrp --html compare.html
  rankdet compare old.json new.json --ground-truth val.json --html compare.html --images val/
  rankdet compare old-score.json new-score.json           two files of `rankdet score --json`
"""

# A message tells these apart by what they hold.
_SIDES = (
    "a folder of `rankdet train` or `rankdet evaluate`, a score.json, or, with --ground-truth, "
    "COCO results"
)


@dataclass(frozen=True)
class Side:
    """One of the two, as far as it is known."""

    path: Path
    score: Score
    detections: Sequence[Any] | None
    """COCO results; None where there is only the score."""


@dataclass(frozen=True)
class Truth:
    """What both are compared with."""

    ground_truth: Mapping[str, Any]
    pixels: Callable[[int], Any] | None


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "compare",
        help="put two runs or two detectors' results side by side",
        description="Print what changed from A to B: all headline numbers, by size, by objects in "
        f"the image, and by class. Each of the two is {_SIDES}.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", type=path_text, metavar="A", help="what to compare with")
    parser.add_argument("second", type=path_text, metavar="B", help="what is compared")
    parser.add_argument(
        "--ground-truth",
        type=path_text,
        metavar="GT.json",
        help="COCO instances: score the detections of both on these (otherwise the score.json of "
        "the runs are read)",
    )
    parser.add_argument(
        "--html", type=path_text, metavar="FILE", help="write a report with both side by side"
    )
    parser.add_argument(
        "--data",
        type=path_text,
        metavar="DIR",
        help="where the data of the runs are now, if they have moved",
    )
    parser.add_argument(
        "--images",
        type=path_text,
        metavar="DIR",
        help="with --ground-truth: the images, for the report",
    )
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="what to call the two")
    parser.add_argument("--title", metavar="TEXT", help="heading of the report")
    parser.add_argument(
        "--classes", type=int, default=100, metavar="N", help="most classes to print (100)"
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Compare; the report is written when it is complete, or not at all."""
    from rankdet.cli.common import Voice
    from rankdet.eval.comparison import compare
    from rankdet.eval.comparison_table import comparison_table
    from rankdet.eval.files import read_ground_truth

    paths = (Path(given.first), Path(given.second))
    truth_file = Path(given.ground_truth) if given.ground_truth else None
    check_outputs([given.html], [*paths, *([truth_file] if truth_file else [])])
    truth, columns = read_ground_truth(truth_file, empty_boxes=True) if truth_file else (None, None)
    sides = [_side(path, columns) for path in paths]
    names = (given.names[0], given.names[1]) if given.names else _names(paths)
    if given.html:
        if truth is not None:
            reader = image_reader(truth, Path(given.images)) if given.images else None
            both = Truth(truth, reader)
        else:
            both = _truth_of_runs(paths, given.data)
        _write_report(given, sides, names, both)
    result = compare(sides[0].score, sides[1].score)
    few = max(side.score.few for side in sides)
    voice = Voice()
    voice.show(comparison_table(result, names, classes=given.classes, few=few))
    if given.html:
        voice.say(f"report  {plain(given.html)}")
    return 0


def _side(path: Path, truth: Instances | None) -> Side:
    """Read one of the two; score its detections where there is ground truth.

    Raises:
        RunError: it is nothing that can be compared.
        EvaluationFileError: a file in it is wrong.
    """
    from rankdet.engine.files import RunError
    from rankdet.eval.files import check_detections, read_json, read_score
    from rankdet.eval.score import score_of

    score_file = detections_file = path
    content: Any = None
    if path.is_dir():
        score_file, detections_file = path / "score.json", path / "detections.json"
        wanted = score_file if truth is None else detections_file
        if not wanted.is_file():
            raise RunError(f"{path} holds no {wanted.name}; name {_SIDES}")
        detections = read_json(detections_file) if detections_file.is_file() else None
    else:
        content = read_json(path)
        detections = content if isinstance(content, list) else None
        if detections is None and not (isinstance(content, dict) and "schema" in content):
            raise RunError(
                f"{path} is neither a list of COCO results nor a score (no 'schema' in it); name "
                f"{_SIDES}"
            )
    if truth is not None and detections is not None:
        # Boxes without a size are wrong in both: that is no reason not to compare.
        found = check_detections(detections_file, detections, truth, empty_boxes=True)
        return Side(path, score_of(found), detections)
    if detections is not None and not path.is_dir():
        raise RunError(
            f"{path} holds detections: say what is right by --ground-truth, the COCO instances of "
            "the same images"
        )
    return Side(path, read_score(score_file, content), detections)


def _names(paths: tuple[Path, Path]) -> tuple[str, str]:
    """Return short names that tell the two apart.

    The shortest ends of the paths that differ, without the words that both begin or end with.
    """
    whole = [path.resolve() if path.is_dir() else path.resolve().with_name(stem(path))
             for path in paths]  # fmt: skip
    if whole[0] == whole[1]:
        return whole[0].name, f"{whole[0].name} again"
    depth = 1
    while whole[0].parts[-depth:] == whole[1].parts[-depth:]:
        depth += 1
    first, second = ("/".join(path.parts[-depth:]) for path in whole)
    words = [re.split(r"([-/.])", name) for name in (first, second)]
    start, end = _common(*words), _common(*(each[::-1] for each in words))
    # Words stand at even places, what parts them at odd ones.
    short = ["".join(each[start - start % 2 : len(each) - (end - end % 2)]) for each in words]
    if all(re.search("[^\\W\\d]", name) for name in short):
        first, second = short
    return first, second


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many items the two begin with in common."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in pairs)


def _truth_of_runs(paths: Sequence[Path], data: str | None) -> Truth:
    """Return the validation images that two runs of `rankdet train` have in common.

    Args:
        paths: the folders of the runs.
        data: where the data are now; None for where they were.

    Raises:
        RunError: one of them is no such run, or they had other images or labels.
        DataError: the data are not there any more, or have changed for the worse.
    """
    import numpy as np

    from rankdet.cli.common import Voice
    from rankdet.cli.running import RECIPE, SETTINGS, read_settings, splits
    from rankdet.data.discover import discover
    from rankdet.data.errors import DataError
    from rankdet.data.images import read_image_as
    from rankdet.data.imageset import to_coco
    from rankdet.engine.files import RunError

    found = []
    for path in paths:
        if not ((path / RECIPE).is_file() and (path / SETTINGS).is_file()):
            raise RunError(
                f"a report needs ground truth and detections, and {path} is no folder of `rankdet "
                "train`, whose data are known: name detections and add --ground-truth"
            )
        recipe, source = read_settings(path)
        try:
            images = splits(discover(Path(data or source)), recipe, Voice(quiet=True))[1]
        except DataError as error:
            hint = "" if data else "; say by --data where they are now"
            raise RunError(f"the data of run {path} cannot be read{hint}: {error}") from error
        found.append((images, to_coco(images)))
    if found[0][1] != found[1][1]:
        raise RunError(
            f"{paths[0]} and {paths[1]} were validated on different images or labels: add "
            "--ground-truth, and name detections of both on the same images"
        )
    records = {record.id: record for record in found[0][0].records}

    def pixels(image_id: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        record = records[image_id]
        try:
            return read_image_as(record.path, record.width, record.height)
        except DataError:
            return None

    return Truth(found[0][1], pixels)


def _write_report(
    given: argparse.Namespace, sides: Sequence[Side], names: tuple[str, str], both: Truth
) -> None:
    from rankdet.cli.common import command_line
    from rankdet.engine.files import RunError
    from rankdet.eval import report

    runs = []
    for side, name in zip(sides, names, strict=True):
        if side.detections is None:
            raise RunError(
                f"{side.path} holds no detections, which the report needs; name COCO results, or a "
                "folder with detections.json"
            )
        runs.append(report.RunForReport(name, side.score, both.ground_truth, side.detections))
    facts = {name: str(side.path) for name, side in zip(names, sides, strict=True)}
    facts |= {"ground truth": given.ground_truth or "validation split of the runs"}
    title = given.title or f"{names[1]} compared with {names[0]}"
    try:
        write_together(
            [
                (
                    Path(given.html),
                    lambda part: report.write_report(
                        part,
                        runs,
                        images=both.pixels,
                        title=title,
                        facts={**facts, "command": command_line()},
                    ),
                )
            ]
        )
    except ValueError as error:
        raise RunError(
            "these two cannot stand in one report; score both on the same ground truth by "
            f"--ground-truth: {error}"
        ) from error
