"""The report: one file that is well-formed, safe, small, and says what the score says."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankdet.eval import STATS, score
from rankdet.eval.lrp import lrp_curve
from rankdet.eval.report import RunForReport, write_report
from rankdet.eval.report.markup import Markup, percent, significant, tag
from rankdet.eval.report.plot import Scale, score_scale, thin
from rankdet.eval.report.runs import analyse
from rankdet.eval.report.tables import error_parts

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "lrp"
VOID = {"meta", "link", "image", "path", "rect", "circle", "line", "use", "col", "br"}
EVIL = '<script>alert("x")</script>&amp;\'"'


def invented(
    classes: int = 3,
    images: int = 8,
    *,
    names: list[str] | None = None,
    seed: int = 0,
    scale: float = 1.0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    random = np.random.default_rng(seed)
    names = names or [f"class {k}" for k in range(classes)]
    truth: dict[str, Any] = {
        "images": [{"id": i + 5, "width": 160, "height": 120} for i in range(images)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(names)],
        "annotations": [],
    }
    found = []
    for image in range(images):
        for _ in range(int(random.integers(1, 9))):
            x, y = random.uniform(0, [110, 80])
            w, h = random.uniform(10, 40, 2)
            klass = int(random.integers(classes)) + 1
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image + 5,
                    "category_id": klass,
                    "bbox": [x, y, w, h],
                }
            )
            for _ in range(2):
                other = klass if random.random() < 0.8 else int(random.integers(classes)) + 1
                shift = random.normal(size=2) * 4
                found.append(
                    {
                        "image_id": image + 5,
                        "category_id": other,
                        "bbox": [x + shift[0], y + shift[1], w, h],
                        "score": float(random.random() * scale),
                    }
                )
    return truth, found


def run(name: str, truth: dict[str, Any], found: list[dict[str, Any]]) -> RunForReport:
    return RunForReport(name, score(truth, found), truth, found)


def pixels(image_id: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    random = np.random.default_rng(image_id)
    return None if image_id == 6 else random.integers(0, 255, (120, 160, 3), dtype=np.uint8)


class Page(HTMLParser):
    """Checks that all elements are closed, and notes what there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def having(self, name: str, value: str) -> list[tuple[str, dict[str, str | None]]]:
        return [e for e in self.elements if value in (e[1].get(name) or "").split()]


def written(path: Path, *runs: RunForReport, **more: Any) -> Page:
    write_report(path, runs, title=more.pop("title", "A title"), **more)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return Page(path.read_text(encoding="utf-8"))


def test_one_run_with_pictures_has_every_section(tmp_path: Path) -> None:
    truth, found = invented(scale=0.03)
    one = run("first", truth, found)
    page = written(
        tmp_path / "new" / "report.html", one, images=pixels, facts={"steps": "1600", "data": "x"}
    )
    ids = {attrs["id"] for _, attrs in page.elements if attrs.get("id")}
    assert {"numbers", "pictures", "classes", "curves", "correlation", "by-number", "confusions",
            "errors", "about", "warnings", "class-filter", "precision-recall",
            "lrp-threshold", "score-iou-0", "by-number-AP", "by-number-oLRP"} <= ids  # fmt: skip
    assert len(ids) == sum(1 for _, attrs in page.elements if attrs.get("id"))
    for key in ("AP", "AP50", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn"):
        assert f"{getattr(one.score, key):.3f}" in page.text
    for each in one.score.per_class:
        assert each.threshold is not None
        assert significant(each.threshold) in page.text
        assert repr(each.threshold) in page.text, "all digits stand in the JSON"
    for warning in one.score.warnings:
        assert warning in page.text
    assert "1600" in page.text
    charts = page.having("class", "chart")
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for _, attrs in charts)


def test_nothing_is_fetched_and_no_script_but_ours_runs(tmp_path: Path) -> None:
    truth, found = invented()
    page = written(tmp_path / "r.html", run("a", truth, found), images=pixels)
    for name, attrs in page.elements:
        for key in ("src", "href"):
            if attrs.get(key):
                value = str(attrs[key])
                assert value.startswith(("#", "data:")), (name, value)
        assert not [key for key in attrs if key.startswith("on")]
    style = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://", style)
    assert [name for name, _ in page.elements].count("script") == 1


def test_text_is_never_markup(tmp_path: Path) -> None:
    truth, found = invented(names=[EVIL, "</title><b>", "\ud800 half"])
    found[0]["score"] = 1e-7
    page = written(
        tmp_path / "r.html", run(EVIL, truth, found), run("b" + EVIL, truth, found),
        images=pixels, title=EVIL, facts={EVIL: EVIL},
    )  # fmt: skip
    assert [name for name, _ in page.elements].count("script") == 1
    assert page.text.count(EVIL) > 10
    assert "</title><b>" in page.text


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    truth, found = invented()
    other = [{**each, "score": 1 - each["score"]} for each in found]
    first, second = run("first", truth, found), run("second", truth, other)
    page = written(tmp_path / "r.html", first, second, images=pixels)
    assert page.text.count("Two single runs") == 1
    for place, each in enumerate((first, second)):
        assert f"{each.score.AP:.3f}" in page.text
        assert page.having("class", f"run-{place}")
    assert first.score.AP is not None
    assert second.score.AP is not None
    word = "better" if second.score.AP > first.score.AP else "worse"
    assert f"{abs(second.score.AP - first.score.AP):.3f} {word}" in page.text
    pictures = [attrs["id"] for name, attrs in page.elements
                if name == "image" and attrs.get("id")]  # fmt: skip
    uses = [attrs["href"] for name, attrs in page.elements if name == "use"]
    assert uses == [f"#{name}" for name in pictures], "each image is in the file once"


def test_what_changed_is_told_by_class_and_number(tmp_path: Path) -> None:
    truth, found = invented()
    # The second does not find the second class.
    other = [each for each in found if each["category_id"] != 2]
    first, second = run("first", truth, found), run("second", truth, other)
    page = written(tmp_path / "r.html", first, second)
    links = [attrs["href"] for name, attrs in page.elements if name == "a"]
    assert links == ["#numbers", "#changes", "#classes", "#curves", "#by-number", "#confusions"]
    text = " ".join(page.text.split())
    changes = text[text.index("What changed") : text.index("Classes and their thresholds")]
    rows = re.findall(r"class \d", changes)
    assert rows[0] == "class 1", "what got worse comes first"
    fell = first.score.per_class[1].AP
    assert fell is not None
    assert f"\N{MINUS SIGN}{fell:.3f}" in changes
    assert page.having("class", "bad")
    # All numbers are there, of both.
    for each in (first, second):
        for key in (*STATS, "oLRP_loc_normalised"):
            value = getattr(each.score, key)
            assert value is None or f"{value:.3f}" in page.text
    assert "AR100" in page.text


def test_thresholds_that_were_asked_for_have_a_section(tmp_path: Path) -> None:
    truth, found = invented()
    asked = RunForReport("a", score(truth, found, threshold=0.7), truth, found)
    page = written(tmp_path / "r.html", asked)
    text = " ".join(page.text.split())
    part = text[text.index("At the thresholds that were asked for") :]
    at = asked.score.at_threshold
    assert at is not None
    for value in (at.LRP, *(each.LRP for each in at.per_class)):
        assert f"{value:.3f}" in part
    assert f"{asked.score.oLRP:.3f}" in part
    assert "At the thresholds" not in " ".join(
        written(tmp_path / "r.html", run("a", truth, found)).text.split()
    ).replace("At the thresholds of", "")


def test_what_rests_on_little_is_marked(tmp_path: Path) -> None:
    truth, found = invented()
    page = written(tmp_path / "r.html", run("a", truth, found))
    few = page.having("class", "badge")
    assert few
    assert all(attrs["title"] == "fewer than 10 objects: these numbers say little"
               for _, attrs in few)  # fmt: skip
    none = RunForReport("a", score(truth, found, few=1), truth, found)
    page = written(tmp_path / "r.html", none)
    assert not page.having("class", "badge")
    assert not page.having("class", "few")


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    truth, found = invented()
    renamed, found2 = invented(names=["x", "y", "z"])
    one = run("a", truth, found)
    path = tmp_path / "r.html"
    with pytest.raises(ValueError, match="other classes"):
        write_report(path, [one, run("b", renamed, found2)], title="t")
    with pytest.raises(ValueError, match="one run or two, got 3"):
        write_report(path, [one, one, one], title="t")
    with pytest.raises(ValueError, match="score of run 'a' is of other data"):
        write_report(path, [RunForReport("a", one.score, truth, found[:-1])], title="t")
    fewer = {**truth, "annotations": truth["annotations"][1:]}
    with pytest.raises(ValueError, match=r"other data: .* (\d+) objects, .* have .* objects"):
        write_report(path, [RunForReport("a", one.score, fewer, found)], title="t")
    with pytest.raises(ValueError, match=r"images\(\d+\) must return RGB"):
        write_report(path, [one], title="t", images=lambda _: np.zeros((4, 4), np.uint8))
    assert list(tmp_path.iterdir()) == [], "no part of a file is left"
    other, more = invented(images=9)
    page = written(path, one, run("b", other, more), images=pixels)
    assert "different images" in page.text


@pytest.mark.parametrize(
    "kind", ["no detections", "no objects", "nothing", "one class", "negative"]
)
def test_edges(kind: str, tmp_path: Path) -> None:
    truth, found = invented(1 if kind == "one class" else 3)
    if kind in ("no detections", "nothing"):
        found = []
    if kind in ("no objects", "nothing"):
        truth["annotations"] = []
    if kind == "nothing":
        truth["images"] = []
    if kind == "negative":
        found = [{**each, "score": each["score"] * 1e6 - 5e5} for each in found]
    page = written(tmp_path / "r.html", run("a", truth, found), images=pixels)
    single = kind == "one class"
    assert bool(page.having("id", "class-filter")) != single
    assert bool(page.having("class", "filtered")) == single
    assert "nan" not in page.text.lower().split()


def test_many_classes_stay_small(tmp_path: Path) -> None:
    truth, found = invented(80, 300, seed=3)
    path = tmp_path / "r.html"
    page = written(path, run("a", truth, found), run("b", truth, found), images=pixels)
    assert path.stat().st_size < 5e6
    assert len([n for n, _ in page.elements if n == "option"]) == 81
    table = page.having("class", "confusion")
    assert len(table) == 2
    assert "65 other classes" in page.text
    curves = [attrs for _, attrs in page.having("class", "curve")]
    assert len(curves) > 160
    assert max(str(attrs["d"]).count("l") for attrs in curves) < 200


@pytest.mark.parametrize(
    "name", ["invented", "basic", "odd_classes", "all_false", "empty_images", "ties"]
)
def test_parts_of_the_bar_sum_to_olrp_and_curves_end_at_it(name: str, tmp_path: Path) -> None:
    truth, found = invented()
    if name != "invented":
        if not (GOLDEN / f"{name}_gt.json.gz").is_file():
            pytest.skip(f"golden data {name} is not here (looked in {GOLDEN})")
        truth, found = (
            json.loads(gzip.decompress((GOLDEN / f"{name}_{kind}.json.gz").read_bytes()))
            for kind in ("gt", "dt")
        )
    given = run(name, truth, found)
    whole = analyse(given)
    for k, each in enumerate(given.score.per_class):
        parts = error_parts(each, given.score.tau)
        curve = whole.curves[k]
        if each.oLRP is None:
            assert parts is None
            continue
        assert parts is not None
        assert sum(parts) == pytest.approx(each.oLRP, abs=1e-9)
        assert (curve.best is None) == (each.threshold is None)
        if curve.best is not None:
            assert curve.best[2] == each.threshold
            assert curve.best[3] == pytest.approx(each.oLRP, abs=1e-12)
            raw = lrp_curve(whole.matches, k)
            assert (np.diff(curve.precision) <= 0).all()
            assert (curve.precision >= raw.precision).all()
    written(tmp_path / "r.html", given)


def test_thin_keeps_ends_and_extremes() -> None:
    x = np.linspace(0, 400, 5000)
    y = np.sin(x / 30) * 100
    y[2345] = 500.0
    keep = thin(x, y)
    assert len(keep) <= 200
    assert {0, 2345, 4999} <= set(keep.tolist())
    assert np.abs(np.interp(x, x[keep], y[keep]) - y).mean() < 2
    assert thin(x[:3], y[:3]).tolist() == [0, 1, 2]


def test_scales_suit_the_scores() -> None:
    focal = score_scale(np.array([0.001, 0.4, 0.9]), [0.4])
    assert (focal.low, focal.high, focal.logarithmic) == (0.0, 1.0, False)
    ranking = score_scale(np.array([1e-6, 0.02, 0.9]), [0.02])
    assert ranking.logarithmic
    assert ranking(np.array([1e-6, 0.9])).tolist() == [0.0, 1.0]
    for scale in (ranking, Scale(0, 1), Scale(-3.7, 1e6), Scale(1e-5, 2e-5, logarithmic=True)):
        ticks = [value for value, _ in scale.ticks()]
        assert 1 < len(ticks) < 12
        assert ticks == sorted(set(ticks))
    for odd in (np.array([0.0]), np.array([-2.0, -2.0]), np.array([0.5]), np.zeros(0)):
        scale = score_scale(odd, odd.tolist())
        assert scale.low < scale.high
        assert scale.ticks()


def test_small_things() -> None:
    assert tag("p", "<", Markup("<b/>"), title='"') == '<p title="&quot;">&lt;<b/></p>'
    assert percent(1, 200) == "0.5 %"
    assert percent(1, 0) == percent(0, 0)
    assert significant(-0.00123) == "-0.00123"
    assert significant(9.995) == "9.99"
    assert significant(1e-12) == "1.00e-12"


def test_images_are_asked_for_few_times(tmp_path: Path) -> None:
    truth, found = invented(10, 120)
    asked: list[int] = []

    def reader(image_id: int) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        asked.append(image_id)
        return pixels(image_id)

    images: Callable[[int], Any] = reader
    written(tmp_path / "r.html", run("a", truth, found), images=images)
    assert len(asked) <= 12 + 3 * 12
