"""PAA: the mixture against scikit-learn, the choice against a loop, and the edges."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
from sklearn.mixture import GaussianMixture  # type: ignore[import-untyped]
from torch import Tensor
from torch.testing import assert_close

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.assign.paa import PAAAssigner, cheap_ones, fit_two_normals
from rankdet.models.priors import AnchorGenerator
from rankdet.ops.box_codes import DeltaCoder
from rankdet.structures import IGNORED, NEGATIVE, Assignment, Predictions, Priors, Targets


def published(costs: np.ndarray[tuple[int], np.dtype[np.float64]]) -> GaussianMixture:
    """Return the mixture that the authors fit to the costs of an object."""
    values = costs[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal costs
        return GaussianMixture(
            2,
            weights_init=[0.5, 0.5],
            means_init=[[values.min()], [values.max()]],
            precisions_init=[[[1.0]], [[1.0]]],
        ).fit(values)


def positive_by_loop(costs: Tensor, objects: Tensor, levels: Tensor, top_k: int) -> list[bool]:
    """Return what the authors' code does, one object after the other."""
    found = [False] * len(costs)
    for which in set(objects.tolist()):
        members: list[int] = []
        for level in set(levels.tolist()):
            here = ((objects == which) & (levels == level)).nonzero().flatten().tolist()
            members += sorted(here, key=lambda i: costs[i].item())[:top_k]
        members.sort(key=lambda i: costs[i].item())
        if len(members) > 1:
            values = costs[members].numpy()
            mixture = published(values)
            lower = mixture.predict(values[:, None]) == 0
            density = mixture.score_samples(values[:, None])
            if lower.any():
                best = np.flatnonzero(lower & (density == density[lower].max())).min()
                members = members[: best + 1]
        for i in members:
            found[i] = True
    return found


def random_costs(seed: int, count: int, objects: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(count, generator=generator, dtype=torch.float64) * 3
    costs[torch.rand(count, generator=generator) < 0.4] += 2.5
    of = torch.randint(objects, (count,), generator=generator)
    return costs, of, torch.randint(3, (count,), generator=generator)


def test_all_rows_together_are_what_scikit_learn_fits_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.zeros(60, 45, dtype=torch.float64)
    real = torch.zeros(60, 45, dtype=torch.bool)
    steps = set()
    for row, scale in enumerate([0.01, 1.0, 3.0, 10.0] * 15):
        count = int(torch.randint(2, 46, (), generator=generator))
        values[row] = torch.rand(45, generator=generator) * scale
        values[row, : count // 2] += 2 * (row % 3)
        real[row, torch.randperm(45, generator=generator)[:count]] = True
    fitted = fit_two_normals(values.masked_fill(~real, 77.0), real)
    for row in range(60):
        theirs = published(values[row, real[row]].numpy())
        steps.add(theirs.n_iter_)
        for ours, want in (
            (fitted.weights, theirs.weights_),
            (fitted.means, theirs.means_),
            (fitted.variances, theirs.covariances_),
        ):
            assert_close(ours[row], torch.from_numpy(want.ravel()), rtol=1e-9, atol=1e-12)
    assert len(steps) > 5, "rows that need different numbers of steps"


def test_nothing_at_all() -> None:
    fitted = fit_two_normals(torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.bool))
    assert fitted.means.shape == (0, 2)
    nobody = torch.zeros(0, dtype=torch.int64)
    assert cheap_ones(torch.zeros(0), nobody, nobody, top_k=9).shape == (0,)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 5), st.integers(1, 9))
def test_the_choice_is_that_of_a_loop(seed: int, count: int, objects: int, top_k: int) -> None:
    costs, of, levels = random_costs(seed, count, objects)
    found = cheap_ones(costs, of, levels, top_k=top_k)
    assert found.tolist() == positive_by_loop(costs, of, levels, top_k)


def test_what_lies_below_the_lower_heap_is_positive_too() -> None:
    # The heap about 3.2 is so narrow that 1.2 rather belongs to the wide one.
    costs = torch.tensor(
        [1.2, 3.1, 3.12, 3.2, 3.21, 3.3, 3.31, 4.1, 5.3, 6.0, 6.6, 7.4, 10.5, 11.1],
        dtype=torch.float64,
    )
    values = costs.numpy()
    assert published(values).predict(values[:, None])[:2].tolist() == [1, 0]
    nothing = torch.zeros(len(costs), dtype=torch.int64)
    found = cheap_ones(costs, nothing, nothing, top_k=20)
    assert found[:2].all()
    assert found.tolist() == positive_by_loop(costs, nothing, nothing, 20)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_the_order_of_priors_does_not_matter(seed: int, count: int) -> None:
    costs, of, levels = random_costs(seed, count, 3)
    order = torch.randperm(count)
    found = cheap_ones(costs, of, levels, top_k=5)
    again = cheap_ones(costs[order], of[order], levels[order], top_k=5)
    assert torch.equal(again, found[order])


def test_equal_costs_are_treated_alike() -> None:
    nothing = torch.zeros(4, dtype=torch.int64)
    assert cheap_ones(torch.full((4,), 0.7), nothing, nothing, top_k=9).all()
    # Of too many candidates the first ones.
    assert cheap_ones(torch.full((4,), 0.7), nothing, nothing, top_k=2).tolist() == [1, 1, 0, 0]
    pairs = torch.tensor([0.2, 5.0, 0.2, 5.0])
    assert cheap_ones(pairs, nothing, nothing, top_k=9).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_positive(value: float) -> None:
    costs, of, levels = random_costs(1, 40, 2)
    before = cheap_ones(costs, of, levels, top_k=3)
    place = int((of == 1).nonzero()[4])
    costs[place] = value
    levels[of == 1] = 0
    after = cheap_ones(costs, of, levels, top_k=40)
    assert after[of == 1].all()
    if value != torch.inf:
        assert cheap_ones(costs, of, levels, top_k=3)[place]
    # The other object does not notice.
    same = cheap_ones(costs, of, levels, top_k=3)
    assert torch.equal(same[of == 0], before[of == 0])


def cost(logits: Tensor, labels: Tensor, predicted: Tensor, boxes: Tensor) -> Tensor:
    """A cost that any loss could be."""
    return (predicted - boxes).abs().sum(1) / 20 - logits.gather(1, labels[:, None])[:, 0]


def make_scene(
    boxes: list[Tensor], *, crowd: Tensor | None = None, size: tuple[int, int] = (64, 64)
) -> tuple[Predictions, Targets]:
    """Return random predictions for 64 x 64 px, and these objects; the last one may be a crowd."""
    generator = torch.Generator().manual_seed(5)
    anchors = AnchorGenerator(strides=(8, 16), scale=4.0, octave_scales=1, ratios=(1.0,))
    priors = anchors((64, 64), device="cpu", dtype=torch.float32)
    logits = torch.randn(len(boxes), len(priors.boxes), 3, generator=generator)
    codes = torch.randn(len(boxes), len(priors.boxes), 4, generator=generator)
    given_crowd = [torch.zeros(len(each), dtype=torch.bool) for each in boxes]
    if crowd is not None:
        boxes = [torch.cat([each, crowd[None]]) for each in boxes]
        given_crowd = [torch.cat([each, torch.tensor([True])]) for each in given_crowd]
    labels = [torch.arange(len(each)) % 3 for each in boxes]
    targets = Targets.stack(boxes, labels, given_crowd, [size] * len(boxes))
    return Predictions(logits, codes, priors, DeltaCoder()), targets


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 23], 1)


FIRST = MaxIoUAssigner(positive=0.1, negative=0.1)


def test_a_batch_is_assigned_as_its_images_are() -> None:
    predictions, targets = make_scene([random_boxes(4, 0), random_boxes(0, 1), random_boxes(2, 2)])
    matched = PAAAssigner(cost).assign(predictions, targets).matched
    assert not matched.requires_grad
    first = FIRST(predictions.priors, targets).matched
    level = torch.tensor([0] * 64 + [1] * 16)
    for image in range(3):
        alone = PAAAssigner(cost).assign(
            replace(
                predictions,
                logits=predictions.logits[image, None],
                codes=predictions.codes[image, None],
            ),
            targets.of_images(slice(image, image + 1)),
        )
        assert torch.equal(alone.matched[0], matched[image])
        asked = (first[image] >= 0).nonzero().flatten()
        objects = first[image, asked]
        costs = cost(
            predictions.logits[image, asked],
            targets.labels[image, objects],
            predictions.coder.decode(predictions.priors.boxes[asked],
                                     predictions.codes[image, asked]),
            targets.boxes[image, objects],
        ).double()  # fmt: skip
        expected = torch.full_like(matched[image], NEGATIVE)
        kept = torch.tensor(positive_by_loop(costs, objects, level[asked], 9), dtype=torch.bool)
        expected[asked[kept]] = objects[kept]
        assert torch.equal(matched[image], expected)
    assert (matched[0] >= 0).any()
    assert (matched[1] == NEGATIVE).all()


def test_positives_change_with_the_predictions() -> None:
    predictions, targets = make_scene([random_boxes(4, 0)])
    before = PAAAssigner(cost).assign(predictions, targets).matched
    other = replace(predictions, logits=-predictions.logits)
    after = PAAAssigner(cost).assign(other, targets).matched
    assert not torch.equal(before, after)


def test_what_is_ignored_stays_ignored() -> None:
    crowd = torch.tensor([0.0, 32.0, 64.0, 64.0])
    predictions, targets = make_scene([random_boxes(4, 0)], crowd=crowd, size=(64, 50))
    first = FIRST(predictions.priors, targets).matched
    matched = PAAAssigner(cost).assign(predictions, targets).matched
    assert (first == IGNORED).any()
    assert torch.equal(matched == IGNORED, first == IGNORED)
    chosen = matched >= 0
    assert torch.equal(matched[chosen], first[chosen])
    assert (first[~chosen] >= 0).any()


@pytest.mark.parametrize(
    "boxes",
    [
        random_boxes(300, 3),
        random_boxes(1, 4).repeat(3, 1),
        torch.tensor([[20.0, 20.0, 21.0, 21.0], [40.5, 40.5, 41.5, 41.5]]),
        torch.tensor([[0.0, 0.0, 9.0, 14.0], [52.0, 60.0, 64.0, 64.0]]),
        torch.tensor([[0.0, 0.0, 64.0, 64.0]]),
    ],
    ids=["300", "identical", "one pixel", "at the border", "the whole image"],
)
def test_the_edges(boxes: Tensor) -> None:
    predictions, targets = make_scene([boxes, boxes[:1]])
    first = FIRST(predictions.priors, targets).matched
    matched = PAAAssigner(cost).assign(predictions, targets).matched
    for image in range(2):
        # Whoever came into question for something finds something.
        assert set(matched[image].tolist()) - {NEGATIVE} == set(first[image].tolist()) - {NEGATIVE}


def test_another_first_assigner_can_be_given() -> None:
    predictions, targets = make_scene([random_boxes(3, 0)])

    class Everything:
        def __call__(self, priors: Priors, targets: Targets) -> Assignment:
            return Assignment(torch.zeros(len(targets.boxes), len(priors.boxes), dtype=torch.int64))

    matched = PAAAssigner(cost, first=Everything(), top_k=4).assign(predictions, targets).matched
    assert 1 <= (matched == 0).sum() <= 8
    assert set(matched.flatten().tolist()) == {0, NEGATIVE}


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="top_k must be above zero, got 0"):
        PAAAssigner(cost, top_k=0)
