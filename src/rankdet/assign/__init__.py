"""Assigners: which ground truth each prior has to find."""

from rankdet.assign.atss import ATSSAssigner
from rankdet.assign.fcos import FCOSAssigner
from rankdet.assign.fovea import FoveaAssigner
from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.assign.paa import PAAAssigner
from rankdet.assign.sampling import SampledAssigner

__all__ = [
    "ATSSAssigner",
    "FCOSAssigner",
    "FoveaAssigner",
    "MaxIoUAssigner",
    "PAAAssigner",
    "SampledAssigner",
]
