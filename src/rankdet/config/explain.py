"""Every key that a recipe may have, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rankdet.config.faults import kinds_of, sections_of, shown
from rankdet.config.parts import Section
from rankdet.config.recipe import Recipe
from rankdet.config.text import KeyPath

_LIMITS = {
    "exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to",
}  # fmt: skip


class Key(NamedTuple):
    """One key that a recipe may have."""

    name: str
    """Dotted, as `--set` takes it."""
    values: str
    """What it may be, and its default."""
    meaning: str
    """Of a key that not every recipe has, first the kind that it belongs to."""


def explain_keys() -> tuple[Key, ...]:
    """Return every key that a recipe may have, of all kinds, in the order of the schema.

    Example:
        >>> keys = {key.name: key for key in explain_keys()}
        >>> keys["criterion.balance.w_r"].values
        'number, from 0, to 1e+06; default 10.0'
        >>> keys["criterion.balance.w_r"].meaning
        'For criterion.balance.kind scalar: what localisation is multiplied by.'
    """
    return tuple(_explain(Recipe, (), ""))


def _explain(section: type[Section], path: KeyPath, when: str) -> Iterator[Key]:
    schemas = section.model_json_schema()["properties"]
    for key, info in section.model_fields.items():
        here = (*path, key)
        dotted = ".".join(here)
        sections = sections_of(info)
        for inner in sections:
            kinds = ", ".join(kinds_of(inner))
            yield from _explain(inner, here, f"For {dotted}.kind {kinds}: " if kinds else when)
        if sections:
            continue
        values = _in_words(schemas[key])
        if not info.is_required() and key != "kind":
            values += f"; default {shown(info.get_default())}"
        text = info.description or section.__doc__ or ""
        meaning = " ".join(text.split())
        if key == "kind" and not info.description:
            yield Key(dotted, values, meaning)
        elif when:
            word, space, rest = meaning.partition(" ")
            word = word.lower() if word.istitle() else word  # not IoU and L2
            yield Key(dotted, values, f"{when}{word}{space}{rest}")
        else:
            yield Key(dotted, values, meaning)


def _in_words(schema: Mapping[str, Any]) -> str:
    """Say what a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(_in_words(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    match schema["type"]:
        case "array":
            each = schema["items"] if "items" in schema else schema["prefixItems"][0]
            length = f" of {schema['maxItems']}" if "prefixItems" in schema else ""
            return f"list{length}: {_in_words(each)}"
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case str(kind):
            limits = [
                f"{word} {schema[name]:g}" for name, word in _LIMITS.items() if name in schema
            ]
            return ", ".join([kind, *limits])
        case other:
            raise AssertionError(f"no words for the type {other}")
