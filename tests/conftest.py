"""Fixtures for all tests: golden vectors, and uninitialised memory made visible."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples in every run: what passes here passes there. `make fuzz` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("new", derandomize=False, print_blob=True)
settings.load_profile("same")

_HERE = Path(__file__).resolve().parent
# The whole set lies beside the project where its maintainers work; the small ones are in the tree.
_GOLDEN = (_HERE.parent.parent / "shared" / "golden", _HERE / "golden")

GoldenReader = Callable[[str], dict[str, np.ndarray[Any, Any]]]


@pytest.fixture(scope="session")
def golden() -> GoldenReader:
    """Read a file of golden vectors by its path, ``golden("alrp_small.npz")``."""

    def read(name: str) -> dict[str, np.ndarray[Any, Any]]:
        for folder in _GOLDEN:
            if (folder / name).is_file():
                with np.load(folder / name) as file:
                    return dict(file)
        pytest.skip(f"golden vectors {name} are not here (looked in {_GOLDEN[0]} and {_GOLDEN[1]})")

    return read


@pytest.fixture(scope="session")
def onnxruntime() -> Any:
    """Return the library, or skip: it comes with the extra `export`."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `export`)")
    return pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed (extra `export`)"
    )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """Have no signal ignored, as `nohup` and background jobs of a shell have some of them."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what `torch.empty` and its kin return with NaN, so that an unwritten entry shows."""
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def poisoned(*args: Any, _original: Any = original, **kwargs: Any) -> torch.Tensor:
            made: torch.Tensor = _original(*args, **kwargs)
            if made.is_floating_point() or made.is_complex():
                return made.fill_(torch.nan)
            return made if made.dtype == torch.bool else made.fill_(torch.iinfo(made.dtype).min)

        monkeypatch.setattr(torch, name, poisoned)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 16 + 6 images of the built-in data set, of 64 x 64 pixels."""
    from rankdet.data.digits_files import write_digits

    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder, train=16, val=6, size=64)
    return folder
