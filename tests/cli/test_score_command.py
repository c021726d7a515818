"""`rankdet score`: the numbers of the library, files complete or absent, faults named."""

from __future__ import annotations

import copy
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rankdet.cli.main import main
from rankdet.cli.score import bins, image_reader, stem, write_together
from rankdet.engine.files import RunError
from rankdet.eval import Score, score

Truth = dict[str, Any]
Found = list[dict[str, Any]]


def data() -> tuple[Truth, Found]:
    """Six images with 20 objects of two classes, and detections that are not all right."""
    random = np.random.default_rng(0)
    truth: Truth = {
        "images": [
            {"id": i, "width": 100, "height": 80, "file_name": f"{i}.png"} for i in range(1, 7)
        ],
        "categories": [{"id": 3, "name": "猫"}, {"id": 8, "name": "[b]dog"}],
        "annotations": [],
    }
    found: Found = []
    for number in range(20):
        x, y = random.uniform(0, [60, 40]).round(1).tolist()
        box = [x, y, 30.0, 25.0 + number % 3]
        where = {"image_id": number % 6 + 1, "category_id": (3, 8)[number % 4 == 0]}
        truth["annotations"].append({"id": number + 1, **where, "bbox": box})
        shifted = [x + number % 5, y, *box[2:]]
        found.append({**where, "bbox": shifted, "score": round(0.9 - 0.03 * number, 3)})
        if number % 3 == 0:
            found.append({**where, "bbox": [70.0, 55.0, 20.0, 20.0], "score": 0.4})
    return truth, found


class Files:
    """A folder with ground truth, detections, and what is to be written."""

    def __init__(self, folder: Path) -> None:
        self.truth, self.found = folder / "truth.json", folder / "found.json"
        self.json, self.html = folder / "out" / "score.json", folder / "out" / "report.html"
        truth, found = data()
        self.truth.write_text(json.dumps(truth))
        self.found.write_text(json.dumps(found))

    @property
    def named(self) -> list[str]:
        return ["--ground-truth", str(self.truth), "--detections", str(self.found)]

    @property
    def written(self) -> list[str]:
        return ["--json", str(self.json), "--html", str(self.html)]

    def score(self, *more: str) -> int:
        return main(["score", *self.named, *self.written, *more])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_the_numbers_are_those_of_the_library(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.score() == 0
    expected = score(*data())
    assert Score.from_json(json.loads(files.json.read_text())) == expected
    said = capsys.readouterr().out
    assert f"{expected.AP:.3f}" in said
    assert "[b]dog" in said, "names are shown as they are"
    assert "fewer than 10 objects" in said
    page = files.html.read_text(encoding="utf-8")
    assert f"{expected.oLRP:.3f}" in page
    assert "found on truth" in page
    assert {p.name for p in files.json.parent.iterdir()} == {"score.json", "report.html"}


def test_gzip_gives_the_same_and_nothing_needs_to_be_written(files: Files, tmp_path: Path) -> None:
    assert files.score() == 0
    packed = []
    for path in (files.truth, files.found):
        packed.append(tmp_path / f"{path.name}.gz")
        packed[-1].write_bytes(gzip.compress(path.read_bytes()))
    again = tmp_path / "again.json"
    names = ["--ground-truth", str(packed[0]), "--detections", str(packed[1])]
    assert main(["score", *names, "--json", str(again)]) == 0
    assert again.read_text() == files.json.read_text()
    before = sorted(tmp_path.iterdir())
    assert main(["score", *files.named]) == 0
    assert sorted(tmp_path.iterdir()) == before


def test_settings_reach_the_score(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        files.score("--bins", "0-2,3,4+", "--tau", "0.7", "--few", "3", "--threshold", "0.6") == 0
    )
    expected = score(*data(), bins=((0, 2), (3, 3), (4, None)), tau=0.7, few=3, threshold=0.6)
    assert Score.from_json(json.loads(files.json.read_text())) == expected
    assert "At the thresholds asked for" in capsys.readouterr().out
    assert "At the thresholds that were asked for" in files.html.read_text(encoding="utf-8")


def test_thresholds_of_another_split_can_be_tried(files: Files, tmp_path: Path) -> None:
    assert files.score() == 0
    own = json.loads(files.json.read_text())
    again = tmp_path / "again.json"
    options = ["--thresholds", str(files.json), "--json", str(again)]
    assert main(["score", *files.named, *options]) == 0
    at = json.loads(again.read_text())["at_threshold"]
    # All scores differ, so that the own thresholds reach the own optimum.
    assert at["LRP"] == pytest.approx(own["oLRP"], abs=1e-12)
    assert {each["name"]: each["threshold"] for each in at["per_class"]} == own["thresholds"]
    alone = tmp_path / "thresholds.json"
    alone.write_text(json.dumps({"猫": 0.5}))
    assert main(["score", *files.named, "--thresholds", str(alone), "--json", str(again)]) == 0
    classes = json.loads(again.read_text())["at_threshold"]["per_class"]
    assert [(each["threshold"], each["right"] > 0) for each in classes] == [
        (0.5, True), (None, False)
    ]  # fmt: skip


def test_pictures_are_found(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    assert files.score("--images", str(folder)) == 1
    said = capsys.readouterr().err
    assert "none of the 6 images is there, the first is '1.png'" in said
    assert not files.json.exists()
    assert main(["score", *files.named, "--images", str(folder)]) == 1
    assert "add --html" in capsys.readouterr().err
    for number in (1, 2, 3):
        Image.new("RGB", (100, 80), (number * 40, 90, 90)).save(folder / f"{number}.png")
    (folder / "4.png").write_text("no image")
    Image.new("RGB", (10, 10)).save(folder / "5.png")  # of another size than its boxes
    assert files.score("--images", str(folder)) == 0
    page = files.html.read_text(encoding="utf-8")
    assert 'id="pictures"' in page
    assert "data:image/jpeg" in page
    reader = image_reader(data()[0], folder)
    assert [reader(n) is not None for n in range(1, 7)] == [True] * 3 + [False] * 3
    unknown = {"images": [{"id": 1, "file_name": "somewhere\\else\\1.png"}]}
    pixels = image_reader(unknown, folder)(1)
    assert pixels is not None
    assert pixels.shape == (80, 100, 3)


def test_empty_detections_are_valid(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.found.write_text("[]")
    assert files.score() == 0
    found = json.loads(files.json.read_text())
    assert (found["AP"], found["oLRP"], found["oLRP_fn"]) == (0, 1, 1)
    assert "There are no detections." in capsys.readouterr().out


def test_detections_of_few_of_the_images_are_warned_of(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = data()
    for most, warned in ((3, False), (2, True)):  # of six
        files.found.write_text(json.dumps([one for one in found if one["image_id"] <= most]))
        assert files.score() == 0
        said = " ".join(capsys.readouterr().out.split())
        assert (
            f"{6 - most} of the 6 images with objects have no detection at all" in said
        ) == warned


def test_corners_for_sizes_are_warned_of(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = data()
    for each in found:
        x, y, width, height = each["bbox"]
        each["bbox"] = [x, y, x + width, y + height]
    for sizes in (True, False):
        if not sizes:
            truth["images"] = [{"id": each["id"]} for each in truth["images"]]
        files.truth.write_text(json.dumps(truth))
        files.found.write_text(json.dumps(found))
        assert files.score() == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "boxes of detections reach beyond their image, the first" in said
        assert "Write x1, y1, x2 - x1, y2 - y1." in said
        assert "are these two corners?" in files.html.read_text(encoding="utf-8")


Fault = Callable[[Truth, Found], object]


def change(part: str, number: int, **values: Any) -> Fault:
    """Return what changes one record; `...` removes a key."""

    def apply(truth: Truth, found: Found) -> None:
        record = truth.get(part, found)[number]
        record.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del record[key]

    return apply


# What is wrong, in which file, and what the message names.
FAULTS: dict[str, tuple[str, Fault, list[str]]] = {
    "unknown image": (
        "found", change("found", 2, image_id=77),
        ["detections[2]", "image_id 77", "same data set and split?"],
    ),
    "unknown category": (
        "found", change("found", 2, category_id=5),
        ["detections[2]", "category_id 5", "knows 2 category ids"],
    ),
    "ids as text": (
        "found", change("found", 1, image_id="1"), ["detections[1]", "write it as the number 1"],
    ),
    "ids of images as text": (
        "truth", change("images", 1, id="2"), ["images[1]", "whole number, got '2': write 2"],
    ),
    "NaN score": (
        "found", change("found", 4, score=float("nan")),
        ["detections[4]", "score is nan", "leave these records out"],
    ),
    "infinite score": (
        "found", change("found", 4, score=float("-inf")), ["detections[4]", "score is -inf"],
    ),
    "score as text": ("found", change("found", 0, score="0.5"), ["detections[0]", "got '0.5'"]),
    "negative box": (
        "found", change("found", 3, bbox=[9, 9, -4, 5]),
        ["detections[3]", "[9.0, 9.0, -4.0, 5.0]", "x1, y1, x2 - x1, y2 - y1"],
    ),
    "empty box": (
        "found", change("found", 3, bbox=[9, 9, 4, 0]),
        ["detections[3]", "[9.0, 9.0, 4.0, 0.0]", "no height", "--empty-boxes"],
    ),
    "box of three": ("found", change("found", 3, bbox=[1, 2, 3]), ["detections[3]", "[1, 2, 3]"]),
    "empty object": (
        "truth", change("annotations", 5, bbox=[9, 9, 0, 5]),
        ["annotations[5]", "no width", "correct them"],
    ),
    "negative object": (
        "truth", change("annotations", 5, bbox=[9, 9, 5, -5]), ["annotations[5]", "negative"],
    ),
    "annotation twice": (
        "truth", change("annotations", 5, id=2), ["id 2", "annotations[1] and annotations[5]"],
    ),
    "image twice": ("truth", change("images", 5, id=2), ["id 2", "images[1] and images[5]"]),
    "category twice": (
        "truth", change("categories", 1, id=3), ["categories[0] and categories[1]", "its own"],
    ),
    "no score": (
        "found", change("found", 2, score=...),
        ["detections[2] has no 'score'", "image_id, category_id, bbox, score"],
    ),
    "no box": ("truth", change("annotations", 2, bbox=...), ["annotations[2] has no 'bbox'"]),
    "no categories": (
        "truth", lambda truth, _: truth.pop("categories"), ["'categories' is missing"],
    ),
    "empty categories": (
        "truth", lambda truth, _: truth.update(categories=[]), ["has no categories", "Add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_faulty_record_is_named_and_nothing_is_written(
    kind: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    which, fault, named = FAULTS[kind]
    truth, found = data()
    fault(truth, found)
    files.truth.write_text(json.dumps(truth))
    files.found.write_text(json.dumps(found))
    assert files.score() == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"rankdet: error: {getattr(files, which)}: ")
    for text in named:
        assert text in said.err
    assert "Traceback" not in said.err
    assert not files.json.parent.exists()
    if kind in ("empty box", "empty object"):
        assert files.score("--empty-boxes") == 0


def _whole(path: Path) -> bytes:
    return path.read_bytes()


# What the whole file becomes, and what is said of it.
SPOILT: dict[str, tuple[Callable[[Path], bytes | None], str]] = {
    "no JSON": (lambda _: b"score,x,y\n0.5,1,2\n", "no valid JSON at line 1"),
    "cut off": (lambda p: _whole(p)[: len(_whole(p)) // 2], "cut off; copy or write it again"),
    "gzip cut off": (
        lambda p: gzip.compress(_whole(p))[:60], "gzip content is cut off or damaged"
    ),
    "empty": (lambda _: b"", "the file is empty"),
    "absent": (lambda _: None, "there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize("which", ["truth", "found"])
@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_file_is_named_and_nothing_is_written(
    kind: str, which: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = getattr(files, which)
    spoil, message = SPOILT[kind]
    content = spoil(path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert files.score() == 1
    said = capsys.readouterr().err
    assert said.startswith(f"rankdet: error: {path}: ")
    assert message in said
    assert not files.json.parent.exists()


def test_folders_wrong_kinds_and_swapped_files_are_named(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(truth: Path, found: Path) -> str:
        names = ["--ground-truth", str(truth), "--detections", str(found)]
        assert main(["score", *names, *files.written]) == 1
        assert not files.json.parent.exists()
        return capsys.readouterr().err

    assert "this is a folder; name a file, such as found.json" in said(files.truth, tmp_path)
    assert "these look like detections" in said(files.found, files.truth).lower()
    wrapped = tmp_path / "wrapped.json"
    wrapped.write_text(json.dumps({"results": data()[1]}))
    assert "found an object with 'results'. Write the list" in said(files.truth, wrapped)


def test_what_is_there_stays_where_scoring_fails(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.score() == 0
    before = (files.json.read_bytes(), files.html.read_bytes())
    files.found.write_bytes(files.found.read_bytes()[:-30])
    assert files.score() == 1
    assert (files.json.read_bytes(), files.html.read_bytes()) == before
    files.found.write_text(json.dumps(data()[1]))
    # The report cannot be written, so the numbers are not written either.
    (tmp_path / "file").write_text("")
    numbers = tmp_path / "numbers.json"
    unwritable = ["--html", str(tmp_path / "file" / "report.html")]
    assert main(["score", *files.named, "--json", str(numbers), *unwritable]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert not numbers.exists()
    for other in (["--json", str(tmp_path)], ["--json", str(files.found)],
                  ["--html", str(numbers), "--json", str(numbers)]):  # fmt: skip
        assert main(["score", *files.named, *other]) == 1
    said = capsys.readouterr().err
    assert "is a folder; name a file in it" in said
    assert said.count("named twice") == 2
    assert json.loads(files.found.read_text()) == data()[1]


def test_several_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    def fails(_: Path) -> None:
        raise OSError(28, "No space left on device")

    def writes(part: Path) -> None:
        part.write_text("x")

    for order in ((writes, fails), (fails, writes)):
        with pytest.raises(RunError, match="the disk is full"):
            write_together([(tmp_path / name, write)
                            for name, write in zip("ab", order, strict=True)])  # fmt: skip
        assert list(tmp_path.iterdir()) == []
    write_together([(tmp_path / "a", writes), (tmp_path / "b", writes)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_threshold_of_no_class_is_named(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps({"horse": 0.5}))
    assert files.score("--thresholds", str(path)) == 1
    said = capsys.readouterr().err
    assert str(path) in said
    assert "class 'horse'" in said
    assert "its classes are 猫, [b]dog" in said


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--bins", "0-3,3-5"], "ascend"),
        (["--bins", "5-4"], "ascend"),
        (["--bins", "3+,4-5"], "ascend"),
        (["--bins", "a"], "'a' is no range"),
        (["--bins", "1-2+"], "is no range"),
        (["--bins", "-3"], "is no range"),
        (["--tau", "1"], "above 0 and below 1"),
        (["--threshold", "nan"], "finite"),
        (["--few", "-1"], "0 or more"),
        (["--threshold", "0.5", "--thresholds", "x"], "not allowed with"),
        (["--threshold", "high"], "invalid"),
    ],
)
def test_wrong_calls_end_with_2(
    option: list[str], message: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        files.score(*(f"{option[0]}={option[1]}", *option[2:]))
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_ranges_and_names_of_files() -> None:
    assert bins("0,1-4, 5+") == ((0, 0), (1, 4), (5, None))
    assert [stem(Path(name)) for name in ("a/b.json", "b.json.gz", "b.c.gz", "b")] == [
        "b", "b", "b.c", "b"
    ]  # fmt: skip


def test_scoring_imports_no_torch(files: Files) -> None:
    script = (
        "import sys; from rankdet.cli.main import main; "
        f"code = main({['score', *files.named, *files.written]!r}); "
        "print(code, sorted({'torch', 'faster_coco_eval', 'pycocotools', 'pytorch_lightning'} "
        "& set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "0 []"


def test_the_order_of_records_does_not_matter(files: Files) -> None:
    assert files.score() == 0
    before = json.loads(files.json.read_text())
    truth, found = copy.deepcopy(data())
    for each in (truth["images"], truth["categories"], found):
        each.reverse()
    # Detections of equal score in one image would be taken as listed: these are equal boxes.
    files.truth.write_text(json.dumps(truth))
    files.found.write_text(json.dumps(found))
    assert files.score() == 0
    assert json.loads(files.json.read_text()) == before
