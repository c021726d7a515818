"""Reading COCO's ground truth and anybody's results from files, or saying what is wrong with them.

Plain JSON or gzip, told apart by content. Every message names the file, the record, the value, and
what to do.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rankdet.eval.instances import Instances, add_detections, read_truth
from rankdet.eval.score import SCHEMA, Score

_GZIP = b"\x1f\x8b"
_NEEDED = "image_id, category_id, bbox and score"
# Keys under which other programs keep the list of results.
_LISTS = ("annotations", "detections", "predictions", "results")

Made = TypeVar("Made")


class EvaluationFileError(ValueError):
    """A file cannot be evaluated; the message names the file, the record, and the remedy."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, plain or gzip.

    Args:
        path: of the file; its content says which of the two it is, not its name.

    Raises:
        EvaluationFileError: it is absent, a folder, empty, damaged, cut off, or no JSON.
    """
    raw = _unpacked(path, _bytes(path))
    name = ", nor gzip as the name says" if path.suffix == ".gz" and raw[:2] != _GZIP else ""
    try:
        return json.loads(raw)
    except json.JSONDecodeError as fault:
        # A text that ends in the midst of a word is found wrong where the word begins.
        cut = len(fault.doc.rstrip()) - fault.pos < 9 or fault.msg.startswith("Unterminated")
        remedy = (
            "the file seems to be cut off; copy or write it again"
            if cut
            else "correct the file there, or export it again"
        )
        raise EvaluationFileError(
            f"{path}: no valid JSON{name} at line {fault.lineno}, column {fault.colno} (character "
            f"{fault.pos}, {_near(fault.doc, fault.pos)}): {fault.msg}; {remedy}"
        ) from fault
    except (ValueError, RecursionError) as fault:
        raise EvaluationFileError(
            f"{path}: no valid JSON{name}: {fault}; export it again as JSON in UTF-8"
        ) from fault


def read_ground_truth(path: Path, *, empty_boxes: bool = False) -> tuple[dict[str, Any], Instances]:
    """Return COCO's ground truth and its columns.

    Args:
        path: of an instances file, plain or gzip.
        empty_boxes: keep boxes without width or height; they can never be found.

    Returns:
        The dictionary as it stands in the file, and its columns without detections.

    Raises:
        EvaluationFileError: it cannot be read, is no instances file, has no images or categories,
            one of its records is wrong, or, unless they are asked for, a box has no width or
            height.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise EvaluationFileError(
            f"{path}: the ground truth must be an object with images, categories and annotations, "
            f"found {_kind(content)}{_swapped(content)}"
        )
    for key, entry in (("categories", "class, with id and name"), ("images", "image, with id")):
        if content.get(key) == []:
            raise EvaluationFileError(
                f"{path}: the ground truth has no {key}: the list {key!r} is empty. Add an entry "
                f"for each {entry}"
            )
    truth = _named(path, lambda: read_truth(content))
    if not empty_boxes:
        remedy = "correct them, leave them out, or count them as missed by --empty-boxes"
        _refuse_empty(path, "annotations", truth.gt_boxes, remedy)
    return content, truth


def read_detections(
    path: Path, truth: Instances, *, empty_boxes: bool = False
) -> tuple[list[Any], Instances]:
    """Return COCO results and their columns beside those of the ground truth.

    Args:
        path: of a results file, plain or gzip; its list may be empty.
        truth: columns of the ground truth.
        empty_boxes: keep boxes without width or height, as wrong detections.

    Returns:
        The list as it stands in the file, and the columns of both.

    Raises:
        EvaluationFileError: it cannot be read, is no list of results, one of its records is wrong
            or of an image or category that the ground truth does not have, or, unless they are
            asked for, a box has no width or height.
    """
    content = read_json(path)
    return content, check_detections(path, content, truth, empty_boxes=empty_boxes)


def check_detections(
    path: Path, content: Any, truth: Instances, *, empty_boxes: bool = False
) -> Instances:
    """Return the columns of results that have been read already; see `read_detections`.

    Args:
        path: to name in messages.
        content: of the file.
        truth: columns of the ground truth.
        empty_boxes: keep boxes without width or height.

    Raises:
        EvaluationFileError: as `read_detections`.
    """
    if not isinstance(content, list):
        raise EvaluationFileError(
            f"{path}: detections must be a list of COCO results, each with {_NEEDED}; found "
            f"{_kind(content)}{_inner_list(content)}"
        )
    if content and isinstance(content[0], Mapping) and {"file", "detections"} <= set(content[0]):
        raise EvaluationFileError(
            f"{path}: these are predictions for new images, as `rankdet predict` writes them; "
            f"COCO results are needed, a list with {_NEEDED} for each box, as `rankdet evaluate` "
            "writes into detections.json"
        )
    found = _named(path, lambda: add_detections(truth, content))
    if not empty_boxes:
        remedy = "leave them out, or count them as wrong detections by --empty-boxes"
        _refuse_empty(path, "detections", found.dt_boxes, remedy)
    return found


def read_score(path: Path, content: Any = None) -> Score:
    """Return a score that was written as JSON.

    Args:
        path: of the file.
        content: what is in it, if it has been read already.

    Raises:
        EvaluationFileError: it cannot be read, or is no score of this version.
    """
    content = read_json(path) if content is None else content
    try:
        return Score.from_json(content)
    except (TypeError, ValueError) as fault:
        raise EvaluationFileError(
            f"{path}: {fault}. Write it again by `rankdet score --json` of this version "
            f"(schema {SCHEMA})"
        ) from fault


def read_thresholds(path: Path) -> dict[str, float | None]:
    """Return thresholds by the name of the class.

    Args:
        path: of a score written as JSON, or of a JSON object of names and numbers alone.

    Raises:
        EvaluationFileError: it cannot be read, or holds no thresholds.
    """
    content = read_json(path)
    if isinstance(content, dict) and "schema" in content:
        content = content.get("thresholds")
    if not isinstance(content, dict):
        raise EvaluationFileError(
            f"{path}: thresholds must be an object of class names and numbers, or a score.json; "
            f"found {_kind(content)}"
        )
    for name, value in content.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and np.isfinite(value)):
            raise EvaluationFileError(
                f"{path}: the threshold of class {name!r} is {value!r}; write a finite number, or "
                "null to keep nothing of the class"
            )
    return content


def _bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as fault:
        raise EvaluationFileError(f"{path}: there is no such file; check the path") from fault
    except IsADirectoryError as fault:
        inside = sorted(p.name for p in path.glob("*.json*"))[:3]
        hint = f", such as {', '.join(inside)} in it" if inside else ""
        raise EvaluationFileError(f"{path}: this is a folder; name a file{hint}") from fault
    except PermissionError as fault:
        raise EvaluationFileError(
            f"{path}: no permission to read this file; allow reading (chmod u+r {path})"
        ) from fault
    except OSError as fault:
        raise EvaluationFileError(f"{path}: cannot be read: {fault}; check the path") from fault
    if not raw.strip():
        raise EvaluationFileError(f"{path}: the file is empty; copy or write it again")
    return raw


def _unpacked(path: Path, raw: bytes) -> bytes:
    if not raw.startswith(_GZIP):
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as fault:
        raise EvaluationFileError(
            f"{path}: the gzip content is cut off or damaged ({fault}); copy or write it again"
        ) from fault


def _named(path: Path, make: Callable[[], Made]) -> Made:
    """Call a function; put the name of the file before what it complains about."""
    try:
        return make()
    except (TypeError, ValueError) as fault:
        raise EvaluationFileError(f"{path}: {fault}") from fault


def _refuse_empty(path: Path, where: str, boxes: Any, remedy: str) -> None:
    empty = (boxes[:, 2:] == 0).any(axis=1)
    if empty.any():
        number = int(np.argmax(empty))
        raise EvaluationFileError(
            f"{path}: {where}[{number}]: bbox {boxes[number].tolist()} has no width or no height "
            f"({int(empty.sum())} such of {len(boxes)}); {remedy}"
        )


def _kind(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key) for key in list(content)[:5])
        return f"an object with {keys or 'nothing in it'}"
    return f"a list of {len(content)}" if isinstance(content, list) else repr(content)[:40]


def _swapped(content: Any) -> str:
    results = isinstance(content, Sequence) and content and isinstance(content[0], Mapping)
    if results and "score" in content[0]:
        return ". These look like detections: are the two files swapped?"
    return ""


def _inner_list(content: Any) -> str:
    if not isinstance(content, Mapping):
        return ""
    if {"images", "categories", "annotations"} <= set(content):
        return ". This looks like ground truth: are the two files swapped?"
    lists = [key for key in _LISTS if isinstance(content.get(key), list)]
    return f". Write the list under {lists[0]!r} into a file of its own" if lists else ""


def _near(text: str, place: int) -> str:
    """Return the text on both sides of a place."""
    around = text[max(place - 12, 0) : place + 12]
    return f"near {around!r}" if around.strip() else "at the end"
