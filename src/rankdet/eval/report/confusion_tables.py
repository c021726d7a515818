"""The table of confusions, and what became of the objects and boxes of each class."""

from __future__ import annotations

import numpy as np

from rankdet.eval.report.confusion import LOOSE, NOTHING, OTHER_CLASS, SECOND
from rankdet.eval.report.markup import DASH, Markup, count, tag
from rankdet.eval.report.runs import Run
from rankdet.eval.report.tables import TALL

# With more classes than this the table cannot be read: the most confused are shown.
_CONFUSED = 16
# With more columns their headings stand upright.
_UPRIGHT = 8


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
    head = tag(
        "thead",
        tag(
            "tr",
            tag("td", "true ↓   found as →", class_="corner"),
            *heads,
            tag("th", tag("span", "missed"), scope="col"),
        ),
    )
    made = tag(
        "table",
        head,
        tag("tbody", *rows),
        class_="confusion upright" if len(groups) > _UPRIGHT else "confusion",
    )
    return tag("div", made, class_="wide", tabindex=0, role="region", aria_label="Confusions")


def outcome_table(run: Run, *, single: bool) -> Markup:
    """Return a row for each class: what its objects were found as, what its detections are on."""
    done, instances = run.outcomes, run.instances
    kinds = np.zeros((len(instances.names), 5), dtype=np.int64)
    np.add.at(kinds, (run.class_of[done.kept], done.kind), 1)
    rows = []
    for k, name in enumerate(instances.names):
        line = done.table[k]
        others = [
            (int(line[j]), instances.names[j])
            for j in np.argsort(-line[:-1], kind="stable")
            if j != k and line[j]
        ]
        taken = ", ".join(f"{other} {number_}" for number_, other in others[:3])
        taken += f", {len(others) - 3} more" if len(others) > 3 else ""
        cells = [
            line.sum(),
            line[k],
            taken or DASH,
            line[-1],
            kinds[k].sum(),
            *kinds[k, [OTHER_CLASS, SECOND, LOOSE, NOTHING]],
        ]
        if not line.sum() and not kinds[k].sum():
            continue
        rows.append(
            tag(
                "tr",
                tag("th", name, scope="row"),
                *(
                    tag(
                        "td",
                        c if isinstance(c, str) else count(int(c)),
                        class_="text" if isinstance(c, str) else None,
                    )
                    for c in cells
                ),
                data_class=k,
                class_="on" if single else None,
            )
        )
    groups = tag(
        "tr",
        tag("td"),
        tag("th", "of its objects", colspan="4", scope="colgroup"),
        tag("th", "of its boxes, wrong because", colspan="5", scope="colgroup"),
    )
    heads = [
        "class",
        "all",
        "found",
        "taken for",
        "missed",
        "kept",
        "other class",
        "found twice",
        "box too far off",
        "nothing there",
    ]
    titles = [tag("th", h, scope="col", class_="text" if h == "taken for" else None) for h in heads]
    head = tag("thead", groups, tag("tr", *titles))
    table = tag("table", head, tag("tbody", *rows), class_="outcomes")
    style = "wide tall" if len(rows) > TALL else "wide"
    return tag("div", table, class_=style, tabindex=0, role="region", aria_label="Outcomes")


def _cell(value: int, share: float, *, right: bool) -> Markup:
    if not value:
        return tag("td", "·", class_="none")
    kind = "right" if right else "wrong"
    strength = f"--s:{min(max(share, 0.06), 1.0):.2f}"
    return tag("td", count(value), class_=kind, style=strength)
