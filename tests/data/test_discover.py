import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rankdet.data.discover import discover
from rankdet.data.errors import DataError
from rankdet.data.imageset import ImageSet

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 5, "name": "hot dog"}]
XML = (
    "<annotation><size><width>40</width><height>30</height></size><object><name>{name}</name>"
    "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>25</ymax></bndbox></object>"
    "</annotation>"
)


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def coco(path: Path, *names: str, categories: list[dict[str, Any]] | None = None) -> Path:
    chosen = CATEGORIES if categories is None else categories
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": chosen[0]["id"], "bbox": [1, 2, 10, 10]}
            for i in range(len(names))
        ],
        "categories": chosen,
    }
    return text(path, json.dumps(content))


def paths(image_set: ImageSet) -> list[str]:
    root = image_set.root
    return [record.path.relative_to(root).as_posix() for record in image_set.records]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}2017.json", "images/{}2017"),
        ("annotations/{}.json", "images/{}"),
        ("annotations/{}.json", "{}/images"),
        ("{}.json", "{}"),
        ("{0}/{0}.json", "{}"),
        ("{}/_annotations.coco.json", "{}"),
        ("Annotations/instances_{}.json", "JPEGImages/{}"),
    ],
)
@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev"])
def test_coco_with_a_folder_for_each_split(
    tmp_path: Path, annotations: str, images: str, val: str
) -> None:
    # The same names in both splits: only the right folder tells them apart.
    for split in ("train", val):
        coco(tmp_path / annotations.format(split), "a.png", "b.png")
        for name in ("a.png", "b.png"):
            image(tmp_path / images.format(split) / name)
    found = discover(tmp_path)
    assert found.layout == "COCO json"
    assert list(found.splits) == ["train", "val"]
    assert paths(found.splits["train"])[0] == images.format("train") + "/a.png"
    assert paths(found.splits["val"])[1] == images.format(val) + "/b.png"
    assert found.splits["val"].name == "val"
    assert found.notes == ()


def test_coco_with_one_folder_of_images(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "train.json", "a.png")
    coco(tmp_path / "annotations" / "val.json", "b.png")
    coco(tmp_path / "annotations" / "test.json", "c.png")
    for name in "abc":
        image(tmp_path / "images" / f"{name}.png")
    found = discover(tmp_path)
    assert list(found.splits) == ["train", "val", "test"]
    assert paths(found.splits["test"]) == ["images/c.png"]


@pytest.mark.parametrize("name", ["labels.json", "instances_default.json", "annotations/all.json"])
def test_a_single_json_is_the_training_split(tmp_path: Path, name: str) -> None:
    coco(tmp_path / name, "a.png")
    image(tmp_path / "a.png")
    text(tmp_path / "settings.json", '{"colour": 3}')
    found = discover(tmp_path)
    assert list(found.splits) == ["train"]
    assert paths(found.splits["train"]) == ["a.png"]


def test_other_files_of_coco_are_passed_over(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "instances_train2017.json", "a.png")
    for kind in ("captions", "person_keypoints", "stuff", "panoptic", "image_info"):
        coco(tmp_path / "annotations" / f"{kind}_train2017.json", "a.png")
    image(tmp_path / "train2017" / "a.png")
    assert list(discover(tmp_path).splits) == ["train"]


def test_two_files_for_one_split(tmp_path: Path) -> None:
    for year in (2014, 2017):
        coco(tmp_path / "annotations" / f"instances_train{year}.json", "a.png")
    image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"train2014\.json and .*train2017\.json could both be"):
        discover(tmp_path)


@pytest.mark.parametrize("content", ["", '{"images": [', "[]", "{}"])
def test_a_damaged_json_in_the_usual_place_is_complained_about(
    tmp_path: Path, content: str
) -> None:
    text(tmp_path / "annotations" / "train.json", content)
    image(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"annotations/train\.json: "):
        discover(tmp_path)


def test_the_classes_of_splits_are_joined_by_name(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png", categories=CATEGORIES)
    other = [{"id": 3, "name": "ox"}, {"id": 5, "name": "hot dog"}, {"id": 9, "name": "cat"}]
    coco(tmp_path / "val.json", "a.png", categories=other)
    image(tmp_path / "a.png")
    found = discover(tmp_path)
    train, val = found.splits["train"], found.splits["val"]
    assert train.classes == val.classes == ("cat", "ox", "hot dog")
    assert train.category_ids == val.category_ids == (1, 3, 5)
    assert (train.records[0].labels.tolist(), val.records[0].labels.tolist()) == ([0], [1])
    assert "union" in train.problems[0].message
    assert "1 images are in train and in val" in found.notes[0]


def test_an_id_with_two_names_in_two_splits_is_refused(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png")
    coco(tmp_path / "val.json", "a.png", categories=[{"id": 1, "name": "dog"}])
    image(tmp_path / "a.png")
    with pytest.raises(DataError, match="category id 1 is 'cat' in train but 'dog' in val"):
        discover(tmp_path)


def devkit(root: Path, *, prefix: str = "") -> None:
    lists = {"train": ["1", "2"], "val": ["3"], "trainval": ["1", "2", "3"], "test": ["8", "9"]}
    for split, names in lists.items():
        content = "".join(f"{prefix}{name}  1\n" for name in names)
        text(root / "ImageSets" / "Main" / f"{split}.txt", content)
    text(root / "ImageSets" / "Main" / "cat_train.txt", "1 -1\n")
    for name, kind in (("1", "cat"), ("2", "dog"), ("3", "dog"), ("4", "ox")):
        text(root / "Annotations" / f"{prefix}{name}.xml", XML.format(name=kind))
        image(root / "JPEGImages" / f"{prefix}{name}.jpg")


@pytest.mark.parametrize("above", ["", "VOC2007", "VOCdevkit/VOC2012"])
def test_voc_devkit(tmp_path: Path, above: str) -> None:
    devkit(tmp_path / above)
    found = discover(tmp_path)
    assert found.layout == "Pascal VOC xml"
    assert list(found.splits) == ["train", "val"]
    assert [Path(p).stem for p in paths(found.splits["train"])] == ["1", "2"]
    assert found.splits["val"].classes == ("cat", "dog")
    assert found.splits["val"].records[0].labels.tolist() == [1]
    assert all(s.problems == () for s in found.splits.values())


def test_two_years_of_voc_are_joined(tmp_path: Path) -> None:
    devkit(tmp_path / "VOC2007")
    devkit(tmp_path / "VOC2012")
    found = discover(tmp_path)
    assert paths(found.splits["train"]) == [
        f"VOC{year}/JPEGImages/{name}.jpg" for year in (2007, 2012) for name in (1, 2)
    ]


def test_a_list_that_names_missing_annotations(tmp_path: Path) -> None:
    devkit(tmp_path)
    (tmp_path / "Annotations" / "2.xml").unlink()
    with pytest.raises(DataError, match=r"train\.txt: 1 of 2 images are not there \(2\)"):
        discover(tmp_path)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("{}", "{}"),
        ("{}/Annotations", "{}/JPEGImages"),
        ("{}/annotations", "{}/images"),
        ("annotations/{}", "images/{}"),
    ],
)
def test_voc_with_a_folder_for_each_split(tmp_path: Path, annotations: str, images: str) -> None:
    for split, kind in (("train", "cat"), ("valid", "ox"), ("test", "ant")):
        text(tmp_path / annotations.format(split) / "a.xml", XML.format(name=kind))
        image(tmp_path / images.format(split) / "a.jpg")
    found = discover(tmp_path)
    assert list(found.splits) == ["train", "val", "test"]
    assert {s.classes for s in found.splits.values()} == {("ant", "cat", "ox")}
    assert paths(found.splits["val"]) == [images.format("valid") + "/a.jpg"]
    assert found.splits["val"].records[0].labels.tolist() == [2]


@pytest.mark.parametrize(
    ("annotations", "images"), [("", ""), ("annotations", "images"), ("xml", "pictures")]
)
def test_voc_without_splits(tmp_path: Path, annotations: str, images: str) -> None:
    text(tmp_path / annotations / "a.xml", XML.format(name="cat"))
    image(tmp_path / images / "a.jpg")
    image(tmp_path / images / "b.jpg")
    found = discover(tmp_path)
    assert list(found.splits) == ["train"]
    (problem,) = found.splits["train"].problems
    assert (problem.file.name, problem.message) == (
        "b.jpg",
        "image has no annotation file; left out",
    )


def yolo(root: Path, yaml: str, *, images: str = "{}/images", labels: str = "{}/labels") -> None:
    text(root / "data.yaml", yaml)
    for split in ("train", "valid"):
        image(root / images.format(split) / f"{split}.jpg")
        text(root / labels.format(split) / f"{split}.txt", "1 0.5 0.5 0.5 0.5\n")


def test_yolo_as_roboflow_writes_it(tmp_path: Path) -> None:
    yolo(
        tmp_path,
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
        "nc: 2\nnames: ['cat', 'hot dog']\n",
    )
    found = discover(tmp_path)
    assert found.layout == "YOLO txt"
    assert list(found.splits) == ["train", "val"]
    assert found.splits["val"].classes == ("cat", "hot dog")
    assert found.splits["val"].records[0].boxes.tolist() == [[10, 7.5, 30, 22.5]]


def test_yolo_with_another_name_and_unlabelled_test_images(tmp_path: Path) -> None:
    yaml = "path: .\ntrain: images/train\nval: images/valid\ntest: images/test\nnames:\n  1: cat\n"
    yolo(tmp_path, yaml, images="images/{}", labels="labels/{}")
    (tmp_path / "data.yaml").rename(tmp_path / "pets.yaml")
    text(tmp_path / "recipe.yaml", "optimizer: sgd\n")
    image(tmp_path / "images" / "test" / "x.jpg")
    found = discover(tmp_path)
    assert list(found.splits) == ["train", "val"]
    assert found.notes[0].startswith("The test split was left out")
    text(tmp_path / "more.yaml", yaml)
    with pytest.raises(DataError, match=r"more\.yaml and pets\.yaml both describe a data set"):
        discover(tmp_path)


def test_yolo_unpacked_into_a_folder_of_its_own(tmp_path: Path) -> None:
    yaml = "train: train/images\nval: valid/images\nnames: [cat, dog]\n"
    yolo(tmp_path / "pets", yaml)
    (tmp_path / "notes").mkdir()
    found = discover(tmp_path)
    assert found.layout == "YOLO txt"
    assert list(found.splits) == ["train", "val"]
    yolo(tmp_path / "more", yaml)
    with pytest.raises(DataError, match=r"more/data\.yaml and pets/data\.yaml both describe"):
        discover(tmp_path)
    coco(tmp_path / "train.json", "a.png")
    image(tmp_path / "a.png")
    assert discover(tmp_path).layout == "COCO json"


def test_a_second_kind_of_annotation_is_mentioned(tmp_path: Path) -> None:
    yolo(tmp_path, "train: train/images\nval: valid/images\nnames: [cat, dog]\n")
    coco(tmp_path / "annotations" / "train.json", "a.png")
    assert discover(tmp_path).notes == ("COCO json is there too; not read.",)


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    text(tmp_path / "labels" / "a.txt", "0 0 0 1 1")
    with pytest.raises(DataError) as caught:
        discover(tmp_path)
    for part in ("data.yaml", "instances_train2017.json", "VOCdevkit", "1 .txt", "1 images"):
        assert part in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds: no files"):
        discover(tmp_path / "empty")


def test_no_folder_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        discover(tmp_path / "gone")
    with pytest.raises(DataError, match="is a file"):
        discover(text(tmp_path / "a.json", "{}"))


def test_a_training_split_without_an_object(tmp_path: Path) -> None:
    path = coco(tmp_path / "train.json", "a.png")
    content = json.loads(path.read_text()) | {"annotations": []}
    path.write_text(json.dumps(content))
    image(tmp_path / "a.png")
    with pytest.raises(DataError, match="1 images of train have no object"):
        discover(tmp_path)


def test_images_of_another_size_than_annotated(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.png")
    path = image(tmp_path / "a.png")
    Image.new("RGB", (80, 60)).save(path)
    with pytest.raises(DataError, match=r"1 of 1 images .*a\.png: the image is 80 x 60"):
        discover(tmp_path)


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(DataError, match="no permission to list this folder"):
        discover(tmp_path)
