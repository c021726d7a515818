"""Losses on a GPU that is none, their kernels in Triton's interpreter: the whole way a GPU takes.

Not collected by itself, see `triton_in_the_interpreter.py`. There the kernels are given tensors of
the CPU; here they are chosen as on a GPU, for tensors that say they lie on one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretend_gpu import Notes, OnGPU, on_cpu, on_gpu, pretended
from torch import Tensor
from torch.testing import assert_close

from rankdet.losses import alrp_loss, ap_loss, rank_sort_loss
from rankdet.ops.rank import passes

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
    # Triton 3.6 makes numbers of arrays with one entry, which numpy 2.3 still allows.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "alrp": lambda x, t, e: torch.stack(alrp_loss(x, t, e)).sum(),
    "alrp by sorting": lambda x, t, e: torch.stack(alrp_loss(x, t, e, loc_ranking="hard")).sum(),
    "ap": lambda x, t, _: ap_loss(x, t),
    "rank & sort": lambda x, t, e: torch.stack(rank_sort_loss(x, t, e)).sum(),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notes]:
    """A GPU on which kernels work."""
    from rankdet.ops.rank import triton, triton_find, triton_ranked  # noqa: F401
    from rankdet.ops.rank.triton_launch import launch

    launched: list[Any] = []

    def unwrapped(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        tensors = [x for x in args if isinstance(x, Tensor)]
        assert all(isinstance(x, OnGPU) for x in tensors), kernel
        launched.append(kernel)
        launch(kernel, grid, *(x.numbers if isinstance(x, OnGPU) else x for x in args), **constants)

    for name, module in list(sys.modules.items()):
        if name.startswith("rankdet.ops.rank.triton_") and hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", unwrapped)
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: nullcontext())
    properties = SimpleNamespace(multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    with pretended() as notes:
        monkeypatch.setattr(passes, "_triton_works", lambda _: True)
        yield notes
    assert launched


def both(x: Tensor, t: Tensor, e: Tensor, loss: Loss, there: Callable[[Tensor], Tensor]) -> Any:
    """Return a loss and its gradients for copies of these, where they were put."""
    logits, errors = (there(each).requires_grad_() for each in (x, e))
    value = loss(logits, there(t), errors)
    value.backward()
    return [on_cpu(each) for each in (value, logits.grad, errors.grad) if each is not None]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positives", [0, 60])
def test_a_loss_is_that_of_a_cpu(loss: str, dtype: torch.dtype, positives: int, gpu: Notes) -> None:
    x = (2 * torch.randn(9000) - 3).to(dtype)
    t = torch.zeros(9000, dtype=torch.int64)
    t[torch.randperm(9000)[: positives + 500]] = -1
    t[torch.randperm(9000)[:positives]] = 1
    e = torch.rand(int((t == 1).sum()))
    expected = both(x, t, e, LOSSES[loss], lambda each: each.clone())
    gpu.waits.clear()
    found = both(x, t, e, LOSSES[loss], on_gpu)
    # The interpreter cuts float32 off on the way to bfloat16.
    assert_close(found, expected, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-8)
    assert len(gpu.waits) == 1, gpu.waits  # for the number of positives
    assert not gpu.sent
