"""Studies of ours, of the kind of the paper's tables: tuning, and what aLRP Loss balances by.

All but `detectors` are of ATSS, without centreness. Rows of one detector differ in the loss alone.
"""

from __future__ import annotations

from rankdet.experiments.table import AP, CORRELATION, OLRP, PARTS, Measure, Row, Table

_PUBLISHED = "atss_alrp_published-small"
_NO_CENTRENESS = ("model.centreness=false",)


def _alrp(
    name: str, label: str, localisation: str, *balance: str, more: tuple[str, ...] = ()
) -> Row:
    return Row(
        f"atss_alrp-{name}",
        f"ATSS, aLRP, {label}",
        _PUBLISHED,
        "atss_r50_alrp",
        changes=(
            f"criterion.localisation={localisation}",
            *(f"criterion.balance.{change}" for change in balance),
            *more,
        ),
        evaluations=4,
    )


def _focal(box: str, name: str, label: str, *changes: str, paper: tuple[str, ...] = ()) -> Row:
    return Row(
        f"atss_focal{box}{name}",
        f"ATSS, {label}",
        f"atss_focal{box}-small",
        "atss_r50_focal",
        changes=tuple(f"criterion.{change}" for change in changes),
        paper_changes=(*_NO_CENTRENESS, *paper),
        evaluations=4,
    )


_OURS = _alrp("mean-gradient", "mean localisation, balance by gradients", "mean", "kind=gradient")
_AS_PUBLISHED = _alrp("ranked-self", "as published", "ranked", "kind=self", "initial=50")
_SMOOTH_L1 = ("criterion.box.kind=smooth_l1",)
_FOCAL = _focal("", "", "Focal + Smooth L1", paper=(*_SMOOTH_L1, "criterion.box_weight=1.0"))
_FOCAL_GIOU = _focal("_giou", "", "Focal + 2 GIoU")
_QUARTERS = tuple(
    Measure(f"AP at {100 * share:g} %", "AP", share=share, compared=False)
    for share in (0.25, 0.5, 0.75)
)

_LOSSES = Table(
    name="losses",
    title="No tuning: losses with the settings they are shipped with, ATSS",
    rows=(
        _OURS,
        _AS_PUBLISHED,
        _FOCAL,
        _FOCAL_GIOU,
    ),
    measures=(*_QUARTERS, AP, OLRP, *PARTS, CORRELATION),
    comparisons=(
        (_OURS.name, _AS_PUBLISHED.name),
        (_OURS.name, "atss_focal"),
        (_OURS.name, _FOCAL_GIOU.name),
        (_AS_PUBLISHED.name, "atss_focal"),
        (_AS_PUBLISHED.name, _FOCAL_GIOU.name),
    ),
)

_SEARCHED = (
    _FOCAL_GIOU,
    _focal("_giou", "-w1", "Focal + GIoU, weight 1", "box_weight=1.0"),
    _focal("_giou", "-w4", "Focal + GIoU, weight 4", "box_weight=4.0"),
    _focal("_giou", "-alpha50", "Focal + 2 GIoU, alpha 0.5", "classification.alpha=0.5"),
    _focal("_giou", "-gamma1", "Focal + 2 GIoU, gamma 1", "classification.gamma=1.0"),
    _focal("_giou", "-gamma1-w1", "Focal + GIoU, gamma 1, weight 1", "classification.gamma=1.0",
                "box_weight=1.0"),
    _FOCAL,
    _focal("", "-w05", "Focal + Smooth L1, weight 0.5", "box_weight=0.5", paper=_SMOOTH_L1),
    _focal("", "-w025", "Focal + Smooth L1, weight 0.25", "box_weight=0.25", paper=_SMOOTH_L1),
)  # fmt: skip

_SEARCH = Table(
    name="search",
    title="What a small search finds for focal loss, against no search, ATSS",
    rows=(_OURS, *_SEARCHED),
    measures=(*_QUARTERS, AP, OLRP, *PARTS, CORRELATION),
    comparisons=tuple((_OURS.name, row.name) for row in _SEARCHED),
)

_BALANCE = Table(
    name="balance",
    title="aLRP: localisation by rank or as a mean, and what it is balanced by, ATSS",
    rows=(
        _AS_PUBLISHED,
        # Small recipes renew the weight every so many steps: an epoch is most of such a run.
        _alrp("ranked-self-epoch", "as published, renewed each epoch", "ranked", "kind=self",
              "initial=50", more=("schedule.balance_period=epoch",)),
        _alrp("ranked-measured", "ranked, self-balance from a measured start", "ranked",
              "kind=self", "initial=measured"),
        _alrp("ranked-gradient", "ranked, balance by gradients", "ranked", "kind=gradient"),
        _alrp("mean-self", "mean, self-balance", "mean", "kind=self", "initial=50"),
        _alrp("mean-w5", "mean, w_r = 5", "mean", "kind=scalar", "w_r=5"),
        _OURS,
        # Positives in the order of their IoU, box losses weighed by score.
        Row("atss_rank_sort", "ATSS, Rank & Sort", "atss_rank_sort-small", "atss_r50_alrp",
            paper_changes=("criterion.kind=rank_sort",), evaluations=4),
    ),
    measures=(*_QUARTERS, AP, OLRP, *PARTS, CORRELATION),
    comparisons=(
        ("atss_alrp-ranked-self-epoch", _AS_PUBLISHED.name),
        ("atss_alrp-ranked-measured", _AS_PUBLISHED.name),
        ("atss_alrp-ranked-gradient", _AS_PUBLISHED.name),
        ("atss_alrp-mean-self", _AS_PUBLISHED.name),
        (_OURS.name, _AS_PUBLISHED.name),
        (_OURS.name, "atss_alrp-mean-self"),
        (_OURS.name, "atss_alrp-mean-w5"),
        (_OURS.name, "atss_alrp-ranked-gradient"),
        (_OURS.name, "atss_rank_sort"),
    ),
)  # fmt: skip

# The published rows are those of the paper's tables: such a run is trained once.
_DETECTORS = (
    ("retinanet", "RetinaNet", 1, ("criterion",)),
    ("atss", "ATSS", 1, ("criterion",)),
    ("fovea", "FoveaBox", 4, ("criterion",)),
    ("fcos", "FCOS", 1, ("criterion",)),
    ("faster_rcnn", "Faster R-CNN", 1, ("criterion.first", "criterion.second")),
)

_BY_DETECTOR = Table(
    name="detectors",
    title="aLRP as published, and with a mean localisation balanced by gradients, by detector",
    rows=tuple(
        row
        for name, label, evaluations, places in _DETECTORS
        for row in (
            Row(f"{name}_alrp", f"{label}, aLRP", f"{name}_alrp_published-small",
                f"{name}_r50_alrp", evaluations=evaluations),
            Row(f"{name}_alrp-by-gradients", f"{label}, aLRP, mean, by gradients",
                f"{name}_alrp_published-small", f"{name}_r50_alrp",
                changes=tuple(f"{place}.{change}" for place in places
                              for change in ("localisation=mean", "balance.kind=gradient")),
                evaluations=evaluations),
        )
    ),
    measures=(AP, OLRP, *PARTS),
    comparisons=tuple(
        (f"{name}_alrp-by-gradients", f"{name}_alrp") for name, *_ in _DETECTORS
    ),
)  # fmt: skip

STUDIES: tuple[Table, ...] = (_LOSSES, _SEARCH, _BALANCE, _BY_DETECTOR)
"""Tables that no paper has."""
