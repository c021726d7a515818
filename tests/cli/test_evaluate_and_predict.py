"""Using a trained model: evaluation gives the same numbers, prediction survives any image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import settings

from rankdet.cli.main import main
from rankdet.cli.predict import find_images
from rankdet.engine.checkpoint import load_model, save_model
from rankdet.engine.files import RunError
from rankdet.engine.single import Found


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "used"
    torch.set_num_threads(1)
    arguments = ["train", "--data", str(digits), "--recipe", "demo", "--out", str(out)]
    assert main([*arguments, *settings("schedule.steps=4")]) == 0
    return out


def test_evaluation_repeats_the_numbers_of_the_training(
    run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "best.safetensors").read_bytes()
    assert main(["evaluate", str(run), "--data", str(digits), "--out", str(tmp_path)]) == 0
    assert "AP" in capsys.readouterr().out
    assert json.loads((tmp_path / "score.json").read_text()) == json.loads(
        (run / "score.json").read_text()
    )
    assert json.loads((tmp_path / "detections.json").read_text()) == json.loads(
        (run / "detections.json").read_text()
    )
    assert (tmp_path / "report.html").stat().st_size > 1000
    # The same thresholds are written as were there, so the model stays what it was.
    assert load_model(run / "best.safetensors")[1] == _card_of(before, tmp_path)


def _card_of(content: bytes, folder: Path) -> object:
    (folder / "before.safetensors").write_bytes(content)
    return load_model(folder / "before.safetensors")[1]


def test_an_unknown_split_is_answered_with_the_known(
    run: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--data", str(digits), "--split", "test"]) == 1
    assert "no split 'test'; it has train, val" in capsys.readouterr().err


def test_images_with_other_classes_are_refused(
    run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, card = load_model(run / "best.safetensors")
    from dataclasses import replace

    names = ("zero", *card.classes[1:])
    save_model(tmp_path / "m.safetensors", weights, replace(card, classes=names))
    assert main(["evaluate", str(tmp_path / "m.safetensors"), "--data", str(digits)]) == 1
    assert "objects of 1 class that the model does not know: 0" in capsys.readouterr().err


def test_a_model_of_another_class_count_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, card = load_model(run / "best.safetensors")
    from dataclasses import replace

    wrong = replace(card, classes=card.classes[:3], category_ids=card.category_ids[:3])
    save_model(tmp_path / "m.safetensors", weights, wrong)
    assert main(["predict", str(tmp_path / "m.safetensors"), "x.jpg", "--out", str(tmp_path)]) == 1
    assert "do not fit" in capsys.readouterr().err


def awkward_images(folder: Path) -> list[str]:
    """Write images of every kind; return the names of those that cannot be read."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    (folder / "below").mkdir()
    Image.fromarray(colour).save(folder / "plain.jpg")
    Image.fromarray(colour).save(folder / "below" / "plain.jpg")
    Image.fromarray(colour[..., 0]).save(folder / "grey.png")
    Image.fromarray(np.dstack([colour, colour[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(colour[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(colour).convert("P").save(folder / "palette.gif")
    Image.fromarray(colour[:1, :1]).save(folder / "pixel.png")
    Image.fromarray(colour[:1].repeat(400, 1)[:, :20_000]).save(folder / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colour).save(folder / "turned.jpg", exif=exif)
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    return ["cut.jpg", "empty.png", "text.jpg"]


def test_prediction_survives_any_image_and_names_the_bad_ones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    bad = awkward_images(images)
    assert main(["predict", str(run), str(images), "--out", str(out)]) == 1
    said = capsys.readouterr().out.replace("\n", "")
    assert all(name in said for name in bad)
    assert "LRP-optimal thresholds" in said
    found = json.loads((out / "predictions.json").read_text())
    assert len(found) == 9
    assert {Path(entry["file"]).name for entry in found}.isdisjoint(bad)
    turned = next(entry for entry in found if entry["file"].endswith("turned.jpg"))
    assert (turned["width"], turned["height"]) == (40, 60), "as displayed, not as stored"
    assert (out / "plain.jpg").is_file()
    assert (out / "below" / "plain.jpg").is_file()


def test_a_prediction_writes_over_nothing_but_an_earlier_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out = tmp_path / "photo.jpg", tmp_path / "out"
    Image.new("RGB", (40, 30)).save(photo)
    before = photo.read_bytes()
    # The image itself, and one of the same place that is not to be read.
    other = tmp_path / "more" / "photo.png"
    other.parent.mkdir()
    Image.new("RGB", (40, 30)).save(other)
    for image in (photo, other):
        assert main(["predict", str(run), str(image), "--out", str(tmp_path)]) == 1
        assert f"{photo} is there already" in capsys.readouterr().err.replace("\n", " ")
        assert photo.read_bytes() == before
    assert not (tmp_path / "predictions.json").exists()
    for _ in range(2):
        assert main(["predict", str(run), str(photo), "--out", str(out)]) == 0
        assert " in 1 image -> " in capsys.readouterr().out.replace("\n", " ")
    assert main(["predict", str(run), str(photo), "--out", str(tmp_path), "--no-pictures"]) == 0
    assert main(["predict", str(run), str(photo), "--out", str(tmp_path)]) == 1
    assert photo.read_bytes() == before


def test_classes_without_a_threshold_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    weights, card = load_model(run / "best.safetensors")
    for missing, warned in ((1, True), (10, False)):
        thresholds = (None,) * missing + (0.5,) * (len(card.classes) - missing)
        model = tmp_path / f"{missing}.safetensors"
        save_model(model, weights, replace(card, thresholds=thresholds))
        given = ["predict", str(model), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
        assert main(given) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("no threshold is known for 0, of which validation found nothing" in said) == warned
        assert main([*given, "--threshold", "0.3"]) == 0
        assert "no threshold is known" not in capsys.readouterr().out


def test_the_numbers_of_a_run_stay_those_of_its_validation_images(
    run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "score.json").read_bytes()
    given = ["evaluate", str(run), "--data", str(digits), "--split", "train", "--out"]
    assert main([*given, str(run)]) == 1
    assert "is the folder of a run" in capsys.readouterr().err.replace("\n", " ")
    assert (run / "score.json").read_bytes() == before
    (tmp_path / "file").touch()
    assert main([*given, str(tmp_path / "file")]) == 1
    assert "is a file; name a folder" in capsys.readouterr().err.replace("\n", " ")


def test_a_threshold_is_kept_to(run: Path, digits: Path, tmp_path: Path) -> None:
    images = str(digits / "images")
    for threshold, name in (("0", "all"), ("0.4", "some"), ("1.1", "none")):
        given = ["--threshold", threshold, "--no-pictures", "--out", str(tmp_path / name)]
        assert main(["predict", str(run), images, *given]) == 0
    counts = {}
    for name in ("all", "some", "none"):
        found = json.loads((tmp_path / name / "predictions.json").read_text())
        scores = [d["score"] for entry in found for d in entry["detections"]]
        counts[name] = len(scores)
        if name == "some":
            assert all(score >= 0.4 for score in scores)
    assert counts["all"] > counts["some"] >= counts["none"] == 0


def test_several_looks_at_an_image(
    run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, often = tmp_path / "once", tmp_path / "often"
    keep = ["--data", str(digits), "--keep-thresholds"]
    assert main(["evaluate", str(run), *keep, "--out", str(once)]) == 0
    assert main(["evaluate", str(run), *keep, "--out", str(often), "--tta"]) == 0
    assert (once / "detections.json").read_bytes() != (often / "detections.json").read_bytes()
    image = str(next((digits / "images").iterdir()))
    given = ["--no-pictures", "--threshold", "0", "--out", str(tmp_path / "found")]
    assert main(["predict", str(run), image, *given, "--tta"]) == 0
    (entry,) = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert entry["detections"]
    capsys.readouterr()


def test_a_picture_too_long_for_a_jpeg_is_made_smaller(tmp_path: Path) -> None:
    image = np.zeros((2, 70_000, 3), np.uint8)
    nothing = np.zeros((0, 4), np.float32)
    found = Found(image, nothing, nothing[:, 0], np.zeros(0, np.int64), ("a",))
    found.save_picture(tmp_path / "long.jpg")
    with Image.open(tmp_path / "long.jpg") as picture:
        assert picture.size == (65_500, 2)


def test_a_folder_without_a_model_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tmp_path), "x.jpg", "--out", str(tmp_path / "out")]) == 1
    assert "is a folder without best.safetensors" in capsys.readouterr().err


def test_images_of_one_name_get_different_places(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.jpg").touch()
    places = [place for _, place in find_images([str(tmp_path)], out)]
    assert sorted(map(str, places)) == ["a-2.jpg", "a.jpg", "b/a.jpg"]
    # What data are read from, and nothing that only looks like an image.
    (tmp_path / "more" / "folder.png").mkdir(parents=True)
    for name in ("more/._a.png", "more/b.jfif"):
        (tmp_path / name).touch()
    places = [place for _, place in find_images([str(tmp_path / "more")], out)]
    assert places == [Path("b.jpg")]
    with pytest.raises(RunError, match="does not exist"):
        list(find_images([str(tmp_path / "nowhere")], out))
    with pytest.raises(RunError, match="no images"):
        list(find_images([str(out / "..")], tmp_path))
