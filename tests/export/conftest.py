"""Fixtures for exports."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def onnxruntime() -> Any:
    """Return the library, or skip: it comes with the extra `export`."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `export`)")
    return pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed (extra `export`)"
    )
