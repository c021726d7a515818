"""A detector with a ranking loss stays a detector of torchvision in everything but its loss."""

from __future__ import annotations

import copy
import io
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_detectors import CLASSES, DETECTORS, batch, build, copied, gradients
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torchvision.models import detection

from rankdet.integrations import RankingLoss
from rankdet.integrations.torchvision import (
    end_epoch,
    ranking_loss_of,
    remove_ranking_loss,
    use_ranking_loss,
)
from rankdet.integrations.torchvision_methods import fcos_scores

NAMES = list(DETECTORS)
SHARED: list[tuple[str, Any]] = [
    *((name, "alrp") for name in NAMES), ("retinanet", "ap"), ("retinanet", "rank_sort")
]  # fmt: skip
Detections = list[dict[str, Tensor]]


def train(model: nn.Module, name: str, steps: int) -> list[float]:
    """Return the classification losses of some steps on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    found = []
    for _ in range(steps):
        images, targets = batch(name)
        losses = model(images, targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        key = "loss_classifier" if name == "faster_rcnn" else "classification"
        found.append(float(losses[key].detach()))
    return found


def detections(model: nn.Module, name: str) -> Detections:
    model.eval()
    with torch.no_grad():
        found: Detections = model(batch(name)[0])
    model.train()
    return found


def require_equal(ours: Detections, theirs: Detections) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert len(one["scores"]) > 3
        for key in ("boxes", "scores", "labels"):
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_weights_go_into_a_plain_model_and_back(name: str) -> None:
    threshold = "box_score_thresh" if name == "faster_rcnn" else "score_thresh"
    plain, model = build(name, **{threshold: 0.0}), build(name)
    names = list(model.state_dict())
    use_ranking_loss(model)
    train(model, name, 2)
    assert list(model.state_dict()) == names == list(plain.state_dict())
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    plain.load_state_dict(model.state_dict(), strict=True)
    require_equal(detections(model, name), detections(plain, name))

    train(plain, name, 1)
    model.load_state_dict(plain.state_dict(), strict=True)
    require_equal(detections(model, name), detections(plain, name))
    # Trained on with torchvision's own loss, as if nothing had been.
    assert plain(*batch(name)).keys() == model(*batch(name)).keys() | (
        {"bbox_ctrness"} if name == "fcos" else set()
    )


def test_scores_of_detections_are_what_was_ranked() -> None:
    model = build("fcos")
    loss = use_ranking_loss(model)
    seen: list[Tensor] = []
    loss.stages["head"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(*batch("fcos"))
    (found, _) = detections(model, "fcos")
    ranked = seen[0].view(2, -1)[0].sigmoid().sqrt()
    top = found["scores"][:5]
    assert ((ranked[None] - top[:, None]).abs().amin(1) < 1e-6).all()
    assert_close(top[0], ranked.max())
    outputs = {"cls_logits": torch.tensor([90.0, -90]), "bbox_ctrness": torch.tensor([-90.0, 90])}
    assert_close(fcos_scores(outputs), torch.tensor([-90.0, -90.0]))

    model = build("faster_rcnn")
    loss = use_ranking_loss(model)
    loss.stages["roi_heads"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.rpn._pre_nms_top_n["testing"] = model.rpn._pre_nms_top_n["training"]
    model.rpn._post_nms_top_n["testing"] = model.rpn._post_nms_top_n["training"]
    model(*batch("faster_rcnn", [[], []]))  # no objects among the regions
    (found, other) = detections(model, "faster_rcnn")
    best = torch.stack([found["scores"].max(), other["scores"].max()]).max()
    assert_close(seen[-1].sigmoid().max(), best, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["alrp", "ap", "rank_sort"])
@pytest.mark.parametrize("name", NAMES)
def test_a_detector_learns_two_images(name: str, kind: Any) -> None:
    model = build(name)
    use_ranking_loss(model, kind)
    losses = train(model, name, 30)
    assert losses[-1] < 0.8 * losses[0]


def test_an_epoch_sets_the_weight_and_the_state_is_kept_apart() -> None:
    model = build("retinanet")
    loss = use_ranking_loss(model)
    first = model(*batch("retinanet"))
    model(*batch("retinanet"))
    end_epoch(model)
    second = model(*batch("retinanet"))
    assert_close(second["bbox_regression"], first["classification"] + first["bbox_regression"] / 50)
    assert not any("balance" in key for key in model.state_dict())

    other = build("retinanet")
    resumed = use_ranking_loss(other)
    resumed.load_state_dict(loss.state_dict())
    assert torch.equal(other(*batch("retinanet"))["bbox_regression"], second["bbox_regression"])
    count = resumed.state_dict()["stages.head.balance.count"].clone()
    resumed.eval()  # a validation loss is not noted
    other(*batch("retinanet"))
    assert resumed.state_dict()["stages.head.balance.count"] == count == 2


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles_have_a_loss_of_their_own(name: str) -> None:
    model = build(name)
    loss = use_ranking_loss(model)
    model(*batch(name))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    wanted = model(*batch(name))
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        own = ranking_loss_of(other)
        assert own is not loss
        found = other(*batch(name))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        counts = [c for k, c in loss.state_dict().items() if k.endswith("count")]
        assert all(count == 2 for count in counts)
        if name == "faster_rcnn":
            assert other.roi_heads.forward.heads is other.roi_heads
    assert all(torch.equal(model(*batch(name))[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_old_loss_comes_back(name: str) -> None:
    def loss_of(model: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(0)  # torchvision samples
        found: dict[str, Tensor] = model(*batch(name))
        return found

    model = build(name)
    before, found = loss_of(model), detections(model, name)
    use_ranking_loss(model, "ap")
    use_ranking_loss(model, "alrp")  # takes the place of the other
    key = "loss_classifier" if name == "faster_rcnn" else "classification"
    assert not torch.equal(loss_of(model)[key], before[key])
    remove_ranking_loss(model)
    after = loss_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    for one, other in zip(found, detections(model, name), strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
    with pytest.raises(ValueError, match="no ranking loss"):
        remove_ranking_loss(model)


def test_the_threshold_is_lifted_unless_it_is_to_stay() -> None:
    model = build("fcos")
    use_ranking_loss(model, score_threshold=None)
    assert model.score_thresh == 0.2
    use_ranking_loss(model)
    assert model.score_thresh == 0
    use_ranking_loss(model, score_threshold=0.1)
    remove_ranking_loss(model)
    assert model.score_thresh == 0.2


# At graph breaks torch warns of what it does itself, with a plain model too.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_model_has_the_same_losses(name: str) -> None:
    model = build(name)
    use_ranking_loss(model)
    wanted = model(*batch(name))
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager")
    found = compiled(*batch(name))
    for key, value in wanted.items():
        assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    assert ranking_loss_of(compiled) is ranking_loss_of(model)


def in_one_process(rank: int, folder: str) -> None:
    """Write the averaged gradients of this process's image."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for name, kind in SHARED:
        model = build(name)
        loss = use_ranking_loss(model, kind, ranking="global")
        ddp = DistributedDataParallel(model)
        images, targets = batch(name)
        own = slice(rank, rank + 1)
        for _ in range(2):  # a parameter without a gradient would show at the second step
            model.zero_grad()
            losses = ddp(images[own], targets[own])
            torch.stack(list(losses.values())).sum().backward()
        end_epoch(ddp)
        found = [parameter.grad for parameter in model.parameters()]
        state = (losses, found, loss.state_dict())
        torch.save([copied([losses])[0], *state[1:]], f"{folder}/{name}-{kind}-{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_rank_as_one_does(tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn").Process
    workers = [start(target=in_one_process, args=(i, str(tmp_path))) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
        assert worker.exitcode == 0
    for name, kind in SHARED:
        model = build(name)
        use_ranking_loss(model, kind)
        model(*batch(name))
        wanted = model(*batch(name))
        of_one = gradients(model, wanted)
        end_epoch(model)
        scale = max(float(each.abs().max()) for each in of_one)
        for rank in range(2):
            losses, found, state = torch.load(tmp_path / f"{name}-{kind}-{rank}.pt")
            for key, value in wanted.items():
                if kind != "ap" or key == "classification":  # each adds the boxes that it has
                    assert_close(losses[key], value.detach(), rtol=1e-4, atol=1e-6)
            for one, other in zip(found, of_one, strict=True):
                assert_close(one, other, rtol=0, atol=1e-4 * scale)
            for key, value in ranking_loss_of(model).state_dict().items():
                assert_close(state[key], value, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("make", "start"),
    [("retinanet_resnet50_fpn", 0), ("fcos_resnet50_fpn", 0), ("fasterrcnn_resnet50_fpn", 1)],
)
def test_their_own_constructors(make: str, start: int) -> None:
    settings: dict[str, Any] = {"min_size": 64, "max_size": 64, "num_classes": 3 + start}
    if start:
        settings["rpn_post_nms_top_n_train"] = 20
    model = getattr(detection, make)(weights=None, weights_backbone=None, **settings)
    use_ranking_loss(model)
    images = [torch.rand(3, 64, 64)]
    target = {"boxes": torch.tensor([[8.0, 8, 56, 50]]), "labels": torch.tensor([1])}
    losses = model(images, [target])
    assert all(0 < float(each.detach()) < 100 for each in losses.values())
    part = model.rpn if start else model.head
    assert all(each.isfinite().all() for each in gradients(part, losses))


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(TypeError, match="must be RetinaNet, FCOS or FasterRCNN"):
        use_ranking_loss(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="kind must be one of"):
        use_ranking_loss(build("retinanet"), "focal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first_weight"):
        use_ranking_loss(build("faster_rcnn"), first_weight=-1)
    with pytest.raises(ValueError, match="score_threshold"):
        use_ranking_loss(build("fcos"), score_threshold=-0.1)
    with pytest.raises(ValueError, match="call use_ranking_loss first"):
        end_epoch(build("fcos"))
    model = build("faster_rcnn")
    model.roi_heads.mask_roi_pool = model.roi_heads.mask_head = nn.Identity()
    model.roi_heads.mask_predictor = nn.Identity()
    with pytest.raises(TypeError, match="masks"):
        use_ranking_loss(model)
    model = build("retinanet")
    use_ranking_loss(model)
    images, targets = batch("retinanet")
    targets[0]["labels"] += CLASSES
    with pytest.raises(ValueError, match="labels of objects must be 0 to 2"):
        model(images, targets)
    assert "'alrp'" in str(RankingLoss("alrp"))
