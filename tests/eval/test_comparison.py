"""Two scores side by side: differences, their direction, and what forbids comparing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from test_coco_ap import small

from rankdet.eval import STATS, Score, score
from rankdet.eval.comparison import Comparison, Difference, compare
from rankdet.eval.comparison_table import comparison_table


def both() -> tuple[Score, Score]:
    """The second finds the dog less well, and the cat as well."""
    truth, results = small()
    worse = [results[0], {**results[1], "bbox": [5, 5, 30, 7]}]  # IoU .7
    return score(truth, results), score(truth, worse)


def printed(comparison: Comparison, width: int = 100, **settings: int) -> str:
    file = io.StringIO()
    names = ("[red]old", "new")
    Console(file=file, width=width).print(comparison_table(comparison, names, **settings))
    return file.getvalue()


def test_differences_say_which_way_is_better() -> None:
    first, second = both()
    found = compare(first, second)
    named = {each.name: each for each in found.headline}
    assert [each.name for each in found.headline[:12]] == list(STATS)
    assert named["AP"].change == pytest.approx((second.AP or 0) - (first.AP or 0))
    assert (named["AP"].better, named["oLRP"].better, named["oLRP_loc"].better) == (False,) * 3
    assert (named["AP50"].better, named["oLRP_fp"].better) == (None, None), "they are equal"
    assert (named["APm"].change, named["APm"].better) == (None, None), "there are none"
    assert compare(second, first).headline[0].better is True
    assert Difference("x", 0.1, 0.2, None).better is None
    assert Difference("x", 0.1, 0.1004, True).better is None


def test_classes_come_by_their_change() -> None:
    first, second = both()
    assert [each.name for each in compare(first, second).per_class] == ["dog", "cat"]
    assert [each.name for each in compare(second, first).per_class] == ["cat", "dog"]
    truth, results = small()
    truth["categories"].append({"id": 9, "name": "unicorn"})
    third = score(truth, results)
    found = compare(third, first).per_class
    assert found[-1].name == "unicorn"
    assert found[-1].objects == (0, None)
    assert found[-1].AP.change is None
    assert any("Not the same classes" in note for note in compare(third, first).notes)


def test_bins_and_sizes_are_brought_together() -> None:
    truth, results = small()
    found = compare(score(truth, results), score(truth, results, bins=((0, 3), (4, None))))
    assert [each.name for each in found.by_size] == ["small", "medium", "large"]
    assert found.by_size[0].AP.change == 0
    counts = {each.name: each for each in found.by_count}
    assert counts["0-3"].objects == (2, 2)
    assert counts["4+"].objects == (None, 0)
    assert any("other bins" in note for note in found.notes)


def test_other_data_and_settings_are_noted() -> None:
    truth, results = small()
    one = score(truth, results)
    assert "Two single runs" in compare(one, one).notes[-1]
    assert not any("Not the same" in note for note in compare(one, one).notes)
    fewer = score({**truth, "annotations": truth["annotations"][:1]}, results)
    notes = compare(one, fewer).notes
    assert "Not the same data: 2 objects in A, 1 in B." in notes[0]
    assert any(note.startswith("B: No objects") for note in notes)
    tau = compare(one, score(truth, results, tau=0.7)).notes
    assert "LRP from an IoU of 0.5 on in A, of 0.7 in B." in tau


def test_the_table_shows_both_and_the_change() -> None:
    text = printed(compare(*both()))
    assert "A = [red]old" in text
    row = next(line for line in text.splitlines() if line.startswith("AP "))
    assert row.split()[-1] == "worse"
    for word in ("score-IoU spearman", "63+", "By size", "dog", "! Two single runs", "1*"):
        assert word in text
    assert "None" not in text
    assert "nan" not in text.lower()
    assert "*" not in printed(compare(*both()), few=0)


@pytest.mark.parametrize("width", [40, 60, 71, 72, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = printed(compare(*both()), width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert any("dog" in line and "-0.500" in line for line in lines)


def test_of_many_classes_those_that_changed_most_are_shown() -> None:
    truth, _ = small()
    truth["categories"] = [{"id": k, "name": f"c{k}"} for k in range(1, 8)]
    truth["annotations"] = [
        {"image_id": 3, "category_id": k, "bbox": [0, 0, 20, 20]} for k in range(1, 8)
    ]
    good = [{**each, "score": 0.5} for each in truth["annotations"]]
    # Heights that make the overlap smaller, class by class.
    other = [{**each, "bbox": [0, 0, 20, 20 - n]} for n, each in enumerate(good)]
    text = printed(compare(score(truth, good), score(truth, other)), classes=3)
    table = text[text.index("By class") :]
    assert "c7" in table
    assert "c1" in table
    assert "c4" not in table.split("!")[0]
    assert "and 4 more in between that changed less" in text
