"""`rankdet tables --split`: finished runs on images that they were not validated on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankdet.cli.common import plain
from rankdet.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rankdet.cli.tables import Work
    from rankdet.experiments.collect import Result
    from rankdet.experiments.other_split import OtherSplit


def judge(
    work: Work, split: OtherSplit, results: Sequence[Result], lock: int
) -> tuple[list[Result], list[str], int | None]:
    """Evaluate finished runs on another split.

    Returns:
        Their results there, what to say of those that have none, and the signal that stopped it.
    """
    from rankdet.experiments.run import execute
    from rankdet.experiments.watching import Counting

    there = {result.folder for result in results}
    left = split.left(place for place in work.places if place.folder in there)
    ended: dict[str, str] = {}
    stopped = None
    if left:
        voice = work.voice
        slots = work.slots(len(left))
        voice.say(
            f"{counted(len(left), 'run')} to evaluate on {split.said}, {len(slots)} at a time"
        )
        watcher = Counting(voice.console, voice.say, total=len(left))
        with watcher.bar:
            outcome = execute(left, split.command(work.images), slots, watcher, keep_open=(lock,))
        stopped = outcome.signal
        ended = {how.place.run.name: f"exit code {how.code}: {how.said}" for how in outcome.failed}
    judged, missing = [], []
    for result in results:
        found, name = split.judged(result), result.run.name
        if found is None:
            missing.append(f"{name}: {ended.get(name, f'not evaluated on the split {split.name}')}")
        else:
            judged.append(found)
    return judged, missing, stopped


def print_judged(
    work: Work,
    split: OtherSplit,
    results: Sequence[Result],
    judged: Sequence[Result],
    missing: Sequence[str],
    typed: str,
) -> None:
    """Write and print the table of another split."""
    from rankdet.experiments.other_split import note_of_the_models, of_the_end
    from rankdet.experiments.output import fill, write_pages
    from rankdet.experiments.render import OnTerminal

    filled = fill(
        of_the_end(work.table, split),
        work.given.scale,
        judged,
        missing=missing,
        places=work.places,
        images=work.images,
        command=typed,
        notes=note_of_the_models(results),
    )
    write_pages(work.folder, filled, f"table-{split.name}")
    work.voice.show(OnTerminal(filled))
    for kind in ("md", "csv"):
        work.voice.say(f"written   {plain(work.folder / f'table-{split.name}.{kind}')}")
