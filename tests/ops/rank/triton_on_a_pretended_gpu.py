"""Losses on a GPU that is none, their kernels in Triton's interpreter: the whole way a GPU takes.

Not collected by itself, see `triton_in_the_interpreter.py`. There the kernels are given tensors of
the CPU; here they are chosen as on a GPU, for tensors that say they lie on one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interpreter_marks import MARKS
from pretend_gpu import Notes, OnGPU, on_gpu, pretended
from ranking_losses import LOSSES, outcome
from torch import Tensor
from torch.testing import assert_close

pytestmark = MARKS


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notes]:
    """A GPU on which kernels work."""
    from rankdet.ops.rank import (
        triton_alrp,
        triton_bins,
        triton_evaluate,
        triton_fill,
        triton_find,
        triton_grid,
        triton_ranked,
    )
    from rankdet.ops.rank.triton_launch import launch

    launched: list[Any] = []

    def unwrapped(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        assert all(isinstance(x, OnGPU) for x in args if isinstance(x, Tensor)), kernel
        launched.append(kernel)
        launch(kernel, grid, *(x.numbers if isinstance(x, OnGPU) else x for x in args), **constants)

    for module in (triton_alrp, triton_bins, triton_evaluate, triton_fill, triton_find,
                   triton_grid, triton_ranked):  # fmt: skip
        monkeypatch.setattr(module, "launch", unwrapped)
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: nullcontext())
    properties = SimpleNamespace(multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    with pretended(triton=True) as notes:
        yield notes
    assert launched


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positives", [0, 60])
def test_a_loss_is_that_of_a_cpu(loss: str, dtype: torch.dtype, positives: int, gpu: Notes) -> None:
    x = (2 * torch.randn(9000) - 3).to(dtype)
    t = torch.zeros(9000, dtype=torch.int64)
    t[torch.randperm(9000)[: positives + 500]] = -1
    t[torch.randperm(9000)[:positives]] = 1
    e = torch.rand(int((t == 1).sum()))
    expected = outcome(loss, x, t, e)
    assert not gpu.waits
    found = outcome(loss, on_gpu(x), on_gpu(t), on_gpu(e))
    # The interpreter cuts float32 off on the way to bfloat16.
    assert_close(found, expected, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-8)
    assert len(gpu.waits) == 1, gpu.waits  # for the number of positives
    assert not gpu.sent
