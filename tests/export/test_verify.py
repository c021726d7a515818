"""A file that does something else is found out, and never put in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import make
from torch import Tensor

from rankdet.engine.files import RunError
from rankdet.export import write
from rankdet.export.formats import Format, get_format
from rankdet.export.verify import TOLERANCE, compare, some_images
from rankdet.export.write import write_file
from rankdet.structures import Detections


def some() -> Detections:
    corners = torch.rand(30, 2) * 80
    boxes = torch.cat([corners, corners + 10], 1)
    return Detections(boxes, torch.rand(30).sort(descending=True).values, torch.arange(30) % 3)


def test_comparison_takes_no_note_of_order_and_sees_every_difference() -> None:
    one = some()
    turned = Detections(one.boxes.flip(0), one.scores.flip(0), one.labels.flip(0))
    assert compare([one], [turned], side=100) == (60, 0, 0.0, 0.0)
    small = replace(one, scores=one.scores + TOLERANCE / 2, boxes=one.boxes + 100 * TOLERANCE / 2)
    near = compare([one], [small], side=100)
    assert (near.alone, near.good) == (0, True)
    assert near.score == pytest.approx(TOLERANCE / 2, rel=1e-2)
    assert near.box == pytest.approx(100 * TOLERANCE / 2, rel=1e-2)
    for other in (
        replace(one, scores=one.scores + 10 * TOLERANCE),
        replace(one, boxes=one.boxes + 10 * 100 * TOLERANCE),
        replace(one, labels=(one.labels + 1) % 3),
        Detections(one.boxes[:0], one.scores[:0], one.labels[:0]),
    ):
        far = compare([one], [other], side=100)
        assert far.alone == far.total
        assert not far.good
    fewer = Detections(one.boxes[:20], one.scores[:20], one.labels[:20])
    assert compare([one], [fewer], side=100).alone == 10


def with_fault(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """Let the graph that is written have an error."""
    genuine = get_format("torchscript")

    def faulty(graph: Any, *rest: Any) -> None:
        fault(graph)
        genuine.write(graph, *rest)

    def formats(name: str) -> Format:
        del name
        return genuine._replace(write=faulty)

    monkeypatch.setattr(write, "get_format", formats)


def colours_swapped(graph: Any) -> None:
    normalise = graph.detector.normalise
    normalise.shift.copy_(normalise.shift.flip(0))


def other_overlap(graph: Any) -> None:
    graph.post_process = replace(graph.post_process, nms_iou=0.45)


def padding_seen(graph: Any) -> None:
    grid = graph.grid.forward

    def everywhere(maps: list[Tensor]) -> Any:
        found = grid(maps)
        return replace(found, strides=tuple(10_000 for _ in found.strides))

    graph.grid.forward = everywhere


@pytest.mark.parametrize("fault", [colours_swapped, other_overlap, padding_seen])
def test_a_wrong_file_is_not_put_in_place(
    fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fault(monkeypatch, fault)
    path = tmp_path / "model.torchscript"
    path.write_text("the old one")
    with pytest.raises(RunError, match=r"does not find what the model finds: .* was not put"):
        write_file(*make("demo"), path, kind="torchscript")
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exporter_that_fails_is_answered_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(graph: Any) -> None:
        raise ValueError("no such operator\nand a page of advice")

    with_fault(monkeypatch, failing)
    with pytest.raises(RunError, match=r"cannot be written as onnx: ValueError: no such op\w+$"):
        write_file(*make("demo"), tmp_path / "model.onnx", kind="onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_images_of_the_check_are_the_same_each_time() -> None:
    images, sizes = some_images(3, 64, 96)
    torch.manual_seed(7)
    again, _ = some_images(3, 64, 96)
    assert torch.equal(images, again)
    assert images.dtype == torch.uint8
    assert images.float().std() > 20
    assert sizes.tolist() == [[64, 96], [59, 87], [54, 78]]
