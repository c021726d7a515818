"""The tables: which runs each consists of, at which scale, and what is read off them.

Within a table all runs share everything but the loss; at scale `paper` they also differ in what the
published recipes differ in. `main` has several detectors.

How often a run is evaluated does not change what it learns. A run is evaluated where a table has a
number of it and nowhere else, so nothing is selected on the validation images: every number is of
the model at that point of its schedule, not of the best of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    of: Literal["AP", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn"]
    share: float = 1.0
    """Of the schedule, where it is read."""
    objects: str | None = None
    """Only of images with so many objects: the label of a bin of the score."""
    compared: bool = True
    """Whether rows are compared by it."""

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better."""
        return self.of == "AP"


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
    evaluations: int = 1
    """How often, evenly spread; the last is at the end."""


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

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
    own = [*row.changes]
    if scale != "paper":
        own += row.small_changes
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


_AP = Measure("AP", "AP")
_OLRP = Measure("oLRP", "oLRP")
_PARTS = (
    Measure("loc", "oLRP_loc", compared=False),
    Measure("FP", "oLRP_fp", compared=False),
    Measure("FN", "oLRP_fn", compared=False),
)

_RETINANET = (
    Row("retinanet_focal", "RetinaNet, Focal + Smooth L1", "retinanet_focal-small",
        "retinanet_r50_focal"),
    Row("retinanet_ap", "RetinaNet, AP + Smooth L1", "retinanet_ap-small", "retinanet_r50_ap"),
    Row("retinanet_alrp", "RetinaNet, aLRP", "retinanet_alrp-small", "retinanet_r50_alrp"),
)  # fmt: skip
_SELF = _RETINANET[2]
_ATSS_ALRP = Row("atss_alrp", "ATSS, aLRP", "atss_alrp-small", "atss_r50_alrp")
# Three points of the schedule lie at quarters.
_FOVEA = (
    Row("fovea_focal", "FoveaBox, Focal + Smooth L1", "fovea_focal-small", "fovea_r50_focal",
        evaluations=4),
    Row("fovea_ap", "FoveaBox, AP + Smooth L1", "fovea_ap-small", "fovea_r50_ap", evaluations=4),
    Row("fovea_alrp", "FoveaBox, aLRP", "fovea_alrp-small", "fovea_r50_alrp", evaluations=4),
)  # fmt: skip


def _weighted(w_r: int) -> Row:
    return Row(
        f"retinanet_alrp-w{w_r}",
        f"RetinaNet, aLRP, w_r = {w_r}",
        _SELF.small,
        _SELF.paper,
        changes=("criterion.balance.kind=scalar", f"criterion.balance.w_r={w_r}"),
    )


_A1 = Table(
    name="a1",
    title="Table A1: FoveaBox with three losses, at three points of the schedule",
    rows=_FOVEA,
    measures=(
        Measure("AP at 50 %", "AP", share=0.5),
        Measure("AP at 75 %", "AP", share=0.75),
        _AP,
        _OLRP,
        *_PARTS,
    ),
    comparisons=(("fovea_alrp", "fovea_focal"), ("fovea_alrp", "fovea_ap")),
)

_A2 = Table(
    name="a2",
    title="Table A2: ATSS with its own loss and with aLRP",
    rows=(
        Row(
            "atss_own",
            "ATSS, its own loss (Focal, GIoU, centreness)",
            "atss_focal_giou-small",
            "atss_r50_focal",
            # The branch belongs to the loss; the small recipe leaves it out.
            small_changes=("model.centreness=true",),
        ),
        _ATSS_ALRP,
    ),
    measures=(_AP, _OLRP, *_PARTS),
    comparisons=(("atss_alrp", "atss_own"),),
    images=MINITRAIN_IMAGES,
)

_A3 = Table(
    name="a3",
    title="Table A3: RetinaNet with three losses, by the number of objects in the image",
    rows=_RETINANET,
    measures=(
        _AP,
        *(
            Measure(f"AP, {objects}", "AP", objects=objects)
            for objects in ("0-3", "4-10", "11-20", "21-62", "63+")
        ),
        _OLRP,
    ),
    comparisons=(("retinanet_alrp", "retinanet_focal"), ("retinanet_alrp", "retinanet_ap")),
)

_A4 = Table(
    name="a4",
    title="Table A4: aLRP with a constant weight of localisation, a learned one, and self-balance",
    rows=(
        *(_weighted(w_r) for w_r in (1, 5, 10, 15)),
        Row(
            "retinanet_alrp-learned",
            "RetinaNet, aLRP, learned weights",
            _SELF.small,
            _SELF.paper,
            changes=("criterion.balance.kind=learned",),
        ),
        Row(_SELF.name, "RetinaNet, aLRP, self-balance", _SELF.small, _SELF.paper),
    ),
    measures=(_AP, _OLRP, *_PARTS),
    comparisons=tuple(
        (_SELF.name, f"retinanet_alrp-{other}") for other in ("w1", "w5", "w10", "w15", "learned")
    ),
    images=MINITRAIN_IMAGES,
)

_MAIN = Table(
    name="main",
    title="Main table: detectors and losses",
    rows=(
        *_RETINANET,
        Row("free_anchor", "FreeAnchor (RetinaNet)", "free_anchor-small", "free_anchor_r50"),
        Row("retinanet_dr", "RetinaNet, DR + Smooth L1", "retinanet_dr-small", "retinanet_r50_dr"),
        _ATSS_ALRP,
        *_FOVEA,
        Row("faster_rcnn_ce", "Faster R-CNN, CE + Smooth L1", "faster_rcnn_ce-small",
            "faster_rcnn_r50_ce"),
        Row("faster_rcnn_ce_giou", "Faster R-CNN, CE + GIoU", "faster_rcnn_ce-small",
            "faster_rcnn_r50_ce_giou",
            # As the published recipe changes its own baseline.
            small_changes=("criterion.second.box.kind=giou", "criterion.second.box_weight=10.0")),
        Row("faster_rcnn_alrp", "Faster R-CNN, aLRP", "faster_rcnn_alrp-small",
            "faster_rcnn_r50_alrp"),
    ),
    measures=(_AP, _OLRP, *_PARTS),
    comparisons=(
        ("retinanet_alrp", "retinanet_focal"),
        ("retinanet_alrp", "retinanet_ap"),
        ("retinanet_alrp", "free_anchor"),
        ("retinanet_alrp", "retinanet_dr"),
        ("atss_alrp", "retinanet_alrp"),
        ("fovea_alrp", "fovea_focal"),
        ("fovea_alrp", "fovea_ap"),
        ("faster_rcnn_alrp", "faster_rcnn_ce"),
        ("faster_rcnn_alrp", "faster_rcnn_ce_giou"),
    ),
)  # fmt: skip

TABLES: Mapping[str, Table] = {table.name: table for table in (_A1, _A2, _A3, _A4, _MAIN)}
"""By name, as the command line has them."""
