import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rankdet.data.coco import read_coco
from rankdet.data.errors import DataError
from rankdet.data.imageset import ImageSet, to_coco


def content(images: int = 2, boxes: list[list[Any]] | None = None) -> dict[str, Any]:
    if boxes is None:
        boxes = [[1, 2, 10, 8], [0, 0, 5, 5]]
    return {
        "images": [
            {"id": 10 + i, "file_name": f"{i}.png", "width": 40, "height": 30}
            for i in range(images)
        ],
        "annotations": [
            {"id": 100 + i, "image_id": 10, "category_id": 3, "bbox": box}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 7, "name": "hot dog"}, {"id": 3, "name": "cat"}],
    }


def write(folder: Path, data: Any, *, images: int = 2) -> Path:
    for number in range(images):
        Image.new("RGB", (40, 30)).save(folder / f"{number}.png")
    path = folder / "train.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def read(folder: Path, data: Any, *, images: int = 2) -> ImageSet:
    return read_coco(write(folder, data, images=images), folder)


def refused(folder: Path, data: Any, match: str, *, images: int = 2) -> None:
    path = write(folder, data, images=images)
    with pytest.raises(DataError, match=match) as caught:
        read_coco(path, folder)
    assert str(path) in str(caught.value)


def test_gaps_in_ids_names_with_spaces_and_images_without_objects(tmp_path: Path) -> None:
    data = content()
    data["annotations"][1] |= {"category_id": 7, "iscrowd": 1, "area": 3.5, "segmentation": [[0]]}
    found = read(tmp_path, data)
    assert found.classes == ("cat", "hot dog")
    assert found.category_ids == (3, 7)
    first, second = found.records
    np.testing.assert_array_equal(first.boxes, [[1, 2, 11, 10], [0, 0, 5, 5]])
    assert first.labels.tolist() == [0, 1]
    assert first.crowd.tolist() == [False, True]
    assert first.areas.tolist() == [80.0, 3.5]
    assert (first.id, second.id, len(second.boxes)) == (10, 11, 0)
    assert found.problems == ()
    written = to_coco(found)
    assert [a["category_id"] for a in written["annotations"]] == [3, 7]


def test_single_bad_boxes_become_problems(tmp_path: Path) -> None:
    good: list[list[Any]] = [[1, 1, 5, 5]] * 4
    bad: list[list[Any]] = [
        [float("nan"), 0, 5, 5],
        [50, 0, 5, 5],
        [1, 1, 0, 5],
        [9, 9, -3, 4],
        [30, 20, 20, 20],
        [1, 2, 3],
        [1, 2, 3, "x"],
    ]
    found = read(tmp_path, content(boxes=good + bad))
    assert len(found.records[0].boxes) == 5
    assert found.records[0].boxes[4].tolist() == [30, 20, 40, 30]
    said = [(p.record, p.message) for p in found.problems]
    unclear = "box is not made of finite numbers; left out"
    assert sorted(said) == [
        ("annotation 104 of 0.png", unclear),
        ("annotation 105 of 0.png", "box lies outside the image; left out"),
        ("annotation 106 of 0.png", "box has no area; left out"),
        ("annotation 107 of 0.png", "box has a negative width or height; left out"),
        ("annotation 108 of 0.png", "box reaches beyond the image; clipped"),
        ("annotation 109 of 0.png", unclear),
        ("annotation 110 of 0.png", unclear),
    ]
    assert next(p.value for p in found.problems if "105" in p.record) == "bbox [50, 0, 5, 5]"


def test_crowd_flags_may_be_texts(tmp_path: Path) -> None:
    data = content(boxes=[[1, 1, 5, 5]] * 6)
    for entry, flag in zip(data["annotations"], ("0", "1", 0, 1, True, None), strict=True):
        entry["iscrowd"] = flag
    (record, _) = read(tmp_path, data).records
    assert record.crowd.tolist() == [False, True, False, True, True, False]


@pytest.mark.parametrize("beside", [[1, 1, 5, 5], [1, 2, 3]])
def test_numbers_of_a_box_may_be_texts(tmp_path: Path, beside: list[Any]) -> None:
    """Whatever else the file holds."""
    found = read(tmp_path, content(boxes=[["1", "2", "5.5", 6], beside]))
    assert found.records[0].boxes[0].tolist() == [1, 2, 6.5, 8]
    assert len(found.problems) == (len(beside) != 4)


def test_a_long_value_is_shortened_in_the_message(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, content(boxes=[[1, 1, 5, 5], [10**400, 1, 1, 1]])).problems
    assert len(problem.value) < 100
    assert problem.value.startswith("bbox [1000")


def test_boxes_given_as_corners_are_refused(tmp_path: Path) -> None:
    corners: list[list[Any]] = [[20, 10, 30, 25], [25, 15, 39, 29], [2, 2, 9, 9], [30, 5, 38, 28]]
    refused(tmp_path, content(boxes=corners), r"fit as corners.*annotation 100 of 0.png, bbox \[20")


def test_large_boxes_in_the_right_form_are_not_taken_for_corners(tmp_path: Path) -> None:
    found = read(tmp_path, content(boxes=[[0, 0, 40, 30], [2, 2, 38, 28], [5, 5, 35, 25]]))
    assert found.problems == ()


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
def test_json_cut_off(tmp_path: Path, keep: float) -> None:
    text = json.dumps(content(), indent=1)
    refused(tmp_path, text[: int(keep * len(text))], r"at line \d+, column \d+ .*cut off")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("", "the file is empty"),
        ("  \n", "the file is empty"),
        ('{"images": [}', "line 1, column 13"),
        ([{"image_id": 1, "bbox": []}], "found a list, perhaps of detections"),
        ("3", "expected an object"),
        ("[" * 100_000, "no valid json"),
        ({"images": [], "annotations": []}, "expected a list 'categories', found nothing"),
        ({**content(), "annotations": {}}, "expected a list 'annotations', found dict"),
        ({**content(), "images": [3]}, r"images\[0\] is '3', expected an object"),
        ({**content(), "categories": []}, "'categories' is empty but there are 2 annotations"),
        ({**content(), "categories": [{"name": "cat"}]}, "has the id None"),
        ({**content(), "categories": [{"id": 3}]}, "category 3 has the name None"),
        ({**content(), "images": [{"file_name": "0.png"}]}, r"images\[0\] has the id None"),
        ({**content(), "images": [{"id": 10}]}, "image 10 has the file_name None"),
    ],
)
def test_structural_faults(tmp_path: Path, data: Any, match: str) -> None:
    refused(tmp_path, data, match)


def test_unknown_or_absent_category(tmp_path: Path) -> None:
    data = content()
    data["annotations"][1]["category_id"] = 4
    refused(tmp_path, data, r"annotation 101 has the category_id 4, .* \(3, 7\)")
    del data["annotations"][1]["category_id"]
    refused(tmp_path, data, "annotation 101 has the category_id None")


def test_two_categories_of_one_id_or_of_one_name(tmp_path: Path) -> None:
    data = content()
    data["categories"] = [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]
    refused(tmp_path, data, "category id 3 is given to 'cat' and to 'dog'")
    data["categories"] = [{"id": 3, "name": "cat"}, {"id": 4, "name": "cat"}]
    assert read(tmp_path, data).category_ids == (3,)
    data["annotations"][1]["category_id"] = 4
    refused(tmp_path, data, "categories 3 and 4 are both named 'cat'")


def test_an_unused_super_category_is_left_out(tmp_path: Path) -> None:
    data = content()
    data["categories"] = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "animals"},
        {"id": 4, "name": "dog", "supercategory": "animals"},
    ]
    found = read(tmp_path, data)
    assert found.classes == ("cat", "dog")
    assert "super-category" in found.problems[0].message


def test_a_few_strays_are_problems_and_many_an_error(tmp_path: Path) -> None:
    data = content(boxes=[[1, 1, 5, 5]] * 20)
    data["annotations"][4]["image_id"] = 999
    found = read(tmp_path, data)
    assert str(found.problems[0]).endswith(
        "annotation 104 image_id 999: image id is not in the file; left out"
    )
    for entry in data["annotations"][:5]:
        entry["image_id"] = 999
    refused(tmp_path, data, r"5 of 20 annotations point to images.*annotation 100: image_id 999")


def test_a_few_missing_images_are_problems_and_many_an_error(tmp_path: Path) -> None:
    data = content(images=20)
    found = read(tmp_path, data, images=19)
    assert len(found) == 19
    assert found.problems[0].record == "image 19.png"
    data["images"] += [{"id": 100 + i, "file_name": f"gone{i}.png"} for i in range(3)]
    refused(
        tmp_path, data, r"4 of 23 images are not there \(19.png, gone0.png, gone1.png, \.\.\.\)"
    )


def test_boxes_of_missing_images_go_with_them(tmp_path: Path) -> None:
    data = content(images=20)
    data["annotations"].append({"id": 5, "image_id": 29, "category_id": 3, "bbox": [0, 0, 3, 3]})
    found = read(tmp_path, data, images=19)
    assert sum(len(r.boxes) for r in found.records) == 2


def test_image_ids_given_twice(tmp_path: Path) -> None:
    data = content()
    data["images"].append(dict(data["images"][0]))
    found = read(tmp_path, data)
    assert (len(found), len(found.problems)) == (2, 1)
    data["images"][-1]["file_name"] = "1.png"
    refused(tmp_path, data, r"image id 10 is given to 0\.png and to 1\.png")


def test_a_file_with_two_ids_gets_the_boxes_of_both(tmp_path: Path) -> None:
    data = content()
    data["images"][1]["file_name"] = "0.png"
    data["annotations"][1]["image_id"] = 11
    found = read(tmp_path, data)
    assert [len(r.boxes) for r in found.records] == [2]
    assert found.problems[0].message == "file has two image ids; boxes joined"


def test_ids_that_are_texts_are_numbered(tmp_path: Path) -> None:
    data = content()
    for entry in (*data["images"], *data["annotations"]):
        key = "image_id" if "image_id" in entry else "id"
        entry[key] = f"x{entry[key]}"
    found = read(tmp_path, data)
    assert [(r.id, len(r.boxes)) for r in found.records] == [(1, 2), (2, 0)]


@pytest.mark.parametrize("size", [{}, {"width": 0, "height": 0}, {"width": None, "height": "30"}])
def test_an_absent_size_is_read_from_the_header(tmp_path: Path, size: dict[str, Any]) -> None:
    data = content()
    data["images"][0] = {"id": 10, "file_name": "0.png", **size}
    found = read(tmp_path, data)
    assert (found.records[0].width, found.records[0].height) == (40, 30)


def test_an_image_that_does_not_open_is_refused(tmp_path: Path) -> None:
    data = content(images=1)
    data["images"] = [{"id": 10, "file_name": "0.png"}]
    path = write(tmp_path, data)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be opened; .*0\.png: does not dec"):
        read_coco(path, tmp_path)


def test_the_folder_that_holds_the_images_is_chosen(tmp_path: Path) -> None:
    for folder in ("a", "b/sub"):
        (tmp_path / folder).mkdir(parents=True)
    path = write(tmp_path, content())
    for name in ("0.png", "1.png"):
        (tmp_path / name).rename(tmp_path / "b" / "sub" / name)
    data = content()
    data["images"][0]["file_name"] = "sub\\0.png"
    data["images"][1]["file_name"] = "/home/someone/sub/1.png"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="images are not there"):
        read_coco(path, [tmp_path / "a", tmp_path / "b"])
    found = read_coco(path, [tmp_path / "a", tmp_path / "b", tmp_path / "b" / "sub"])
    assert {r.path.parent for r in found.records} == {tmp_path / "b" / "sub"}


def test_no_permission_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, content())
    with pytest.raises(DataError, match=r"gone\.json: there is no such file"):
        read_coco(tmp_path / "gone.json", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_coco(tmp_path, tmp_path)

    def forbidden(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(DataError, match=r"train\.json: no permission .*chmod u\+r"):
        read_coco(path, tmp_path)


def test_a_set_without_annotations_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, content(boxes=[]))
    assert [len(r.boxes) for r in found.records] == [0, 0]


def test_many_boxes_of_one_image_take_no_quadratic_time(tmp_path: Path) -> None:
    data = content()
    data["images"] = [
        {"id": i, "file_name": "0.png" if i == 0 else "1.png", "width": 40, "height": 30}
        for i in range(2)
    ]
    data["annotations"] = [
        {"id": i, "image_id": i % 2, "category_id": 3, "bbox": [1, 1, 5, 5]} for i in range(30_000)
    ]
    found = read(tmp_path, data)
    assert [len(r.boxes) for r in found.records] == [15_000, 15_000]
