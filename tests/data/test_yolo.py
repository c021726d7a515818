from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rankdet.data.errors import DataError
from rankdet.data.imageset import ImageSet
from rankdet.data.yolo import list_images, read_yolo, read_yolo_config

YAML = "train: images/train\nval: images/val\nnames: [cat, hot dog]\n"


def write(root: Path, *labels: str | None, split: str = "train", text: str = YAML) -> Path:
    images, marks = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True, exist_ok=True)
    marks.mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(labels):
        Image.new("RGB", (40, 20)).save(images / f"{number}.png")
        if label is not None:
            (marks / f"{number}.txt").write_text(label)
    path = root / "data.yaml"
    path.write_text(text)
    (root / "images" / "val").mkdir(exist_ok=True)
    return path


def read(path: Path, split: str = "train") -> ImageSet:
    config = read_yolo_config(path)
    return read_yolo(list_images(config, split)[0], config, name=split)


def test_boxes_polygons_and_images_without_objects(tmp_path: Path) -> None:
    polygon = "1.0 0.25 0.5 0.5 0.25 0.75 0.75\n"
    found = read(write(tmp_path, "0 0.5 0.5 0.5 0.5\n\n" + polygon, "", None))
    assert found.classes == ("cat", "hot dog")
    assert found.category_ids == (0, 1)
    first, second, third = found.records
    np.testing.assert_array_equal(first.boxes, [[10, 5, 30, 15], [10, 5, 30, 15]])
    assert first.labels.tolist() == [0, 1]
    assert (first.width, first.height, first.id) == (40, 20, 1)
    assert len(second.boxes) == len(third.boxes) == 0
    assert found.problems == ()


def test_boxes_refer_to_the_image_as_displayed(tmp_path: Path) -> None:
    path = write(tmp_path, "0 0.5 0.5 1 1")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "train" / "0.png", exif=exif)
    np.testing.assert_array_equal(read(path).records[0].boxes, [[0, 0, 20, 40]])


def test_names_as_a_mapping_with_gaps(tmp_path: Path) -> None:
    text = "train: images/train\nnames:\n  7: dog\n  2: cat\n"
    found = read(write(tmp_path, "7 0.5 0.5 0.5 0.5", text=text))
    assert (found.classes, found.category_ids) == (("cat", "dog"), (2, 7))
    assert found.records[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "line is not 'class x y width height' nor a polygon; left out"),
        ("0 0.5 0.5 0.5 0.5 0.9", "line is not 'class x y width height' nor a polygon; left out"),
        ("0 0.5 a 0.5 0.5", "line is not 'class x y width height' nor a polygon; left out"),
        ("0 nan 0.5 0.5 0.5", "box is not made of finite numbers; left out"),
        ("0 0.5 0.5 0 0.5", "box has no area; left out"),
        ("0 0.5 0.5 -0.2 0.5", "box has a negative width or height; left out"),
        ("0 1.5 0.5 0.5 0.5", "box lies outside the image; left out"),
        ("0 0.9 0.5 0.5 0.5", "box reaches beyond the image; clipped"),
    ],
)
def test_single_bad_lines_become_problems(tmp_path: Path, line: str, message: str) -> None:
    found = read(write(tmp_path, f"0 0.5 0.5 0.5 0.5\n{line}"))
    assert [p.message for p in found.problems] == [message]
    assert (found.problems[0].record, found.problems[0].file.name) == ("line 2", "0.txt")


@pytest.mark.parametrize("word", ["2", "-1", "0.5", "cat", "inf"])
def test_a_class_outside_the_names(tmp_path: Path, word: str) -> None:
    path = write(tmp_path, f"0 0.5 0.5 0.5 0.5\n{word} 0.5 0.5 0.5 0.5")
    with pytest.raises(DataError, match=rf"0\.txt: line 2 has the class '{word}'.*names 0, 1\)"):
        read(path)


def test_boxes_in_pixels_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "0 20 10 8 6\n0 12 10 8 6")
    with pytest.raises(DataError, match=r"0\.txt: line 1 .*seem to be pixels"):
        read(path)


def test_no_labels_and_no_usable_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none of the 2 images of train has a label file; .*0\.txt"
    ):
        read(write(tmp_path / "a", None, None))
    with pytest.raises(DataError, match="no line of the label files can be used"):
        read(write(tmp_path / "b", "1 2 3"))


def test_a_label_file_that_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    (tmp_path / "labels" / "train" / "0.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"0\.txt: is no text"):
        read(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "the file is empty"),
        ("train: [", "no valid yaml.*line 1"),
        ("- a\n", "expected keys like 'train'"),
        ("train: images/train\n", "names is None"),
        ("train: images/train\nnames: []\n", r"names is \[\]"),
        ("train: images/train\nnames: {a: cat}\n", "expected class numbers"),
        ("train: images/train\nnc: 3\nnames: [cat]\n", "nc is 3 but there are 1 names"),
        ("train: images/train\nnames: [cat, cat]\n", "class 0 has the name 'cat', as others too"),
        ("train: images/none\nnames: [cat]\n", "train names 'images/none', which is not there"),
        ("train: 3\nnames: [cat]\n", "train is 3; expected a path"),
        ("names: [cat]\n", "names neither train nor val nor test"),
    ],
)
def test_a_bad_yaml(tmp_path: Path, text: str, match: str) -> None:
    path = write(tmp_path, "", text=text)
    with pytest.raises(DataError, match=match) as caught:
        read_yolo_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "train: images/train",
        "train: ../images/train",
        "train: ./images/train/",
        "train: /content/somewhere/images/train",
        "path: sub/..\ntrain: images/train",
        "path: /not/here\ntrain: images/train",
        "train: [images/train]",
        "train: list.txt",
        "train: images",
    ],
)
def test_ways_to_name_the_images(tmp_path: Path, line: str) -> None:
    root = tmp_path / "data"
    path = write(root, "0 0.5 0.5 0.5 0.5", text=f"{line}\nnames: [cat]\n")
    (root / "sub").mkdir()
    (root / "list.txt").write_text("./images/train/0.png\n\n")
    found = read(path)
    assert [r.path.resolve() for r in found.records] == [root / "images" / "train" / "0.png"]
    assert len(found.records[0].boxes) == 1


def test_valid_is_val_and_a_missing_test_is_passed_over(tmp_path: Path) -> None:
    text = "train: images/train\nvalid: images/val\ntest: ../test/images\nnames: [cat]\n"
    config = read_yolo_config(write(tmp_path, "", text=text))
    assert sorted(config.splits) == ["train", "val"]
    with pytest.raises(DataError, match=r"val names .* where there is no image"):
        list_images(config, "val")


def test_a_missing_validation_folder_says_what_would_do(tmp_path: Path) -> None:
    text = "train: images/train\nval: ../valid/images\nnames: [cat]\n"
    path = write(tmp_path, "", text=text)
    (path.parent / "images" / "val").rmdir()
    with pytest.raises(DataError, match="delete the line to have images held out"):
        read_yolo_config(path)


def test_a_list_with_missing_images(tmp_path: Path) -> None:
    path = write(tmp_path, *["0 0.5 0.5 0.5 0.5"] * 20, text="train: list.txt\nnames: [cat]\n")
    names = [f"images/train/{number}.png" for number in range(21)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    images, problems = list_images(read_yolo_config(path), "train")
    assert (len(images), len(problems)) == (20, 1)
    (tmp_path / "list.txt").write_text("\n".join(names[18:]) + "\ngone.png")
    with pytest.raises(DataError, match="2 of 4 images are not there"):
        list_images(read_yolo_config(path), "train")


def test_labels_beside_the_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("L", (10, 10)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 1 1")
    path = tmp_path / "data.yaml"
    path.write_text("train: .\nnames: [cat]\n")
    assert [len(r.boxes) for r in read(path).records] == [1, 0]


def test_unreadable_images(tmp_path: Path) -> None:
    path = write(tmp_path, *["0 0.5 0.5 0.5 0.5"] * 20)
    (tmp_path / "images" / "train" / "3.png").write_bytes(b"x")
    found = read(path)
    assert (len(found), found.problems[0].message) == (19, "image is left out")
    for number in (4, 5):
        (tmp_path / "images" / "train" / f"{number}.png").write_bytes(b"x")
    with pytest.raises(DataError, match="3 of 20 images cannot be opened"):
        read(path)
