"""`rankdet train`: from a folder of labelled images to a detector, a report and thresholds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankdet.cli.common import count_from, path_text, plain

EXAMPLES = """\
examples:
  rankdet train --data photos/                          everything by itself
  rankdet train --data photos/ --recipe atss_alrp-small --set schedule.epochs=50
  rankdet train --data coco/ --recipe retinanet_r50_alrp --devices 4
  rankdet train --data photos/ --recipe atss_alrp-small --print-config
  rankdet train --resume runs/photos-atss_alrp-small    go on where it stopped

`rankdet recipes` lists the recipes, `rankdet recipes --keys` what --set can change.
"""


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "train",
        help="train a detector on a folder of labelled images",
        description="Train a detector. The folder may hold COCO json, Pascal VOC xml or YOLO txt; "
        "which, and how it is split, is found out. Without a validation split one is made.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=path_text, metavar="DIR", help="folder with images and annotations"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="recipe by name or YAML file; default: atss_r50_alrp with a GPU, else atss_alrp-small",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe"
    )
    parser.add_argument(
        "--out", type=path_text, metavar="DIR", help="folder of the run; default: in runs/"
    )
    parser.add_argument(
        "--resume",
        type=path_text,
        metavar="RUN",
        help="go on with an interrupted run, exactly where it stopped",
    )
    parser.add_argument("--print-config", action="store_true", help="print the recipe and leave")
    parser.add_argument(
        "--devices", type=count_from(1), default=1, help="GPUs, or processes on a CPU"
    )
    parser.add_argument(
        "--nodes", type=count_from(1), default=1, help="machines, each with --devices"
    )
    parser.add_argument("--strategy", default="auto", help='Lightning\'s: "auto", "ddp", ...')
    parser.add_argument("--accelerator", default="auto", help='"auto", "cpu", "gpu"')
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Train."""
    from rankdet.engine.files import RunError

    if given.print_config:
        from rankdet.config.load import dump, load_recipe

        print(dump(load_recipe(given.recipe or default_recipe(), given.set)), end="")
        return 0
    if given.resume:
        if given.recipe or given.set or given.out:
            raise RunError(
                "--resume goes on with the recipe of the run; leave out --recipe, --set and --out"
            )
        return resume_run(Path(given.resume), given)
    if not given.data:
        raise RunError("which images? Give --data DIR, or --resume RUN to go on with a run")
    return start_run(given)


def default_recipe() -> str:
    """Return the recipe for this machine."""
    import torch

    return "atss_r50_alrp" if torch.cuda.is_available() else "atss_alrp-small"


def start_run(given: argparse.Namespace) -> int:
    """Train in a new folder."""
    from rankdet.cli.common import Voice
    from rankdet.cli.running import is_first, new_folder, run_in, write_settings
    from rankdet.config.load import load_recipe

    name = given.recipe or default_recipe()
    recipe = load_recipe(name, given.set)
    voice = Voice(quiet=not is_first())
    if not given.recipe:
        voice.say(
            f"recipe: {plain(name)} (choose another with --recipe; `rankdet recipes` lists them)"
        )
    source = Path(given.data).resolve()
    folder = new_folder(given.out, f"{source.name}-{recipe.name}")
    # The folder is made only when data and recipe have proved sound.
    return run_in(
        folder,
        recipe,
        str(given.data),
        _hardware(given),
        voice,
        prepare=lambda: write_settings(folder, recipe, source),
    )


def resume_run(folder: Path, given: argparse.Namespace) -> int:
    """Go on in the folder of an interrupted run."""
    from rankdet.cli.common import Voice
    from rankdet.cli.running import is_first, read_settings, run_in

    recipe, source = read_settings(folder)
    voice = Voice(quiet=not is_first())
    data = str(given.data or source)
    return run_in(folder, recipe, data, _hardware(given), voice, resume=True)


def _hardware(given: argparse.Namespace) -> Any:
    from rankdet.config.assemble import Hardware

    return Hardware(given.accelerator, given.devices, given.nodes, given.strategy)
