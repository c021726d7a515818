"""`rankdet data coco`: what it passes on, what it says; the work itself has its tests in `data`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankdet.cli import data_coco
from rankdet.data import coco_download
from rankdet.data.coco_download import Outcome


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="rankdet data")
    data_coco.add_to(parser.add_subparsers(required=True))
    given = parser.parse_args(["coco", *arguments])
    code: int = given.run(given)
    return code


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def stand_in(
        out: Path,
        *,
        progress: Callable[[str, int, int | None], None],
        note: Callable[[str], None],
        **settings: Any,
    ) -> list[Outcome]:
        made.append({"out": out, **settings})
        note("[bold]needs 2 GB of disk")
        progress("fetching a.zip", 5, None)
        progress("fetching a.zip", 5, 10)
        progress("unpacking a.zip", 10, 10)
        if out.name == "interrupted":
            raise KeyboardInterrupt
        return [Outcome("train", 118287, True), Outcome("val", 5000, False)]

    monkeypatch.setattr(coco_download, "download_coco", stand_in)
    return made


def test_what_is_not_said_has_its_default(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--out", "some/[coco]") == 0
    (call,) = calls
    assert call.pop("out") == Path("some/[coco]")
    assert set(call.pop("splits")) == {"train", "val"}
    assert call == {"base_url": coco_download.SOURCE, "keep_archives": False}
    said = capsys.readouterr().out
    assert "CC BY 4.0" in said
    assert "[bold]needs 2 GB of disk" in said
    assert "train: 118287 images, fetched and verified" in said
    assert "val: 5000 images, complete already, nothing to do" in said
    assert "rankdet data check some/[coco]" in said


def test_what_is_said_is_passed_on(calls: list[dict[str, Any]]) -> None:
    assert run("--out", "c", "--splits", "val", "--base-url", "http://m/x", "--keep-archives") == 0
    assert calls == [
        {"out": Path("c"), "splits": ["val"], "base_url": "http://m/x", "keep_archives": True}
    ]


def test_an_interruption_says_how_to_go_on(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("--out", "interrupted")
    assert "the same command goes on from it" in capsys.readouterr().out


def test_help_has_examples_and_the_licence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run("--help")
    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "examples:" in said
    assert "licence:" in said
    assert "The archives are deleted once their images are verified" in said
    with pytest.raises(SystemExit) as left:
        run("--out", "c", "--splits", "test")
    assert left.value.code == 2
