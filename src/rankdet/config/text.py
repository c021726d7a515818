"""YAML as recipes have it: its version of 2009, one meaning for every text, and line numbers.

In YAML 1.1, which the library reads, `1e-3` is a text, `no` is false and `010` is eight. Here
numbers are numbers, only `true` and `false` are truths, and everything else is text. A repeated
key, of which the library would drop one silently, is an error; so are references (`&`, `*`, `<<`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from rankdet.config.recipe import RecipeError

KeyPath = tuple[str, ...]
_RULES = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), [*"~nN", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"]),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), [*"-+0123456789"]),
    (
        "float",
        re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
        [*"-+.123456789", "0"],
    ),
)


def read_yaml(text: str, source: str) -> tuple[Any, dict[KeyPath, int]]:
    """Read a text of YAML.

    Args:
        text: one document.
        source: where it comes from, for error messages.

    Returns:
        Its content, with the keys of all mappings as text; and the line of each key, from 1.

    Raises:
        RecipeError: it is not YAML, or uses what recipes do not; source and line are named.
    """
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _note_lines(node, (), lines)
        return _named(loader.construct_document(node)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # What is one line only is shown as a whole by its source.
        several = mark is not None and "\n" in text.strip()
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark and several else ""
        raise RecipeError(f"{source}{at}: {error.problem or 'not valid YAML'}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise RecipeError(f"{source} is not valid YAML: {reason}") from error


def write_yaml(tree: Mapping[str, Any]) -> str:
    """Return plain data as YAML that this module reads as the same, and other readers too."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


class _Loader(yaml.SafeLoader):
    """Plain data only."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML looks for it on the class

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse references before they are followed."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call] # PyYAML's
            raise yaml.composer.ComposerError(None, None, "recipes have no references (*)", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Lists of plain values in one line; in quotes what either version would not read as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as above
        first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def _list_in_a_line(dumper: _Dumper, values: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    # Without quotes PyYAML writes these line ends as they are, and reads them as spaces.
    quoted = '"' if any(end in value for end in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=quoted)


for _name, _rule, _first in _RULES:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _rule, _first)
_Dumper.add_representer(list, _list_in_a_line)
_Dumper.add_representer(str, _text)


def _note_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    """Note the line of every key; refuse a repeated one."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        line = key.start_mark.line + 1
        if here in lines:
            raise yaml.constructor.ConstructorError(
                None, None, f"{'.'.join(here)} is given twice, first in line {lines[here]}",
                key.start_mark,
            )  # fmt: skip
        lines[here] = line
        _note_lines(value, here, lines)


def _named(value: Any) -> Any:
    """Make every key text: YAML allows other keys, which are unknown ones then."""
    if not isinstance(value, dict):
        return value
    return {str(key): _named(inner) for key, inner in value.items()}
