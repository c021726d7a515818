"""FoveaBox with aLRP Loss; all else is mmdetection's own configuration."""

_base_ = "mmdet::foveabox/fovea_r50_fpn_4xb4-1x_coco.py"
custom_imports = dict(imports=["rankdet.integrations.mmdet"])
model = dict(
    bbox_head=dict(type="RankDetFoveaHead", loss_cls=dict(_delete_=True, type="RankDetALRPLoss")),
    test_cfg=dict(score_thr=0.0),
)
custom_hooks = [dict(type="RankDetHook")]
