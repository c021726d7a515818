"""What is wrong with a recipe, in words: unknown keys and kinds, wrong types and ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, Protocol, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rankdet.config.parts import Section
from rankdet.config.recipe import Recipe
from rankdet.config.text import KeyPath

# What pydantic says beside what was expected.
_PYDANTIC = re.compile(r"^(?:Value error, |Input |Tuple |String )| after validation, not \d+$")


class Where(Protocol):
    """Says which file and line or which `--set` something comes from."""

    def __call__(self, path: KeyPath, *, parts: bool = False) -> str:
        """Return the origin of a key, or of the keys of a group."""
        ...


def sections_of(info: FieldInfo) -> tuple[type[Section], ...]:
    """Return the sections that a field may be: none, one, or several kinds."""
    types = get_args(info.annotation) or (info.annotation,)
    return tuple(each for each in types if isinstance(each, type) and issubclass(each, Section))


def kinds_of(section: type[Section]) -> tuple[str, ...]:
    """Return the values of `kind` that stand for a section; none where it has no `kind`."""
    info = section.model_fields.get("kind")
    return get_args(info.annotation) if info is not None else ()


def section_of(tree: Mapping[str, Any], sections: Sequence[type[Section]]) -> type[Section] | None:
    """Return which of the sections a part of a recipe is, by its kind; None if that is unknown."""
    if len(sections) == 1:
        return sections[0]
    return next((each for each in sections if tree.get("kind") in kinds_of(each)), None)


def unknown(tree: Mapping[str, Any], where: Where) -> list[str]:
    """Return a message for each key, kind or group of a recipe that there is not."""
    return list(_unknown(tree, Recipe, (), tree, where))


def wrong(error: ValidationError, tree: Mapping[str, Any], where: Where) -> list[str]:
    """Return a message for each value of a wrong type or out of range."""
    messages: dict[KeyPath, list[str]] = {}
    endings: dict[KeyPath, str] = {}
    for fault in error.errors(include_url=False):
        path = _path_of(fault["loc"], tree, missing=fault["type"] == "missing")
        text = _PYDANTIC.sub("", fault["msg"])
        if fault["type"] in ("float_type", "int_type") and _is_number(fault["input"]):
            text += " (without quotes)"
        messages.setdefault(path, []).append(text)
        # A fault between the keys of a group names its values itself.
        between = fault["type"] == "value_error"
        endings[path] = "" if between else f", got {shown(fault['input'])}"
    return [
        f"{where(path, parts=not endings[path])}: {'.'.join(path)}: " * bool(path)
        + " or ".join(dict.fromkeys(texts))
        + endings[path]
        for path, texts in messages.items()
    ]


def nearest(text: str, known: Sequence[str]) -> str | None:
    """Return what a mistyped name or dotted key may have meant; None if nothing is like it.

    Example:
        >>> nearest("optimizer.learning_rate", ["optimizer.kind", "optimizer.lr"])
        'optimizer.lr'
        >>> nearest("retinanet_r50_alpr", ["retinanet_r50_ap", "retinanet_r50_alrp"])
        'retinanet_r50_alrp'
    """
    parent, _, leaf = text.rpartition(".")
    words = leaf.replace("-", "_").split("_")
    initials = "".join(word[:1] for word in words) if len(words) > 1 else None

    def likeness(other: str) -> float:
        other_parent, _, other_leaf = other.rpartition(".")
        if text.replace(".", "_") == other.replace(".", "_"):
            return 2.0
        alike = SequenceMatcher(None, leaf, other_leaf).ratio()
        if initials == other_leaf:
            alike = max(alike, 0.9)
        if parent == other_parent:
            return alike + 0.1
        # The group may be mistyped as well.
        return max(alike, SequenceMatcher(None, text, other).ratio())

    # The group of a mistyped key is no guess at the key.
    known = [other for other in known if not text.startswith(f"{other}.")]
    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.75 else None


def or_nearest(text: str, known: Sequence[str]) -> str:
    """Return the question whether something else was meant, or nothing."""
    near = nearest(text, known)
    return f"; did you mean {near}?" if near else ""


def shown(value: Any) -> str:
    """Return a value as an error message shows it."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown(
    tree: Mapping[str, Any],
    section: type[Section],
    path: KeyPath,
    whole: Mapping[str, Any],
    where: Where,
) -> Iterator[str]:
    for key, value in tree.items():
        here = (*path, key)
        dotted = ".".join(here)
        if key not in section.model_fields:
            yield f"{where(here)}: unknown key {dotted}{_remedy(here, section, tree, whole)}"
            continue
        sections = sections_of(section.model_fields[key])
        if not sections:
            continue
        if not isinstance(value, dict):
            hint = f"; did you mean {dotted}.kind?" if len(sections) > 1 else ""
            yield f"{where(here)}: {dotted} should be a group of keys, got {shown(value)}{hint}"
            continue
        inner = section_of(value, sections)
        if inner is None:
            kinds = [kind for each in sections for kind in kinds_of(each)]
            yield (
                f"{where((*here, 'kind'))}: {dotted}.kind should be one of {', '.join(kinds)}, "
                f"got {shown(value.get('kind'))}{or_nearest(str(value.get('kind')), kinds)}"
            )
            continue
        yield from _unknown(value, inner, here, whole, where)


def _remedy(
    path: KeyPath, section: type[Section], tree: Mapping[str, Any], whole: Mapping[str, Any]
) -> str:
    """Say what may have been meant by an unknown key."""
    *above, key = path
    dotted, group = ".".join(path), ".".join(above)
    owners = [
        kind for each in _alternatives(above) if key in each.model_fields for kind in kinds_of(each)
    ]
    if owners:
        return f" of {group}.kind {tree['kind']}; it belongs to {group}.kind {', '.join(owners)}"
    guess = or_nearest(dotted, list(_known(whole, Recipe, ())))
    return guess or f"; known in {group or 'a recipe'}: {', '.join(section.model_fields)}"


def _alternatives(path: Sequence[str]) -> tuple[type[Section], ...]:
    """Return all sections that may stand at a path."""
    found: tuple[type[Section], ...] = (Recipe,)
    for key in path:
        fields = [each.model_fields[key] for each in found if key in each.model_fields]
        found = tuple(inner for info in fields for inner in sections_of(info))
    return found


def _known(tree: Mapping[str, Any], section: type[Section], path: KeyPath) -> Iterator[str]:
    """Yield every dotted key that a recipe of these kinds may have."""
    for key, info in section.model_fields.items():
        yield ".".join((*path, key))
        part = tree.get(key)
        if not isinstance(part, dict):
            default = info.get_default()
            part = default.model_dump() if isinstance(default, Section) else {}
        inner = section_of(part, sections) if (sections := sections_of(info)) else None
        if inner is not None:
            yield from _known(part, inner, (*path, key))


def _path_of(loc: Sequence[int | str], tree: Mapping[str, Any], *, missing: bool) -> KeyPath:
    """Return the keys of a place that pydantic names; it puts kinds and alternatives between."""
    path: list[str] = []
    here: Any = tree
    for number, part in enumerate(loc):
        is_item = isinstance(here, list) and isinstance(part, int)
        if is_item or (isinstance(here, dict) and part in here):
            here = here[part]
        elif not (missing and number == len(loc) - 1):
            continue
        path.append(str(part))
    return tuple(path)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)
