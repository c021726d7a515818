"""`rankdet demo`: the whole path on built-in images, in minutes on two CPU cores."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdet.cli.common import path_text


@dataclass(frozen=True)
class Expected:
    """What earlier runs gave, see docs/results/first-runs.md."""

    steps: int
    ap: tuple[float, float]
    olrp: float
    when: str


FULL = Expected(
    4800, (0.71, 0.77), 0.35, "5 minutes of training on two idle cores of a 2.3 GHz Xeon"
)
QUICK = Expected(500, (0.37, 0.55), 0.65, "40 seconds of training there")

EXAMPLES = """\
examples:
  rankdet demo                  4800 steps: five minutes on two cores
  rankdet demo --quick          500 steps on less data
  rankdet demo --out try/ --set criterion.kind=rank_sort
"""


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "demo",
        help="train on built-in images, evaluate, and draw what was found",
        description="Make the built-in data set (handwritten digits on photographs), train "
        "RetinaNet with ATSS and aLRP Loss on it from scratch, evaluate, and write a report with "
        "pictures. No GPU, no download.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="less data and a shorter training")
    parser.add_argument(
        "--out", type=path_text, default="rankdet-demo", metavar="DIR", help="default: rankdet-demo"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe"
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the demonstration."""
    from rankdet.cli.common import Voice
    from rankdet.cli.data import make_digits
    from rankdet.cli.running import new_folder, run_in, write_settings
    from rankdet.config.assemble import Hardware
    from rankdet.config.load import load_recipe

    voice = Voice()
    out = Path(given.out)
    short = [f"schedule.steps={QUICK.steps}", "training.evaluations=1"] if given.quick else []
    recipe = load_recipe("demo", [*short, *given.set])
    data = out / ("digits-quick" if given.quick else "digits")
    folder = new_folder(str(_free(out / ("quick" if given.quick else "run"))), recipe.name)
    train, val = (1500, 150) if given.quick else (12_000, 300)
    make_digits(data, train, val, recipe.data.train_size, 0, False, voice)
    code = run_in(
        folder,
        recipe,
        str(data),
        Hardware(accelerator="cpu"),
        voice,
        prepare=lambda: write_settings(folder, recipe, data.resolve()),
    )
    if code == 0:
        _compare(folder, given.quick, bool(given.set), voice)
    return code


def _compare(folder: Path, quick: bool, changed: bool, voice: Any) -> None:
    """Say how the result compares with what this takes and gives elsewhere."""
    import json

    found = json.loads((folder / "score.json").read_text(encoding="utf-8"))
    voice.say(
        f"[bold]AP {found['AP']:.3f}   AP50 {found['AP50']:.3f}   oLRP {found['oLRP']:.3f}[/bold]"
    )
    if changed:
        return
    expected = QUICK if quick else FULL
    low, high = expected.ap
    step = float(_last_row(folder)["seconds"]) / expected.steps
    voice.say(
        f"expected: AP {low:.2f} to {high:.2f}, oLRP about {expected.olrp:.2f}, after "
        f"{expected.when}; here a step took {step * 1e3:.0f} ms"
    )
    if not low <= found["AP"] <= high:
        side = "above" if found["AP"] > high else "below"
        voice.warn(f"this AP is {side} what we have seen; please tell us")


def _last_row(folder: Path) -> dict[str, str]:
    import csv

    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))[-1]


def _free(folder: Path) -> Path:
    """Return the folder, or the first of folder-2, folder-3, ... that does not exist."""
    made, count = folder, 1
    while made.exists():
        count += 1
        made = folder.with_name(f"{folder.name}-{count}")
    return made
