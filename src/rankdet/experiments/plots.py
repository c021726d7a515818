"""Plots of what was measured; published numbers are not drawn among them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankdet.engine.files import write_atomically
from rankdet.experiments.collect import POINTS, Result
from rankdet.experiments.render import Filled
from rankdet.experiments.spread import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Axes", Filled, Sequence[Result], int], None]

_SIZE = (6.4, 4.0)


def write_plots(
    folder: Path, filled: Filled, results: Sequence[Result], *, training: int
) -> tuple[str, ...]:
    """Draw what belongs to a table.

    Args:
        folder: of the table.
        filled: its numbers.
        results: of its finished runs.
        training: images that they were trained on.

    Returns:
        The names of the files; none for a table without plots, or without anything to draw.

    Raises:
        ImportError: matplotlib is not installed.
        RunError: a file cannot be written.
    """
    plots = _PLOTS.get(filled.table.name, {}) if results else {}
    for name, draw in plots.items():
        _write_plot(folder / name, draw, filled, results, training)
    return tuple(plots)


def _write_plot(
    path: Path, draw: Draw | Curves, filled: Filled, results: Sequence[Result], training: int
) -> None:
    from matplotlib.figure import Figure

    title = f"{filled.table.title.partition(':')[0]}, scale {filled.scale}, measured"
    if isinstance(draw, Curves):
        figure = Figure(figsize=(_SIZE[0], 2.2 * len(draw.terms) + 0.8), layout="constrained")
        draw.draw(figure, filled, results)
        figure.axes[0].set_title(title)
    else:
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, filled, results, training)
        axes.set_ylabel("AP (points)")
        axes.grid(alpha=0.3)
        axes.set_title(title)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    write_atomically(path, lambda part: _save(figure, part))


def _against_epoch(axes: Axes, filled: Filled, results: Sequence[Result], training: int) -> None:
    """Draw AP against epochs: the mean over seeds, and each seed as a dot."""
    for number, row in enumerate(filled.table.rows):
        own = [result for result in results if result.run.row == row.name]
        points: dict[float, list[float]] = {}
        for result in own:
            each = result.run.wanted.batch.size / training
            for evaluation in result.metrics.evaluations:
                if "AP" in evaluation.numbers:
                    at = points.setdefault(evaluation.step * each, [])
                    at.append(evaluation.numbers["AP"] * POINTS)
        if not points:
            continue
        colour, epochs = f"C{number}", sorted(points)
        means = [statistics.fmean(points[epoch]) for epoch in epochs]
        axes.plot(
            epochs,
            means,
            color=colour,
            label=f"{filled.table.label(row.name)} ({_seeds(len(own))})",
        )
        pairs = [(epoch, value) for epoch in epochs for value in points[epoch]]
        axes.plot(*zip(*pairs, strict=True), ".", color=colour, alpha=0.5)
    axes.set_xlabel("epochs")


def _against_objects(
    axes: Axes, filled: Filled, _results: Sequence[Result], _training: int
) -> None:
    """Draw AP against the number of objects in the image."""
    binned = [measure for measure in filled.measures if measure.objects is not None]
    labels = [f"{measure.objects}\n({filled.bins.get(str(measure.objects), 0)} images)"
              for measure in binned]  # fmt: skip
    for number, row in enumerate(filled.table.rows):
        cells = {
            float(place): filled.summary(row.name, measure) for place, measure in enumerate(binned)
        }
        shift = 0.06 * (number - (len(filled.table.rows) - 1) / 2)
        _bars(axes, cells, f"C{number}", filled.table.label(row.name), shift=shift)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel("objects in the image")


def _against_weight(axes: Axes, filled: Filled, _results: Sequence[Result], _training: int) -> None:
    """Draw AP against w_r, and what has no w_r as lines across."""
    measure = filled.table.measure("AP")
    weights: dict[float, Summary | None] = {}
    number = 1
    for row in filled.table.rows:
        found = filled.summary(row.name, measure)
        changed = dict(change.split("=") for change in row.changes)
        weight = changed.get("criterion.balance.w_r")
        if weight is not None:
            weights[float(weight)] = found
        elif found is not None:
            colour = f"C{number}"
            number += 1
            axes.axhline(found.mean, color=colour, linestyle="--",
                         label=f"{filled.table.label(row.name)} ({_seeds(found.n)})")  # fmt: skip
            if found.spread is not None:
                axes.axhspan(found.mean - found.spread, found.mean + found.spread,
                             color=colour, alpha=0.15, linewidth=0)  # fmt: skip
    _bars(axes, weights, "C0", "constant w_r")
    axes.set_xticks(list(weights))
    axes.set_xlabel("w_r, weight of localisation")


@dataclass(frozen=True)
class Curves:
    """Terms of the loss against steps, one below the other: each seed, and their mean."""

    terms: Mapping[str, str]
    """Label of the axis, by column of `metrics.csv`."""
    logarithmic: frozenset[str] = frozenset()

    def draw(self, figure: Figure, filled: Filled, results: Sequence[Result]) -> None:
        """Draw the terms of all rows."""
        from matplotlib.ticker import LogLocator

        every = figure.subplots(len(self.terms), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (term, label) in zip(every, self.terms.items(), strict=True):
            for number, row in enumerate(filled.table.rows):
                seeds = [
                    {note.step: note.numbers[term]
                     for note in result.metrics.notes if term in note.numbers}
                    for result in results
                    if result.run.row == row.name
                ]  # fmt: skip
                _curve(axes, seeds, f"C{number}", filled.table.label(row.name))
            if term in self.logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        every[-1].set_xlabel("steps")
        curves, labels = every[0].get_legend_handles_labels()
        if curves:
            # Below all, where it hides none.
            figure.legend(curves, labels, fontsize="xx-small", loc="outside lower center", ncols=2)


def _curve(axes: Axes, seeds: Sequence[Mapping[int, float]], colour: str, label: str) -> None:
    seeds = [each for each in seeds if each]
    if not seeds:
        return
    for each in seeds:
        axes.plot(list(each), list(each.values()), color=colour, alpha=0.25, linewidth=0.7)
    # After an interruption two seeds may have been noted at different steps.
    steps = sorted(set.intersection(*(set(each) for each in seeds)))
    means = [statistics.fmean(each[step] for each in seeds) for step in steps]
    axes.plot(steps, means, color=colour, label=f"{label} ({_seeds(len(seeds))})")


_TERMS = Curves(
    {
        "balance": "weight of localisation",
        "classification": "classification",
        "localisation": "localisation",
    },
    logarithmic=frozenset({"balance"}),
)

_PLOTS: Mapping[str, Mapping[str, Draw | Curves]] = {
    "a1": {"ap-by-epoch.svg": _against_epoch},
    "a3": {"ap-by-objects.svg": _against_objects},
    "a4": {"ap-by-weight.svg": _against_weight, "terms-by-step.svg": _TERMS},
    "losses": {"ap-by-epoch.svg": _against_epoch},
    "balance": {"ap-by-epoch.svg": _against_epoch, "terms-by-step.svg": _TERMS},
}


def _bars(
    axes: Axes, cells: Mapping[float, Summary | None], colour: str, label: str, shift: float = 0.0
) -> None:
    """Draw means, joined, with their spread as bars."""
    there = {place: found for place, found in cells.items() if found is not None}
    if not there:
        return
    axes.errorbar(
        [place + shift for place in there],
        [found.mean for found in there.values()],
        yerr=[found.spread or 0.0 for found in there.values()],
        fmt="o-",
        capsize=3,
        color=colour,
        label=f"{label} ({_seeds(max(found.n for found in there.values()))})",
    )


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _save(figure: Figure, path: Path) -> None:
    # A date would make a new file of the same picture each time.
    metadata: dict[str, Any] = {"Date": None}
    figure.savefig(path, format="svg", metadata=metadata)
