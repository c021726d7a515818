"""What can be said of a table, in plain words made from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankdet.experiments.collect import Grid
from rankdet.experiments.published import Published
from rankdet.experiments.spread import CONFIDENCE, Difference, Verdict, difference
from rankdet.experiments.table import Measure, Table

RULE = (
    f"Rule: rows are compared seed by seed; a difference exceeds the spread if Student's "
    f"{CONFIDENCE:.0%} interval of its mean over the seeds leaves out zero."
)


@dataclass(frozen=True)
class Compared:
    """One row compared with another by one measure; all numbers are in points."""

    first: str
    """Label of the row."""
    second: str
    measure: Measure
    here: Difference
    published: float | None
    """The published difference, first less second; None where one of both was not published."""

    @property
    def same_order(self) -> bool | None:
        """Whether the measured mean has the sign of the published difference.

        None where either is missing or zero.
        """
        if not self.published or not self.here.mean:
            return None
        return (self.published > 0) == (self.here.mean > 0)

    def sentence(self) -> str:
        """Return what was found, in words."""
        here = self.here
        start = f"{self.measure.name}: {self.first}"
        if here.mean is None:
            return f"{start} against {self.second}: no seed has both."
        if here.low is None or here.high is None:
            said = f"{start} {self._apart(here.mean)} {self.second} with one seed: cannot say"
        else:
            verdict = "more than" if here.verdict is Verdict.EXCEEDS else "within"
            said = (
                f"{start} {self._apart(here.mean)} {self.second} ({CONFIDENCE:.0%} interval "
                f"{here.low:+.1f} to {here.high:+.1f}, {here.n} seeds): {verdict} the spread"
            )
        if self.published is not None:
            said += f"; published: {self.published:+.1f}"
        return f"{said}."

    def _apart(self, by: float) -> str:
        """Return by how much the first is higher or lower."""
        if abs(by) < 0.05 and self.here.verdict is not Verdict.EXCEEDS:
            return "is level with"
        size = f"{abs(by):.1f}" if abs(by) >= 0.05 else f"{abs(by):.2g}"
        good = (by > 0) == self.measure.higher_is_better
        side, word = ("higher", "above") if by > 0 else ("lower", "below")
        if self.measure.higher_is_better:
            return f"is {size} points {word}"
        return f"is {size} points {side} ({'better' if good else 'worse'}) than"


def compare(table: Table, found: Grid, published: Published | None) -> tuple[Compared, ...]:
    """Compare the rows that a table is about.

    Args:
        table: which.
        found: its numbers.
        published: the numbers of the paper.

    Returns:
        All comparisons by all measures of which either row has a number.
    """
    made = []
    for measure in table.measures:
        for first, second in table.comparisons:
            one, other = (found.get((row, measure.name), {}) for row in (first, second))
            if not measure.compared or not (one or other):
                continue
            both = [published.value(row, measure.name) if published else None
                    for row in (first, second)]  # fmt: skip
            apart = None if both[0] is None or both[1] is None else round(both[0] - both[1], 6)
            made.append(
                Compared(
                    table.label(first),
                    table.label(second),
                    measure,
                    difference(one, other),
                    apart,
                )
            )
    return tuple(made)


def statements(compared: Sequence[Compared]) -> list[str]:
    """Return what can be said: first of all of them together, then of each.

    Args:
        compared: from `compare`.
    """
    if not compared:
        return [
            "Nothing to compare: no row with numbers is here beside one that it is compared with."
        ]
    there = [each for each in compared if each.here.n]
    lines = [_order(compared), *_chance(there), *(each.sentence() for each in there)]
    if len(there) < len(compared):
        lines.append(
            f"{len(compared) - len(there)} of {len(compared)} differences cannot be had: no seed "
            "has the numbers of both rows."
        )
    return [*lines, RULE]


def _order(compared: Sequence[Compared]) -> str:
    """Say whether the order of the paper holds."""
    both = [each for each in compared if each.published]
    if not both:
        return "The paper has no numbers to compare these with."
    clear = [each for each in both if each.here.verdict is Verdict.EXCEEDS]
    same = sum(each.same_order is True for each in clear)
    reverse = sum(each.same_order is False for each in clear)
    rest = len(both) - same - reverse
    said = (
        f"The paper has {len(both)} of these differences: {same} {_goes(same)} the same way here "
        f"by more than the spread, {reverse} {_goes(reverse)} the other way by more than the "
        f"spread, and {rest} cannot be told."
    )
    if rest == len(both):
        return f"Whether the paper's order holds here cannot be said. {said}"
    if same == len(both):
        return f"The paper's order holds here. {said}"
    if reverse == 0:
        return f"The paper's order holds here as far as can be told. {said}"
    return f"The paper's order does not hold here in all. {said}"


def _goes(count: int) -> str:
    return "goes" if count == 1 else "go"


def _chance(compared: Sequence[Compared]) -> list[str]:
    """Say how many differences chance alone would let stand out."""
    tested = sum(each.here.n > 1 for each in compared)
    if tested < 2:
        return []
    exceed = sum(each.here.verdict is Verdict.EXCEEDS for each in compared)
    return [
        f"{exceed} of the {tested} differences below exceed the spread; about "
        f"{(1 - CONFIDENCE) * tested:.1f} would by chance alone if no row differed from another."
    ]
