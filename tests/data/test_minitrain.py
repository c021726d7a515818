"""Subsets that stand for the whole: statistics, score, draws, swaps."""

from __future__ import annotations

import json
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rankdet.data.minitrain import (
    SIZES,
    ObjectTable,
    compare,
    count_objects,
    describe,
    level_places,
    misfits,
    names_of,
    set_target,
    statistics,
)
from rankdet.data.minitrain_search import Moves, draw, draw_best, improve
from rankdet.data.sampling import epoch_order, random_bits

Object = tuple[int, int, float]
AREAS = (1.0, 1023.99, 1024.0, 9215.99, 9216.0, 1e6)


def table_of(objects: list[Object], images: int, classes: int) -> ObjectTable:
    image, label, area = (np.array(column) for column in zip(*objects, strict=True))
    return count_objects(image, label, area.astype(float), images=images, classes=classes)


@st.composite
def object_lists(draw: st.DrawFn) -> tuple[list[Object], int, int]:
    images, classes = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    labels, areas = st.integers(0, classes - 1), st.sampled_from(AREAS)
    objects = [
        (image, draw(labels), draw(areas))
        for image in range(images)
        for _ in range(draw(st.integers(1, 6)))
    ]
    return draw(st.permutations(objects)), images, classes


def skewed(images: int, classes: int, seed: int = 0) -> ObjectTable:
    """Objects as in COCO: few classes are frequent, an image has more of what it has."""
    bits = random_bits(images * 40, seed, 1).astype(np.float64) / 2.0**64
    objects: list[Object] = []
    for image in range(images):
        values = bits[image * 40 : image * 40 + 40].tolist()
        for number in range(1 + int(values[0] ** 3 * 12)):
            label = int(values[3 * number + 1] ** 2.5 * classes)
            for _ in range(1 + int(values[3 * number + 2] * 2)):
                objects.append((image, label, 4.0 ** (2 + values[3 * number + 3] * 6)))
    return table_of(objects, images, classes)


def random_subset(images: int, count: int, seed: int) -> NDArray[np.bool_]:
    chosen = np.zeros(images, np.bool_)
    chosen[random.Random(seed).sample(range(images), count)] = True
    return chosen


@settings(max_examples=40, deadline=None)
@given(object_lists(), st.integers(0, 99), st.data())
def test_statistics_are_counts(
    made: tuple[list[Object], int, int], seed: int, data: st.DataObject
) -> None:
    objects, images, classes = made
    chosen = random_subset(images, data.draw(st.integers(0, images)), seed)
    size = dict(zip(AREAS, np.repeat(SIZES, 2).tolist(), strict=True))
    counter: Counter[tuple[str | None, str | None]] = Counter()
    for image, label, area in objects:
        if chosen[image]:
            for name in (None, f"c{label}"):
                counter.update([(name, None), (name, size[area])])
    found = statistics(table_of(objects, images, classes), chosen).tolist()
    names = names_of([f"c{label}" for label in range(classes)])
    assert found == [counter[each["class"], each["size"]] for each in names]
    assert [len(places) for places in level_places(len(names))] == [1, 3, classes, 3 * classes]


def test_a_score_worked_out_by_hand() -> None:
    # 40 cats in all sizes of box, 6 dogs; a quarter of the images is taken.
    whole = np.array([46, 20, 20, 6, 40, 6, 20, 14, 6, 0, 6, 0])
    target = set_target(whole, chosen=2, images=8, least=2.0)
    assert target.expected.tolist() == (whole / 4).tolist()
    assert target.rare.tolist() == [w in (6,) for w in whole.tolist()]
    counts = np.array([10, 6, 3, 1, 9, 1, 6, 2, 1, 0, 1, 0])
    match = compare(counts, target)
    expected = {0: Fraction(40, 46), 1: Fraction(6, 5), 2: Fraction(3, 5), 4: Fraction(9, 10),
                6: Fraction(6, 5), 7: Fraction(4, 7)}  # fmt: skip
    counted = set(np.flatnonzero(target.counted).tolist())
    assert counted == set(expected) | {3, 5, 8, 10} - set(np.flatnonzero(target.rare).tolist())
    assert match.worst == pytest.approx(7 / 4, rel=1e-15)
    assert match.mean == pytest.approx(float(sum(abs(r - 1) for r in expected.values()) / 6))
    said = describe(match, target)
    assert [level["worst_at"] for level in said["levels"]] == [0, 2, 4, 7]
    assert said["largest_rare_difference"] == 0.5
    none = compare(np.where(np.arange(12) == 7, 0, counts), target)
    assert none.worst == float("inf")
    assert describe(none, target)["worst_ratio"] is None
    json.dumps(describe(none, target), allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(object_lists(), st.integers(0, 99), st.sampled_from([0.5, 2.0, 10.0]), st.data())
def test_the_misfit_is_its_definition(
    made: tuple[list[Object], int, int], seed: int, least: float, data: st.DataObject
) -> None:
    objects, images, classes = made
    table, count = table_of(objects, images, classes), data.draw(st.integers(1, images))
    whole = statistics(table)
    counts = statistics(table, random_subset(images, count, seed))
    target = set_target(whole, chosen=count, images=images, least=least)

    def deviation(number: int, total: int) -> Fraction:
        wanted = Fraction(total * count, images)
        if wanted < Fraction(least):
            return min(abs(number - wanted) / Fraction(least), Fraction(16))
        found = max(Fraction(number), Fraction(1, 2))
        return min(max(found / wanted, wanted / found) - 1, Fraction(16))

    limit = Fraction(0)
    for place, (number, total) in enumerate(zip(counts.tolist(), whole.tolist(), strict=True)):
        term = misfits(np.array([number]), target, np.array([place]))
        if total == 0:
            assert term == 0
            continue
        least_of_all = min(deviation(each, total) for each in range(total + 2))
        exact = (deviation(number, total) - least_of_all) ** 2 * 2**32
        assert abs(term[0] - exact) <= 1 + exact / 10**9
        if target.counted[place]:
            limit = max(limit, least_of_all)
    assert target.limit == pytest.approx(1 + float(limit), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(object_lists(), st.integers(0, 99), st.data())
def test_changes_are_those_of_counting_anew(
    made: tuple[list[Object], int, int], seed: int, data: st.DataObject
) -> None:
    objects, images, classes = made
    table, count = table_of(objects, images, classes), data.draw(st.integers(1, images))
    target = set_target(statistics(table), chosen=count, images=images, least=2.0)
    chosen = random_subset(images, count, seed)
    moves, counts = Moves(table, target), statistics(table, chosen)
    before = compare(counts, target).misfit
    assert moves.misfit(counts) == before
    changes = {sign: moves.changes(counts, sign) for sign in (-1, 1)}
    for image in range(images):
        other = chosen.copy()
        other[image] = not chosen[image]
        sign = -1 if chosen[image] else 1
        anew = statistics(table, other)
        np.testing.assert_array_equal(moves.after(counts, image, sign), anew)
        assert changes[sign][image] == compare(anew, target).misfit - before


def test_a_draw_is_the_first_of_an_epoch() -> None:
    for number in (0, 3):
        chosen = draw(50, 20, seed=4, number=number)
        expected = epoch_order(50, seed=4, epoch=number)[:20]
        assert np.flatnonzero(chosen).tolist() == sorted(expected.tolist())
    table = skewed(60, 4)
    target = set_target(statistics(table), chosen=20, images=60)
    few, many = (draw_best(table, 20, target, draws=n, seed=1) for n in (5, 30))
    assert many.worsts[:5] == few.worsts
    assert many.match.worst == min(many.worsts)
    assert few.match.worst == min(few.worsts)
    assert compare(statistics(table, many.chosen), target).worst == many.match.worst


# Of seed 0: they must never change.
GOLDEN: dict[str, Any] = {
    "draws": 28 / 19,
    "swaps": 23 / 22,
    "chosen": [0, 2, 3, 4, 9, 10, 11, 16, 18, 19, 24, 26],
    "sum": 19094,
}


def test_swaps_beat_draws_by_far_and_are_the_same_everywhere() -> None:
    table = skewed(400, 10)
    target = set_target(statistics(table), chosen=100, images=400)
    best = draw_best(table, 100, target, draws=50, seed=0)
    seen: list[tuple[int, float]] = []
    found = improve(table, best.chosen, target, progress=lambda *each: seen.append(each))
    assert found.chosen.sum() == 100
    assert found.match.worst - 1 < 0.2 * (best.match.worst - 1)
    assert found.match.mean < 0.2 * best.match.mean
    assert found.match.misfit < 0.01 * best.match.misfit
    assert seen[-1][0] >= found.swaps == len(seen[: found.swaps])
    counts = statistics(table, found.chosen)
    np.testing.assert_array_equal(counts, found.match.counts)
    assert best.match.worst == pytest.approx(GOLDEN["draws"], rel=1e-12)
    assert found.match.worst == pytest.approx(GOLDEN["swaps"], rel=1e-12)
    assert np.flatnonzero(found.chosen)[:12].tolist() == GOLDEN["chosen"]
    assert np.flatnonzero(found.chosen).sum() == GOLDEN["sum"]
    # What is stopped early is no worse than what it began with either.
    short = improve(table, best.chosen, target, swaps=3)
    assert short.swaps <= 3
    assert short.match.worst <= best.match.worst


@settings(max_examples=40, deadline=None)
@given(object_lists(), st.integers(0, 9), st.sampled_from([1, 5, 1000]), st.data())
def test_swaps_never_make_it_worse(
    made: tuple[list[Object], int, int], seed: int, patience: int, data: st.DataObject
) -> None:
    objects, images, classes = made
    table, count = table_of(objects, images, classes), data.draw(st.integers(1, images))
    target = set_target(statistics(table), chosen=count, images=images, least=1.0)
    best = draw_best(table, count, target, draws=3, seed=seed)
    seen = [best.match.worst]
    found = improve(
        table, best.chosen, target, patience=patience, progress=lambda _, now: seen.append(now)
    )
    assert found.match.worst == min(seen), "the best on the way, not the last"
    assert found.chosen.sum() == best.chosen.sum() == count
    after, before = found.match, best.match
    assert (after.worst, after.misfit) <= (before.worst, before.misfit)
    assert compare(statistics(table, found.chosen), target).misfit == after.misfit
    if count == images:
        assert (after.worst, after.mean, after.misfit) == (1.0, 0.0, 0)


def test_the_best_on_the_way_is_kept() -> None:
    table = skewed(100, 5)
    target = set_target(statistics(table), chosen=20, images=100)
    best = draw_best(table, 20, target, draws=5, seed=2)
    seen: list[float] = []
    found = improve(table, best.chosen, target, progress=lambda _, worst: seen.append(worst))
    assert found.match.worst == min(seen) < seen[-1]
    assert seen[found.swaps - 1] == min(seen)


def test_a_perfect_subset_is_found() -> None:
    # Four images of each of 15 kinds: two of each are a perfect half.
    objects = [(image, image % 5, (10.0, 2e3, 1e5)[image % 3]) for image in range(60)]
    table = table_of(objects * 6, 60, 5)
    target = set_target(statistics(table), chosen=30, images=60)
    start = random_subset(60, 30, 1)
    assert compare(statistics(table, start), target).worst > 1.3
    found = improve(table, start, target)
    assert (found.match.misfit, found.match.worst, found.match.mean) == (0, 1.0, 0.0)
    assert 0 < found.swaps <= 30


@pytest.mark.parametrize("classes", [1, 1000])
def test_one_class_and_a_thousand(classes: int) -> None:
    table = skewed(150, classes)
    target = set_target(statistics(table), chosen=30, images=150)
    best = draw_best(table, 30, target, draws=5, seed=0)
    found = improve(table, best.chosen, target)
    assert len(found.match.counts) == 4 + 4 * classes
    assert (found.match.worst, found.match.misfit) < (best.match.worst, best.match.misfit)
    few = set_target(statistics(table), chosen=1, images=150, least=1e9)
    assert not few.counted.any()
    assert (compare(found.match.counts, few).worst, few.limit) == (1.0, 1.0)


def test_numbers_out_of_range_are_refused() -> None:
    table = skewed(10, 2)
    whole = statistics(table)
    target = set_target(whole, chosen=5, images=10)
    for call, said in (
        (lambda: set_target(whole, chosen=0, images=10), "chosen must be in 1 .. 10, got 0"),
        (lambda: set_target(whole, chosen=11, images=10), "got 11"),
        (lambda: set_target(whole, chosen=1, images=10, least=0.0), "least must be above 0"),
        (lambda: draw_best(table, 5, target, draws=0, seed=0), "draws must be at least 1"),
        (lambda: draw_best(table, 11, target, draws=1, seed=0), "count must be in 1 .. 10"),
        (lambda: table_of([(0, 0, 1.0)], 2, 1), "image 1 has no object"),
        (lambda: table_of([(0, 1, 1.0)], 1, 1), r"label must be in 0 \.\. 0"),
        (lambda: table_of([(-1, 0, 1.0)], 1, 1), r"image must be in 0 \.\. 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()
