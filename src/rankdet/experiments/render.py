"""A table as Markdown, as CSV and on the terminal: measured and published numbers apart."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from rankdet.experiments.collect import Grid
from rankdet.experiments.judge import Compared, statements
from rankdet.experiments.published import Published
from rankdet.experiments.spread import Summary, summarise
from rankdet.experiments.table import Measure, Table

NOTHING = "-"
_ANY_WIDTH = 1000
UNITS = (
    "Numbers are points (hundredths); AP: higher is better, oLRP and its parts (loc: 1 - IoU of "
    "what is right, FP: share of wrong detections, FN: share of missed objects): lower is better. "
    "Measured: mean over seeds ± standard deviation; without ± from one seed."
)
_OF_CORRELATION = (
    " r: Pearson's correlation of score and IoU among what is right, in hundredths; "
    "higher is better."
)


@dataclass(frozen=True)
class Filled:
    """A table with everything that is printed of it."""

    table: Table
    scale: str
    found: Grid
    published: Published | None
    compared: tuple[Compared, ...]
    bins: Mapping[str, int]
    """Images by the number of their objects."""
    missing: tuple[str, ...]
    """Runs that are not finished, with the reason."""
    notes: tuple[str, ...]
    facts: Mapping[str, str]
    """How it was measured: command, machine, versions."""
    plots: tuple[str, ...] = ()
    """Names of the files of the plots."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures that are printed: bins without images only where they are published."""
        return tuple(
            measure
            for measure in self.table.measures
            if measure.objects is None or self.bins.get(measure.objects) or self._known(measure)
        )

    @property
    def units(self) -> str:
        """What the numbers mean."""
        correlated = any(measure.of == "pearson" for measure in self.table.measures)
        return UNITS + _OF_CORRELATION if correlated else UNITS

    @property
    def published_measures(self) -> tuple[Measure, ...]:
        """The measures of which the paper has a number."""
        return tuple(measure for measure in self.table.measures if self._known(measure))

    @property
    def heading(self) -> str:
        """What heads the published columns."""
        return f"published ({self.published.setting})" if self.published else "published"

    def title_of(self, measure: Measure) -> str:
        """Return what heads a measured column."""
        if measure.objects is None or not self.bins:
            return measure.name
        return f"{measure.name} ({self.bins.get(measure.objects, 0)} images)"

    def seeds(self, row: str) -> int:
        """Return the number of seeds that a row has."""
        return len(
            {seed for (name, _), values in self.found.items() if name == row for seed in values}
        )

    def summary(self, row: str, measure: Measure) -> Summary | None:
        """Return mean and spread of a cell."""
        return summarise(list(self.found.get((row, measure.name), {}).values()))

    def cell(self, row: str, measure: Measure) -> str:
        """Return a measured number as text."""
        found = self.summary(row, measure)
        if found is None:
            return NOTHING
        spread = "" if found.spread is None else f" ± {found.spread:.1f}"
        return f"{found.mean:.1f}{spread}"

    def published_cell(self, row: str, measure: Measure) -> str:
        """Return a published number as text."""
        value = self.published.value(row, measure.name) if self.published else None
        return NOTHING if value is None else f"{value:.1f}"

    def _known(self, measure: Measure) -> bool:
        return any(self.published_cell(row.name, measure) != NOTHING for row in self.table.rows)


def markdown(filled: Filled) -> str:
    """Return the whole page."""
    lines = [f"# {filled.table.title}", ""]
    lines += [f"Scale {filled.scale}. {filled.units}", ""]
    heads = ["", "seeds", *(filled.title_of(each) for each in filled.measures)]
    heads += [f"{filled.heading}: {each.name}" for each in filled.published_measures]
    lines += [_line(heads), _line(["---"] * len(heads))]
    for row in filled.table.rows:
        cells = [filled.table.label(row.name), str(filled.seeds(row.name))]
        cells += [filled.cell(row.name, each) for each in filled.measures]
        cells += [filled.published_cell(row.name, each) for each in filled.published_measures]
        lines.append(_line(cells))
    lines.append("")
    if filled.published is not None:
        lines += [f"Published: {filled.published.source}. Measured by its authors, not here.", ""]
    lines += [part for name in filled.plots for part in (f"![{name}]({name})", "")]
    sections = (
        ("What can be said", statements(filled.compared)),
        ("Not finished", filled.missing),
        ("Notes", filled.notes),
        ("How it was measured", [f"{key}: {value}" for key, value in filled.facts.items()]),
    )
    for title, entries in sections:
        if entries:
            lines += [f"## {title}", "", *(f"- {_escaped(entry)}" for entry in entries), ""]
    return "\n".join(lines)


def as_csv(filled: Filled) -> str:
    """Return a line for each row and measure: all seeds, mean, spread, and the published number."""
    seeds = sorted({seed for values in filled.found.values() for seed in values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["table", "scale", "row", "label", "measure", "unit", "n", "mean", "spread",
         *(f"seed {seed}" for seed in seeds), "published", "published setting"]
    )  # fmt: skip
    for row in filled.table.rows:
        for measure in filled.table.measures:
            values = filled.found.get((row.name, measure.name), {})
            found = summarise(list(values.values()))
            known = filled.published.value(row.name, measure.name) if filled.published else None
            setting = filled.published.setting if filled.published and known is not None else ""
            writer.writerow(
                [
                    filled.table.name, filled.scale, row.name, row.label, measure.name, "points",
                    found.n if found else 0, _number(found.mean if found else None),
                    _number(found.spread if found else None),
                    *(_number(values.get(seed)) for seed in seeds), _number(known), setting,
                ]
            )  # fmt: skip
    return text.getvalue()


@dataclass(frozen=True)
class OnTerminal:
    """Renders a table with rich; measured and published by themselves where both do not fit."""

    filled: Filled

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the tables, and below them what can be said."""
        filled = self.filled
        title = f"{filled.table.title}, scale {filled.scale}"
        wide = options.update(max_width=_ANY_WIDTH)

        def fits(table: RichTable) -> bool:
            return console.measure(table, options=wide).maximum <= options.max_width

        whole = self._table(title, filled.measures, filled.published_measures)
        if fits(whole):
            yield whole
        else:
            measures = filled.measures
            if not fits(self._table(title, measures, ())):
                measures = tuple(measure for measure in measures if measure.compared)
            # As many columns below each other as it takes: a number that is cut off is none.
            while measures:
                count = len(measures)
                while count > 1 and not fits(self._table(title, measures[:count], ())):
                    count -= 1
                yield self._table(title, measures[:count], ())
                title, measures = "", measures[count:]
            if filled.published_measures:
                yield self._table(filled.heading, (), filled.published_measures)
        yield Text(filled.units, style="dim")
        for line in statements(filled.compared):
            yield Text(f"- {line}")
        for line in filled.missing:
            yield Text(f"not finished: {line}", style="yellow")
        for line in filled.notes:
            yield Text(f"! {line}", style="yellow")

    def _table(
        self, title: str, measured: Sequence[Measure], published: Sequence[Measure]
    ) -> RichTable:
        filled = self.filled
        table = RichTable(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        if measured:
            table.add_column("seeds", justify="right")
        for head in self._heads(measured, published):
            table.add_column(head, justify="right")
        for row in filled.table.rows:
            seeds = [str(filled.seeds(row.name))] if measured else []
            table.add_row(
                filled.table.label(row.name),
                *seeds,
                *(filled.cell(row.name, each).replace(" ", "") for each in measured),
                *(Text(filled.published_cell(row.name, each), style="cyan") for each in published),
            )
        return table

    def _heads(self, measured: Sequence[Measure], published: Sequence[Measure]) -> Iterator[str]:
        for measure in measured:
            yield self.filled.title_of(measure).replace(" (", "\n(")
        for measure in published:
            above = "\n".join(textwrap.wrap(self.filled.heading, 12))
            # A table of the published numbers alone has the heading as its title.
            yield f"{above}\n{measure.name}" if measured else measure.name


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("\n", " ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")
