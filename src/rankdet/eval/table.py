"""A score on the terminal: headline numbers with their meaning, by size, by count, by class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from rankdet.eval.score import ClassScore, CountScore, Score, SizeScore, count_label

# Below this many columns of text the parts of LRP are left out.
_NARROW = 78

_MEANINGS = (
    ("AP", "mean precision, IoU .5 to .95; higher is better"),
    ("AP50", "the same, boxes roughly right (IoU .5)"),
    ("AP75", "the same, boxes tight (IoU .75)"),
    ("AR100", "share of objects found, at best"),
    ("oLRP", "error at the best threshold; lower is better"),
    ("oLRP_loc", "  how far boxes are off (1 - IoU)"),
    ("oLRP_fp", "  share of wrong detections"),
    ("oLRP_fn", "  share of missed objects"),
)


@dataclass(frozen=True)
class ScoreTable:
    """Renders a score with rich; drops columns where the terminal is narrow."""

    score: Score
    classes: int
    """Most classes to list."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the tables, one after the other."""
        narrow = options.max_width < _NARROW
        yield from _headline(self.score)
        yield _sizes(self.score.by_size, narrow)
        if self.score.by_count:
            yield _counts(self.score.by_count, narrow)
        yield _classes(self.score.per_class[: self.classes], narrow)
        hidden = len(self.score.per_class) - self.classes
        if hidden > 0:
            yield Text(f"and {hidden} more classes", style="dim")
        for warning in self.score.warnings:
            yield Text(f"! {warning}", style="yellow")


def table(score: Score, *, classes: int = 100) -> ScoreTable:
    """Return a score for ``rich.print``: headline, by size, by count, by class, warnings.

    Args:
        score: from `rankdet.eval.score.score`.
        classes: most classes to list, 0 or more.
    """
    return ScoreTable(score, max(classes, 0))


def _headline(score: Score) -> Iterable[RenderableType]:
    yield Text(f"{score.images} images, {score.objects} objects, {score.detections} detections")
    head = _grid("Headline", ("", "", "meaning"))
    for name, meaning in _MEANINGS:
        head.add_row(Text(name, style="bold"), _number(getattr(score, name)), Text(meaning))
    pearson, spearman = score.correlation.pearson, score.correlation.spearman
    head.add_row(Text("score-IoU"), _number(spearman), Text("do better boxes score higher? (rank)"))
    head.add_row(Text(""), _number(pearson), Text("  the same, linear"))
    yield head


def _sizes(sizes: Iterable[SizeScore], narrow: bool) -> Table:
    grid = _grid("By size of object", ("size", "objects", "oLRP", *_parts(narrow)))
    for each in sizes:
        grid.add_row(Text(each.size), str(each.objects), _number(each.oLRP), *_values(each, narrow))
    return grid


def _counts(counts: Iterable[CountScore], narrow: bool) -> Table:
    columns = ("objects", "images", "AP", "AP50", "oLRP", *_parts(narrow))
    grid = _grid("By objects in the image", columns)
    for each in counts:
        grid.add_row(
            Text(count_label(each.low, each.high)), str(each.images),
            _number(each.AP), _number(each.AP50), _number(each.oLRP), *_values(each, narrow),
        )  # fmt: skip
    return grid


def _classes(classes: Iterable[ClassScore], narrow: bool) -> Table:
    shown = ("objects", "AP", "oLRP") if narrow else ("objects", "AP", "AP50", "oLRP")
    grid = _grid("By class", ("class", *shown, *_parts(narrow), "thr." if narrow else "threshold"))
    for each in classes:
        numbers = {"objects": Text(str(each.objects)), "AP": _number(each.AP),
                   "AP50": _number(each.AP50), "oLRP": _number(each.oLRP)}  # fmt: skip
        grid.add_row(
            Text(each.name),
            *(numbers[name] for name in shown),
            *_values(each, narrow),
            _number(each.threshold),
        )
    return grid


def _grid(title: str, columns: Iterable[str]) -> Table:
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    for place, column in enumerate(columns):
        text = place == 0 or column == "meaning"
        grid.add_column(
            column,
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=not text,
            min_width=8 if text else None,
        )
    return grid


def _parts(narrow: bool) -> tuple[str, ...]:
    return () if narrow else ("loc", "FP", "FN")


def _values(each: ClassScore | CountScore | SizeScore, narrow: bool) -> tuple[Text, ...]:
    if narrow:
        return ()
    return _number(each.oLRP_loc), _number(each.oLRP_fp), _number(each.oLRP_fn)


def _number(value: float | None) -> Text:
    return Text("-", style="dim") if value is None else Text(f"{value:.3f}")
