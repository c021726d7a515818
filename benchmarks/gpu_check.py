"""Everything that needs a GPU, in one command: correctness on it, then times.

Examples:
    python -m benchmarks.gpu_check --out results      rows and a summary go to this folder
    python -m benchmarks.gpu_check --device cpu --quick   try the script itself without a GPU
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import cases, gpu_check_kernels, losses, measure, results
from rankdet.losses import alrp_loss, ap_loss, rank_sort_loss
from rankdet.ops.rank import rank_operator

SIZES = (*cases.SIZES, (1000, 31_000_000), (5000, 31_000_000))
KERNEL_DTYPES = (torch.float32, torch.bfloat16)


# Each loss as one scalar, of logits, targets and a number for each positive.
LOSSES: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda x, t, e: torch.stack(alrp_loss(x, t, e)).sum(),
    lambda x, t, _: ap_loss(x, t),
    lambda x, t, e: torch.stack(rank_sort_loss(x, t, e)).sum(),
)


def check_operator(device: str) -> None:
    """Compare with the definition, on the device, over dtypes, regimes and ramps."""
    for regime in cases.REGIMES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            for delta in (1.0, 0.5, 0.0):
                data = cases.make(cases.Case(300, 40_000, regime), seed=2, device=device)
                neg, skip = data.logits.to(dtype), data.targets.nonzero().squeeze(1)
                pos, weights = neg[skip], torch.rand(300, device=device)
                fast = rank_operator(pos, neg, delta, "vectorised", skip=skip)
                slow = rank_operator(pos, neg, delta, "reference", skip=skip)
                torch.testing.assert_close(fast.counts(), slow.counts(), rtol=1e-9, atol=1e-9)
                expected = slow.spread(weights)
                torch.testing.assert_close(
                    fast.spread(weights, dtype=torch.float64),
                    expected,
                    rtol=0,
                    atol=1e-9 * float(expected.max()),
                )


def check_losses(device: str) -> None:
    """Compare values and gradients with the same on the CPU in float64."""
    for regime in cases.REGIMES:
        data = cases.make(cases.Case(700, 100_000, regime), seed=3)
        for loss in LOSSES:
            wide = data.logits.double().requires_grad_()
            value = loss(wide, data.targets, data.per_positive)
            (gradient,) = torch.autograd.grad(value, wide)
            here = data.logits.to(device).requires_grad_()
            result = loss(here, data.targets.to(device), data.per_positive.to(device))
            (grad,) = torch.autograd.grad(result, here)
            torch.testing.assert_close(result.cpu().double(), value, rtol=1e-6, atol=0)
            torch.testing.assert_close(
                grad.cpu().double(), gradient, rtol=0, atol=1e-6 * float(gradient.abs().max())
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the rows")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="the smallest size only")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here: nothing was checked, no row was written.")
        return 1
    begin = time.perf_counter()
    lines = []
    for name, check in (
        ("operator equals the reference", check_operator),
        ("losses equal float64 on the CPU", check_losses),
        ("losses equal the loop over positives", losses.check),
    ):
        check(options.device)
        lines.append(f"passed: {name}")
        print(lines[-1], flush=True)
    if options.device == "cuda":
        gpu_check_kernels.check()
        lines.append("passed: compiled kernels equal the definition and plain torch")
    else:
        lines.append("not run: compiled kernels, which need a CUDA device")
    print(lines[-1], flush=True)
    sizes = SIZES[:1] if options.quick else SIZES
    which = [cases.Case(*size, regime) for size in sizes for regime in cases.REGIMES]
    for row in losses.rows(which, device=options.device, seconds=0.3 if options.quick else 2.0):
        results.append(options.out / f"losses-{options.device}.csv", [row])
        lines.append(results.show(row))
        print(lines[-1], flush=True)
    seconds = 0.1 if options.quick else 1.0
    for kernel_row in gpu_check_kernels.rows(which, options.device, KERNEL_DTYPES, seconds):
        results.append(options.out / f"kernels-{options.device}.csv", [kernel_row])
        lines.append(gpu_check_kernels.show(kernel_row))
        print(lines[-1], flush=True)
    machine = measure.origin(options.device, 0)["machine"]
    lines.append(f"{machine}: {time.perf_counter() - begin:.0f} s in all")
    print(lines[-1])
    (options.out / f"gpu-check-{options.device}.txt").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
