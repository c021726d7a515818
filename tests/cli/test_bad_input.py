"""Faulty data end with a message that names them, a code that is not 0, and nothing written."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from short_runs import settings

from rankdet.cli.main import main


def _annotations(folder: Path) -> Path:
    return folder / "annotations" / "train.json"


def _edit(folder: Path, change: Callable[[dict[str, list[dict[str, Any]]]], object]) -> None:
    content = json.loads(_annotations(folder).read_text())
    change(content)
    _annotations(folder).write_text(json.dumps(content))


def cut_off(folder: Path) -> str:
    text = _annotations(folder).read_text()
    _annotations(folder).write_text(text[: len(text) // 2])
    return "train.json"


def no_annotations(folder: Path) -> str:
    shutil.rmtree(folder / "annotations")
    return "annotations"


def unknown_category(folder: Path) -> str:
    _edit(folder, lambda content: content["annotations"][3].update(category_id=99))
    return "99"


def missing_images(folder: Path) -> str:
    for path in (folder / "images").glob("train*"):
        path.unlink()
    return "train_0000"


def corners_for_sizes(folder: Path) -> str:
    def change(content: dict[str, list[dict[str, Any]]]) -> None:
        for entry in content["annotations"]:
            x, y, width, height = entry["bbox"]
            entry["bbox"] = [x, y, x + width, y + height]

    _edit(folder, change)
    return "COCO wants [x1, y1, x2 - x1, y2 - y1]"


def no_boxes_at_all(folder: Path) -> str:
    _edit(folder, lambda content: content.update(annotations=[]))
    return "nothing to learn"


def not_an_image(folder: Path) -> str:
    for path in (folder / "images").glob("train*"):
        path.write_bytes(path.read_bytes()[:60])
    return "train_0000"


FAULTS = (cut_off, no_annotations, unknown_category, missing_images, corners_for_sizes,
          no_boxes_at_all, not_an_image)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_data_are_named(
    fault: Callable[[Path], str], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(digits, folder)
    said = fault(folder)
    arguments = ["train", "--data", str(folder), "--recipe", "demo", "--out", str(out)]
    assert main([*arguments, *settings()]) == 1
    assert said.lower() in capsys.readouterr().err.replace("\n", "").lower()
    assert not (out / "best.safetensors").exists()


def test_one_image_that_is_none_stops_a_run_before_it_begins(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(digits, folder)
    bad = sorted((folder / "images").glob("train*"))[2]
    bad.write_bytes(b"")
    arguments = ["train", "--data", str(folder), "--recipe", "demo", "--out", str(out)]
    assert main([*arguments, *settings()]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"1 image cannot be used as annotated, the first: {bad}: does not decode" in said
    assert not out.exists()


def test_a_run_that_meets_a_damaged_image_says_how_to_go_on(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(digits, folder)
    for path in (folder / "images").glob("train*"):
        path.write_bytes(path.read_bytes()[:3000])  # opens, but does not decode
    arguments = ["train", "--data", str(folder), "--recipe", "demo", "--out", str(out)]
    assert main([*arguments, *settings()]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "does not decode" in said
    assert f"then rankdet train --resume {out}" in said
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    assert main(["train", "--resume", str(out)]) == 0
    assert (out / "best.safetensors").is_file()


def test_single_bad_boxes_are_left_out_and_reported(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(digits, folder)

    def change(content: dict[str, list[dict[str, Any]]]) -> None:
        boxes = content["annotations"]
        boxes[0]["bbox"] = [1, 1, 0, 5]
        boxes[1]["bbox"] = [200, 200, 5, 5]
        boxes[2]["bbox"] = [None, 1, 5, 5]
        del boxes[-1]["bbox"]
        content["images"][0]["file_name"] = "gone.png"

    _edit(folder, change)
    assert main(["data", "check", str(folder), "--images", "0"]) == 0
    said = capsys.readouterr().out
    assert "Problems in train" in said
    assert "gone.png" in said.replace("\n", "")
    assert "bbox is missing (a segmentation alone is not read)" in " ".join(said.split())


def test_a_folder_that_must_not_be_written_to(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["train", "--data", str(digits), "--recipe", "demo"]
    assert main([*arguments, "--out", str(tmp_path / "file" / "run"), *settings()]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_what_is_there_is_not_overwritten(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    arguments = ["train", "--data", str(digits), "--recipe", "demo", "--out", str(tmp_path)]
    assert main([*arguments, *settings()]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_told_whoever_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "events.out")

    monkeypatch.setattr("rankdet.cli.data.run_digits", full)
    assert main(["data", "digits", "--out", str(tmp_path / "d")]) == 1
    assert "cannot write events.out: the disk is full" in capsys.readouterr().err

    def gone(_: object) -> int:
        raise FileNotFoundError("a fault of the program")

    monkeypatch.setattr("rankdet.cli.data.run_digits", gone)
    with pytest.raises(FileNotFoundError):
        main(["data", "digits", "--out", str(tmp_path / "d")])


def test_a_full_disk_under_the_log_is_told_without_a_trace(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard writes in a thread, whose error arrives with a later row."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    out = tmp_path / "run"
    arguments = ["train", "--data", str(digits), "--recipe", "demo", "--out", str(out)]
    assert main([*arguments, *settings()]) == 1
    said = capfd.readouterr().err
    assert f"cannot write {out / 'tensorboard'}: the disk is full" in said
    assert "Traceback" not in said


def test_a_truncated_state_is_refused(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--data", str(digits), "--recipe", "demo", "--out", str(out)]
    assert main([*arguments, *settings("schedule.steps=2")]) == 0
    state = out / "last.ckpt"
    state.write_bytes(state.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["train", "--resume", str(out)]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "last.ckpt cannot be read as the state of a run" in said
    assert "whose last.ckpt is removed begins again" in said
    assert (out / "best.safetensors").is_file()
