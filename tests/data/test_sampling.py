"""The order of images: complete, the same after a resume, shared out without overlap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankdet.data.sampling import StepSampler, epoch_order, mix, random_bits

LENGTHS = st.integers(1, 40)
BATCHES = st.integers(1, 12)
SEEDS = st.integers(0, 2**70)


@given(length=LENGTHS, batch=BATCHES, world=st.integers(1, 4), seed=SEEDS)
def test_each_epoch_visits_each_image_once(length: int, batch: int, world: int, seed: int) -> None:
    steps = 3 * length // (batch * world) + 1
    ranks = [
        StepSampler(length, batch, steps=steps, seed=seed, rank=rank, world=world)
        for rank in range(world)
    ]
    # Step by step, the processes in turn: the endless stream.
    stream = [key for shares in zip(*ranks, strict=True) for share in shares for key in share]
    assert len(stream) == steps * batch * world
    for place, (epoch, index) in enumerate(stream):
        assert epoch == place // length
        assert 0 <= index < length
    for epoch, keys in itertools.groupby(stream, key=lambda key: key[0]):
        indices = [index for _, index in keys]
        assert len(set(indices)) == len(indices)
        if (epoch + 1) * length <= len(stream):
            assert len(indices) == length


@given(length=LENGTHS, batch=BATCHES, steps=st.integers(0, 30), data=st.data())
def test_a_resumed_run_gets_the_rest(
    length: int, batch: int, steps: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, steps))
    whole = list(StepSampler(length, batch, steps=steps, seed=3, rank=1, world=2))
    rest = StepSampler(length, batch, steps=steps, seed=3, rank=1, world=2, start_step=start)
    assert list(rest) == whole[start:]
    assert list(rest) == whole[start:]  # iterating does not use it up
    assert len(rest) == steps - start


def test_order_is_the_same_everywhere() -> None:
    assert epoch_order(10, seed=0, epoch=0).tolist() == [0, 7, 8, 2, 5, 9, 4, 6, 3, 1]
    assert mix(1, 2, 3) == 0x6AE515C1C0AC7E37


def test_random_bits_are_those_of_the_published_generator() -> None:
    # Steele et al.'s generator, one number after the other in Python's integers.
    mask = 2**64 - 1
    state, wanted = mix(5, 6), []
    for _ in range(100):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        wanted.append(z ^ (z >> 31))
    assert random_bits(100, 5, 6).tolist() == wanted
    assert random_bits(7, 5, 6).tolist() == wanted[:7]
    assert random_bits(0, 5, 6).shape == (0,)


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = {
        tuple(epoch_order(50, seed=seed, epoch=epoch).tolist())
        for seed in range(20)
        for epoch in range(20)
    }
    assert len(orders) == 400


def test_order_is_fair() -> None:
    # Where each image stands on average: uniform places of 0 .. 19 have mean 9.5 and standard
    # deviation 5.77, so the mean of 4000 epochs is within 5 · 5.77 / sqrt(4000) = 0.46 of it.
    places = np.zeros(20)
    for epoch in range(4000):
        places[epoch_order(20, seed=1, epoch=epoch)] += np.arange(20)
    assert np.abs(places / 4000 - 9.5).max() < 0.46


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4), st.data())
def test_mix_depends_on_every_number(numbers: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(numbers) - 1))
    changed = list(numbers)
    changed[place] ^= 1 << data.draw(st.integers(0, 63))
    assert mix(*numbers) != mix(*changed)
    assert 0 <= mix(*numbers) < 2**64


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"length": 0}, "length"),
        ({"batch": 0}, "batch"),
        ({"steps": -1}, "steps"),
        ({"world": 0}, "world"),
        ({"rank": 1}, "rank"),
        ({"start_step": 11}, "start_step"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        StepSampler(**{"length": 5, "batch": 2, "steps": 10, "seed": 0, **settings})
    with pytest.raises(ValueError, match="at least one"):
        mix()
