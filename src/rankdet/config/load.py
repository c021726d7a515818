"""Reading recipes: from a name or a file, changed by the command line, to a checked `Recipe`.

A file may say `base: NAME` and then holds only what differs. What a layer leaves out stays; where
it names another `kind`, the keys of the old kind go and the defaults of the new one come; of
`schedule.epochs` and `schedule.steps` the one that is set replaces the other.

Every error names the file and line, or the `--set`, that it comes from, and the whole key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankdet.config.explain import explain_keys
from rankdet.config.faults import or_nearest, section_of, sections_of, shown, unknown, wrong
from rankdet.config.parts import Section
from rankdet.config.recipe import Recipe, RecipeError
from rankdet.config.text import KeyPath, read_yaml, write_yaml

__all__ = [
    "RecipeError",
    "dump",
    "explain_keys",
    "flatten",
    "load_recipe",
    "parse_recipe",
    "shipped",
]

_SUFFIXES = (".yaml", ".yml")
_MOST_BASES = 8
# Keys of one section of which a layer that sets one unsets the others.
_EXCLUSIVE: dict[KeyPath, set[str]] = {("schedule",): {"epochs", "steps"}}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and change single keys of it.

    Args:
        name_or_path: name of a shipped recipe, or path of a YAML file.
        overrides: each "KEY=VALUE", a dotted key and YAML, as "optimizer.lr=0.01". Later ones
            win, but kinds are set before other keys, which depend on them.

    Returns:
        The recipe with everything resolved.

    Raises:
        RecipeError: there is no such recipe, its YAML is broken, a key is unknown, or values have
            a wrong type or are out of range.

    Example:
        >>> load_recipe("atss_alrp-small", ["optimizer.lr=1e-3"]).optimizer.lr
        0.001
    """
    layers = [_read(str(name_or_path))]
    while (base := layers[0].tree.pop("base", None)) is not None:
        where = layers[0].where(("base",))
        if not isinstance(base, str):
            raise RecipeError(f"{where}: base should be the name of a recipe, got {shown(base)}")
        if len(layers) > _MOST_BASES:
            raise RecipeError(f"{where}: base follows base without end, here {base}")
        layers[0:0] = [_read(base, asked_by=where)]
    for ancestor in layers[:-1]:
        for key in ("name", "description"):
            ancestor.tree.pop(key, None)
    return _resolve([*layers, *_set(overrides)])


def parse_recipe(text: str, *, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe that is complete in itself, as `dump` writes it.

    Args:
        text: YAML; `base` is an unknown key here.
        source: where it comes from, for error messages.
        overrides: as for `load_recipe`.

    Raises:
        RecipeError: as `load_recipe`.
    """
    return _resolve([_parse(text, source), *_set(overrides)])


def dump(recipe: Recipe) -> str:
    """Return a recipe as YAML with every key, in the order of the schema."""
    return write_yaml(recipe.model_dump(mode="json"))


def shipped() -> tuple[tuple[str, str], ...]:
    """Return the recipes that come with the package: the name of each, and what it is for."""
    return tuple((name, load_recipe(name).description) for name in _names())


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Return every value of a recipe by its dotted key; a list is one value."""

    def walk(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(recipe.model_dump(mode="json"), ""))


@dataclass
class _Layer:
    """What one file or one `--set` says."""

    source: str
    tree: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Return where a key stands."""
        return f"{self.source}, line {self.lines[path]}" if path in self.lines else self.source


@dataclass
class _Resolved:
    """Layers laid over each other, and where each value of the result comes from."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def lay_over(self, layer: _Layer) -> None:
        """Change what the layer says."""
        self._merge(self.tree, layer.tree, (), layer)
        _complete(self.tree, Recipe)

    def where(self, path: KeyPath, *, parts: bool = False) -> str:
        """Return what a key comes from, or what its parts come from, the last change first."""
        if parts:
            depth = len(path)
            below = [at for key, at in self.origins.items() if key[:depth] == path != key]
            if below:
                return "; ".join(list(dict.fromkeys(reversed(below)))[:2])
        if path in self.origins:
            return self.origins[path]
        return self.where(path[:-1]) if path else "the recipe"

    def _merge(self, old: dict[str, Any], new: dict[str, Any], path: KeyPath, by: _Layer) -> None:
        if "kind" in new and new["kind"] != old.get("kind"):
            self._forget(old, path, set(old))
        alternatives = _EXCLUSIVE.get(path, set())
        if chosen := {key for key in alternatives if new.get(key) is not None}:
            self._forget(old, path, alternatives - chosen)
        for key, value in new.items():
            here = (*path, key)
            if not (isinstance(value, dict) and isinstance(old.get(key), dict)):
                self._forget(old, path, {key})
                old[key] = {} if isinstance(value, dict) else value
                self.origins[here] = by.where(here)
            if isinstance(value, dict):
                self._merge(old[key], value, here, by)

    def _forget(self, tree: dict[str, Any], path: KeyPath, keys: set[str]) -> None:
        for key in keys:
            tree.pop(key, None)
        depth = len(path)
        for known in list(self.origins):
            if known[:depth] == path and len(known) > depth and known[depth] in keys:
                del self.origins[known]


def _resolve(layers: Sequence[_Layer]) -> Recipe:
    """Lay one layer over the other, the first at the bottom, and check the result."""
    resolved = _Resolved()
    for layer in layers:
        resolved.lay_over(layer)
    faults = unknown(resolved.tree, resolved.where)
    if not faults:
        try:
            return Recipe.model_validate(resolved.tree)
        except ValidationError as error:
            faults = wrong(error, resolved.tree, resolved.where)
    raise RecipeError("\n".join(faults))


def _complete(tree: dict[str, Any], section: type[Section]) -> None:
    """Fill in the kinds that are left to their default."""
    for key, info in section.model_fields.items():
        sections = sections_of(info)
        part = tree.get(key)
        if not sections or not isinstance(part, dict):
            continue
        if len(sections) > 1:
            part.setdefault("kind", info.get_default().kind)
        inner = section_of(part, sections)
        if inner is not None:
            _complete(part, inner)


def _folder() -> Traversable:
    return resources.files("rankdet").joinpath("recipes")


def _names() -> tuple[str, ...]:
    files = (Path(file.name) for file in _folder().iterdir())
    return tuple(sorted(file.stem for file in files if file.suffix in _SUFFIXES))


def _read(name_or_path: str, asked_by: str = "") -> _Layer:
    """Read one file: a shipped recipe by its name, or any by its path."""
    prefix = f"{asked_by}: " if asked_by else ""
    path = Path(name_or_path)
    known = _names()
    try:
        if name_or_path in known:
            text = _folder().joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
            source = f"recipe {name_or_path}"
        elif path.suffix in _SUFFIXES or path.is_file():
            text, source = path.read_text(encoding="utf-8"), name_or_path
        else:
            raise RecipeError(
                f"{prefix}there is no recipe {name_or_path}{or_nearest(name_or_path, known)} "
                f"(known: {', '.join(known)}; or the path of a .yaml file)"
            )
    except UnicodeDecodeError as error:
        raise RecipeError(f"{prefix}{name_or_path} is not a text in UTF-8") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError(f"{prefix}cannot read the recipe {name_or_path}: {reason}") from error
    layer = _parse(text, source)
    layer.tree.setdefault("name", path.name.removesuffix(path.suffix) or path.name)
    return layer


def _parse(text: str, source: str) -> _Layer:
    tree, lines = read_yaml(text, source)
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else shown(tree)
        raise RecipeError(f"{source} should hold the keys and values of a recipe, holds {found}")
    _open_empty_groups(tree, (Recipe,))
    return _Layer(source, tree, lines)


def _open_empty_groups(tree: dict[str, Any], sections: Sequence[type[Section]]) -> None:
    """Take a group of which a file gives no key for one that says nothing, not for null."""
    for key, part in tree.items():
        fields = [each.model_fields[key] for each in sections if key in each.model_fields]
        inner = [section for info in fields for section in sections_of(info)]
        if inner and part is None:
            tree[key] = {}
        elif inner and isinstance(part, dict):
            _open_empty_groups(part, inner)


def _set(overrides: Sequence[str]) -> list[_Layer]:
    """Read what `--set` says; outer kinds come first, then inner ones, then everything else."""
    layers = []
    for text in overrides:
        source = f"--set {text}"
        key, equals, value = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise RecipeError(f"{source}: should be KEY=VALUE, as in --set optimizer.lr=0.01")
        tree, _ = read_yaml(value, source)
        for part in reversed(path):
            tree = {part: tree}
        layers.append((len(path) if path[-1] == "kind" else 1000, _Layer(source, tree)))
    return [layer for _, layer in sorted(layers, key=lambda entry: entry[0])]
