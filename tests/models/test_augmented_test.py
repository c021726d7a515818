"""Several sizes and mirror images: what is found in a copy comes back to its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rankdet.models import augmented_test
from rankdet.models.atss import atss
from rankdet.models.augmented_test import AugmentedTest
from rankdet.models.backbones import build_backbone
from rankdet.models.postprocess import PostProcess
from rankdet.structures import Detections, Predictions, Priors


class AsTheyAre:
    """Codes that are boxes in pixels."""

    def encode(self, _priors: Tensor, boxes: Tensor) -> Tensor:
        return boxes

    def decode(self, _priors: Tensor, codes: Tensor) -> Tensor:
        return codes

    def decode_relative(self, codes: Tensor) -> Tensor:
        return codes


class Colours:
    """A detector of one red and one green rectangle per image, of classes 0 and 1.

    It says exactly where the colour is; red is the surer the larger it sees it.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Predictions:
        self.seen.append(tuple(images.shape))
        codes = torch.zeros(len(images), 2, 4, dtype=torch.float64)
        logits = torch.full((len(images), 2, 2), -torch.inf, dtype=torch.float64)
        for image, picture in enumerate(images.float()):
            for colour in (0, 1):
                where = picture[colour] - picture[2] > 64
                if where.any():
                    rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
                    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                    codes[image, colour] = torch.stack(ends)
                    logits[image, colour, colour] = where.sum().double().log() / 4
        priors = Priors(torch.zeros(2, 4, dtype=torch.float64), (2,), (8,))
        return Predictions(logits, codes, priors, AsTheyAre())


def pictures(dtype: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor, list[list[list[float]]]]:
    """Return a padded batch of two images, their sizes, and the boxes of red and of green."""
    images = torch.full((2, 3, 96, 128), 120, dtype=dtype)
    sizes = torch.tensor([[90, 121], [64, 70]])
    boxes = [[[8, 6, 40, 30], [80, 40, 121, 90]], [[20, 12, 70, 40], [0, 44, 30, 64]]]
    for picture, (height, width), of_image in zip(images, sizes.tolist(), boxes, strict=True):
        picture[:, :height, :width] = 20
        for colour, (left, top, right, bottom) in enumerate(of_image):
            picture[colour, top:bottom, left:right] = 220
    return images, sizes, [[[float(s) for s in box] for box in each] for each in boxes]


def assert_found(
    found: list[Detections], wanted: list[list[list[float]]], copies: int, tolerance: float
) -> None:
    for detections, boxes in zip(found, wanted, strict=True):
        assert sorted(detections.labels.tolist()) == [0] * copies + [1] * copies
        for box, label in zip(detections.boxes, detections.labels.tolist(), strict=True):
            expected = torch.tensor(boxes[label], dtype=torch.float64)
            assert_close(box, expected, rtol=0, atol=tolerance)


def test_one_scale_and_no_flip_is_the_plain_post_processing() -> None:
    torch.manual_seed(1)
    detector = atss(3, backbone=build_backbone("tiny"), channels=16, convs=1).eval()
    images, sizes, _ = pictures()
    process = PostProcess(nms_iou=0.5)
    with torch.no_grad():
        wanted = process(detector(images), sizes)
    for ours, plain in zip(AugmentedTest()(detector, process, images, sizes), wanted, strict=True):
        assert len(plain.scores) > 10
        assert torch.equal(ours.boxes, plain.boxes)
        assert torch.equal(ours.scores, plain.scores)
        assert torch.equal(ours.labels, plain.labels)
        assert not ours.boxes.requires_grad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("scales", [(1.0,), (2.0,), (0.5, 1.0, 1.7), (0.25,)], ids=str)
@pytest.mark.parametrize("flip", [False, True])
def test_what_is_found_in_a_copy_comes_back_to_its_place(
    dtype: torch.dtype, scales: tuple[float, ...], flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, sizes, boxes = pictures(dtype)
    before = images.clone()
    everything, one = PostProcess(nms_iou=1.0), PostProcess(nms_iou=0.5)
    test = AugmentedTest(scales, flip)
    copies = len(scales) * (1 + flip)
    # A detector knows the border of a colour to the pixel of the copy.
    tolerance = 0 if scales == (1.0,) else 1 / min(*scales, 1.0)
    assert_found(test(Colours(), one, images, sizes), boxes, 1, tolerance)
    if scales == (1.0,):  # nothing is resized: both copies agree, and even nms_iou=1 leaves both
        assert_found(test(Colours(), everything, images, sizes), boxes, copies, 0)
    assert torch.equal(images, before)
    if scales == (1.0,) and not flip:
        return
    monkeypatch.setattr(augmented_test, "_moved_back", lambda found, *_: found)
    with pytest.raises(AssertionError):
        assert_found(test(Colours(), everything, images, sizes), boxes, copies, tolerance)


def test_of_all_copies_the_surest_is_kept() -> None:
    images, sizes, _ = pictures()
    process = PostProcess()
    alone = AugmentedTest((2.0,))(Colours(), process, images, sizes)
    together = AugmentedTest((0.5, 1.0, 2.0), flip=True)(Colours(), process, images, sizes)
    for ours, best in zip(together, alone, strict=True):
        # The larger copy is surer; its mirror image is as sure up to a row of half-tones.
        assert_close(ours.scores, best.scores, rtol=0, atol=0.01)
        assert torch.equal(ours.labels, best.labels)
        assert_close(ours.boxes, best.boxes, rtol=0, atol=0.5)


def test_copies_are_padded_to_the_divisor() -> None:
    images, sizes, _ = pictures()
    detector = Colours()
    AugmentedTest((1.0, 0.5, 1.5), flip=True)(detector, PostProcess(), images, sizes)
    assert detector.seen == [
        (2, 3, 96, 128), (2, 3, 96, 128),
        (2, 3, 64, 64), (2, 3, 64, 64),  # 45 x 60
        (2, 3, 160, 192), (2, 3, 160, 192),  # 135 x 182
    ]  # fmt: skip


def test_an_image_is_seen_as_if_it_were_alone() -> None:
    images, sizes, _ = pictures()
    test, process = AugmentedTest((0.7, 1.3), flip=True), PostProcess(nms_iou=0.9)
    both = test(Colours(), process, images, sizes)
    for image, found in enumerate(both):
        height, width = sizes[image].tolist()
        cut = images[image : image + 1, :, :height, :width]
        (alone,) = test(Colours(), process, cut, sizes[image : image + 1])
        assert torch.equal(found.boxes, alone.boxes)
        assert torch.equal(found.scores, alone.scores)


def test_a_mirrored_image_has_the_mirrored_detections() -> None:
    torch.manual_seed(2)
    detector = atss(3, backbone=build_backbone("tiny"), channels=16, convs=1, class_prior=0.3)
    detector.eval()
    image = torch.rand(1, 3, 64, 96) * 255
    sizes = torch.tensor([[64, 96]])
    # An image and its mirror image have the same two copies, whatever the network does.
    test, process = AugmentedTest((1.0, 1.25), flip=True), PostProcess(max_detections=30)
    (found,) = test(detector, process, image, sizes)
    (other,) = test(detector, process, image.flip(-1), sizes)
    left, top, right, bottom = other.boxes.unbind(1)
    back = torch.stack([96 - right, top, 96 - left, bottom], 1)
    assert len(found.scores) == 30
    assert_close(other.scores, found.scores, rtol=0, atol=1e-5)
    assert torch.equal(other.labels, found.labels)
    assert_close(back, found.boxes, rtol=0, atol=1e-3)
    with pytest.raises(AssertionError):
        assert_close(back + 1e-2, found.boxes, rtol=0, atol=1e-3)
    # Without the other copy it is not so.
    plain = AugmentedTest((1.0, 1.25))
    (found,), (other,) = (plain(detector, process, each, sizes) for each in (image, image.flip(-1)))
    assert (found.scores - other.scores).abs().max() > 1e-4


def test_a_detector_that_wants_the_sizes_gets_those_of_each_copy() -> None:
    images, sizes, boxes = pictures()
    asked = []

    class Curious(Colours):
        wants_sizes = True

        def __call__(self, images: Tensor, known: Any = None) -> Predictions:
            asked.append(known.tolist())
            return super().__call__(images)

    test = AugmentedTest((1.0, 0.5), flip=True)
    assert_found(test(Curious(), PostProcess(), images, sizes), boxes, 1, 2.0)
    assert asked == [sizes.tolist()] * 2 + [[[45, 60], [32, 35]]] * 2


def test_an_image_of_one_column_may_be_resized() -> None:
    images = torch.randint(0, 256, (1, 3, 40, 1), dtype=torch.uint8)
    sizes = torch.tensor([[40, 1]])
    for found in AugmentedTest((0.1, 3.0), flip=True)(Colours(), PostProcess(), images, sizes):
        assert (found.boxes[:, 2] <= 1).all()


def test_wrong_settings_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="scales must hold at least one"):
        AugmentedTest(())
    with pytest.raises(ValueError, match="each of scales must be above zero, got -1"):
        AugmentedTest((1.0, -1))
    with pytest.raises(ValueError, match="divisor must be above zero"):
        AugmentedTest(divisor=0)
    images, sizes, _ = pictures()
    with pytest.raises(ValueError, match=r"sizes must have shape \[2, 2\]"):
        AugmentedTest()(Colours(), PostProcess(), images, sizes[:1])
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, H, W\]"):
        AugmentedTest()(Colours(), PostProcess(), images[0], sizes)
