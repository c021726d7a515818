"""Outcomes and confusions: a slow transcription, sums that must agree, and small cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankdet.eval import lrp_at, match, read_instances
from rankdet.eval.matching import box_iou
from rankdet.eval.report.confusion import (
    LOOSE,
    NOTHING,
    OTHER_CLASS,
    RIGHT,
    SECOND,
    Outcomes,
    outcomes,
)

Truth = tuple[int, int, list[float], bool]
Found = tuple[int, int, list[float], float]


def outcomes_of(
    truths: list[Truth], found: list[Found], thresholds: list[float | None], images: int = 2
) -> tuple[Outcomes, Any, Any]:
    truth = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": k} for k in range(len(thresholds))],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": b, "iscrowd": int(c)}
            for n, (i, k, b, c) in enumerate(truths, start=1)
        ],
    }
    results = [{"image_id": i, "category_id": k, "bbox": b, "score": s} for i, k, b, s in found]
    instances = read_instances(truth, results)
    matches = match(instances)
    return outcomes(instances, matches, thresholds), instances, matches


BOX = [10.0, 10.0, 20.0, 20.0]


def test_each_kind_of_detection() -> None:
    found: list[Found] = [
        (0, 0, BOX, 0.9),
        (0, 0, [11.0, 10, 20, 20], 0.8),  # the object is taken
        (0, 0, [50.0, 10, 20, 20], 0.7),  # a class 1 that nobody found
        (0, 1, [92.0, 10, 20, 20], 0.6),  # overlaps by 8 of 32
        (0, 1, [200.0, 10, 20, 20], 0.5),
        (0, 1, [150.0, 10, 20, 20], 0.4),  # on a crowd region: does not count
        (0, 0, [92.0, 10, 20, 20], 0.1),  # below its threshold
    ]
    truths: list[Truth] = [
        (0, 0, BOX, False),
        (0, 1, [50.0, 10, 20, 20], False),
        (0, 1, [80.0, 10, 20, 20], False),
        (0, 1, [140.0, 0, 40, 40], True),
    ]
    done, _, _ = outcomes_of(truths, found, [0.2, 0.2])
    assert done.kind.tolist() == [RIGHT, SECOND, OTHER_CLASS, LOOSE, NOTHING]
    assert done.truth.tolist() == [0, 0, 1, 2, -1]
    assert done.iou[3] == pytest.approx(8 / 32)
    assert done.taken_for.tolist() == [-1, 0, -1, -1]
    assert done.table.tolist() == [[1, 0, 0], [1, 0, 1], [1, 2, 0]]


def test_an_object_is_taken_once_and_by_the_best_score() -> None:
    found: list[Found] = [(0, 1, BOX, 0.3), (0, 2, [11.0, 10, 20, 20], 0.9)]
    done, _, _ = outcomes_of([(0, 0, BOX, False)], found, [0.1, 0.1, 0.1])
    assert done.table.tolist() == [[0, 0, 1, 0], [0] * 4, [0] * 4, [0, 1, 0, 0]]


def test_no_threshold_keeps_nothing_and_wrong_numbers_of_them_are_refused() -> None:
    done, instances, matches = outcomes_of([(0, 0, BOX, False)], [(0, 0, BOX, 0.9)], [None])
    assert len(done.kept) == 0
    assert done.table.tolist() == [[0, 1], [0, 0]]
    with pytest.raises(ValueError, match="expected 1 thresholds"):
        outcomes(instances, matches, [0.1, 0.2])


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Truth], list[Found], list[float | None]]:
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)

    def box() -> list[float]:
        return [*random.integers(0, 30, 2).tolist(), *random.integers(5, 25, 2).tolist()]

    truths = [
        (int(random.integers(2)), int(random.integers(3)), box(), bool(random.random() < 0.15))
        for _ in range(draw(st.integers(0, 12)))
    ]
    found = [
        (int(random.integers(2)), int(random.integers(3)), box(), float(random.random()))
        for _ in range(draw(st.integers(0, 20)))
    ]
    for image, klass, place, _ in truths:
        if random.random() < 0.6:
            moved = [v + float(random.normal()) for v in place[:2]] + place[2:]
            other = klass if random.random() < 0.7 else int(random.integers(3))
            found.append((image, other, moved, float(random.random())))
    return truths, found, [0.1, 0.3, 0.5]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_sums_agree_with_lrp_and_kinds_with_a_slow_loop(
    case: tuple[list[Truth], list[Found], list[float | None]],
) -> None:
    truths, found, thresholds = case
    done, instances, matches = outcomes_of(truths, found, thresholds)
    expected = lrp_at(matches, [t or 0.0 for t in thresholds])
    classes = len(thresholds)
    table = done.table
    assert np.diag(table)[:classes].tolist() == expected.true_positives.tolist()
    assert table[:classes].sum(axis=1).tolist() == expected.objects.tolist()
    kept = expected.true_positives + expected.false_positives
    assert table[:, :classes].sum(axis=0).tolist() == kept.tolist()
    assert slow_kinds(done, instances, matches) == done.kind.tolist()


def slow_kinds(done: Outcomes, instances: Any, matches: Any) -> list[int]:
    taken = set(np.flatnonzero(done.found).tolist())
    found = set(taken)
    kinds = []
    for place, at in zip(done.kept.tolist(), done.kind.tolist(), strict=True):
        if matches.matched[0, 0, place] >= 0:
            kinds.append(RIGHT)
            assert at == RIGHT
            continue
        source = int(matches.source[place])
        near = {
            g: float(
                box_iou(
                    instances.dt_boxes[source][None],
                    instances.gt_boxes[g][None],
                    np.zeros(1, np.bool_),
                )[0]
            )
            for g in range(len(instances.gt_boxes))
            if instances.gt_image[g] == instances.dt_image[source] and not instances.gt_crowd[g]
        }
        own = instances.dt_class[source]
        free = [
            (-iou, g)
            for g, iou in near.items()
            if iou >= 0.5 and g not in taken and instances.gt_class[g] != own
        ]
        if free:
            taken.add(min(free)[1])
            kinds.append(OTHER_CLASS)
        elif any(iou >= 0.5 for iou in near.values()):
            kinds.append(SECOND)
        elif any(iou >= 0.1 and instances.gt_class[g] == own for g, iou in near.items()):
            kinds.append(LOOSE)
        else:
            kinds.append(NOTHING)
    assert found <= taken
    return kinds
