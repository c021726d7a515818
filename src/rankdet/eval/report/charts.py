"""The charts of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rankdet.eval.instances import Floats
from rankdet.eval.report.markup import DASH, Markup, number, significant, tag
from rankdet.eval.report.plot import (
    POINTS,
    Plot,
    Scale,
    figure,
    legend,
    score_scale,
    threshold_text,
)
from rankdet.eval.report.runs import Curve, Run
from rankdet.eval.score import CountScore, count_label

# Dots of one scatter; more would only cover each other.
_DOTS = 2000
_RECALLS = np.linspace(0.0, 1.0, 101)
_SHARE = Scale(0.0, 1.0)


def precision_recall(runs: Sequence[Run], *, single: bool) -> Markup:
    """Draw precision against recall: a line for each class, the mean over classes, the optima.

    Args:
        runs: one or two.
        single: there is one class; show it as if it were chosen.
    """
    plot = Plot(_SHARE, _SHARE, "recall: share of objects found", "precision: share of boxes right")
    parts = _lines(runs, plot, lambda c: (c.recall, c.precision), single)
    if not single:
        for place, run in enumerate(runs):
            means = [_at_recalls(curve) for curve in _present(run)]
            if means:
                parts.append(_mean(plot, _RECALLS, np.mean(means, axis=0), place))
    for place, run in enumerate(runs):
        for k, curve in enumerate(run.curves):
            if curve.best:
                recall, precision, threshold, _ = curve.best
                label = f"at {significant(threshold)}: {recall:.2f} / {precision:.2f}"
                parts.append(
                    plot.mark(
                        recall,
                        precision,
                        label,
                        class_=_style("best", place, single),
                        below=_lower(runs, k, place, 1),
                        data_class=k,
                    )
                )
    tau = runs[0].score.tau
    return plot.svg(
        *parts,
        name="precision-recall",
        title=f"Precision against recall at IoU {tau:g}",
        description=_about_classes(runs, "AP50"),
    )


def lrp_by_threshold(runs: Sequence[Run], *, single: bool) -> Markup:
    """Draw LRP against the threshold: a line for each class, one threshold for all, the optima.

    Args:
        runs: one or two.
        single: there is one class; show it as if it were chosen.
    """
    plot = Plot(common_scale(runs), _SHARE, "score threshold", "LRP error: lower is better")
    parts = _lines(runs, plot, lambda c: (c.threshold, c.lrp), single)
    if not single:
        for place, run in enumerate(runs):
            if _present(run):
                grid = _grid(plot.x)
                means = [_lrp_at(curve, grid) for curve in _present(run)]
                parts.append(_mean(plot, grid, np.mean(means, axis=0), place))
    for place, run in enumerate(runs):
        for k, curve in enumerate(run.curves):
            if curve.best:
                _, _, threshold, lrp = curve.best
                parts.append(
                    plot.mark(
                        threshold,
                        lrp,
                        threshold_text(threshold, lrp),
                        class_=_style("best", place, single),
                        below=_lower(runs, k, place, 3),
                        data_class=k,
                    )
                )
    return plot.svg(
        *parts,
        name="lrp-threshold",
        title="LRP error against the score threshold",
        description=_about_classes(runs, "oLRP"),
    )


def score_against_iou(run: Run, place: int, *, single: bool) -> Markup:
    """Draw the true positives, all of them and not only those above the thresholds.

    Args:
        run: the run.
        place: 0 for the first run, 1 for the second.
        single: there is one class.
    """
    matches = run.matches
    right = np.flatnonzero((matches.matched[0, 0] >= 0) & ~matches.ignored[0, 0])
    shown = right[:: max(1, -(-len(right) // _DOTS))]
    tau = run.score.tau
    plot = Plot(common_scale([run]), Scale(tau, 1.0), "score", "IoU with the object")
    parts = []
    for k in range(matches.classes):
        here = shown[run.class_of[shown] == k]
        if len(here):
            parts.append(
                plot.dots(
                    matches.score[here],
                    matches.iou[0, 0, here],
                    class_=_style("dots", place, single),
                    data_class=k,
                )
            )
    if len(right) >= 40:
        order = right[np.argsort(matches.score[right], kind="stable")]
        groups = np.array_split(order, 10)
        middle = np.array([np.median(matches.score[g]) for g in groups])
        typical = np.array([np.median(matches.iou[0, 0, g]) for g in groups])
        parts.append(plot.line(middle, typical, class_="trend"))
    rank = run.score.correlation.spearman
    return plot.svg(
        *parts,
        name=f"score-iou-{place}",
        title=f"Score against IoU of the correct detections of {run.name}",
        description=f"{len(right)} detections; rank correlation {number(rank)}. "
        "The line joins the medians of ten groups of equal size by score.",
    )


def by_number(runs: Sequence[Run], key: str) -> Markup:
    """Draw bars of a number by how many objects an image has.

    Args:
        runs: one or two.
        key: "AP" or "oLRP".
    """
    bins = runs[0].score.by_count
    width, height, left, right, top, bottom = 440, 250, 34, 8, 18, 58
    inner, floor = (width - left - right) / max(len(bins), 1), height - bottom
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = floor - value * (floor - top)
        parts.append(tag("path", d=f"M{left} {y:.1f}H{width - right}", class_="grid"))
        parts.append(tag("text", f"{value:g}", x=left - 6, y=y + 4, text_anchor="end"))
    bars = []
    told = []
    size = min(56.0, 0.7 * inner / len(runs))
    for n, each in enumerate(bins):
        centre = left + (n + 0.5) * inner
        label = count_label(each.low, each.high)
        parts.append(tag("text", label, x=centre, y=floor + 17, text_anchor="middle"))
        images = "image" if each.images == 1 else "images"
        parts.append(
            tag(
                "text",
                f"{each.images} {images}",
                x=centre,
                y=floor + 32,
                text_anchor="middle",
                class_="small",
            )
        )
        for place, run in enumerate(runs):
            value_here = _count_value(run.score.by_count, each, key)
            told.append(f"{label}: {number(value_here)}")
            x = centre + (place - len(runs) / 2) * size
            if value_here is None:
                text = tag("text", DASH, x=x + size / 2, y=floor - 5, text_anchor="middle")
                bars.append(text)
                continue
            tall = value_here * (floor - top)
            few = " few" if each.objects < run.score.few else ""
            bars.append(
                tag(
                    "rect",
                    x=x + 1,
                    y=floor - tall,
                    width=size - 2,
                    height=tall,
                    rx=2,
                    class_=f"bar run-{place}{few}",
                )
            )
            bars.append(
                tag(
                    "text",
                    f"{value_here:.2f}",
                    x=x + size / 2,
                    y=floor - tall - 5,
                    text_anchor="middle",
                    class_="value",
                )
            )
    better = "higher" if key == "AP" else "lower"
    return figure(
        tag("g", *parts, class_="axis"),
        *bars,
        tag(
            "text",
            f"objects in the image ({key}: {better} is better)",
            x=(left + width) // 2,
            y=height - 6,
            text_anchor="middle",
            class_="axis-title",
        ),
        name=f"by-number-{key}",
        title=f"{key} by the number of objects in an image",
        description="; ".join(told),
        width=width,
        height=height,
    )


def common_scale(runs: Sequence[Run]) -> Scale:
    """Return a scale for the scores of all runs."""
    scores = [run.matches.score for run in runs]
    optima = [curve.best[2] for run in runs for curve in run.curves if curve.best]
    return score_scale(np.concatenate(scores), optima)


def run_legend(runs: Sequence[Run], *more: tuple[str, str]) -> Markup:
    """Return the names of the runs with their colours, and more."""
    names = [(f"run-{place}", run.name) for place, run in enumerate(runs)]
    return legend([*(names if len(runs) > 1 else []), *more])


def _lines(
    runs: Sequence[Run],
    plot: Plot,
    of: Callable[[Curve], tuple[Floats, Floats]],
    single: bool,
) -> list[Markup]:
    return [
        plot.line(*of(curve), class_=_style("curve", place, single), data_class=k)
        for place, run in enumerate(runs)
        for k, curve in enumerate(run.curves)
        if len(curve.recall)
    ]


def _mean(plot: Plot, x: Floats, y: Floats, place: int) -> Markup:
    return plot.line(x, y, class_=f"mean run-{place}")


def _style(kind: str, place: int, single: bool) -> str:
    return f"{kind} run-{place}" + (" on" if single else "")


def _present(run: Run) -> list[Curve]:
    return [c for k, c in enumerate(run.curves) if run.matches.objects[0, k] > 0]


def _lower(runs: Sequence[Run], k: int, place: int, at: int) -> bool:
    """Return whether the optimum of this run lies below that of the other, or where errors do."""
    bests = [run.curves[k].best for run in runs]
    here, other = bests[place], bests[1 - place] if len(bests) > 1 else None
    if here is None or other is None:
        return at == 3
    return here[at] < other[at] or (here[at] == other[at] and place == 0)


def _at_recalls(curve: Curve) -> Floats:
    """Return precision at 101 recalls as COCO does: 0 where the recall is not reached."""
    place = np.searchsorted(curve.recall, _RECALLS, side="left")
    return np.append(curve.precision, 0.0)[place]


def _grid(scale: Scale) -> Floats:
    if scale.logarithmic:
        return np.geomspace(scale.low, scale.high, POINTS)
    return np.linspace(scale.low, scale.high, POINTS)


def _lrp_at(curve: Curve, thresholds: Floats) -> Floats:
    """Return LRP with each of these thresholds: 1 where nothing is kept."""
    kept = np.searchsorted(-curve.threshold, -thresholds, side="right")
    return np.concatenate([[1.0], curve.lrp])[kept]


def _count_value(counts: Sequence[CountScore], like: CountScore, key: str) -> float | None:
    for each in counts:
        if (each.low, each.high) == (like.low, like.high):
            value: float | None = getattr(each, key)
            return value
    return None


def _about_classes(runs: Sequence[Run], key: str) -> str:
    told = []
    for run in runs:
        each = [f"{c.name} {number(getattr(c, key))}" for c in run.score.per_class[:20]]
        told.append(f"{run.name}: {key} {number(getattr(run.score, key))}; " + ", ".join(each))
    return ". ".join(told)
