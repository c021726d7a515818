"""The report's texts and tables: headline, facts, warnings, classes, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np

from rankdet.eval.report.confusion import LOOSE, NOTHING, OTHER_CLASS, SECOND
from rankdet.eval.report.markup import (
    Markup,
    count,
    join,
    number,
    percent,
    plural,
    signed,
    significant,
    tag,
)
from rankdet.eval.report.runs import Run
from rankdet.eval.score import ClassScore, Score

FEW = 10
"""Numbers that rest on fewer objects are marked."""
# A table of confusions with more classes than this cannot be read: the most confused are shown.
_CONFUSED = 16

_HEADLINE = (
    ("AP", "AP", True, "How well boxes are found, ranked and placed: mean precision over all "
     "recalls, classes, and IoUs from .50 to .95. 1 is perfect."),
    ("AP50", "AP50", True, "The same where a box counts as right once its overlap (IoU) with the "
     "object is one half."),
    ("oLRP", "oLRP", False, "Error that is left when each class uses its best threshold: 0 is "
     "perfect, 1 is nothing found."),
)  # fmt: skip
_PARTS = (
    ("oLRP_loc", "Boxes off", "Mean 1 − IoU of the boxes that are right: how far they are off."),
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
            tag("p", "Two single runs: training again with another seed moves every number, so a "
                "small difference may be chance.", class_="note")
        )  # fmt: skip
    return join(told)


def headline(runs: Sequence[Run]) -> Markup:
    """Return the cards with the most important numbers and their meaning."""
    cards = [
        _card(runs, key, name, higher, meaning, "card")
        for key, name, higher, meaning in _HEADLINE
    ]
    parts = [_card(runs, key, name, False, text, "card part") for key, name, text in _PARTS]
    return join(
        (
            tag("div", *cards, class_="cards"),
            tag("h3", "What the error oLRP is made of ", tag("small", "(lower is better)")),
            tag("div", *parts, class_="cards"),
            tag("p", "All six are means over classes, so a rare class counts as much as a frequent "
                "one; the sentence at the top counts every object once.", class_="note"),
        )
    )  # fmt: skip


def facts_table(facts: Mapping[str, str]) -> Markup:
    """Return the facts of a run as a small table, or nothing."""
    rows = [tag("tr", tag("th", k, scope="row"), tag("td", v)) for k, v in facts.items()]
    return tag("table", tag("tbody", *rows), class_="facts") if rows else Markup("")


def warnings(runs: Sequence[Run]) -> Markup:
    """Return the warnings of the scores, or nothing."""
    items = []
    for place, run in enumerate(runs):
        name = [tag("b", f"{run.name}: ", class_=f"name run-{place}")] if len(runs) > 1 else []
        items += [tag("li", *name, text) for text in run.score.warnings]
    if len(runs) > 1 and not same_images(runs):
        items.append(tag("li", "The runs were scored on different images or objects: their numbers "
                         "cannot be compared one to one."))  # fmt: skip
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
    heads = ["class", "objects", *(["run"] if several else []), "AP", "AP50", "oLRP",
             "what the error is made of", "off", "alarms", "missed", "threshold"]  # fmt: skip
    bodies = []
    for k in order:
        rows = []
        for place, run in enumerate(runs):
            each = run.score.per_class[k]
            cells = []
            if place == 0:
                few = [" ", tag("span", "few", class_="badge", title=f"fewer than {FEW} objects: "
                                "these numbers say little")] if each.objects < FEW else []  # fmt: skip
                span = str(len(runs)) if several else None
                cells += [tag("th", each.name, scope="row", rowspan=span),
                          tag("td", *few, " ", count(each.objects), rowspan=span)]  # fmt: skip
            if several:
                cells.append(tag("td", run.name, class_=f"name run-{place}"))
            cells += [
                *(tag("td", number(v)) for v in (each.AP, each.AP50, each.oLRP)),
                tag("td", error_bar(each, run.score.tau), class_="error"),
                *(tag("td", number(v), class_="minor")
                  for v in (each.oLRP_loc, each.oLRP_fp, each.oLRP_fn)),
                tag("td", significant(each.threshold), class_="threshold"),
            ]  # fmt: skip
            rows.append(tag("tr", *cells))
        on = "on" if single else None
        bodies.append(tag("tbody", *rows, data_class=k, class_=on))
    minor = {"off", "alarms", "missed"}
    head = [tag("th", h, scope="col", class_="minor" if h in minor else None) for h in heads]
    table = tag("table", tag("thead", tag("tr", *head)), *bodies, class_="classes")
    return tag("div", table, class_="wide", tabindex=0, role="region", aria_label="Classes")


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
    told = [f"{name} {part:.3f}" for name, part in
            zip(("boxes off", "false alarms", "missed"), parts, strict=True)]  # fmt: skip
    pieces = []
    start = 0.0
    for kind, part in zip(("off", "alarm", "missed"), parts, strict=True):
        pieces.append(tag("rect", x=100 * start, y=0, width=100 * part, height=10, class_=kind))
        start += part
    return tag("svg", tag("title", ", ".join(told)), *pieces, viewBox="0 0 100 10", role="img",
               preserveAspectRatio="none", class_="error-bar")  # fmt: skip


def size_table(runs: Sequence[Run]) -> Markup:
    """Return oLRP and AP by the size of the objects."""
    limits = {"small": "up to 32 × 32 px", "medium": "up to 96 × 96 px", "large": "beyond"}
    keys = {"small": "APs", "medium": "APm", "large": "APl"}
    several = len(runs) > 1
    rows = []
    for n, size in enumerate(runs[0].score.by_size):
        for place, run in enumerate(runs):
            each = run.score.by_size[n]
            rows.append(
                tag(
                    "tr",
                    tag("th", size.size, " ", tag("small", limits[size.size]), scope="row"),
                    *([tag("td", run.name, class_=f"name run-{place}")] if several else []),
                    tag("td", count(each.objects)),
                    tag("td", number(getattr(run.score, keys[size.size]))),
                    tag("td", number(each.oLRP)),
                )
            )
    heads = ["size", *(["run"] if several else []), "objects", "AP", "oLRP"]
    head = tag("thead", tag("tr", *(tag("th", h, scope="col") for h in heads)))
    table = tag("table", head, tag("tbody", *rows))
    return tag("div", table, class_="wide")


def confusion_table(run: Run) -> Markup:
    """Return the table of confusions; of many classes the most confused, the others as one."""
    table, names = run.outcomes.table, list(run.instances.names)
    classes = len(names)
    shown = list(range(classes))
    if classes > _CONFUSED:
        inner = table[:classes, :classes].copy()
        np.fill_diagonal(inner, 0)
        weight = inner.sum(axis=0) + inner.sum(axis=1)
        most = np.argsort(-weight, kind="stable")[: _CONFUSED - 1]
        shown = sorted(most.tolist())
    groups = [[k] for k in shown]
    rest = [k for k in range(classes) if k not in shown]
    labels = [names[k] for k in shown]
    if rest:
        groups.append(rest)
        labels.append(f"{len(rest)} other classes")
    groups.append([classes])
    folded = np.array([[table[np.ix_(a, b)].sum() for b in groups] for a in groups])
    heads = [tag("th", tag("span", text), scope="col") for text in labels]
    rows = []
    for n, label in enumerate([*labels, "no such object"]):
        total = max(int(folded[n].sum()), 1)
        cells = [
            _cell(int(value), int(value) / total, right=n == m and n < len(labels))
            for m, value in enumerate(folded[n, :-1])
        ]
        if n < len(labels):
            cells.append(_cell(int(folded[n, -1]), int(folded[n, -1]) / total, right=False))
        else:
            cells.append(tag("td"))
        klass = groups[n][0] if n < len(shown) else None
        rows.append(tag("tr", tag("th", label, scope="row"), *cells, data_class=klass))
    head = tag("thead", tag("tr", tag("td", "true ↓   found as →", class_="corner"), *heads,
                            tag("th", tag("span", "missed"), scope="col")))  # fmt: skip
    made = tag("table", head, tag("tbody", *rows), class_="confusion")
    return tag("div", made, class_="wide", tabindex=0, role="region", aria_label="Confusions")


def outcome_table(run: Run, *, single: bool) -> Markup:
    """Return a row for each class: what its objects were found as, what its detections are on."""
    done, instances = run.outcomes, run.instances
    kinds = np.zeros((len(instances.names), 5), dtype=np.int64)
    np.add.at(kinds, (run.class_of[done.kept], done.kind), 1)
    rows = []
    for k, name in enumerate(instances.names):
        line = done.table[k]
        others = [(int(line[j]), instances.names[j]) for j in np.argsort(-line[:-1], kind="stable")
                  if j != k and line[j]]  # fmt: skip
        taken = ", ".join(f"{other} {number_}" for number_, other in others[:3])
        taken += f", {len(others) - 3} more" if len(others) > 3 else ""
        cells = [line.sum(), line[k], taken or "–", line[-1], kinds[k].sum(),
                 *kinds[k, [OTHER_CLASS, SECOND, LOOSE, NOTHING]]]  # fmt: skip
        if not line.sum() and not kinds[k].sum():
            continue
        rows.append(
            tag(
                "tr",
                tag("th", name, scope="row"),
                *(tag("td", c if isinstance(c, str) else count(int(c)),
                      class_="text" if isinstance(c, str) else None) for c in cells),
                data_class=k,
                class_="on" if single else None,
            )
        )  # fmt: skip
    groups = tag("tr", tag("td"), tag("th", "of its objects", colspan="4", scope="colgroup"),
                 tag("th", "of its boxes, wrong because", colspan="5", scope="colgroup"))  # fmt: skip
    heads = ["class", "all", "found", "taken for", "missed", "kept", "other class", "found twice",
             "box too far off", "nothing there"]  # fmt: skip
    head = tag("thead", groups, tag("tr", *(tag("th", h, scope="col") for h in heads)))
    table = tag("table", head, tag("tbody", *rows), class_="outcomes")
    return tag("div", table, class_="wide", tabindex=0, role="region", aria_label="Outcomes")


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
        if abs(by) < 0.0005:
            change = [tag("p", "no difference", class_="change")]
        else:
            good = (by > 0) == higher
            change = [tag("p", f"{signed(by)} {'better' if good else 'worse'}",
                          class_=f"change {'good' if good else 'bad'}")]  # fmt: skip
    goal = tag("span", "higher is better" if higher else "lower is better", class_="goal")
    top = [tag("h3", name, " ", goal)] if style == "card" else [tag("h4", name)]
    return tag("div", *top, tag("div", *numbers, class_="numbers"), *change, tag("p", meaning),
               class_=style)  # fmt: skip


def _value(score: Score, key: str) -> float | None:
    value: float | None = getattr(score, key)
    return value


def _worst_first(each: ClassScore) -> tuple[float, int]:
    return (-1.0 if each.oLRP is None else each.oLRP) * -1, each.id


def _cell(value: int, share: float, *, right: bool) -> Markup:
    if not value:
        return tag("td", "·", class_="none")
    kind = "right" if right else "wrong"
    strength = f"--s:{min(max(share, 0.06), 1.0):.2f}"
    return tag("td", count(value), class_=kind, style=strength)
