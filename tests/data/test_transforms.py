"""Augmentation: boxes stay with their pixels, remain valid, and nothing else changes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from rankdet.data import transforms
from rankdet.data.transforms import (
    MEAN_COLOUR,
    Example,
    LightAugment,
    PlainResize,
    SSDAugment,
    TestResize,
    Transform,
)

# Without changes of colour, so that the rectangle can be found again.
GEOMETRY: dict[str, Transform] = {
    "light": LightAugment(96, colour=0.0, vertical_flip=True, min_visible=0.0),
    "light-down": LightAugment(96, scale=(0.2, 0.4), stretch=1.5, colour=0.0),
    "plain": PlainResize(96, flip=True),
    "square": PlainResize(96, keep_aspect=False, flip=True),
    "ssd": SSDAugment(96),
}
EVERY = pytest.mark.parametrize("name", sorted(GEOMETRY))
NOTHING = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))


@pytest.fixture(autouse=True)
def _no_distortion(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "colours" not in request.node.name:
        monkeypatch.setattr(v2.RandomPhotometricDistort, "forward", lambda _, image: image)


def picture(height: int, width: int, box: tuple[int, int, int, int]) -> Tensor:
    """Black, with a white rectangle; rows of RGB pixels, as images are decoded."""
    image = torch.zeros(height, width, 3, dtype=torch.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image.permute(2, 0, 1)


def one(box: tuple[int, int, int, int], *, crowd: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor([box]).float(), torch.tensor([3]), torch.tensor([crowd])


@EVERY
@pytest.mark.parametrize("size", [(120, 180), (200, 90), (96, 96)])
def test_boxes_stay_with_their_pixels(name: str, size: tuple[int, int]) -> None:
    height, width = size
    box = (width // 3, height // 4, width // 3 + 40, height // 4 + 50)
    image = picture(height, width, box)
    shown = 0
    for seed in range(60):
        torch.manual_seed(seed)
        result = GEOMETRY[name](image, *one(box))
        assert result.image.shape == (3, 96, 96)
        assert result.image.is_contiguous()
        white = result.image.min(0).values > 160
        if not len(result.boxes):
            continue
        shown += 1
        rows = white.any(1).nonzero()[:, 0]
        columns = white.any(0).nonzero()[:, 0]
        seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        torch.testing.assert_close(result.boxes[0], seen, rtol=0, atol=1.5)
    assert shown >= 30


@EVERY
def test_padding_is_mean_and_outside_the_stated_size(name: str) -> None:
    image = torch.full((3, 60, 100), 250, dtype=torch.uint8)
    mean = torch.tensor(MEAN_COLOUR)[:, None, None]
    for seed in range(30):
        torch.manual_seed(seed)
        result = GEOMETRY[name](image, *NOTHING)
        height, width = result.size
        assert 1 <= height <= 96
        assert 1 <= width <= 96
        assert (result.image[:, height:] == mean).all()
        assert (result.image[:, :, width:] == mean).all()
        if name != "ssd":  # whose canvas is a part of the image
            assert (result.image[:, :height, :width] == 250).all()


sides = st.integers(1, 300)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    height, width = draw(sides), draw(sides)
    count = draw(st.integers(0, 6))
    values = st.floats(0, 1, width=32)
    corners = torch.tensor(
        draw(st.lists(values, min_size=4 * count, max_size=4 * count)), dtype=torch.float32
    ).reshape(count, 2, 2)
    corners = corners * torch.tensor([width, height])
    boxes = torch.cat([corners.min(1).values, corners.max(1).values], 1)
    crowd = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return image, boxes, torch.arange(count), crowd.bool()


@given(scene=scenes(), name=st.sampled_from(sorted(GEOMETRY)), seed=st.integers(0, 2**32 - 1))
def test_results_are_valid(
    scene: tuple[Tensor, Tensor, Tensor, Tensor], name: str, seed: int
) -> None:
    image, boxes, labels, crowd = scene
    before = [part.clone() for part in scene]
    torch.manual_seed(seed)
    result = GEOMETRY[name](image, boxes, labels, crowd)
    assert all(torch.equal(a, b) for a, b in zip(before, scene, strict=True))
    assert result.image.shape == (3, 96, 96)
    assert result.image.dtype == torch.uint8
    assert result.boxes.dtype == torch.float32
    assert result.boxes.shape == (len(result.labels), 4)
    assert (result.boxes >= 0).all()
    height, width = result.size
    assert (result.boxes <= torch.tensor([width, height, width, height])).all()
    assert (result.boxes[:, 2:] - result.boxes[:, :2] > 0.999).all()
    # Each label occurs once at most, with its own crowd flag.
    assert len(set(result.labels.tolist())) == len(result.labels)
    assert torch.equal(crowd[result.labels], result.crowd)


@EVERY
def test_the_seed_decides(name: str) -> None:
    def results() -> list[Example]:
        torch.manual_seed(5)
        image = torch.randint(0, 256, (3, 70, 110), dtype=torch.uint8)
        return [GEOMETRY[name](image, *one((10, 10, 60, 60))) for _ in range(4)]

    for first, second in zip(results(), results(), strict=True):
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.boxes, second.boxes)


def test_light_drops_what_hardly_shows_and_keeps_crowd() -> None:
    augment = LightAugment(100, scale=(2.0, 2.0), stretch=1.0, colour=0.0, min_visible=0.3)
    image = picture(100, 100, (0, 0, 40, 100))
    kept = dropped = 0
    for seed in range(60):
        torch.manual_seed(seed)
        result = augment(image, *one((0, 0, 40, 100)))
        torch.manual_seed(seed)
        as_crowd = augment(image, *one((0, 0, 40, 100), crowd=True))
        visible = float((result.image[0] > 127).sum()) / (4 * 40 * 100)
        if abs(visible - 0.3) > 0.02:
            assert len(result.boxes) == (visible > 0.3)
        kept, dropped = kept + len(result.boxes), dropped + 1 - len(result.boxes)
        if visible > 0.02:
            assert as_crowd.crowd.tolist() == [True]
    assert kept > 5
    assert dropped > 5


def test_light_scales_as_told() -> None:
    augment = LightAugment(100, scale=(0.5, 0.5), stretch=1.0, colour=0.0, horizontal_flip=False)
    result = augment(picture(100, 200, (50, 20, 150, 80)), *one((50, 20, 150, 80)))
    assert result.size == (25, 50)
    torch.testing.assert_close(result.boxes, torch.tensor([[12.5, 5.0, 37.5, 20.0]]))


def test_ssd_keeps_objects_whose_centre_shows_and_any_crowd() -> None:
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    boxes = torch.tensor([[40.0, 40, 60, 60], [0, 0, 30, 30], [70, 70, 100, 100], [0, 0, 100, 100]])
    crowd = torch.tensor([False, False, False, True])
    counts = torch.zeros(4)
    for seed in range(200):
        torch.manual_seed(seed)
        result = SSDAugment(64)(image, boxes, torch.arange(4), crowd)
        assert len(result.boxes) >= 2  # a crop has the centre of an object at least
        counts[result.labels] += 1
    assert counts[3] == 200
    assert 20 < counts[1] < 200


def test_ssd_crop_has_the_settings_of_the_paper() -> None:
    window = (-20, -10, 80, 130)
    box = torch.tensor([[0.0, 0.0, 60.0, 40.0]], dtype=torch.float64)
    whole = 0
    for seed in range(300):
        torch.manual_seed(seed)
        top, left, bottom, right = transforms._crop(window, box)
        assert -20 <= top < bottom <= 80
        assert -10 <= left < right <= 130
        whole += (top, left, bottom, right) == window
        assert right - left >= 0.3 * 140 - 1
        assert bottom - top >= 0.3 * 100 - 1
        if (top, left, bottom, right) != window:
            assert 0.45 < (bottom - top) / (right - left) < 2.1
        assert left < 30 < right
        assert top < 20 < bottom
    assert 300 / 7 * 0.6 < whole < 300 / 7 * 2.5


def test_ssd_zooms_out_half_of_the_time_up_to_four_times() -> None:
    areas = []
    for seed in range(200):
        torch.manual_seed(seed)
        window = transforms._zoom_out(30, 50)
        top, left, bottom, right = window
        assert top <= 0 <= 30 <= bottom
        assert left <= 0 <= 50 <= right
        areas.append((right - left) / 50)
    assert 1 <= min(areas) < 1.1
    assert 3.9 < max(areas) <= 4


def test_light_changes_colours_mildly() -> None:
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    augment = LightAugment(64, scale=(1, 1), stretch=1, horizontal_flip=False)
    changes = []
    for seed in range(30):
        torch.manual_seed(seed)
        result = augment(image, *NOTHING)
        changes.append(float((result.image.float() - image.float()).abs().mean()))
    assert min(changes) > 0.5
    assert max(changes) < 60


def test_ssd_changes_colours_of_the_image_and_not_of_the_canvas() -> None:
    image = torch.full((3, 20, 20), 200, dtype=torch.uint8)
    mean = torch.tensor(MEAN_COLOUR)
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        corner = SSDAugment(40)(image, *NOTHING).image[:, 0, 0]
        seen.add(tuple(corner.tolist()))
    assert tuple(mean.tolist()) in seen
    assert len(seen) > 10


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_images_of_few_pixels_are_resized_right(layout: str) -> None:
    for shape in itertools.product((1, 2, 3, 7), repeat=4):
        height, width, *size = shape
        image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
        image = image.contiguous() if layout == "planes" else image
        resized = transforms._resize(image, size)
        wanted = v2.functional.resize(image.contiguous().double(), size, antialias=True)
        torch.testing.assert_close(resized.double(), wanted, rtol=0, atol=1.01)


@given(height=sides, width=sides, shorter=st.integers(1, 200), more=st.integers(0, 200))
def test_test_resize_fits_and_keeps_the_aspect(
    height: int, width: int, shorter: int, more: int
) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    resized, (scale_x, scale_y) = TestResize(shorter, shorter + more)(image)
    new_height, new_width = resized.shape[-2:]
    assert scale_x == new_width / width
    assert scale_y == new_height / height
    assert max(new_height, new_width) <= shorter + more
    assert min(new_height, new_width) <= shorter
    assert min(new_height, new_width) == shorter or max(new_height, new_width) == shorter + more
    scale = min(shorter / min(height, width), (shorter + more) / max(height, width))
    assert abs(new_height - max(height * scale, 1)) <= 0.5 + 1e-9
    assert abs(new_width - max(width * scale, 1)) <= 0.5 + 1e-9


def test_settings_out_of_range_are_refused_by_name() -> None:
    for make in (SSDAugment, LightAugment, PlainResize):
        with pytest.raises(ValueError, match="size"):
            make(0)
    for scale in ((0.0, 1.0), (2.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="scale"):
            LightAugment(8, scale=scale)
    with pytest.raises(ValueError, match="stretch"):
        LightAugment(8, stretch=0.9)
    with pytest.raises(ValueError, match="colour"):
        LightAugment(8, colour=-0.1)
    with pytest.raises(ValueError, match="min_visible"):
        LightAugment(8, min_visible=1.1)
    with pytest.raises(ValueError, match="shorter"):
        TestResize(9, 8)
