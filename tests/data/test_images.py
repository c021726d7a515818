import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from rankdet.data.errors import DataError
from rankdet.data.images import (
    check_images,
    image_size,
    read_image,
    read_image_as,
)
from rankdet.data.imageset import ImageSet, Record

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def rotated(path: Path, orientation: int, pixels: np.ndarray = PIXELS) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, Image.fromarray(pixels), exif=exif)


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {}
    path = save(tmp_path / f"a.{ending}", Image.fromarray(PIXELS), exif=exif, **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = read_image(path)
    np.testing.assert_array_equal(found, expected)
    assert image_size(path) == (found.shape[1], found.shape[0])
    sideways = orientation >= 5
    assert found.shape == ((9, 6, 3) if sideways else (6, 9, 3))


def test_the_annotated_size_tells_the_orientation(tmp_path: Path) -> None:
    path = rotated(tmp_path / "a.png", 6)
    np.testing.assert_array_equal(read_image_as(path, 9, 6), PIXELS)
    np.testing.assert_array_equal(read_image_as(path, 6, 9), np.rot90(PIXELS, -1))
    upside_down = rotated(tmp_path / "b.png", 3)
    np.testing.assert_array_equal(read_image_as(upside_down, 9, 6), PIXELS[::-1, ::-1])
    with pytest.raises(DataError, match=r"a\.png: the image is 6 x 9 pixels, .* says 60 x 90"):
        read_image_as(path, 60, 90)


def test_an_unusable_orientation_is_ignored(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(rotated(tmp_path / "a.png", 77)), PIXELS)


def test_grey_palette_and_black_and_white(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", Image.fromarray(PIXELS[..., 0]))
    np.testing.assert_array_equal(read_image(grey), np.repeat(PIXELS[..., :1], 3, axis=2))
    palette = Image.fromarray(PIXELS).quantize(64)
    found = read_image(save(tmp_path / "palette.png", palette))
    np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")))
    bits = save(tmp_path / "bits.png", Image.fromarray(PIXELS[..., 0] > 99))
    assert set(np.unique(read_image(bits))) == {0, 255}


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    alpha = np.dstack([PIXELS, np.zeros((6, 9), np.uint8)])
    alpha[:, :4, 3] = 255
    alpha[0, 8, 3] = 128
    found = read_image(save(tmp_path / "a.png", Image.fromarray(alpha)))
    np.testing.assert_array_equal(found[:, :4], PIXELS[:, :4])
    assert (found[1:, 4:] == 255).all()
    mixed = (PIXELS[0, 8] * 128.0 + 255 * 127) / 255
    np.testing.assert_allclose(found[0, 8], mixed, atol=1)
    grey = save(tmp_path / "la.png", Image.fromarray(alpha).convert("LA"))
    assert (read_image(grey)[1:, 4:] == 255).all()
    keyed = save(tmp_path / "key.png", Image.new("RGB", (3, 3), (1, 2, 3)), transparency=(1, 2, 3))
    assert (read_image(keyed) == 255).all()
    pale = Image.new("P", (3, 3))
    pale.putpalette([7, 8, 9])
    clear = save(tmp_path / "p.png", pale, transparency=b"\x00")
    assert (read_image(clear) == 255).all()


def test_cmyk(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    np.testing.assert_allclose(read_image(path)[4, 4].astype(int), (255, 0, 0), atol=4)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path: Path, ending: str) -> None:
    values = np.array([[1000, 1400], [1800, 3000]], np.uint16)
    found = read_image(save(tmp_path / f"a.{ending}", Image.fromarray(values)))
    np.testing.assert_array_equal(found[..., 0], [[0, 51], [102, 255]])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])
    flat = save(tmp_path / f"b.{ending}", Image.fromarray(np.full((2, 2), 900, np.uint16)))
    assert (read_image(flat) == 0).all()


def test_floating_point_with_nan(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.5], [1.0, np.nan]], np.float32)
    found = read_image(save(tmp_path / "a.tif", Image.fromarray(values)))
    np.testing.assert_array_equal(found[..., 1], [[0, 128], [255, 0]])


def test_one_pixel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("L", (1, 1), 9))
    np.testing.assert_array_equal(read_image(path), [[[9, 9, 9]]])


def test_of_several_frames_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path)[0, 0], (255, 0, 0))


def test_a_long_image_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("L", (20_000, 50), 7))
    assert read_image(path).shape == (50, 20_000, 3)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    # A header that claims more than Pillow warns of and more than it refuses.
    path = save(tmp_path / "huge.png", Image.fromarray(PIXELS))
    raw = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + raw[24:29]
    path.write_bytes(raw[:12] + header + struct.pack(">I", zlib.crc32(header)) + raw[33:])
    with pytest.raises(DataError, match=r"huge\.png: 20000 x 20000 pixels are more than the limit"):
        read_image(path)
    assert image_size(path) == (20_000, 20_000)
    assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError, match="limit of 53"):
        read_image(save(tmp_path / "a.png", Image.fromarray(PIXELS)), max_pixels=53)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "gif", "bmp"])
def test_a_truncated_file_is_named(tmp_path: Path, ending: str) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = save(tmp_path / f"cut.{ending}", noise)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=rf"cut\.{ending}: does not decode as an image"):
        read_image(path)


@pytest.mark.parametrize("raw", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_named(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.jpg: does not decode"):
        read_image(path)
    with pytest.raises(DataError, match=r"a\.jpg: does not decode"):
        image_size(path)


def test_absent_folder_and_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="a folder"):
        read_image(tmp_path)

    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", forbidden)
    with pytest.raises(DataError, match="no permission to read"):
        read_image(tmp_path / "a.png")


def test_check_images_names_the_wrong_ones(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", Image.fromarray(PIXELS))
    turned = rotated(tmp_path / "turned.png", 8)
    records = (
        Record.empty(good, 1, 9, 6),
        Record.empty(turned, 2, 9, 6),
        Record.empty(turned, 3, 6, 9),
        Record.empty(good, 4, 18, 12),
        Record.empty(tmp_path / "gone.png", 5, 9, 6),
    )
    problems = check_images(ImageSet("train", tmp_path, records, (), ()))
    assert [p.file.name for p in problems] == ["good.png", "gone.png"]
    assert "its annotation says 18 x 12" in problems[0].value
    assert len(check_images(ImageSet("train", tmp_path, records, (), ()), sample=2)) == 1
