"""From finished runs to the files of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rankdet.engine.files import write_text
from rankdet.experiments.collect import Result, caveats, grid, images_of_bins
from rankdet.experiments.folders import Images, Place
from rankdet.experiments.judge import compare
from rankdet.experiments.plots import write_plots
from rankdet.experiments.published import PUBLISHED
from rankdet.experiments.render import Filled, as_csv, markdown
from rankdet.experiments.table import Scale, Table
from rankdet.experiments.watching import clock
from rankdet.wording import counted


def fill(
    table: Table,
    scale: Scale,
    results: Sequence[Result],
    *,
    missing: Sequence[str],
    places: Sequence[Place],
    images: Images,
    command: str,
    notes: Sequence[str] = (),
) -> Filled:
    """Return a table with all that is known of it.

    Args:
        table: which.
        scale: of its runs.
        results: of the runs that are finished.
        missing: what to say of the others.
        places: of all runs.
        images: that they were trained and validated on.
        command: that was typed.
        notes: more that is to be known.
    """
    published = PUBLISHED.get(table.name)
    found = grid(table, results)
    return Filled(
        table=table,
        scale=scale,
        found=found,
        published=published,
        compared=compare(table, found, published),
        bins=images_of_bins(results),
        missing=tuple(missing),
        notes=(*caveats(table, results), *_notes(places), *notes),
        facts=_facts(results, images, command),
    )


def write_table(folder: Path, filled: Filled, results: Sequence[Result], images: Images) -> Filled:
    """Write `table.md`, `table.csv` and the plots; return the table with the names of the plots.

    Raises:
        RunError: a file cannot be written.
    """
    try:
        plots = write_plots(folder, filled, results, training=images.training)
        filled = replace(filled, plots=plots)
    except ImportError:
        note = "There are no plots: matplotlib is not installed."
        filled = replace(filled, notes=(*filled.notes, note))
    write_pages(folder, filled, "table")
    return filled


def write_pages(folder: Path, filled: Filled, name: str) -> None:
    """Write `NAME.md` and `NAME.csv`.

    Raises:
        RunError: a file cannot be written.
    """
    write_text(folder / f"{name}.md", markdown(filled))
    write_text(folder / f"{name}.csv", as_csv(filled))


def _notes(places: Sequence[Place]) -> list[str]:
    """Say which runs are not where and how one expects them."""
    said = []
    borrowed = sorted({place.folder.parent.name for place in places if place.borrowed})
    if borrowed:
        names = ", ".join(place.run.name for place in places if place.borrowed)
        said.append(f"These runs are part of {', '.join(borrowed)} as well and lie there: {names}.")
    bare = [place.run.name for place in places if not place.reported]
    if bare:
        said.append(
            f"Stopped after the last step, so without report (`rankdet evaluate` makes one): "
            f"{', '.join(bare)}."
        )
    return said


def _facts(results: Sequence[Result], images: Images, command: str) -> Mapping[str, str]:
    """Return how it was measured; several values where runs differ."""
    settings = [result.settings for result in results]
    seconds = sum(result.metrics.seconds for result in results)
    packages = [each.get("packages") or {} for each in settings]
    facts = {
        "command": command,
        "data": f"{images.source.name}: {images.training} images to train on, {images.validation} "
        f"to validate on with {counted(images.objects, 'object')} of "
        f"{counted(images.classes, 'class', 'classes')}",
        "recipes": _several(result.run.recipe for result in results),
        "steps": _several(result.metrics.steps for result in results),
        "training": f"{clock(seconds)} in all, without evaluations",
        "machine": _several(_machine(each) for each in settings),
        "rankdet": _several(
            f"{each.get('rankdet')} (commit {each.get('commit') or 'unknown'})" for each in settings
        ),
        "versions": _several(
            ", ".join(f"{name} {version}" for name, version in each.items()) for each in packages
        ),
        "python": _several(each.get("python") for each in settings),
    }
    return {key: value for key, value in facts.items() if value}


def _machine(settings: Mapping[str, object]) -> str:
    gpus = settings.get("gpus")
    device = ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else "no GPU"
    threads = counted(settings.get("cpu_threads"), "CPU thread")
    return f"{settings.get('platform')}, {threads}, {device}"


def _several(values: Iterable[object]) -> str:
    """Return different values once each, in the order they come."""
    return "; ".join(dict.fromkeys(str(value) for value in values))
