"""Each detector on images that are hard to learn from: a whole step, and what it has to teach.

Every loss here, of whatever images, is also held against its definition: see `require_sound`.
"""

from __future__ import annotations

import torch
from hard_steps import (
    ABSENT,
    APART,
    CLASSES,
    ENTROPY,
    NOTHING,
    OBJECT,
    RANKINGS,
    SIZES,
    Stage,
    Step,
    again,
    every_pair,
    image_of,
    step,
)
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_iou

from rankdet.structures import NEGATIVE


@every_pair
def test_without_objects_boxes_learn_nothing_and_background_is_all_there_is(
    name: str, row: str
) -> None:
    done = step(name, row, NOTHING, NOTHING)
    for stage in done.stages:
        assert stage.parts["localisation"] == stage.parts["positives"] == 0
        assert not stage.for_codes.any()
        background = stage.for_logits[stage.matched == NEGATIVE][:, :CLASSES]
        assert background.numel()
        assert (background == 0).all() if row in RANKINGS else (background > 0).all()
    if row in RANKINGS:
        assert done.total == 0
        assert not any(w.grad.any() for w in done.detector.parameters() if w.grad is not None)


# Positives of OBJECT, by hand. Of anchors in its middle those with an IoU of 0.5 or more: one of
# 32 x 32 px, two more of that area, one of 22.6 x 22.6, two more; in a first stage of 0.7 or more.
# ATSS: two above mean + deviation, 0.45. Points: two by two about its middle.
OF_ONE = {"retinanet": 6, "atss": 2, "fovea": 4, "fcos": 4, "faster_rcnn": 1}


@every_pair
def test_one_object_is_all_that_boxes_learn(name: str, row: str) -> None:
    for known in (True, False) if name == "faster_rcnn" else (True,):
        first, *second = step(name, row, image_of(OBJECT, labels=[1]), NOTHING, known=known).stages
        assert first.parts["positives"] == OF_ONE[name]
        for stage in (first, *second):
            positive = stage.matched >= 0
            assert not stage.matched[positive].any()
            assert not stage.image[positive].any()
            assert (stage.for_logits[positive].gather(1, stage.labels[positive, None]) < 0).all()
        if second and known:
            assert second[0].boxes[0].tolist() == OBJECT
            assert positive.any()


@every_pair
def test_of_300_objects_none_is_another_images(name: str, row: str) -> None:
    generator = torch.Generator().manual_seed(3)
    size = torch.tensor([48.0, 64.0])
    corner = torch.rand(300, 2, generator=generator) * (size - 4)
    far = torch.minimum(corner + 1 + torch.rand(300, 2, generator=generator) * 30, size)
    many = torch.cat([corner, far], 1)
    done = step(name, row, NOTHING, image_of(*many.tolist()), sampled=False)
    for stage in done.stages:
        positive = stage.matched >= 0
        assert stage.image[positive].all()
        assert len(stage.matched[positive].unique()) > 20
        assert stage.for_logits[stage.image == 0].any()
    if name == "faster_rcnn":
        assert torch.equal(stage.matched[stage.image == 1][:300], torch.arange(300))


@every_pair
def test_an_image_without_objects_changes_nothing_for_the_positives(name: str, row: str) -> None:
    both = step(name, row, image_of(*APART), NOTHING, sampled=False)
    alone = again(both, image_of(*APART))
    for with_it, without in zip(both.stages, alone.stages, strict=True):
        own = with_it.image == 0
        assert torch.equal(with_it.matched[own], without.matched)
        assert without.parts["positives"] > 0
        if row in RANKINGS:  # more to be ranked above
            assert with_it.parts["classification"] > without.parts["classification"]
            continue
        counted = "examples" if row == ENTROPY else "positives"
        ratio = without.parts[counted] / with_it.parts[counted]
        assert_close(with_it.for_codes[own], without.for_codes * ratio, rtol=1e-6, atol=0)


# Objects at the border of the first image, and all of the second: points in their middle, by hand.
AT_BORDER = [[0.0, 0.0, 24.0, 24.0], [40.0, 40.0, 64.0, 64.0], [0.0, 28.0, 20.0, 60.0]]
WHOLE = [0.0, 0.0, 48.0, 64.0]
OF_BORDER = {"fovea": 1 + 1 + 1 + 10, "fcos": 9 + 9 + 6 + 4}


@every_pair
def test_objects_at_the_border_are_found(name: str, row: str) -> None:
    stages = step(name, row, image_of(*AT_BORDER), image_of(WHOLE), sampled=False).stages
    for image, index, box in [(0, i, box) for i, box in enumerate(AT_BORDER)] + [(1, 0, WHOLE)]:
        for stage in stages:
            here = stage.image == image
            assert (stage.matched[here] == index).any()
        if name in ("retinanet", "faster_rcnn"):
            # The best anchor on the image, which may well reach beyond it.
            boxes, limits = stages[0].boxes, torch.tensor(SIZES[image]).flip(0)
            here = (stages[0].image == image) & ((boxes[:, :2] + boxes[:, 2:]) / 2 < limits).all(1)
            overlaps = box_iou(torch.tensor([box]), boxes[here])[0]
            assert stages[0].matched[here][overlaps.argmax()] == index
    assert stages[0].parts["positives"] == OF_BORDER.get(name, stages[0].parts["positives"])


# About a point, about the middle of an anchor, and in two corners, where FoveaBox has a point for
# them. Anchors of 256 px² that hold the pixel are equally good: 4 squares and 2 x 4 others about
# the first, 1 and 2 x 3, 4 and 2 x 2, 1. A first stage wants an IoU of 0.3 and finds none.
PIXELS = [
    [19.5, 19.5, 20.5, 20.5],
    [39.5, 39.5, 40.5, 40.5],
    [0.0, 0.0, 1.0, 1.0],
    [63.0, 63.0, 64.0, 64.0],
]
OF_PIXELS = {"retinanet": 12 + 7 + 8 + 1, "atss": 2, "fovea": 3, "fcos": 1, "faster_rcnn": 0}


@every_pair
def test_objects_of_one_pixel(name: str, row: str) -> None:
    first, *second = step(name, row, image_of(*PIXELS), NOTHING, sampled=False).stages
    assert first.parts["positives"] == OF_PIXELS[name]
    if second:  # the regions that are the objects themselves
        assert second[0].matched.sort().values[-4:].tolist() == [0, 1, 2, 3]
        assert second[0].parts["positives"] == 4


@every_pair
def test_identical_objects_count_once(name: str, row: str) -> None:
    twice = step(name, row, image_of(OBJECT, OBJECT, labels=[1, 1]), NOTHING)
    of_class = [again(twice, image_of(OBJECT, labels=[label]), NOTHING) for label in (0, 1)]
    require_same(twice, of_class[1])
    for labels in ([0, 1], [1, 0]):
        mixed = again(twice, image_of(OBJECT, OBJECT, labels=labels), NOTHING)
        first, last = (of_class[label] for label in labels)
        if name != "retinanet":
            require_same(mixed, first)  # the first of them gets all
            continue
        # There its best anchors go to the last.
        (stage,), (wanted,) = mixed.stages, first.stages
        overlaps = box_iou(torch.tensor([OBJECT]), stage.boxes)[0]
        best = (overlaps > 0.999 * overlaps.max()) & (stage.image == 0)
        assert torch.equal(stage.labels, last.stages[0].labels.where(best, wanted.labels))
        assert stage.labels[stage.matched >= 0].unique().tolist() == [0, 1]


@every_pair
def test_the_order_of_objects_is_of_no_account(name: str, row: str) -> None:
    labels = [0, 1, 1]
    done = step(name, row, image_of(*APART, labels=labels), image_of(OBJECT))
    require_same(done, again(done, image_of(*APART[::-1], labels=labels[::-1]), image_of(OBJECT)))
    other = again(done, image_of(*APART, labels=labels[::-1]), image_of(OBJECT))
    assert other.total != done.total


def require_same(one: Step, other: Step) -> None:
    """Compare two steps to the last bit."""
    assert torch.equal(one.total, other.total)
    for stage, same in zip(one.stages, other.stages, strict=True):
        assert torch.equal(stage.labels, same.labels)
        assert torch.equal(stage.for_logits, same.for_logits)
        assert torch.equal(stage.for_codes, same.for_codes)


CROWD = [0.0, 32.0, 64.0, 64.0]
WITHIN = [36.0, 40.0, 60.0, 62.0]


@every_pair
def test_what_lies_in_a_crowd_is_neither_object_nor_background(name: str, row: str) -> None:
    images = image_of(OBJECT, WITHIN, CROWD, crowd=1), NOTHING
    done = step(name, row, *images)
    places = [on_crowd(stage, points=name in ("fovea", "fcos")) for stage in done.stages]
    idle = []
    for stage, place in zip(done.stages, places, strict=True):
        here = place & (stage.image == 0)
        assert (stage.matched < 2).all()  # the crowd is no object
        # Only where assignment is by overlap alone, nothing on a crowd is an object's.
        assert (stage.matched[here] >= 0).any() == (name in ("atss", "fovea", "fcos"))
        idle.append(here & (stage.matched < 0))
        assert idle[-1].sum() > 10
        assert name != "faster_rcnn" or not (stage.boxes == torch.tensor(CROWD)).all(1).any()

    def calm(logits: Tensor) -> Tensor:
        return logits / 20  # nearly equal, so that none is too low to learn from a ranking

    def wild(logits: Tensor) -> Tensor:
        (here,) = (each for each in idle if each.numel() == logits[..., 0].numel())
        noise = 1e4 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        return torch.where(here.view(*logits.shape[:-1], 1), noise, calm(logits))

    crowded = again(done, *images, change=calm)
    require_same(crowded, again(done, *images, change=wild))
    plain = image_of(OBJECT, WITHIN), NOTHING
    taught = again(done, *plain, change=calm)
    for before, after, here, place in zip(crowded.stages, taught.stages, idle, places, strict=True):
        assert not before.for_logits[here].any()
        # The other image has no crowd there.
        for each, there in ((before, place & (before.image == 1)), (after, here)):
            background = each.for_logits[there & (each.matched == NEGATIVE)][:, :CLASSES]
            assert background.numel()
            assert (background > 0).all()
    assert again(done, *plain, change=wild).total != taught.total


def on_crowd(stage: Stage, *, points: bool) -> Tensor:
    """Return which rows have more than half of their area on the crowd, of points their pixel."""
    low, high = stage.boxes.split(2, 1)
    if points:
        low, high = (low + high) / 2 - 0.5, (low + high) / 2 + 0.5
    crowd = torch.tensor(CROWD)
    common = (torch.minimum(high, crowd[2:]) - torch.maximum(low, crowd[:2])).clamp(min=0)
    return common.prod(1).gt(0.5 * (high - low).prod(1))


@every_pair
def test_a_class_that_never_appears_is_background_like_any_other(name: str, row: str) -> None:
    images = image_of(*APART, labels=[0, 1, 1]), image_of(OBJECT, labels=[0])
    done = step(name, row, *images)
    head = done.detector.second if name == "faster_rcnn" else done.detector.head
    classes = done.stages[-1].logits.shape[1]
    for weight in head.to_logits.parameters():
        assert weight.grad is not None
        assert weight.grad.unflatten(0, (-1, classes))[:, ABSENT].any()
    # With the scores of a class that does appear there is the same to be learned, but at objects.
    (*_, stage) = again(done, *images, change=doubled).stages
    background = stage.for_logits[stage.matched == NEGATIVE]
    assert (background[:, ABSENT] > 0).all()
    assert torch.equal(background[:, 1], background[:, ABSENT])


def doubled(logits: Tensor) -> Tensor:
    """Give the class that is absent the scores of class 1; nearly equal, as all of them."""
    columns = torch.tensor([0, 1, 1] if logits.shape[-1] == CLASSES else [0])
    return logits.index_select(-1, columns) / 20
