"""What the mixin changes of a head of mmdetection, and what it leaves as it was."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

pytest.importorskip("mmcv_stand_in", reason="the extra mmdet is not installed")

import tiny_mmdet as tiny
from mmdet.models.dense_heads import RetinaHead
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MessageHub

from rankdet.integrations.mmdet import RankDetHook, RankDetMixin, RankDetRetinaHead
from rankdet.integrations.mmdet.predictions import predictions_and_targets
from rankdet.losses import ap_loss
from rankdet.structures import IGNORED

pytestmark = tiny.QUIET
DENSE = tuple(name for name in tiny.NAMES if name != "faster_rcnn")
BALANCE = {"weight", "sums", "count"}


def mmdetections_own(name: str) -> Any:
    """Return the tiny detector with mmdetection's own heads and losses."""
    config = tiny.tiny_model(name)
    base = tiny.config_path(name).read_text().split('_base_ = "')[1].split('"')[0]
    theirs = Config.fromstring(f"_base_ = '{base}'", ".py").model
    pairs = (
        [(config.model.rpn_head, theirs.rpn_head),
         (config.model.roi_head.bbox_head, theirs.roi_head.bbox_head)]
        if name == "faster_rcnn"
        else [(config.model.bbox_head, theirs.bbox_head)]
    )  # fmt: skip
    for ours, their in pairs:
        ours.type, ours.loss_cls = their.type, their.loss_cls
    return tiny.build(config)


@pytest.mark.parametrize("name", DENSE)
def test_weights_go_from_mmdetections_head_to_ours_and_back(name: str) -> None:
    theirs, ours = mmdetections_own(name), tiny.build(tiny.tiny_model(name))
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    prefix = "bbox_head.loss_cls.criterion.balance."
    assert set(missing) == {prefix + key for key in BALANCE}
    assert unexpected == []
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert missing == []
    assert set(unexpected) == {prefix + key for key in BALANCE}


def test_weights_of_faster_rcnn_differ_in_the_output_for_background_alone() -> None:
    theirs, ours = mmdetections_own("faster_rcnn"), tiny.build(tiny.tiny_model("faster_rcnn"))
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    own = {key: value.shape for key, value in ours.state_dict().items() if "balance" not in key}
    assert own.keys() == shapes.keys()
    assert {key for key in own if own[key] != shapes[key]} == {
        f"roi_head.bbox_head.fc_cls.{part}" for part in ("weight", "bias")
    }
    assert shapes["roi_head.bbox_head.fc_cls.bias"] == (len(tiny.CLASSES) + 1,)


@pytest.mark.parametrize("name", DENSE)
def test_detections_are_those_of_mmdetections_head_with_the_same_weights(name: str) -> None:
    theirs, ours = mmdetections_own(name).eval(), tiny.build(tiny.tiny_model(name)).eval()
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if key.startswith("bbox_head") and "centerness" not in key:
                parameter.add_(0.02 * torch.randn_like(parameter))
        theirs.load_state_dict(ours.state_dict(), strict=False)
        found, wanted = (each.test_step(tiny.batch()) for each in (ours, theirs))
    # The centreness is 0, so in mmdetection's own head it halves every score.
    half = 0.5 if name in ("atss", "fcos") else 1.0
    for one, other in zip(found, wanted, strict=True):
        ours_found, theirs_found = one.pred_instances, other.pred_instances
        assert len(ours_found) > 3
        assert_close(ours_found.bboxes, theirs_found.bboxes)
        assert_close(half * ours_found.scores, theirs_found.scores)
        assert torch.equal(ours_found.labels, theirs_found.labels)


def test_scores_of_regions_are_a_sigmoid_of_each_class() -> None:
    head = tiny.build(tiny.tiny_model("faster_rcnn")).roi_head.bbox_head
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    scores = head.loss_cls.get_activation(logits)
    assert_close(scores, torch.cat([logits.sigmoid(), torch.zeros(1, 1)], 1))
    roi = torch.tensor([[0.0, 8.0, 8.0, 40.0, 40.0]])
    (found,) = head.predict_by_feat(
        (roi,), (logits,), (torch.zeros(1, 12),),
        [{"img_shape": (64, 64)}], Config({"score_thr": 0.0, "max_per_img": 9,
                                           "nms": {"type": "nms", "iou_threshold": 0.5}}),
    )  # fmt: skip
    assert found.labels.tolist() == [1, 0, 2]
    assert_close(found.scores, torch.tensor([2.0, 0.0, -1.0]).sigmoid())


@pytest.mark.parametrize("name", ["retinanet", "fovea"])
def test_ap_loss_leaves_the_box_loss_to_mmdetection(name: str) -> None:
    config = tiny.tiny_model(name)
    config.model.bbox_head.loss_cls = {"type": "RankDetAPLoss"}
    config.model.bbox_head.loss_bbox.loss_weight = 1.5
    ours, theirs = tiny.build(config).train(), mmdetections_own(name).train()
    theirs.bbox_head.loss_bbox.loss_weight = 1.5
    theirs.load_state_dict(ours.state_dict(), strict=False)
    found, wanted = (tiny.losses_of(each, tiny.batch()) for each in (ours, theirs))
    box, _ = theirs.parse_losses({"loss_bbox": wanted["loss_bbox"]})  # of all levels
    assert_close(found["rank_localisation"], box, rtol=1e-5, atol=0)
    assert box > 0
    assert_close(found["loss_rank"], found["rank_classification"] + box, rtol=1e-5, atol=0)
    reg = ours.bbox_head.retina_reg if name == "retinanet" else ours.bbox_head.conv_reg
    other = theirs.bbox_head.retina_reg if name == "retinanet" else theirs.bbox_head.conv_reg
    assert_close(
        torch.autograd.grad(found["loss_rank"], reg.weight),
        torch.autograd.grad(box, other.weight),
    )


@pytest.mark.parametrize("name", ["atss", "fcos"])
def test_ap_loss_compares_boxes_where_mmdetection_does(name: str) -> None:
    config = tiny.tiny_model(name)
    config.model.bbox_head.loss_cls = {"type": "RankDetAPLoss", "delta": 0.7}
    detector = tiny.build(config).train()
    head = detector.bbox_head
    data = detector.data_preprocessor(tiny.batch(), training=True)
    maps = detector.extract_feat(data["inputs"])
    samples = data["data_samples"]
    truth = ([s.gt_instances for s in samples], [s.metainfo for s in samples], None)
    outputs = head.outputs_of_batch(*head(maps), truth)
    positive = outputs.labels < len(tiny.CLASSES)
    codes, goals = outputs.codes[positive], outputs.goals[positive]
    priors = outputs.priors[positive]
    if name == "atss":
        pred = head.bbox_coder.decode(priors, codes)
    else:
        points = (priors[:, :2] + priors[:, 2:]) / 2
        pred, goals = (head.bbox_coder.decode(points, each) for each in (codes, goals))
    wanted = head.loss_bbox(pred, goals, avg_factor=int(positive.sum()))
    targets = nn.functional.one_hot(outputs.labels, len(tiny.CLASSES) + 1)[:, :-1]
    ranking = ap_loss(outputs.logits.reshape(-1), targets.reshape(-1), delta=0.7)
    losses = head.loss_by_feat(*head(maps), *truth)
    assert_close(losses["rank_localisation"], wanted, rtol=1e-5, atol=0)
    assert_close(losses["rank_classification"], ranking, rtol=1e-6, atol=0)
    assert_close(losses["loss_rank"], ranking + wanted, rtol=1e-5, atol=0)


def test_ap_loss_without_objects_reaches_every_parameter() -> None:
    config = tiny.tiny_model("atss")
    config.model.bbox_head.loss_cls = {"type": "RankDetAPLoss"}
    detector = tiny.build(config).train()
    total, _ = detector.parse_losses(tiny.losses_of(detector, tiny.batch(empty=True)))
    total.backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def outputs_of(detector: Any, data: dict[str, Any]) -> Any:
    """Return what the head of a dense detector has predicted of a batch."""
    ready = detector.data_preprocessor(data, training=True)
    samples = ready["data_samples"]
    truth = ([s.gt_instances for s in samples], [s.metainfo for s in samples],
             [s.ignored_instances for s in samples])  # fmt: skip
    head = detector.bbox_head
    return head.outputs_of_batch(*head(detector.extract_feat(ready["inputs"])), truth)


@pytest.mark.parametrize("name", [*DENSE, "fcos, normalised"])
def test_every_positive_has_an_object_of_its_image_to_find(name: str) -> None:
    config = tiny.tiny_model(name.split(",")[0])
    if "normalised" in name:
        config.model.bbox_head.norm_on_bbox = True
    outputs = outputs_of(tiny.build(config).train(), tiny.batch())
    predictions, targets = predictions_and_targets(outputs)
    matched = predictions.priors.matched[0]  # type: ignore[attr-defined]
    places = (matched >= 0).nonzero().squeeze(1)
    assert matched[places].tolist() == list(range(targets.boxes.shape[1]))
    assert len(places) > 3
    objects = [sample.gt_instances for sample in tiny.batch()["data_samples"]]
    boxes = torch.cat([each.bboxes for each in objects])
    labels = torch.cat([each.labels for each in objects])
    apart = (targets.boxes[0][:, None] - boxes).abs().amax(2)  # [P, objects of both images]
    nearest, index = apart.min(1)
    assert nearest.max() < 1e-3
    assert torch.equal(labels[index], targets.labels[0])


def test_places_on_the_padding_of_an_image_take_no_part() -> None:
    detector = tiny.build(tiny.tiny_model("retinanet")).train()
    data = tiny.batch()
    data["inputs"][1] = data["inputs"][1][:, :, :32]  # padded to the width of the first
    data["data_samples"][1].set_metainfo({"img_shape": (64, 32)})
    data["data_samples"][1].gt_instances = data["data_samples"][1].gt_instances[:0]
    outputs = outputs_of(detector, data)
    second = []  # which priors are of the second image: level by level, image by image
    for side in (8, 4, 2, 1, 1):
        second += [False] * side**2 * 9 + [True] * side**2 * 9
    of_second = torch.tensor(second)
    beyond = (outputs.priors[:, 0] + outputs.priors[:, 2]) / 2 > 31  # 32 but for rounding
    assert beyond.any()
    assert torch.equal(outputs.counts[of_second] <= 0, beyond[of_second])
    (matched,) = predictions_and_targets(outputs)[0].priors.matched  # type: ignore[attr-defined]
    assert torch.equal(matched == IGNORED, outputs.counts <= 0)


def test_crowds_are_neither_objects_nor_background() -> None:
    config = tiny.tiny_model("retinanet")
    config.model.train_cfg.assigner.ignore_iof_thr = 0.5
    detector = tiny.build(config).train()
    data = tiny.batch()
    plain = outputs_of(detector, data)
    for sample in data["data_samples"]:
        crowd = sample.ignored_instances.new(bboxes=torch.tensor([[0.0, 0, 64, 64]]))
        sample.ignored_instances = crowd
    found = outputs_of(detector, data)
    assert (found.counts <= 0).sum() > (plain.counts <= 0).sum() + 100
    predictions, targets = predictions_and_targets(found)
    terms = detector.bbox_head.loss_cls(predictions, targets)
    kept = found.counts > 0
    logits = found.logits.detach().clone()
    logits[~kept] = 50.0  # of no account
    changed = type(found)(**{**vars(found), "logits": logits})
    again = detector.bbox_head.loss_cls(*predictions_and_targets(changed))
    assert_close(again.total, terms.total.detach())


def test_what_goes_wrong_is_said() -> None:
    config = tiny.tiny_model("retinanet").model.bbox_head
    with pytest.raises(TypeError, match=r"_delete_=True, type='RankDetALRPLoss'.*FocalLoss"):
        MODELS.build({**config, "loss_cls": {"type": "FocalLoss"}})
    with pytest.raises(TypeError, match="needs loss_cls"):
        RankDetRetinaHead(num_classes=3, in_channels=32)
    with pytest.raises(ValueError, match="use_sigmoid must be True"):
        MODELS.build({"type": "RankDetALRPLoss", "use_sigmoid": False})
    with pytest.raises(ValueError, match="loss_weight must be zero or more"):
        MODELS.build({"type": "RankDetRankSortLoss", "loss_weight": -1.0})
    with pytest.raises(ValueError, match="'self'"):
        MODELS.build({"type": "RankDetALRPLoss", "balance": "learned"})
    rules = tiny.tiny_model("retinanet").model.train_cfg
    own = MODELS.build({**config, "type": "RetinaHead", "train_cfg": rules})
    maps = [torch.zeros(1, 32, side, side) for side in (8, 4, 2, 1, 1)]
    samples = tiny.batch(1)["data_samples"]
    with pytest.raises(TypeError, match="for heads with RankDetMixin: take RankDetRetinaHead"):
        own.loss(maps, samples)

    class Unknown(nn.Module):
        def __init__(self, loss_cls: dict[str, Any]) -> None:
            super().__init__()
            self.loss_cls = MODELS.build(loss_cls)

    class Ranked(RankDetMixin, Unknown):
        pass

    with pytest.raises(TypeError, match="Ranked must derive from one of BBoxHead, FCOSHead"):
        Ranked(loss_cls={"type": "RankDetALRPLoss"})


def test_any_head_of_a_known_kind_takes_the_mixin() -> None:
    class Squared(RetinaHead):  # type: ignore[misc] # which has no types
        def forward_single(self, x: Tensor) -> Any:
            logits, codes = super().forward_single(x)
            return logits * 2, codes

    class RankedSquared(RankDetMixin, Squared):
        pass

    part = tiny.tiny_model("retinanet").model.bbox_head
    settings = {key: value for key, value in part.items() if key != "type"}
    cfg = tiny.tiny_model("retinanet").model.train_cfg
    head = RankedSquared(**settings, train_cfg=cfg)
    maps = tuple(torch.randn(2, 32, side, side) for side in (8, 4, 2, 1, 1))
    losses = head.loss(maps, tiny.batch()["data_samples"])
    losses["loss_rank"].backward()
    assert head.retina_cls.weight.grad.any()


def test_settings_of_a_loss_arrive() -> None:
    settings = {"delta": 0.3, "tau": 0.6, "box": "diou", "loc_ranking": "hard", "ranking": "global",
                "eps": 1e-4, "frame": "pixels"}  # fmt: skip
    criterion = MODELS.build({"type": "RankDetALRPLoss", **settings, "initial": 3.0}).criterion
    assert {key: getattr(criterion, key) for key in settings} == settings
    assert criterion.balance.weight == 3
    criterion = MODELS.build({"type": "RankDetRankSortLoss", "delta": 0.2, "ranking": "global"})
    assert (criterion.criterion.delta, criterion.criterion.ranking) == (0.2, "global")
    loss = MODELS.build({"type": "RankDetAPLoss", "interpolated": False, "ranking": "global"})
    assert not loss.criterion.classification.interpolated
    assert loss.criterion.classification.ranking == "global"


def test_each_stage_has_its_frame_and_its_balance() -> None:
    detector = tiny.build(tiny.tiny_model("faster_rcnn"))
    first, second = detector.rpn_head.loss_cls, detector.roi_head.bbox_head.loss_cls
    assert (first.criterion.frame, second.criterion.frame) == ("prior", "pixels")
    assert (first.criterion.tau, second.criterion.tau) == (0.7, 0.5)
    keys = [key for key in detector.state_dict() if "balance" in key]
    stages = ("rpn_head", "roi_head.bbox_head")
    prefixes = [f"{stage}.loss_cls.criterion.balance" for stage in stages]
    assert set(keys) == {f"{prefix}.{part}" for prefix in prefixes for part in BALANCE}


class Runner:
    """As much of a runner as a hook looks at."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.iter = model, 0


def test_the_hook_ends_epochs_of_the_balance_or_every_so_many_iterations() -> None:
    detector = tiny.build(tiny.tiny_model("retinanet")).train()
    balance = detector.bbox_head.loss_cls.criterion.balance
    runner: Any = Runner(detector)
    with pytest.raises(ValueError, match="interval must be above zero"):
        RankDetHook(interval=0)
    with pytest.raises(ValueError, match="for models with a RankDet"):
        RankDetHook().before_train(Runner(nn.Linear(1, 1)))
    counts = []
    for hook in (RankDetHook(), RankDetHook(interval=2)):
        for runner.iter in range(3):
            tiny.losses_of(detector, tiny.batch())
            hook.after_train_iter(runner, runner.iter)
            counts.append(int(balance.count))
        hook.after_train_epoch(runner)
        counts.append(int(balance.count))
    assert counts == [1, 2, 3, 0, 1, 0, 1, 1]
    assert balance.weight != 50


def test_a_missing_hook_is_noticed_in_the_second_epoch() -> None:
    detector = tiny.build(tiny.tiny_model("retinanet")).train()
    hub = MessageHub.get_current_instance()
    before = hub.get_info("epoch", 0)
    try:
        hub.update_info("epoch", 0)
        tiny.losses_of(detector, tiny.batch())
        hub.update_info("epoch", 1)
        with pytest.warns(UserWarning, match="custom_hooks"):
            tiny.losses_of(detector, tiny.batch())
        tiny.losses_of(detector, tiny.batch())  # said once
        fresh = tiny.build(tiny.tiny_model("retinanet")).train()
        RankDetHook().before_train(Runner(fresh))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tiny.losses_of(fresh, tiny.batch())
    finally:
        hub.update_info("epoch", before)
