"""Graphs compute what the detector and its post-processing compute, for any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from exported import DETECTORS, detections_of, images, make
from torch import Tensor
from torchvision.ops import batched_nms

from rankdet.engine.files import RunError
from rankdet.export.graph import PriorGrid, chosen, fixed_best
from rankdet.export.suppression import (
    suppress_by_symbol,
    suppress_by_torchvision,
)
from rankdet.export.verify import as_detections
from rankdet.export.write import make_graph
from rankdet.models.candidates import best_of_levels
from rankdet.models.priors import AnchorGenerator, PointGenerator


def assert_same(wanted: list[Any], outputs: tuple[Tensor, ...]) -> None:
    for one, other in zip(wanted, as_detections(*outputs), strict=True):
        torch.testing.assert_close(other.scores, one.scores, rtol=1e-6, atol=1e-7)
        assert torch.equal(other.labels, one.labels)
        torch.testing.assert_close(other.boxes, one.boxes, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("suppress", [suppress_by_torchvision, suppress_by_symbol])
@pytest.mark.parametrize("name", DETECTORS)
def test_a_graph_finds_what_the_model_finds(name: str, suppress: Any) -> None:
    detector, post_process, about = make(name)
    graph = make_graph(detector, post_process, suppress, nms=True).eval()
    side = about.divisor
    for batch, height, width in ((1, side, 2 * side), (2, 2 * side, 3 * side), (3, side, side)):
        given = images(batch, height, width)
        wanted = detections_of(detector, post_process, *given)
        assert all(len(each.scores) > 20 for each in wanted)
        with torch.inference_mode():
            assert_same(wanted, graph(*given))


@pytest.mark.parametrize(
    "changes",
    [
        ("test.score_threshold=0.3",),
        ("test.candidates=7", "test.max_detections=5"),
        ("test.max_detections=2000",),
        ("test.nms_iou=0.1",),
    ],
)
@pytest.mark.parametrize("name", ["demo", "paa-small", "atss_focal-small", "faster_rcnn_ce-small"])
def test_settings_of_the_post_processing_are_kept_to(name: str, changes: tuple[str, ...]) -> None:
    detector, post_process, about = make(name, *changes)
    graph = make_graph(detector, post_process, suppress_by_torchvision, nms=True).eval()
    given = images(2, about.divisor, about.divisor)
    wanted = detections_of(detector, post_process, *given)
    with torch.inference_mode():
        assert_same(wanted, graph(*given))


@pytest.mark.parametrize("name", ["demo", "faster_rcnn_alrp-small"])
def test_without_nms_all_candidates_come_in_order(name: str) -> None:
    detector, post_process, about = make(name)
    graph = make_graph(detector, post_process, suppress_by_torchvision, nms=False).eval()
    given = images(2, 2 * about.divisor, about.divisor)
    with torch.inference_mode():
        found = as_detections(*graph(*given))
    wanted = detections_of(detector, post_process, *given)
    for candidates, after in zip(found, wanted, strict=True):
        kept = batched_nms(
            candidates.boxes.double(), candidates.scores.double(), candidates.labels, about.nms_iou
        )[: about.max_detections]
        assert len(candidates.scores) > len(kept)
        assert (candidates.scores.diff() <= 0).all()
        torch.testing.assert_close(candidates.boxes[kept], after.boxes, rtol=1e-6, atol=1e-4)


def test_a_prediction_that_is_nan_is_never_a_detection() -> None:
    detector, post_process, about = make("demo")
    with torch.no_grad():
        detector.head.to_logits.weight[0] = torch.nan
    graph = make_graph(detector, post_process, suppress_by_torchvision, nms=True).eval()
    given = images(1, about.divisor, about.divisor)
    wanted = detections_of(detector, post_process, *given)
    with torch.inference_mode():
        outputs = graph(*given)
    assert all(torch.isfinite(each).all() for each in outputs)
    assert_same(wanted, outputs)


@pytest.mark.parametrize(
    "priors",
    [AnchorGenerator(), PointGenerator((8, 16, 32)), PointGenerator((8, 16), (16.0, 32.5))],
)
def test_moved_priors_are_those_of_the_detector(priors: Any) -> None:
    maps = [torch.zeros(1, 1, -(-75 // s), -(-130 // s)) for s in priors.strides]
    made = PriorGrid(priors)(maps)
    wanted = priors((75, 130), device="cpu", dtype=torch.float32)
    torch.testing.assert_close(made.boxes, wanted.boxes, rtol=1e-7, atol=1e-6)
    assert (made.counts, made.strides) == (wanted.counts, wanted.strides)


def test_the_best_of_levels_are_filled_up_where_there_are_too_few() -> None:
    orders = torch.randn(2, 12, 3)
    orders[0, 4] = -torch.inf
    values, places, labels = fixed_best(orders, (2, 10), 8)
    wanted = best_of_levels(orders, (2, 10), 8)
    assert values.shape == (2, 16)
    there = values > -torch.inf
    assert there.sum(1).tolist() == [14, 14]
    assert torch.equal(values[there], wanted.orders.flatten())
    assert torch.equal(places[there], wanted.places.flatten())
    assert torch.equal(labels[there], wanted.labels.flatten())
    assert places.max() < 12
    assert labels.max() < 3


@pytest.mark.parametrize("suppress", [suppress_by_torchvision, suppress_by_symbol])
def test_suppression_is_torchvisions_image_by_image(suppress: Any) -> None:
    corners = torch.rand(3, 200, 2) * 90
    boxes = torch.cat([corners, corners + 5 + torch.rand(3, 200, 2) * 40], 2)
    scores = torch.rand(3, 200).round(decimals=1) - 0.2  # ties, and some that take no part
    groups = torch.randint(0, 4, (3, 200))
    stays = suppress(boxes, scores, groups, of=4, most=200, nms_iou=0.4)
    for image in range(3):
        (part,) = torch.where(scores[image] >= 0)
        kept = batched_nms(boxes[image, part].double(), scores[image, part].double(),
                           groups[image, part], 0.4)  # fmt: skip
        wanted = torch.zeros(200, dtype=torch.bool)
        wanted[part[kept]] = True
        assert torch.equal(stays[image], wanted)
        assert 0 < wanted.sum() < len(part)


def test_equal_scores_keep_their_order() -> None:
    boxes = torch.tensor([[[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [60, 0, 69, 9]]])
    scores = torch.tensor([[0.5, 0.75, 0.5, 0.75]])
    found = chosen(
        boxes, scores, torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool),
        classes=4, most=3, nms_iou=0.5, suppress=suppress_by_torchvision,
    )  # fmt: skip
    assert found.labels.tolist() == [[1, 3, 0]]


def test_what_no_runtime_knows_is_refused() -> None:
    detector, post_process, _ = make("demo", "test.nms=soft")
    with pytest.raises(RunError, match=r"soft NMS .*--nms none"):
        make_graph(detector, post_process, suppress_by_symbol, nms=True)
    make_graph(detector, post_process, suppress_by_symbol, nms=False)
    voting = replace(post_process, nms="hard", vote_sigma=0.025)
    with pytest.raises(RunError, match="score voting"):
        make_graph(detector, voting, suppress_by_symbol, nms=True)
    with pytest.raises(RunError, match="a Linear cannot be written"):
        make_graph(torch.nn.Linear(1, 1), replace(post_process, nms="hard"), suppress_by_symbol,
                   nms=True)  # fmt: skip
