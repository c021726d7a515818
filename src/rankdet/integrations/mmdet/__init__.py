"""Ranking losses in mmdetection 3.

Importing this registers three losses, the heads that take them and the hook that tells them of
the end of an epoch. In a config, after one of mmdetection's own:

    custom_imports = dict(imports=["rankdet.integrations.mmdet"])
    model = dict(bbox_head=dict(type="RankDetRetinaHead",
                                loss_cls=dict(_delete_=True, type="RankDetALRPLoss")),
                 test_cfg=dict(score_thr=0.0))
    custom_hooks = [dict(type="RankDetHook")]

Each head is mmdetection's own with `RankDetMixin` before it: the same layers, the same assigners,
the same detections. `docs/how-to/use-in-mmdetection.md` goes through it.
"""

from rankdet.integrations.mmdet.heads import (
    RankDetATSSHead,
    RankDetFCOSHead,
    RankDetFoveaHead,
    RankDetMixin,
    RankDetRetinaHead,
    RankDetRPNHead,
    RankDetShared2FCBBoxHead,
    RankDetShared4Conv1FCBBoxHead,
)
from rankdet.integrations.mmdet.hook import RankDetHook
from rankdet.integrations.mmdet.losses import (
    RankDetALRPLoss,
    RankDetAPLoss,
    RankDetLoss,
    RankDetRankSortLoss,
)

__all__ = [
    "RankDetALRPLoss",
    "RankDetAPLoss",
    "RankDetATSSHead",
    "RankDetFCOSHead",
    "RankDetFoveaHead",
    "RankDetHook",
    "RankDetLoss",
    "RankDetMixin",
    "RankDetRPNHead",
    "RankDetRankSortLoss",
    "RankDetRetinaHead",
    "RankDetShared2FCBBoxHead",
    "RankDetShared4Conv1FCBBoxHead",
]
