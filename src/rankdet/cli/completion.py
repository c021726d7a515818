"""Completion scripts for shells: verbs and options, and what their values are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import resources
from typing import Any

# What values are, by the words that stand for them in the help.
_FILES = ("FILE", "CKPT", "IMAGE_OR_FOLDER")
_FOLDERS = ("DIR", "RUN")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a completion script: verbs, options, names of recipes, files and folders.

    Args:
        parser: of the whole command; not to be used for parsing after this.
        shell: "bash", "zsh" or "tcsh".
    """
    import shtab

    for action in _actions(parser):
        wanted: Any = action
        if action.metavar in _FILES:
            wanted.complete = shtab.FILE
        elif action.metavar in _FOLDERS:
            wanted.complete = shtab.DIRECTORY
        elif action.dest == "recipe":
            action.choices = _recipes()
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the options and arguments of a parser, and of all verbs below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action


def _recipes() -> list[str]:
    files = resources.files("rankdet").joinpath("recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
