"""Who may import whom: the rooms of the package form a ladder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "rankdet"
# What each room may import: other rooms of the package, and libraries beyond Python's own.
ROOMS = {
    "ops": ({"ops"}, {"numpy", "torch", "torchvision", "triton"}),
    "losses": ({"losses", "ops"}, {"torch", "torchvision"}),
    "structures.py": (set(), {"torch"}),
    "assign": ({"assign", "ops", "structures"}, {"torch", "torchvision"}),
    "eval": ({"eval", "pictures", "wording"}, {"PIL", "numpy", "rich"}),
    "criteria": ({"criteria", "losses", "ops", "structures"}, {"torch"}),
    # Models know no loss, no assigner and no criterion.
    "models": ({"models", "ops", "structures"}, {"safetensors", "timm", "torch", "torchvision"}),
    "data": (
        {"data", "ops", "structures", "wording"},
        {"PIL", "numpy", "rich", "scipy", "sklearn", "torch", "torchvision", "yaml"},
    ),
    "pictures.py": (set(), {"PIL", "numpy"}),
    "wording.py": (set(), set()),
    # The engine is given its parts built; it knows no name of any of them.
    "engine": (
        {"engine", "eval", "pictures", "structures", "wording"},
        {"numpy", "pytorch_lightning", "rich", "safetensors", "torch"},
    ),
    "recipes": (set(), set()),
    # Is given a detector and its settings; what reads a file of ours from them is built elsewhere.
    "export": (
        {"engine", "export", "models", "ops", "structures"},
        {"numpy", "onnx", "onnxruntime", "onnxscript", "torch", "torchvision"},
    ),
    # What the command does with a trained model, from Python: it loads as the command does.
    "inference.py": (
        {"cli", "config", "data", "engine", "inference_images", "inference_results", "wording"},
        {"rich", "torch"},
    ),
    "inference_images.py": ({"data"}, {"PIL", "numpy"}),
    "inference_results.py": (
        {"engine", "inference_images", "pictures", "structures", "wording"},
        {"PIL", "numpy", "supervision", "torch"},
    ),
    # What they share, and one library each; no other room lists them.
    "integrations/__init__.py": ({"criteria", "losses", "ops"}, {"torch"}),
    "integrations/torchvision": (
        {"criteria", "integrations", "losses", "ops", "structures"},
        {"torch", "torchvision"},
    ),
    "integrations/mmdet": (
        {"criteria", "integrations", "losses", "ops", "structures"},
        {"mmdet", "mmengine", "torch"},
    ),
    "integrations/transformers": (
        {"criteria", "integrations", "losses", "ops", "structures"},
        {"torch", "transformers"},
    ),
    "config": (
        {"assign", "config", "criteria", "data", "engine", "losses", "models", "ops", "recipes"},
        {"pydantic", "torch", "yaml"},
    ),
    # Times steps with what it assembles; what is trained is trained by `rankdet train`.
    "experiments": (
        {"config", "data", "engine", "eval", "experiments", "structures", "wording"},
        {"matplotlib", "rich", "torch"},
    ),
    "cli": (
        {
            "cli",
            "config",
            "data",
            "engine",
            "eval",
            "experiments",
            "export",
            "pictures",
            "structures",
            "wording",
        },
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


def for_type_checkers(node: ast.stmt) -> bool:
    """Return whether this is an ``if TYPE_CHECKING:``, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def room_of(file: str) -> str:
    """Return the room of a file, by its path within the package; each integration is one."""
    return next((room for room in ROOMS if "/" in room and file.startswith(room)),
                file.split("/")[0])  # fmt: skip


def offences(room: str, source: str) -> list[str]:
    """Return what a file of this room imports though it may not."""
    import sys

    rooms, libraries = ROOMS[room]
    found = []
    for name in sorted(imported(ast.parse(source))):
        top, _, rest = name.partition(".")
        if name == "rankdet":  # its version; `load` is for whoever uses the package
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
    room = room_of(file)
    if room == "__init__.py":
        tree = ast.parse((SOURCE / file).read_text())
        # `rankdet.load` imports what it needs when it is first asked for, and so inside a function.
        at_once = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
        whole = ast.Module([node for node in at_once if not for_type_checkers(node)], [])
        assert imported(whole) <= {"typing"}, "importing rankdet must cost nothing"
        assert imported(tree) <= {"typing", "rankdet.inference"}
        return
    assert room in ROOMS, f"the room {room} is not on the ladder: add it to ROOMS"
    assert offences(room, (SOURCE / file).read_text()) == []


def test_the_ladder_sees_an_offence() -> None:
    for line in ("import rankdet.losses.ap", "from rankdet.criteria import balance",
                 "import PIL", "from . import few"):  # fmt: skip
        assert len(offences("ops", line)) == 1
    assert offences("losses", "from rankdet.ops.rank import rank_operator\nimport math") == []
    other = room_of("integrations/torchvision_methods.py")
    assert len(offences(other, "import transformers\nimport torchvision")) == 1
    assert all("integrations" not in rooms or "integrations" in name
               for name, (rooms, _) in ROOMS.items())  # fmt: skip
