"""Sampling: how many are drawn, from where, and that chance is fair and repeatable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankdet.assign.sampling import SampledAssigner
from rankdet.structures import IGNORED, NEGATIVE, Assignment, Priors, Targets

# What is sampled does not depend on them.
PRIORS = Priors(torch.zeros(0, 4), (0,), (8,))
NOBODY = torch.zeros(0, 0, dtype=torch.int64)
TARGETS = Targets(torch.zeros(0, 0, 4), NOBODY, NOBODY.bool(), NOBODY)


class Given:
    """An assigner that returns an assignment it was given."""

    def __init__(self, matched: Tensor) -> None:
        self.matched = matched

    def __call__(self, priors: Priors, targets: Targets) -> Assignment:
        assert len(priors.boxes) == len(targets.boxes) == 0
        return Assignment(self.matched)


def drawn(matched: Tensor, number: int, share: float) -> Tensor:
    return SampledAssigner(Given(matched), number, share)(PRIORS, TARGETS).matched


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=4),
    number=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.25, 0.29, 0.5, 1.0]),
)
def test_as_many_are_drawn_as_the_paper_says(
    rows: list[tuple[int, int]], number: int, share: float
) -> None:
    matched = torch.full((len(rows), 61), IGNORED)
    for row, (positives, negatives) in zip(matched, rows, strict=True):
        order = torch.randperm(61)
        row[order[:positives]] = torch.arange(positives)
        row[order[positives : positives + negatives]] = NEGATIVE
    found = drawn(matched.clone(), number, share)
    # What is kept is kept as it was.
    assert torch.equal(found[found != IGNORED], matched[found != IGNORED])
    for row, (positives, negatives) in zip(found, rows, strict=True):
        kept = min(positives, round(number * share * 100) // 100)
        assert (row >= 0).sum() == kept
        assert (row == NEGATIVE).sum() == min(negatives, number - kept)


def test_everyone_has_the_same_chance() -> None:
    matched = torch.tensor([[0, 1, 2, 3, NEGATIVE, NEGATIVE, NEGATIVE, IGNORED]])
    times = (drawn(matched.expand(2000, -1), 4, 0.5) != IGNORED).sum(0)
    # 2 of 4 and 2 of 3; the bounds are five standard deviations.
    assert ((times[:4] - 1000).abs() < 5 * 22.4).all()
    assert ((times[4:7] - 1333).abs() < 5 * 21.1).all()
    assert times[7] == 0


def test_the_seed_decides() -> None:
    matched = torch.full((2, 1000), NEGATIVE)
    torch.manual_seed(3)
    first, second = drawn(matched, 100, 0.5), drawn(matched, 100, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, drawn(matched, 100, 0.5))
    assert not torch.equal(first, second)
    # Nor do the images of a batch share their lots.
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("shape", [(2, 0), (0, 5)])
def test_there_may_be_nobody(shape: tuple[int, int]) -> None:
    assert drawn(torch.zeros(shape, dtype=torch.int64), 4, 0.5).shape == shape


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="number must be above zero, got 0"):
        drawn(torch.zeros(1, 1), 0, 0.5)
    with pytest.raises(ValueError, match="positive_share must be between 0 and 1, got 2"):
        drawn(torch.zeros(1, 1), 4, 2)
