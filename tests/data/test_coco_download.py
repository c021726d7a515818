"""COCO from a local server with small archives of its layout, interrupted at every place."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_server import Server
from PIL import Image, ImageDraw

from rankdet.data import coco_download
from rankdet.data.coco_download import (
    COCO_2017,
    Archive,
    Outcome,
    Release,
    Split,
    compare_names,
    download_coco,
    needed_space,
)
from rankdet.data.discover import discover
from rankdet.data.download import download
from rankdet.data.errors import DataError

COUNTS = {"train": 5, "val": 3}
ALL = [Outcome("train", 5, True), Outcome("val", 3, True)]


def picture(number: int) -> bytes:
    image = Image.new("RGB", (32, 24), (number * 20, 90, 60))
    ImageDraw.Draw(image).rectangle((4, 5, 20, 18), fill=(200, number * 9, 30))
    made = io.BytesIO()
    image.save(made, "JPEG")
    return made.getvalue()


def annotated(split: str) -> bytes:
    count = COUNTS[split]
    first = 100 if split == "val" else 0
    images = [
        {"id": first + i, "file_name": f"{first + i:012}.jpg", "width": 32, "height": 24}
        for i in range(count)
    ]
    boxes = [
        {"id": first + i, "image_id": first + i, "category_id": 18, "bbox": [4, 5, 16, 13],
         "area": 208, "iscrowd": 0, "segmentation": [[4, 5, 20, 5, 20, 18]]}
        for i in range(count)
    ]  # fmt: skip
    categories = [{"id": 18, "name": "dog", "supercategory": "animal"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    return json.dumps(content).encode()


def zipped(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def members(split: str) -> dict[str, bytes]:
    first = 100 if split == "val" else 0
    names = [f"{split}2017/{first + i:012}.jpg" for i in range(COUNTS[split])]
    return {f"{split}2017/": b""} | {name: picture(i) for i, name in enumerate(names)}


@pytest.fixture(scope="module")
def archives() -> dict[str, bytes]:
    texts = {f"annotations/instances_{split}2017.json": annotated(split) for split in COUNTS}
    texts |= {f"annotations/captions_{split}2017.json": b"{}" for split in COUNTS}
    return {
        "/annotations/annotations_trainval2017.zip": zipped(texts),
        **{f"/zips/{split}2017.zip": zipped(members(split)) for split in COUNTS},
    }


def entry(archives: dict[str, bytes], path: str) -> Archive:
    content = archives[f"/{path}"]
    return Archive(path, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def release(archives: dict[str, bytes]) -> Release:
    return Release(
        entry(archives, "annotations/annotations_trainval2017.zip"),
        {
            split: Split(entry(archives, f"zips/{split}2017.zip"), count, len(annotated(split)))
            for split, count in COUNTS.items()
        },
    )


@pytest.fixture
def server(archives: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setenv("no_proxy", "*")
    with Server(dict(archives)) as running:
        yield running


def get(server: Server, out: Path, release: Release, **settings: Any) -> list[Outcome]:
    return download_coco(out, base_url=f"{server.url}/", release=release, **settings)


def is_whole(out: Path, splits: tuple[str, ...] = ("train", "val")) -> bool:
    held = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    wanted = [".rankdet-coco2017"]
    for split in splits:
        wanted += [f"annotations/instances_{split}2017.json"]
        wanted += [name for name in members(split) if name.endswith("jpg")]
    right = all((out / n).read_bytes() == c for s in splits for n, c in members(s).items() if c)
    return held == sorted(wanted) and right


def paths(server: Server) -> list[str]:
    return [request.path.rpartition("/")[2] for request in server.requests]


def test_all_is_fetched_unpacked_verified_and_read(
    server: Server, tmp_path: Path, release: Release
) -> None:
    out = tmp_path / "deep" / "coco"
    shown: list[tuple[str, int, int | None]] = []
    notes: list[str] = []
    assert get(server, out, release, progress=lambda *c: shown.append(c), note=notes.append) == ALL
    assert is_whole(out)
    assert paths(server) == ["annotations_trainval2017.zip", "train2017.zip", "val2017.zip"]
    whats = list(dict.fromkeys(what for what, _, _ in shown))
    assert whats == [
        f"{verb} {name}" for name in paths(server) for verb in ("fetching", "unpacking")
    ]
    assert all(any(w == what and done == total for w, done, total in shown) for what in whats)
    assert len(notes) == 1
    assert "train and val: " in notes[0]
    found = discover(out)
    assert found.layout == "COCO json"
    assert {name: len(split) for name, split in found.splits.items()} == COUNTS
    assert all(split.problems == () for split in found.splits.values())


def test_a_finished_folder_is_left_alone(server: Server, tmp_path: Path, release: Release) -> None:
    get(server, tmp_path, release)
    server.requests.clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = get(server, tmp_path, release)
    assert again == [replace(outcome, fetched=False) for outcome in ALL]
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_splits_come_one_by_one(server: Server, tmp_path: Path, release: Release) -> None:
    assert get(server, tmp_path, release, splits=["val"]) == ALL[1:]
    assert is_whole(tmp_path, ("val",))
    assert list(discover(tmp_path).splits) == ["val"]
    server.requests.clear()
    assert get(server, tmp_path, release) == [ALL[0], replace(ALL[1], fetched=False)]
    assert is_whole(tmp_path)
    assert "val2017.zip" not in paths(server)
    with pytest.raises(ValueError, match="splits are train, val; got test"):
        get(server, tmp_path, release, splits=["test"])


def test_archives_are_kept_if_asked(server: Server, tmp_path: Path, release: Release) -> None:
    get(server, tmp_path, release, keep_archives=True)
    names = ["annotations_trainval2017.zip", "train2017.zip", "val2017.zip"]
    assert sorted(path.name for path in (tmp_path / "archives").iterdir()) == names
    # They are still kept when they serve again without being asked for.
    server.requests.clear()
    (tmp_path / "val2017" / f"{100:012}.jpg").unlink()
    notes: list[str] = []
    get(server, tmp_path, release, note=notes.append)
    assert server.requests == []
    assert "2 of 3 images are there" in notes[0]
    assert sorted(path.name for path in (tmp_path / "archives").iterdir()) == names


def test_archives_of_an_interrupted_call_are_kept_if_asked_then(
    server: Server, tmp_path: Path, release: Release
) -> None:
    def stop(what: str, done: int, total: int | None) -> None:
        if (what, done) == ("unpacking train2017.zip", total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, release, progress=stop)
    get(server, tmp_path, release, keep_archives=True)
    assert len(list((tmp_path / "archives").glob("*.zip"))) == 3


def test_archives_put_there_by_hand_are_used_and_kept(
    server: Server, tmp_path: Path, release: Release, archives: dict[str, bytes]
) -> None:
    own = tmp_path / "archives" / "train2017.zip"
    own.parent.mkdir()
    own.write_bytes(archives["/zips/train2017.zip"])
    assert get(server, tmp_path, release) == ALL
    assert "train2017.zip" not in paths(server)
    assert [path.name for path in own.parent.iterdir()] == ["train2017.zip"]
    own.write_bytes(b"something else")
    (tmp_path / ".rankdet-coco2017").unlink()
    shutil.rmtree(tmp_path / "train2017")
    with pytest.raises(DataError, match=r"train2017\.zip: is there already, but with 14 bytes"):
        get(server, tmp_path, release)


def test_what_is_there_already_is_not_fetched(
    server: Server, tmp_path: Path, release: Release
) -> None:
    get(server, tmp_path, release)
    (tmp_path / ".rankdet-coco2017").unlink()
    server.requests.clear()
    notes: list[str] = []
    again = get(server, tmp_path, release, note=notes.append)
    assert again == [replace(outcome, fetched=False) for outcome in ALL]
    assert server.requests == []
    assert "all 5 images are there; their content was not compared" in notes[0]
    assert is_whole(tmp_path)


def test_as_many_images_of_other_names_are_not_complete(
    server: Server, tmp_path: Path, release: Release
) -> None:
    get(server, tmp_path, release)
    (tmp_path / ".rankdet-coco2017").unlink()
    (tmp_path / "val2017" / f"{100:012}.jpg").rename(tmp_path / "val2017" / "mine.jpg")
    assert get(server, tmp_path, release) == [replace(ALL[0], fetched=False), ALL[1]]
    (tmp_path / "val2017" / "mine.jpg").unlink()
    assert is_whole(tmp_path)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"finished": [], "ours": []}'])
def test_a_damaged_record_is_no_obstacle(
    server: Server, tmp_path: Path, release: Release, record: str
) -> None:
    get(server, tmp_path, release)
    (tmp_path / ".rankdet-coco2017").write_text(record)
    get(server, tmp_path, release)
    assert is_whole(tmp_path)


def test_cut_off_transfers_and_a_failing_server(
    server: Server, tmp_path: Path, release: Release
) -> None:
    server.cuts = [100, 50, 1000, 10**9, 2000]
    server.failures = [500, 503]
    assert get(server, tmp_path, release) == ALL
    assert is_whole(tmp_path)
    assert sum(r.sent for r in server.requests) == sum(map(len, server.files.values()))


@pytest.mark.parametrize("anew", [True, False])
def test_interrupted_anywhere_it_goes_on(
    server: Server, tmp_path: Path, release: Release, anew: bool
) -> None:
    # Ctrl-C at the first thing that is shown or said, then at the second, ... to the last.
    for last in range(1, 100):
        out = tmp_path / str(last if anew else 0)
        steps = 0

        def step(*_: object, last: int = last) -> None:
            nonlocal steps
            steps += 1
            if steps == last:
                raise KeyboardInterrupt

        server.cuts = [700] * 3
        server.requests.clear()
        try:
            get(server, out, release, progress=step, note=step)
            break
        except KeyboardInterrupt:
            if anew:
                get(server, out, release)
                assert is_whole(out)
                # Nothing was sent twice.
                assert sum(r.sent for r in server.requests) == sum(map(len, server.files.values()))
    assert last > 10
    assert is_whole(out)


def test_an_interrupted_member_is_not_under_its_own_name(
    server: Server, tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, calls = shutil.copyfileobj, 0
    there: list[str] = []

    def stop(source: Any, file: Any, length: int) -> None:
        nonlocal calls
        calls += 1
        copy(source, file, length)
        if calls == 5:
            # A power cut would leave what lies there now.
            there.extend(sorted(path.name for path in (tmp_path / "train2017").iterdir()))
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", stop)
    with pytest.raises(DataError, match=r"00002\.jpg: the disk is full; free some space and run"):
        get(server, tmp_path, release)
    names = sorted(path.name for path in (tmp_path / "train2017").iterdir())
    assert names == [f"{i:012}.jpg" for i in range(2)]
    assert there == [".000000000002.jpg.part", *names]
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    kept = {name: (tmp_path / "train2017" / name).stat().st_mtime_ns for name in names}
    server.requests.clear()
    assert get(server, tmp_path, release) == ALL
    assert is_whole(tmp_path)
    assert paths(server) == ["val2017.zip"]
    assert all((tmp_path / "train2017" / n).stat().st_mtime_ns == t for n, t in kept.items())


def test_a_wrong_checksum_stops_before_anything_is_unpacked(
    server: Server, tmp_path: Path, release: Release
) -> None:
    content = bytearray(server.files["/zips/train2017.zip"])
    content[500] ^= 1
    server.files["/zips/train2017.zip"] = bytes(content)
    with pytest.raises(DataError, match=r"zips/train2017\.zip: the checksum is wrong") as caught:
        get(server, tmp_path, release)
    assert "is deleted" in str(caught.value)
    assert not (tmp_path / "train2017").exists()
    assert not list((tmp_path / "archives").glob("train*"))


def test_a_truncated_archive_with_a_matching_checksum(
    server: Server, tmp_path: Path, release: Release
) -> None:
    content = server.files["/zips/val2017.zip"][:-200]
    server.files["/zips/val2017.zip"] = content
    cut = Archive("zips/val2017.zip", len(content), hashlib.sha256(content).hexdigest())
    splits = {"val": replace(release.splits["val"], archive=cut)}
    with pytest.raises(DataError, match=r"val2017\.zip: is cut off, damaged, or no zip archive"):
        get(server, tmp_path, replace(release, splits=splits), splits=["val"])


def test_images_that_the_archive_lacks(server: Server, tmp_path: Path, release: Release) -> None:
    short = members("val")
    del short[f"val2017/{101:012}.jpg"]
    content = server.files["/zips/val2017.zip"] = zipped(short)
    fewer = Archive("zips/val2017.zip", len(content), hashlib.sha256(content).hexdigest())
    splits = {"val": replace(release.splits["val"], archive=fewer)}
    with pytest.raises(DataError, match=r"1 of 3 images .* \(000000000101\.jpg\)"):
        get(server, tmp_path, replace(release, splits=splits), splits=["val"])
    assert compare_names(tmp_path, "val") == (3, ["000000000101.jpg"])


def test_annotations_of_ones_own_are_not_overwritten(
    server: Server, tmp_path: Path, release: Release
) -> None:
    own = tmp_path / "annotations" / "instances_val2017.json"
    own.parent.mkdir()
    own.write_text("{}")
    with pytest.raises(DataError, match=r"instances_val2017\.json: is there with other content"):
        get(server, tmp_path, release)
    assert own.read_text() == "{}"
    # Without them, train comes.
    assert get(server, tmp_path, release, splits=["train"]) == ALL[:1]


def test_no_room_is_told_before_anything_is_fetched(
    server: Server, tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    peak, after = needed_space(COUNTS, release=release)
    free = peak - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 0, free))
    with pytest.raises(DataError, match=r"COCO 2017 \(train and val\) needs .*; free 1 bytes more"):
        get(server, tmp_path, release)
    assert server.requests == []
    free = peak
    assert get(server, tmp_path, release) == ALL
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= after


@pytest.mark.parametrize("keep", [True, False])
def test_the_space_said_is_enough_for_what_lies_there(
    server: Server, tmp_path: Path, release: Release, keep: bool
) -> None:
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()))

    get(server, tmp_path, release, keep_archives=keep, progress=look)
    blocks = sum(COUNTS.values()) * 2048
    assert (
        most <= needed_space(COUNTS, keep_archives=keep, release=release)[0] <= most + blocks + 4096
    )


def test_the_space_of_the_real_one() -> None:
    peak, after = needed_space(COCO_2017.splits)
    assert 39e9 < peak < 42e9
    assert 20.5e9 < after < 21.5e9
    assert needed_space(["val"], keep_archives=True)[1] == needed_space(["val"])[0]
    assert sum(map(len, (a.sha256 for a in archives_of(COCO_2017)))) == 3 * 64


def archives_of(release: Release) -> list[Archive]:
    return [release.annotations, *(split.archive for split in release.splits.values())]


def test_a_mirror_without_the_files(server: Server, tmp_path: Path, release: Release) -> None:
    with pytest.raises(DataError, match=r"/no/annotations/annotations_trainval2017\.zip: .* 404"):
        download_coco(tmp_path, base_url=f"{server.url}/no", release=release)


def test_folders_that_cannot_be_written_to(
    server: Server, tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file: this is a file; name a folder"):
        get(server, tmp_path / "file", release)

    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbid)
    with pytest.raises(DataError, match="new: no permission to write; name another folder"):
        get(server, tmp_path / "new", release)
    assert server.requests == []


def test_broken_annotations_are_told(tmp_path: Path) -> None:
    path = tmp_path / "annotations" / "instances_val2017.json"
    with pytest.raises(DataError, match=r"instances_val2017\.json: no COCO annotations"):
        compare_names(tmp_path, "val")
    path.parent.mkdir()
    for content in ("", "{", "[]", '{"images": [{}]}', '{"images": 3}'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"instances_val2017\.json: no COCO annotations"):
            compare_names(tmp_path, "val")


def test_the_official_server_is_the_default(
    server: Server, tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def here(url: str, target: Path, **settings: Any) -> bool:
        asked.append(url)
        return download(
            url.replace("http://images.cocodataset.org", server.url), target, **settings
        )

    monkeypatch.setattr(coco_download, "download", here)
    assert download_coco(tmp_path, release=release) == ALL
    assert asked == [
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        "http://images.cocodataset.org/zips/train2017.zip",
        "http://images.cocodataset.org/zips/val2017.zip",
    ]
