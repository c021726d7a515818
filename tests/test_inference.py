"""Using a model from Python gives what the command gives, in the forms that other tools take."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

import rankdet
from rankdet.cli.main import main
from rankdet.config.build_model import build_detector
from rankdet.config.load import dump, load_recipe
from rankdet.data.errors import DataError
from rankdet.data.images import read_image
from rankdet.engine.checkpoint import ModelCard, load_model, save_model
from rankdet.engine.files import RunError
from rankdet.engine.single import Found
from rankdet.inference import Model
from rankdet.inference_results import DetectionList, ImageDetections
from rankdet.models.detector import Detector

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IDS = tuple(range(11, 21))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that finds something everywhere: random weights, and thresholds of its own."""
    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe(
        "demo", ["data.test_shorter=96", "data.test_longer=160", "test.max_detections=200"]
    )
    torch.manual_seed(3)
    detector = build_detector(recipe, len(CLASSES))
    assert isinstance(detector, Detector)
    torch.nn.init.normal_(detector.head.to_logits.weight, std=3.0)
    card = ModelCard(CLASSES, IDS, dump(recipe), (None, 0.9, *[0.8] * 8))
    save_model(folder / "best.safetensors", detector.state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of four shapes, one of them to be turned."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate([(70, 90), (90, 70), (33, 200), (70, 90), (96, 96)]):
        coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if number == 3:
            exif[0x0112] = 6
        paths.append(folder / f"{number}.png")
        picture.save(paths[-1], exif=exif)
    return paths


@pytest.fixture
def model(saved: Path) -> Model:
    return rankdet.load(saved)


def test_importing_rankdet_brings_nothing_along() -> None:
    script = (
        "import sys, rankdet; heavy = {'torch', 'numpy', 'PIL', 'pydantic'}; "
        "assert 'load' in dir(rankdet) and not hasattr(rankdet, 'lod'); "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_without_what_training_needs_it_is_said_what_to_install(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    for name in [name for name in sys.modules if name.startswith("rankdet.config")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r"pydantic is not.*pip install rankdet"):
        rankdet.load(saved)


def command(saved: Path, paths: list[Path], out: Path, *more: str) -> list[dict[str, Any]]:
    given = ["predict", str(saved), *map(str, paths), "--out", str(out), "--device", "cpu"]
    assert main([*given, "--no-pictures", *more]) == 0
    entries: list[dict[str, Any]] = json.loads((out / "predictions.json").read_text())
    return entries


def entry(found: ImageDetections) -> dict[str, Any]:
    """What the command writes of these detections."""
    nothing = np.zeros((1, 1, 3), np.uint8)
    same = Found(nothing, found.boxes, found.scores, found.labels, found.classes)
    return {"file": str(found.source), "width": found.width, "height": found.height,
            "detections": same.entries}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, []),
        ({"thresholds": 0.85}, ["--threshold", "0.85"]),
        ({"tta": True}, ["--tta"]),
        ({"thresholds": None}, ["--threshold", "0"]),
    ],
)
def test_it_finds_what_the_command_finds(
    saved: Path,
    images: list[Path],
    tmp_path: Path,
    settings: dict[str, Any],
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = rankdet.load(saved / "best.safetensors", device="cpu").predict(images, **settings)
    written = command(saved, images, tmp_path, *options)
    capsys.readouterr()
    assert [entry(each) for each in found] == written
    assert sum(map(len, found)) > 20, "there must be something to compare"


def test_thresholds_are_kept_to(model: Model, images: list[Path]) -> None:
    everything = model.predict(images, thresholds=None)
    assert model.thresholds["zero"] is None
    assert model.thresholds["one"] == 0.9
    least = np.array([-1, 0.9, *[0.8] * 8], np.float32)
    for thresholds, wanted in (
        ("optimal", least),
        (0.85, np.full(10, 0.85, np.float32)),
        ({"two": 0.95, "zero": 0.7}, np.where(np.arange(10) == 2, np.float32(0.95), least)),
    ):
        wanted = wanted.copy()
        if isinstance(thresholds, dict):
            wanted[0] = 0.7
        some = model.predict(images, thresholds=thresholds)  # type: ignore[arg-type]
        for each, all_of_it in zip(some, everything, strict=True):
            kept = all_of_it.scores >= wanted[all_of_it.labels]
            np.testing.assert_array_equal(each.boxes, all_of_it.boxes[kept])
        assert 0 < sum(map(len, some)) < sum(map(len, everything))


@pytest.mark.parametrize("batch", [2, 3, 100])
def test_batches_change_nothing_but_last_digits(
    model: Model, images: list[Path], batch: int
) -> None:
    one = model.predict(images, thresholds=None)
    several = model.predict(images, thresholds=None, batch=batch)
    for a, b in zip(one, several, strict=True):
        assert a.source == b.source
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)


def test_a_batch_holds_images_of_one_padded_size(
    model: Model, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    forward = model._loaded.detector.forward

    def watched(batch: torch.Tensor) -> Any:
        seen.append(tuple(batch.shape))
        return forward(batch)

    monkeypatch.setattr(model._loaded.detector, "forward", watched)
    model.predict(images, batch=4)
    # 70 x 90 becomes 96 x 123, upright 123 x 96 twice (one of them turned), and so on.
    assert sorted(seen) == [(1, 3, 32, 160), (1, 3, 96, 96), (1, 3, 96, 128), (2, 3, 128, 96)]


def same(a: DetectionList, b: DetectionList) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.boxes, y.boxes) and np.array_equal(x.scores, y.scores)
        and np.array_equal(x.labels, y.labels) and (x.width, x.height) == (y.width, y.height)
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


def test_paths_pillow_images_and_arrays_are_the_same(model: Model, images: list[Path]) -> None:
    paths = model.predict(images)
    arrays = [read_image(path) for path in images]
    assert same(paths, model.predict(arrays))
    assert same(paths, model.predict(str(path) for path in images))
    assert same(paths, model.predict([Image.open(path) for path in images]))
    assert same(paths[:1], model.predict(images[0]))
    assert same(paths[4:], model.predict(arrays[4][None]))
    # Views that torch cannot share: reversed channels, and memory that must not be written to.
    backwards = arrays[0][..., ::-1].copy()[..., ::-1]
    still = arrays[0].copy()
    still.setflags(write=False)
    assert same(model.predict([arrays[0]] * 2), model.predict([backwards, still]))
    # The upright picture, not the stored one.
    assert (paths[3].width, paths[3].height) == (70, 90)


def test_pillow_images_of_every_kind_become_what_their_files_become(
    model: Model, images: list[Path], tmp_path: Path
) -> None:
    with Image.open(images[0]) as opened:
        colour = opened.convert("RGB")
    grey = np.asarray(colour.convert("L"))
    kinds = [
        colour.convert("P"), colour.convert("L"), Image.fromarray(grey.astype(np.uint16) * 100),
        Image.fromarray(np.dstack([np.asarray(colour), grey])),
    ]  # fmt: skip
    for number, picture in enumerate(kinds):
        picture.save(tmp_path / f"{number}.png")
    files = model.predict([tmp_path / f"{number}.png" for number in range(len(kinds))])
    assert same(files, model.predict(kinds))


def test_bad_images_are_named(model: Model, images: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(images[0].read_bytes()[:200])
    with pytest.raises(DataError, match=r"cut\.png: does not decode"):
        model.predict([images[0], cut])
    with pytest.raises(DataError, match="no such file"):
        model.predict("nowhere.jpg")
    not_decoding = pytest.raises(DataError, match="image 1: the Pillow image does not decode")
    with Image.open(cut) as broken, not_decoding:
        model.predict([Image.open(images[0]), broken])
    for array in (np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match=r"image 0 must be an array \[H, W, 3\] of uint8"):
            model.predict([array])
    with pytest.raises(TypeError, match=r"image 1 must be a path, .* got int"):
        model.predict([images[0], 7])  # type: ignore[list-item]

    some = model.predict([images[0], cut, images[1]], unreadable="skip", batch=2)
    assert [each.source for each in some] == images[:2]
    assert len(some.unreadable) == 1
    assert "cut.png" in some.unreadable[0]
    assert len(model.predict([])) == 0


def test_bad_settings_are_refused(model: Model, saved: Path, images: list[Path]) -> None:
    for settings, message in (
        ({"thresholds": {"ten": 0.1}}, "no class 'ten', but zero, one"),
        ({"thresholds": "best"}, "must be 'optimal', a number"),
        ({"thresholds": float("nan")}, "must be finite"),
        ({"batch": 0}, "batch must be 1 or more"),
        ({"unreadable": "ignore"}, "'raise' or 'skip'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict(images, **settings)
    with pytest.raises(RunError, match="device 'gpu7' cannot be used"):
        rankdet.load(saved, device="gpu7")
    with pytest.raises(RunError, match=r"device 'cuda:99' cannot be used"):
        model.predict(images, device="cuda:99")
    with pytest.raises(RunError, match=r"is a folder without best\.safetensors"):
        rankdet.load(saved.parent)


def test_a_model_without_thresholds_keeps_all(
    saved: Path, images: list[Path], tmp_path: Path
) -> None:
    weights, card = load_model(saved / "best.safetensors")
    save_model(tmp_path / "m.safetensors", weights, replace(card, thresholds=()))
    model = rankdet.load(tmp_path / "m.safetensors")
    assert set(model.thresholds.values()) == {None}
    assert same(model.predict(images), model.predict(images, thresholds=None))


def test_a_bar_shows_progress_if_wanted(
    model: Model, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model.predict(images * 5)
    assert capsys.readouterr() == ("", ""), "nobody sees a bar here"
    model.predict(images, progress=True)
    assert capsys.readouterr().out != ""


def test_coco_results_are_read_by_pycocotools(
    model: Model, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The detections as their own ground truth: pycocotools gives an AP of 1."""
    found = model.predict(images)
    ids = [100 + number for number in range(len(images))]
    results = found.to_coco(ids)
    assert [result["image_id"] for result in found.to_coco()[:1]] == [0]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "width": f.width, "height": f.height}
                   for i, f in zip(ids, found, strict=True)],
        "categories": [{"id": i, "name": n} for i, n in zip(IDS, CLASSES, strict=True)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": IDS[label], "iscrowd": 0,
             "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            for n, (i, (x1, y1, x2, y2), label) in enumerate(
                ((i, box, label) for i, each in zip(ids, found, strict=True)
                 for box, label in zip(each.boxes.tolist(), each.labels, strict=True)), 1)],
    }  # fmt: skip
    truth.createIndex()
    judge = COCOeval(truth, truth.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    capsys.readouterr()
    assert judge.stats[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="image_ids must be 5"):
        found.to_coco([1])


@pytest.mark.parametrize(
    ("smallest", "enlarged"), [(1, 1), (300, 4)], ids=["as they are", "enlarged"]
)
def test_pictures_show_the_boxes(
    model: Model, images: list[Path], smallest: int, enlarged: int
) -> None:
    found = model.predict([images[0], read_image(images[0])])
    of_path, of_array = found.draw(smallest=smallest)
    assert of_path.size == (90 * enlarged, 70 * enlarged)
    assert of_path.tobytes() == of_array.tobytes()
    plain = Image.open(images[0]).convert("RGB").resize(of_path.size, Image.Resampling.NEAREST)
    assert of_path.tobytes() != plain.tobytes()


def need_supervision() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it does without OpenCV
        return pytest.importorskip(
            "supervision", reason="supervision is not installed (extra `supervision`)"
        )


def test_supervision_takes_the_detections(model: Model, images: list[Path]) -> None:
    sv = need_supervision()
    found = model.predict(images)
    theirs = found.to_supervision()
    for each, one in zip(theirs, found, strict=True):
        assert isinstance(each, sv.Detections)
        assert list(each["class_name"]) == one.names
        np.testing.assert_array_equal(each.xyxy, one.boxes)
        np.testing.assert_array_equal(each.confidence, one.scores)
        np.testing.assert_array_equal(each.class_id, one.labels)
        assert len(each[each.confidence > 0.5]) == (one.scores > 0.5).sum()
        # Duplicates are removed already, so nothing is left to do.
        assert len(each.with_nms(0.5 + 1e-6)) == len(one)
    scene = sv.BoxAnnotator().annotate(read_image(images[0]), theirs[0])
    assert (scene != read_image(images[0])).any()


def test_an_image_without_objects_is_one_for_supervision_too(
    model: Model, images: list[Path]
) -> None:
    sv = need_supervision()
    (nothing,) = model.predict(images[:1], thresholds=1.1).to_supervision()
    assert nothing.is_empty()
    assert len(sv.Detections.merge([nothing, *model.predict(images).to_supervision()])) > 0


def test_without_supervision_it_is_said_what_to_install(
    model: Model, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = model.predict(images[:1])
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match="pip install supervision"):
        found.to_supervision()


def test_a_sequence_is_a_sequence(model: Model, images: list[Path]) -> None:
    found = model.predict(images)
    assert found[-1] is found[4]
    assert isinstance(found[1:3], DetectionList)
    assert len(found[1:3]) == 2
    assert repr(found) == f"<{sum(len(each) for each in found)} detections in 5 images>"
    assert repr(model) == "<rankdet model demo, 10 classes>"
    assert found[0].names == [CLASSES[label] for label in found[0].labels]
