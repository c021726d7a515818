"""Two scores side by side: what changed, in which direction, and what forbids comparing them."""

# ruff: noqa: N815 - oLRP is how the paper writes it.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rankdet.eval.coco_ap import STATS
from rankdet.eval.score import Score, count_label

NOISE = 0.0005
"""Changes below this are not to be seen in three decimals, and are neither better nor worse."""

_ERRORS = ("oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn")

# Objects, AP, oLRP.
Row = tuple[int, float | None, float | None]


@dataclass(frozen=True)
class Difference:
    """One number of both."""

    name: str
    first: float | None
    second: float | None
    higher_is_better: bool | None
    """None where neither is."""

    @property
    def change(self) -> float | None:
        """Second less first; None where one of them is missing."""
        if self.first is None or self.second is None:
            return None
        return self.second - self.first

    @property
    def better(self) -> bool | None:
        """Whether the second is better; None if they are equal or cannot be compared."""
        change = self.change
        if change is None or abs(change) < NOISE or self.higher_is_better is None:
            return None
        return (change > 0) == self.higher_is_better


@dataclass(frozen=True)
class GroupDifference:
    """AP and oLRP of a class, a size, or images with so many objects."""

    name: str
    objects: tuple[int | None, int | None]
    """In the first and in the second; None where the group is not there."""
    AP: Difference
    oLRP: Difference


@dataclass(frozen=True)
class Comparison:
    """Everything that can be said about two scores."""

    headline: tuple[Difference, ...]
    """COCO's twelve numbers, oLRP and its parts, and the correlations of score and IoU."""
    by_size: tuple[GroupDifference, ...]
    by_count: tuple[GroupDifference, ...]
    per_class: tuple[GroupDifference, ...]
    """By change of AP, what got worse first; classes that cannot be compared last."""
    notes: tuple[str, ...]
    """What to know before one believes a difference; "A: " and "B: " before what is said of the
    first or the second alone."""


def compare(first: Score, second: Score) -> Comparison:
    """Compare the second score with the first.

    Classes are brought together by name, images by the number of their objects. Changes are second
    less first: of AP and AR a positive one is better, of LRP and its parts a negative one.

    Args:
        first: what to compare with.
        second: what is compared.

    Returns:
        The differences, and notes where the scores are not of the same data or settings.
    """
    headline = [Difference(n, getattr(first, n), getattr(second, n), True) for n in STATS]
    headline += [Difference(n, getattr(first, n), getattr(second, n), False) for n in _ERRORS]
    for kind in ("spearman", "pearson"):
        one, other = (getattr(score.correlation, kind) for score in (first, second))
        headline.append(Difference(f"score-IoU {kind}", one, other, True))
    sizes, counts, classes = ([rows(score) for score in (first, second)]
                              for rows in (_sizes, _counts, _classes))  # fmt: skip
    return Comparison(
        headline=tuple(headline),
        by_size=_groups(*sizes),
        by_count=_groups(*counts),
        per_class=tuple(sorted(_groups(*classes), key=_worst_first)),
        notes=tuple(_notes(first, second)),
    )


def _sizes(score: Score) -> dict[str, Row]:
    precisions = (score.APs, score.APm, score.APl)
    both = zip(score.by_size, precisions, strict=True)
    return {each.size: (each.objects, ap, each.oLRP) for each, ap in both}


def _counts(score: Score) -> dict[str, Row]:
    return {count_label(e.low, e.high): (e.objects, e.AP, e.oLRP) for e in score.by_count}


def _classes(score: Score) -> dict[str, Row]:
    return {each.name: (each.objects, each.AP, each.oLRP) for each in score.per_class}


def _groups(first: Mapping[str, Row], second: Mapping[str, Row]) -> tuple[GroupDifference, ...]:
    nothing = (None, None, None)
    made = []
    for name in dict.fromkeys((*first, *second)):
        one, other = first.get(name, nothing), second.get(name, nothing)
        made.append(
            GroupDifference(
                name,
                (one[0], other[0]),
                Difference("AP", one[1], other[1], True),
                Difference("oLRP", one[2], other[2], False),
            )
        )
    return tuple(made)


def _worst_first(each: GroupDifference) -> tuple[bool, float]:
    change = each.AP.change
    return change is None, 0.0 if change is None else change


def _notes(first: Score, second: Score) -> list[str]:
    notes = []
    for name in ("images", "objects", "crowd"):
        both = (getattr(first, name), getattr(second, name))
        if both[0] != both[1]:
            notes.append(
                f"Not the same data: {both[0]} {name} in A, {both[1]} in B. Their "
                "numbers cannot be compared one to one; score both on the same ground truth."
            )
            break
    else:
        if {k: v[0] for k, v in _classes(first).items()} != {
            k: v[0] for k, v in _classes(second).items()
        }:
            notes.append(
                "Not the same classes, or other numbers of objects in them: means over classes "
                "cannot be compared one to one."
            )
    if first.tau != second.tau:
        notes.append(f"LRP from an IoU of {first.tau:g} on in A, of {second.tau:g} in B.")
    if list(_counts(first)) != list(_counts(second)):
        notes.append("The numbers by objects in the image have other bins.")
    for warning in dict.fromkeys((*first.warnings, *second.warnings)):
        of = [warning in score.warnings for score in (first, second)]
        notes.append(warning if all(of) else f"{'A' if of[0] else 'B'}: {warning}")
    notes.append(
        "Two single runs: training again with another seed moves every number, so a small "
        "difference may be chance."
    )
    return notes
