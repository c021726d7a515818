"""From the names in a recipe to a network, and to what reads its predictions."""

from __future__ import annotations

from rankdet.config.recipe import Model, Recipe, RecipeError
from rankdet.models.atss import atss
from rankdet.models.augmented_test import AugmentedTest
from rankdet.models.backbones import Backbone, build_backbone
from rankdet.models.detector import Detector
from rankdet.models.faster_rcnn import FasterRCNN, faster_rcnn
from rankdet.models.fcos import fcos
from rankdet.models.fovea import fovea
from rankdet.models.postprocess import PostProcess
from rankdet.models.proposals import Propose
from rankdet.models.region_postprocess import RegionPostProcess
from rankdet.models.retinanet import retinanet
from rankdet.ops.box_codes import DeltaCoder

# Of a test with augmentation: sides that are a quarter longer, and the inverse.
_TEST_SCALES = (0.8, 1.0, 1.25)


def build_detector(recipe: Recipe, classes: int) -> Detector | FasterRCNN:
    """Return the network of a recipe, its new parts with random weights.

    Args:
        recipe: of the run.
        classes: C, 1 or more.

    Raises:
        RecipeError: the weights of the backbone cannot be had, or do not fit it, or it needs a
            library that is not installed.
    """
    model = recipe.model
    backbone = _backbone(model)
    match model.detector:
        case "retinanet":
            return retinanet(
                classes,
                backbone=backbone,
                channels=model.fpn_channels,
                levels=model.levels,
                extra=model.extra_levels,
                convs=model.head_convs,
                norm=model.head_norm,
                scale=model.anchors.scale,
                octave_scales=model.anchors.octave_scales,
                ratios=model.anchors.ratios,
                class_prior=model.class_prior,
                coder=DeltaCoder(model.box_stds),
            )
        case "atss":
            return atss(
                classes,
                backbone=backbone,
                channels=model.fpn_channels,
                levels=model.levels,
                extra=model.extra_levels,
                convs=model.head_convs,
                norm=model.head_norm,
                scale=model.anchors.scale,
                octave_scales=model.anchors.octave_scales,
                ratios=model.anchors.ratios,
                centreness=model.centreness,
                iou=model.iou_branch,
                level_scales=model.level_scales,
                class_prior=model.class_prior,
                coder=DeltaCoder(model.box_stds),
            )
        case "fovea":
            return fovea(
                classes,
                backbone=backbone,
                channels=model.fpn_channels,
                levels=model.levels,
                extra=model.extra_levels,
                convs=model.head_convs,
                norm=model.head_norm,
                class_prior=model.class_prior,
            )
        case "fcos":
            return fcos(
                classes,
                backbone=backbone,
                channels=model.fpn_channels,
                levels=model.levels,
                extra=model.extra_levels,
                convs=model.head_convs,
                norm=model.head_norm,
                centreness=model.centreness,
                level_scales=model.level_scales,
                class_prior=model.class_prior,
            )
        case "faster_rcnn":
            return _faster_rcnn(model, backbone, classes)


def build_post_process(recipe: Recipe) -> PostProcess | RegionPostProcess:
    """Return what turns predictions into detections."""
    test = recipe.test
    if recipe.model.detector == "faster_rcnn":
        return RegionPostProcess(
            candidates=test.candidates,
            score_threshold=test.score_threshold,
            nms_iou=test.nms_iou,
            max_detections=test.max_detections,
            nms=test.nms,
            min_score=0.0,
        )
    return PostProcess(
        candidates=test.candidates,
        score_threshold=test.score_threshold,
        nms_iou=test.nms_iou,
        max_detections=test.max_detections,
        combine="root" if recipe.model.iou_branch else "product",
        nms=test.nms,
        min_score=0.0,  # a ranking loss may leave all scores low
    )


def build_augmented_test(recipe: Recipe, divisor: int) -> AugmentedTest:
    """Return what looks at each image three times, and mirrored where training did so too.

    Args:
        recipe: of the run.
        divisor: the sides of a batch are multiples of this.
    """
    augment = recipe.data.augment
    flip = getattr(augment, "horizontal_flip", True)  # of SSD's augmentation always
    return AugmentedTest(scales=_TEST_SCALES, flip=flip, divisor=divisor)


def _backbone(model: Model) -> Backbone:
    try:
        return build_backbone(
            model.backbone,
            weights=model.weights,
            frozen_stages=model.frozen_stages,
            norm=model.norm,
            stages=(2, 3, 4, 5) if model.detector == "faster_rcnn" else (3, 4, 5),
            deformable_stages=model.deformable_stages,
        )
    except ImportError as error:
        raise RecipeError(f"model.backbone: {error}") from error
    except (ValueError, OSError) as error:
        raise RecipeError(f"model.weights: {error}") from error


def _faster_rcnn(model: Model, backbone: Backbone, classes: int) -> FasterRCNN:
    regions = model.regions

    def propose(candidates: int) -> Propose:
        return Propose(candidates=candidates, nms_iou=regions.nms_iou, number=regions.number)

    return faster_rcnn(
        classes,
        backbone=backbone,
        channels=model.fpn_channels,
        levels=model.levels,
        scale=model.anchors.scale,
        octave_scales=model.anchors.octave_scales,
        ratios=model.anchors.ratios,
        proposal_prior=model.class_prior,
        coder=DeltaCoder(model.box_stds),
        hidden=regions.hidden,
        pooled_size=regions.pooled_size,
        background=regions.background,
        agnostic=regions.agnostic,
        class_prior=regions.class_prior,
        region_coder=DeltaCoder(regions.box_stds),
        propose=propose(regions.candidates),
        propose_in_training=propose(2 * regions.candidates),
        adds_known=regions.add_objects,
    )
