"""The report in a real browser: headless Chromium, where there is one (see browser_setup.sh)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankdet.eval import score
from rankdet.eval.report import RunForReport, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Chooses the first class and notes what can be seen before and after, in the page itself.
DRIVER = """
const seen = (selector) => [...document.querySelectorAll(selector)]
  .filter((e) => getComputedStyle(e).display !== "none").length;
const look = () => ({
  curves: seen(".curve"), means: seen(".mean"), rows: seen(".classes tbody"),
  labels: seen(".best text"), outcomes: seen(".outcomes tbody tr"), figures: seen("figure"),
  notes: seen(".no-match"),
});
const result = {
  charts: [...document.querySelectorAll("svg.chart")].map((e) => e.getBoundingClientRect().height),
  pictures: seen(".pictures image, .crops image"),
  tooWide: document.documentElement.scrollWidth - window.innerWidth,
};
const choice = document.getElementById("class-filter");
const choose = (value) => { choice.value = value; choice.dispatchEvent(new Event("change")); };
result.all = look();
choose("0"); result.first = look();
choose("2"); result.third = look();
choose(""); result.again = look();
document.body.setAttribute("data-result", JSON.stringify(result));
"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip(f"no browser here (looked for {', '.join(BROWSERS)}): `make browser` installs one")


def report(path: Path) -> None:
    random = np.random.default_rng(0)
    truth: dict[str, Any] = {
        "images": [{"id": i} for i in range(6)],
        "categories": [{"id": k, "name": f"<b>{k}</b>"} for k in range(3)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": n % 6,
                "category_id": n % 2,
                "bbox": [*random.uniform(0, 60, 2), 30.0, 30.0],
            }
            for n in range(40)
        ],
    }
    found = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"] if n % 7 else 2,
            "bbox": [a["bbox"][0] + n % 9, a["bbox"][1], 30.0, 30.0],
            "score": 0.04 / (n + 1),
        }
        for n, a in enumerate(truth["annotations"])
    ]
    both = [RunForReport(name, score(truth, found), truth, found) for name in ("a", "b")]
    image = random.integers(0, 255, (100, 100, 3), dtype=np.uint8)
    write_report(path, both, title="In a browser", images=lambda _: image)


def opened(browser: str, page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """Return the page as it is after its scripts ran, and what the console says."""
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={profile}", "--dump-dom", *options, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_it_opens_without_a_word_on_the_console(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    report(page)
    dom, console = opened(browser, page, tmp_path / "profile")
    assert console == []
    assert '<html lang="en" class="js">' in dom, "the script has run under the page's own policy"


def test_a_planted_error_is_seen_and_a_planted_script_does_not_run(
    browser: str, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    report(page)
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", "<script>document.title='x'</script></body>"))
    dom, console = opened(browser, page, tmp_path / "profile")
    assert len(console) == 1
    assert "Content Security Policy" in console[0]
    assert "<title>In a browser</title>" in dom


@pytest.mark.parametrize("width", [1200, 500])
def test_charts_are_there_and_the_choice_of_a_class_works(
    width: int, browser: str, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    report(page)
    text = page.read_text(encoding="utf-8")
    text = re.sub("<meta http-equiv[^>]*>", "", text)  # it would stop the driver
    page.write_text(text.replace("</body>", f"<script>{DRIVER}</script></body>"), encoding="utf-8")
    dom, console = opened(browser, page, tmp_path / "profile", f"--window-size={width},900")
    assert console == []
    written = re.search('data-result="([^"]*)"', dom)
    assert written
    result = json.loads(unescape(written[1]))
    # Precision-recall, LRP, two of score against IoU, two by number.
    assert len(result["charts"]) == 6
    assert min(result["charts"]) > 150
    assert result["pictures"] >= 8
    assert result["tooWide"] <= 0
    everything = result["all"]
    assert everything == result["again"]
    assert (everything["rows"], everything["curves"], everything["means"]) == (3, 8, 4)
    assert (everything["labels"], everything["notes"]) == (0, 0)
    first = result["first"]
    assert (first["rows"], first["curves"], first["means"], first["outcomes"]) == (1, 4, 0, 2)
    assert first["labels"] == 4
    assert 6 <= first["figures"] < everything["figures"]
    third = result["third"]
    assert (third["curves"], third["labels"]) == (0, 0)
