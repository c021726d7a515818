"""Flat targets and the gather of positives, against a loop; the public door."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_heads import Given, Head, small_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou

from rankdet.criteria.matching import (
    Matches,
    PredictiveAssigner,
    match,
    normaliser_of,
    require_branches,
)
from rankdet.structures import IGNORED, NEGATIVE, Assignment, Predictions, Targets


def count_waits(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """Count what would make the host wait for a device."""
    self.waits += func.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "item"}
    return func(*args, **(kwargs or {}))


CountWaits = type(
    "CountWaits", (TorchDispatchMode,), {"__torch_dispatch__": count_waits, "waits": 0}
)


def random_matched(head: Head, seed: int) -> torch.Tensor:
    """Return an assignment with ignored priors, to objects that exist."""
    generator = torch.Generator().manual_seed(seed)
    images, total = head.predictions.logits.shape[:2]
    objects = head.targets.is_object.sum(1)
    matched = torch.rand(images, total, generator=generator) * objects[:, None]
    kind = torch.rand(images, total, generator=generator)
    matched = torch.where(kind < 0.7, NEGATIVE, matched.floor().long())
    matched = torch.where(kind < 0.1, IGNORED, matched)
    return torch.where((objects == 0)[:, None] & (matched >= 0), NEGATIVE, matched)


def require_loop(matches: Matches, matched: torch.Tensor, head: Head) -> None:
    """Compare with one look at each prior after the other."""
    predictions, targets = head
    images, total, classes = predictions.logits.shape
    kinds = torch.zeros(images, total, classes, dtype=torch.int8)
    codes, priors, boxes, labels, places = [], [], [], [], []
    for image in range(images):
        for prior in range(total):
            found = int(matched[image, prior])
            if found == IGNORED:
                kinds[image, prior] = -1
            elif found != NEGATIVE:
                label = targets.labels[image, found]
                kinds[image, prior, label] = 1
                codes.append(predictions.codes[image, prior])
                priors.append(predictions.priors.boxes[prior])
                boxes.append(targets.boxes[image, found])
                labels.append(label)
                places.append(image * total + prior)
    assert torch.equal(matches.targets, kinds.flatten())
    assert torch.equal(matches.entries, (kinds.flatten() == 1).nonzero().squeeze(1))
    assert matches.places.tolist() == places
    assert matches.count == len(places)
    assert matches.counted().item() == len(places)
    if places:
        assert torch.equal(matches.labels, torch.stack(labels))
        assert torch.equal(matches.codes, torch.stack(codes))
        assert torch.equal(matches.priors, torch.stack(priors))
        assert torch.equal(matches.boxes, torch.stack(boxes))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_positives_are_those_a_loop_finds(seed: int, objects: list[int]) -> None:
    head = small_batch(images=len(objects), objects=tuple(objects))
    matched = random_matched(head, seed)
    require_loop(match(Given(matched), *head), matched, head)


def test_gradients_reach_the_codes_of_the_positives_alone() -> None:
    head = small_batch()
    matched = random_matched(head, 0)
    matches = match(Given(matched), *head)
    (gradient,) = torch.autograd.grad(matches.codes.sum(), head.predictions.codes)
    assert torch.equal(gradient, (matched >= 0)[..., None].expand(-1, -1, 4).float())
    assert not matches.boxes.requires_grad
    assert not matches.wanted_codes().requires_grad


def test_both_frames_show_the_same_pairs() -> None:
    head = small_batch(dtype=torch.float64)
    matches = match(Given(random_matched(head, 0)), *head)
    low, high = matches.priors.double().split(2, 1)
    shift, scale = ((low + high) / 2).repeat(1, 2), (high - low).repeat(1, 2)
    pairs = zip(matches.in_prior_frame(), matches.in_pixels(), strict=True)
    for relative, pixels in pairs:
        assert_close(relative * scale + shift, pixels.double(), rtol=1e-5, atol=1e-4)


def test_codes_in_16_bits_are_worked_with_in_32() -> None:
    head = small_batch(dtype=torch.bfloat16)
    matches = match(Given(random_matched(head, 0)), *head)
    assert matches.codes.dtype == torch.float32
    assert {x.dtype for x in matches.in_pixels()} == {torch.float32}


def test_ious_are_those_of_the_predicted_boxes() -> None:
    head = small_batch(dtype=torch.float64)
    with torch.no_grad():
        head.predictions.codes[0] = 0
        head.predictions.codes[1] *= 5
    matches = match(Given(random_matched(head, 0)), *head)
    ious = matches.ious()
    pred, target = (x.detach().double() for x in matches.in_pixels())
    assert_close(ious, box_iou(pred, target).diag(), rtol=1e-6, atol=1e-9)
    assert not ious.requires_grad
    assert (ious == 0).any()
    exact = replace(matches, codes=matches.wanted_codes())
    assert_close(exact.ious(), torch.ones_like(ious), rtol=0, atol=1e-6)
    assert exact.ious().max() <= 1
    assert replace(matches, codes=matches.codes * torch.nan).ious().isnan().all()


class ByScore:
    """The best place of an image is its first object."""

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        assert not torch.is_grad_enabled()
        best = predictions.logits.amax(2)
        matched = torch.where(best == best.amax(1, keepdim=True), 0, NEGATIVE)
        return Assignment(torch.where(targets.is_object[:, :1], matched, NEGATIVE))


def test_an_assigner_may_ask_for_the_predictions() -> None:
    head = small_batch(objects=(3, 0))
    assert isinstance(ByScore(), PredictiveAssigner)
    assert not isinstance(Given(torch.zeros(2, 80)), PredictiveAssigner)
    matches = match(ByScore(), *head)
    assert matches.places.tolist() == [head.predictions.logits[0].amax(1).argmax().item()]


def test_the_host_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head = small_batch()
    assigner = Given(random_matched(head, 0))
    # What only the CPU does: its own nonzero, and a look at the labels.
    monkeypatch.setattr("rankdet.criteria.matching.few_nonzero", lambda x: x.nonzero().squeeze(1))
    monkeypatch.setattr("rankdet.criteria.matching.require_classes", lambda *_: None)
    with CountWaits() as counter:
        match(assigner, *head).in_prior_frame()
    assert counter.waits == 1


@pytest.mark.parametrize("label", [3, 77])
def test_a_label_beyond_the_classes_is_refused(label: int) -> None:
    head = small_batch()
    targets = replace(head.targets, labels=torch.full_like(head.targets.labels, label))
    message = f"labels of objects must be 0 to 2 for predictions of 3 classes, got {label}"
    with pytest.raises(ValueError, match=message):
        match(Given(torch.zeros(head.predictions.logits.shape[:2]).long()), head[0], targets)


def test_padding_is_no_object() -> None:
    head = small_batch(objects=(3, 0))
    matched = torch.full(head.predictions.logits.shape[:2], NEGATIVE)
    matched[1, 5] = 0  # an assigner that matches what is padding
    with pytest.raises(ValueError, match="got -1"):
        match(Given(matched), *head)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 80)}, r"logits must have shape \[B, A, C\], got \[2, 80\]"),
        ({"codes": torch.zeros(2, 80, 5)}, r"codes must have shape \[2, 80, 4\]"),
        ({"logits": torch.zeros(2, 81, 3)}, r"codes must have shape \[2, 81, 4\]"),
        ({"logits": torch.zeros(1, 80, 3), "codes": torch.zeros(1, 80, 4)},
         r"target boxes must have shape \[1, G, 4\], got \[2, 3, 4\]"),
        ({"logits": torch.zeros(2, 9, 3), "codes": torch.zeros(2, 9, 4)},
         r"prior boxes must have shape \[9, 4\]"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    head = small_batch()
    with pytest.raises(ValueError, match=message):
        match(Given(random_matched(head, 0)), replace(head.predictions, **change), head.targets)


def test_predictions_must_be_floating() -> None:
    head = small_batch()
    predictions = replace(head.predictions, logits=torch.zeros(2, 80, 3).long())
    with pytest.raises(TypeError, match="logits must be floating point"):
        match(Given(random_matched(head, 0)), predictions, head.targets)


def test_branches_must_be_those_that_are_trained() -> None:
    some = torch.zeros(1, 1)
    require_branches(frozenset(), {})
    require_branches(frozenset({"centreness"}), {"centreness": some})
    with pytest.raises(ValueError, match=r"needs the branch 'centreness'.*\(it has none\)"):
        require_branches(frozenset({"centreness"}), {})
    with pytest.raises(ValueError, match=r"has the branch 'centreness', which .* not train"):
        require_branches(frozenset(), {"centreness": some})


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (0.3, 1), (1, 1), (7, 7)])
def test_the_normaliser_of_one_process(count: float, expected: float) -> None:
    device = torch.device("cpu")
    assert normaliser_of(count, device=device) == expected
    tensor = normaliser_of(torch.tensor(float(count), requires_grad=True), device=device)
    assert isinstance(tensor, torch.Tensor)
    assert tensor == expected
    assert not tensor.requires_grad
