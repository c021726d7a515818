"""Models of transformers with few channels and random weights, and a batch for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CLASSES = 3
_SMALL: dict[str, Any] = {
    "d_model": 32,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_n_points": 2,
    "num_queries": 12,
    "num_labels": CLASSES,
}
_RT: dict[str, Any] = {
    **_SMALL,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 6,
}
_RESNET: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
NAMES = ["rt_detr", "rt_detr_v2", "d_fine", "deformable_detr"]


def build(name: str) -> Any:
    """Return a model in training whose weights are the same each time."""
    import transformers as hf

    torch.manual_seed(7)
    model: Any
    if name == "rt_detr":
        backbone = hf.RTDetrResNetConfig(**_RESNET)
        model = hf.RTDetrForObjectDetection(hf.RTDetrConfig(backbone_config=backbone, **_RT))
    elif name == "rt_detr_v2":
        backbone = hf.RTDetrResNetConfig(**_RESNET)
        model = hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(backbone_config=backbone, **_RT))
    elif name == "d_fine":
        backbone = hf.HGNetV2Config(
            embedding_size=8,
            stem_channels=[3, 4, 8],
            stage_in_channels=[8, 16, 16, 16],
            stage_mid_channels=[4, 4, 4, 4],
            stage_out_channels=[16, 16, 16, 16],
            stage_num_blocks=[1, 1, 1, 1],
            stage_numb_of_layers=[1, 1, 1, 1],
            hidden_sizes=[16, 16, 16, 16],
            depths=[1, 1, 1, 1],
            out_features=["stage2", "stage3", "stage4"],
        )
        config = hf.DFineConfig(backbone_config=backbone, max_num_bins=8, **_RT)
        model = hf.DFineForObjectDetection(config)
    else:
        config = hf.DeformableDetrConfig(
            backbone_config=hf.ResNetConfig(**_RESNET),
            encoder_layers=1,
            auxiliary_loss=True,
            num_feature_levels=3,
            disable_custom_kernels=True,
            dropout=0.0,
            **_SMALL,
        )
        model = hf.DeformableDetrForObjectDetection(config)
    return model.train()


def batch(*, objects: bool = True) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return two images and their objects; boxes are centre and sides, in shares of the image."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    boxes = [[[0.3, 0.3, 0.3, 0.4], [0.6, 0.7, 0.5, 0.3]], [[0.5, 0.5, 0.5, 0.6]]]
    labels = [[0, 2], [1]]
    if not objects:
        boxes, labels = [[], []], [[], []]
    return images, [
        {"class_labels": torch.tensor(c).long(), "boxes": torch.tensor(b).reshape(-1, 4)}
        for c, b in zip(labels, boxes, strict=True)
    ]


def outputs_of(model: Any, *, objects: bool = True, seed: int = 1) -> Any:
    """Return what the model says of the batch; denoising queries are random."""
    torch.manual_seed(seed)
    images, labels = batch(objects=objects)
    return model(pixel_values=images, labels=labels)
