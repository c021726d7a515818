"""Small models to export, and images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rankdet.config.assemble import divisor_of
from rankdet.config.build_model import build_detector, build_post_process
from rankdet.config.load import dump, load_recipe
from rankdet.engine.checkpoint import ModelCard, save_model
from rankdet.export.describe import Description

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
DETECTORS = (
    "demo", "retinanet_focal-small", "atss_focal-small", "paa-small", "fcos_focal-small",
    "fovea_alrp-small", "faster_rcnn_ce-small", "faster_rcnn_alrp-small",
)  # fmt: skip


def make(recipe_name: str, *changes: str) -> tuple[Any, Any, Description]:
    """Return a detector whose scores differ from place to place, its post-processing and words."""
    recipe = load_recipe(recipe_name, ["model.weights=null", *changes])
    torch.manual_seed(1)
    detector = build_detector(recipe, len(CLASSES)).eval()
    for name, module in detector.named_modules():
        kind = name.rsplit(".", 1)[-1]
        if kind in ("to_logits", "to_codes", "to_centreness", "to_iou"):
            torch.nn.init.normal_(module.weight, std=0.05 if kind == "to_codes" else 0.3)
    about = Description(
        classes=CLASSES,
        category_ids=tuple(range(1, 8)),
        thresholds=(None, *[0.2] * 6),
        shorter=96,
        longer=160,
        divisor=divisor_of(recipe),
        fill=(124, 116, 104),
        max_detections=recipe.test.max_detections,
        nms_iou=recipe.test.nms_iou,
    )
    return detector, build_post_process(recipe), about


def images(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return padded images of smooth noise, and the sizes of what is no padding."""
    coarse = torch.randint(0, 255, (batch, 3, height // 8, width // 8)).float()
    smooth = functional.interpolate(coarse, size=(height, width), mode="bicubic")
    sizes = torch.tensor([[height - 7 * each, width - 3 * each] for each in range(batch)])
    return smooth.clamp(0, 255).round().to(torch.uint8), sizes


def detections_of(detector: Any, post_process: Any, batch: Tensor, sizes: Tensor) -> list[Any]:
    """Return what the model finds, as everything else here does."""
    more = (sizes,) if getattr(detector, "wants_sizes", False) else ()
    with torch.inference_mode():
        found: list[Any] = post_process(detector(batch, *more), sizes)
    return found


def save_run(folder: Path, *changes: str) -> Path:
    """Write a model that finds something everywhere to ``best.safetensors``; return its folder."""
    changes = ("data.test_shorter=96", "data.test_longer=160", *changes)
    detector, _, about = make("demo", *changes)
    recipe = load_recipe("demo", changes)
    card = ModelCard(CLASSES, about.category_ids, dump(recipe), (None, *[0.13] * 6))
    save_model(folder / "best.safetensors", detector.state_dict(), card)
    return folder
