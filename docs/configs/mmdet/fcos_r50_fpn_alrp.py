"""FCOS with aLRP Loss and without centreness; all else is mmdetection's own configuration."""

_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"
custom_imports = dict(imports=["rankdet.integrations.mmdet"])
model = dict(
    bbox_head=dict(type="RankDetFCOSHead", loss_cls=dict(_delete_=True, type="RankDetALRPLoss")),
    test_cfg=dict(score_thr=0.0),
)
custom_hooks = [dict(type="RankDetHook")]
