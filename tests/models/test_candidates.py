"""The best places of each level by a slow loop, and boxes cut to their images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import clip_boxes_to_image

from rankdet.models.candidates import best_of_levels, boxes_at, by_image, clipped, has_area
from rankdet.ops.box_codes import DeltaCoder, DistanceCoder
from rankdet.structures import Predictions, Priors

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]

NAN = float("nan")


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    classes=st.integers(1, 3),
    most=st.integers(1, 20),
    images=st.integers(0, 2),
)
def test_the_best_are_those_of_a_loop(
    seed: int, counts: list[int], classes: int, most: int, images: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    orders = torch.randn(images, sum(counts), classes, generator=generator)
    found = best_of_levels(orders, tuple(counts), most)
    for image, of_image in enumerate(orders.tolist()):
        wanted, start = [], 0
        for level, count in enumerate(counts):
            pairs = [
                (of_image[place][label], place, label, level)
                for place in range(start, start + count)
                for label in range(classes)
            ]
            wanted += sorted(pairs, reverse=True)[:most]
            start += count
        rows = zip(
            found.orders[image].tolist(),
            found.places[image].tolist(),
            found.labels[image].tolist(),
            found.levels.tolist(),
            strict=True,
        )
        assert list(rows) == wanted


def test_what_takes_no_part_comes_last() -> None:
    orders = torch.tensor([[[1.0], [-torch.inf], [3.0]]])
    assert best_of_levels(orders, (3,), 2).places.tolist() == [[2, 0]]
    assert best_of_levels(orders, (3,), 3).orders.tolist() == [[3, 1, -torch.inf]]


@pytest.mark.parametrize("name", ["std1", "std_frcnn", "distances"])
def test_boxes_are_cut_to_their_image_as_in_mmdetection(golden: Golden, name: str) -> None:
    file = "distance_coder" if name == "distances" else "delta_coder"
    data = golden(f"priors/{file}.npz")
    if name == "distances":
        boxes = DistanceCoder().decode(
            torch.from_numpy(data["points"]).double().repeat(1, 2),
            torch.from_numpy(data["distances"]).double(),
        )
        wanted = torch.from_numpy(data["decoded_clipped"])
    else:
        coder = DeltaCoder(stds=tuple(data[f"target_stds_{name}"].tolist()))
        boxes = coder.decode(
            torch.from_numpy(data["priors"]).double(), torch.from_numpy(data["deltas"]).double()
        )
        wanted = torch.from_numpy(data[f"decoded_clipped_{name}"])
    cut = clipped(boxes, torch.from_numpy(data["max_shape_hw"]))
    assert (cut != boxes).any()
    assert_close(cut, wanted, rtol=0, atol=1e-10)


def random_boxes(*shape: int) -> Tensor:
    return torch.rand(*shape, 4, dtype=torch.float64) * 300 - 100


def test_boxes_are_cut_as_by_torchvision() -> None:
    boxes, sizes = random_boxes(2, 20), torch.tensor([[60, 80], [100, 30]])
    found = clipped(boxes, sizes)
    for image, size in enumerate(sizes.tolist()):
        wanted = clip_boxes_to_image(boxes[image], (size[0], size[1]))
        assert torch.equal(found[image], wanted)
        assert torch.equal(clipped(boxes[image], sizes[image]), wanted)
    assert clipped(torch.tensor([[NAN, 1.0, NAN, 99.0]]), sizes[0]).isnan().tolist() == [
        [True, False, True, False]
    ]


def test_a_box_has_an_area_if_it_is_wide_and_high() -> None:
    boxes = torch.tensor(
        [[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0], [2, 0, 1, 1], [0, 0, NAN, 1], [NAN, 0, 1, 1]]
    )
    assert has_area(boxes).tolist() == [True, False, False, False, False, False]
    assert has_area(boxes.view(2, 3, 4)).shape == (2, 3)


def test_boxes_are_those_of_the_places() -> None:
    priors = Priors(random_boxes(6).abs() + torch.tensor([0.0, 0, 400, 400]), (6,), (8,))
    codes = torch.randn(2, 6, 4, dtype=torch.float64)
    predictions = Predictions(torch.zeros(2, 6, 3), codes, priors, DeltaCoder())
    sizes = torch.tensor([[300, 400], [200, 500]])
    places = torch.tensor([[5, 0, 0], [3, 1, 5]])
    found = boxes_at(predictions, places, sizes)
    every = clipped(DeltaCoder().decode(priors.boxes.expand(2, -1, -1), codes), sizes)
    for image, of_image in enumerate(places.tolist()):
        assert_close(found[image], every[image][of_image], rtol=0, atol=0)


def test_candidates_are_kept_image_by_image() -> None:
    boxes, scores = random_boxes(2, 3), torch.rand(2, 3)
    labels = torch.arange(6).view(2, 3)
    keep = torch.tensor([[True, False, True], [False, False, False]])
    first, second = by_image(boxes, scores, labels, keep)
    assert first.labels.tolist() == [0, 2]
    assert torch.equal(first.boxes, boxes[0, [0, 2]])
    assert torch.equal(first.scores, scores[0, [0, 2]])
    assert second.boxes.shape == (0, 4)
