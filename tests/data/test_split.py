from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankdet.data.errors import DataError
from rankdet.data.imageset import ImageSet, Problem, Record
from rankdet.data.split import hold_out


def image_set(labels: list[list[int]], root: Path = Path("/data")) -> ImageSet:
    records = []
    for number, kinds in enumerate(labels):
        count = len(kinds)
        records.append(
            Record(
                path=root / "images" / f"{number:04}.png",
                id=number + 1,
                width=10,
                height=10,
                boxes=np.tile(np.array([0, 0, 5, 5], np.float32), (count, 1)),
                labels=np.array(kinds, np.int64),
                crowd=np.zeros(count, np.bool_),
                areas=np.full(count, 25.0),
            )
        )
    classes = tuple("abcdef")
    return ImageSet("train", root, tuple(records), classes, tuple(range(len(classes))))


def names(part: ImageSet) -> list[str]:
    return [record.path.name for record in part.records]


def test_the_split_is_the_same_on_every_machine() -> None:
    _, val = hold_out(image_set([[0]] * 20), fraction=0.25, seed=3)
    assert names(val) == ["0000.png", "0001.png", "0002.png", "0004.png", "0012.png"]
    _, elsewhere = hold_out(image_set([[0]] * 20, Path("/other/place")), fraction=0.25, seed=3)
    assert names(elsewhere) == names(val)
    whole = image_set([[0]] * 20)
    _, shuffled = hold_out(replace(whole, records=whole.records[::-1]), fraction=0.25, seed=3)
    assert sorted(names(shuffled)) == names(val)
    _, other = hold_out(whole, fraction=0.25, seed=4)
    assert names(other) != names(val)


@given(
    st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=2, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_every_image_once_and_every_class_in_training(
    labels: list[list[int]], fraction: float, seed: int
) -> None:
    whole = image_set(labels)
    train, val = hold_out(whole, fraction=fraction, seed=seed)
    assert sorted(names(train) + names(val)) == names(whole)
    assert len(train) >= 1
    assert 1 <= len(val) <= max(1, round(fraction * len(whole)))
    seen = {kind for record in train.records for kind in record.labels.tolist()}
    for kind in range(6):
        holders = sum(kind in kinds for kinds in labels)
        if holders >= 2 and len(val) > 1:
            assert kind in seen


def test_crowd_regions_alone_do_not_keep_a_class_in_training() -> None:
    whole = image_set([[0], [0]])
    crowd = replace(whole.records[1], crowd=np.ones(1, np.bool_))
    for order in ((whole.records[0], crowd), (crowd, whole.records[0])):
        train, _ = hold_out(replace(whole, records=order))
        assert names(train) == ["0000.png"]


def test_names_and_problems() -> None:
    problem = Problem(Path("a"), "b", "c")
    train, val = hold_out(replace(image_set([[0]] * 5), problems=(problem,)))
    assert (train.name, val.name, len(val)) == ("train", "val", 1)
    assert (train.problems, val.problems) == ((problem,), ())


def test_too_few_images_and_wrong_fractions() -> None:
    with pytest.raises(DataError, match=r"/data: 1 image cannot be split"):
        hold_out(image_set([[0]]))
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="fraction must be in"):
            hold_out(image_set([[0]] * 5), fraction=fraction)
