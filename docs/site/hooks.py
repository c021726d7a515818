"""What the documentation site needs beside its pages: files of the repository they link to.

A page links to a script, a plot or a source file by its path, as one follows it in the repository.
Such a file is put into the site, and the link is turned to it there. A link that leads nowhere is
left as it is; the build, which is strict, then fails on it.

Formulas become MathML while the site is built, which browsers show without a script from elsewhere.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?=[)#])")
_INSIDE = "files"
"""Where files of the repository lie in the site."""


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn links that leave the folder of the pages to copies in the site."""
    pages = Path(config.docs_dir)
    root = pages.parent
    here = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        target = normpath(f"{pages.name}/{dirname(here)}/{match['path']}")
        if target.startswith((f"{pages.name}/", "../")) or not (root / target).is_file():
            return match[0]
        if target == "README.md":
            return relpath("index.md", dirname(here) or ".")
        copy = f"{_INSIDE}/{target}"
        if target.endswith((".py", ".md")):  # read in the browser, not downloaded or run
            copy += ".txt"
        if files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, content=(root / target).read_bytes()))
        return relpath(copy, dirname(here) or ".")

    return _LINK.sub(turned, markdown)


_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.S
)


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas from TeX to MathML."""

    def turned(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        return convert(html.unescape(match["tex"]).strip(), display=display)

    return _FORMULA.sub(turned, content)
