from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rankdet.data.errors import DataError
from rankdet.data.imageset import ImageSet
from rankdet.data.voc import read_voc

SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def thing(name: str = "cat", box: str = "1 2 11 12", more: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, box.split(), strict=False))
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def write(folder: Path, *bodies: str, size: str = SIZE) -> list[Path]:
    paths = []
    for number, body in enumerate(bodies):
        Image.new("RGB", (40, 30)).save(folder / f"{number}.jpg")
        path = folder / f"{number}.xml"
        path.write_text(f"<annotation><filename>{number}.jpg</filename>{size}{body}</annotation>")
        paths.append(path)
    return paths


def read(folder: Path, *bodies: str, size: str = SIZE) -> ImageSet:
    return read_voc(write(folder, *bodies, size=size), folder)


def test_boxes_classes_and_images_without_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>0</xmin></bndbox></part>"
    hard = "<difficult>1</difficult>"
    found = read(tmp_path, thing("hot dog", more=part) + thing("cat", "0 0 40.5 30", more=hard), "")
    assert found.classes == ("cat", "hot dog")
    assert found.category_ids == (1, 2)
    first, second = found.records
    np.testing.assert_array_equal(first.boxes, [[1, 2, 11, 12], [0, 0, 40, 30]])
    assert first.labels.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert (first.id, second.id, len(second.boxes)) == (1, 2, 0)
    assert (first.path, first.width, first.height) == (tmp_path / "0.jpg", 40, 30)
    assert found.problems == ()


def test_files_of_the_challenge_count_pixels_from_one(tmp_path: Path) -> None:
    source = "<source><database>The VOC2007 Database</database></source>"
    found = read(tmp_path, source + thing(box="1 1 40 30"))
    np.testing.assert_array_equal(found.records[0].boxes, [[0, 0, 40, 30]])


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_an_absent_size_is_read_from_the_image(tmp_path: Path, size: str) -> None:
    found = read(tmp_path, thing(), size=size)
    assert (found.records[0].width, found.records[0].height) == (40, 30)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (thing(box="a 2 11 12"), "box is not made of finite numbers; left out"),
        (thing(box="nan 2 11 12"), "box is not made of finite numbers; left out"),
        (thing(box="1 2 11"), "box is not made of finite numbers; left out"),
        (thing(box="11 2 1 12"), "box has a negative width or height; left out"),
        (thing(box="1 2 1 12"), "box has no area; left out"),
        (thing(box="41 2 60 12"), "box lies outside the image; left out"),
        (thing(box="1 2 60 12"), "box reaches beyond the image; clipped"),
        ("<object><name>cat</name></object>", "object has no bndbox; left out"),
        (thing(name=""), "object has no name; left out"),
    ],
)
def test_single_bad_objects_become_problems(tmp_path: Path, body: str, message: str) -> None:
    found = read(tmp_path, thing() + body)
    assert [p.message for p in found.problems] == [message]
    assert found.problems[0].record.startswith("object 2")
    assert len(found.records[0].boxes) == (2 if message.endswith("clipped") else 1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "the file is empty"),
        ("<annotation><object>", "no valid xml at line 1, column"),
        ("<html></html>", "outermost element is <html>, expected <annotation>"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "encoding"),
        (
            '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
            r"document type \('a'\) is not accepted",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, match: str) -> None:
    (path,) = write(tmp_path, thing())
    path.write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        read_voc([path], tmp_path)
    assert str(path) in str(caught.value)


def test_the_name_of_the_xml_goes_before_the_filename_in_it(tmp_path: Path) -> None:
    paths = write(tmp_path, thing(), thing())
    paths[0].write_text(paths[0].read_text().replace("0.jpg", "1.jpg"))
    renamed = paths[1].rename(tmp_path / "other.xml")
    found = read_voc([paths[0], renamed], tmp_path)
    assert [r.path.name for r in found.records] == ["0.jpg", "1.jpg"]


def test_missing_images(tmp_path: Path) -> None:
    paths = write(tmp_path, *[thing()] * 20)
    (tmp_path / "3.jpg").unlink()
    found = read_voc(paths, tmp_path)
    assert (len(found), found.problems[0].record) == (19, "image 3.jpg")
    for number in (4, 5):
        (tmp_path / f"{number}.jpg").unlink()
    with pytest.raises(DataError, match=r"3 of 20 images are not there \(3.jpg, 4.jpg, 5.jpg\)"):
        read_voc(paths, tmp_path)


def test_an_unreadable_image_without_a_size_is_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, thing(), size="")
    (tmp_path / "0.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be opened.*0\.jpg"):
        read_voc(paths, tmp_path)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no xml file"):
        read_voc([], tmp_path)
