import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO  # type: ignore[import-untyped]

from rankdet.data.errors import DataError
from rankdet.data.imageset import ImageSet, Problem, Record, to_coco


def record(image_id: int = 7, name: str = "a.png") -> Record:
    return Record(
        path=Path("/data/images") / name,
        id=image_id,
        width=40,
        height=30,
        boxes=np.array([[1, 2, 11, 22], [0, 0, 40, 30]], np.float32),
        labels=np.array([1, 0]),
        crowd=np.array([False, True]),
        areas=np.array([150.0, 1200.0]),
    )


def image_set(*records: Record) -> ImageSet:
    return ImageSet("val", Path("/data"), records, ("cat", "hot dog"), (3, 90))


def test_to_coco_is_understood_by_pycocotools() -> None:
    content = to_coco(image_set(record(), Record.empty(Path("/elsewhere/b.png"), 2**40, 5, 6)))
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    assert coco.getImgIds() == [7, 2**40]
    first, second = coco.loadAnns(coco.getAnnIds(imgIds=[7]))
    assert first["bbox"] == [1, 2, 10, 20]
    assert (first["category_id"], first["area"], first["iscrowd"]) == (90, 150.0, 0)
    assert (second["category_id"], second["iscrowd"]) == (3, 1)
    assert coco.loadCats([90])[0]["name"] == "hot dog"
    assert coco.loadImgs([7])[0]["file_name"] == "images/a.png"
    assert coco.loadImgs([2**40])[0]["file_name"] == "/elsewhere/b.png"


def test_to_coco_refuses_two_images_of_one_id() -> None:
    with pytest.raises(DataError, match=r"b\.png and .*a\.png both have the image id 7"):
        to_coco(image_set(record(), record(name="b.png")))


def test_a_class_needs_an_id() -> None:
    with pytest.raises(ValueError, match="1 classes need as many category ids, got 2"):
        ImageSet("train", Path(), (), ("cat",), (1, 2))


def test_a_subset_keeps_the_classes_and_the_order_asked_for() -> None:
    whole = image_set(record(1, "a.png"), record(2, "b.png"), record(3, "c.png"))
    part = whole.subset([2, 0], "part")
    assert [r.id for r in part.records] == [3, 1]
    assert part.classes == whole.classes
    assert (part.name, len(part)) == ("part", 2)


def test_a_problem_is_told_with_file_record_value_and_fault() -> None:
    problem = Problem(Path("a.json"), "annotation 4", "box has no area; left out", "bbox [1]")
    assert str(problem) == "a.json: annotation 4 bbox [1]: box has no area; left out"
