"""Files of subsets: an instances file in pieces, lists of images."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO  # type: ignore[import-untyped]

from rankdet.data.errors import DataError
from rankdet.data.minitrain import names_of, statistics
from rankdet.data.minitrain_files import candidates, match_images, read_list, resolve
from rankdet.data.minitrain_json import read_instances, subset_text

Content = dict[str, Any]


def content() -> Content:
    """Five images: two objects, one, a crowd alone, nothing, and boxes that do not count."""

    def box(image_id: int, category_id: int, side: float, **more: Any) -> Content:
        return {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [1, 1, side, side],
            **more,
        }

    annotations = [
        box(9, 7, 40.0, area=900.5, segmentation=[[1.50, 2.25]], iscrowd=0),
        box(4, 3, 50.0), box(9, 3, 120.0, area=9999.0), box(9, 3, 200.0, area=4e4, iscrowd=1),
        box(5, 3, 90.0, area=5.0, iscrowd=1), box(6, 3, 0.0, area=7.0),
        {"image_id": 6, "category_id": 3, "bbox": None}, box(77, 3, 9.0), {"category_id": 3},
    ]  # fmt: skip
    return {
        "info": {"year": 2017, "description": "猫 \U0001f600"},
        "images": [{"id": i, "file_name": f"train/{i:012}.jpg", "n": 1.0} for i in (9, 5, 4, 8, 6)],
        "annotations": [{**each, "id": n} for n, each in enumerate(annotations)],
        "licenses": [{"id": 1}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 5, "name": "x"}],
    }


def write(path: Path, what: Content, **form: Any) -> Path:
    path.write_text(json.dumps(what, **form), encoding="utf-8")
    return path


def test_counts_are_those_of_pycocotools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, generator = content(), random.Random(0)
    for number in range(300):
        image_id, category = generator.choice([9, 5, 4]), generator.choice([3, 7])
        side, crowd = generator.uniform(5, 150), int(generator.random() < 0.1)
        made["annotations"].append(
            {"id": 100 + number, "image_id": image_id, "category_id": category, "iscrowd": crowd,
             "bbox": [0, 0, side, side], "area": side * side * 0.8}
        )  # fmt: skip
    for each in made["annotations"]:  # which the library does not fill in
        each.setdefault("iscrowd", 0)
    made["annotations"] = [
        each for each in made["annotations"] if "area" in each and each["bbox"][2] > 0
    ]
    path = write(tmp_path / "a.json", made)
    source = read_instances(path)
    pool, coco = candidates(source), COCO(str(path))
    capsys.readouterr()
    ends = {None: (0, 1e10), "small": (0, 1024), "medium": (1024, 9216), "large": (9216, 1e10)}
    ids: dict[str | None, int | list[int]] = {"cat": 3, "x": 5, "dog": 7, None: []}
    for chosen in (set(pool.ids), {9}, {4, 5}):
        found = statistics(pool.table, pool.mask(chosen)).tolist()
        expected = [
            len(coco.getAnnIds(sorted(chosen), ids[each["class"]], ends[each["size"]], False))
            for each in names_of(source.classes)
        ]
        assert found == expected


@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": ",:"}])
def test_what_is_kept_is_kept_to_the_letter(tmp_path: Path, form: dict[str, Any]) -> None:
    made = content()
    source = read_instances(write(tmp_path / "a.json", made, **form))
    assert source.classes == ("cat", "x", "dog")
    pool = candidates(source)
    assert pool.ids == (4, 9), "with objects that count, by rising id"
    assert candidates(source, {9}).ids == (4,)
    assert statistics(pool.table)[:7].tolist() == [3, 1, 1, 1, 2, 0, 1]
    text = "".join(subset_text(source, {9, 8}))
    found = json.loads(text)
    assert list(found) == list(made)
    assert found["images"] == [made["images"][0], made["images"][3]]
    assert found["annotations"] == [
        each for each in made["annotations"] if each.get("image_id") == 9
    ]
    assert len(found["annotations"]) == 3, "with the crowd region"
    assert {k: found[k] for k in ("info", "licenses", "categories")} == {
        k: made[k] for k in ("info", "licenses", "categories")
    }
    for first, last in source.annotation_spans[:1] + source.image_spans[:1]:
        assert source.text[first:last] in text
    none = json.loads("".join(subset_text(source, set())))
    assert (none["images"], none["annotations"]) == ([], [])


def test_the_order_of_the_file_is_no_matter(tmp_path: Path) -> None:
    made = content()
    pools = []
    for number in range(2):
        pools.append(candidates(read_instances(write(tmp_path / f"{number}.json", made))))
        made["images"].reverse()
        made["annotations"].reverse()
        made["categories"].reverse()
    assert pools[0].ids == pools[1].ids
    for name in ("start", "cell", "count"):
        np.testing.assert_array_equal(getattr(pools[0].table, name), getattr(pools[1].table, name))


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), _values, max_size=4),
    st.lists(st.dictionaries(st.sampled_from(["a", "é", "]"]), _values, max_size=3), max_size=4),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_json_is_read_as_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, head: Content, records: list[Content],
    indent: int | None, ascii_only: bool, generator: random.Random,
) -> None:  # fmt: skip
    made: Content = {
        **head,
        "images": [{**each, "id": n, "file_name": "f"} for n, each in enumerate(records)],
        "annotations": [{**each, "image_id": 0, "category_id": 1} for each in records],
        "categories": [{"id": 1, "name": "c"}],
    }
    keys = list(made)
    generator.shuffle(keys)
    made = {key: made[key] for key in keys}
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(json.dumps(made, indent=indent, ensure_ascii=ascii_only).encode("utf-16"))
    source = read_instances(path)
    whole = json.loads("".join(subset_text(source, set(range(len(records))))))
    assert (whole, list(whole)) == (made, keys)


def change(key: str, number: int, **values: Any) -> Callable[[Content], object]:
    return lambda made: made[key][number].update(values)


FAULTS: dict[str, tuple[Callable[[Content], object], str]] = {
    "no images": (lambda made: made.pop("images"), "has no list 'images'"),
    "no categories": (lambda made: made.pop("categories"), "has no list 'categories'"),
    "images no list": (lambda made: made.update(images={}), "no valid json at line 1, column"),
    "image no object": (lambda made: made["images"].append(3), r"images\[5\] is '3', expected an"),
    "id of an image": (change("images", 1, id=None), r"images\[1\] has the id None"),
    "name of an image": (change("images", 1, file_name=""), "image 5 has the file_name ''"),
    "id twice": (change("images", 1, id=9), "image id 9 is given to train/000000000009.jpg and to"),
    "id of a category": (change("categories", 0, id="7"), r"categories\[0\] has the id '7'"),
    "unknown category": (
        change("annotations", 1, category_id=8), r"annotations\[1\] has the category_id 8, which",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_faulty_record_is_named(kind: str, tmp_path: Path) -> None:
    fault, said = FAULTS[kind]
    made = content()
    fault(made)
    path = write(tmp_path / "a.json", made)
    with pytest.raises(DataError, match=said) as error:
        read_instances(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_spoilt_file_is_named(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.json", json.dumps(content())
    for cut in range(1, len(whole), 41):
        path.write_text(whole[:cut])
        with pytest.raises(DataError, match="no valid json at line 1"):
            read_instances(path)
    for spoilt, said in (
        (whole + "]", "Extra data"),
        (whole.replace("}, {", "},, {", 1), "Expecting"),
        (whole[:-1] + ",}", "Expecting"),
        (whole[:-1] + ', "info": 1}', "the key 'info' is there twice"),
        ("[]", "found a list"),
        ("", "empty"),
    ):
        path.write_text(spoilt)
        with pytest.raises(DataError, match=said):
            read_instances(path)
    with pytest.raises(DataError, match="no such file"):
        read_instances(tmp_path / "none.json")
    for key in ("annotations", "images"):
        with pytest.raises(DataError, match="has an object; there is nothing to match"):
            candidates(read_instances(write(path, {**content(), key: []})))


def test_lists_of_images(tmp_path: Path) -> None:
    source = read_instances(write(tmp_path / "a.json", content()))
    path = tmp_path / "list.txt"
    lines = "9\n\n000000000005\r\n train/000000000004.jpg\nelsewhere\\000000000008.jpg\n"
    for text in (lines, "\ufeff" + lines, json.dumps([9, "5", "train/000000000004.jpg", 8])):
        path.write_bytes(text.encode())
        assert resolve(read_list(path), source, path) == {9, 5, 4, 8}
    for text, said in (
        ("9\n10\nx.jpg\n", r"2 of 3 images are not in .*a\.json: '10', 'x\.jpg'; give the list"),
        ("[9, 10]", "1 of 2 images are not in .*: 10; give"),
        ("[9, [1]]", r"entry 1 is '\[1\]'"),
        ('{"images": []}', "given with --annotations"),
        ("[9", "no valid json"),
        ("\n \n", "empty"),
        ("[]", "names no image"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            resolve(read_list(path), source, path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_list(path)


def test_equal_names_in_two_folders_need_the_folder(tmp_path: Path) -> None:
    made = content()
    made["images"] = [{"id": n, "file_name": f"{n}/a.jpg"} for n in (4, 9)]
    source = read_instances(write(tmp_path / "a.json", made))
    assert resolve(["4/a.jpg"], source, tmp_path) == {4}
    with pytest.raises(DataError, match=r"'a\.jpg' \(2 files have this name\)"):
        resolve(["a.jpg"], source, tmp_path)


def test_images_of_another_file(tmp_path: Path) -> None:
    source = read_instances(write(tmp_path / "a.json", content()))
    other = content()
    other["images"] = [{"id": i, "file_name": f"{i:012}.jpg"} for i in (9, 8)]
    given = read_instances(write(tmp_path / "b.json", other))
    assert match_images(given, source) == {9, 8}
    other["images"] += [{"id": 1, "file_name": "1.jpg"}, {"id": 4, "file_name": "other.jpg"}]
    given = read_instances(write(tmp_path / "b.json", other))
    with pytest.raises(DataError, match=r"2 of 4 images are not in .*: 1 \(1\.jpg\), 4 \(other"):
        match_images(given, source)
    given = read_instances(write(tmp_path / "b.json", {**other, "images": []}))
    with pytest.raises(DataError, match="lists no image"):
        match_images(given, source)
