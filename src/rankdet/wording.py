"""Counts with their nouns, in what is said to people."""

from __future__ import annotations


def counted(value: object, one: str, many: str | None = None) -> str:
    """Return a count with its noun.

    Args:
        value: how many; what is no number, such as None, takes the plural.
        one: the noun.
        many: its plural, if that is not `one` with an s.

    Example:
        >>> counted(1, "image"), counted(2, "image"), counted(0, "box", "boxes")
        ('1 image', '2 images', '0 boxes')
    """
    return f"{value} {one if value == 1 else many or one + 's'}"
