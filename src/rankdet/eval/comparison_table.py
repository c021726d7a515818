"""Two scores on the terminal, side by side with their differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from rankdet.eval.comparison import Comparison, Difference, GroupDifference

# Below this many columns of text the two values of groups are left out, their change stays.
_NARROW = 72


@dataclass(frozen=True)
class ComparisonTable:
    """Renders a comparison with rich."""

    comparison: Comparison
    names: tuple[str, str]
    classes: int
    """Most classes to list."""
    few: int
    """Groups with fewer objects are marked."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the tables, one after the other."""
        narrow = options.max_width < _NARROW
        for letter, name in zip("AB", self.names, strict=True):
            yield Text(f"{letter} = {name}", style="bold")
        head = _grid("Headline", ("", "A", "B", "B - A", ""))
        for each in self.comparison.headline:
            word = {True: "better", False: "worse", None: ""}[each.better]
            head.add_row(Text(each.name), *_both(each), _change(each), Text(word, _style(each)))
        yield head
        yield self._groups("By size of object", "size", self.comparison.by_size, narrow)
        counts = self.comparison.by_count
        if counts:
            yield self._groups("By objects in the image", "objects", counts, narrow)
        shown, hidden = _ends(self.comparison.per_class, self.classes)
        title = "By class, what got worse in AP first"
        yield self._groups(title, "class", shown, narrow)
        if hidden:
            told = f"and {hidden} more in between that changed less"
            yield Text(told, style="dim")
        if any(self._is_few(each) for each in (*self.comparison.by_size, *counts, *shown)):
            yield Text(f"* fewer than {self.few} objects: these numbers say little", style="yellow")
        for note in self.comparison.notes:
            yield Text(f"! {note}", style="yellow")

    def _groups(
        self, title: str, what: str, groups: Iterable[GroupDifference], narrow: bool
    ) -> Table:
        values = () if narrow else ("A", "B")
        name = "in all" if what == "objects" else "objects"
        grid = _grid(title, (what, name, *_named("AP", values), *_named("oLRP", values)))
        for each in groups:
            cells = []
            for one in (each.AP, each.oLRP):
                cells += [*([] if narrow else _both(one)), _change(one)]
            grid.add_row(Text(each.name), self._objects(each), *cells)
        return grid

    def _objects(self, each: GroupDifference) -> Text:
        first, second = ("-" if count is None else str(count) for count in each.objects)
        text = first if first == second else f"{first} / {second}"
        return Text(f"{text}*", style="yellow") if self._is_few(each) else Text(text)

    def _is_few(self, each: GroupDifference) -> bool:
        return any(count is not None and 0 < count < self.few for count in each.objects)


def comparison_table(
    comparison: Comparison, names: tuple[str, str], *, classes: int = 100, few: int = 10
) -> ComparisonTable:
    """Return a comparison for ``rich.print``: headline, by size, by count, by class, notes.

    Args:
        comparison: from `rankdet.eval.comparison.compare`.
        names: of the first and the second.
        classes: most classes to list; of more, those that changed least are left out.
        few: groups with fewer objects are marked.
    """
    return ComparisonTable(comparison, names, max(classes, 0), few)


def _ends(groups: Sequence[GroupDifference], most: int) -> tuple[Sequence[GroupDifference], int]:
    """Return the groups at both ends of a sorted list, and how many were left out between."""
    if len(groups) <= most:
        return groups, 0
    head = most - most // 2
    comparable = [each for each in groups if each.AP.change is not None]
    whole = comparable if len(comparable) >= most else groups
    return [*whole[:head], *whole[len(whole) - most // 2 :]], len(groups) - most


def _named(what: str, values: Iterable[str]) -> tuple[str, ...]:
    return (*(f"{what} {value}" for value in values), f"{what} B - A" if not values else "B - A")


def _grid(title: str, columns: Iterable[str]) -> Table:
    # A line above each title keeps the tables apart.
    grid = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False,
                 title_style="bold")  # fmt: skip
    for place, column in enumerate(columns):
        grid.add_column(
            column,
            justify="right" if place else "left",
            overflow="fold",
            no_wrap=bool(place),
            min_width=None if place else 8,
        )
    return grid


def _both(each: Difference) -> list[Text]:
    return [_number(each.first), _number(each.second)]


def _number(value: float | None) -> Text:
    return Text("-", style="dim") if value is None else Text(f"{value:.3f}")


def _change(each: Difference) -> Text:
    if each.change is None:
        return Text("-", style="dim")
    text = f"{each.change:+.3f}"
    return Text("=" if text in ("+0.000", "-0.000") else text, style=_style(each))


def _style(each: Difference) -> str:
    return {True: "green", False: "red", None: "dim"}[each.better]
