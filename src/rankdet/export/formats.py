"""Writing a graph as a file of each format, and running such a file."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from rankdet.engine.files import RunError
from rankdet.export.describe import Description
from rankdet.export.suppression import (
    Suppress,
    suppress_by_symbol,
    suppress_by_torchvision,
)

Name = Literal["onnx", "torchscript", "pt2"]
NAMES: tuple[Name, ...] = get_args(Name)
Run = Callable[[Tensor, Tensor], tuple[Tensor, ...]]

# The name of the description within a file of PyTorch.
NOTE = "rankdet.json"
# Of ONNX; understood by onnxruntime 1.17 and newer.
_OPSET = 20


class Format(NamedTuple):
    """A kind of file."""

    suffix: str
    suppress: Suppress
    """How duplicates are removed in its graphs."""
    write: Callable[[nn.Module, tuple[Tensor, Tensor], Description, Path], None]
    """Graph, images and sizes to trace it with, what to say of it, and where to."""
    run: Callable[[Path], Run]
    """A file to what runs it."""


def get_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        RunError: there is none, or what it needs is not installed.
    """
    match name:
        case "onnx":
            _require_onnx()
            return Format(".onnx", suppress_by_symbol, _write_onnx, _run_onnx)
        case "torchscript":
            return Format(
                ".torchscript", suppress_by_torchvision, _write_torchscript, _run_torchscript
            )
        case "pt2":
            return Format(".pt2", suppress_by_torchvision, _write_pt2, _run_pt2)
    raise RunError(f"there is no format {name!r}; there are {', '.join(NAMES)}")


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise RunError(
            f"--format onnx needs {error.name}, which is not installed: "
            f"pip install 'rankdet[export]'. The formats torchscript and pt2 need nothing more"
        ) from error


def _write_onnx(
    graph: nn.Module, example: tuple[Tensor, Tensor], about: Description, path: Path
) -> None:
    from rankdet.export.onnx_operators import translations

    with _quiet():
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            dynamic_shapes={
                "images": {0: "batch", 2: "height", 3: "width"},
                "sizes": {0: "batch"},
            },
            input_names=["images", "sizes"],
            output_names=["boxes", "scores", "labels"],
            custom_translation_table=translations(),
            external_data=False,
        )
        assert program is not None
        program.model.metadata_props.update(about.entries())
        program.save(path, external_data=False)


def _run_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        return tuple(map(torch.from_numpy, found))

    return run


def _write_torchscript(
    graph: nn.Module, example: tuple[Tensor, Tensor], about: Description, path: Path
) -> None:
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(graph, example, check_trace=False)
        torch.jit.save(traced, path, _extra_files={NOTE: about.text()})


def _run_torchscript(path: Path) -> Run:
    with _quiet():
        module = torch.jit.load(path)

    def run(images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        with _quiet(), torch.no_grad():
            return tuple(module(images, sizes))

    return run


def _write_pt2(
    graph: nn.Module, example: tuple[Tensor, Tensor], about: Description, path: Path
) -> None:
    free = torch.export.Dim.DYNAMIC
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            graph,
            example,
            dynamic_shapes={"images": {0: free, 2: free, 3: free}, "sizes": {0: free}},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        # By an open file: the name need not end as the library wants it to.
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={NOTE: about.text()})


def _run_pt2(path: Path) -> Run:
    with _quiet(), path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(module(images, sizes))

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what exporters say of their own inside: the file is tried out afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
