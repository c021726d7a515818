"""One text for numpy's arrays and for tensors: both must say the same, to the last digits."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_losses import LOSSES, outcome
from torch import Tensor

from rankdet.losses import alrp_loss, error_sharing
from rankdet.ops.rank import arrays, pairs, vectorised
from rankdet.ops.rank.arrays import Array
from rankdet.ops.rank.knots import Pieces, counts_from_bins, make_knots, pieces

# Ties, ends of ramps that meet, what is far away, what is not finite.
number = st.one_of(
    st.integers(-8, 8).map(lambda k: k / 4),
    st.floats(-30, 30, width=32),
    st.sampled_from([1e30, -1e6, float("inf"), float("nan")]),
)
deltas = st.sampled_from([0.0, 0.25, 1.0])


def as_array(values: Tensor) -> Array:
    return values.numpy()


def agree(by_numpy: Array, by_torch: Array) -> None:
    """Compare an array with a tensor."""
    assert isinstance(by_numpy, np.ndarray)
    assert isinstance(by_torch, Tensor)
    torch.testing.assert_close(
        torch.from_numpy(np.ascontiguousarray(by_numpy)),
        by_torch,
        rtol=1e-13,
        atol=1e-13,
        equal_nan=True,
    )


@settings(deadline=None, max_examples=200)
@given(scores=st.lists(number, max_size=12), delta=deltas, sets=st.sampled_from([None, 1, 3]))
def test_knots_are_the_same(scores: list[float], delta: float, sets: int | None) -> None:
    pos = torch.tensor(scores, dtype=torch.float64)
    by_numpy, by_torch = make_knots(as_array(pos), delta), make_knots(pos, delta)
    # Which of two equal knots is which may differ; what is made with them may not.
    for name in ("values", "base", "width", "step", "gap"):
        agree(getattr(by_numpy, name), getattr(by_torch, name))
    assert np.array_equal(by_numpy.order[by_numpy.ends.ravel()], np.arange(2 * len(scores)))
    if not pos.isfinite().all():  # what is made with them is replaced by NaN
        return
    shape = () if sets is None else (sets,)
    number_in = torch.randint(0, 5, (*shape, 2 * len(scores) + 1))
    # Between equal knots there is no room for a score.
    number_in[..., 1:][..., by_torch.values.diff(append=torch.ones(1)) == 0] = 0
    beyond = torch.rand(number_in.shape, dtype=torch.float64) * number_in
    agree(
        counts_from_bins(by_numpy, as_array(number_in), as_array(beyond)),
        counts_from_bins(by_torch, number_in, beyond),
    )
    weights = torch.rand(*shape, len(scores), dtype=torch.float64)
    found, wanted = pieces(by_numpy, as_array(weights)), pieces(by_torch, weights)
    room = torch.cat([torch.ones(1), by_torch.values.diff(append=torch.ones(1))]) != 0
    for name in Pieces._fields:
        agree(getattr(found, name)[..., room.numpy()], getattr(wanted, name)[..., room])


@settings(deadline=None, max_examples=100)
@given(
    scores=st.lists(number.filter(lambda x: abs(x) < 1e20), max_size=12),
    delta=deltas,
    by_matrix=st.booleans(),
)
def test_pairs_are_the_same(scores: list[float], delta: float, by_matrix: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_MATRIX_UP_TO", 1000 if by_matrix else -1)
        pos = torch.tensor(scores, dtype=torch.float64)
        by_numpy = pairs.Pairs(as_array(pos), make_knots(as_array(pos), delta), delta)
        by_torch = pairs.Pairs(pos, make_knots(pos, delta), delta)
        values = torch.rand(2, len(scores), dtype=torch.float64)
        agree(by_numpy.counts(as_array(values)), by_torch.counts(values))
        agree(by_numpy.spread(as_array(values[0])), by_torch.spread(values[0]))


def test_what_the_two_do_not_have_in_common() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0], [0.5, 0.0, 4.0]], dtype=torch.float64)
    places = torch.tensor([2, 0, 2])
    one = values[0]
    for way, arguments in (
        (arrays.sum_from_top, (values,)),
        (arrays.least_so_far, (one,)),
        (arrays.ascending, (one,)),
        (arrays.ascending, (places,)),
        (arrays.pick, (one, places)),
    ):
        agree(way(*map(as_array, arguments)), way(*arguments))
    agree(arrays.add_up(as_array(places), as_array(values), 4), arrays.add_up(places, values, 4))
    assert arrays.add_up(places, values, 4).tolist() == [[1, 0, 5, 0], [0, 0, 4.5, 0]]
    assert arrays.sum_from_top(values).tolist() == [[6, 3, 2], [4.5, 4, 4]]
    assert arrays.least_so_far(one).tolist() == [3, 1, 1]
    assert arrays.ascending(places).tolist() == [1, 0, 2]
    mask = one > 1.5
    agree(arrays.put(as_array(one.clone()), as_array(mask), -1.0), arrays.put(one, mask, -1.0))
    assert one.tolist() == [-1, 1, -1]


def example(positives: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(20_000, dtype=torch.float64) * 2 - 4
    targets = torch.zeros(20_000, dtype=torch.int8)
    targets[torch.randperm(20_000)[:positives]] = 1
    targets[torch.randperm(20_000)[:500]] = -1
    logits = torch.where(targets == 1, logits + 3, logits)
    each = torch.rand(int((targets == 1).sum()), dtype=torch.float64)
    return logits.to(dtype), targets, each.to(dtype)


@pytest.mark.parametrize("positives", [0, 3, 100, 900])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_by_tensors_is_a_loss_by_arrays(
    loss: str, positives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = example(positives)
    by_arrays = outcome(loss, *data)
    # As on a GPU where no kernel was chosen: tensors throughout, and a search instead of a grid.
    monkeypatch.setattr(error_sharing, "to_array", lambda values: values)
    monkeypatch.setattr(vectorised, "_GRID_FROM", 10**9)
    by_tensors = outcome(loss, *data)
    assert len(by_tensors) == len(by_arrays)
    for found, wanted in zip(by_tensors, by_arrays, strict=True):
        scale = max(wanted.abs().flatten().tolist(), default=0.0)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("loss", LOSSES)
def test_bad_scores_make_nan_and_no_warning(loss: str, bad: float) -> None:
    for of_kind in (0, 1):
        logits, targets, each = example(50)
        logits[(targets == of_kind).nonzero()[:2, 0]] = torch.tensor([bad, -bad]).double()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert outcome(loss, logits, targets, each)[0].isnan().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_another_default_device_does_not_matter(loss: str) -> None:
    data = example(50, torch.float32)
    wanted = outcome(loss, *data)
    with torch.device("meta"):
        found = outcome(loss, *data)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_ties_stand_in_their_order_when_ranked_by_sorting() -> None:
    """Of equal scores the later ranks above the earlier, whatever sorts them."""
    logits = torch.zeros(40, dtype=torch.float64)
    each = torch.zeros(40, dtype=torch.float64)
    last = torch.ones(40, dtype=torch.int8)
    each.requires_grad_()
    terms = alrp_loss(logits, last, each, loc_ranking="hard")
    (weights,) = torch.autograd.grad(terms.localisation, each)
    # The k-th is among those at or above the first k, each of which hands out 1 / rank / P.
    assert (weights.diff() > 0).all()


@pytest.mark.parametrize("kind", [as_array, lambda values: values])
def test_counts_of_a_hard_step_are_whole_beyond_float32(
    kind: Callable[[Tensor], Array],
) -> None:
    knots = make_knots(kind(torch.zeros(1, dtype=torch.float64)), 0.0)
    many = 2**24 + 1  # float32 has no such number
    number_in = kind(torch.tensor([0, 0, many]))
    beyond = kind(torch.zeros(3, dtype=torch.float64))
    assert counts_from_bins(knots, number_in, beyond).tolist() == [many]
