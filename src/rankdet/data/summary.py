"""What a data set holds, in numbers and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankdet.data.imageset import ImageSet, Problem
from rankdet.wording import counted

COUNT_BINS = (("0-3", 0, 3), ("4-10", 4, 10), ("11-20", 11, 20), ("21-62", 21, 62))
_LAST_BIN = "63+"
# COCO's: up to 32 x 32, up to 96 x 96, larger.
_SMALL, _MEDIUM = 32.0**2, 96.0**2
_EXAMPLES = 3


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs."""

    name: str
    images: int
    """Images with at least one object of the class."""
    boxes: int
    """Objects; crowd regions are not counted."""


@dataclass(frozen=True)
class ProblemGroup:
    """Problems of one kind."""

    message: str
    count: int
    examples: tuple[Problem, ...]
    """The first few."""


@dataclass(frozen=True)
class Spread:
    """The range of a quantity: smallest, 5 %, median, 95 %, largest; zeros where there is none."""

    smallest: float
    low: float
    median: float
    high: float
    largest: float


@dataclass(frozen=True)
class Summary:
    """What an image set holds. Crowd regions count as `crowd` and nowhere else."""

    name: str
    images: int
    boxes: int
    crowd: int
    empty_images: int
    """Images without an object."""
    most_objects: int
    """In one image."""
    objects_per_image: dict[str, int]
    """Images by their number of objects: "0-3", "4-10", "11-20", "21-62", "63+"."""
    sizes: dict[str, int]
    """Objects by annotated area: "small" < 32 x 32, "medium" < 96 x 96, "large" pixels."""
    relative_side: Spread
    """sqrt(area of the box / area of the image), per object."""
    aspect: Spread
    """Width / height of the box, per object."""
    image_sides: Spread
    """Longer side of the image in pixels, per image."""
    classes: tuple[ClassCount, ...]
    problems: tuple[ProblemGroup, ...]
    """Most frequent first."""

    def to_json(self) -> dict[str, Any]:
        """Return plain Python values."""
        content = asdict(self)
        for key in ("classes", "problems"):
            content[key] = list(content[key])
        for group, source in zip(content["problems"], self.problems, strict=True):
            group["examples"] = [str(example) for example in source.examples]
        return content


def summarise(image_set: ImageSet) -> Summary:
    """Count what an image set holds.

    Args:
        image_set: to be counted.

    Returns:
        The numbers.
    """
    records = image_set.records
    totals = np.array([len(record.boxes) for record in records], np.int64)
    image = np.repeat(np.arange(len(records)), totals)
    boxes = _joined([r.boxes for r in records], (0, 4)).astype(np.float64)
    labels = _joined([r.labels for r in records], (0,)).astype(np.int64)
    crowd = _joined([r.crowd for r in records], (0,)).astype(np.bool_)
    areas = _joined([r.areas for r in records], (0,)).astype(np.float64)
    sides = np.array([(r.width, r.height) for r in records], np.float64).reshape(-1, 2)
    crowds = int(crowd.sum())
    image, boxes, labels, areas = image[~crowd], boxes[~crowd], labels[~crowd], areas[~crowd]
    counts = np.bincount(image, minlength=len(records))
    bins = {name: int(((counts >= low) & (counts <= high)).sum()) for name, low, high in COUNT_BINS}
    bins[_LAST_BIN] = len(records) - sum(bins.values())
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    number = len(image_set.classes)
    per_class = np.bincount(labels, minlength=number)
    # Each pair of image and class once.
    pairs = np.unique(image * max(number, 1) + labels)
    with_class = np.bincount(pairs % max(number, 1), minlength=number)
    return Summary(
        name=image_set.name,
        images=len(records),
        boxes=len(boxes),
        crowd=crowds,
        empty_images=int((counts == 0).sum()),
        most_objects=int(counts.max(initial=0)),
        objects_per_image=bins,
        sizes={
            "small": int((areas < _SMALL).sum()),
            "medium": int(((areas >= _SMALL) & (areas < _MEDIUM)).sum()),
            "large": int((areas >= _MEDIUM).sum()),
        },
        relative_side=_spread(np.sqrt(width * height / sides.prod(axis=1)[image])),
        aspect=_spread(width / height),
        image_sides=_spread(sides.max(axis=1, initial=0)),
        classes=tuple(
            ClassCount(name, int(with_class[label]), int(per_class[label]))
            for label, name in enumerate(image_set.classes)
        ),
        problems=group_problems(image_set.problems),
    )


def group_problems(problems: Sequence[Problem]) -> tuple[ProblemGroup, ...]:
    """Count problems by kind.

    Args:
        problems: in any order.

    Returns:
        Groups of equal message, most frequent first, each with its first few problems.
    """
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.message, []).append(problem)
    ordered = sorted(groups.items(), key=lambda entry: -len(entry[1]))
    return tuple(
        ProblemGroup(message, len(group), tuple(group[:_EXAMPLES])) for message, group in ordered
    )


def render(summaries: Sequence[Summary], *, classes: int = 30) -> RenderableType:
    """Return summaries as tables for `rich`: a column for each split.

    Args:
        summaries: of the splits of one data set.
        classes: show at most so many, those with most boxes; the rest is counted in one line.
    """
    parts: list[RenderableType] = [_numbers(summaries), _classes(summaries, classes)]
    for summary in summaries:
        if summary.problems:
            parts.append(_problems(summary))
    return Group(*parts)


def _numbers(summaries: Sequence[Summary]) -> Table:
    table = Table(title="What was found", title_justify="left")
    table.add_column("")
    for summary in summaries:
        table.add_column(Text(summary.name), justify="right")

    def row(name: str, values: list[str], *, end: bool = False) -> None:
        table.add_row(Text(name), *map(Text, values), end_section=end)

    row("images", [f"{s.images:,}" for s in summaries])
    row("  without objects", [f"{s.empty_images:,}" for s in summaries])
    row(
        "  longer side in px: min / median / max",
        [_range(s.image_sides, "{:.0f}") for s in summaries],
    )
    row("boxes", [f"{s.boxes:,}" for s in summaries])
    row("crowd regions", [f"{s.crowd:,}" for s in summaries])
    row("problems", [f"{sum(p.count for p in s.problems):,}" for s in summaries], end=True)
    for name in (*(name for name, _, _ in COUNT_BINS), _LAST_BIN):
        values = [_share(s.objects_per_image[name], s.images) for s in summaries]
        row(f"images with {name} objects", values)
    row("most objects in an image", [f"{s.most_objects:,}" for s in summaries], end=True)
    for name, said in (("small", "< 32² px"), ("medium", "< 96² px"), ("large", "")):
        row(f"{name} boxes {said}".strip(), [_share(s.sizes[name], s.boxes) for s in summaries])
    row(
        "box side as share of image side: 5 % / median / 95 %",
        [_middle(s.relative_side, "{:.0%}") for s in summaries],
    )
    row("box width / height: min / median / max", [_range(s.aspect, "{:.2g}") for s in summaries])
    return table


def _classes(summaries: Sequence[Summary], most: int) -> Table:
    total = len(summaries[0].classes) if summaries else 0
    boxes = [sum(s.classes[label].boxes for s in summaries) for label in range(total)]
    order = sorted(range(total), key=lambda label: -boxes[label])
    table = Table(title=counted(total, "class", "classes"), title_justify="left")
    table.add_column("boxes (images)")
    for summary in summaries:
        table.add_column(Text(summary.name), justify="right")
    for label in order[:most]:
        found = [s.classes[label] for s in summaries]
        cells = (Text(f"{count.boxes:,} ({count.images:,})") for count in found)
        table.add_row(Text(summaries[0].classes[label].name), *cells)
    rest = order[most:]
    if rest:
        sums = (sum(s.classes[label].boxes for label in rest) for s in summaries)
        table.add_row(Text(f"{len(rest)} more classes"), *(Text(f"{value:,}") for value in sums))
    unused = sum(count == 0 for count in boxes)
    if unused:
        table.caption = Text(f"{counted(unused, 'class', 'classes')} without a box")
    return table


def _problems(summary: Summary) -> Text:
    text = Text(f"Problems in {summary.name}\n", style="bold")
    for group in summary.problems:
        text.append(f"  {group.count:,} x {group.message}\n", style="yellow")
        for example in group.examples:
            value = f" {example.value}" if example.value else ""
            text.append(f"      {example.file}: {example.record}{value}\n", style="dim")
        if group.count > len(group.examples):
            text.append(f"      and {group.count - len(group.examples):,} more\n", style="dim")
    return text


def _joined(parts: list[Any], empty: tuple[int, ...]) -> Any:
    return np.concatenate(parts) if parts else np.zeros(empty)


def _spread(values: Any) -> Spread:
    if not len(values):
        return Spread(0.0, 0.0, 0.0, 0.0, 0.0)
    return Spread(*np.quantile(values, (0, 0.05, 0.5, 0.95, 1)).tolist())


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.0%})" if total else f"{count:,}"


def _range(spread: Spread, form: str) -> str:
    values = (spread.smallest, spread.median, spread.largest)
    return " / ".join(form.format(value) for value in values)


def _middle(spread: Spread, form: str) -> str:
    values = (spread.low, spread.median, spread.high)
    return " / ".join(form.format(value) for value in values)
