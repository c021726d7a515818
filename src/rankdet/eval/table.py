"""A score on the terminal: headline numbers with their meaning, by size, by count, by class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from rankdet.eval.at_threshold import ClassAtThreshold, ScoreAtThreshold
from rankdet.eval.score import ClassScore, CountScore, Score, SizeScore, count_label
from rankdet.wording import counted

# Below this many columns of text the parts of LRP are left out.
_NARROW = 78

# Stands behind a count that is too small to say much.
_MARK = "*"

_MEANINGS = (
    ("AP", "mean precision, IoU .5 to .95; higher is better"),
    ("AP50", "the same, boxes roughly right (IoU .5)"),
    ("AP75", "the same, boxes tight (IoU .75)"),
    ("AR1", "share of objects found by the best box of each image and class"),
    ("AR10", "  by the best ten"),
    ("AR100", "  by the best hundred: what is found at all"),
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
        few = self.score.few
        shown = self.score.per_class[: self.classes]
        yield _sizes(self.score, narrow)
        if self.score.by_count:
            yield _counts(self.score.by_count, narrow, few)
        yield _classes(shown, narrow, few)
        hidden = len(self.score.per_class) - len(shown)
        if hidden > 0:
            yield Text(f"and {hidden} more {'classes' if hidden > 1 else 'class'}", style="dim")
        if self.score.at_threshold is not None:
            yield _at_threshold(self.score.at_threshold, self.classes, narrow)
        rows: list[SizeScore | CountScore | ClassScore]
        rows = [*self.score.by_size, *self.score.by_count, *shown]
        counts = [row.objects for row in rows]
        if any(_is_few(objects, few) for objects in counts):
            told = f"{_MARK} fewer than {few} objects: these numbers say little"
            yield Text(told, style="yellow")
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
    yield Text(
        f"{counted(score.images, 'image')}, {counted(score.objects, 'object')},"
        f" {counted(score.detections, 'detection')}"
    )
    head = _grid("Headline", ("", "", "meaning"))
    for name, meaning in _MEANINGS:
        head.add_row(Text(name, style="bold"), _number(getattr(score, name)), Text(meaning))
    pearson, spearman = score.correlation.pearson, score.correlation.spearman
    head.add_row(Text("score-IoU"), _number(spearman), Text("do better boxes score higher? (rank)"))
    head.add_row(Text(""), _number(pearson), Text("  the same, linear"))
    yield head


def _sizes(score: Score, narrow: bool) -> Table:
    recall = () if narrow else ("AR",)
    columns = ("size", "objects", "AP", *recall, "oLRP", *_parts(narrow))
    grid = _grid("By size of object", columns)
    coco = ((score.APs, score.ARs), (score.APm, score.ARm), (score.APl, score.ARl))
    for each, (precision, found) in zip(score.by_size, coco, strict=True):
        grid.add_row(
            Text(each.size), _marked(str(each.objects), each.objects, score.few),
            _number(precision), *([] if narrow else [_number(found)]),
            _number(each.oLRP), *_values(each, narrow),
        )  # fmt: skip
    return grid


def _counts(counts: Iterable[CountScore], narrow: bool, few: int) -> Table:
    columns = ("objects", "images", "AP", "AP50", "oLRP", *_parts(narrow))
    grid = _grid("By objects in the image", columns)
    for each in counts:
        grid.add_row(
            _marked(count_label(each.low, each.high), each.objects, few), str(each.images),
            _number(each.AP), _number(each.AP50), _number(each.oLRP), *_values(each, narrow),
        )  # fmt: skip
    return grid


def _classes(classes: Iterable[ClassScore], narrow: bool, few: int) -> Table:
    shown = ("objects", "AP", "oLRP") if narrow else ("objects", "AP", "AP50", "oLRP")
    grid = _grid("By class", ("class", *shown, *_parts(narrow), "thr." if narrow else "threshold"))
    for each in classes:
        numbers = {"objects": _marked(str(each.objects), each.objects, few), "AP": _number(each.AP),
                   "AP50": _number(each.AP50), "oLRP": _number(each.oLRP)}  # fmt: skip
        grid.add_row(
            Text(each.name),
            *(numbers[name] for name in shown),
            *_values(each, narrow),
            _threshold(each.threshold),
        )
    return grid


def _at_threshold(score: ScoreAtThreshold, classes: int, narrow: bool) -> Table:
    counts = () if narrow else ("right", "wrong", "missed")
    grid = _grid(
        "At the thresholds asked for", ("class", "threshold", "LRP", *_parts(narrow), *counts)
    )

    def row(
        name: str, threshold: float | None, each: ClassAtThreshold | ScoreAtThreshold
    ) -> tuple[Text, ...]:
        parts = (each.LRP_loc, each.LRP_fp, each.LRP_fn)
        numbers = [_number(value) for value in ((each.LRP,) if narrow else (each.LRP, *parts))]
        whole = [] if narrow else [Text(str(n)) for n in (each.right, each.wrong, each.missed)]
        return (Text(name), _threshold(threshold), *numbers, *whole)

    grid.add_row(*row("all classes", None, score), style="bold")
    for each in score.per_class[:classes]:
        grid.add_row(*row(each.name, each.threshold, each))
    return grid


def _grid(title: str, columns: Iterable[str]) -> Table:
    # A line above each title keeps the tables apart.
    grid = Table(
        title=f"\n{title}", title_justify="left", box=None, pad_edge=False, title_style="bold"
    )
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


def _is_few(objects: int, few: int) -> bool:
    return 0 < objects < few


def _marked(text: str, objects: int, few: int) -> Text:
    return Text(f"{text}{_MARK}", style="yellow") if _is_few(objects, few) else Text(text)


def _threshold(value: float | None) -> Text:
    # Scores of ranking losses can be far below a thousandth.
    small = value is not None and value != 0 and abs(value) < 0.1
    return Text(f"{value:.3g}") if small else _number(value)


def _number(value: float | None) -> Text:
    return Text("-", style="dim") if value is None else Text(f"{value:.3f}")
