"""From the names in a recipe to what is minimised, and to who is positive."""

from __future__ import annotations

from torch import nn

from rankdet.assign.atss import ATSSAssigner
from rankdet.assign.fcos import FCOSAssigner
from rankdet.assign.fovea import FoveaAssigner
from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.assign.paa import PAAAssigner
from rankdet.assign.sampling import SampledAssigner
from rankdet.config import losses, parts
from rankdet.config.recipe import Recipe
from rankdet.criteria.alrp import ALRPCriterion, Frame
from rankdet.criteria.balance import Balance, LearnedBalance, ScalarBalance, SelfBalance
from rankdet.criteria.balance_gradient import GradientBalance
from rankdet.criteria.cross_entropy import CrossEntropyCriterion
from rankdet.criteria.dense import (
    APClassification,
    Box,
    Classification,
    DenseCriterion,
    DRClassification,
    FocalClassification,
    IoUBox,
    SmoothL1Box,
    Weighting,
)
from rankdet.criteria.free_anchor import FreeAnchorCriterion
from rankdet.criteria.paa import FocalGIoUCost, PAACriterion
from rankdet.criteria.quality import (
    IoUWeighting,
    QualityFocalClassification,
    ScoreWeighting,
    VarifocalClassification,
)
from rankdet.criteria.rank_sort import RankSortCriterion
from rankdet.criteria.regions import AlreadyMatched, RegionCriterion
from rankdet.criteria.two_stage import TwoStageCriterion

AnyAssigner = (
    MaxIoUAssigner
    | ATSSAssigner
    | FCOSAssigner
    | FoveaAssigner
    | SampledAssigner
    | PAAAssigner
    | AlreadyMatched
)


def build_criterion(recipe: Recipe) -> nn.Module:
    """Return what is minimised: a criterion of `rankdet.criteria`."""
    loss = recipe.criterion
    match loss:
        case losses.FreeAnchor():
            return FreeAnchorCriterion(
                _box(loss.box),
                box_weight=loss.box_weight,
                bag=loss.bag,
                threshold=loss.threshold,
                alpha=loss.alpha,
                gamma=loss.gamma,
                crowd_overlap=loss.crowd_overlap,
            )
        case losses.PAALoss():
            return PAACriterion(
                build_assigner(recipe.assigner),
                _classification(loss.classification, loss.ranking),
                _box(loss.box),
                box_weight=loss.box_weight,
                branch_weight=loss.branch_weight,
            )
        case losses.TwoStage():
            return _two_stage(recipe, loss)
        case _:
            return _one_stage(loss, build_assigner(recipe.assigner), recipe.model.centreness)


def build_assigner(rule: parts.Assigner) -> AnyAssigner:
    """Return what decides who is positive.

    Raises:
        ValueError: the recipe leaves it to the criterion.
    """
    match rule:
        case parts.MaxIoU():
            return MaxIoUAssigner(
                positive=rule.positive,
                negative=rule.negative,
                min_positive=rule.min_positive,
                low_quality=rule.low_quality,
                crowd_overlap=rule.crowd_overlap,
            )
        case parts.ATSS():
            return ATSSAssigner(top_k=rule.top_k, crowd_overlap=rule.crowd_overlap)
        case parts.FCOS():
            return FCOSAssigner(
                regress_ranges=rule.regress_ranges,
                centre_radius=rule.centre_radius,
                crowd_overlap=rule.crowd_overlap,
            )
        case parts.Fovea():
            return FoveaAssigner(
                scale_ranges=rule.scale_ranges, sigma=rule.sigma, crowd_overlap=rule.crowd_overlap
            )
        case parts.PAA():
            overlap = MaxIoUAssigner(positive=rule.overlap, negative=rule.overlap)
            cost = FocalGIoUCost(box_weight=rule.box_weight)
            return PAAAssigner(cost, first=overlap, top_k=rule.top_k)
        case parts.NoAssigner():
            raise ValueError("there is no assigner: the criterion learns who is positive")


def _one_stage(
    loss: losses.StageLoss,
    assigner: AnyAssigner,
    centreness: bool = False,
    *,
    softmax: bool = False,
    frame: Frame = "prior",
) -> nn.Module:
    """Return the criterion of a dense detector, or of one stage of two."""
    match loss:
        case losses.CrossEntropy():
            return CrossEntropyCriterion(
                assigner,
                _box(loss.box),
                scores="softmax" if softmax else "sigmoid",
                box_weight=loss.box_weight,
            )
        case losses.Dense():
            return DenseCriterion(
                assigner,
                _classification(loss.classification, loss.ranking),
                _box(loss.box),
                box_weight=loss.box_weight,
                centreness=centreness,
                weighting=_weighting(loss),
            )
        case losses.ALRP():
            return ALRPCriterion(
                assigner,
                _balance(loss),
                delta=loss.delta,
                tau=loss.tau,
                box=loss.box,
                localisation=loss.localisation,
                loc_ranking=loss.loc_ranking,
                frame=frame,
                ranking=loss.ranking,
            )
        case losses.RankSort():
            return RankSortCriterion(assigner, delta=loss.delta, ranking=loss.ranking)


def _two_stage(recipe: Recipe, loss: losses.TwoStage) -> TwoStageCriterion:
    anchors, regions = build_assigner(recipe.assigner), build_assigner(loss.second_assigner)
    assert not isinstance(anchors, PAAAssigner)
    assert not isinstance(regions, PAAAssigner)
    if loss.first_sample is not None:
        anchors = SampledAssigner(anchors, loss.first_sample, 0.5)
    if loss.second_sample is not None:
        regions = SampledAssigner(regions, loss.second_sample, 0.25)
    softmax = recipe.model.regions.background
    second = _one_stage(loss.second, AlreadyMatched(), softmax=softmax, frame="pixels")
    return TwoStageCriterion(
        _one_stage(loss.first, anchors),
        RegionCriterion(regions, second),
        first_weight=loss.first_weight,
    )


def _classification(loss: losses.Classification, ranking: losses.Ranking) -> Classification:
    match loss:
        case losses.Focal():
            return FocalClassification(
                alpha=loss.alpha, gamma=loss.gamma, count_images=loss.count_images
            )
        case losses.AveragePrecision():
            return APClassification(
                delta=loss.delta, interpolated=loss.interpolated, ranking=ranking
            )
        case losses.QualityFocal():
            return QualityFocalClassification(beta=loss.beta)
        case losses.Varifocal():
            return VarifocalClassification(
                alpha=loss.alpha, gamma=loss.gamma, iou_weighted=loss.iou_weighted
            )
        case losses.DR():
            return DRClassification(
                margin=loss.margin,
                pos_lambda=loss.pos_lambda,
                neg_lambda=loss.neg_lambda,
                smoothness=loss.smoothness,
                tau=loss.tau,
            )


def _box(loss: losses.BoxLoss) -> Box:
    match loss:
        case losses.SmoothL1():
            return SmoothL1Box(beta=loss.beta, per=loss.per)
        case losses.IoUFamily():
            return IoUBox(kind=loss.kind)


def _weighting(loss: losses.Dense) -> Weighting | None:
    match loss.weighting:
        case "score":
            return ScoreWeighting()
        case "iou":
            return IoUWeighting()
        case None:
            return None


def _balance(loss: losses.ALRP) -> Balance:
    match loss.balance:
        case losses.SelfBalance():
            return SelfBalance(loss.balance.initial)
        case losses.ScalarBalance():
            return ScalarBalance(loss.balance.w_r)
        case losses.LearnedBalance():
            return LearnedBalance()
        case losses.GradientBalance():
            return GradientBalance()
