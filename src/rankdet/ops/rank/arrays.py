"""Arrays with an entry or two for each positive: numpy's on a CPU, tensors elsewhere.

For its positives a ranking loss takes some hundred short operations. On a CPU such an operation
costs what it takes to begin it, 3 to 6 us in torch and 1 to 2 us in numpy, on the same memory.
numpy and torch give most of what is needed the same names and the same order of arguments, so
that one text serves both: ``xp = library_of(array)``, and ``xp.where`` from there on. Here is what
they do not have in common.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

# A numpy array or a tensor. No type says what both can do, and theirs exclude each other.
Array: TypeAlias = Any

# numpy warns of what here is meant: the NaN of a bad score, a division that is masked afterwards.
# As a decorator.
quiet = np.errstate(all="ignore")


def to_array(values: Tensor) -> Array:
    """Return values as an array, on the same memory; on a CPU of a dtype that numpy knows."""
    return values.numpy() if values.is_cpu else values


def to_tensor(values: Array) -> Tensor:
    """Return an array as a tensor, on the same memory."""
    return values if isinstance(values, Tensor) else torch.from_numpy(values)


def of_kind(values: Tensor, other: Array) -> Array:
    """Return a tensor as what another array is, a tensor or numpy's."""
    return values if isinstance(other, Tensor) else values.numpy()


def library_of(array: Array) -> Any:
    """Return `torch` for a tensor, else `numpy`."""
    return torch if isinstance(array, Tensor) else np


def double(array: Array) -> Array:
    """Return the numbers as float64."""
    if isinstance(array, Tensor):
        return array.double()
    return array.astype(np.float64, copy=False)


def zeros(like: Array, size: int) -> Array:
    """Return zeros, [size], of the kind and dtype of an array."""
    return like.new_zeros(size) if isinstance(like, Tensor) else np.zeros(size, like.dtype)


def put(array: Array, where: Array, value: float) -> Array:
    """Set entries of an array, where a mask says so, and return the array."""
    if isinstance(array, Tensor):
        return array.masked_fill_(where, value)
    np.copyto(array, value, where=where)
    return array


def pick(array: Array, places: Array) -> Array:
    """Return the entries of an array [n] at places [m] int64."""
    return array.index_select(0, places) if isinstance(array, Tensor) else array[places]


def ascending(array: Array) -> Array:
    """Return the order that sorts an array [n]; of equal numbers the earlier comes first."""
    if isinstance(array, Tensor):
        return array.argsort(stable=True)
    return array.argsort(kind="stable")


def sum_from_top(array: Array) -> Array:
    """Return, for each entry along the last axis, the sum of it and all that follow."""
    if isinstance(array, Tensor):
        return array.flip(-1).cumsum(-1).flip(-1)
    return array[..., ::-1].cumsum(-1)[..., ::-1]


def least_so_far(array: Array) -> Array:
    """Return, for each entry of an array [n], the least of it and all before; NaN after a NaN."""
    if isinstance(array, Tensor):
        return array.cummin(0).values
    return np.minimum.accumulate(array)


def add_up(places: Array, weights: Array, size: int) -> Array:
    """Return the sums of T sets of weights [T, n] float64 by place [n] int64, [T, size]."""
    if isinstance(weights, Tensor):
        empty = weights.new_zeros(weights.shape[0], size)
        return empty.scatter_add_(1, places.expand(weights.shape), weights)
    return np.stack([np.bincount(places, each, size) for each in weights])
