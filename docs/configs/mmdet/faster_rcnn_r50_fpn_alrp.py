"""Faster R-CNN with aLRP Loss in both stages, of all anchors and regions instead of a sample.

All else is mmdetection's own configuration.
"""

_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["rankdet.integrations.mmdet"])
everything = dict(_delete_=True, type="PseudoSampler")
model = dict(
    rpn_head=dict(
        type="RankDetRPNHead",
        loss_cls=dict(_delete_=True, type="RankDetALRPLoss", tau=0.7, loss_weight=0.2),
    ),
    roi_head=dict(
        bbox_head=dict(
            type="RankDetShared2FCBBoxHead",
            loss_cls=dict(_delete_=True, type="RankDetALRPLoss"),
        )
    ),
    train_cfg=dict(rpn=dict(sampler=everything), rcnn=dict(sampler=everything)),
    test_cfg=dict(rcnn=dict(score_thr=0.0)),
)
custom_hooks = [dict(type="RankDetHook")]
