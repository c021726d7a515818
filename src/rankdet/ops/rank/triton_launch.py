"""Launching a Triton kernel that was launched before, without looking for it again.

`kernel[grid](...)` asks for the compiled kernel that suits the arguments each time it is called. On
a slow host that costs some 50 microseconds of Python, more than most of our kernels take. Here the
compiled kernel is kept under what it depends on, and called as Triton's own tutorials do after
`warmup`.
"""

from __future__ import annotations

import struct
from typing import Any

from torch import Tensor
from triton.compiler import CompiledKernel

# Compiled kernels, with the constants that they take too, by kernel, device, arguments, constants.
_compiled: dict[tuple[Any, ...], tuple[CompiledKernel, tuple[Any, ...]]] = {}

_ALIGNMENT = 16
_INT32 = range(-(2**31), 2**31)


def launch(kernel: Any, grid: tuple[int, ...], *args: Tensor | int, **constants: Any) -> None:
    """Do what ``kernel[grid](*args, **constants)`` does.

    Args:
        kernel: made by `triton.jit`; its constants are its last parameters.
        grid: how many programs, in one to three dimensions.
        args: all that are no constants, in order, tensors of one device and integers.
        constants: and Triton's own options, as ``num_warps``.
    """
    # What Triton builds another kernel for: see its `specialize_impl`.
    key: list[Any] = [id(kernel), *constants.values()]
    for arg in args:
        if isinstance(arg, Tensor):
            key += arg.dtype, arg.get_device(), arg.data_ptr() % _ALIGNMENT == 0
        else:
            key += arg == 1, arg % _ALIGNMENT == 0, arg in _INT32
    known = _compiled.get(tuple(key))
    if known is None:
        made = kernel[grid](*args, **constants)
        if isinstance(made, CompiledKernel):  # the interpreter makes none
            names = kernel.arg_names[len(args) :]
            _compiled[tuple(key)] = made, tuple(constants[name] for name in names)
        return
    compiled, in_order = known
    compiled[(*grid, 1, 1)[:3]](*args, *in_order)


def float64_bits(number: float) -> int:
    """Return the bits of a float64, for a kernel: a float argument would be a float32."""
    bits: int = struct.unpack("q", struct.pack("d", number))[0]
    return bits


def cdiv(number: int, by: int) -> int:
    """Return a quotient, rounded up; Triton's own costs microseconds."""
    return -(-number // by)
