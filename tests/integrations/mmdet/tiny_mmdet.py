"""The configurations of the documentation made small, and a data set to train them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv_stand_in", reason="the extra mmdet is not installed")

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor, nn

CONFIGS = Path(__file__).resolve().parents[3] / "docs" / "configs" / "mmdet"
NAMES = ("retinanet", "atss", "fovea", "fcos", "faster_rcnn")
CLASSES = ("square", "bar", "pole")
SIZE = 64  # of the images, in pixels
CHANNELS = 32
# What mmdetection, mmengine and mmcv of these versions say in ordinary use.
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{what}")
    for what in (
        "pkg_resources is deprecated",
        "DeprecationWarning. `num_anchors` is deprecated",
        "torch.meshgrid",
        "Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD detected",
        "'pkgutil.find_loader' is deprecated",
        ".*instance named of visualizer has been created",
    )
]


def config_path(name: str) -> Path:
    return CONFIGS / f"{name}_r50_fpn_alrp.py"


def tiny_model(name: str) -> Config:
    """Return the configuration of the documentation with few channels and no download."""
    config = Config.fromfile(config_path(name))
    model = config.model
    model.backbone.update(
        depth=18, base_channels=8, stem_channels=8, zero_init_residual=False, init_cfg=None
    )
    model.backbone.norm_cfg.requires_grad = True
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=CHANNELS)
    if name == "faster_rcnn":
        model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
        roi = model.roi_head
        roi.bbox_roi_extractor.out_channels = CHANNELS
        roi.bbox_roi_extractor.roi_layer.use_torchvision = True
        roi.bbox_head.update(in_channels=CHANNELS, fc_out_channels=32, num_classes=len(CLASSES))
        model.train_cfg.rpn_proposal.max_per_img = 60
        model.test_cfg.rpn.max_per_img = 60
    else:
        model.bbox_head.update(
            in_channels=CHANNELS,
            feat_channels=CHANNELS,
            stacked_convs=1,
            num_classes=len(CLASSES),
        )
        if name in ("atss", "fcos"):  # one channel for each group would leave nothing of 1 x 1 maps
            model.bbox_head.norm_cfg = {"type": "GN", "num_groups": 8, "requires_grad": True}
    return config


def build(config: Config) -> Any:
    """Return the detector of a configuration, initialised."""
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    detector.init_weights()
    return detector


def ranking_heads(detector: nn.Module) -> list[Any]:
    from rankdet.integrations.mmdet import RankDetMixin

    return [part for part in detector.modules() if isinstance(part, RankDetMixin)]


def batch(images: int = 2, *, empty: bool = False) -> dict[str, Any]:
    """Return what a data loader of mmdetection would; without objects if ``empty``."""
    generator = torch.Generator().manual_seed(3)
    samples = []
    for _ in range(images):
        sample = DetDataSample()
        sample.set_metainfo(
            {
                "img_shape": (SIZE, SIZE),
                "ori_shape": (SIZE, SIZE),
                "pad_shape": (SIZE, SIZE),
                "batch_input_shape": (SIZE, SIZE),
                "scale_factor": (1.0, 1.0),
                "img_id": 0,
            }
        )
        instances = InstanceData()
        instances.bboxes = boxes_of(0 if empty else 3, generator)
        instances.labels = torch.arange(0 if empty else 3) % len(CLASSES)
        sample.gt_instances = instances
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
        samples.append(sample)
    inputs = [torch.randint(0, 256, (3, SIZE, SIZE), generator=generator) for _ in samples]
    return {"inputs": [image.to(torch.uint8) for image in inputs], "data_samples": samples}


def boxes_of(count: int, generator: torch.Generator) -> Tensor:
    """Return boxes of 12 to 40 pixels within the image, [count, 4] xyxy."""
    sides = 12 + 28 * torch.rand(count, 2, generator=generator)
    corner = (SIZE - sides) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + sides], 1)


def losses_of(detector: Any, data: dict[str, Any]) -> dict[str, Tensor]:
    """Return what the detector says of a batch in training."""
    ready = detector.data_preprocessor(data, training=True)
    losses: dict[str, Tensor] = detector(**ready, mode="loss")
    return losses


def write_data(folder: Path, images: int = 4) -> None:
    """Write images of rectangles, and a COCO file of them."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(images):
        picture = random.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
        for kind, (width, height) in enumerate([(24, 24), (40, 12), (12, 40)]):
            x, y = (int(random.integers(0, SIZE - side)) for side in (width, height))
            picture[y : y + height, x : x + width] = 255 - 60 * kind
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": kind + 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        name = f"{index}.png"
        Image.fromarray(picture).save(folder / "images" / name)
        entries.append({"id": index, "file_name": name, "height": SIZE, "width": SIZE})
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
    text = json.dumps({"images": entries, "annotations": annotations, "categories": categories})
    (folder / "annotations.json").write_text(text)


def tiny_training(name: str, data: Path, work: Path) -> Config:
    """Return the configuration of the documentation, small, for a run on such data."""
    config = tiny_model(name)
    config.work_dir = str(work)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=f"{data}/",
            ann_file="annotations.json",
            data_prefix={"img": "images/"},
            metainfo={"classes": CLASSES},
        )
        for step in loader.dataset.pipeline:
            if step.type == "Resize":
                step.scale = (SIZE, SIZE)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = f"{data}/annotations.json"
    config.train_cfg.max_epochs = 1
    config.default_hooks.logger.interval = 1
    config.randomness = {"seed": 0}
    config.env_cfg.mp_cfg = {"mp_start_method": "fork", "opencv_num_threads": 1}
    config.log_level = "ERROR"
    return config
