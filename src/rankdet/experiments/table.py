"""What a table is: rows, measures and the runs behind them, at a scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from rankdet.config.load import load_recipe
from rankdet.config.recipe import Recipe

Scale = Literal["tiny", "small", "paper"]
SCALES: tuple[Scale, ...] = ("tiny", "small", "paper")

TINY = (
    "schedule.steps=1500",
    "data.train_size=128",
    "data.test_shorter=128",
    "data.test_longer=128",
    "data.augment.kind=plain",
)
"""What makes a small recipe last minutes on a CPU, as `recipes/demo.yaml` does."""

COCO_IMAGES = 118_287
"""Of train2017."""
MINITRAIN_IMAGES = 25_000


@dataclass(frozen=True)
class Measure:
    """A number that is read off a run."""

    name: str
    """Heads its column."""
    of: Literal["AP", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn", "pearson"]
    """"pearson": the correlation of score and IoU among what is right."""
    share: float = 1.0
    """Of the schedule, where it is read."""
    objects: str | None = None
    """Only of images with so many objects: the label of a bin of the score."""
    compared: bool = True
    """Whether rows are compared by it."""

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better."""
        return self.of in ("AP", "pearson")

    @property
    def of_kept_model(self) -> bool:
        """Whether only the score of the kept model has it, that of the best evaluation."""
        return self.objects is not None or self.of == "pearson"


@dataclass(frozen=True)
class Row:
    """A way of training: a row of a table."""

    name: str
    """Of its runs; the same in all tables."""
    label: str
    small: str
    """The small recipe; `tiny` is made from it."""
    paper: str
    """The published recipe."""
    changes: tuple[str, ...] = ()
    """What it changes of both, "KEY=VALUE" each."""
    small_changes: tuple[str, ...] = ()
    """What it changes of the small one, because there is no recipe for it."""
    paper_changes: tuple[str, ...] = ()
    """Likewise of the published one."""
    evaluations: int = 1
    """How often, evenly spread; the last is at the end."""


@dataclass(frozen=True)
class Table:
    """A table of the paper, or of a study of ours."""

    name: str
    title: str
    rows: tuple[Row, ...]
    measures: tuple[Measure, ...]
    comparisons: tuple[tuple[str, str], ...]
    """Pairs of rows: the first is compared with the second."""
    images: int = COCO_IMAGES
    """Training images at the scale of the paper."""

    def label(self, name: str) -> str:
        """Return what a row is called, without what all rows of the table begin with."""
        parts = [row.label.split(", ") for row in self.rows]
        shared = 0
        while all(shared < len(each) - 1 and each[shared] == parts[0][shared] for each in parts):
            shared += 1
        return ", ".join(self.row(name).label.split(", ")[shared:])

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)

    def only(self, names: Sequence[str]) -> Table:
        """Return the table with these rows alone, in its own order.

        Raises:
            ValueError: there is no such row.
        """
        there = [row.name for row in self.rows]
        for name in names:
            if name not in there:
                raise ValueError(
                    f"table {self.name} has no row {name!r}; it has {', '.join(there)}"
                )
        return replace(
            self,
            rows=tuple(row for row in self.rows if row.name in names),
            comparisons=tuple(pair for pair in self.comparisons if {*pair} <= {*names}),
        )

    def measure(self, name: str) -> Measure:
        """Return a measure by its name."""
        return next(measure for measure in self.measures if measure.name == name)


@dataclass(frozen=True)
class Run:
    """One training: a row with a seed."""

    row: str
    recipe: str
    """Name of a shipped recipe."""
    changes: tuple[str, ...]
    """What is changed of it, the seed included."""
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.row}-seed{self.seed}"

    @cached_property
    def wanted(self) -> Recipe:
        """The whole recipe.

        Raises:
            RecipeError: a change is wrong.
        """
        return load_recipe(self.recipe, self.changes)


def runs(table: Table, scale: Scale, *, seeds: int, changes: Sequence[str] = ()) -> tuple[Run, ...]:
    """Return all runs of a table, all rows of one seed before the next seed.

    So an interrupted table has whole rows to compare, if of fewer seeds.

    Args:
        table: which.
        scale: "tiny", "small" or "paper".
        seeds: number of seeds, 1 or more: 0, 1, ...
        changes: of all runs, "KEY=VALUE" each; they win over the table's own.
    """
    return tuple(
        one_run(row, scale, seed=seed, changes=changes)
        for seed in range(seeds)
        for row in table.rows
    )


def one_run(row: Row, scale: Scale, *, seed: int, changes: Sequence[str] = ()) -> Run:
    """Return one run of a row; see `runs`."""
    own = [*row.changes, *(row.paper_changes if scale == "paper" else row.small_changes)]
    if scale == "tiny":
        own += TINY
    if own:
        # What is changed should not pass for what is shipped.
        own = [f"name={row.name}-{scale}", f"description={row.label}, scale {scale}", *own]
    own.append(f"training.evaluations={row.evaluations}")
    return Run(
        row=row.name,
        recipe=row.paper if scale == "paper" else row.small,
        changes=(*own, *changes, f"training.seed={seed}"),
        seed=seed,
    )


AP = Measure("AP", "AP")
OLRP = Measure("oLRP", "oLRP")
PARTS = (
    Measure("loc", "oLRP_loc", compared=False),
    Measure("FP", "oLRP_fp", compared=False),
    Measure("FN", "oLRP_fn", compared=False),
)
CORRELATION = Measure("r", "pearson", compared=False)
