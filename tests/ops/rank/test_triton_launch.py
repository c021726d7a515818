"""Which arguments a kernel is compiled anew for, and what the compiled one is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from triton.compiler import CompiledKernel

from rankdet.ops.rank.triton_launch import cdiv, launch


class Compiled(CompiledKernel):  # type: ignore[misc] # it has no types
    """Notes what it is launched with."""

    def __init__(self) -> None:
        self.launched: list[tuple[Any, ...]] = []

    def __del__(self) -> None:
        """There is nothing on a device to let go of."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args: self.launched.append((grid, *args))


class Kernel:
    """Stands in for what `triton.jit` makes: notes each time that it is asked to compile."""

    arg_names = ("x", "y", "number", "BLOCK", "FAST")

    def __init__(self) -> None:
        self.made: list[Compiled] = []

    def __getitem__(self, _grid: tuple[int, ...]) -> Any:
        def compile_(*_args: Any, **_constants: Any) -> Compiled:
            self.made.append(Compiled())
            return self.made[-1]

        return compile_


def test_a_kernel_is_compiled_once_and_given_all_its_parameters_in_order() -> None:
    kernel, x, y = Kernel(), torch.zeros(64), torch.zeros(8, dtype=torch.int64)
    for _ in range(3):
        launch(kernel, (7,), x, y, 3, FAST=True, BLOCK=16, num_warps=4)
    assert len(kernel.made) == 1
    assert kernel.made[0].launched == 2 * [((7, 1, 1), x, y, 3, 16, True)]


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(64, dtype=torch.float64)},
        {"x": torch.zeros(65)[1:]},  # not at a multiple of 16 bytes
        {"number": 1},
        {"number": 32},
        {"number": 2**31},
        {"number": -(2**31) - 1},
        {"BLOCK": 32},
        {"FAST": False},
        {"num_warps": 8},
    ],
)
def test_it_is_compiled_anew_where_triton_would(other: dict[str, Any]) -> None:
    kernel = Kernel()
    usual: dict[str, Any] = {
        "x": torch.zeros(64),
        "y": torch.zeros(4),
        "number": 3,
        "BLOCK": 16,
        "FAST": True,
    }
    usual |= {"num_warps": 4}
    for given in (usual, usual | other, usual, usual | other):
        args = [given[name] for name in ("x", "y", "number")]
        launch(kernel, (1, 2), *args, **{k: given[k] for k in ("BLOCK", "FAST", "num_warps")})
    assert [len(made.launched) for made in kernel.made] == [1, 1]


def test_it_is_not_compiled_anew_for_other_numbers_of_the_same_kind() -> None:
    kernel, x = Kernel(), torch.zeros(64)
    for number in (3, 5, 2**31 - 1, -7):
        launch(kernel, (1,), x, x[4:], number, BLOCK=16, FAST=True)
    assert len(kernel.made) == 1


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_quotient_is_rounded_up(number: int, expected: int) -> None:
    assert cdiv(number, 4) == expected
