"""The pictures beside a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rankdet.cli.reporting import picture_names
from rankdet.data.imageset import Record


def test_pictures_of_images_with_one_name_do_not_replace_each_other() -> None:
    records = [
        Record(
            path=Path(path),
            id=number,
            width=8,
            height=8,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            crowd=np.zeros(0, np.bool_),
            areas=np.zeros(0, np.float32),
        )
        for number, path in enumerate(["a/1.jpg", "b/1.png", "b/2.png"], 5)
    ]
    assert picture_names(records) == ["1-5.png", "1-6.png", "2.png"]
