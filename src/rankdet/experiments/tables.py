"""The tables of the paper: which runs each consists of, and what is read off them.

Within a table all runs share everything but the loss; at scale `paper` they also differ in what the
published recipes differ in. `main` has several detectors.

How often a run is evaluated does not change what it learns. A run is evaluated where a table has a
number of it or its plot a point. Nothing is selected on the validation images: a number is of the
model at that point of its schedule, not of the best of several. What only the kept model's score
has (images by their objects, r) is of the best evaluation; if that is not the last, the table says
so.
"""

from __future__ import annotations

from collections.abc import Mapping

from rankdet.experiments.studies import STUDIES
from rankdet.experiments.table import (
    AP,
    MINITRAIN_IMAGES,
    OLRP,
    PARTS,
    Measure,
    Row,
    Table,
)

_RETINANET = (
    Row("retinanet_focal", "RetinaNet, Focal + Smooth L1", "retinanet_focal-small",
        "retinanet_r50_focal"),
    Row("retinanet_ap", "RetinaNet, AP + Smooth L1", "retinanet_ap-small", "retinanet_r50_ap"),
    Row("retinanet_alrp", "RetinaNet, aLRP", "retinanet_alrp_published-small",
        "retinanet_r50_alrp"),
)  # fmt: skip
_SELF = _RETINANET[2]
_ATSS_ALRP = Row("atss_alrp", "ATSS, aLRP", "atss_alrp_published-small", "atss_r50_alrp")
# Three points of the schedule lie at quarters.
_FOVEA = (
    Row("fovea_focal", "FoveaBox, Focal + Smooth L1", "fovea_focal-small", "fovea_r50_focal",
        evaluations=4),
    Row("fovea_ap", "FoveaBox, AP + Smooth L1", "fovea_ap-small", "fovea_r50_ap", evaluations=4),
    Row("fovea_alrp", "FoveaBox, aLRP", "fovea_alrp_published-small", "fovea_r50_alrp",
        evaluations=4),
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
        AP,
        OLRP,
        *PARTS,
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
    measures=(AP, OLRP, *PARTS),
    comparisons=(("atss_alrp", "atss_own"),),
    images=MINITRAIN_IMAGES,
)

_A3 = Table(
    name="a3",
    title="Table A3: RetinaNet with three losses, by the number of objects in the image",
    rows=_RETINANET,
    measures=(
        AP,
        *(
            Measure(f"AP, {objects}", "AP", objects=objects)
            for objects in ("0-3", "4-10", "11-20", "21-62", "63+")
        ),
        OLRP,
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
    measures=(AP, OLRP, *PARTS),
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
        Row("faster_rcnn_alrp", "Faster R-CNN, aLRP", "faster_rcnn_alrp_published-small",
            "faster_rcnn_r50_alrp"),
    ),
    measures=(AP, OLRP, *PARTS),
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

PAPER: tuple[Table, ...] = (_A1, _A2, _A3, _A4, _MAIN)
"""What the paper has."""
TABLES: Mapping[str, Table] = {table.name: table for table in (*PAPER, *STUDIES)}
"""By name, as the command line has them."""
