"""Whether what a run is to compute on is there, before anything is written."""

from __future__ import annotations

import os

import torch

from rankdet.engine.files import RunError
from rankdet.wording import counted


def check_hardware(accelerator: str, strategy: str, devices: int) -> None:
    """Refuse an accelerator or a strategy that Lightning does not know or this machine lacks.

    Args:
        accelerator: "auto", "cpu", "gpu" or another of Lightning's names.
        strategy: "auto", "ddp" or another of Lightning's names.
        devices: processes of this machine.

    Raises:
        RunError: with the option, the value, and what to give instead.
    """
    from pytorch_lightning.accelerators import AcceleratorRegistry
    from pytorch_lightning.strategies import StrategyRegistry

    known = sorted({"auto", "gpu", *AcceleratorRegistry.available_accelerators()})
    if accelerator not in known:
        raise RunError(f"--accelerator {accelerator} is none of {', '.join(known)}")
    names = ("cuda", "mps") if accelerator == "gpu" else (accelerator,)
    there = accelerator == "auto" or any(
        AcceleratorRegistry[name]["accelerator"].is_available() for name in names
    )
    if not there:
        raise RunError(
            f"--accelerator {accelerator}: there is none here, or PyTorch {torch.__version__} "
            "cannot use it; leave the option out to take what is there"
        )
    gpus = torch.cuda.device_count()
    # Each process of torchrun may be shown its own GPU alone.
    counts = accelerator in ("auto", "gpu", "cuda") and gpus > 0 and "RANK" not in os.environ
    if counts and devices > gpus:
        raise RunError(f"--devices {devices}: only {counted(gpus, 'GPU')} here")
    strategies = sorted({"auto", *StrategyRegistry.available_strategies()})
    if strategy not in strategies:
        raise RunError(f"--strategy {strategy} is none of {', '.join(strategies)}")
