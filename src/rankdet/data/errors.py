"""The one error for data that cannot be used as it is."""

from __future__ import annotations


class DataError(ValueError):
    """A fault in the user's data, told by file, record, value and remedy.

    Faults of single boxes are no errors: they are repaired or left out and listed as
    `rankdet.data.imageset.Problem`.
    """
