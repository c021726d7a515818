"""How it is measured: time in quantiles, memory by its peak, and where a row comes from."""

from __future__ import annotations

import ctypes
import datetime
import functools
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds over all repeats."""

    median: float
    low: float  # 20 % quantile
    high: float  # 80 % quantile


def interleaved(
    functions: Mapping[str, Callable[[], object]], seconds: float, at_least: int = 5
) -> dict[str, Timing]:
    """Time functions in turn, so that whatever else the machine does hits all of them alike.

    Each is called twice before anything counts; then rounds go on until the time is spent, but
    for ``at_least`` rounds.
    """
    for function in functions.values():
        function()
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < at_least or time.perf_counter() < end:
        for name, function in functions.items():
            _synchronise()
            start = time.perf_counter()
            function()
            _synchronise()
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    quantiles = torch.tensor([0.5, 0.2, 0.8])
    return {
        name: Timing(*torch.tensor(each).quantile(quantiles).tolist())
        for name, each in times.items()
    }


def peak_memory(function: Callable[[], object], device: str) -> float:
    """Return by how many MB a call raises the memory in use at its highest.

    What an earlier call left behind (a gradient, say) is in use before.
    """
    function()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        # Memory that was freed but not yet given back would hide what the call needs.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far becomes the present
        before_kb = _status("VmRSS")
        function()
        return max(_status("VmHWM") - before_kb, 0) * 1024 / 1e6
    except (OSError, AttributeError):
        return float("nan")  # not Linux with glibc, or not allowed


def origin(device: str, seed: int) -> dict[str, str]:
    """Return what a row needs to be found again: commit, versions, machine, seed."""
    import torchvision

    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else _cpu(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "seed": str(seed),
    }


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise OSError(f"no {field} in /proc/self/status")


@functools.cache  # what was true at first: to write a row makes the tree dirty for the next
def _commit() -> str:
    folder = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("RANKDET_COMMIT", "unknown")


def _cpu() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":")[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"
