"""A run from its recipe to its report: what `train` and `demo` have in common."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankdet import __version__
from rankdet.cli.common import Voice, command_line, find_data, plain
from rankdet.config.assemble import Hardware, make_parts, make_plan
from rankdet.config.load import dump, load_recipe
from rankdet.config.losses import rankings_of
from rankdet.config.recipe import Recipe
from rankdet.data.discover import DataFolder
from rankdet.data.errors import DataError
from rankdet.data.images import UNUSABLE
from rankdet.data.imageset import ImageSet
from rankdet.data.loader import explain_worker_death
from rankdet.data.split import hold_out
from rankdet.engine.files import RunError, write_json, write_text
from rankdet.engine.hardware import check_hardware
from rankdet.engine.trainer import MODEL, STATE, Outcome, Plan, train
from rankdet.eval.score import Score
from rankdet.eval.table import table
from rankdet.wording import counted

RECIPE = "recipe.yaml"
SETTINGS = "run.json"
# Where the first process of a run tells those it starts which folder they work in.
_FOLDER = "RANKDET_RUN_FOLDER"


def new_folder(out: str | None, name: str) -> Path:
    """Return a folder for a new run, not made yet.

    Raises:
        RunError: the folder that was asked for is not empty, or none was asked for where processes
            could not agree on one.
    """
    if _FOLDER in os.environ and not is_first():
        return Path(os.environ[_FOLDER])
    if started_apart():
        if out is None:
            raise RunError(
                "give --out DIR: torchrun, SLURM and the like start each process by itself, and "
                "all of them have to know the folder, which all machines can reach"
            )
        if not is_first():
            return Path(out)
    if out is None:
        # A recipe may be called anything; a name of folders within folders it is not.
        name = re.sub(r"[/\\]", "-", name)
        folder, count = Path("runs") / name, 1
        while folder.exists():
            count += 1
            folder = Path("runs") / f"{name}-{count}"
        return folder
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        hint = f"go on with it by `rankdet train --resume {out}`, or " if is_run(folder) else ""
        raise RunError(f"--out {out} exists and is not empty; {hint}choose another folder")
    return folder


def is_first() -> bool:
    """Whether this process speaks and writes for all that train together.

    That has to be known before they are connected: from what torchrun (RANK), Lightning's launcher
    (LOCAL_RANK, NODE_RANK) and SLURM (SLURM_PROCID) tell a process.
    """
    told = os.environ
    if "RANK" in told:
        return told["RANK"] == "0"
    if "LOCAL_RANK" in told:
        return told["LOCAL_RANK"] == "0" == told.get("NODE_RANK", "0")
    return all(told.get(name, "0") == "0" for name in ("SLURM_PROCID", "NODE_RANK"))


def started_apart() -> bool:
    """Whether something else than this command starts the processes, or some of them."""
    told = os.environ
    # Lightning takes a shell within a job for no job.
    shell = told.get("SLURM_JOB_NAME") in ("bash", "interactive")
    tasks = int(told.get("SLURM_NTASKS", "1"))
    return "RANK" in told or "NODE_RANK" in told or (tasks > 1 and not shell)


def write_settings(folder: Path, recipe: Recipe, source: Path) -> None:
    """Write what a run was asked to do, and on what it runs."""
    write_text(folder / RECIPE, dump(recipe))
    write_json(folder / SETTINGS, {"data": str(source), **environment()}, indent=1)


def read_settings(folder: Path) -> tuple[Recipe, str]:
    """Return the recipe of a run and where its data were.

    Raises:
        RunError: the folder holds no run.
    """
    if not is_run(folder):
        raise RunError(f"{folder} holds no run: {RECIPE} and {SETTINGS} are not both there")
    recipe = load_recipe(str(folder / RECIPE), ())
    return recipe, str(settings_in(folder)["data"])


def settings_in(folder: Path) -> dict[str, Any]:
    """Return what `write_settings` wrote.

    Raises:
        RunError: it cannot be read, or does not say where the images are.
    """
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise RunError(f"{path} cannot be read ({fault}); a run writes it at its start") from fault
    if not isinstance(settings, dict) or not isinstance(settings.get("data"), str):
        raise RunError(f"{path} does not say where the images are: data is missing; add it")
    return settings


def run_in(
    folder: Path,
    recipe: Recipe,
    data: str,
    hardware: Hardware,
    voice: Voice,
    *,
    resume: bool = False,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Train in a folder, then say what came out; return the exit code."""
    check_hardware(hardware.accelerator, hardware.strategy, hardware.devices)
    found = find_data(data, voice)
    training, validation = splits(found, recipe, voice)
    for images in (training, validation):
        unusable = [problem for problem in images.problems if problem.message == UNUSABLE]
        if unusable:
            raise RunError(
                f"{counted(len(unusable), 'image')} cannot be used as annotated, the first: "
                f"{unusable[0].file}: {unusable[0].value}; `rankdet data check --decode` names all"
            )
    plan = make_plan(recipe, len(training), hardware)
    describe(recipe, plan, training, hardware, voice)
    parts = make_parts(recipe, training, validation, plan, hardware)
    if not voice.quiet:
        if prepare is not None:
            prepare()
        if resume and not (folder / STATE).is_file():
            voice.warn("nothing was saved before the interruption; starting from the beginning")
            resume = False
        voice.log_to(folder / "log.txt")
        os.environ[_FOLDER] = str(folder)
    elif resume:
        resume = (folder / STATE).is_file()
    try:
        outcome = train(folder, parts, plan, console=voice.console, resume=resume)
    except KeyboardInterrupt:
        voice.say(
            "interrupted at once; what was saved before is kept. Go on: rankdet train --resume "
            f"{_typed(folder)}"
        )
        return 130
    except DataError as fault:
        if voice.quiet:
            raise
        raise DataError(
            f"{fault}. What was trained is kept: put that right, then rankdet train --resume "
            f"{shlex.quote(str(folder))}"
        ) from fault
    except RuntimeError as fault:
        # A process of the data loader that dies is noticed wherever the program is just then.
        explained = explain_worker_death(fault)
        if explained is None:
            raise
        raise explained from fault
    if voice.quiet:
        return 0
    if outcome.signal is not None:
        voice.say(
            f"interrupted; the state is saved. Go on: rankdet train --resume {_typed(folder)}"
        )
        return 128 + outcome.signal
    finish(folder, recipe, validation, outcome, voice)
    return 0


def splits(found: DataFolder, recipe: Recipe, voice: Voice) -> tuple[ImageSet, ImageSet]:
    """Return the images to train and to validate on.

    Raises:
        RunError: there is nothing to train on.
    """
    training = found.splits.get("train")
    if training is None:
        raise RunError(f"no training split: found {', '.join(found.splits) or 'nothing'}")
    if sum(record.labels.size for record in training.records) == 0:
        raise RunError("the training images have no boxes; there is nothing to learn")
    validation = found.splits.get("val")
    if validation is None:
        training, validation = hold_out(training, fraction=0.2, seed=recipe.data.split_seed)
        voice.say(
            f"no validation split: {len(validation)} of the images are held out for it, "
            f"{len(training)} stay for training (data.split_seed {recipe.data.split_seed})"
        )
    return training, validation


def describe(
    recipe: Recipe, plan: Plan, training: ImageSet, hardware: Hardware, voice: Voice
) -> None:
    """Say what is about to happen, and what differs from what the recipe's name promises."""
    epochs = plan.steps * recipe.batch.size / max(len(training), 1)
    voice.say(
        f"[bold]{plain(recipe.name)}[/bold]: {counted(plan.steps, 'step')} of "
        f"{counted(recipe.batch.size, 'image')} "
        f"({epochs:.1f} epochs), {plan.precision}"
    )
    optimizer = recipe.optimizer
    if optimizer.reference_batch != recipe.batch.size:
        lr = optimizer.lr * recipe.batch.size / optimizer.reference_batch
        voice.say(
            f"learning rate {lr:g}: {optimizer.lr:g} for batches of {optimizer.reference_batch}, "
            f"scaled to {recipe.batch.size}"
        )
    if plan.accumulate > 1 or hardware.world > 1:
        voice.say(
            f"each step adds up {plan.accumulate} x {hardware.world} micro-batches of "
            f"{recipe.batch.micro}" + _extent_of_rankings(recipe, plan, hardware)
        )


def _extent_of_rankings(recipe: Recipe, plan: Plan, hardware: Hardware) -> str:
    """Say what a ranking spans where that is less than a batch, or more than a micro-batch."""
    rankings = set(rankings_of(recipe.criterion))
    if hardware.world == 1 and rankings:
        rankings = {"local"}
    said = ""
    if "local" in rankings:
        said += (
            f"; a ranking loss ranks within a micro-batch, not over the whole batch of "
            f"{recipe.batch.size}"
        )
    if "global" in rankings:
        at_once = recipe.batch.micro * hardware.world
        said += f"; a global ranking spans the {at_once} images of all processes"
        if plan.accumulate > 1:
            said += f" at a time, not the whole batch of {recipe.batch.size}"
    return said


def finish(
    folder: Path, recipe: Recipe, validation: ImageSet, outcome: Outcome, voice: Voice
) -> None:
    """Say how good the best model is, and where everything lies."""
    from rankdet.cli.reporting import write_report

    whole = json.loads((folder / "score.json").read_text(encoding="utf-8"))
    result = Score.from_json(whole)
    settings = settings_in(folder)
    facts = {
        "recipe": f"{recipe.name}: {recipe.description}",
        "data": f"{settings['data']}, split {validation.name}",
        "training": f"{_minutes(outcome.seconds)} in the last session, on {hardware_name()}",
        "command": settings.get("command", ""),
        "started": settings.get("started", ""),
    }
    title = f"{recipe.name} on {Path(settings['data']).name}"
    page = write_report(folder, validation, result, title=title, facts=facts)
    voice.show(table(result))
    voice.say(f"training took {_minutes(outcome.seconds)} on {hardware_name()}")
    voice.say(f"report    {plain(page)}")
    voice.say(f"pictures  {plain(folder / 'pictures')}")
    voice.say(f"model     {plain(folder / MODEL)}")
    voice.say(f"use it    rankdet predict {_typed(folder / MODEL)} IMAGES --out found")


def hardware_name() -> str:
    """Return what computes here, in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return counted(torch.get_num_threads(), "CPU thread")


def environment() -> dict[str, Any]:
    """Return what a run depends on beside its recipe."""
    import torch

    packages = ("torch", "torchvision", "pytorch-lightning", "numpy", "pillow")
    return {
        "command": command_line(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "rankdet": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _commit() -> str | None:
    """Return the commit of the source tree that this code runs from, with "+" if it is changed."""
    source = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(source), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # An installed copy may lie in somebody else's repository.
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _typed(path: Path) -> str:
    """Return a path as it has to be typed in a shell."""
    return plain(shlex.quote(str(path)))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / RECIPE).is_file() and (folder / SETTINGS).is_file()


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
