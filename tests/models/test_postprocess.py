"""From predictions to detections: published values, padding, and odd inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torchvision.ops import box_iou

from rankdet.engine.detecting import detect
from rankdet.models.postprocess import PostProcess
from rankdet.models.priors import AnchorGenerator
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import Detections, Predictions, Priors

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray]]

TOLERANCE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-8}
GENERATORS = {
    "retina": AnchorGenerator(),
    "atss": AnchorGenerator(scale=8.0, octave_scales=1, ratios=(1.0,)),
}
PADDED = (128, 160)


def flattened(data: dict[str, np.ndarray[Any, Any]], name: str, numbers: int) -> torch.Tensor:
    """Return a head's output [B, shapes * numbers, H, W] of all levels as [B, A, numbers]."""
    levels = []
    for i in range(5):
        level = torch.from_numpy(data[f"{name}_{i}"]).double()
        shape = (len(level), -1, numbers, *level.shape[2:])
        levels.append(level.view(shape).permute(0, 3, 4, 1, 2).flatten(1, 3))
    return torch.cat(levels, 1)


def predictions_of(data: dict[str, np.ndarray[Any, Any]], kind: str) -> Predictions:
    priors = GENERATORS[kind](PADDED, device="cpu", dtype=torch.float64)
    branches = {"centreness": flattened(data, "centerness", 1)[..., 0]} if kind == "atss" else {}
    return Predictions(
        logits=flattened(data, "cls_score", 5),
        codes=flattened(data, "bbox_pred", 4),
        priors=priors,
        coder=DeltaCoder(),
        branches=branches,
    )


def everywhere(priors: Priors) -> Priors:
    """Return the same, but none of them ever stands on padding."""
    return replace(priors, strides=(10_000,) * len(priors.strides))


def sizes_of(data: dict[str, np.ndarray[Any, Any]]) -> torch.Tensor:
    return torch.tensor([data["img_shape_0"].tolist(), data["img_shape_1"].tolist()])


def process_of(data: dict[str, np.ndarray[Any, Any]]) -> PostProcess:
    return PostProcess(
        candidates=int(data["nms_pre"]),
        score_threshold=float(data["score_thr"]),
        nms_iou=float(data["nms_iou"]),
        max_detections=int(data["max_per_img"]),
    )


def random_predictions(seed: int = 0, batch: int = 2, classes: int = 3) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    priors = AnchorGenerator(strides=(8, 16), octave_scales=1)(
        (64, 64), device="cpu", dtype=torch.float32
    )
    total = len(priors.boxes)
    return Predictions(
        logits=torch.randn(batch, total, classes, generator=generator) * 3,
        codes=torch.randn(batch, total, 4, generator=generator),
        priors=priors,
        coder=DeltaCoder(),
        branches={"centreness": torch.randn(batch, total, generator=generator)},
    )


def assert_same(ours: Detections, wanted: Detections, **tolerance: Any) -> None:
    assert torch.equal(ours.labels, wanted.labels)
    assert_close(ours.scores, wanted.scores, **tolerance)
    assert_close(ours.boxes, wanted.boxes, **tolerance)


@pytest.mark.parametrize("kind", GENERATORS)
def test_detections_are_those_of_mmdetection(golden: Golden, kind: str) -> None:
    data = golden(f"predict/{kind}.npz")
    predictions, process = predictions_of(data, kind), process_of(data)
    # There places on the padding of the second image take part.
    predictions = replace(predictions, priors=everywhere(predictions.priors))
    for step in ("", "before_nms_"):
        if step:  # nothing overlaps by more than 1
            process = replace(process, nms_iou=1.0, max_detections=10_000)
        for n, found in enumerate(process(predictions, sizes_of(data))):
            boxes, scores, labels = (
                torch.from_numpy(data[f"{step}{name}_{n}"])
                for name in ("boxes", "scores", "labels")
            )
            order = scores.argsort(descending=True)
            wanted = Detections(boxes[order], scores[order], labels[order])
            assert_same(found, wanted, **TOLERANCE)
            for planted in (replace(wanted, boxes=wanted.boxes + 1e-7),
                            replace(wanted, scores=wanted.scores + 1e-7)):  # fmt: skip
                with pytest.raises(AssertionError):
                    assert_same(found, planted, **TOLERANCE)


@dataclass(frozen=True)
class Batch:
    """Of images that were resized."""

    images: torch.Tensor
    sizes: torch.Tensor
    scales: torch.Tensor
    ids: tuple[int, ...]


class Says(nn.Module):
    """A detector that always predicts the same."""

    def __init__(self, predictions: Predictions) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, _images: torch.Tensor) -> Predictions:
        return self.predictions


@pytest.mark.parametrize("kind", GENERATORS)
def test_boxes_in_the_image_as_it_was_read_are_those_of_mmdetection(
    golden: Golden, kind: str
) -> None:
    data = golden(f"predict/{kind}.npz")
    predictions, process = predictions_of(data, kind), process_of(data)
    predictions = replace(predictions, priors=everywhere(predictions.priors))
    scales = torch.stack([torch.from_numpy(data[f"scale_factor_wh_{n}"]) for n in range(2)])
    batch = Batch(torch.zeros(2, 3, *PADDED), sizes_of(data), scales, (7, 3))
    found = dict(detect(Says(predictions), process, [batch], device=torch.device("cpu")))
    for n, image in enumerate(batch.ids):
        boxes = torch.from_numpy(data[f"rescaled_boxes_{n}"])
        assert_close(found[image].boxes, boxes, **TOLERANCE)
        assert (found[image].boxes - torch.from_numpy(data[f"boxes_{n}"])).abs().max() > 1


@pytest.mark.parametrize("kind", ["atss"])
def test_places_on_padding_take_no_part(golden: Golden, kind: str) -> None:
    data = golden(f"predict/{kind}.npz")
    predictions, process = predictions_of(data, kind), process_of(data)
    size = (64, 96)
    sizes = torch.tensor([size, PADDED])
    found, _ = process(predictions, sizes)
    # The same as if the maps had been cut to the image: places in the same order.
    cut = GENERATORS[kind](size, device="cpu", dtype=torch.float64)
    kept, start = [], 0
    for count, stride in zip(predictions.priors.counts, cut.strides, strict=True):
        rows, columns = (-(-side // stride) for side in PADDED)
        level = torch.arange(start, start + count).view(rows, columns, -1)
        kept.append(level[: -(-size[0] // stride), : -(-size[1] // stride)].flatten())
        start += count
    index = torch.cat(kept)
    assert_close(cut.boxes, predictions.priors.boxes[index])
    alone = Predictions(
        logits=predictions.logits[:1, index],
        codes=predictions.codes[:1, index],
        priors=cut,
        coder=predictions.coder,
        branches={name: branch[:1, index] for name, branch in predictions.branches.items()},
    )
    (wanted,) = process(alone, sizes[:1])
    assert len(found.scores) > 10
    assert_same(found, wanted)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 100),
    candidates=st.sampled_from([1, 7, 1000]),
    threshold=st.sampled_from([None, 0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_what_is_detected_is_sorted_distinct_and_within_the_image(
    seed: int, candidates: int, threshold: float | None, dtype: torch.dtype
) -> None:
    predictions = random_predictions(seed)
    predictions = replace(predictions, logits=predictions.logits.to(dtype))
    sizes = torch.tensor([[64, 64], [30, 17]])
    process = PostProcess(candidates, threshold, nms_iou=0.5, max_detections=20)
    for found, (height, width) in zip(process(predictions, sizes), sizes.tolist(), strict=True):
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert len(found.boxes) == len(found.scores) == len(found.labels) <= 20
        assert len(found.scores) <= candidates * 2
        assert (found.scores[1:] <= found.scores[:-1]).all()
        assert ((found.boxes >= 0) & (found.boxes <= torch.tensor([width, height] * 2))).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        same = found.labels[:, None] == found.labels
        overlaps = box_iou(found.boxes, found.boxes).triu(1)
        assert (overlaps[same] <= 0.5 + 1e-6).all()
        if threshold is not None:
            assert len(found.scores) == 0 or threshold < 1


def test_without_a_threshold_no_score_is_too_low() -> None:
    predictions = random_predictions()
    low = replace(predictions, logits=predictions.logits - 60, branches={})
    sizes = torch.tensor([[64, 64]] * 2)
    for found in PostProcess()(low, sizes):
        assert len(found.scores) == 100
        assert found.scores.max() < 1e-15
    for found in PostProcess(score_threshold=0.0)(replace(low, logits=low.logits - 100), sizes):
        assert len(found.scores) == 0
        assert found.boxes.shape == (0, 4)


def test_what_is_not_a_number_is_no_detection() -> None:
    predictions = random_predictions(batch=1)
    sizes = torch.tensor([[64, 64]])
    process = PostProcess(candidates=50)
    bad = torch.arange(predictions.logits.shape[1]) % 3 == 0
    # As if the NaN had never been there: they take no candidate's place either.
    silent = replace(predictions, logits=predictions.logits.masked_fill(bad[:, None], -torch.inf))
    (wanted,) = process(silent, sizes)
    logits = predictions.logits.masked_fill(bad[:, None], torch.nan)
    (found,) = process(replace(predictions, logits=logits), sizes)
    assert_same(found, wanted)
    for name in ("codes", "centreness"):
        worse = (
            replace(predictions, codes=torch.full_like(predictions.codes, torch.nan))
            if name == "codes"
            else replace(predictions, branches={name: predictions.codes[..., 0] * torch.nan})
        )
        (found,) = process(worse, sizes)
        assert len(found.scores) == 0


def test_no_gradient_and_wrong_sizes() -> None:
    predictions = random_predictions()
    predictions = replace(predictions, codes=predictions.codes.requires_grad_())
    assert not PostProcess()(predictions, torch.tensor([[64, 64]] * 2))[0].boxes.requires_grad
    with pytest.raises(ValueError, match=r"sizes must have shape \[2, 2\], got \[1, 2\]"):
        PostProcess()(predictions, torch.tensor([[64, 64]]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("candidates", 0), ("score_threshold", 1.5), ("nms_iou", -0.1), ("max_detections", 0)],
)
def test_wrong_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        PostProcess(**{name: value})  # type: ignore[arg-type]
