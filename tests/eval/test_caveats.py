"""What a score warns of."""

from __future__ import annotations

from test_coco_ap import small

from rankdet.eval import score


def test_corners_given_for_sizes_are_noticed() -> None:
    truth, results = small()
    truth["images"] = [{"id": i, "width": 100, "height": 100} for i in (3, 7)]
    assert not any("corners" in w for w in score(truth, results).warnings)
    for each in results:
        each["bbox"] = [60, 60, 90, 90]
    found = score(truth, results).warnings
    expected = (
        "2 of 2 boxes of detections reach beyond their image, the first [60, 60, 90, 90]: a box is "
        "x, y, width, height in pixels; are these two corners? Write x1, y1, x2 - x1, y2 - y1."
    )
    assert expected in found
    results[0]["bbox"] = [60, 60, 0, 10]
    assert any("1 of 2 detections have a width" in w for w in score(truth, results).warnings)


def test_corners_are_noticed_where_sizes_of_images_are_not_given() -> None:
    truth, results = small()
    truth["images"] = [{"id": i} for i in (3, 7)]
    assert not any("corners" in w for w in score(truth, results).warnings)
    for each in results:
        each["bbox"] = [20, 20, 50, 50]  # objects reach to 35
    assert any("2 of 2 boxes of detections" in w for w in score(truth, results).warnings)


def test_a_few_boxes_over_the_border_are_no_matter() -> None:
    truth, results = small()
    results += [{**results[0], "bbox": [90, 90, 14, 5]}] * 3
    assert not any("corners" in w for w in score(truth, results).warnings)
    results += [{**results[0], "bbox": [0, 0, 200, 5]}] + [results[1]] * 5
    assert not any("corners" in w for w in score(truth, results).warnings), "1 in 11"


def test_shares_of_the_sides_are_noticed() -> None:
    truth, results = small()
    for each in results:
        each["bbox"] = [0.1, 0.1, 0.2, 0.2]
    found = [w for w in score(truth, results).warnings if "shares of the image's sides" in w]
    assert len(found) == 1
    assert "the first [0.1, 0.1, 0.2, 0.2]" in found[0]
    for each in truth["annotations"]:
        each["bbox"] = [0.1, 0.1, 0.2, 0.2]
    assert not any("shares" in w for w in score(truth, results).warnings), "all are shares"


def test_what_the_limit_leaves_out_is_told() -> None:
    truth, results = small()
    found = score(truth, results * 101).warnings
    assert "2 of 202 detections are beyond the best 100 of their image and class" in found[-1]
    truth["annotations"] *= 102
    found = score(truth, results).warnings
    assert "2 times an image holds more than 100 objects of one class (at most 102)" in found[-1]
    assert not any("100" in w for w in score(*small()).warnings)
