from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rankdet.data.checks import RawBoxes, RawImage, assemble, check_boxes
from rankdet.data.errors import DataError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((NAN, 0, 5, 5), "box is not made of finite numbers; left out"),
        ((0, 0, INF, 5), "box is not made of finite numbers; left out"),
        ((5, 0, 4, 5), "box has a negative width or height; left out"),
        ((5, 1, 5, 5), "box has no area; left out"),
        ((3, 1, 3 + 1e-12, 5), "box has no area; left out"),
        ((20, 0, 25, 5), "box lies outside the image; left out"),
        ((-9, 0, 0, 5), "box lies outside the image; left out"),
    ],
)
def test_a_useless_box_is_left_out(box: tuple[float, ...], message: str) -> None:
    _, usable, faults = check_boxes(np.array([box]), np.array([[20.0, 10.0]]))
    assert not usable.any()
    assert [said for said, _ in faults] == [message]


def test_a_box_beyond_the_image_is_clipped_and_reported_beyond_a_pixel() -> None:
    corners = np.array([[-1.0, -0.5, 21.0, 11.0], [-1.1, 0, 5, 5], [2, 3, 4, 11.5]])
    boxes, usable, faults = check_boxes(corners, np.full((3, 2), (20.0, 10.0)))
    np.testing.assert_array_equal(boxes, [[0, 0, 20, 10], [0, 0, 5, 5], [2, 3, 4, 10]])
    assert usable.all()
    assert [(said, places.tolist()) for said, places in faults] == [
        ("box reaches beyond the image; clipped", [1, 2])
    ]


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(0, 6), st.just(4)), elements=st.floats(width=64)),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_what_is_usable_has_area_within_its_image(
    corners: np.ndarray, width: int, height: int
) -> None:
    boxes, usable, faults = check_boxes(corners, np.full((len(corners), 2), (width, height)))
    kept = boxes[usable]
    assert (kept >= 0).all()
    assert (kept <= np.tile((width, height), 2)).all()
    assert (kept[:, 2:] > kept[:, :2]).all()
    lost = [places for message, places in faults if message.endswith("left out")]
    assert sorted(np.concatenate([*lost, np.flatnonzero(usable)])) == list(range(len(corners)))


def raw(corners: list[list[float]], image: list[int]) -> RawBoxes:
    count = len(image)
    return RawBoxes(
        image=np.array(image),
        corners=np.array(corners, np.float64).reshape(-1, 4),
        labels=np.arange(count),
        crowd=np.zeros(count, np.bool_),
        areas=np.full(count, NAN),
        where=lambda place: (Path("x.json"), f"annotation {place}", f"bbox {corners[place]}"),
    )


def test_each_image_gets_its_boxes_in_the_order_of_the_file() -> None:
    images = [RawImage(Path(f"{i}.png"), i, 20, 10) for i in range(3)]
    boxes: list[list[float]] = [[0, 0, 9, 9], [1, 1, 3, 4], [5, 5, 5, 5], [2, 2, 8, 8]]
    records, problems = assemble(images, raw(boxes, [2, 0, 0, 2]))
    assert [r.labels.tolist() for r in records] == [[1], [], [0, 3]]
    assert records[0].areas.tolist() == [6.0]
    assert records[1].boxes.shape == (0, 4)
    assert [str(p) for p in problems] == [
        "x.json: annotation 2 bbox [5, 5, 5, 5]: box has no area; left out"
    ]


def test_a_file_without_one_usable_box_is_refused() -> None:
    with pytest.raises(DataError, match=r"none of the 2 boxes can be used; the first: x\.json"):
        assemble([RawImage(Path("a.png"), 1, 20, 10)], raw([[5, 5, 5, 5], [9, 9, 1, 1]], [0, 0]))
