"""Ranking-based losses for object detection: exact, fast, tested.

`rankdet.load` reads a trained model and detects objects with it; see `rankdet.inference.load`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankdet.inference import load as load

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> object:
    # Found when it is first asked for: importing rankdet costs nothing.
    if name == "load":
        from rankdet.inference import load

        return load
    raise AttributeError(f"module 'rankdet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load"]
