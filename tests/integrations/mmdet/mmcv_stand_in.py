"""A stand-in for the compiled part of mmcv, which does not build with today's PyTorch.

Non-maximum suppression is torchvision's; everything else raises when it is called. Importing this
module puts the stand-in in place, and must come before mmdetection is imported.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

pytest.importorskip("mmengine", reason="the extra mmdet is not installed")

NAME = "mmcv._ext"


class StandIn(ModuleType):
    """Has every name that is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def not_here(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"{name} of mmcv is not in the stand-in of these tests")

        return not_here


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that are kept, best first."""
    assert offset == 0, "torchvision knows boxes without the extra pixel only"
    kept: Tensor = torchvision_nms(boxes, scores, iou_threshold)
    return kept


def install() -> None:
    """Put the stand-in in place where mmcv has no compiled part of its own."""
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        return
    module = StandIn(NAME)
    module.__spec__ = ModuleSpec(NAME, None)  # so mmengine sees that there are no compiled parts
    vars(module)["nms"] = nms
    sys.modules[NAME] = module


install()
with warnings.catch_warnings():  # of importing all of mmdetection, once
    warnings.simplefilter("ignore")
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
