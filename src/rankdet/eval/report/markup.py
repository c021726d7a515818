"""HTML and SVG in which every text is escaped unless it was made here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

DASH = "\N{EN DASH}"
"""Stands where there is no number."""

_VOID = {"image", "link", "meta", "path", "rect", "circle", "line", "use", "col"}


class Markup(str):
    """Text that is markup already; all other text gets escaped."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: text, escaped unless it is `Markup`.
        attributes: a trailing underscore is dropped (``class_``), the others become hyphens;
            None leaves the attribute out.

    Example:
        >>> tag("p", "a < b ", tag("b", "!"), class_="note", data_class=None)
        '<p class="note">a &lt; b <b>!</b></p>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """Return the parts one after the other, escaped unless they are `Markup`."""
    return Markup("".join(p if isinstance(p, Markup) else escape(str(p)) for p in parts))


def number(value: float | None) -> str:
    """Return a number in [0, 1] with three decimals; a dash for None and NaN."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.3f}"


def significant(value: float | None) -> str:
    """Return a score with three significant digits: those of ranking losses can be tiny.

    Example:
        >>> significant(0.02), significant(0.00012345), significant(1200.0), significant(None)
        ('0.0200', '0.000123', '1200', '\N{EN DASH}')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0 or 1e-5 <= abs(value) < 1e6:
        digits = 2 if value == 0 else 2 - math.floor(math.log10(abs(value)))
        return f"{value:.{max(digits, 0)}f}"
    return f"{value:.2e}"


def percent(part: int, whole: int) -> str:
    """Return a share without decimals, with one below 10 %."""
    if not whole:
        return DASH
    share = 100 * part / whole
    return f"{share:.1f} %" if 0 < share < 9.95 else f"{share:.0f} %"


def count(value: int) -> str:
    """Return a count with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def plural(value: int, one: str, many: str) -> str:
    """Return a count with its noun.

    Example:
        >>> plural(1, "object", "objects"), plural(2, "object", "objects")
        ('1 object', '2 objects')
    """
    return f"{count(value)} {one if value == 1 else many}"


def _plain(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
