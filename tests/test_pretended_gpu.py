"""The GPU that is none: it refuses what a GPU refuses, and notes where the host would wait."""

from __future__ import annotations

from functools import partial

import pytest
import ranking_losses
import torch
from pretend_gpu import OnGPU, move, on_cpu, on_gpu, pretended
from ranking_losses import LOSSES, outcome
from torch import Tensor, nn

from rankdet.losses import ap_loss


def test_two_devices_do_not_meet() -> None:
    with pretended():
        here, there = torch.ones(3), on_gpu(torch.ones(3))
        message = r"cuda:0 and cpu, .* shapes \[\(3,\)\]"
        with pytest.raises(RuntimeError, match=message):
            here + there
        with pytest.raises(RuntimeError, match=message):
            there.index_copy_(0, torch.arange(3), there)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert torch.equal(on_cpu(there * torch.tensor(2.0)), 2 * here)  # a single number may


def test_what_is_made_there_and_sent_there_is_there() -> None:
    with pretended() as gpu:
        x = on_gpu(torch.arange(6.0))
        assert (x.device.type, x.is_cuda, x.is_cpu, x.get_device()) == ("cuda", True, False, 0)
        made = [torch.zeros(2, device=x.device), x.new_zeros(2), x[2:4], x.to(torch.float64)]
        made += [torch.arange(3, device="cuda"), torch.empty_like(x), x.view(2, 3).T.contiguous()]
        assert not gpu.sent
        made += [torch.tensor([1.0], device="cuda"), x.new_tensor([1, 2]), torch.ones(2).to(x)]
        assert all(isinstance(each, OnGPU) for each in made)
        assert len(gpu.sent) == 3
        assert not gpu.waits
        x.tolist(), x.to("cpu"), x[0].item(), bool(x.any()), x.nonzero(), x[x > 2]
        assert len(gpu.waits) == 6


def test_gradients_are_there_too_and_cross_over() -> None:
    layer = nn.Linear(2, 1)
    x = torch.randn(4, 2, requires_grad=True)
    layer(x).square().sum().backward()
    expected = [x.grad, layer.weight.grad]
    x.grad = None
    move(layer)
    with pretended():
        layer(x.to("cuda")).cpu().square().sum().backward()
    weight = layer.weight.grad
    assert isinstance(weight, OnGPU)
    for found, wanted in zip((x.grad, on_cpu(weight)), expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found, wanted)


def batch(total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, targets of which a hundredth is positive, and a number for each of these."""
    targets = -(torch.rand(total) < 0.1).to(torch.int8)
    targets[torch.randperm(total)[: total // 100]] = 1
    return 2 * torch.randn(total) - 3, targets, torch.rand(total // 100)


@pytest.mark.parametrize("total", [200, 60_000])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_in_plain_torch_is_that_of_a_cpu(loss: str, total: int) -> None:
    data = batch(total)
    expected = outcome(loss, *data)
    with pretended() as gpu:
        found = outcome(loss, *map(on_gpu, data))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    assert not gpu.sent
    # What is no negative, the positives among it, and whether all of it is of a known kind.
    by_bits = 4 if loss == "Rank & Sort" and total // 100 > 512 else 0
    assert len(gpu.waits) == 3 + by_bits, gpu.waits


class Alone:
    """One process that ranks together with no other."""

    rank, size = 0, 1

    def gather(self, values: Tensor) -> Tensor:
        return values[None].clone()

    def add(self, values: Tensor) -> Tensor:
        return values.clone()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_ranking_over_processes_stays_there(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alrp_loss", "ap_loss", "rank_sort_loss"):
        together = partial(getattr(ranking_losses, name), group=Alone())
        monkeypatch.setattr(ranking_losses, name, together)
    data = batch(2000)
    expected = outcome(loss, *data)
    with pretended() as gpu:
        found = outcome(loss, *map(on_gpu, data))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    assert not gpu.sent
    assert len(gpu.waits) == 3 + 1, gpu.waits  # once more, for how many the others have


def test_to_take_it_for_numpy_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnGPU, "is_cpu", True)
    x = torch.randn(50)
    with pretended(), pytest.raises(TypeError, match="numpy"):
        ap_loss(on_gpu(x), on_gpu((x > 1).long()))
