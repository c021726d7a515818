import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rankdet.data.imageset import ImageSet, Problem, Record
from rankdet.data.summary import Summary, render, summarise


def record(sides: list[float], labels: list[int], crowd: list[bool] | None = None) -> Record:
    count = len(sides)
    ends = np.array(sides)
    boxes = np.stack([0 * ends, 0 * ends, ends, ends / 2], axis=1).reshape(-1, 4)
    return Record(
        path=Path("a.png"),
        id=1,
        width=400,
        height=200,
        boxes=boxes.astype(np.float32),
        labels=np.array(labels, np.int64),
        crowd=np.array(crowd or [False] * count, np.bool_),
        areas=(ends * ends / 2),
    )


def image_set(*records: Record, problems: tuple[Problem, ...] = ()) -> ImageSet:
    return ImageSet("train", Path(), records, ("cat", "[red]dog", "ox"), (1, 2, 3), problems)


def shown(*summaries: Summary, classes: int = 30) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(summaries, classes=classes))
    return console.export_text()


def test_counts() -> None:
    found = summarise(
        image_set(
            record([20, 100, 200, 300], [0, 0, 1, 1], [False, False, False, True]),
            record([20] * 70, [0] * 70),
            record([50], [1], [True]),
            record([], []),
        )
    )
    assert (found.images, found.boxes, found.crowd, found.empty_images) == (4, 73, 2, 2)
    assert found.most_objects == 70
    assert found.objects_per_image == {"0-3": 3, "4-10": 0, "11-20": 0, "21-62": 0, "63+": 1}
    # Areas 200, 5000 and 20000.
    assert found.sizes == {"small": 71, "medium": 1, "large": 1}
    assert [(c.name, c.images, c.boxes) for c in found.classes] == [
        ("cat", 2, 72),
        ("[red]dog", 1, 1),
        ("ox", 0, 0),
    ]
    assert (found.aspect.smallest, found.aspect.largest) == (2.0, 2.0)
    assert found.relative_side.largest == pytest.approx(0.5)
    assert found.image_sides.median == 400


@pytest.mark.parametrize(("count", "name"), [(3, "0-3"), (4, "4-10"), (21, "21-62"), (63, "63+")])
def test_bins_meet_without_gap(count: int, name: str) -> None:
    found = summarise(image_set(record([9.0] * count, [0] * count)))
    assert found.objects_per_image[name] == 1
    assert sum(found.objects_per_image.values()) == 1


def test_nothing_at_all() -> None:
    empty = ImageSet("val", Path(), (), (), ())
    assert summarise(empty).images == 0
    assert "0 classes" in shown(summarise(empty))
    assert summarise(image_set(record([], []))).empty_images == 1


def test_problems_are_grouped() -> None:
    problems = [Problem(Path("a.json"), f"annotation {i}", "flat", f"[{i}]") for i in range(5)]
    found = summarise(image_set(problems=(Problem(Path("b"), "x", "odd"), *problems)))
    assert [(p.message, p.count, len(p.examples)) for p in found.problems] == [
        ("flat", 5, 3),
        ("odd", 1, 1),
    ]
    text = shown(found)
    assert "5 x flat" in text
    assert "a.json: annotation 2 [2]" in text
    assert "and 2 more" in text


def test_rendered_numbers_and_names() -> None:
    one = summarise(image_set(record([20, 200], [0, 1])))
    other = replace(one, name="val")
    text = shown(one, other)
    assert "[red]dog" in text
    assert "1 class without a box" in text
    assert "1 (50%)" in text
    assert "2 more classes" in shown(one, other, classes=1)


def test_as_json() -> None:
    problem = Problem(Path("a.json"), "annotation 1", "flat")
    content = summarise(image_set(record([20], [0]), problems=(problem,))).to_json()
    assert json.loads(json.dumps(content)) == content
    assert content["problems"][0]["examples"] == ["a.json: annotation 1: flat"]
