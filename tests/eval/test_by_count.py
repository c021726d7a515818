"""AP and LRP by objects per image against golden results, and AP from matches against COCO's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import GoldenReader
from hypothesis import given, settings
from test_coco_ap import LRP_CASES, Case, cases, read_case, small

from rankdet.eval import (
    AREA_RANGES,
    BINS,
    IOU_THRESHOLDS,
    Instances,
    Matches,
    average_precision,
    by_count,
    coco_ap,
    match,
    optimal_lrp,
    read_instances,
)

GOLDEN_BINS = ((0, 3), (4, 10), (11, 20), (21, None))


def strict(instances: Instances) -> Matches:
    return match(instances, iou_thresholds=IOU_THRESHOLDS, area_ranges=AREA_RANGES[:1])


@pytest.mark.parametrize("name", ["coco_val2014_100", "coco_val2017_synthetic", "generated"])
def test_golden(golden: GoldenReader, name: str) -> None:
    expected = golden(f"ap_by_count/{name}.npz")
    instances = read_instances(*read_case("ap_by_count", name))
    parts = by_count(strict(instances), images=len(instances.image_ids), bins=GOLDEN_BINS)
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-9}
    assert [len(part.images) for part in parts] == expected["num_images"].tolist()
    for b, part in enumerate(parts):
        ids = instances.image_ids[part.images]
        np.testing.assert_array_equal(ids, expected[f"image_ids_{b}"])
        np.testing.assert_allclose(part.ap, expected["ap"][b], **close)
        np.testing.assert_allclose(part.ap50, expected["coco_stats"][b, 1], **close)
        np.testing.assert_allclose(part.ap_per_class, expected["ap_per_class"][b], **close)
        np.testing.assert_allclose(part.olrp, expected["olrp_summary"][b, :4], **close)


@pytest.mark.parametrize("name", ["coco_val2014_100", "generated"])
def test_sizes_of_objects_within_a_bin(golden: GoldenReader, name: str) -> None:
    expected = golden(f"ap_by_count/{name}.npz")
    instances = read_instances(*read_case("ap_by_count", name))
    matches = match(instances)
    for b in range(4):
        keep = np.isin(instances.image_ids, expected[f"image_ids_{b}"])
        found = optimal_lrp(matches.on_images(keep))
        sizes = [found.means(area=area)[0] for area in (1, 2, 3)]
        np.testing.assert_allclose(sizes, expected["olrp_summary"][b, 4:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LRP_CASES[:-1])
def test_ap_from_matches_equals_golden(golden: GoldenReader, name: str) -> None:
    expected = golden(f"lrp/{name}.npz")
    precision = average_precision(strict(read_instances(*read_case("lrp", name))))
    assert (precision[:, expected["ap_per_class"] == -1] == -1).all()
    np.testing.assert_allclose(precision.mean(axis=0), expected["ap_per_class"], rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_ap_from_matches_equals_coco_ap(case: Case) -> None:
    instances = read_instances(*case)
    precision = average_precision(strict(instances))
    expected = coco_ap(instances)
    np.testing.assert_allclose(precision.mean(axis=0), expected.ap_per_class, rtol=0, atol=1e-9)
    np.testing.assert_allclose(precision[0], expected.ap50_per_class, rtol=0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_a_bin_is_the_same_as_its_images_alone(case: Case) -> None:
    truth, results = case
    instances = read_instances(truth, results)
    bins = ((0, 0), (1, 2), (3, None))
    parts = by_count(strict(instances), images=len(instances.image_ids), bins=bins)
    assert sum(len(part.images) for part in parts) == len(truth["images"])
    assert sum(part.objects for part in parts) == int((~instances.gt_crowd).sum())
    for part in parts:
        ids = set(instances.image_ids[part.images].tolist())
        alone = read_instances(
            {
                **truth,
                "images": [i for i in truth["images"] if i["id"] in ids],
                "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
            },
            [d for d in results if d["image_id"] in ids],
        )
        assert part.ap == pytest.approx(coco_ap(alone).stats[0], abs=1e-9)
        assert part.olrp == pytest.approx(optimal_lrp(match(alone)).means(), abs=1e-12)


def test_images_without_objects_count_and_bins_need_not_cover_all() -> None:
    truth, results = small()
    truth["images"].append({"id": 99})
    instances = read_instances(truth, results)
    zero, two = by_count(strict(instances), images=3, bins=((0, 0), (2, None)))
    assert (zero.images.tolist(), zero.objects, zero.ap, zero.olrp) == ([2], 0, -1, (-1,) * 4)
    assert (two.images.size, two.ap) == (0, -1)


@pytest.mark.parametrize("bins", [((4, 3),), ((0, 3), (3, 5)), ((5, None), (6, 7)), ((-1, 2),)])
def test_bins_that_overlap_are_refused(bins: tuple[tuple[int, int | None], ...]) -> None:
    with pytest.raises(ValueError, match="bins must be pairs"):
        by_count(strict(read_instances(*small())), images=2, bins=bins)


def test_default_bins_are_those_of_the_paper() -> None:
    assert BINS == ((0, 3), (4, 10), (11, 20), (21, 62), (63, None))


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_equal_overlaps_the_last_listed_is_taken(swapped: bool) -> None:
    left, right = (
        {"id": n, "image_id": 3, "category_id": 1, "bbox": [x, 0, 10, 10]}
        for n, x in ((1, 0), (2, 4))
    )
    truth = {**small()[0], "annotations": [right, left] if swapped else [left, right]}
    # The first detection lies in the middle, the second can only be the right one.
    results = [
        {"image_id": 3, "category_id": 1, "bbox": [x, 0, 10, 10], "score": s}
        for x, s in ((2, 0.9), (5, 0.8))
    ]
    instances = read_instances(truth, results)
    matches = strict(instances)
    assert (matches.matched[0, 0] >= 0).tolist() == [True, swapped]
    np.testing.assert_allclose(
        average_precision(matches)[0], coco_ap(instances).ap50_per_class, rtol=0, atol=1e-9
    )
