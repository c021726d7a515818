"""FreeAnchor: the published head, its matching, a loop over objects, and the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from golden_heads import Head, from_maps, gradients, read_head, small_batch
from scenes import SCENES, losses_while_learning, on_crowd, require_sound, scene
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_iou

from rankdet.criteria.dense import IoUBox
from rankdet.criteria.free_anchor import FreeAnchorCriterion, mean_max_loss
from rankdet.models.priors import AnchorGenerator
from rankdet.models.retinanet import retinanet
from rankdet.ops.box_codes import DeltaCoder
from rankdet.ops.boxes import iou
from rankdet.structures import Predictions, Targets

if TYPE_CHECKING:
    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
FILES = ["free_anchor", "free_anchor_one_empty_image"]


def read(golden: Golden, file: str, dtype: torch.dtype) -> tuple[Head, dict[str, Any]]:
    data = golden(f"losses_other/{file}.npz")
    return read_head(data, dtype=dtype, generator=AnchorGenerator(octave_scales=3)), data


def require_near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = max(theirs.abs().max().item(), 1e-9)
    assert_close(ours.detach().double(), theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
def test_a_whole_head_is_the_published_one(golden: Golden, file: str, dtype: torch.dtype) -> None:
    head, data = read(golden, file, dtype)
    terms = FreeAnchorCriterion()(*head)
    for_logits, for_codes = gradients(terms.total, head.predictions)
    for name in ("positive", "negative"):
        theirs = torch.from_numpy(data[f"{name}_bag_loss"])
        require_near(terms.parts[f"{name}_bags"], theirs, TOLERANCE[dtype])
    wanted = from_maps(data, "grad_positive_bag_loss_cls_score", 5)
    wanted += from_maps(data, "grad_negative_bag_loss_cls_score", 5)
    require_near(for_logits, wanted, TOLERANCE[dtype])
    for_boxes = from_maps(data, "grad_positive_bag_loss_bbox_pred", 4)
    require_near(for_codes, for_boxes, TOLERANCE[dtype])
    assert terms.parts["positives"] == sum(len(data[f"gt_labels_{image}"]) for image in range(2))


@pytest.mark.parametrize("file", FILES)
def test_bags_and_boxes_on_objects_are_the_published_ones(golden: Golden, file: str) -> None:
    head, data = read(golden, file, torch.float64)
    criterion = FreeAnchorCriterion()
    matching = criterion._matching(*head)
    each = criterion._positive(head.predictions, matching)
    theirs = torch.cat([torch.from_numpy(data[f"positive_losses_{image}"]) for image in range(2)])
    require_near(each, theirs, 1e-12)
    total = head.predictions.logits.shape[1]
    entries, values = [], []
    for image in range(2):
        prior, label = torch.from_numpy(data[f"box_prob_index_{image}"]).long().unbind(1)
        entries.append((image * total + prior) * 5 + label)
        values.append(torch.from_numpy(data[f"box_prob_value_{image}"]))
    order = torch.cat(entries).argsort()
    assert torch.equal(matching.entries, torch.cat(entries)[order])
    require_near(matching.values, torch.cat(values)[order], 1e-12)


def loop(head: Head, *, bag: int = 6, threshold: float = 0.6) -> Tensor:
    """Return the loss with one look at each object after the other, as the paper writes it."""
    predictions, targets = head
    priors = predictions.priors.boxes.double()
    p = predictions.logits.double().sigmoid()
    inside = predictions.priors.inside(targets.sizes)
    positive, negative, objects = torch.zeros(()).double(), torch.zeros(()).double(), 0
    for image in range(len(p)):
        predicted = predictions.coder.decode(priors, predictions.codes[image].double())
        on_object = torch.zeros_like(p[image])
        for which in targets.is_object[image].nonzero().flatten().tolist():
            box, label = targets.boxes[image, which].double(), int(targets.labels[image, which])
            overlaps = torch.where(inside[image], box_iou(box[None], priors)[0], -1)
            members = overlaps.argsort(descending=True, stable=True)[:bag]
            wanted = predictions.coder.encode(priors[members], box)
            codes = predictions.codes[image, members].double()
            d = (codes - wanted).abs()
            smooth = torch.where(d < 0.11, d**2 / 0.22, d - 0.055).sum(1)
            m = p[image, members, label] * (-0.75 * smooth).exp()
            w = 1 / (1 - m)
            positive = positive - 0.5 * ((w * m).sum() / w.sum()).log()
            objects += 1
            fits = torch.where(inside[image], box_iou(box[None], predicted.detach())[0], 0)
            if fits.max() > threshold:
                on = ((fits - threshold) / (fits.max() - threshold)).clamp(0, 1)
                on_object[:, label] = torch.maximum(on_object[:, label], on)
        left = p[image] * (1 - on_object)
        focal = -(left**2) * (1 - left).log()
        negative = negative + 0.5 * focal[inside[image]].sum()
    return positive / max(objects, 1) + negative / max(objects * bag, 1)


@pytest.mark.parametrize("pairs", [2**22, 100])
@pytest.mark.parametrize("padded", [False, True])
def test_all_objects_together_are_the_same_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, padded: bool, pairs: int
) -> None:
    # Few pairs at a time: objects are gone through in pieces.
    monkeypatch.setattr("rankdet.criteria.free_anchor._PAIRS", pairs)
    head = small_batch(images=3, objects=(3, 0, 2), dtype=torch.float64)
    sizes = torch.tensor([[64, 64], [40, 64], [64, 30 if padded else 64]])
    priors = replace(head.predictions.priors, boxes=head.predictions.priors.boxes.double())
    head = Head(
        replace(head.predictions, priors=priors),
        replace(head.targets, sizes=sizes, boxes=head.targets.boxes.double()),
    )
    with torch.no_grad():
        head.predictions.codes.mul_(0.3)  # so that some boxes lie on objects
    criterion = FreeAnchorCriterion(bag=6)
    assert len(criterion._matching(*head).entries) > 2
    terms, expected = criterion(*head), loop(head)
    assert_close(terms.total, expected, rtol=1e-9, atol=0)
    for ours, theirs in zip(
        gradients(terms.total, head.predictions),
        gradients(expected, head.predictions),
        strict=True,
    ):
        assert_close(ours, theirs, rtol=1e-7, atol=1e-12)


def test_the_mean_of_a_bag_turns_into_its_maximum() -> None:
    real = torch.ones(1, 3, dtype=torch.bool)
    small = torch.tensor([[1e-4, 2e-4, 3e-4]], dtype=torch.float64)
    assert_close(mean_max_loss(small.log(), real).exp(), torch.tensor([1 / 2e-4]).double(),
                 rtol=1e-3, atol=0)  # fmt: skip
    near = torch.tensor([[1e-4, 0.5, 1 - 1e-9]], dtype=torch.float64)
    assert mean_max_loss(near.log(), real) < 1e-8
    assert mean_max_loss(torch.zeros(1, 3), real) == 0


def test_a_bag_of_boxes_far_away_still_has_a_gradient() -> None:
    # exp(-300) is 0 in float32.
    log_match = torch.tensor([[-300.0, -301.0]], requires_grad=True)
    loss = mean_max_loss(log_match, torch.ones(1, 2, dtype=torch.bool))
    assert_close(loss.item(), 300 + math.log(2 / (1 + math.exp(-1))), rtol=1e-5, atol=0)
    loss.sum().backward()
    assert log_match.grad is not None
    assert_close(log_match.grad.sum().item(), -1.0, rtol=1e-5, atol=0)


def test_of_equal_overlaps_the_first_priors_come_into_the_bag() -> None:
    # 1 px within many anchors of the same size: the same IoU with each, but for rounding.
    anchors = AnchorGenerator(strides=(8,), scale=5.2, octave_scales=1, ratios=(0.83,))
    priors = anchors((64, 64), device="cpu", dtype=torch.float32)
    box = torch.tensor([33.4, 34.8, 34.4, 35.8])
    within = ((priors.boxes[:, :2] <= box[:2]) & (priors.boxes[:, 2:] >= box[2:])).all(1)
    overlaps = iou(box, priors.boxes)[within]
    assert (overlaps.topk(3).indices > 2).all(), "rounding alone would have chosen others"
    targets = Targets.stack([box[None]], [torch.tensor([1])], [torch.tensor([False])], [(64, 64)])
    predictions = Predictions(torch.zeros(1, 64, 3), torch.zeros(1, 64, 4), priors, DeltaCoder())
    matching = FreeAnchorCriterion(bag=3)._matching(predictions, targets)
    assert torch.equal(matching.places[0].sort().values, within.nonzero().flatten()[:3])


@pytest.mark.parametrize("name", list(SCENES))
@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edges(name: str, crowd: bool, dtype: torch.dtype) -> None:
    head = scene(name, crowd=crowd, dtype=dtype)
    terms, *_ = require_sound(FreeAnchorCriterion(bag=9), head)
    assert terms.parts["positives"] == 1 + len(SCENES[name])
    assert terms.total.dtype == torch.float32


def test_a_crowd_region_is_no_background() -> None:
    head = scene("none", crowd=True)
    low = on_crowd(head)
    _, for_logits, _ = require_sound(FreeAnchorCriterion(), head)
    assert not for_logits[1, low].any()
    assert for_logits[1, ~low].any()
    assert for_logits[0, low].any()
    _, for_logits, _ = require_sound(FreeAnchorCriterion(crowd_overlap=None), head)
    assert for_logits[1, low].all()


def test_an_object_on_a_crowd_region_is_learned() -> None:
    head = scene("at the border", crowd=True)
    low = on_crowd(head)
    _, for_logits, for_codes = require_sound(FreeAnchorCriterion(bag=5), head)
    assert (for_logits[1, low, 1] < 0).any()
    assert not for_logits[1, low][:, [0, 2]].any()
    assert for_codes[1, low].any()


def test_padding_takes_no_part_even_if_it_is_not_a_number() -> None:
    head = scene("one")
    targets = replace(head.targets, sizes=torch.tensor([[64, 64], [32, 32]]))
    outside = ~head.predictions.priors.inside(targets.sizes)
    before = FreeAnchorCriterion()(head.predictions, targets)
    logits, codes = (x.detach().clone() for x in (head.predictions.logits, head.predictions.codes))
    logits[outside] = torch.nan
    codes[outside] = torch.nan
    wild = replace(head.predictions, logits=logits.requires_grad_(), codes=codes.requires_grad_())
    after = FreeAnchorCriterion()(wild, targets)
    assert_close(after.total, before.total, rtol=1e-6, atol=0)
    for gradient in gradients(after.total, wild):
        assert not gradient[outside].any()
        assert gradient[~outside].any()


def test_without_objects_background_is_learned() -> None:
    head = small_batch(objects=(0, 0))
    terms = FreeAnchorCriterion()(*head)
    assert terms.parts["positive_bags"] == 0
    assert terms.parts["positives"] == 0
    p = head.predictions.logits.sigmoid()
    assert_close(terms.total, (-0.5 * p**2 * (1 - p).log()).sum())
    for_logits, for_codes = gradients(terms.total, head.predictions)
    assert (for_logits > 0).all()
    assert torch.equal(for_codes, torch.zeros_like(for_codes))


def test_objects_without_area_are_left_out() -> None:
    head = scene("one")
    flat = torch.tensor([[10.0, 12.0, 10.0, 28.0]])
    boxes = torch.cat([head.targets.boxes, torch.stack([flat, flat])], 1)
    more = replace(
        head.targets,
        boxes=boxes,
        labels=torch.ones(2, 2, dtype=torch.int64),
        crowd=torch.zeros(2, 2, dtype=torch.bool),
    )
    assert torch.equal(
        FreeAnchorCriterion()(head.predictions, more).total,
        FreeAnchorCriterion()(*head).total,
    )


@pytest.mark.parametrize("what", ["logits", "codes"])
@pytest.mark.parametrize("place", ["all", "one in a bag", "one elsewhere", "one on it"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_makes_no_plausible_loss(what: str, place: str, value: float) -> None:
    head = scene("one")
    criterion = FreeAnchorCriterion(bag=5)
    with torch.no_grad():
        exact = head.predictions.coder.encode(head.predictions.priors.boxes, SCENES["one"])
        head.predictions.codes[1, 7] = exact[7]
    matching = criterion._matching(*head)
    bag = matching.places % 80
    assert (80 + 7) * 3 + 1 in matching.entries
    spot = {
        "all": slice(None),
        "one in a bag": int(bag[1, 0]),
        "one on it": 7,
        "one elsewhere": min(set(range(80)) - set(bag.flatten().tolist())),
    }[place]
    with torch.no_grad():
        getattr(head.predictions, what)[1, spot] = value
    assert not criterion(*head).total.isfinite()


def test_predictions_in_16_bits_are_worked_with_in_32() -> None:
    head = scene("one", dtype=torch.bfloat16)
    exact = replace(
        head.predictions,
        logits=head.predictions.logits.detach().float(),
        codes=head.predictions.codes.detach().float(),
    )
    terms = FreeAnchorCriterion()(*head)
    assert_close(terms.total, FreeAnchorCriterion()(exact, head.targets).total, rtol=1e-6, atol=0)
    assert {x.dtype for x in gradients(terms.total, head.predictions)} == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(FreeAnchorCriterion()(*head).total, terms.total, rtol=1e-6, atol=0)


def test_memory_that_was_not_written_is_not_read(poisoned_memory: None) -> None:
    terms, *_ = require_sound(FreeAnchorCriterion(bag=5), scene("one"))
    assert terms.total.isfinite()


def test_an_infinite_logit_is_not_saved_by_a_box_on_the_object() -> None:
    head = scene("one")
    with torch.no_grad():
        exact = head.predictions.coder.encode(head.predictions.priors.boxes, SCENES["one"])
        head.predictions.codes[1, 7] = exact[7]
        head.predictions.logits[1, 7, 1] = torch.inf
    assert FreeAnchorCriterion()(*head).total.isnan()


def test_another_box_loss_can_be_given() -> None:
    head = scene("one")
    ours = FreeAnchorCriterion(IoUBox("giou"), box_weight=2.0)
    require_sound(ours, head)
    assert ours(*head).total != FreeAnchorCriterion()(*head).total


def test_the_loss_falls() -> None:
    losses = losses_while_learning(FreeAnchorCriterion(bag=10), make=retinanet)
    assert losses[-1] < 0.6 * losses[0]


def test_what_does_not_fit_is_refused() -> None:
    for setting, message in [
        ({"bag": 0}, "bag must be above zero"),
        ({"threshold": 1.0}, r"threshold must be in \[0, 1\), got 1.0"),
        ({"tie_tolerance": -0.1}, "tie_tolerance must be in"),
        ({"alpha": 2.0}, "alpha must be between 0 and 1"),
        ({"gamma": 0.5}, "gamma must be 0, or 1 and more"),
        ({"box_weight": -1.0}, "box_weight must be zero or more"),
        ({"crowd_overlap": 2.0}, "crowd_overlap must be between 0 and 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            FreeAnchorCriterion(**setting)  # type: ignore[arg-type]
    head = scene("one")
    branches = {"centreness": torch.zeros(2, 80)}
    with pytest.raises(ValueError, match="which this criterion does not train"):
        FreeAnchorCriterion()(replace(head.predictions, branches=branches), head.targets)
    wrong = replace(head.targets, labels=torch.full_like(head.targets.labels, 7))
    with pytest.raises(ValueError, match="labels of objects must be 0 to 2"):
        FreeAnchorCriterion()(head.predictions, wrong)
    with pytest.raises(ValueError, match=r"codes must have shape \[2, 80, 4\]"):
        FreeAnchorCriterion()(replace(head.predictions, codes=torch.zeros(2, 80, 5)), head.targets)
    assert "bag=50, threshold=0.6" in repr(FreeAnchorCriterion())
