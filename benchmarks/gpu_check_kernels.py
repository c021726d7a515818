"""The Triton kernels on a GPU: right first, then timed against what they have to beat.

Rivals: the same passes in plain torch on the same device, torchvision's focal loss, and the time
in which the device copies as many bytes as the loss has to move.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor

from benchmarks import cases, losses, measure
from rankdet.losses import alrp_loss, error_sharing
from rankdet.ops.rank import passes, rank_operator
from rankdet.ops.rank.knots import Pieces, counts_from_bins, make_knots, pieces

Row = dict[str, str | float]

# Largest error of the spread, of its largest entry: what the dtype of the result rounds away.
ROUNDING = {
    torch.float64: 1e-9,
    torch.float32: 5e-7,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-10,
}
# Scores beyond 2^31, twice 2 bytes each, and what looking at them needs.
_HUGE = 2**31 + 5
_HUGE_NEEDS = 20 * 2**30
# About how long a queue of calls is, in which none waits for another; at most ten calls.
_QUEUE_MS = 25.0


class NotRunError(Exception):
    """What is asked for cannot be run here, which is nobody's fault."""


def check() -> None:
    """Compare the compiled kernels with the definition on the CPU and with plain torch.

    Raises:
        AssertionError: where they differ.
        NotRunError: there is not enough memory for the largest input.
    """
    for run in CHECKS.values():
        run()


@contextmanager
def naming(*what: object) -> Iterator[None]:
    """Add to an error in what case it arose."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the case {', '.join(map(str, what))}")
        raise


def _check_regime(regime: str) -> None:
    for dtype in ROUNDING:
        for delta in (1.0, 0.5, 0.0):
            with naming(regime, dtype, f"delta {delta}"):
                _check_case(regime, dtype, delta)


def _check_case(regime: str, dtype: torch.dtype, delta: float) -> None:
    if regime == "edges":
        data = cases.make(cases.Case(300, 40_003, "trained"), seed=5)
        logits = (data.logits * 2).round() / 2
    else:
        data = cases.make(cases.Case(300, 40_003, regime), seed=4)
        logits = data.logits
    neg, skip = logits.to(dtype), data.targets.nonzero().squeeze(1)
    pos, weights = neg[skip], torch.rand(300)
    neg[skip[::7]] = torch.nan  # left out, whatever it is
    slow = rank_operator(pos, neg, delta, "reference", skip=skip)
    expected_counts, expected = slow.counts(), slow.spread(weights, dtype=torch.float64)
    args = (pos.cuda(), neg.cuda(), delta)
    results = {
        name: rank_operator(*args, name, skip=skip.cuda()) for name in ("triton", "vectorised")
    }
    for operator in results.values():
        torch.testing.assert_close(operator.counts().cpu(), expected_counts, rtol=1e-9, atol=0)
    for kind in {torch.float64, dtype}:
        for operator in results.values():
            spread = operator.spread(weights.cuda(), dtype=kind).cpu()
            torch.testing.assert_close(
                spread.double(), expected, rtol=0, atol=ROUNDING[kind] * float(expected.max())
            )
    again = rank_operator(*args, "triton", skip=skip.cuda())
    assert torch.equal(again.counts(), results["triton"].counts()), "not the same bits again"


def _check_ranking() -> None:
    """A ranking made by kernels from end to end, all that a loss asks it for."""
    from rankdet.ops.rank.triton import evaluate
    from rankdet.ops.rank.triton_ranked import RankedPositives

    for regime in cases.REGIMES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            for delta, positives in ((1.0, 1), (0.7, 900), (0.0, 37)):
                with naming(regime, dtype, f"delta {delta}", f"P {positives}"):
                    data = cases.make(cases.Case(positives, 60_003, regime), seed=7)
                    neg, index = data.logits.to(dtype), data.targets.nonzero().squeeze(1)
                    pos = neg[index].to(torch.promote_types(dtype, torch.float32))
                    skip = torch.cat([index, torch.arange(5, 500, 7)]).unique()
                    slow = rank_operator(pos, neg, delta, "reference", skip=skip)
                    among = rank_operator(pos, pos, delta, "reference")
                    ranked = RankedPositives(pos.cuda(), neg.cuda(), skip.cuda(), delta)
                    values = torch.rand(2, positives, dtype=torch.float64)
                    function = ranked.pieces(values.cuda())
                    one = Pieces(function.value[1], function.slope[1])
                    args = (ranked.base, one, neg.cuda(), skip.cuda(), ranked.notes, torch.float64)
                    found = {
                        "counts": (ranked.counts, slow.counts()),
                        "pairs": (ranked.pair_counts(values.cuda())[1], among.counts(values[1])),
                        "adjoint": (
                            ranked.pair_spread(values[0].cuda()),
                            among.spread(values[0], dtype=torch.float64),
                        ),
                        "spread": (evaluate(*args), slow.spread(values[1], dtype=torch.float64)),
                    }
                    for name, (mine, expected) in found.items():
                        with naming(name):
                            largest = float(expected.abs().max())
                            torch.testing.assert_close(
                                mine.cpu(), expected.double(), rtol=1e-9, atol=1e-9 * largest
                            )


def _check_loss_again() -> None:
    """ALRP Loss on other numbers of scores, at other addresses: compiled anew where it has to be.

    A kernel that was compiled for what is a multiple of 16 must not be launched with what is not.
    """
    data = cases.make(cases.Case(300, 40_003, "trained"), seed=8)
    data.targets[5:4000:9] = -1
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for begin, end in ((0, 40_000), (0, 40_003), (1, 40_001), (3, 30_003), (16, 40_000)):
            # By sorting, the order of ties is anyone's, and in half precision many tie.
            for hard in (False, True) if dtype != torch.bfloat16 else (False,):
                with naming(dtype, f"{begin} to {end}", f"hard {hard}"):
                    _check_loss(data, dtype, slice(begin, end), hard)


def _check_loss(data: cases.Input, dtype: torch.dtype, part: slice, hard: bool) -> None:
    targets = data.targets[part]
    errors = data.per_positive[: int((targets == 1).sum())]
    found = []
    for device, wide in (("cpu", torch.float64), ("cuda", dtype)):
        logits = data.logits.to(dtype).to(device)[part].to(wide).requires_grad_()
        each = errors.to(device).requires_grad_()
        terms = alrp_loss(
            logits, targets.to(device), each, loc_ranking="hard" if hard else "smooth"
        )
        gradients = torch.autograd.grad(terms[0] + 3 * terms[1], (logits, each))
        found.append([each.detach().double().cpu() for each in (*terms, *gradients)])
    expected, here = found
    rounding = max(ROUNDING[dtype], 5e-7)  # values are float32 at least, as the errors are
    for name, one, other in zip(("AP part", "localisation", "gradient", "of errors"),
                                here, expected, strict=True):  # fmt: skip
        with naming(name):
            near = rounding if name == "gradient" else 1e-6
            atol = near * float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=0, atol=atol)


def _check_balance() -> None:
    """At full size, where no definition can follow: both passes against each other."""
    for regime in cases.REGIMES:
        data = cases.make(cases.Case(1000, 10_000_000, regime), seed=6, device="cuda")
        skip = data.targets.nonzero().squeeze(1)
        operator = rank_operator(data.logits[skip], data.logits, 1.0, "triton", skip=skip)
        weights = torch.rand(1000, device="cuda", dtype=torch.float64)
        handed_out = operator.counts() @ weights
        received = operator.spread(weights, dtype=torch.float64).sum()
        torch.testing.assert_close(received, handed_out, rtol=1e-9, atol=0)
        plain = rank_operator(data.logits[skip], data.logits, 1.0, "vectorised", skip=skip)
        torch.testing.assert_close(operator.counts(), plain.counts(), rtol=1e-9, atol=0)


def _check_beyond_32_bits() -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < _HUGE_NEEDS:
        raise NotRunError(
            f"it needs {_HUGE_NEEDS / 2**30:.0f} GiB, and {free / 2**30:.1f} are free"
        )
    neg = torch.full((_HUGE,), -0.5, dtype=torch.bfloat16, device="cuda")
    neg[-3:] = 5.0
    neg[1] = torch.nan
    pos = torch.zeros(2, device="cuda")
    operator = rank_operator(
        pos, neg, 1.0, "triton", skip=torch.tensor([1, _HUGE - 1], device="cuda")
    )
    exact = (_HUGE - 4) / 4 + 2
    counts = torch.full((2,), exact, dtype=torch.float64, device="cuda")
    torch.testing.assert_close(operator.counts(), counts, rtol=1e-9, atol=0)
    spread = operator.spread(torch.full((2,), 0.5, device="cuda"), dtype=torch.bfloat16)
    assert spread[-3:].tolist() == [1.0, 1.0, 0.0]
    assert spread[:3].tolist() == [0.25, 0.0, 0.25]
    assert int((spread == 0.25).sum()) == _HUGE - 4


CHECKS: dict[str, Callable[[], None]] = {
    **{
        f"compiled kernels equal the definition and plain torch, {regime}": functools.partial(
            _check_regime, regime
        )
        for regime in (*cases.REGIMES, "edges")
    },
    "a ranking by kernels from end to end": _check_ranking,
    "aLRP Loss on other numbers of scores, at other addresses": _check_loss_again,
    "compiled kernels at full size": _check_balance,
    "compiled kernels beyond 2^31 scores": _check_beyond_32_bits,
}


@contextmanager
def forced(backend: passes.Backend) -> Iterator[None]:
    """Make the losses take one backend, whatever the size."""
    with ExitStack() as stack:
        for name in ("find_by_triton", "rank_by_triton", "fill_bins", "evaluate"):
            pass_ = functools.partial(getattr(passes, name), backend=backend)
            stack.enter_context(mock.patch.object(error_sharing, name, pass_))
        yield


def rows(
    which: list[cases.Case], device: str, dtypes: tuple[torch.dtype, ...], seconds: float
) -> Iterator[Row]:
    """Measure case by case; yield a row for aLRP by each backend, for focal loss, each pass."""
    source = measure.origin(device, 0)
    backends: list[passes.Backend] = ["vectorised"]
    if device == "cuda":
        import triton

        source["triton"] = triton.__version__
        backends = ["triton", "vectorised"]
    for case in which:
        data = cases.make(case, 0, device)
        for dtype in dtypes:
            given = data._replace(logits=data.logits.detach().to(dtype))
            size = dtype.itemsize
            # Read twice, written once; the targets are read to find the positives.
            whole = case.negatives * (3 * size + given.targets.element_size())
            runs: dict[str, tuple[Callable[[], object], int]] = {
                losses.FOCAL: (losses.steps(given)[losses.FOCAL], whole)
            }
            for backend in backends:
                runs[f"aLRP, {backend}"] = (_alrp(given, backend), whole)
                first, second = _passes(given, backend)
                runs[f"first pass, {backend}"] = (first, case.negatives * size)
                runs[f"second pass, {backend}"] = (second, case.negatives * 2 * size)
            timings = measure.interleaved({name: run for name, (run, _) in runs.items()}, seconds)
            focal = timings[losses.FOCAL].median
            for name, (run, moved) in runs.items():
                copy = copy_milliseconds(moved, device)
                calls = min(max(round(_QUEUE_MS / timings[name].median), 2), 10)
                yield {
                    "what": name,
                    "P": case.positives,
                    "N": case.negatives,
                    "regime": case.regime,
                    "dtype": str(dtype).removeprefix("torch."),
                    "device": device,
                    "median_ms": round(timings[name].median, 4),
                    "low_ms": round(timings[name].low, 4),
                    "high_ms": round(timings[name].high, 4),
                    "back_to_back_ms": round(back_to_back(run, device, calls), 4),
                    "focal_median_ms": round(focal, 4),
                    "ratio_focal": round(timings[name].median / focal, 4),
                    "moved_mb": round(moved / 1e6, 3),
                    "copy_ms": round(copy, 4),
                    "ratio_copy": round(timings[name].median / copy, 3),
                    **source,
                }


def show(row: Row) -> str:
    """Return a row as a line for the terminal."""
    return (
        f"{row['what']:<32} P {row['P']:>5}  N {row['N']:>9}  {row['regime']:<8}{row['dtype']:<9}"
        f"{row['median_ms']:>9.3f} ms ({row['back_to_back_ms']:.3f} in a queue)"
        f"{row['ratio_focal']:>8.3f} x focal{row['ratio_copy']:>8.2f} x copy"
    )


def copy_milliseconds(moved: int, device: str) -> float:
    """Return the time in which the device copies so many bytes, counting reads and writes.

    Small ones are copied in one piece with others: what counts is the bandwidth.
    """
    return _copy_seconds_per_byte(device) * moved * 1e3


@functools.cache
def _copy_seconds_per_byte(device: str) -> float:
    count = 2**28 if device == "cuda" else 2**24
    source = torch.zeros(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return back_to_back(lambda: target.copy_(source), device) / 1e3 / (count * 8)


def back_to_back(run: Callable[[], object], device: str, calls: int = 10) -> float:
    """Return milliseconds for each of many calls, without waiting for the device in between.

    Where a call makes the host wait itself, or the host is slower, this shows as well.
    """
    if device != "cuda":
        return measure.interleaved({"": run}, seconds=0.0, at_least=3)[""].median
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return float(torch.tensor(times).median())


def _alrp(data: cases.Input, backend: passes.Backend) -> Callable[[], None]:
    logits = data.logits.detach().requires_grad_()

    def run() -> None:
        logits.grad = None
        with forced(backend):
            torch.stack(alrp_loss(logits, data.targets, data.per_positive)).sum().backward()

    return run


def _passes(
    data: cases.Input, backend: passes.Backend
) -> tuple[Callable[[], object], Callable[[], Tensor]]:
    logits, skip = data.logits.detach(), data.targets.nonzero().squeeze(1)
    knots = make_knots(logits[skip].float(), 1.0)
    bins = passes.fill_bins(knots.base, logits, skip, backend=backend)
    weights = 1 / counts_from_bins(knots, bins.number, bins.beyond).clamp(min=1)
    function = pieces(knots, weights)
    args = (knots.base, function, logits, skip, bins.notes, logits.dtype)
    return (
        lambda: passes.fill_bins(knots.base, logits, skip, backend=backend),
        lambda: passes.evaluate(*args, backend=backend),
    )
