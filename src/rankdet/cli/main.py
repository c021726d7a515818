"""The door of the command: its verbs, its help, and how errors reach a person.

Nothing heavy is imported before a verb runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rankdet import __version__
from rankdet.cli import (
    compare,
    data,
    demo,
    evaluate,
    export,
    predict,
    recipes,
    score,
    tables,
    train,
)

EXAMPLES = """\
examples:
  rankdet demo                                  train on built-in images, in minutes
  rankdet data check photos/                    what is in this folder, and is it sound?
  rankdet train --data photos/                  train a detector on it
  rankdet evaluate runs/photos-1/best.safetensors --data photos/
  rankdet predict runs/photos-1/best.safetensors new/ --out found/
  rankdet export runs/photos-1 --format onnx    write it for another runtime
  rankdet score --ground-truth val.json --detections results.json --html report.html
  rankdet compare runs/photos-1 runs/photos-2   what got better, what worse
  rankdet tables a1 --data photos/ --scale tiny the paper's experiments

`rankdet VERB --help` explains each verb. Completion for your shell:
  rankdet --print-completion bash > ~/.local/share/bash-completion/completions/rankdet
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    whole = argparse.ArgumentParser(
        prog="rankdet",
        description="Train object detectors with ranking-based losses, evaluate and use them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"rankdet {__version__}")
    whole.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        help="print a completion script for bash, zsh or tcsh",
    )
    whole.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    verbs = whole.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    for verb in (demo, train, evaluate, predict, export, score, compare, data, tables, recipes):
        verb.add_to(verbs)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 for a failure, 2 for a wrong call."""
    whole = parser()
    given = whole.parse_args(arguments)
    if given.print_completion:
        from rankdet.cli.completion import script

        print(script(whole, given.print_completion))
        return 0
    if given.verb is None:
        whole.print_help()
        return 0
    try:
        code: int = given.run(given)
    except KeyboardInterrupt:
        print("rankdet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left, as `| head` does
        return 141
    except Exception as error:
        said = str(error) if _is_ours(error) else _said_of_disk(error)
        if given.debug or said is None:
            raise
        print(f"rankdet: error: {said}", file=sys.stderr)
        return 1
    return code


def _is_ours(error: Exception) -> bool:
    """Whether an error was written for the user, rather than being a fault of the program."""
    from rankdet.data.errors import DataError
    from rankdet.engine.files import RunError

    kinds: tuple[type[Exception], ...] = (DataError, RunError)
    if "rankdet.config.load" in sys.modules:
        from rankdet.config.load import RecipeError

        kinds = (*kinds, RecipeError)
    if "rankdet.eval.files" in sys.modules:
        from rankdet.eval.files import EvaluationFileError

        kinds = (*kinds, EvaluationFileError)
    return isinstance(error, kinds)


def _said_of_disk(error: Exception) -> str | None:
    """Return what to say of a full disk, or None if the error is about something else.

    Libraries that write by themselves raise the system's own error.
    """
    from rankdet.engine.files import FULL

    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    which = f" {error.filename}" if error.filename else ""
    return f"cannot write{which}: the disk is full. Free some space; what was there is untouched."


if __name__ == "__main__":
    sys.exit(main())
