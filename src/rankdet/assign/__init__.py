"""Assigners: which ground truth each prior has to find."""

from rankdet.assign.atss import ATSSAssigner
from rankdet.assign.max_iou import MaxIoUAssigner

__all__ = ["ATSSAssigner", "MaxIoUAssigner"]
