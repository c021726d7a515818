"""The built-in set: the same everywhere, as described, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rankdet.data import digits
from rankdet.data.digits import DigitsImage, generate
from rankdet.data.digits_files import write_digits
from rankdet.data.errors import DataError

# SHA-256 of pixels, by split, index, size and seed; and of all boxes and labels of the fixture.
PIXELS = {
    ("train", 0, 128, 0): "34b81f33aedeeb23",
    ("train", 4, 128, 0): "64f9ad6e1caee69b",
    ("val", 7, 128, 0): "9aa00dda4df543f5",
    ("val", 1, 64, 3): "370f1e2efaf8dbfb",
    ("train", 2, 320, 2**40): "e3d416614ca88047",
}
BOXES = "4ef66947535db9faa1463d6289ddbd463202a36be81a2ce06ef314eb198db354"


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[DigitsImage]]:
    return {split: [generate(split, index) for index in range(150)] for split in digits.SPLITS}


def fingerprint(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("key", sorted(PIXELS))
def test_pixels_are_the_same_on_every_machine(key: tuple[str, int, int, int]) -> None:
    split, index, size, seed = key
    assert fingerprint(generate(split, index, size=size, seed=seed).image) == PIXELS[key]


def test_boxes_are_the_same_on_every_machine(drawn: dict[str, list[DigitsImage]]) -> None:
    numbers = [
        np.concatenate([image.boxes.astype("<i4"), image.labels.astype("<i4")[:, None]], axis=1)
        for split in digits.SPLITS
        for image in drawn[split]
    ]
    assert hashlib.sha256(np.concatenate(numbers).tobytes()).hexdigest() == BOXES


def test_no_digit_is_in_two_splits(drawn: dict[str, list[DigitsImage]]) -> None:
    train, val = (
        set(np.concatenate([image.sources for image in drawn[split]]).tolist())
        for split in digits.SPLITS
    )
    assert not train & val
    sources = digits._sources()
    members = [set(each.tolist()) for each in sources.members]
    assert train <= members[0]
    assert val <= members[1]
    assert sorted(members[0] | members[1]) == list(range(1797))
    assert not members[0] & members[1]
    # All classes, evenly.
    assert np.bincount(sources.labels[sources.members[1]]).min() >= 34


def test_every_bin_of_counts_occurs(drawn: dict[str, list[DigitsImage]]) -> None:
    for split in digits.SPLITS:
        counts = np.array([len(image.boxes) for image in drawn[split]])
        assert counts.min() >= 1
        assert counts.max() <= 25
        # 0-3, 4-10, 11-20, 21 and more: 30, 30, 20 and 20 % of the images.
        shares = np.histogram(counts, [0, 4, 11, 21, 26])[0] / len(counts)
        assert shares.min() > 0.1


def test_boxes_are_inside_and_hardly_overlap(drawn: dict[str, list[DigitsImage]]) -> None:
    for image in drawn["train"] + drawn["val"]:
        assert image.image.shape == (128, 128, 3)
        assert image.image.dtype == np.uint8
        boxes = image.boxes
        assert boxes.min() >= 0
        assert boxes.max() <= 128
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.min() >= 2
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        overlap = (high - low).clip(0).prod(-1)
        np.fill_diagonal(overlap, 0)
        areas = sides.prod(-1)
        assert (overlap <= 0.1 * np.minimum(areas[:, None], areas[None])).all()


def test_heights_range_as_described(drawn: dict[str, list[DigitsImage]]) -> None:
    boxes = np.concatenate([image.boxes for image in drawn["train"]])
    heights = boxes[:, 3] - boxes[:, 1]
    # 12 to 64 upright; rotation makes a digit somewhat higher or lower.
    assert 10 <= heights.min() <= 13
    assert 55 <= heights.max() <= 80


def test_boxes_are_tight_around_the_ink() -> None:
    # One digit painted on nothing: what is at least half ink fills its box to the edge.
    draw = digits._Draw(7)
    for split in (0, 1):
        for height in (12, 33, 64):
            glyph = digits._glyph(digits._sources(), split, height, draw)
            ink = glyph.alpha >= digits._INK
            inner = ink[glyph.rim : -glyph.rim, glyph.rim : -glyph.rim]
            assert ink.sum() == inner.sum()
            assert inner.shape == (glyph.height, glyph.width)
            assert inner[0].any()
            assert inner[-1].any()
            assert inner[:, 0].any()
            assert inner[:, -1].any()
            assert abs(glyph.height - height) <= 0.2 * height + 1


@pytest.mark.parametrize("background", [0, 60, 128, 200, 255])
def test_digits_differ_from_what_they_cover(background: int) -> None:
    draw = digits._Draw(background)
    for _ in range(20):
        glyph = digits._glyph(digits._sources(), 0, 40, draw)
        canvas = np.full((80, 80, 3), background, np.int32)
        digits._paint(canvas, glyph, 20, 20, 50, draw)
        ink = glyph.alpha >= 240
        frame = 20 - glyph.rim
        seen = canvas[frame : frame + ink.shape[0], frame : frame + ink.shape[1]][ink]
        grey = (seen @ digits._GREY) / 256
        assert np.abs(grey - background).min() >= 50 * 240 / 256 - 1  # rounded down twice


def test_photographs_are_split_by_column() -> None:
    train, val = digits._sources().photos
    assert [photo.shape for photo in train] == [(427, 400, 3)] * 2
    assert [photo.shape for photo in val] == [(427, 240, 3)] * 2


def test_images_depend_on_seed_split_and_index_alone() -> None:
    images = {
        fingerprint(generate(split, index, seed=seed).image)
        for split in digits.SPLITS
        for index in range(3)
        for seed in range(3)
    }
    assert len(images) == 18
    first, again = generate("val", 5), generate("val", 5)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)


def test_sizes_scale(drawn: dict[str, list[DigitsImage]]) -> None:
    for size in (64, 250):
        image = generate("train", 0, size=size)
        assert image.image.shape == (size, size, 3)
        assert image.boxes.max() <= size
        wanted = drawn["train"][0].boxes[0, 3] - drawn["train"][0].boxes[0, 1]
        assert image.boxes[0, 3] - image.boxes[0, 1] == pytest.approx(wanted * size / 128, abs=3)


def test_written_set_is_what_was_drawn(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    out = tmp_path / "deep" / "digits"
    assert write_digits(
        out, train=3, val=2, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "digits.json", "images"]
    assert [path.name for path in out.parent.iterdir()] == ["digits"]
    for split, count in (("train", 3), ("val", 2)):
        content = json.loads((out / "annotations" / f"{split}.json").read_text())
        assert [category["name"] for category in content["categories"]] == list("0123456789")
        assert len(content["images"]) == count
        for index, entry in enumerate(content["images"]):
            wanted = generate(split, index)
            with Image.open(out / "images" / entry["file_name"]) as image:
                assert np.array_equal(np.asarray(image), wanted.image)
            own = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
            boxes = np.array([a["bbox"] for a in own])
            boxes[:, 2:] += boxes[:, :2]
            assert np.array_equal(boxes, wanted.boxes)
            assert [a["category_id"] - 1 for a in own] == wanted.labels.tolist()
            assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in own)


def test_complete_set_is_kept_and_another_replaced(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    assert write_digits(out, train=2, val=1)
    (out / "note.txt").write_text("mine")
    before = (out / "annotations" / "train.json").stat().st_mtime_ns
    assert not write_digits(out, train=2, val=1)
    assert (out / "annotations" / "train.json").stat().st_mtime_ns == before
    assert write_digits(out, train=2, val=1, seed=1)
    assert (out / "note.txt").read_text() == "mine"
    # A set that lacks an image is no complete one.
    (out / "images" / "train_000001.png").unlink()
    assert write_digits(out, train=2, val=1, seed=1)
    assert (out / "images" / "train_000001.png").is_file()
    assert not (tmp_path / "digits.partial").exists()


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="photos: the folder holds something"):
        write_digits(out, train=1, val=1)
    assert [path.name for path in out.iterdir()] == ["holiday.jpg"]
    assert write_digits(out, train=1, val=1, overwrite=True)
    assert (out / "holiday.jpg").read_bytes() == b"x"
    with pytest.raises(DataError, match="this is a file"):
        write_digits(out / "holiday.jpg", train=1, val=1, overwrite=True)
    partial = tmp_path / "new.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"new\.partial"):
        write_digits(tmp_path / "new", train=1, val=1)
    assert (partial / "thesis.tex").exists()


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    assert write_digits(tmp_path, train=1, val=1)
    assert (tmp_path / "digits.json").is_file()


def test_interrupted_writing_leaves_nothing_and_damages_nothing(tmp_path: Path) -> None:
    out = tmp_path / "digits"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_digits(out, train=2, val=1, progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert write_digits(out, train=2, val=1)
    with pytest.raises(KeyboardInterrupt):
        write_digits(out, train=2, val=1, seed=1, progress=stop)
    assert not write_digits(out, train=2, val=1)


def test_leftover_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    partial = tmp_path / "digits.partial"
    assert write_digits(partial, train=1, val=1)
    assert write_digits(tmp_path / "digits", train=1, val=1)
    assert not partial.exists()


def test_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=r"No space left on device.*Make room"):
        write_digits(tmp_path / "digits", train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_no_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(DataError, match=r"no permission to write the digits.*name another"):
        write_digits(tmp_path / "digits", train=1, val=1)


def test_settings_out_of_range_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size"):
        generate("train", 0, size=63)
    with pytest.raises(ValueError, match="seed"):
        generate("train", 0, seed=-1)
    with pytest.raises(ValueError, match="split"):
        generate("test", 0)
    with pytest.raises(ValueError, match="train"):
        write_digits(tmp_path / "digits", train=0)
    with pytest.raises(ValueError, match="val"):
        write_digits(tmp_path / "digits", val=0)
    assert list(tmp_path.iterdir()) == []
