"""The door of the command: help, version, completion, recipes; nothing heavy before a verb runs."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankdet import __version__
from rankdet.cli.main import main
from rankdet.cli.main import parser as build_parser

VERBS = ("demo", "train", "evaluate", "predict", "score", "compare", "data", "data check",
         "data digits", "data coco", "data minitrain", "tables", "recipes", "export")  # fmt: skip


def test_help_names_every_verb_and_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(verb.split()[0] in said for verb in VERBS)
    assert "examples:" in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*verb.split(), "--help"])
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


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (("ev",), "evaluate"),
        (("train", "--data", "pho"), "photos"),
        (("train", "--recipe", "atss_rank"), "atss_rank_sort-small"),
        (("train", "--res"), "--resume"),
        (("data", "check", "pho"), "photos"),
        (("predict", "mod"), "model.safetensors"),
    ],
)
def test_bash_completes_verbs_options_and_their_values(
    typed: tuple[str, ...], completed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "photos").mkdir()
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "script").write_text(capsys.readouterr().out)
    words = ("rankdet", *typed)
    ask = (
        f"source ./script; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(typed)}; "
        f"_shtab_rankdet 2>/dev/null; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        [bash, "--norc", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [completed]


def test_recipes_are_listed_shown_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "atss_r50_alrp" in capsys.readouterr().out
    assert main(["recipes", "demo", "--set", "optimizer.lr=0.5"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out
    assert main(["recipes", "--keys"]) == 0
    said = capsys.readouterr().out
    # Each in one piece where they go to a file.
    keys = {line.split(" ")[0] for line in said.splitlines()}
    assert {"optimizer.lr", "model.anchors.octave_scales"} <= keys


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
    folder = tmp_path / "copy"
    shutil.copytree(digits, folder)
    bad = sorted((folder / "images").iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:200])
    assert main(["data", "check", str(folder), "--images", "0", "--decode"]) == 1
    assert bad.name in capsys.readouterr().out.replace("\n", "")
    bad.write_bytes(b"")  # which is seen without decoding
    assert main(["data", "check", str(folder), "--images", "0"]) == 1
    assert f"{bad}: image does not decode" in capsys.readouterr().out.replace("\n", "")


def test_data_check_draws_what_it_can(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, picture = tmp_path / "copy", tmp_path / "sheet.jpg"
    shutil.copytree(digits, folder)
    bad = sorted((folder / "images").iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:200])
    assert main(["data", "check", str(folder), "--images", "99", "--sheet", str(picture)]) == 1
    said = capsys.readouterr().out
    assert f"not on the sheet: {bad}" in said.replace("\n", "")
    assert picture.stat().st_size > 1000
    assert main(["data", "check", str(folder), "--sheet", "sheet.xyz"]) == 1
    assert "cannot draw a .xyz file" in capsys.readouterr().err


def test_data_check_shows_names_and_notes_as_they_are(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets are no markup, and what is to be known of the folder is said."""
    folder = tmp_path / "a [new]" / "b [" / "c]"
    shutil.copytree(digits, folder)
    content = json.loads((folder / "annotations" / "train.json").read_text())
    (folder / "annotations" / "val.json").write_text(json.dumps(content))
    assert main(["data", "check", str(folder), "--images", "0"]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert str(folder) in said
    assert "16 images are in train and in val" in said
    closing = tmp_path / "q [" / "b]"  # the path holds "[/b]"
    shutil.copytree(digits, closing)
    picture = str(tmp_path / "[/i].png")
    assert main(["data", "check", str(closing), "--images", "1", "--sheet", picture]) == 0
    assert f"samples: {picture}" in capsys.readouterr().out.replace("\n", "")


def test_data_check_lists_as_many_problems_as_asked_for(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(digits, folder)
    path = folder / "annotations" / "train.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"][:12]:
        entry["bbox"] = [1, 1, 0, 5]
    path.write_text(json.dumps(content))
    for asked, listed, left in (
        ((), 10, 2),
        (("--problems", "3"), 3, 9),
        (("--problems", "0"), 12, 0),
    ):
        assert main(["data", "check", str(folder), "--images", "0", *asked]) == 0
        said = capsys.readouterr().out
        assert said.count(": box has no area; left out") == listed
        assert (f"and {left} more in train" in said) == bool(left)


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "digits", "--out", "d", "--train", "0"),
        ("data", "digits", "--out", "d", "--size", "2000"),
        ("data", "digits", "--out", "d", "--seed", "-1"),
        ("data", "check", "d", "--images", "-1"),
        ("train", "--data", "d", "--devices", "0"),
        ("predict", "m", "x.jpg", "--out", "o", "--threshold", "nan"),
    ],
)
def test_numbers_out_of_range_are_wrong_calls(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "must be" in capsys.readouterr().err


PLACES = ("DIR", "FILE", "CKPT", "RUN", "IMAGE_OR_FOLDER", "GT.json", "DT.json", "A", "B")


def places() -> Iterator[tuple[str, str]]:
    """Yield every argument that is a file or folder, with its verb."""

    def of(parser: argparse.ArgumentParser, verb: str) -> Iterator[tuple[str, str]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    yield from of(inner, f"{verb} {name}".strip())
            elif action.metavar in PLACES:
                yield verb, action.option_strings[0] if action.option_strings else action.dest

    yield from of(build_parser(), "")


@pytest.mark.parametrize(("verb", "argument"), list(places()))
def test_an_empty_place_is_a_wrong_call(
    verb: str, argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a variable of the shell has no value: it would be the current folder."""
    given = [argument, ""] if argument.startswith("--") else [""]
    with pytest.raises(SystemExit) as left:
        main([*verb.split(), *given])
    assert left.value.code == 2
    assert "must name a file or folder, got an empty text" in capsys.readouterr().err


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
    capsys.readouterr()
    below = tmp_path / "other" / "mine.txt" / "digits"
    assert main([*arguments[:3], str(below), *arguments[4:]]) == 1
    assert "a part of this path is a file; name another folder" in " ".join(
        capsys.readouterr().err.split()
    )
