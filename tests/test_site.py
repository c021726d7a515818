"""The documentation site: it builds without a warning, says all, and fetches nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import rankdet.assign
import rankdet.criteria
import rankdet.eval
import rankdet.losses
import rankdet.ops.rank

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("mkdocs", reason="mkdocs is not installed")


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a repository, as `make site` does."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Seen(HTMLParser):
    """Collects what a page points at."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        fetches = tag in ("script", "img", "iframe") or (
            tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload")
        )
        for name in ("src", "href"):
            if address := found.get(name):
                (self.fetched if fetches else self.links).append(address)


def seen(page: Path) -> Seen:
    found = Seen()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def test_every_page_is_built_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    sources = list((ROOT / "docs").rglob("*.md"))
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    assert {page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
            for page in sources} <= pages  # fmt: skip
    for page in pages:
        for address in seen(site / page).fetched:
            assert "//" not in address, (page, address)
            assert (site / page).parent.joinpath(address).is_file() or page == "404.html"


def test_files_of_the_repository_come_along(site: Path) -> None:
    for page, file in (
        ("how-to/export.html", "examples/run_onnx.py"),
        ("results/performance.html", "benchmarks/results/growth-n-cpu.png"),
        ("maths/rank.html", "src/rankdet/ops/rank/reference.py"),
    ):
        found = seen(site / page)
        (address,) = {each for each in found.links + found.fetched if file in each}
        copy = (site / page).parent / address
        assert copy.read_bytes() == (ROOT / file).read_bytes()


def test_formulas_are_shown_without_a_script(site: Path) -> None:
    page = (site / "maths" / "losses.html").read_text(encoding="utf-8")
    assert page.count("<math") >= page.count('display="block"') >= 3
    for each in site.rglob("*.html"):
        assert "arithmatex" not in each.read_text(encoding="utf-8"), each


@pytest.mark.parametrize(
    ("page", "module"),
    [("losses", rankdet.losses), ("criteria", rankdet.criteria), ("assign", rankdet.assign),
     ("eval", rankdet.eval), ("rank", rankdet.ops.rank)],
)  # fmt: skip
def test_the_reference_has_every_public_name(site: Path, page: str, module: object) -> None:
    text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'id="([\w.]+)"', text))
    name = getattr(module, "__name__", "")
    public = getattr(module, "__all__", ())
    assert public
    # A function may have the name of its file.
    lacking = {each for each in public if not {f"{name}.{each}", f"{name}.{each}.{each}"} & ids}
    assert not lacking


def test_a_link_that_leads_nowhere_breaks_the_build(tmp_path: Path) -> None:
    for name in ("docs", "examples", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    for file in ("mkdocs.yml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write("\n[a](nowhere.md) [b](../examples/nowhere.py) [c](results/tables.md#nowhere)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    for link in ("nowhere.md", "../examples/nowhere.py", "#nowhere"):
        assert link in done.stdout + done.stderr
