"""The plan of `rankdet tables --dry-run`: what would run, how long, and what it costs at scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rankdet.cli.common import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rankdet.cli.tables import Work
    from rankdet.data.imageset import ImageSet
    from rankdet.experiments.costs import StepTime

# What is not said of every row.
_UNTOLD = ("name=", "description=", "training.seed=")


def show_plan(work: Work, training: ImageSet, validation: ImageSet) -> int:
    """Say what would run, how long it would take, and what it costs at the scale of the paper."""
    import torch

    from rankdet.experiments.costs import at_paper_scale, measured_times, plan, time_left
    from rankdet.experiments.table import runs

    given, voice = work.given, work.voice
    wanted = [place.run for place in work.places]
    times = measured_times(work.out, given.scale, wanted)
    jobs = min(given.jobs or max(torch.cuda.device_count(), 1), len(wanted))
    if given.measure:
        times |= _measure(work, jobs, training, validation, times)
    planned = plan(work.places, work.images, times)
    voice.show(_plan_table(work, planned))
    for each in {place.run.row: place.run for place in work.places}.values():
        changes = [change for change in each.changes if not change.startswith(_UNTOLD)]
        voice.say(plain(f"{each.row}: {each.recipe} {' '.join(changes)}".rstrip()))
    voice.say(f"{sum(each.left > 0 for each in planned)} of {len(planned)} runs are left: "
              f"{time_left(planned, jobs)}")  # fmt: skip
    if given.scale == "paper" and not given.set:
        published = times
    else:
        published = measured_times(work.out, "paper", runs(work.table, "paper", seeds=1))
    for line in at_paper_scale(work.table, seeds=given.seeds, times=published):
        voice.say(plain(line))
    return 0


def _measure(
    work: Work, jobs: int, training: ImageSet, validation: ImageSet, known: dict[str, StepTime]
) -> dict[str, StepTime]:
    """Time a few steps of each row of which no time is known."""
    from rankdet.experiments.measuring import STEPS, measure_step
    from rankdet.experiments.run import cores

    found: dict[str, StepTime] = {}
    for place in work.places:
        row = place.run.row
        if row in known or row in found:
            continue
        work.voice.say(f"timing {STEPS} steps of {row}")
        threads = max(len(cores()) // jobs, 1)
        found[row] = measure_step(place.run, training, validation, threads=threads)
    return found


def _plan_table(work: Work, planned: Sequence[Any]) -> Any:
    from rich.table import Table as RichTable

    from rankdet.experiments.watching import clock

    title = f"{work.table.title}, scale {work.given.scale}, in {plain(work.folder)}"
    shown = RichTable(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    shown.add_column("run", overflow="fold")
    for head in ("state", "steps", "epochs", "left", "s/step", "time left"):
        shown.add_column(head, no_wrap=True, justify="left" if head == "state" else "right")
    for each in planned:
        place = each.place
        state = "in another table" if place.borrowed else place.state.value
        step = "" if each.step is None else f"{each.step.seconds:.3f}"
        left = "unknown" if each.seconds is None else clock(each.seconds)
        shown.add_row(place.run.name, state, f"{each.steps}", f"{each.epochs:.1f}",
                      f"{each.left}", step, left)  # fmt: skip
    return shown
