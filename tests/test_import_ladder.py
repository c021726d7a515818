"""Who may import whom: the rooms of the package form a ladder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "rankdet"
# What each room may import: other rooms of the package, and libraries beyond Python's own.
ROOMS = {
    "ops": ({"ops"}, {"torch", "torchvision", "triton"}),
    "losses": ({"losses", "ops"}, {"torch", "torchvision"}),
    "structures.py": (set(), {"torch"}),
    "assign": ({"assign", "ops", "structures"}, {"torch", "torchvision"}),
    "eval": ({"eval", "pictures"}, {"PIL", "numpy", "rich"}),
    "criteria": ({"criteria", "losses", "ops", "structures"}, {"torch"}),
    # Models know no loss, no assigner and no criterion.
    "models": ({"models", "ops", "structures"}, {"safetensors", "timm", "torch", "torchvision"}),
    "data": (
        {"data", "ops", "structures"},
        {"PIL", "numpy", "rich", "scipy", "sklearn", "torch", "torchvision", "yaml"},
    ),
    "pictures.py": (set(), {"PIL", "numpy"}),
    # The engine is given its parts built; it knows no name of any of them.
    "engine": (
        {"engine", "eval", "pictures", "structures"},
        {"numpy", "pytorch_lightning", "rich", "safetensors", "torch"},
    ),
    "recipes": (set(), set()),
    "config": (
        {"assign", "config", "criteria", "data", "engine", "losses", "models", "ops", "recipes"},
        {"pydantic", "torch", "yaml"},
    ),
    # Times steps with what it assembles; what is trained is trained by `rankdet train`.
    "experiments": (
        {"config", "data", "engine", "eval", "experiments", "structures"},
        {"matplotlib", "rich", "torch"},
    ),
    "cli": (
        {"cli", "config", "data", "engine", "eval", "experiments", "pictures", "structures"},
        {"numpy", "rich", "shtab", "torch", "yaml"},
    ),
}
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Return the full names of all modules that are imported anywhere in a file."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def offences(room: str, source: str) -> list[str]:
    """Return what a file of this room imports though it may not."""
    import sys

    rooms, libraries = ROOMS[room]
    found = []
    for name in sorted(imported(ast.parse(source))):
        top, _, rest = name.partition(".")
        if name == "rankdet":  # its version, the only thing it holds
            continue
        if not top:
            found.append(f"{name}: imports name the whole path here")
        elif top == "rankdet":
            if rest.partition(".")[0] not in rooms:
                found.append(f"{name}: a room that {room} may not enter")
        elif top not in libraries and top not in sys.stdlib_module_names:
            found.append(f"{name}: a library that {room} may not use")
    return found


@pytest.mark.parametrize("file", FILES)
def test_no_file_imports_what_its_room_may_not(file: str) -> None:
    room = file.split("/")[0]
    if room == "__init__.py":
        source = (SOURCE / file).read_text()
        assert imported(ast.parse(source)) == set(), "importing rankdet must cost nothing"
        return
    assert room in ROOMS, f"the room {room} is not on the ladder: add it to ROOMS"
    assert offences(room, (SOURCE / file).read_text()) == []


def test_the_ladder_sees_an_offence() -> None:
    for line in ("import rankdet.losses.ap", "from rankdet.criteria import balance",
                 "import numpy", "from . import few"):  # fmt: skip
        assert len(offences("ops", line)) == 1
    assert offences("losses", "from rankdet.ops.rank import rank_operator\nimport math") == []
