"""All numbers in one table, changes by class, and what happens at given thresholds."""

from __future__ import annotations

from collections.abc import Sequence

from rankdet.eval.coco_ap import STATS
from rankdet.eval.comparison import Comparison, Difference, compare
from rankdet.eval.report.markup import DASH, Markup, count, number, significant, tag
from rankdet.eval.report.runs import Run
from rankdet.eval.report.tables import TALL, objects_cell

_MEANINGS = {
    "AP": "mean over IoU .50 to .95",
    "AP50": "at IoU .50",
    "AP75": "at IoU .75",
    "APs": "of small objects",
    "APm": "of medium objects",
    "APl": "of large objects",
    "AR1": "recall with one box per image and class",
    "AR10": "with ten",
    "AR100": "with a hundred",
    "ARs": "of small objects",
    "ARm": "of medium objects",
    "ARl": "of large objects",
    "oLRP": "error at the best thresholds",
    "oLRP_loc": "of it: mean 1 - IoU of right boxes",
    "oLRP_loc_normalised": "the same divided by 1 - tau, from 0 to 1",
    "oLRP_fp": "of it: share of wrong boxes",
    "oLRP_fn": "of it: share of missed objects",
    "Spearman": "do better boxes score higher? by rank",
    "Pearson": "the same, linear",
}


def all_numbers(runs: Sequence[Run]) -> Markup:
    """Return all numbers that are no one class's, folded away."""
    several = len(runs) > 1
    rows = []
    for name, meaning in _MEANINGS.items():
        values = [_value(run, name) for run in runs]
        cells = [tag("td", number(value)) for value in values]
        if several:
            better = name in STATS or name in ("Spearman", "Pearson")
            cells.append(_change(Difference(name, values[0], values[1], better)))
        rows.append(
            tag("tr", tag("th", name, scope="row"), *cells, tag("td", meaning, class_="text"))
        )
    heads = [run.name for run in runs] if several else ["value"]
    head = [
        tag("th", "", scope="col"),
        *(tag("th", name, scope="col", class_=f"name run-{place}" if several else None)
          for place, name in enumerate(heads)),
        *([tag("th", "change", scope="col")] if several else []),
        tag("th", "meaning", scope="col", class_="text"),
    ]  # fmt: skip
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="numbers-all")
    return tag("details", tag("summary", "All numbers"), tag("div", table, class_="wide"))


def class_changes(runs: Sequence[Run]) -> Markup:
    """Return a row for each class: AP of both, the change as number and bar; the worst first."""
    found: Comparison = compare(runs[0].score, runs[1].score)
    place = {each.name: k for k, each in enumerate(runs[0].score.per_class)}
    changes = [abs(each.AP.change) for each in found.per_class if each.AP.change is not None]
    largest = max([*changes, 0.01])
    bodies = []
    for each in found.per_class:
        objects = each.objects[0] or 0
        cells = [
            tag("th", each.name, scope="row"),
            tag("td", objects_cell(objects, runs[0].score.few)),
            tag("td", number(each.AP.first)),
            tag("td", number(each.AP.second)),
            _change(each.AP),
            tag("td", _bar(each.AP, largest), class_="error"),
            tag("td", number(each.oLRP.first), class_="minor"),
            tag("td", number(each.oLRP.second), class_="minor"),
            _change(each.oLRP),
        ]
        bodies.append(tag("tbody", tag("tr", *cells), data_class=place[each.name]))
    names = [tag("th", run.name, scope="col", class_=f"name run-{k}")
             for k, run in enumerate(runs)]  # fmt: skip
    minor = [tag("th", run.name, scope="col", class_=f"name minor run-{k}")
             for k, run in enumerate(runs)]  # fmt: skip
    groups = [
        tag("td"),
        tag("td"),
        tag("th", "AP (higher is better)", scope="colgroup", colspan=4),
        tag("th", "oLRP (lower is better)", scope="colgroup", colspan=3),
    ]
    heads = [
        tag("th", "class", scope="col"),
        tag("th", "objects", scope="col"),
        *names,
        tag("th", "change", scope="col"),
        tag("th", "worse | better", scope="col", class_="middle"),
        *minor,
        tag("th", "change", scope="col"),
    ]
    table = tag(
        "table",
        tag("thead", tag("tr", *groups), tag("tr", *heads)),
        *bodies,
        class_="changes",
    )
    style = "wide tall" if len(bodies) > TALL else "wide"
    return tag("div", table, class_=style, tabindex=0, role="region", aria_label="Changes by class")


def at_thresholds(run: Run, *, single: bool) -> Markup | None:
    """Return a row for each class at the thresholds that were asked for, or None."""
    score = run.score.at_threshold
    if score is None:
        return None
    best = {each.name: each.oLRP for each in run.score.per_class}
    heads = ("class", "threshold", "LRP", "off", "alarms", "missed", "right", "wrong", "missed",
             "best LRP")  # fmt: skip

    def cells(each: object, threshold: float | None, least: float | None) -> list[Markup]:
        values = [getattr(each, key) for key in ("LRP", "LRP_loc", "LRP_fp", "LRP_fn")]
        counts = [getattr(each, key) for key in ("right", "wrong", "missed")]
        return [
            tag("td", significant(threshold), class_="threshold"),
            *(tag("td", number(value)) for value in values),
            *(tag("td", count(value), class_="minor") for value in counts),
            tag("td", number(least)),
        ]

    bodies = []
    if not single:
        whole = cells(score, None, run.score.oLRP)
        bodies.append(tag("tbody", tag("tr", tag("th", "all classes", scope="row"), *whole)))
    for k, each in enumerate(score.per_class):
        row = cells(each, each.threshold, best[each.name])
        bodies.append(
            tag(
                "tbody",
                tag("tr", tag("th", each.name, scope="row"), *row),
                data_class=k,
                class_="on" if single else None,
            )
        )
    groups = [
        tag("td"),
        tag("td"),
        tag("td"),
        tag("th", "shares", scope="colgroup", colspan=3),
        tag("th", "counts", scope="colgroup", colspan=3, class_="minor"),
        tag("td"),
    ]
    head = [
        tag("th", h, scope="col", class_="minor" if 6 <= n <= 8 else None)
        for n, h in enumerate(heads)
    ]
    table = tag(
        "table", tag("thead", tag("tr", *groups), tag("tr", *head)), *bodies, class_="given"
    )
    style = "wide tall" if len(bodies) > TALL else "wide"
    return tag("div", table, class_=style, tabindex=0, role="region", aria_label="At thresholds")


def _value(run: Run, name: str) -> float | None:
    where = run.score.correlation if name in ("Spearman", "Pearson") else run.score
    value: float | None = getattr(where, name if where is run.score else name.lower())
    return value


def _change(each: Difference) -> Markup:
    if each.change is None:
        return tag("td", DASH)
    text = f"{each.change:+.3f}".replace("-", "\N{MINUS SIGN}")
    kind = {True: "good", False: "bad", None: None}[each.better]
    return tag("td", "=" if text[1:] == "0.000" else text, class_=kind)


def _bar(each: Difference, largest: float) -> Markup:
    """Return a bar from the middle: to the right what got better, to the left what got worse."""
    if each.change is None:
        return Markup("")
    length = 50 * abs(each.change) / largest
    kind = {True: "good", False: "bad", None: "even"}[each.better]
    return tag(
        "svg",
        tag("title", f"{each.change:+.3f}"),
        tag("rect", x=50.0 if each.change > 0 else 50 - length, y=0, width=length, height=10,
            class_=kind),
        tag("path", d="M50 0V10", class_="zero"),
        viewBox="0 0 100 10",
        role="img",
        preserveAspectRatio="none",
        class_="change-bar",
    )  # fmt: skip
