"""Cost of the ranking losses beside focal loss and the published loop, on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torchvision.ops import sigmoid_focal_loss

from benchmarks import cases, measure
from benchmarks.published_loop import alrp_loop
from rankdet.losses import alrp_loss, ap_loss, focal_loss, rank_sort_loss

LOSSES = ("aLRP", "AP", "Rank & Sort")
FOCAL = "torchvision sigmoid_focal_loss"
FOCAL_IN_PARTS = "focal in parts"
LOOP = "loop over positives"
# How many positives of the loop are run where all of them would take minutes.
_LOOP_SAMPLE = (2, 6)
_LOOP_WHOLE_UP_TO = 10**8  # pairs

Row = dict[str, str | float]


def steps(data: cases.Input) -> dict[str, Callable[[], None]]:
    """Return, by name, functions that run a loss forward and backward to a fresh gradient."""
    logits, targets, each = data
    logits = logits.requires_grad_()
    floats = targets.to(logits.dtype)  # focal loss wants them so: not part of its time

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            logits.grad = None
            loss().backward()

        return run

    found = {
        FOCAL: step(lambda: sigmoid_focal_loss(logits, floats, reduction="sum")),
        "aLRP": step(lambda: torch.stack(alrp_loss(logits, targets, each)).sum()),
        "AP": step(lambda: ap_loss(logits, targets)),
        "Rank & Sort": step(lambda: torch.stack(rank_sort_loss(logits, targets, each)).sum()),
    }
    if logits.is_cpu:  # the same function, part by part: only there it makes a difference
        found[FOCAL_IN_PARTS] = step(lambda: focal_loss(logits, targets, normaliser=1.0))
    return found


def loop_milliseconds(data: cases.Input) -> tuple[float, bool]:
    """Return the time of the loop over positives and whether it is extrapolated."""
    logits, targets, each = data.logits.detach(), data.targets, data.per_positive
    whole = len(each) * len(logits) <= _LOOP_WHOLE_UP_TO

    def milliseconds(at_most: int | None) -> float:
        run = {"": lambda: alrp_loop(logits, targets, each, at_most=at_most)}
        return measure.interleaved(run, seconds=1.0, at_least=1 if whole else 3)[""].median

    if whole:
        return milliseconds(None), False
    few, more = (milliseconds(count) for count in _LOOP_SAMPLE)
    slope = (more - few) / (_LOOP_SAMPLE[1] - _LOOP_SAMPLE[0])
    return few + slope * (len(each) - _LOOP_SAMPLE[0]), True


def rows(
    which: Iterable[cases.Case],
    *,
    device: str,
    seconds: float,
    with_loop: bool = True,
    seed: int = 0,
) -> Iterator[Row]:
    """Measure case by case; yield a row for each loss."""
    source = measure.origin(device, seed)
    for case in which:
        data = cases.make(case, seed, device)
        functions = steps(data)
        timings = measure.interleaved(functions, seconds)
        memory = {name: measure.peak_memory(run, device) for name, run in functions.items()}
        loop, extrapolated = loop_milliseconds(data) if with_loop else (float("nan"), False)
        for name, timing in timings.items():
            yield {
                "loss": name,
                "P": case.positives,
                "N": case.negatives,
                "regime": case.regime,
                "dtype": str(data.logits.dtype).removeprefix("torch."),
                "device": device,
                "median_ms": round(timing.median, 4),
                "low_ms": round(timing.low, 4),
                "high_ms": round(timing.high, 4),
                "rival": FOCAL,
                "rival_median_ms": round(timings[FOCAL].median, 4),
                "ratio": round(timing.median / timings[FOCAL].median, 4),
                "extra_memory_mb": round(memory[name], 1),
                "loop_ms": round(loop, 1),
                "loop_extrapolated": str(extrapolated).lower(),
                "loop_ratio": round(loop / timing.median, 1),
                **source,
            }


def check(device: str) -> None:
    """Refuse to time what is wrong: compare with the reference and the loop, small.

    Raises:
        AssertionError: where they differ.
    """
    from rankdet.ops.rank import rank_operator

    for regime in cases.REGIMES:
        data = cases.make(cases.Case(60, 20_000, regime), seed=1, device=device)
        pos = data.logits[data.targets == 1]
        weights = torch.rand(60, device=device)
        fast = rank_operator(pos, data.logits, 1.0, "vectorised")
        slow = rank_operator(pos, data.logits, 1.0, "reference")
        torch.testing.assert_close(fast.counts(), slow.counts(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            fast.spread(weights, dtype=torch.float64),
            slow.spread(weights, dtype=torch.float64),
            rtol=1e-6,
            atol=1e-9,
        )
        value, gradient = alrp_loop(data.logits.double(), data.targets, data.per_positive.double())
        logits = data.logits.double().requires_grad_()
        loss = alrp_loss(logits, data.targets, data.per_positive).classification
        torch.testing.assert_close(loss.detach(), value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(loss, logits)[0], gradient, rtol=1e-7, atol=1e-12
        )
