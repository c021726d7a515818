"""What operators of a graph become in ONNX, where PyTorch's exporter needs to be told.

Annotations are not postponed here: the exporter reads them.
"""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import BOOL, FLOAT, INT64
from onnxscript import opset20 as op

import rankdet.export.suppression  # noqa: F401 - defines the operator that is translated


def suppress(
    boxes: FLOAT, scores: FLOAT, groups: INT64, of: int, most: int, nms_iou: float
) -> BOOL:
    """Remove duplicates by NonMaxSuppression; see `rankdet.export.suppression.Suppress`.

    It takes a score for each group and box: a box has its score in its own group, and in the
    others one that takes no part.
    """
    numbers = op.Range(*(op.Squeeze(_constant(number)) for number in (0, of, 1)))
    own = op.Equal(op.Unsqueeze(groups, _constant(1)), op.Unsqueeze(numbers, _constant(0, 2)))
    by_group = op.Where(own, op.Unsqueeze(scores, _constant(1)), _constant(-1.0))  # [B, C, K]
    selected = op.NonMaxSuppression(
        boxes, by_group, _constant(most), _constant(nms_iou), _constant(-0.5)
    )
    places = op.Gather(selected, _constant(0, 2), axis=1)  # image and box, without the group
    ones = _filled(op.Gather(op.Shape(selected), _constant(0)), 1)
    stays = op.ScatterND(_filled(op.Shape(scores), 0), places, ones)
    return op.Cast(stays, to=onnx.TensorProto.BOOL)


def stable_sort(values: FLOAT, stable: bool, dim: int, descending: bool) -> tuple[FLOAT, INT64]:
    """Sort; of equal values ONNX takes the first first, which is what "stable" asks for."""
    del stable
    count = op.Gather(op.Shape(values), _constant(dim))
    found: tuple[FLOAT, INT64] = op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)
    return found


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translation of each operator that the exporter does not know."""
    return {
        torch.ops.rankdet.suppress.default: suppress,
        torch.ops.aten.sort.stable: stable_sort,
    }


def _constant(*numbers: float) -> Any:
    return op.Constant(value=onnx.numpy_helper.from_array(torch.tensor(numbers).numpy()))


def _filled(shape: Any, number: int) -> Any:
    value = onnx.numpy_helper.from_array(torch.tensor([number]).numpy())
    return op.ConstantOfShape(shape, value=value)
