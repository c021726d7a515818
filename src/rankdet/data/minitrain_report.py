"""What `minitrain.json` says of a subset, and the table that a person sees of it."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from rankdet.data.minitrain import LEVELS, Match, Target, describe, level_places, names_of
from rankdet.data.minitrain_files import Candidates
from rankdet.data.minitrain_json import ImageId, Instances

MAKER = "rankdet data minitrain"
_VERSION = 1
_SUBJECTS = ("best_of_draws", "subset")


@dataclass(frozen=True, eq=False)
class Choice:
    """The images of a subset, and how well they match."""

    ids: AbstractSet[ImageId]
    with_objects: int
    """How many of them have an object; so many the random draws have."""
    target: Target
    match: Match
    best_of_draws: Match
    worsts: tuple[float, ...]
    """The worst ratio of each random draw."""
    swaps: int | None
    """Images exchanged after the best draw; None where the images were given."""


def build_report(
    choice: Choice,
    source: Instances,
    pool: Candidates,
    *,
    absent: int,
    file: str,
    seed: int,
    given: str | None,
) -> dict[str, Any]:
    """Return the content of `minitrain.json`; nothing in it depends on machine or date.

    Args:
        choice: the subset.
        source: the whole.
        pool: its images with objects.
        absent: images of the whole that are not on the disk.
        file: the annotations of the subset, relative to its folder.
        seed: of the draws.
        given: name of the list that the images were taken from; None if they were drawn.

    Returns:
        Plain Python values. ``match`` has the numbers of `rankdet.data.minitrain.describe` for the
        best of the draws and for the subset, ``statistics`` each count.
    """
    target, names = choice.target, names_of(source.classes)
    matches = {}
    for name, match in zip(_SUBJECTS, (choice.best_of_draws, choice.match), strict=True):
        matches[name] = describe(match, target)
        for level in matches[name]["levels"]:
            place = level["worst_at"]
            level["worst_at"] = None if place is None else names[place]
    for level, places in zip(LEVELS, level_places(len(names)), strict=True):
        for match_of in matches.values():
            row = match_of["levels"][LEVELS.index(level)]
            row["counted"] = int(target.counted[places].sum())
            row["rare"] = int(target.rare[places].sum())
    median = statistics.median(choice.worsts)
    order = "\n".join(sorted(map(str, choice.ids)))
    return {
        "made_by": MAKER,
        "version": _VERSION,
        "settings": {
            "images": None if given else choice.with_objects,
            "list": given,
            "seed": seed,
            "draws": len(choice.worsts),
        },
        "source": {
            "file": source.path.name,
            "sha256": source.sha256,
            "images": len(source.images),
            "images_absent": absent,
            "images_with_objects": len(pool.ids),
            "objects": int(target.whole[0]),
        },
        "subset": {
            "file": file,
            "images": len(choice.ids),
            "images_with_objects": choice.with_objects,
            "objects": int(choice.match.counts[0]),
            "swaps": choice.swaps,
            "sha256_of_ids": hashlib.sha256(order.encode()).hexdigest(),
        },
        "score": {
            "least": target.least,
            "counted": int(target.counted.sum()),
            "rare": int(target.rare.sum()),
            "limit_of_worst_ratio": target.limit,
            "median_worst_ratio_of_draws": median if math.isfinite(median) else None,
        },
        "match": matches,
        "statistics": [
            {
                **names[place],
                "whole": int(target.whole[place]),
                "expected": float(target.expected[place]),
                "counted": bool(target.counted[place]),
                "best_of_draws": int(choice.best_of_draws.counts[place]),
                "subset": int(choice.match.counts[place]),
                "ratio": float(choice.match.ratios[place]),
            }
            for place in range(len(names))
        ],
    }


def render(report: dict[str, Any]) -> Table:
    """Return the match by level as a table for `rich`."""
    title = "How often against the whole: worst ratio, mean deviation from 1"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("counted", justify="right")
    table.add_column("rare", justify="right")
    table.add_column(f"best of {report['settings']['draws']:,} draws", justify="right")
    table.add_column("this subset", justify="right")
    table.add_column("worst at")
    pairs = (report["match"][name]["levels"] for name in _SUBJECTS)
    for drawn, own in zip(*pairs, strict=True):
        cells = (own["level"], f"{own['counted']:,}", f"{own['rare']:,}")
        match = [_cell(each) if own["counted"] else "-" for each in (drawn, own)]
        table.add_row(*map(Text, (*cells, *match, name_of(own["worst_at"]))))
    return table


def remarks(report: dict[str, Any]) -> list[str]:
    """Return the same in sentences: what is worst, and against the draws."""
    score, own = report["score"], report["match"]["subset"]
    drawn = report["match"]["best_of_draws"]
    said = []
    if not score["counted"]:
        said.append(
            f"Nothing is counted: of no statistic {score['least']:g} objects are expected in so"
            " few images"
        )
    else:
        said.append(
            f"worst ratio {_ratio(own['worst_ratio'])}; whole objects allow no better than"
            f" {score['limit_of_worst_ratio']:.3f}. Best of {report['settings']['draws']:,} random"
            f" draws: {_ratio(drawn['worst_ratio'])}; a single draw, in the median:"
            f" {_ratio(score['median_worst_ratio_of_draws'])}"
        )
        said.append(_gain(drawn, own))
    if score["rare"]:
        said.append(
            f"{score['rare']} rare statistics (fewer than {score['least']:g} objects expected) are"
            f" off by {own['largest_rare_difference']:.1f} objects at most; best of the draws:"
            f" {drawn['largest_rare_difference']:.1f}"
        )
    return said


def name_of(place: dict[str, str | None] | None) -> str:
    """Return what a statistic is called: "cat, small"."""
    if place is None:
        return ""
    return ", ".join(part for part in place.values() if part) or "all objects"


def _gain(drawn: dict[str, Any], own: dict[str, Any]) -> str:
    parts = []
    for what, key, base in (
        ("distance of the worst ratio from 1", "worst_ratio", 1.0),
        ("mean deviation", "mean_deviation", 0.0),
    ):
        if drawn[key] is not None and own[key] is not None:
            parts.append(f"{what} {_times(drawn[key] - base, own[key] - base)}")
    return f"against the best of the draws: {', '.join(parts) or 'one of them is infinite'}"


def _times(before: float, after: float) -> str:
    if after == before:
        return "the same"
    if after == 0 or before == 0:
        return f"{after:.3f} instead of {before:.3f}"
    if after < before:
        return f"{before / after:.1f} times smaller"
    return f"{after / before:.2f} times as large"


def _cell(level: dict[str, Any]) -> str:
    return f"{_ratio(level['worst_ratio'])}, {level['mean_deviation']:.2%}"


def _ratio(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3f}"
