"""`rankdet recipes`: list the recipes that come with the package, and explain them."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLES = """\
examples:
  rankdet recipes                               list them
  rankdet recipes atss_alrp-small               show one, complete
  rankdet recipes atss_alrp-small --set optimizer.lr=0.001
  rankdet recipes --keys                        every key, with its meaning
"""


def add_to(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "recipes",
        help="list and explain the recipes that come with rankdet",
        description="A recipe is a YAML file with everything that decides a training run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", help="a name from the list, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change it")
    parser.add_argument("--keys", action="store_true", help="explain every key")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """List or show."""
    from rich.console import Console
    from rich.table import Table

    from rankdet.config.load import dump, explain_keys, load_recipe, shipped

    console = Console()
    if not console.is_terminal:
        console.width = 200  # for grep and files: a key in one piece
    if given.recipe:
        print(dump(load_recipe(given.recipe, given.set)), end="")
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    if given.keys:
        for title in ("key", "type", "meaning"):
            table.add_column(title, overflow="fold")
        for row in explain_keys():
            table.add_row(*row)
    else:
        table.add_column("recipe", no_wrap=True)
        table.add_column("what it is")
        for name, description in shipped():
            table.add_row(name, description)
    console.print(table)
    return 0
