"""The report's texts and tables: headline, facts, warnings, classes, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np

from rankdet.eval.report.markup import (
    Markup,
    count,
    join,
    number,
    percent,
    plural,
    significant,
    tag,
)
from rankdet.eval.report.runs import Run
from rankdet.eval.score import ClassScore, Score

TALL = 20
"""A table of more rows scrolls in a frame."""

_HEADLINE = (
    (
        "AP",
        "AP",
        True,
        "How well boxes are found, ranked and placed: mean precision over all "
        "recalls, classes, and IoUs from .50 to .95. 1 is perfect.",
    ),
    (
        "AP50",
        "AP50",
        True,
        "The same where a box counts as right once its overlap (IoU) with the object is one half.",
    ),
    (
        "oLRP",
        "oLRP",
        False,
        "Error that is left when each class uses its best threshold: 0 is "
        "perfect, 1 is nothing found.",
    ),
)
_PARTS = (
    ("oLRP_loc", "Boxes off", "Mean 1 - IoU of the boxes that are right: how far they are off."),
    ("oLRP_fp", "False alarms", "Share of wrong boxes among those kept."),
    ("oLRP_fn", "Missed", "Share of the objects that no box was right for."),
)


def verdict(runs: Sequence[Run]) -> Markup:
    """Return what the numbers say, in a sentence or two for each run."""
    told = []
    for place, run in enumerate(runs):
        done, score = run.outcomes, run.score
        kept = len(done.kept)
        named = [tag("b", run.name, class_=f"name run-{place}"), " "] if len(runs) > 1 else []
        who = "" if named else "At the recommended thresholds the detector "
        told.append(
            tag(
                "p",
                *named,
                who,
                "finds ",
                tag("b", percent(done.right, score.objects)),
                f" of {plural(score.objects, 'object', 'objects')} in "
                f"{plural(score.images, 'image', 'images')}; ",
                tag("b", percent(kept - done.right, kept)),
                f" of the {plural(kept, 'box', 'boxes')} that it reports are wrong.",
                class_="verdict",
            )
        )
    if len(runs) > 1:
        told.insert(0, tag("p", "At the recommended thresholds of each:", class_="note"))
        told.append(
            tag(
                "p",
                "Two single runs: training again with another seed moves every number, so a "
                "small difference may be chance.",
                class_="note",
            )
        )
    return join(told)


def headline(runs: Sequence[Run]) -> Markup:
    """Return the cards with the most important numbers and their meaning."""
    cards = [
        _card(runs, key, name, higher, meaning, "card") for key, name, higher, meaning in _HEADLINE
    ]
    parts = [_card(runs, key, name, False, text, "card part") for key, name, text in _PARTS]
    return join(
        (
            tag("p", "These numbers are those of all classes.", class_="note when-filtered"),
            tag("div", *cards, class_="cards"),
            tag("h3", "What the error oLRP is made of ", tag("small", "(lower is better)")),
            tag("div", *parts, class_="cards"),
            tag(
                "p",
                "All six are means over classes, so a rare class counts as much as a frequent "
                "one; the sentence at the top counts every object once.",
                class_="note",
            ),
        )
    )


def facts_table(facts: Mapping[str, str]) -> Markup:
    """Return the facts of a run as a small table, or nothing."""
    rows = [tag("tr", tag("th", k, scope="row"), tag("td", v)) for k, v in facts.items()]
    return tag("table", tag("tbody", *rows), class_="facts") if rows else Markup("")


def warnings(runs: Sequence[Run]) -> Markup:
    """Return the warnings of the scores, or nothing."""
    items = []
    for text in dict.fromkeys(text for run in runs for text in run.score.warnings):
        of = [place for place, run in enumerate(runs) if text in run.score.warnings]
        about = (
            []
            if len(of) == len(runs)
            else [tag("b", f"{runs[of[0]].name}: ", class_=f"name run-{of[0]}")]
        )
        items.append(tag("li", *about, text))
    if len(runs) > 1 and not same_images(runs):
        items.append(
            tag(
                "li",
                "The runs were scored on different images or objects: their numbers "
                "cannot be compared one to one.",
            )
        )
    if not items:
        return Markup("")
    heading = tag("h2", "Before you rely on these numbers")
    return tag("section", heading, tag("ul", *items), class_="warnings", id="warnings")


def same_images(runs: Sequence[Run]) -> bool:
    """Return whether all runs were scored on the same images and objects."""
    first = runs[0].instances
    return all(
        np.array_equal(first.image_ids, run.instances.image_ids)
        and np.array_equal(first.gt_boxes, run.instances.gt_boxes)
        and np.array_equal(first.gt_class, run.instances.gt_class)
        for run in runs[1:]
    )


def class_table(runs: Sequence[Run], *, single: bool) -> Markup:
    """Return a row for each class and run: numbers, what the error is made of, the threshold.

    Classes with the largest error of the first run come first.
    """
    first = runs[0].score.per_class
    order = sorted(range(len(first)), key=lambda k: _worst_first(first[k]))
    several = len(runs) > 1
    heads = [
        "class",
        "objects",
        *(["run"] if several else []),
        "threshold",
        "AP",
        "AP50",
        "oLRP",
        "what the error is made of",
        "off",
        "alarms",
        "missed",
    ]
    bodies = []
    for k in order:
        rows = []
        for place, run in enumerate(runs):
            each = run.score.per_class[k]
            cells = []
            if place == 0:
                span = len(runs) if several else None
                cells += [
                    tag("th", each.name, scope="row", rowspan=span),
                    tag("td", objects_cell(each.objects, run.score.few), rowspan=span),
                ]
            if several:
                cells.append(tag("td", run.name, class_=f"name run-{place}"))
            cells += [
                tag("td", significant(each.threshold), class_="threshold"),
                *(tag("td", number(v)) for v in (each.AP, each.AP50, each.oLRP)),
                tag("td", error_bar(each, run.score.tau), class_="error"),
                *(
                    tag("td", number(v), class_="minor")
                    for v in (each.oLRP_loc, each.oLRP_fp, each.oLRP_fn)
                ),
            ]
            rows.append(tag("tr", *cells))
        on = "on" if single else None
        bodies.append(tag("tbody", *rows, data_class=k, class_=on))
    styles = {"off": "minor", "alarms": "minor", "missed": "minor", "run": "text"}
    styles["what the error is made of"] = "text"
    head = [tag("th", h, scope="col", class_=styles.get(h)) for h in heads]
    table = tag("table", tag("thead", tag("tr", *head)), *bodies, class_="classes")
    style = "wide tall" if len(first) > TALL else "wide"
    return tag("div", table, class_=style, tabindex=0, role="region", aria_label="Classes")


def error_parts(each: ClassScore, tau: float) -> tuple[float, float, float] | None:
    """Return what boxes off, false alarms and missed objects add to oLRP; their sum is oLRP.

    With N = TP + FP + FN: Σ (1 - IoU) / (1 - tau) / N, FP / N, FN / N. None without objects.
    """
    if each.oLRP is None or each.oLRP_fn is None:
        return None
    if each.oLRP_loc is None or each.oLRP_fp is None or each.oLRP_fp >= 1:
        return 0.0, 0.0, each.oLRP
    right = each.objects * (1 - each.oLRP_fn)
    wrong = right * each.oLRP_fp / (1 - each.oLRP_fp)
    total = each.objects + wrong
    off = each.oLRP_loc / (1 - tau) * right / total
    return off, wrong / total, (each.objects - right) / total


def error_bar(each: ClassScore, tau: float) -> Markup:
    """Return a bar of three pieces, as long as oLRP."""
    parts = error_parts(each, tau)
    if parts is None:
        return Markup("")
    told = [
        f"{name} {part:.3f}"
        for name, part in zip(("boxes off", "false alarms", "missed"), parts, strict=True)
    ]
    pieces = []
    start = 0.0
    for kind, part in zip(("off", "alarm", "missed"), parts, strict=True):
        pieces.append(tag("rect", x=100 * start, y=0, width=100 * part, height=10, class_=kind))
        start += part
    return tag(
        "svg",
        tag("title", ", ".join(told)),
        *pieces,
        viewBox="0 0 100 10",
        role="img",
        preserveAspectRatio="none",
        class_="error-bar",
    )


def size_table(runs: Sequence[Run]) -> Markup:
    """Return oLRP and AP by the size of the objects."""
    limits = {"small": "up to 32 x 32 px", "medium": "up to 96 x 96 px", "large": "beyond"}
    keys = {"small": "APs", "medium": "APm", "large": "APl"}
    several = len(runs) > 1
    bodies = []
    for n, size in enumerate(runs[0].score.by_size):
        rows = []
        for place, run in enumerate(runs):
            each = run.score.by_size[n]
            span = len(runs) if several else None
            first = [
                tag("th", size.size, " ", tag("small", limits[size.size]), scope="row",
                    rowspan=span)
            ]  # fmt: skip
            rows.append(
                tag(
                    "tr",
                    *(first if place == 0 else []),
                    *([tag("td", run.name, class_=f"name run-{place}")] if several else []),
                    tag("td", objects_cell(each.objects, run.score.few)),
                    tag("td", number(getattr(run.score, keys[size.size]))),
                    tag("td", number(each.oLRP)),
                    *(
                        tag("td", number(v), class_="minor")
                        for v in (each.oLRP_loc, each.oLRP_fp, each.oLRP_fn)
                    ),
                )
            )
        bodies.append(tag("tbody", *rows))
    minor = ("off", "alarms", "missed")
    heads = ["size", *(["run"] if several else []), "objects", "AP", "oLRP", *minor]
    styles = {"run": "text", **dict.fromkeys(minor, "minor")}
    head = tag(
        "thead", tag("tr", *(tag("th", h, scope="col", class_=styles.get(h)) for h in heads))
    )
    return tag("div", tag("table", head, *bodies, class_="sizes"), class_="wide")


def objects_cell(objects: int, few: int) -> Markup:
    """Return a count, marked where numbers that rest on it say little."""
    if not 0 < objects < few:
        return join([count(objects)])
    told = f"fewer than {few} objects: these numbers say little"
    return join([tag("span", "few", class_="badge", title=told), " ", count(objects)])


def correlation_text(run: Run) -> str:
    """Return what the correlation of scores and IoUs says."""
    each = run.score.correlation
    return (
        f"Rank correlation (Spearman) {number(each.spearman)}, linear (Pearson) "
        f"{number(each.pearson)}, over {plural(each.pairs, 'correct box', 'correct boxes')}."
    )


def _card(
    runs: Sequence[Run], key: str, name: str, higher: bool, meaning: str, style: str
) -> Markup:
    values = [_value(run.score, key) for run in runs]
    numbers = []
    for place, (run, value) in enumerate(zip_longest(runs, values)):
        label = [tag("span", run.name, class_=f"name run-{place}")] if len(runs) > 1 else []
        numbers.append(tag("div", tag("span", number(value), class_="number"), *label))
    change = []
    if len(values) == 2 and values[0] is not None and values[1] is not None:
        by = values[1] - values[0]
        word, kind = "equal", ""
        if abs(by) >= 0.0005:
            better = (by > 0) == higher
            word, kind = (
                f"{abs(by):.3f} {'better' if better else 'worse'}",
                "good" if better else "bad",
            )
        change = [tag("p", word, class_=f"change {kind}")]
    goal = tag("span", "higher is better" if higher else "lower is better", class_="goal")
    top = [tag("h3", name, " ", goal)] if style == "card" else [tag("h4", name)]
    return tag(
        "div",
        *top,
        tag("div", *numbers, class_="numbers"),
        *change,
        tag("p", meaning),
        class_=style,
    )


def _value(score: Score, key: str) -> float | None:
    value: float | None = getattr(score, key)
    return value


def _worst_first(each: ClassScore) -> tuple[float, int]:
    return (-1.0 if each.oLRP is None else each.oLRP) * -1, each.id
