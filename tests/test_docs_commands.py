"""The commands in the documentation: each is understood, and its recipe and changes exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rankdet.cli.main import parser
from rankdet.config.load import load_recipe, shipped
from rankdet.experiments.table import one_run
from rankdet.experiments.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RECIPES = {name for name, _ in shipped()}

_FENCE = re.compile(r"^ *```(?:bash|sh|console)\n(.*?)^ *```", re.S | re.M)
_VERBS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


class Command(NamedTuple):
    """A command on a page."""

    page: str
    words: tuple[str, ...]


def commands(text: str, page: str) -> Iterator[Command]:
    """Yield the commands of the blocks of a page, one for each line."""
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line):
                words = shlex.split(part, comments=True)
                while words and ("=" in words[0] or words[0] in ("srun", "$")):
                    words = words[1:]  # settings of the environment, and what starts it
                if words:
                    yield Command(page, tuple(words))


EVERY = [
    command
    for page in PAGES
    for command in commands(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())
]
OURS = [
    Command(each.page, each.words[each.words.index(start) + 1 :])
    for each in EVERY
    for start in ("rankdet", "rankdet.cli.main")
    if start == each.words[0] or (start == "rankdet.cli.main" and start in each.words)
]


def named(command: Command) -> str:
    return f"{command.page}: {' '.join(command.words)}"


def test_commands_are_found() -> None:
    page = "```bash\nA=1 rankdet train --data x \\\n  --set a=b  # why\ncd y && make demo\n```\n"
    assert [each.words for each in commands(page, "p")] == [
        ("rankdet", "train", "--data", "x", "--set", "a=b"), ("cd", "y"), ("make", "demo"),
    ]  # fmt: skip
    assert len(OURS) > 40


@pytest.mark.parametrize("command", OURS, ids=named)
def test_a_command_is_understood(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    # What a reader puts in is in capitals, some of it a number.
    words = ["1" if re.fullmatch("[A-Z]", word) else word for word in command.words]
    try:
        given: Any = parser().parse_args(words)
    except SystemExit as left:
        if left.code:
            pytest.fail(capsys.readouterr().err)
        return
    changes = [each for each in getattr(given, "set", None) or [] if each != "KEY=VALUE"]
    if getattr(given, "verb", None) == "tables":
        table = TABLES[given.table].only(given.rows.split(",")) if given.rows else None
        for row in (table or TABLES[given.table]).rows:
            assert one_run(row, given.scale, seed=0, changes=changes).wanted
    elif hasattr(given, "recipe") or given.verb == "demo":
        recipe = "demo" if given.verb == "demo" else given.recipe or "atss_alrp-small"
        if recipe in RECIPES or changes:
            assert load_recipe(recipe, changes)


def test_other_commands_of_the_repository_exist() -> None:
    made = {each.words[1] for each in EVERY if each.words[0] == "make" and len(each.words) > 1}
    assert made <= _VERBS
    modules = {
        each.words[2] for each in EVERY if each.words[:2] == ("python", "-m")
        if each.words[2].startswith(("benchmarks", "rankdet"))
    }  # fmt: skip
    assert modules
    assert all(find_spec(module) for module in modules)
