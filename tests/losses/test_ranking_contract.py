"""What every ranking loss keeps to: empty cases, bad input, precision, and torch's machinery."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rankdet.losses.alrp import alrp_loss
from rankdet.losses.ap import ap_loss
from rankdet.losses.rank_sort import rank_sort_loss


class Case(NamedTuple):
    """A loss as (logits, targets, per positive) -> scalar terms; and its registered operator."""

    name: str
    terms: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    raw: Callable[[Tensor, Tensor, Tensor], tuple[object, ...]]


LOSSES = [
    Case(
        "alrp",
        lambda logits, targets, each: alrp_loss(logits, targets, each),
        lambda logits, targets, each: (logits, targets, each, 1.0, 1e-5, False),
    ),
    Case(
        "ap",
        lambda logits, targets, _: (ap_loss(logits, targets),),
        lambda logits, targets, _: (logits, targets, 1.0, True),
    ),
    Case(
        "rank_sort",
        lambda logits, targets, each: rank_sort_loss(logits, targets, each),
        lambda logits, targets, each: (logits, targets, each, 0.5, 1e-10),
    ),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=[case.name for case in LOSSES])


def example(size: int = 500, positives: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(size)
    targets = torch.zeros(size, dtype=torch.int8)
    targets[torch.randperm(size)[:positives]] = 1
    targets[torch.randperm(size)[: size // 10]] = -1
    return logits, targets, torch.rand(int((targets == 1).sum()))


def gradient(loss: Case, logits: Tensor, targets: Tensor, each: Tensor) -> Tensor:
    leaf = logits.detach().requires_grad_()
    sum(loss.terms(leaf, targets, each), torch.zeros(())).backward()
    assert leaf.grad is not None
    return leaf.grad


@every_loss
@pytest.mark.parametrize("targets", [[0, 0, 0], [-1, -1, -1], [0, -1, 0], []])
def test_without_positives_the_value_is_zero_and_so_is_the_gradient(
    loss: Case, targets: list[int]
) -> None:
    logits = torch.randn(len(targets), requires_grad=True)
    terms = loss.terms(logits, torch.tensor(targets), torch.zeros(0))
    assert [term.item() for term in terms] == [0.0] * len(terms)
    sum(terms, torch.zeros(())).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(len(targets)))


@every_loss
def test_without_negatives_nothing_ranks_above(loss: Case) -> None:
    logits = torch.tensor([1.0, -1.0, 5.0], requires_grad=True)
    terms = loss.terms(logits, torch.tensor([1, 1, -1]), torch.full((2,), 0.5))
    assert terms[0].item() == 0
    terms[0].backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(3))


@every_loss
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", [1, 0])
@pytest.mark.parametrize("size", [30, 20_000])
def test_a_logit_that_is_not_finite_makes_every_term_and_gradient_nan(
    loss: Case, size: int, kind: int, bad: float
) -> None:
    logits, targets, each = example(size)
    logits[int((targets == kind).nonzero()[0])] = bad
    assert all(term.isnan() for term in loss.terms(logits, targets, each))
    assert gradient(loss, logits, targets, each)[targets >= 0].isnan().all()
    # Without a positive, nobody looks at the logits but for this.
    only_negatives = torch.zeros(size)
    assert all(term.isnan() for term in loss.terms(logits, only_negatives, torch.zeros(0)))


@every_loss
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_ignored_logit_may_be_anything(loss: Case, bad: float) -> None:
    logits, targets, each = example(20_000)
    expected = loss.terms(logits, targets, each)
    wanted = gradient(loss, logits, targets, each)
    logits[targets == -1] = bad
    torch.testing.assert_close(loss.terms(logits, targets, each), expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient(loss, logits, targets, each), wanted, rtol=0, atol=0)


@every_loss
def test_nan_per_positive_does_not_pass_unseen(loss: Case) -> None:
    logits, targets, each = example()
    each[0] = torch.nan
    if loss.name != "ap":
        assert any(term.isnan() for term in loss.terms(logits, targets, each))


@every_loss
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.float32, torch.float64, torch.bfloat16]
)
def test_targets_of_any_dtype(loss: Case, dtype: torch.dtype) -> None:
    logits, targets, each = example()
    expected = loss.terms(logits, targets, each)
    assert loss.terms(logits, targets.to(dtype), each) == expected


@every_loss
def test_bad_arguments_are_named(loss: Case) -> None:
    logits, targets, each = example()
    with pytest.raises(ValueError, match=r"targets must be 1 \(positive\).* got 2 at index 7"):
        loss.terms(logits, targets.index_fill(0, torch.tensor([7]), 2), each)
    with pytest.raises(ValueError, match=r"targets must be 1 .* got 0\.5 at index 7"):
        loss.terms(logits, targets.float().index_fill(0, torch.tensor([7]), 0.5), each)
    with pytest.raises(ValueError, match=r"targets must be 1 .* got nan at index 7"):
        loss.terms(logits, targets.float().index_fill(0, torch.tensor([7]), torch.nan), each)
    with pytest.raises(ValueError, match=r"logits must have shape \[M\], got \[500, 1\]"):
        loss.terms(logits[:, None], targets, each)
    with pytest.raises(ValueError, match=r"targets must have shape \[500\], got \[499\]"):
        loss.terms(logits, targets[1:], each)
    with pytest.raises(TypeError, match=r"logits must be floating point, got torch\.int8"):
        loss.terms(logits.to(torch.int8), targets, each)
    with pytest.raises(TypeError, match=r"targets must be a torch\.Tensor, got list"):
        loss.terms(logits, targets.tolist(), each)  # type: ignore[arg-type]


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [500, 20_000])
def test_half_precision_logits_are_ranked_exactly(
    loss: Case, dtype: torch.dtype, size: int
) -> None:
    logits, targets, each = example(size)
    logits = logits.to(dtype)
    terms = loss.terms(logits, targets, each)
    assert [term.dtype for term in terms] == [torch.float32] * len(terms)
    wide_terms = loss.terms(logits.float(), targets, each)
    torch.testing.assert_close(terms, wide_terms, rtol=1e-6, atol=0)
    grad = gradient(loss, logits, targets, each)
    assert grad.dtype == dtype
    wide = gradient(loss, logits.float(), targets, each)
    torch.testing.assert_close(grad, wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


@every_loss
@pytest.mark.parametrize("size", [500, 20_000])
def test_under_autocast(loss: Case, size: int) -> None:
    weight = torch.randn(8, requires_grad=True)
    features, (_, targets, each) = torch.randn(size, 8), example(size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = features @ weight
        assert logits.dtype == torch.bfloat16
        terms = loss.terms(logits, targets, each)
    assert all(term.dtype == torch.float32 for term in terms)
    sum(terms, torch.zeros(())).backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert weight.grad.abs().max() > 0


@every_loss
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(loss: Case, backend: str) -> None:
    torch._dynamo.reset()
    weight = torch.randn(8, requires_grad=True)
    features, (_, targets, each) = torch.randn(500, 8), example()

    def step(weight: Tensor, features: Tensor, targets: Tensor, each: Tensor) -> Tensor:
        return sum(loss.terms(features @ weight, targets, each), torch.zeros(()))

    expected = step(weight, features, targets, each)
    (wanted,) = torch.autograd.grad(expected, weight)
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for _ in range(2):
        result = compiled(weight, features, targets, each)
        (grad,) = torch.autograd.grad(result, weight)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(grad, wanted)
    # Another number of positives must not need the same shapes.
    _, targets, each = example(500, 35)
    result = compiled(weight, features, targets, each)
    torch.testing.assert_close(result, step(weight, features, targets, each))


@every_loss
def test_the_registered_operator_is_sound(loss: Case) -> None:
    logits, targets, each = example()
    operator = getattr(torch.ops.rankdet, loss.name).default
    torch.library.opcheck(
        operator,
        loss.raw(logits.requires_grad_(), targets, each),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@every_loss
def test_under_gradient_checkpointing(loss: Case) -> None:
    weight = torch.randn(8, requires_grad=True)
    features, (_, targets, each) = torch.randn(500, 8), example()

    def step(weight: Tensor) -> Tensor:
        return sum(loss.terms(features @ weight, targets, each), torch.zeros(()))

    (expected,) = torch.autograd.grad(step(weight), weight)
    (result,) = torch.autograd.grad(checkpoint(step, weight, use_reentrant=False), weight)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@every_loss
def test_a_second_derivative_is_refused_in_words(loss: Case) -> None:
    logits, targets, each = example()
    logits.requires_grad_()
    scale = torch.ones((), requires_grad=True)
    total = scale * sum(loss.terms(logits, targets, each), torch.zeros(()))
    (grad,) = torch.autograd.grad(total, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="ranking losses have no second derivative"):
        grad.square().sum().backward()


@every_loss
def test_the_gradient_scales_with_what_comes_from_above(loss: Case) -> None:
    logits, targets, each = example(20_000)
    logits.requires_grad_()
    plain = sum(loss.terms(logits, targets, each), torch.zeros(()))
    (once,) = torch.autograd.grad(plain, logits)
    (scaled,) = torch.autograd.grad(
        -2.5 * sum(loss.terms(logits, targets, each), torch.zeros(())), logits
    )
    torch.testing.assert_close(scaled, -2.5 * once)


@every_loss
def test_order_shift_and_layout_change_nothing(loss: Case) -> None:
    logits, targets, each = example(20_000)
    logits = logits.double()
    expected, wanted = loss.terms(logits, targets, each), gradient(loss, logits, targets, each)
    shifted = loss.terms(logits + 512, targets, each)
    torch.testing.assert_close(shifted, expected, rtol=1e-9, atol=1e-12)
    order = torch.randperm(20_000)
    place = torch.zeros(20_000, dtype=torch.int64)
    place[(targets == 1).nonzero().squeeze(1)] = torch.arange(len(each))
    moved = each[place[order][targets[order] == 1]]
    torch.testing.assert_close(
        loss.terms(logits[order], targets[order], moved), expected, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        gradient(loss, logits[order], targets[order], moved), wanted[order], rtol=1e-9, atol=1e-15
    )
    wide = torch.stack([logits, logits], dim=1)[:, 0]  # not contiguous
    torch.testing.assert_close(loss.terms(wide, targets, each), expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient(loss, wide, targets, each), wanted, rtol=0, atol=0)
