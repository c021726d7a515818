"""`rankdet data minitrain`: a folder to train on, a report of the match, faults named."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rankdet.cli import data_minitrain
from rankdet.data import minitrain_folder
from rankdet.data.discover import discover
from rankdet.data.errors import DataError
from rankdet.data.images import read_image_as
from rankdet.engine.files import RunError


def minitrain(coco: Path, out: Path, *more: str) -> int:
    parser = argparse.ArgumentParser()
    data_minitrain.add_to(parser.add_subparsers())
    given = parser.parse_args(
        ["minitrain", "--coco", str(coco), "--out", str(out), "--draws", "20", *more]
    )
    code: int = given.run(given)
    return code


@pytest.fixture
def coco(tmp_path: Path, digits: Path) -> Path:
    """Return a folder laid out as COCO: 16 images to train on, one of them without an object."""
    root = tmp_path / "data" / "coco"
    for split in ("train", "val"):
        content = read(digits / "annotations" / f"{split}.json")
        for image in content["images"]:
            place = root / f"{split}2017" / image["file_name"]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(digits / "images" / image["file_name"], place)
        if split == "train":
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 5]
        put(root / "annotations" / f"instances_{split}2017.json", content)
    return root


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def ids(folder: Path, name: str = "instances_train2017") -> list[int]:
    return [each["id"] for each in read(folder / "annotations" / f"{name}.json")["images"]]


def check_folder(place: Path) -> None:
    found = discover(place)
    assert found.layout == "COCO json"
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 6, "val": 6}
    assert not any(split.problems for split in found.splits.values())
    for record in found.splits["train"].records:
        assert record.path.parent == place / "train2017"
        read_image_as(record.path, record.width, record.height)


def test_the_folder_can_be_trained_on_and_nothing_was_copied(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sub" / "mini"
    assert minitrain(coco, out, "--images", "6") == 0
    links = ("train2017", "val2017", "annotations/instances_val2017.json")
    for name in links:
        assert (out / name).is_symlink()
        assert not os.path.isabs(os.readlink(out / name))
    assert {path.name for path in out.iterdir()} == {*links[:2], "annotations", "minitrain.json"}
    check_folder(out)
    (tmp_path / "new").mkdir()
    for name in ("data", "sub"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    place = tmp_path / "new" / "sub" / "mini"
    check_folder(place)  # moved together, the links still hold
    whole = read(tmp_path / "new" / "data" / "coco" / "annotations" / "instances_train2017.json")
    part = read(place / "annotations" / "instances_train2017.json")
    chosen = {image["id"] for image in part["images"]}
    assert len(chosen) == 6
    assert 5 not in chosen, "images without an object are not drawn"
    assert part["images"] == [each for each in whole["images"] if each["id"] in chosen]
    assert part["annotations"] == [e for e in whole["annotations"] if e["image_id"] in chosen]
    assert {k: v for k, v in part.items() if k not in ("images", "annotations")} == {
        k: v for k, v in whole.items() if k not in ("images", "annotations")
    }
    said = capsys.readouterr().out
    for text in (
        "6 images with",
        "of 15 images",
        "sizes by class",
        "worst ratio",
        "against the best of the draws",
        "next: rankdet train --data",
    ):
        assert text in " ".join(said.split()), text
    assert "note" not in said


def test_the_report_holds_every_number(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "mini"
    assert minitrain(coco, out, "--images", "6", "--seed", "3") == 0
    report, part = read(out / "minitrain.json"), read(out / "annotations/instances_train2017.json")
    whole_path = coco / "annotations" / "instances_train2017.json"
    whole = read(whole_path)
    assert report["settings"] == {"images": 6, "list": None, "seed": 3, "draws": 20}
    assert report["source"] == {
        "file": "instances_train2017.json",
        "sha256": hashlib.sha256(whole_path.read_bytes()).hexdigest(),
        "images": 16,
        "images_absent": 0,
        "images_with_objects": 15,
        "objects": len(whole["annotations"]),
    }
    assert report["subset"]["objects"] == len(part["annotations"])
    names = {each["id"]: each["name"] for each in whole["categories"]}
    rows = {(each["class"], each["size"]): each for each in report["statistics"]}
    for name in names.values():
        counts = [
            sum(names[a["category_id"]] == name for a in content["annotations"])
            for content in (whole, part)
        ]
        row = rows[name, None]
        assert [row["whole"], row["subset"]] == counts
        assert row["expected"] == pytest.approx(counts[0] * 6 / 15)
        if counts[0]:
            assert row["ratio"] == pytest.approx(counts[1] / row["expected"])
    counted = [each["ratio"] for each in report["statistics"] if each["counted"]]
    worst = max(max(ratio, 1 / ratio) for ratio in counted)
    own, drawn = report["match"]["subset"], report["match"]["best_of_draws"]
    assert own["worst_ratio"] == pytest.approx(worst)
    assert own["worst_ratio"] <= drawn["worst_ratio"]
    assert report["score"]["limit_of_worst_ratio"] <= own["worst_ratio"]


def test_the_same_seed_gives_the_same_bytes(coco: Path, tmp_path: Path) -> None:
    folders = []
    for number, seed in enumerate("001"):
        folders.append(tmp_path / f"mini{number}")
        assert minitrain(coco, folders[-1], "--images", "6", "--seed", seed) == 0
    for name in ("minitrain.json", "annotations/instances_train2017.json"):
        first, second, other = ((folder / name).read_bytes() for folder in folders)
        assert first == second != other
    assert ids(folders[0]) == GOLDEN
    # An earlier folder of ours is replaced, and what its links lead to stays.
    assert minitrain(coco, folders[0], "--images", "4") == 0
    assert len(ids(folders[0])) == 4
    assert len(list((coco / "train2017").iterdir())) == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mini0", "mini1", "mini2"]


GOLDEN = [1, 2, 9, 10, 13, 14]


def test_copies_stand_alone(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "mini"
    assert minitrain(coco, out, "--images", "6", "--copy") == 0
    shutil.rmtree(coco)
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert len(list((out / "train2017").iterdir())) == 6
    assert {n: len(split) for n, split in discover(out).splits.items()} == {"train": 6, "val": 6}


def test_other_layouts(digits: Path, coco: Path, tmp_path: Path) -> None:
    """One folder for the images of all splits; and annotations beside the images."""
    assert minitrain(digits, tmp_path / "a", "--images", "6") == 0
    splits = discover(tmp_path / "a").splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "val": 6}
    beside = tmp_path / "beside"
    for split in ("train", "val"):
        shutil.copytree(coco / f"{split}2017", beside / split)
        source = coco / "annotations" / f"instances_{split}2017.json"
        shutil.copy(source, beside / split / "_annotations.coco.json")
    with pytest.raises(DataError, match=r"annotations are found there too.*--copy"):
        minitrain(beside, tmp_path / "b", "--images", "6")
    assert not (tmp_path / "b").exists()
    assert minitrain(beside, tmp_path / "b", "--images", "6", "--copy") == 0
    assert {n: len(s) for n, s in discover(tmp_path / "b").splits.items()} == {"train": 6, "val": 6}


@pytest.mark.parametrize("kind", ["--ids", "--annotations"])
def test_given_images_are_taken_exactly(
    kind: str, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read(coco / "annotations" / "instances_train2017.json")
    images = [image for image in whole["images"] if image["id"] in (2, 5, 11)]
    if kind == "--ids":
        given = tmp_path / "list.txt"
        given.write_text(f"2\n{images[1]['file_name']}\ntrain2017/{images[2]['file_name']}\n2\n")
    else:
        given = put(tmp_path / "instances_minitrain2017.json", {**whole, "images": images})
    out = tmp_path / "mini"
    assert minitrain(coco, out, kind, str(given)) == 0
    assert ids(out) == [2, 5, 11], "the image without an object as well"
    report = read(out / "minitrain.json")
    assert report["settings"]["list"] == given.name
    assert (report["subset"]["images"], report["subset"]["images_with_objects"]) == (3, 2)
    assert report["subset"]["swaps"] is None
    said = capsys.readouterr().out
    assert ("1 entries of" in said) == (kind == "--ids")
    with pytest.raises(RunError, match="--images 7: how many images there are is said by"):
        minitrain(coco, out, kind, str(given), "--images", "7")
    given.write_text("[5]" if kind == "--ids" else json.dumps({**whole, "images": images[1:2]}))
    with pytest.raises(DataError, match="none of the 1 images has an object"):
        minitrain(coco, out, kind, str(given))
    assert ids(out) == [2, 5, 11], "the earlier folder is as it was"


def test_images_that_are_not_there(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((coco / "train2017").iterdir())
    images[0].unlink()
    out = tmp_path / "mini"
    assert minitrain(coco, out, "--images", "14") == 0
    assert "1 of 16 images are not in" in capsys.readouterr().out
    assert 1 not in ids(out)
    assert read(out / "minitrain.json")["source"]["images_absent"] == 1
    given = tmp_path / "list.txt"
    given.write_text("1\n2\n")
    with pytest.raises(DataError, match=rf"1 of 2 images .* not on the disk: {images[0].name}"):
        minitrain(coco, out, "--ids", str(given))
    images[1].unlink()
    with pytest.raises(DataError, match="2 of 16 images are not there"):
        minitrain(coco, out, "--images", "3")


def test_without_validation_images(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(coco / "val2017")
    assert minitrain(coco, tmp_path / "a", "--images", "6") == 0
    assert "the validation split is left out" in capsys.readouterr().out
    (coco / "annotations" / "instances_val2017.json").unlink()
    assert minitrain(coco, tmp_path / "b", "--images", "6") == 0
    assert "there is no validation split" in capsys.readouterr().out
    for name in "ab":
        assert list(discover(tmp_path / name).splits) == ["train"]


def test_few_images_and_all_of_them(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert minitrain(coco, tmp_path / "one", "--images", "1") == 0
    capsys.readouterr()
    assert minitrain(coco, tmp_path / "all", "--images", "15") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "worst ratio 1.000" in said
    assert "from 1 the same, mean deviation the same" in said
    report = read(tmp_path / "all" / "minitrain.json")
    assert report["match"]["subset"] == report["match"]["best_of_draws"]
    with pytest.raises(DataError, match="16 images are asked for, but only 15 of 16"):
        minitrain(coco, tmp_path / "more", "--images", "16")
    with pytest.raises(DataError, match=r"25000 images are asked for.*--images 15 takes them all"):
        minitrain(coco, tmp_path / "more")


def test_wrong_calls_are_refused_before_anything_is_read(coco: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    put(foreign / "mine.json", {})
    link = tmp_path / "link"
    link.symlink_to(coco)
    for out, more, said in (
        (tmp_path / "x", ["--images", "0"], "--images must be at least 1, got 0"),
        (tmp_path / "x", ["--draws", "0"], "--draws must be at least 1, got 0"),
        (coco / "mini", [], "lies in --coco"),
        (coco, [], "lies in --coco"),
        (link / "mini", [], "lies in --coco"),
        (foreign, [], "holds something that"),
        (foreign / "mine.json", [], "holds something that"),
    ):
        with pytest.raises(RunError, match=said):
            minitrain(coco, out, *more)
    with pytest.raises(DataError, match="there is no such folder"):
        minitrain(tmp_path / "none", tmp_path / "x")
    with pytest.raises(DataError, match="no annotations found"):
        minitrain(foreign, tmp_path / "x")
    (coco / "annotations" / "instances_train2017.json").unlink()
    with pytest.raises(DataError, match="has annotations of val, none of train"):
        minitrain(coco, tmp_path / "x")
    with pytest.raises(SystemExit):
        minitrain(coco, tmp_path / "x", "--ids", "a", "--annotations", "b")
    assert not (tmp_path / "x").exists()


def test_a_failure_leaves_the_earlier_folder(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mini"
    assert minitrain(coco, out, "--images", "6") == 0
    before = (out / "minitrain.json").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name, more, said in (
        ("_link", [], "no links can be made there .*--copy"),
        ("put_in_place", [], "cannot write .*No space left"),
        ("shutil.copyfile", ["--copy"], "cannot write .*No space left"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{minitrain_folder.__name__}.{name}", fail)
            with pytest.raises(RunError, match=said):
                minitrain(coco, out, "--images", "4", *more)
        assert (out / "minitrain.json").read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mini"]


def test_names_of_classes_and_folders_are_shown_as_they_are(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = coco / "annotations" / "instances_train2017.json"
    content = read(path)
    content["categories"] = [{**c, "name": f"[b]{c['name']} 猫"} for c in content["categories"]]
    put(path, content)
    put(coco / "annotations" / "instances_val2017.json",
        {**read(coco / "annotations" / "instances_val2017.json"),
         "categories": content["categories"]})  # fmt: skip
    moved = coco.rename(coco.with_name("[red]"))
    assert minitrain(moved, tmp_path / "[b]", "--images", "12") == 0
    said = capsys.readouterr().out
    assert "[red]" in said
    assert "[b]:" in said
    assert len(discover(tmp_path / "[b]").splits["train"]) == 12
