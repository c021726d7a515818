"""The door of the command: help, version, completion, recipes; nothing heavy before a verb runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rankdet import __version__
from rankdet.cli.main import main

VERBS = ("demo", "train", "evaluate", "predict", "score", "compare", "data", "data check",
         "data digits", "data coco", "data minitrain", "tables", "recipes")  # fmt: skip


def test_help_names_every_verb_and_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(verb.split()[0] in said for verb in VERBS)
    assert "examples:" in said


@pytest.mark.parametrize("verb", [verb for verb in VERBS if " " not in verb])
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from rankdet.cli.main import main; main([]); "
        "heavy = {'torch', 'numpy', 'PIL', 'pydantic', 'rich', 'pytorch_lightning'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts_know_the_verbs(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", shell]) == 0
    assert "evaluate" in capsys.readouterr().out


def test_recipes_are_listed_shown_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "atss_r50_alrp" in capsys.readouterr().out
    assert main(["recipes", "demo", "--set", "optimizer.lr=0.5"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out
    assert main(["recipes", "--keys"]) == 0
    assert "optimizer.lr" in capsys.readouterr().out.replace("\n", "")


def test_a_mistyped_recipe_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes", "atss_alpr-small"]) == 1
    assert "atss_alrp-small" in capsys.readouterr().err


def test_data_check_says_what_is_there_and_draws_it(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "sheet.png"
    arguments = ["data", "check", str(digits), "--sheet", str(picture), "--images", "4"]
    assert main([*arguments, "--decode"]) == 0
    said = capsys.readouterr().out
    assert "COCO json" in said
    assert "22 images, 0 of which cannot be read" in said
    assert picture.stat().st_size > 1000


def test_data_check_fails_where_images_do_not_decode(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(digits, folder)
    bad = sorted((folder / "images").iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:200])
    assert main(["data", "check", str(folder), "--images", "0", "--decode"]) == 1
    assert bad.name in capsys.readouterr().out.replace("\n", "")


def test_data_check_of_nothing_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_digits_are_kept_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "digits", "--out", str(tmp_path / "d"), "--train", "2", "--val", "1"]
    assert main(arguments) == 0
    made = (tmp_path / "d" / "digits.json").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "d" / "digits.json").stat().st_mtime_ns == made
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep me")
    assert main([*arguments[:3], str(tmp_path / "other"), *arguments[4:]]) == 1
    assert (tmp_path / "other" / "mine.txt").read_text() == "keep me"
