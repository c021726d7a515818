"""Which image comes when: an endless stream of shuffled epochs, cut into batches.

Order and random numbers are pure functions of a few integers. So a run that was resumed, or that
reads its images in other processes, sees the same images as one that was not.

Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (SplitMix64, whose
finaliser mixes the integers here). Written out rather than taken from numpy or torch: neither
promises that what it draws stays the same in its next version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB

Key = tuple[int, int]
"""Epoch and index of an image."""


def mix(*numbers: int) -> int:
    """Hash integers to one of 64 bits, every bit of which depends on each of them.

    Args:
        numbers: at least one integer, in order; only their lowest 64 bits count.

    Returns:
        An integer in [0, 2**64), the same on every machine and in every version.

    Raises:
        ValueError: there are no numbers.

    Example:
        >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
        (True, False)
    """
    if not numbers:
        raise ValueError("mix needs at least one number")
    state = 0
    for number in numbers:
        state = _finish((state + _GAMMA + (number & _MASK)) & _MASK)
    return state


def random_bits(count: int, *numbers: int) -> NDArray[np.uint64]:
    """Return a stream of random integers of 64 bits that integers stand for (SplitMix64).

    Args:
        count: how many, 0 or more. A longer stream begins with the shorter one.
        numbers: what the stream depends on, at least one integer.

    Returns:
        [count], all different; the same on every machine and in every version.

    Raises:
        ValueError: there are no numbers.
    """
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    state += np.uint64(mix(*numbers))
    state ^= state >> np.uint64(30)
    state *= np.uint64(_FIRST)
    state ^= state >> np.uint64(27)
    state *= np.uint64(_SECOND)
    state ^= state >> np.uint64(31)
    return state


def epoch_order(length: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the images in one epoch: a permutation, new in each.

    Args:
        length: number of images, 0 or more.
        seed: of the run.
        epoch: 0 or more.

    Returns:
        [length] indices, each once.

    Example:
        >>> sorted(epoch_order(5, seed=0, epoch=3).tolist())
        [0, 1, 2, 3, 4]
    """
    return np.argsort(random_bits(length, seed, epoch), kind="stable")


@dataclass(frozen=True)
class StepSampler(Sampler[list[Key]]):
    """The batches of a run, one for each step; the batch sampler of the training loader.

    The images come in shuffled epochs, one after the other without a gap: a batch may hold the
    last images of one epoch and the first of the next, and no remainder is dropped. Step s of all
    processes takes the places s · batch · world and following; process ``rank`` takes its share of
    ``batch``. Which images a step has depends on the settings below and s, and on nothing else.

    Args:
        length: number of images of the set, at least 1.
        batch: images of each step and process, at least 1; more than ``length`` is allowed.
        steps: number of steps of the whole run, 0 or more.
        seed: of the run.
        rank: this process, 0 .. world - 1.
        world: number of processes, at least 1.
        start_step: first step to yield, 0 .. steps; a resumed run starts where it stopped.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> batches = list(StepSampler(length=3, batch=2, steps=3, seed=0))
        >>> [[epoch for epoch, _ in batch] for batch in batches]
        [[0, 0], [0, 1], [1, 1]]
    """

    length: int
    batch: int
    steps: int
    seed: int
    rank: int = 0
    world: int = 1
    start_step: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "batch", "world"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be in 0 .. {self.world - 1}, got {self.rank}")
        if self.steps < 0:
            raise ValueError(f"steps must be 0 or more, got {self.steps}")
        if not 0 <= self.start_step <= self.steps:
            raise ValueError(f"start_step must be in 0 .. {self.steps}, got {self.start_step}")

    def __len__(self) -> int:
        """Return the number of steps that are left."""
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield for each step that is left the epoch and the index of its images."""
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(self.start_step, self.steps):
            first = (step * self.world + self.rank) * self.batch
            keys = []
            for place in range(first, first + self.batch):
                if place // self.length != epoch:
                    epoch = place // self.length
                    order = epoch_order(self.length, seed=self.seed, epoch=epoch)
                keys.append((epoch, int(order[place % self.length])))
            yield keys


def _finish(state: int) -> int:
    """SplitMix64's finaliser: a bijection of 64 bits."""
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)
