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
    assert "and 1 more class\n" in text.replace(" \n", "\n")
    assert "dog " not in text.split("By class")[1].split("!")[0]
    truth, results = small()
    truth["categories"].append({"id": 5, "name": "unicorn"})
    file = io.StringIO()
    Console(file=file, width=100).print(table(score(truth, results), classes=0))
    assert "and 3 more classes" in file.getvalue()


def test_all_twelve_numbers_are_there() -> None:
    truth, results = small()
    # A medium and a large object as well, so that every number stands for something.
    for number, side in enumerate((50, 100)):
        where = {"image_id": 7, "category_id": 1, "bbox": [0, 0, side, side]}
        truth["annotations"].append(where)
        results.append({**where, "bbox": [0, 0, side, side - 7 - number], "score": 0.5 - number})
    found = score(truth, results)
    file = io.StringIO()
    Console(file=file, width=100).print(table(found))
    lines = file.getvalue().splitlines()
    for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100"):
        assert any(line.split()[:2] == [name, f"{getattr(found, name):.3f}"] for line in lines)
    for size in ("small", "medium", "large"):
        row = next(line.split() for line in lines if line.startswith(f"{size} "))
        precision, recall = (getattr(found, f"{kind}{size[0]}") for kind in ("AP", "AR"))
        assert row[2:4] == [f"{precision:.3f}", f"{recall:.3f}"]


def test_what_rests_on_little_is_marked() -> None:
    text = printed(100)
    assert "* fewer than 10 objects: these numbers say little" in text
    assert any(line.split()[:2] == ["dog", "1*"] for line in text.splitlines())
    assert any(line.startswith("0-3*") for line in text.splitlines())
    truth, results = small()
    file = io.StringIO()
    Console(file=file, width=100).print(table(score(truth, results, few=1)))
    assert "*" not in file.getvalue()


@pytest.mark.parametrize("width", [50, 100])
def test_thresholds_that_were_asked_for_have_their_own_table(width: int) -> None:
    truth, results = small()
    file = io.StringIO()
    Console(file=file, width=width).print(table(score(truth, results, threshold=0.00012)))
    part = file.getvalue().split("At the thresholds asked for")[1].splitlines()
    assert part[2].split()[:3] == ["all", "classes", "-"]
    assert part[3].split()[:3] == ["cat", "0.00012", "0.000"]
    assert ("missed" in part[1]) == (width == 100)
    assert max(len(line) for line in part) <= width
