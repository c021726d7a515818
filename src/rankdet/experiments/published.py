"""The published numbers, as data with their source; what we measure never stands in here.

All numbers are in points, hundredths of AP or of oLRP, as the papers print them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_RESPONSE = (
    'Oksuz, Cam, Akbas, Kalkan, author response to the reviews of "A Ranking-based, Balanced Loss '
    'Function Unifying Classification and Localisation in Object Detection", NeurIPS 2020, Table '
)


@dataclass(frozen=True)
class Published:
    """What a paper prints of one table."""

    setting: str
    """What it was measured on; heads the columns."""
    source: str
    values: Mapping[tuple[str, str], float]
    """By row and measure, in points; what was not published is not there."""

    def value(self, row: str, measure: str) -> float | None:
        """Return a published number in points, or None."""
        return self.values.get((row, measure))


def _grid(
    measures: tuple[str, ...], rows: Mapping[str, tuple[float, ...]]
) -> dict[tuple[str, str], float]:
    return {
        (row, measure): value
        for row, values in rows.items()
        for measure, value in zip(measures, values, strict=True)
    }


PUBLISHED: Mapping[str, Published] = {
    "a1": Published(
        setting="COCO, R-50, 100 epochs",
        source=f"{_RESPONSE}A1",
        values=_grid(
            ("AP at 50 %", "AP at 75 %", "AP"),
            {"fovea_focal": (29.5, 38.5, 39.8), "fovea_alrp": (34.0, 39.7, 40.3)},
        ),
    ),
    "a2": Published(
        setting="COCO minitrain, R-50",
        source=f"{_RESPONSE}A2",
        values=_grid(("AP",), {"atss_own": (30.9,), "atss_alrp": (32.0,)}),
    ),
    "a3": Published(
        setting="COCO, R-50, 100 epochs",
        source=f"{_RESPONSE}A3",
        values=_grid(
            ("AP, 0-3", "AP, 4-10", "AP, 11-20", "AP, 21-62"),
            {
                "retinanet_focal": (52.5, 39.3, 31.5, 22.9),
                "retinanet_ap": (51.9, 38.3, 30.4, 23.9),
                "retinanet_alrp": (56.3, 42.0, 33.5, 25.5),
            },
        ),
    ),
    "a4": Published(
        setting="COCO minitrain, R-50",
        source=f"{_RESPONSE}A4",
        values=_grid(
            ("AP",),
            {
                "retinanet_alrp-w1": (27.3,),
                "retinanet_alrp-w5": (30.5,),
                "retinanet_alrp-w10": (30.8,),
                "retinanet_alrp-w15": (30.4,),
                "retinanet_alrp": (30.9,),
            },
        ),
    ),
    "main": Published(
        setting="COCO, R-50, 100 epochs",
        source="Oksuz, Cam, Akbas, Kalkan, NeurIPS 2020, ResNet-50 at scale 500 on minival; oLRP "
        "of RetinaNet from the same authors' ablation code",
        values=_grid(
            ("AP", "oLRP"),
            {
                "retinanet_ap": (35.4, 71.0),
                "retinanet_alrp": (39.0, 68.4),
                "atss_alrp": (41.0, 67.3),
                "fovea_focal": (38.3, 68.8),
                "fovea_ap": (36.5, 69.8),
                "fovea_alrp": (39.7, 67.2),
                "faster_rcnn_ce": (37.8, 69.3),
                "faster_rcnn_ce_giou": (38.2, 69.0),
                "faster_rcnn_alrp": (40.7, 66.7),
            },
        ),
    ),
}
"""By the name of the table."""
