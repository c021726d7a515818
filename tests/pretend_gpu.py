"""A GPU that is none: tensors that say they are on one, and are computed on the CPU.

What is for a GPU is hard to test without one. Its arithmetic is the same; what goes wrong is that
tensors of two devices meet, that something asks a GPU's memory for a number, or that the host waits
where nobody thought of it. All three happen here as they would there:

- An operator that gets tensors of both devices raises, but for single numbers.
- `Tensor.numpy` raises.
- Where the host would wait for the device is noted, and so is what is sent there.

What torch itself does between two operators is not seen, nor is a stream, nor what a GPU computes
otherwise than a CPU.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from rankdet.ops.rank import passes

GPU = torch.device("cuda", 0)

_aten = torch.ops.aten
# The size or the value of what they return is known to the device alone.
_WAIT = {
    _aten._local_scalar_dense.default,
    _aten.bincount.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.masked_select.default,
    _aten.nonzero.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
    _aten.unique_dim.default,
}
_INDEX = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}

_noted: list[Notes] = []


class Notes:
    """Where the host waited for the device, and what was sent there: a line of code each."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.sent: list[str] = []


class OnGPU(Tensor):
    """A tensor that says it is on a GPU; `numbers` are the same on the CPU."""

    numbers: Tensor
    # Operators are seen one level below, where autograd has its own too.
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGPU:
        """Wrap a tensor."""
        made: OnGPU = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cpu"),  # what autograd believes, which would look for the GPU
        )
        made.numbers = inner
        return made

    device = property(lambda _: GPU)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    def get_device(self) -> int:
        """Return the number of the device."""
        return 0

    def data_ptr(self) -> int:
        """Return where the numbers are."""
        return self.numbers.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse, as a tensor on a GPU does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__: Any = numpy

    def tolist(self) -> Any:
        """Return the numbers, and note that the host waited for them."""
        _note("waits")
        return on_cpu(self).tolist()

    def new_tensor(self, *args: Any, **kwargs: Any) -> OnGPU:
        """Return numbers of the host, and note that they were sent."""
        _note("sent")
        return OnGPU(self.numbers.new_tensor(*args, **kwargs))

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        """Return the same on the CPU, and note that the host waited for it."""
        _note("waits")
        moved: Tensor = _Down.apply(self)
        return moved

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the same in another dtype, perhaps on the CPU."""
        device, args, kwargs = _without_device(args, kwargs)
        same = Tensor.to(self, *args, **kwargs) if args or "dtype" in kwargs else self
        if device is None or device.type != "cpu":
            return same
        return on_cpu(same) if kwargs.get("non_blocking") else same.cpu()

    def shown(self, **_: Any) -> str:
        """Show the numbers."""
        return f"OnGPU({self.numbers})"

    __repr__: Any = shown

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it without its operator
        cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute on the CPU; refuse tensors of two devices."""
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        elsewhere = [x for x in given if not isinstance(x, OnGPU) and x.dim() > 0]
        if elsewhere and operator is not _aten.copy_.default:
            shapes = [tuple(x.shape) for x in elsewhere]
            raise RuntimeError(f"{operator}: cuda:0 and cpu, the latter of shapes {shapes}")
        if _waits(operator, args, kwargs or {}):
            _note("waits")
        found = operator(*tree_map(_inner, args), **tree_map(_inner, kwargs or {}))
        # What is written in place stays what it is.
        known = {id(x.numbers): x for x in given if isinstance(x, OnGPU)}
        return tree_map(lambda x: known[id(x)] if id(x) in known else _lifted(x), found)


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: OnGPU) -> Tensor:
        return x.numbers.clone()

    @staticmethod
    def backward(_ctx: Any, *grads: Any) -> OnGPU:
        return OnGPU(grads[0])


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> OnGPU:
        return OnGPU(x.clone())

    @staticmethod
    def backward(_ctx: Any, *grads: Any) -> Tensor:
        numbers: Tensor = grads[0].numbers
        return numbers


class _Devices(TorchFunctionMode):
    """What is made on the GPU, or sent to it, is made here, and says that it is there."""

    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.to and not isinstance(args[0], OnGPU):
            device, fewer, others = _without_device(args[1:], kwargs)
            if device is None or device.type != "cuda":
                return function(*args, **kwargs)
            _note("sent")
            return _Up.apply(args[0].to(*fewer, **others) if fewer or others else args[0])
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda" or isinstance(args[0], OnGPU):
            return function(*args, **kwargs)
        if function in (torch.tensor, torch.as_tensor):
            _note("sent")
        return OnGPU(function(*args, **{**kwargs, "device": "cpu"}))


@contextmanager
def pretended(*, triton: bool = False) -> Iterator[Notes]:
    """Let there be a GPU, on which Triton works or does not; yield what is noted meanwhile."""
    notes, devices, engine = Notes(), _Devices(), torch.autograd.graph._engine_run_backward

    def watched(*args: Any, **kwargs: Any) -> Any:
        with devices:  # which is off by now: torch.autograd.backward was seen itself
            return engine(*args, **kwargs)

    _noted.append(notes)
    try:
        with (
            devices,
            mock.patch.object(torch.autograd, "_engine_run_backward", watched),
            mock.patch.object(passes, "_triton_works", return_value=triton),
        ):
            yield notes
    finally:
        _noted.remove(notes)


def on_gpu(x: Tensor) -> OnGPU:
    """Return a copy on the GPU that is none; a leaf, if it needs a gradient."""
    moved = OnGPU(x.detach().clone())
    moved.requires_grad_(x.requires_grad)
    return moved


def on_cpu(x: Tensor) -> Tensor:
    """Return the numbers of a tensor, without its gradient."""
    bare = x.detach()
    return bare.numbers if isinstance(bare, OnGPU) else bare


def move(module: nn.Module) -> None:
    """Move a module's parameters and buffers to the GPU that is none."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                moved = nn.Parameter(on_gpu(weight.detach()), requires_grad=weight.requires_grad)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_gpu(buffer)


def _inner(x: Any) -> Any:
    return x.numbers if isinstance(x, OnGPU) else x


def _lifted(x: Any) -> Any:
    return OnGPU(x) if type(x) is Tensor else x


def _waits(operator: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Tell whether the host must learn something of the device to know what it gets."""
    if operator in _INDEX:  # by a mask: how many
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    if operator is _aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return operator in _WAIT or operator.name() == "torchvision::nms"


def _without_device(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, tuple[Any, ...], dict[str, Any]]:
    """Return the device among the arguments of `Tensor.to`, and the others."""
    device, rest = kwargs.get("device"), []
    for x in args:
        if isinstance(x, Tensor):
            device = x.device
            rest.append(x.dtype)
        elif isinstance(x, (str, torch.device)):
            device = x
        else:
            rest.append(x)
    others = {name: value for name, value in kwargs.items() if name != "device"}
    return None if device is None else torch.device(device), tuple(rest), others


def _note(what: str) -> None:
    """Note the innermost line of the package that led here, as file and code."""
    ours = [each for each in traceback.extract_stack() if "/rankdet/" in each.filename]
    where = "elsewhere"
    if ours:
        where = f"{ours[-1].filename.split('/rankdet/')[-1]}: {ours[-1].line}"
    for notes in _noted:
        getattr(notes, what).append(where)
