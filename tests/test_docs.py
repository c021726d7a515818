"""The documentation holds: its code runs, its numbers are right, its links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rankdet.losses import alrp_loss, ap_loss, rank_sort_loss
from rankdet.ops.rank import BACKENDS, rank_operator

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RANK = ROOT / "docs" / "maths" / "rank.md"

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.S | re.M
)
_NEEDS = re.compile(r"<!-- needs: (\S+) -->")
_NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*\Z")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    """A block of Python on a page."""

    line: int
    code: str


def python_blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of Python that are to be run."""
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        if fence["language"].strip().lower() not in ("python", "py") or _NOT_RUN.search(before):
            continue
        code = "\n".join(line.removeprefix(fence["indent"]) for line in fence["code"].split("\n"))
        yield Block(before.count("\n") + 1, code)


def run(text: str, name: str) -> dict[str, object]:
    """Run the blocks of a page in one namespace; errors name the line on the page."""
    namespace: dict[str, object] = {"__name__": "documentation"}
    for block in python_blocks(text):
        exec(compile("\n" * block.line + block.code, name, "exec"), namespace)
    return namespace


# What Lightning says of torch, and of a loader that needs no workers.
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text(encoding="utf-8")
    if not any(python_blocks(text)):
        pytest.skip("no code")
    for library in _NEEDS.findall(text):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    run(text, name_of(page))


def test_blocks_are_found_and_share_a_namespace() -> None:
    page = "\n".join(
        ["Text", "```python", "x = 1", "```", "```text", "1 / 0", "```", "- item", "",
         "  ```python", "  if x:", "      y = x + 1", "  ```", "<!-- not run: a reason -->",
         "```python", "x = 9", "```"]
    )  # fmt: skip
    namespace = run(page, "page")
    assert (namespace["x"], namespace["y"]) == (1, 2)
    assert [block.line for block in python_blocks(page)] == [2, 10]
    # Without a reason a block is not left out, and an error says where.
    with pytest.raises(ZeroDivisionError) as error:
        run("\n<!-- not run: -->\n```python\nx = 1\n1 / 0\n```", "page")
    assert (error.traceback[-1].path, error.traceback[-1].lineno) == ("page", 4)


def tables_of(section: str) -> list[list[dict[str, str]]]:
    """Return the tables of a section, each a list of rows by column name."""
    tables = []
    for table in re.findall(r"(?:^\|.*\|\n)+", section, re.M):
        head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")]
                          for line in table.splitlines())  # fmt: skip
        tables.append([dict(zip(head, row, strict=True)) for row in rows])
    return tables


def column(table: list[dict[str, str]], name: str) -> Tensor:
    """Return the numbers of a column, without the empty cells."""
    cells = [row[name] for row in table if row[name]]
    return torch.tensor([float(Fraction(cell)) for cell in cells], dtype=torch.float64)


def rank_example() -> list[list[dict[str, str]]]:
    text = RANK.read_text(encoding="utf-8")
    return tables_of(text.partition("\n## A worked example\n")[2].partition("\n## ")[0])


def close(result: Tensor, page: Tensor) -> None:
    torch.testing.assert_close(result.detach(), page, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])  # needs a GPU
def test_the_counts_of_the_worked_example(backend: str) -> None:
    examples, steps, ranks, knots = rank_example()[:4]
    logits, targets = column(examples, "logit"), column(examples, "target").int()
    loc_errors = column(examples, "E")
    pos, neg = logits[targets == 1], logits[targets == 0]

    # The steps, one by one.
    names = [row["example"] for row in examples]
    for place, row in enumerate(steps):
        for name, logit in zip(names, logits, strict=True):
            step = rank_operator(pos[place : place + 1], logit[None], 1.0, backend).counts()
            if row[name] or name != row["above"]:
                close(step, torch.tensor([float(Fraction(row[name]))], dtype=torch.float64))

    # Counts, ranks and errors.
    counts = rank_operator(pos, neg, 1.0, backend).counts()
    close(counts, column(ranks, "FP"))
    among = rank_operator(pos, pos, 1.0, backend)
    rank = 0.5 + among.counts() + counts
    close(rank, column(ranks, "rank"))
    close(counts / rank, column(ranks, "FP / rank"))
    above = among.counts(loc_errors) - loc_errors / 2
    close((loc_errors + above) / rank, column(ranks, "LRP localisation"))
    close((counts + above) / rank, column(ranks, "shared error"))

    # The knots, from the top down.
    scores = torch.cat([pos - 1, pos + 1]).sort().values.flip(0)
    close(scores, column(knots, "score"))
    lower = scores.unsqueeze(1)
    upper = torch.cat([torch.tensor([torch.inf]), scores[:-1]]).unsqueeze(1)
    inside = (neg > lower) & (neg <= upper)
    close(inside.sum(1).double(), column(knots, "n"))
    close(((neg - lower) * inside).sum(1), column(knots, "T"))
    close((neg > lower).sum(1).double(), column(knots, "C"))
    close((neg - lower).clamp(min=0).sum(1), column(knots, "G"))


def test_the_losses_of_the_worked_example() -> None:
    examples, _, _, _, values, gradients, sort_values, sort_gradients = rank_example()
    logits, targets = column(examples, "logit").requires_grad_(), column(examples, "target").int()
    loc_errors = column(examples, "E").requires_grad_()
    terms = alrp_loss(logits, targets, loc_errors)
    hard = alrp_loss(logits, targets, loc_errors, loc_ranking="hard")
    average_precision = ap_loss(logits, targets)
    results = [terms.classification, terms.localisation, hard.localisation, average_precision]
    assert [row["value"] for row in values] == [
        "aLRP classification", "aLRP localisation, smooth", "aLRP localisation, hard", "AP Loss"
    ]  # fmt: skip
    close(torch.stack(results), column(values, "result"))
    (of_logits,) = torch.autograd.grad(terms.classification, logits)
    (of_errors,) = torch.autograd.grad(terms.localisation, loc_errors)
    close(of_logits, column(gradients, "gradient of its logit"))
    close(of_errors, column(gradients, "gradient of its E"))
    assert "add up to -25/48, the negatives' to +25/48" in RANK.read_text(encoding="utf-8")
    assert of_logits[targets == 1].sum().item() == pytest.approx(-25 / 48, rel=1e-13)
    assert of_logits[targets == 0].sum().item() == pytest.approx(25 / 48, rel=1e-13)

    # Rank & Sort on the same scores.
    ious = torch.tensor([3 / 4, 1 / 2], dtype=torch.float64)
    both = rank_sort_loss(logits, targets, ious, delta=1.0)
    close(torch.stack(both), column(sort_values, "result"))
    (ranking,) = torch.autograd.grad(both.ranking, logits, retain_graph=True)
    (sorting,) = torch.autograd.grad(both.sorting, logits)
    close(ranking, column(sort_gradients, "gradient of the ranking part"))
    close(sorting, column(sort_gradients, "gradient of the sorting part"))


def test_the_gradient_of_the_example_belongs_to_no_function() -> None:
    examples = rank_example()[0]
    logits, targets = column(examples, "logit"), column(examples, "target").int()

    def gradient(of: int, moved: int, by: float) -> float:
        place = logits.clone()
        place[moved] += by
        place.requires_grad_()
        return float(torch.autograd.grad(ap_loss(place, targets), place)[0][of])

    one, other = (
        (gradient(i, k, 1e-5) - gradient(i, k, -1e-5)) / 2e-5 for i, k in [(0, 1), (1, 0)]
    )
    assert "3/64 and 5/144" in RANK.read_text(encoding="utf-8")
    assert one == pytest.approx(3 / 64, rel=1e-6)
    assert other == pytest.approx(5 / 144, rel=1e-6)


_CODE_OR_MATHS = re.compile(r"^ *```.*?^ *```|`[^`\n]*`|<!--.*?-->|\$[^$\n]+\$", re.S | re.M)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^ {0,3}\[[^\]\n]+\]:\s*<?(\S+?)>?\s*$", re.M)


def links(text: str) -> list[str]:
    """Return the targets of the links that stay within the project."""
    prose = _CODE_OR_MATHS.sub("", text)
    targets = [inline or reference for inline, reference in _LINK.findall(prose)]
    return [target for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.I)]


def anchors(text: str) -> set[str]:
    """Return what the headings of a page are called in links, as GitHub makes them."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (unique := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(unique)
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(f"{link}: no such file in the project")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            broken.append(f"{link}: no such heading")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A *title*, of `two`\n\n# Same\n\n# Same\n```\n# no heading\n```\n")
    good = ["other.md", "other.md#a-title-of-two", "other.md#same-1", "https://x.org/no.md"]
    bad = ["none.md", "other.md#none", "other.md#no-heading", "../../etc"]
    page.write_text("\n".join(f"[text]({link})" for link in [*good, *bad]) + "\n`[a](b.md)`\n")
    assert [text.partition(":")[0] for text in broken_links(page)] == bad
    page.write_text("[one][two]\n\n[two]: none.md\n")
    assert len(broken_links(page)) == 1
