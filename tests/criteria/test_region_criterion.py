"""Criteria on regions: the authors' second stage, every image on its own, and the edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from golden_heads import Given
from hypothesis import given, settings
from hypothesis import strategies as st
from region_batches import read_regions, region_batch, region_gradients, targets_of
from torch import Tensor, nn
from torch.testing import assert_close

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.assign.sampling import SampledAssigner
from rankdet.criteria import (
    ALRPCriterion,
    APClassification,
    DenseCriterion,
    FocalClassification,
    FreeAnchorCriterion,
    IoUBox,
    RankSortCriterion,
    ScalarBalance,
    SelfBalance,
    SmoothL1Box,
)
from rankdet.criteria.cross_entropy import CrossEntropyCriterion
from rankdet.criteria.regions import AlreadyMatched, RegionCriterion
from rankdet.structures import Priors, Regions, Targets

if TYPE_CHECKING:
    import numpy as np

    Golden = Callable[[str], dict[str, np.ndarray[Any, Any]]]

# Relative to the largest number of each tensor.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
OVERLAP = MaxIoUAssigner(positive=0.5, negative=0.5, low_quality=False)
KNOWN = AlreadyMatched()
CRITERIA: dict[str, Callable[[], nn.Module]] = {
    "CE + smooth L1": lambda: CrossEntropyCriterion(KNOWN, SmoothL1Box(), scores="softmax"),
    "CE + GIoU": lambda: CrossEntropyCriterion(
        KNOWN, IoUBox("giou"), scores="softmax", box_weight=10.0
    ),
    "sigmoid CE + smooth L1": lambda: CrossEntropyCriterion(KNOWN, SmoothL1Box()),
    "aLRP": lambda: ALRPCriterion(KNOWN, SelfBalance(), frame="pixels"),
    "focal + GIoU": lambda: DenseCriterion(KNOWN, FocalClassification(), IoUBox()),
    "AP + smooth L1": lambda: DenseCriterion(KNOWN, APClassification(), SmoothL1Box(1.0)),
    "Rank & Sort": lambda: RankSortCriterion(KNOWN),
}
every_criterion = pytest.mark.parametrize("make", list(CRITERIA.values()), ids=list(CRITERIA))
Make = Callable[[], nn.Module]
TWO_IMAGES = targets_of(
    ([[5.0, 5, 30, 30], [32.0, 30, 60, 62]], [0, 2]), ([[10.0, 20, 50, 44]], [1])
)


def background(criterion: RegionCriterion) -> bool:
    return "background" in criterion.needs


def require_equal(ours: Tensor, theirs: np.ndarray[Any, Any], tolerance: float) -> None:
    wanted = torch.from_numpy(theirs).view_as(ours)
    assert_close(ours.double(), wanted, rtol=0, atol=tolerance * wanted.abs().max().item())


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["init", "trained", "agnostic"])
def test_a_whole_second_stage_is_that_of_the_authors(
    golden: Golden, name: str, dtype: torch.dtype
) -> None:
    data = golden(f"roi/box_head_{name}.npz")
    batch = read_regions(data, dtype)
    loss = ALRPCriterion(KNOWN, ScalarBalance(1.0), frame="pixels", loc_ranking="hard")
    terms = RegionCriterion(OVERLAP, loss)(*batch)
    tolerance = TOLERANCE[dtype]
    assert terms.parts["positives"] == len(data["loc_error"])
    require_equal(terms.parts["classification"], data["loss_cls"], tolerance)
    require_equal(terms.parts["localisation"], data["loss_bbox"], tolerance)
    for_logits, for_codes = region_gradients(terms.total, batch.predictions)
    require_equal(for_logits, data["grad_loss_cls_cls_score"], tolerance)
    require_equal(for_codes, data["grad_loss_bbox_bbox_pred"], tolerance)


@pytest.mark.parametrize("name", ["init", "trained", "agnostic", "no_positive"])
def test_the_regions_are_matched_as_by_the_authors(golden: Golden, name: str) -> None:
    data = golden(f"roi/box_head_{name}.npz")
    batch = read_regions(data, torch.float64)
    criterion = RegionCriterion(OVERLAP, RankSortCriterion(KNOWN))
    matched = criterion._matched(batch.predictions.regions, batch.targets)
    labels, boxes = batch.targets.labels.flatten(), batch.targets.boxes.reshape(-1, 4)
    found = labels[matched.clamp(min=0)].where(matched >= 0, 5)
    assert torch.equal(found, torch.from_numpy(data["labels"]))
    wanted = torch.from_numpy(data["bbox_targets"]).double()
    assert torch.equal(boxes[matched[matched >= 0]], wanted[matched >= 0])
    rows = torch.nn.functional.one_hot(found, 6)[:, :5]
    if name != "no_positive":
        assert torch.equal(rows.flatten(), torch.from_numpy(data["flat_targets"]).long())
    # Before they were sorted, region by region.
    for image, objects in enumerate(batch.targets.boxes):
        proposals = torch.from_numpy(data[f"proposals_{image}"]).double()
        alone = Targets(objects[None], *(x[image : image + 1] for x in (
            batch.targets.labels, batch.targets.crowd, batch.targets.sizes)))  # fmt: skip
        (own,) = OVERLAP(Priors(proposals, (len(proposals),), (2**20,)), alone).matched
        assert torch.equal(own + 1, torch.from_numpy(data[f"assigned_gt_{image}"]).long())


def test_without_positives_there_is_no_loss_as_with_the_authors(golden: Golden) -> None:
    data = golden("roi/box_head_no_positive.npz")
    batch = read_regions(data, torch.float64)
    balance = SelfBalance()
    terms = RegionCriterion(OVERLAP, ALRPCriterion(KNOWN, balance, frame="pixels"))(*batch)
    assert terms.total == data["loss_cls"] == data["loss_bbox"] == 0
    assert terms.parts["positives"] == balance.count == 0
    for gradient in region_gradients(terms.total, batch.predictions):
        assert not gradient.any()


def test_in_the_frame_of_the_region_the_errors_are_the_same_but_for_eps(golden: Golden) -> None:
    batch = read_regions(golden("roi/box_head_agnostic.npz"), torch.float64)
    found = [
        RegionCriterion(OVERLAP, ALRPCriterion(KNOWN, ScalarBalance(1.0), frame=frame, eps=1e-12))(
            *batch
        ).parts["localisation"]
        for frame in ("prior", "pixels")
    ]
    assert_close(*found, rtol=1e-9, atol=0)


def test_each_region_looks_for_objects_of_its_own_image_alone() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 30], [40.0, 40, 60, 60]])
    targets = targets_of((boxes[:1].tolist(), [2]), ([], []), (boxes.tolist(), [0, 1]))
    batch = region_batch(targets, regions=0)
    regions = Regions(boxes.repeat(3, 1), (2, 2, 2))
    assert regions.image.tolist() == [0, 0, 1, 1, 2, 2]
    predictions = replace(
        batch.predictions,
        regions=regions,
        logits=torch.zeros(6, 3, requires_grad=True),
        codes=torch.full((6, 3, 4), 0.1, requires_grad=True),
    )
    criterion = RegionCriterion(OVERLAP, CrossEntropyCriterion(KNOWN, SmoothL1Box(beta=0.0)))
    terms = criterion(predictions, targets)
    assert terms.parts["positives"] == 3
    for_logits, for_codes = region_gradients(terms.total, predictions)
    expected = torch.zeros(6, 3)
    for region, label in ((0, 2), (4, 0), (5, 1)):
        expected[region, label] = 1.0
    # Up for the class that is there, down for the others; boxes of the own class alone.
    assert torch.equal((for_logits < 0).float(), expected)
    assert torch.equal((for_codes != 0).all(-1).float(), expected)
    assert torch.equal((for_codes != 0).any(-1).float(), expected)


@every_criterion
@pytest.mark.parametrize("agnostic", [False, True])
def test_any_criterion_has_gradients_for_all_it_is_given(make: Make, agnostic: bool) -> None:
    criterion = RegionCriterion(OVERLAP, make())
    batch = region_batch(TWO_IMAGES, agnostic=agnostic, background=background(criterion))
    terms = criterion(*batch)
    assert terms.total.isfinite()
    assert terms.parts["positives"] >= 3
    assert terms.parts["localisation"] > 0
    for gradient in region_gradients(terms.total, batch.predictions):
        assert gradient.isfinite().all()
        assert gradient.any()


@every_criterion
@pytest.mark.parametrize("shape", ["no object", "no region", "neither", "one image without"])
def test_nothing_to_learn_from_is_no_fault(make: Make, shape: str) -> None:
    criterion = RegionCriterion(OVERLAP, make())
    empty: tuple[list[list[float]], list[int]] = ([], [])
    targets = targets_of(empty, empty) if shape in ("no object", "neither") else TWO_IMAGES
    regions = 12 if shape in ("no object", "one image without") else 0
    batch = region_batch(targets, regions=regions, background=background(criterion))
    if shape == "one image without":
        kept = 12
        whole = batch.predictions
        batch = batch._replace(
            predictions=replace(
                whole,
                regions=Regions(whole.regions.boxes[:kept], (kept, 0)),
                logits=whole.logits[:kept],
                codes=whole.codes[:kept],
                branches={k: v[:kept] for k, v in whole.branches.items()},
            )
        )
    terms = criterion(*batch)
    assert terms.total.isfinite()
    if shape != "one image without":
        assert terms.parts["localisation"] == terms.parts["positives"] == 0
    gradients = region_gradients(terms.total, batch.predictions)
    assert all(gradient.isfinite().all() for gradient in gradients)
    if shape == "no object":
        assert not gradients[1].any()
    for name, value in criterion.state_dict().items():
        assert value.isfinite().all(), name


@every_criterion
def test_regions_on_a_crowd_are_neither_object_nor_background(make: Make) -> None:
    # Without the object that is meant by its own box the crowd would be background.
    crowd = targets_of(([[5.0, 5, 25, 25], [32.0, 0, 64, 64]], [0, -2]))
    criterion = RegionCriterion(OVERLAP, make())
    batch = region_batch(crowd, regions=40, background=background(criterion))
    terms = criterion(*batch)
    gradients = region_gradients(terms.total, batch.predictions)
    boxes = batch.predictions.regions.boxes
    within = (boxes[:, 2].clamp(max=64) - boxes[:, 0].clamp(min=32)).clamp(min=0)
    on_crowd = within > 0.5 * (boxes[:, 2] - boxes[:, 0])
    assert 3 < on_crowd.sum() < 37
    for gradient in gradients:
        assert not gradient[on_crowd].any()
    assert gradients[0][~on_crowd].any()
    # As if they had never been proposed.
    kept = ~on_crowd
    whole = batch.predictions
    fewer = replace(
        whole,
        regions=Regions(boxes[kept], (int(kept.sum()),)),
        logits=whole.logits[kept],
        codes=whole.codes[kept],
        branches={k: v[kept] for k, v in whole.branches.items()},
    )
    assert_close(criterion(fewer, batch.targets).total, terms.total)


@every_criterion
@pytest.mark.parametrize(
    ("boxes", "labels"),
    [
        ([[10.0, 10, 40, 40]], [1]),
        ([[10.0, 10, 40, 40]] * 4, [1, 1, 0, 2]),
        ([[20.0, 20, 21, 21]], [0]),
        ([[0.0, 0, 64, 64], [60.0, 60, 64, 64], [-8.0, 30, 12, 70]], [2, 0, 1]),
        ([[float(i % 20) * 3, float(i // 20) * 4, 3.0 * (i % 20) + 9, 4.0 * (i // 20) + 8]
          for i in range(300)], [i % 3 for i in range(300)]),
    ],
    ids=["one", "identical", "one pixel", "border", "300"],
)  # fmt: skip
def test_any_objects_give_a_finite_loss(
    make: Make, boxes: list[list[float]], labels: list[int]
) -> None:
    criterion = RegionCriterion(OVERLAP, make())
    targets = targets_of((boxes, labels))
    batch = region_batch(targets, regions=len(boxes) + 20, background=background(criterion))
    # The objects themselves are among the regions, as where they are added to the proposals.
    regions = Regions(
        torch.cat([targets.boxes[0].clamp(0, 64), batch.predictions.regions.boxes[len(boxes) :]]),
        batch.predictions.regions.counts,
    )
    batch = batch._replace(predictions=replace(batch.predictions, regions=regions))
    terms = criterion(*batch)
    assert terms.total.isfinite()
    assert terms.parts["positives"] >= 1
    for gradient in region_gradients(terms.total, batch.predictions):
        assert gradient.isfinite().all()


@every_criterion
def test_a_class_that_is_never_there_gets_no_box_but_is_pushed_down(make: Make) -> None:
    criterion = RegionCriterion(OVERLAP, make())
    targets = targets_of(([[5.0, 5, 30, 30]], [0]))
    batch = region_batch(targets, background=background(criterion))
    for_logits, for_codes, *_ = region_gradients(criterion(*batch).total, batch.predictions)
    assert not for_codes[:, 1:].any()
    assert (for_logits[:, 1:] >= 0).all()
    assert for_logits[:, 1:].any()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 50), name=st.sampled_from(sorted(CRITERIA)))
def test_the_order_of_the_regions_does_not_matter(seed: int, name: str) -> None:
    criterion = RegionCriterion(OVERLAP, CRITERIA[name]())
    batch = region_batch(TWO_IMAGES, seed=seed, background=background(criterion))
    whole = batch.predictions
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(12, generator=generator), 12 + torch.randperm(12, generator=generator)]
    )
    mixed = replace(
        whole,
        regions=Regions(whole.regions.boxes[order], whole.regions.counts),
        logits=whole.logits[order],
        codes=whole.codes[order],
        branches={k: v[order] for k, v in whole.branches.items()},
    )
    ours, theirs = criterion(*batch).total, criterion(mixed, batch.targets).total
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@every_criterion
def test_predictions_in_16_bits_give_a_loss_in_32(make: Make) -> None:
    criterion = RegionCriterion(OVERLAP, make())
    batch = region_batch(TWO_IMAGES, background=background(criterion), dtype=torch.bfloat16)
    terms = criterion(*batch)
    assert terms.total.dtype == torch.float32
    exact = replace(
        batch.predictions,
        logits=batch.predictions.logits.float(),
        codes=batch.predictions.codes.float(),
        branches={k: v.float() for k, v in batch.predictions.branches.items()},
    )
    assert_close(terms.total, criterion(exact, batch.targets).total)


def test_sampling_leaves_that_many_regions_of_each_image() -> None:
    sampled = SampledAssigner(OVERLAP, number=6, positive_share=0.5)
    criterion = RegionCriterion(sampled, CrossEntropyCriterion(KNOWN, SmoothL1Box()))
    batch = region_batch(TWO_IMAGES, regions=20)
    terms = criterion(*batch)
    assert terms.parts["examples"] == 12
    assert 1 <= terms.parts["positives"] <= 6
    for_logits, _ = region_gradients(terms.total, batch.predictions)
    assert for_logits.any(1).sum() == 12


def test_self_balance_is_kept_and_hears_of_each_period() -> None:
    criterion = RegionCriterion(OVERLAP, ALRPCriterion(KNOWN, SelfBalance(), frame="pixels"))
    first = criterion(*region_batch(TWO_IMAGES)).parts
    criterion.end_period()
    other = RegionCriterion(OVERLAP, ALRPCriterion(KNOWN, SelfBalance(), frame="pixels"))
    other.load_state_dict(criterion.state_dict())
    second = other(*region_batch(TWO_IMAGES)).parts
    weight = (first["classification"] + first["localisation"]) / first["localisation"]
    assert_close(second["balance"], weight)


def test_what_does_not_fit_is_refused() -> None:
    criterion = RegionCriterion(OVERLAP, CrossEntropyCriterion(KNOWN, SmoothL1Box()))
    batch = region_batch(TWO_IMAGES)
    whole = batch.predictions
    with pytest.raises(TypeError, match=r"must be built with AlreadyMatched\(\) as its assigner"):
        RegionCriterion(OVERLAP, CrossEntropyCriterion(OVERLAP, SmoothL1Box()))
    with pytest.raises(TypeError, match="as its assigner, got None in FreeAnchorCriterion"):
        RegionCriterion(OVERLAP, FreeAnchorCriterion())
    with pytest.raises(TypeError, match="for a criterion within a RegionCriterion"):
        KNOWN(object(), batch.targets)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"regions are of 2 images, but targets of 3"):
        criterion(whole, targets_of(([], []), ([], []), ([], [])))
    with pytest.raises(ValueError, match=r"codes must have shape \[24, 3, 4\], got \[24, 2, 4\]"):
        criterion(replace(whole, codes=whole.codes[:, :2]), batch.targets)
    with pytest.raises(ValueError, match=r"branch 'background' must have shape \[24\]"):
        criterion(replace(whole, branches={"background": whole.logits}), batch.targets)
    with pytest.raises(ValueError, match="has the branch 'background', which this criterion"):
        criterion(replace(whole, branches={"background": whole.logits[:, 0]}), batch.targets)
    wrong = replace(TWO_IMAGES, labels=TWO_IMAGES.labels.where(TWO_IMAGES.labels != 1, 7))
    with pytest.raises(ValueError, match="must be 0 to 2 for predictions of 3 classes, got 7"):
        criterion(whole, wrong)


def test_the_assigner_is_asked_image_by_image() -> None:
    """An assigner that compares priors with each other must not see those of other images."""
    seen: list[tuple[int, Targets]] = []

    class Watching:
        def __call__(self, priors: Any, targets: Targets) -> Any:
            seen.append((len(priors.boxes), targets))
            assert priors.inside(targets.sizes).all()
            return Given(torch.full((1, len(priors.boxes)), -1))(priors, targets)

    criterion = RegionCriterion(Watching(), CrossEntropyCriterion(KNOWN, SmoothL1Box()))
    criterion(*region_batch(TWO_IMAGES))
    assert [count for count, _ in seen] == [12, 12]
    for image, (_, targets) in enumerate(seen):
        assert torch.equal(targets.boxes, TWO_IMAGES.boxes[image : image + 1])
