"""`rankdet tables`: the experiments of the paper, and studies, at any scale."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankdet.cli.common import count_from, path_text, plain
from rankdet.wording import counted

if TYPE_CHECKING:
    from rankdet.cli.common import Voice
    from rankdet.data.discover import DataFolder
    from rankdet.data.imageset import ImageSet
    from rankdet.experiments.collect import Result
    from rankdet.experiments.folders import Images, Place
    from rankdet.experiments.other_split import OtherSplit
    from rankdet.experiments.run import Outcome
    from rankdet.experiments.table import Table

EXAMPLES = """\
examples:
  rankdet tables a1 --data digits/ --scale tiny --dry-run    what would run, and how long
  rankdet tables a1 --data digits/ --scale tiny              three losses, three seeds
  rankdet tables a1 --data digits/ --scale tiny --resume     go on after an interruption
  rankdet tables a3 --data photos/ --scale small --seeds 5 --jobs 2
  rankdet tables a3 --data photos/ --scale tiny --set data.augment.kind=light
  rankdet tables main --data coco/ --scale paper --jobs 8    published settings, on GPUs
  rankdet tables losses --data photos/ --scale tiny --set data.augment.kind=light
  rankdet tables losses --data photos/ --scale small --rows atss_focal,atss_focal_giou
  rankdet tables losses --data photos/ --scale small --split test    on images never looked at

a1    FoveaBox: Focal + Smooth L1, AP + Smooth L1, aLRP at 50, 75 and 100 % of one schedule
a2    ATSS: its own loss, aLRP
a3    RetinaNet: Focal + Smooth L1, AP + Smooth L1, aLRP, by objects in the image
a4    aLRP on RetinaNet: w_r = 1, 5, 10, 15, learned weights, self-balance
main  RetinaNet, FreeAnchor, DR, ATSS, FoveaBox, Faster R-CNN

Studies that the paper has not, all with ATSS:

losses   aLRP, aLRP as published, Focal + Smooth L1, Focal + 2 GIoU, as they are shipped
search   aLRP without tuning against focal loss with nine settings of its own and of the box loss
balance  aLRP with its localisation by rank or as a mean, and four balances; Rank & Sort

And with all detectors:

detectors  aLRP as published, and with a mean localisation balanced by gradients

A run is a folder of `rankdet train` in OUT/TABLE-SCALE; one that is finished is never run again.
"""

NAMES = ("a1", "a2", "a3", "a4", "main", "losses", "search", "balance", "detectors")
"""Of the tables, as in `rankdet.experiments.tables.TABLES`, which a help text need not import."""


@dataclass(frozen=True)
class Work:
    """What was asked for, read and found."""

    given: argparse.Namespace
    table: Table
    out: Path
    folder: Path
    images: Images
    places: tuple[Place, ...]
    split: OtherSplit | None
    """That finished runs are judged on; None: on the images they were validated on."""
    voice: Voice

    def slots(self, left: int) -> tuple[dict[str, str], ...]:
        """Return what each of the jobs that run at once adds to its environment.

        Args:
            left: so many are to be done, 1 or more.
        """
        import os

        import torch

        from rankdet.experiments.run import slots

        gpus = torch.cuda.device_count()
        jobs = min(self.given.jobs or max(gpus, 1), left)
        return slots(jobs, gpus=gpus, environment=os.environ)


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "tables",
        help="rerun the paper's experiments, and studies of ours, at any scale",
        description="Train all that a table compares, over several seeds, and print "
        "what was measured, which differences exceed the spread over seeds, and the published "
        "numbers beside it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=NAMES, help="which table")
    parser.add_argument(
        "--data", required=True, type=path_text, metavar="DIR", help="images and annotations"
    )
    parser.add_argument(
        "--scale",
        required=True,
        choices=("tiny", "small", "paper"),
        help="tiny: small recipes, 1500 steps at 128 pixels, minutes a run on a CPU; small: small "
        "recipes as they are; paper: published recipes, 100 epochs with ResNet-50",
    )
    parser.add_argument(
        "--seeds",
        type=count_from(1),
        default=3,
        metavar="N",
        help="runs of each row: seeds 0 to N-1 (3)",
    )
    parser.add_argument(
        "--rows",
        metavar="ROW,ROW",
        help="only these rows, by their names (--dry-run lists them); default: all",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with runs that were interrupted or failed"
    )
    parser.add_argument(
        "--jobs",
        type=count_from(1),
        metavar="N",
        help="runs at once: each on a GPU in turn, or with its share of the CPU cores; default: "
        "one for each GPU, or 1",
    )
    parser.add_argument(
        "--split",
        default="val",
        help="judge the finished runs on another split of the data, such as test, which nothing "
        "was chosen on; into table-SPLIT.md (val)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="with --dry-run: time 10 steps of each recipe on this data",
    )
    parser.add_argument(
        "--out",
        type=path_text,
        metavar="DIR",
        help="folder of all tables of these data; default: runs/tables-DATA",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the recipe of every run",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print what would be done, or do it."""
    from rankdet.cli.tables_plan import show_plan
    from rankdet.experiments.run import locked

    training, validation, work = _prepare(given)
    if given.dry_run:
        return show_plan(work, training, validation)
    with locked(work.folder) as lock:
        return _execute_and_print(work, lock)


def _prepare(given: argparse.Namespace) -> tuple[ImageSet, ImageSet, Work]:
    """Read the data, and find the runs that there are.

    Raises:
        RunError: options that do not go together, or a folder that holds something else.
        RecipeError: a change of the recipes is wrong.
        DataError: the data cannot be used.
    """
    from rankdet.cli.common import Voice
    from rankdet.cli.running import splits
    from rankdet.data.discover import discover
    from rankdet.engine.files import RunError
    from rankdet.experiments.folders import Images, locate, table_folder
    from rankdet.experiments.table import runs
    from rankdet.experiments.tables import TABLES

    if given.measure and not given.dry_run:
        raise RunError("--measure goes with --dry-run")
    if given.out and Path(given.out).is_file():
        raise RunError(f"--out {given.out} is a file; name a folder")
    for change in given.set:
        if change.partition("=")[0].strip() == "training.seed":
            raise RunError(f"--set {change}: the seeds of a table are given by --seeds")
    table = TABLES[given.table]
    if given.rows is not None:
        try:
            table = table.only([name.strip() for name in given.rows.split(",")])
        except ValueError as fault:
            raise RunError(f"--rows {given.rows}: {fault}") from fault
    wanted = runs(table, given.scale, seeds=given.seeds, changes=given.set)
    recipes = [each.wanted for each in wanted]  # a wrong change is found before the data are read
    voice = Voice()
    found = discover(Path(given.data))
    split = _other_split(found, given) if given.split != "val" else None
    training, validation = splits(found, recipes[0], voice)
    images = Images(
        source=Path(given.data).resolve(),
        training=len(training),
        validation=len(validation),
        objects=_objects(validation),
        classes=len(validation.classes),
    )
    voice.say(f"[bold]{plain(given.data)}[/bold]: {images.training} images to train on, "
              f"{images.validation} to validate on (look at them: rankdet data check)")  # fmt: skip
    out = Path(given.out) if given.out else Path("runs") / f"tables-{images.source.name}"
    places = tuple(locate(out, table, given.scale, each, images) for each in wanted)
    folder = table_folder(out, table, given.scale)
    return training, validation, Work(given, table, out, folder, images, places, split, voice)


def _other_split(found: DataFolder, given: argparse.Namespace) -> OtherSplit:
    """Return the split to judge on.

    Raises:
        RunError: the data have no such split.
    """
    from rankdet.cli.common import pick_split
    from rankdet.experiments.other_split import OtherSplit

    images = pick_split(found, given.split, given.data)
    return OtherSplit(given.split, len(images), _objects(images))


def _objects(images: ImageSet) -> int:
    """Return the number of objects without crowd."""
    return sum(int((~record.crowd).sum()) for record in images.records)


def _execute_and_print(work: Work, lock: int) -> int:
    """Execute what is not finished, then print and write the table.

    Args:
        work: what was asked for.
        lock: descriptor that the runs inherit.
    """
    from rankdet.cli.common import command_line
    from rankdet.cli.tables_split import judge, print_judged
    from rankdet.engine.files import RunError
    from rankdet.experiments.folders import State

    begun = [place.run.name for place in work.places if place.state is State.BEGUN]
    if begun and not work.given.resume:
        raise RunError(
            f"{work.folder} holds runs that were begun and are not finished: "
            f"{', '.join(begun)}. Go on with them by --resume, or choose another folder with --out"
        )
    outcome = _execute(work, lock)
    results, missing = _collect(work, outcome)
    stopped = outcome.signal
    typed = command_line()
    if work.split is None:
        _print(work, results, missing, typed)
    elif stopped is None:
        judged, unjudged, stopped = judge(work, work.split, results, lock)
        print_judged(work, work.split, results, judged, [*missing, *unjudged], typed)
        missing += unjudged
    if stopped is not None:
        again = typed if work.given.resume else f"{typed} --resume"
        work.voice.say(f"interrupted; the states of the runs are saved. Go on: {plain(again)}")
        return 128 + stopped
    return 1 if missing else 0


def _execute(work: Work, lock: int) -> Outcome:
    """Execute what is not finished."""
    from rankdet.experiments.folders import State, steps_of
    from rankdet.experiments.run import Outcome, execute, train_command
    from rankdet.experiments.watching import Progressing

    left = [place for place in work.places if place.state is not State.FINISHED]
    done = len(work.places) - len(left)
    if done:
        work.voice.say(f"{done} of {len(work.places)} runs are finished already")
    if not left:
        return Outcome((), None)
    slots = work.slots(len(left))
    steps = {place.run.name: steps_of(place.run, work.images) for place in left}
    work.voice.say(
        f"{counted(len(left), 'run')} to execute, {len(slots)} at a time, in {plain(work.folder)}"
    )
    voice = work.voice
    with Progressing(voice.console, voice.say, steps=steps, total=len(left)) as watcher:
        return execute(
            left,
            train_command(work.images),
            slots,
            watcher,
            keep_open=(lock,),
        )


def _collect(work: Work, outcome: Outcome) -> tuple[list[Result], list[str]]:
    """Return what is measured, and what to say of the runs that are not finished."""
    from rankdet.engine.files import RunError
    from rankdet.eval.files import EvaluationFileError
    from rankdet.experiments.collect import read_result
    from rankdet.experiments.folders import State, locate

    results, missing = [], []
    failed = {how.place.run.name: how for how in outcome.failed}
    for place in work.places:
        name = place.run.name
        try:
            now = locate(work.out, work.table, work.given.scale, place.run, work.images)
            if now.state is State.FINISHED:
                results.append(read_result(now))
            elif name in failed:
                how = failed[name]
                missing.append(f"{name}: exit code {how.code}: {how.said}; log: {place.log}")
            else:
                missing.append(f"{name}: {now.state.value}")
        except (RunError, EvaluationFileError) as fault:
            missing.append(f"{name}: {fault}")
    return results, missing


def _print(work: Work, results: Sequence[Result], missing: Sequence[str], typed: str) -> None:
    """Write the table, and print it."""
    from rankdet.experiments.output import fill, write_table
    from rankdet.experiments.render import OnTerminal

    filled = fill(
        work.table,
        work.given.scale,
        results,
        missing=missing,
        places=work.places,
        images=work.images,
        command=typed,
    )
    filled = write_table(work.folder, filled, results, work.images)
    work.voice.show(OnTerminal(filled))
    for name in ("table.md", "table.csv", *filled.plots):
        work.voice.say(f"written   {plain(work.folder / name)}")
