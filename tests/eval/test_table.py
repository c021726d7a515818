"""What the terminal shows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from test_coco_ap import small

from rankdet.eval import score
from rankdet.eval.table import table


def printed(width: int, **settings: Any) -> str:
    truth, results = small()
    truth["categories"][1]["name"] = "[red]cat[/red] 猫"
    file = io.StringIO()
    Console(file=file, width=width).print(table(score(truth, results), **settings))
    return file.getvalue()


def test_a_wide_terminal_shows_everything() -> None:
    text = printed(100)
    for word in ("AP75", "lower is better", "By size", "63+", "threshold", "loc", "FN", "0.900"):
        assert word in text
    # A name is a name, not markup; missing numbers are dashes.
    assert "[red]cat[/red] 猫" in text
    assert "! Rests on fewer than 10 objects" in text
    assert "nan" not in text.lower()
    assert "None" not in text


@pytest.mark.parametrize("width", [30, 40, 60, 77, 78, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = printed(width).splitlines()
    assert max(len(line) for line in lines) <= width
    if width >= 40:
        assert any("dog" in line and "0.800" in line for line in lines)
    assert any("FN" in line.split() for line in lines) == (width >= 78)


def test_long_lists_of_classes_are_cut() -> None:
    text = printed(100, classes=1)
    assert "and 1 more classes" in text
    assert "dog " not in text.split("By class")[1].split("!")[0]
