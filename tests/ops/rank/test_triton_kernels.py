"""The Triton kernels: in the interpreter, through the compiler, on a GPU; and who chooses them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rankdet.ops.rank import passes, rank_operator, vectorised
from rankdet.ops.rank.knots import counts_from_bins, make_knots, pieces

_HERE = Path(__file__).resolve().parent


# Tests that need the interpreter, see there.
IN_THE_INTERPRETER = ("triton_in_the_interpreter.py", "triton_on_a_pretended_gpu.py")


def test_the_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    root = _HERE.parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *(str(_HERE / name) for name in IN_THE_INTERPRETER)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= 120
    assert "skipped" not in run.stdout


# What each kernel is given: pointers by what they point to, numbers, and what is known beforehand.
_FILL = {
    "skip": "*i64", "cuts": "*i64", "base": "*fp64", "entries": "*i32", "geometry": "*fp64",
    "cell_sums": "*i64", "bin_sums": "*i64", "finite": "*i8", "total": "i64", "tiles": "i32",
    "bins": "i32", "digits": "i32", "spread": "i32", "HAS_SKIP": True, "CELLS": 16387,
    "TILE": 4096, "PART": 512, "PER_COPY": 256, "BIN_COPIES": 8,
}  # fmt: skip
_READ_OFF = {
    "base": "*fp64", "value": "*fp64", "slope": "*fp64", "entries": "*i32", "geometry": "*fp64",
    "scale": "*fp32", "SCALED": True, "table": "*i64", "total": "i64", "tiles": "i32",
    "knots": "i32", "CELLS": 16387, "TILE": 4096, "PART": 1024,
}  # fmt: skip
_KERNELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lay": ("ops.rank.triton_grid", "lay_kernel", {
        "base": "*fp64", "entries": "*i32", "geometry": "*fp64", "knots": "i32",
        "knots_steps": "i32", "CELLS_LOG2": 14, "DIGITS": 20, "WIDEST": 120, "BLOCK": 256,
    }),
    "fill, float32": ("ops.rank.triton_fill", "fill_kernel", {
        "scores": "*fp32", "EXACT": True,
    } | _FILL),
    "fill, bfloat16": ("ops.rank.triton_fill", "fill_kernel", {
        "scores": "*bf16", "EXACT": True,
    } | _FILL),
    "fill, float64": ("ops.rank.triton_fill", "fill_kernel", {
        "scores": "*fp64", "EXACT": False,
    } | _FILL),
    "sum": ("ops.rank.triton_bins", "sum_cells_kernel", {
        "cell_sums": "*i64", "running": "*i64", "totals": "*i64", "copies": "i32",
        "CELLS": 16387, "ROWS": 16, "BLOCK": 128,
    }),
    "finish": ("ops.rank.triton_bins", "finish_kernel", {
        "base": "*fp64", "geometry": "*fp64", "running": "*i64", "before": "*i64",
        "bin_sums": "*i64", "number": "*i64", "beyond": "*fp64", "bins": "i32", "digits": "i32",
        "CELLS": 16387, "SUM_BLOCK": 128, "BIN_COPIES": 8, "BLOCK": 128,
    }),
    "prepare": ("ops.rank.triton_positives", "prepare_kernel", {
        "scores": "*fp32", "skip": "*i64", "base": "*fp64", "ends": "*i32", "entries": "*i32",
        "geometry": "*fp64", "cuts": "*i64", "sums": "*i64", "finite": "*i8", "positives": "i32",
        "skipped": "i32", "tiles": "i32", "zeros": "i32", "delta_bits": "i64", "steps": "i32",
        "skip_steps": "i32", "TILE": 4096, "CELLS_LOG2": 14, "DIGITS": 20, "WIDEST": 120,
        "BLOCK": 256, "ZERO_BLOCK": 4096,
    }),
    "count": ("ops.rank.triton_positives", "count_kernel", {
        "scores": "*fp32", "order": "*i64", "base": "*fp64", "ends": "*i32", "geometry": "*fp64",
        "running": "*i64", "totals": "*i64", "bin_sums": "*i64", "finite": "*i8",
        "before": "*i64", "above": "*i64", "excess": "*fp64", "counts": "*fp64",
        "positives": "i32", "digits": "i32", "delta_bits": "i64", "CELLS": 16387,
        "SUM_BLOCK": 128, "SUM_BLOCKS": 256, "BIN_COPIES": 8, "BLOCK": 1024,
    }),
    "pairs": ("ops.rank.triton_sums", "pairs_kernel", {
        "scores": "*fp32", "order": "*i64", "keys": "*fp64", "values": "*fp32", "result": "*fp64",
        "positives": "i32", "delta_bits": "i64", "ADJOINT": False, "KEYED": True, "BLOCK": 16,
        "OTHERS": 128,
    }),
    "pieces": ("ops.rank.triton_sums", "pieces_kernel", {
        "scores": "*fp32", "order": "*i64", "base": "*fp64", "ends": "*i32", "weights": "*fp64",
        "value": "*fp64", "slope": "*fp64", "positives": "i32", "stride": "i32",
        "delta_bits": "i64", "BLOCK": 1024,
    }),
    "tally": ("ops.rank.triton_find", "tally_kernel", {
        "targets": "*i8", "tallies": "*i64", "total": "i64", "tiles": "i32", "FLOATING": False,
        "TILE": 8192, "PART": 1024,
    }),
    "add up": ("ops.rank.triton_find", "add_up_kernel", {
        "tallies": "*i64", "tiles": "i32", "BLOCK": 1024,
    }),
    "place": ("ops.rank.triton_find", "place_kernel", {
        "targets": "*i64", "scores": "*bf16", "tallies": "*i64", "skip": "*i64",
        "pos_index": "*i64", "pos": "*fp32", "total": "i64", "tiles": "i32", "FLOATING": False,
        "TILE": 8192, "PART": 1024,
    }),
    "aLRP's errors": ("ops.rank.triton_alrp", "errors_kernel", {
        "scores": "*fp32", "order": "*i64", "counts": "*fp64", "loc_errors": "*bf16",
        "rows": "*fp64", "positives": "i32", "delta_bits": "i64", "eps_bits": "i64", "BLOCK": 16,
        "OTHERS": 128,
    }),
    "aLRP's end": ("ops.rank.triton_alrp", "finish_kernel", {
        "scores": "*fp32", "order": "*i64", "base": "*fp64", "ends": "*i32", "rows": "*fp64",
        "spread": "*fp64", "loc_errors": "*fp32", "value": "*fp64", "slope": "*fp64",
        "classification": "*fp32", "localisation": "*fp32", "positives": "i32",
        "delta_bits": "i64", "HARD": True, "BLOCK": 1024,
    }),
    "aLRP's own gradients": ("ops.rank.triton_alrp", "own_gradients_kernel", {
        "skip": "*i64", "pos_index": "*i64", "rows": "*fp64", "grad": "*bf16",
        "error_grad": "*fp32", "upstream": "*fp32", "error_upstream": "*fp32",
        "positives": "i32", "skipped": "i32", "few": "i32", "steps": "i32", "BLOCK": 256,
    }),
    "tabulate": ("ops.rank.triton_evaluate", "tabulate_kernel", {
        "base": "*fp64", "value": "*fp64", "slope": "*fp64", "entries": "*i32",
        "geometry": "*fp64", "scale": "*fp32", "SCALED": True, "table": "*i64", "CELLS": 16387,
        "FINE": False, "BLOCK": 256,
    }),
    "read off, float32": ("ops.rank.triton_evaluate", "read_off_kernel", {
        "scores": "*fp32", "result": "*fp32", "EXACT": True, "FINE": False,
    } | _READ_OFF),
    "read off, float16": ("ops.rank.triton_evaluate", "read_off_kernel", {
        "scores": "*fp16", "result": "*fp16", "EXACT": True, "FINE": False,
    } | _READ_OFF),
    "read off, float64": ("ops.rank.triton_evaluate", "read_off_kernel", {
        "scores": "*fp64", "result": "*fp64", "EXACT": False, "FINE": True,
    } | _READ_OFF),
}  # fmt: skip


@pytest.fixture(scope="module")
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.usefixtures("_fresh_cache")
@pytest.mark.parametrize(
    ("name", "capability"),
    [*((name, 80) for name in _KERNELS), ("fill, float32", 90), ("read off, float32", 90)],
)
def test_the_kernels_compile_without_a_gpu(name: str, capability: int) -> None:
    """For the oldest generation that is supported, Ampere, and a newer one."""
    triton = pytest.importorskip("triton", reason="the kernels need Triton")
    backends = pytest.importorskip("triton.backends")
    if "nvidia" not in backends.backends:
        pytest.skip("this Triton was built without the compiler for CUDA")
    import importlib

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, function, arguments = _KERNELS[name]
    kernel = getattr(importlib.import_module(f"rankdet.{module}"), function)
    assert set(arguments) == set(kernel.arg_names)
    given = {arg: arguments[arg] for arg in kernel.arg_names}
    source = ASTSource(
        fn=kernel,
        signature={a: v if isinstance(v, str) else "constexpr" for a, v in given.items()},
        constexprs={a: v for a, v in given.items() if not isinstance(v, str)},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 8, "enable_fp_fusion": True},
    )
    assert compiled.asm["cubin"]
    code = compiled.asm["ptx"]
    if name.startswith("fill"):
        # Nobody waits for what was there. Triton 3.6 gives it a register, which nobody reads.
        fetched = set(re.findall(r"\batom\.\S+ (%\w+),", code))
        assert fetched or re.search(r"\bred\.", code)
        sources = re.sub(r"\b(mov|atom)\.\S+ %\w+,", "", code)
        assert not fetched & set(re.findall(r"%\w+", sources))
        assert "convert_layout" not in compiled.asm["ttgir"]  # no trip through shared memory
    for line in code.splitlines():  # what is tiny must not be taken for zero: see edges
        assert ".ftz" not in line or "cvt.rpi.ftz" in line, line


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("delta", [1.0, 0.0])
def test_the_kernels_on_a_gpu(dtype: torch.dtype, delta: float) -> None:
    total = 300_007
    scores = torch.randn(total, dtype=torch.float64).mul_(1.5).sub_(6).to(dtype).cuda()
    pos, skip = scores[:300].double() + 5, torch.arange(300).cuda()
    knots = make_knots(pos, delta)
    function = pieces(knots, torch.rand(300, dtype=torch.float64).cuda())

    def both(backend: passes.Backend, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        bins = passes.fill_bins(knots.base, scores, skip, backend=backend)
        args = (knots.base, function, scores, skip, bins.notes, kind)
        counts = counts_from_bins(knots, bins.number, bins.beyond)
        return counts, passes.evaluate(*args, backend=backend)

    expected_counts, expected = both("vectorised", torch.float64)
    largest = float(expected.max())
    rounding = {torch.float64: 1e-12, torch.float32: 5e-7, torch.bfloat16: 2**-8}
    for kind in (torch.float64, dtype):
        counts, spread = both("triton", kind)
        torch.testing.assert_close(counts, expected_counts, rtol=1e-9, atol=0)
        torch.testing.assert_close(
            spread.double(), expected, rtol=0, atol=rounding.get(kind, 2**-11) * largest
        )


def test_on_a_cpu_plain_torch_is_chosen_and_the_kernels_refused() -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    pos, neg = torch.randn(5), torch.randn(200_000)
    by_itself, by_name = (rank_operator(pos, neg, 1.0, b) for b in ("auto", "vectorised"))
    assert torch.equal(by_itself.counts(), by_name.counts())
    with pytest.raises(ValueError, match="Triton kernels need scores on a CUDA device, got cpu"):
        rank_operator(pos, neg, 1.0, "triton")


def test_without_triton_it_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.startswith("rankdet.ops.rank.triton"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys.modules["rankdet.ops.rank"], "triton", None, raising=False)
    monkeypatch.delattr("rankdet.ops.rank.triton")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="backend 'triton' needs the package triton"):
        rank_operator(torch.randn(5), torch.randn(50), 1.0, "triton")


def test_where_triton_does_not_work_plain_torch_is_taken_and_a_warning_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton = pytest.importorskip("rankdet.ops.rank.triton")

    def no_compiler(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton, "try_out", no_compiler)
    passes._triton_works.cache_clear()
    try:
        with pytest.warns(UserWarning, match="without their Triton kernels on cuda:7.*C compiler"):
            assert not passes._triton_works(torch.device("cuda", 7))
        assert not passes._triton_works(torch.device("cuda", 7))  # and only once
    finally:
        passes._triton_works.cache_clear()


def test_the_choice_is_by_device_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scores:  # as much of a tensor as the choice looks at
        device = torch.device("cuda", 0)

        def __init__(self, is_cuda: bool, total: int) -> None:
            self.is_cuda, self.total = is_cuda, total

        def numel(self) -> int:
            return self.total

    monkeypatch.setattr(passes, "_triton_works", lambda _: True)
    least = passes._TRITON_FROM

    def chosen(is_cuda: bool, total: int, backend: passes.Backend) -> bool:
        scores: Any = Scores(is_cuda, total)
        return passes._by_triton(scores, backend)

    assert chosen(True, least, "auto")
    assert not chosen(True, least - 1, "auto")
    assert not chosen(False, least, "auto")
    assert not chosen(True, least, "vectorised")
    assert chosen(True, 1, "triton")


def test_both_passes_reach_the_backend() -> None:
    pos, neg = torch.randn(5), torch.randn(50)
    knots = make_knots(pos, 1.0)
    skip = torch.tensor([1, 7])
    bins = passes.fill_bins(knots.base, neg, skip, backend="vectorised")
    plain = vectorised.fill_bins(knots.base, neg, skip)
    assert torch.equal(bins.number, plain.number)
    function = pieces(knots, torch.rand(5, dtype=torch.float64))
    result = passes.evaluate(knots.base, function, neg, skip, bins.notes, torch.float32)
    expected = vectorised.evaluate(knots.base, function, neg, skip, plain.notes, torch.float32)
    assert torch.equal(result, expected)
