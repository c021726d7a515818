import numpy as np
import pytest
from PIL import Image

from rankdet.pictures import draw, sheet

CLASSES = [f"class {number}" for number in range(30)]


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def test_a_large_image_keeps_its_size_and_the_pixels_off_the_boxes() -> None:
    image = grey(700, 900)
    picture = draw(image, [[300, 200, 500, 400]], [0], [0.9], CLASSES)
    assert picture.size == (900, 700)
    pixels = np.asarray(picture)
    changed = (pixels != 90).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert 160 < rows[0] < 199
    assert (rows[-1], columns[0], columns[-1]) == (400, 299, 500)
    assert tuple(pixels[399, 450]) == (255, 214, 10)
    assert not changed[220:390, 310:490].any()
    assert (image == 90).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (128, 128), (3, 50), (639, 2)])
def test_a_small_image_is_enlarged_by_a_whole_number(height: int, width: int) -> None:
    picture = draw(grey(height, width), [[0, 0, 1, 1]], [0], None, CLASSES)
    factor = picture.width // width
    assert picture.size == (factor * width, factor * height)
    assert 640 <= max(picture.size) < 640 + max(height, width)
    assert picture.mode == "RGB"


def test_an_enlarged_box_is_where_it_was() -> None:
    pixels = np.asarray(draw(grey(64, 64), [[16, 16, 48, 48]], [0], None, CLASSES))
    assert tuple(pixels[479, 300]) == (255, 214, 10)
    assert tuple(pixels[300, 160]) == (255, 214, 10)
    assert tuple(pixels[300, 300]) == (90, 90, 90)


def test_classes_differ_in_colour_and_in_label() -> None:
    seen = []
    for kind in range(30):
        pixels = np.asarray(draw(grey(700, 700), [[100, 100, 600, 600]], [kind], None, CLASSES))
        seen.append(tuple(pixels[599, 300]))
    assert len(set(seen)) == 30
    with_score = draw(grey(700, 700), [[100, 100, 600, 600]], [3], [0.5], CLASSES)
    without = draw(grey(700, 700), [[100, 100, 600, 600]], [3], None, CLASSES)
    assert np.asarray(with_score).tobytes() != np.asarray(without).tobytes()


def test_the_best_box_is_on_top() -> None:
    boxes = [[100, 100, 400, 400], [100, 100, 400, 400]]
    for scores, colour in (([0.9, 0.1], (255, 214, 10)), ([0.1, 0.9], (64, 200, 255))):
        pixels = np.asarray(draw(grey(700, 700), boxes, [0, 1], scores, CLASSES))
        assert tuple(pixels[399, 250]) == colour


@pytest.mark.parametrize(
    "box",
    [
        (-50, -50, 20, 20),
        (690, 690, 900, 900),
        (0, 0, 700, 700),
        (5, 5, 5, 5),
        (800, 800, 900, 900),
        (9, 9, 2, 2),
        (np.nan, 0, 9, 9),
        (0, 0, np.inf, 9),
    ],
)
def test_odd_boxes_do_no_harm(box: tuple[float, ...]) -> None:
    assert draw(grey(700, 700), [box], [1], [0.5], CLASSES).size == (700, 700)


def test_many_boxes_and_none() -> None:
    draw_at = np.random.default_rng(0)
    corners = draw_at.uniform(0, 600, (120, 2))
    boxes = np.concatenate([corners, corners + draw_at.uniform(5, 90, (120, 2))], axis=1)
    many = draw(grey(700, 700), boxes, np.arange(120) % 30, draw_at.random(120), CLASSES)
    assert len(np.unique(np.asarray(many).reshape(-1, 3), axis=0)) > 30
    none = draw(grey(700, 700), np.zeros((0, 4)), [], [], [])
    np.testing.assert_array_equal(np.asarray(none), grey(700, 700))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[H, W, 3\] uint8"):
        draw(np.zeros((5, 5), np.uint8), [], [], None, [])
    with pytest.raises(ValueError, match=r"must be \[H, W, 3\] uint8"):
        draw(np.zeros((5, 5, 3)), [], [], None, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 boxes do not go with 2 labels"):
        draw(grey(5, 5), [[0, 0, 1, 1]], [0, 1], None, CLASSES)
    with pytest.raises(ValueError, match="and 0 scores"):
        draw(grey(5, 5), [[0, 0, 1, 1]], [0], [], CLASSES)
    with pytest.raises(ValueError, match=r"labels must be in 0 \.\. 29, got 30"):
        draw(grey(5, 5), [[0, 0, 1, 1]], [30], None, CLASSES)


def test_a_sheet_is_a_grid() -> None:
    pictures = [Image.new("RGB", size, "white") for size in ((100, 50), (40, 90), (960, 480))]
    made = sheet(pictures, 2, cell=120)
    # Columns are as wide as the widest, rows as high as their highest.
    assert made.size == (2 * 120 + 3 * 8, 90 + 60 + 3 * 8)
    assert made.getpixel((8 + 60, 8 + 45)) == (255, 255, 255)
    assert made.getpixel((8 + 60, 8 + 5)) == (32, 33, 36)
    assert sheet(pictures[:1], 4).size == (116, 66)
    for wrong in (([], 2, 9), (pictures, 0, 9), (pictures, 2, 0)):
        with pytest.raises(ValueError, match="need a picture"):
            sheet(wrong[0], wrong[1], cell=wrong[2])
