"""The configurations of the documentation, small: built, trained by mmengine's Runner, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

pytest.importorskip("mmcv_stand_in", reason="the extra mmdet is not installed")

import tiny_mmdet as tiny
from mmengine.config import Config
from mmengine.runner import Runner

from rankdet.integrations.mmdet import RankDetMixin

pytestmark = tiny.QUIET
EVERY_CONFIG = pytest.mark.parametrize("name", tiny.NAMES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmdet") / "data"
    tiny.write_data(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    # mmengine keeps objects of its own in checkpoints, which torch.load refuses otherwise.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@EVERY_CONFIG
def test_a_configuration_is_three_statements_away_from_mmdetections_own(name: str) -> None:
    ours = Config.fromfile(tiny.config_path(name))
    text = tiny.config_path(name).read_text()
    base = text.split('_base_ = "')[1].split('"')[0]
    theirs = Config.fromstring(f"_base_ = '{base}'", ".py")
    assert {key for key in ours if ours[key] != theirs.get(key)} == {
        "custom_imports",
        "custom_hooks",
        "model",
    } | ({"everything"} if name == "faster_rcnn" else set())
    assert set(changes(theirs.model.to_dict(), ours.model.to_dict())) == (
        {
            "rpn_head.type",
            "rpn_head.loss_cls",
            "roi_head.bbox_head.type",
            "roi_head.bbox_head.loss_cls",
            "train_cfg.rpn.sampler",
            "train_cfg.rcnn.sampler",
            "test_cfg.rcnn.score_thr",
        }
        if name == "faster_rcnn"
        else {"bbox_head.type", "bbox_head.loss_cls", "test_cfg.score_thr"}
    )


def changes(before: dict[str, Any], after: dict[str, Any], path: str = "") -> list[str]:
    """Return the dotted paths of what differs; a loss or sampler as one."""
    found = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and key not in ("loss_cls", "sampler"):
            found += changes(old, new, f"{path}{key}.")
        else:
            found.append(f"{path}{key}")
    return found


def test_the_page_shows_the_file() -> None:
    page = (tiny.CONFIGS.parents[1] / "how-to" / "use-in-mmdetection.md").read_text()
    _, _, code = tiny.config_path("retinanet").read_text().partition('"""\n\n')
    assert f"```python\n{code}```" in page


@EVERY_CONFIG
def test_mixed_precision_gives_the_loss_of_single_precision(name: str) -> None:
    detector = tiny.build(tiny.tiny_model(name)).train()
    wanted, _ = detector.parse_losses(tiny.losses_of(detector, tiny.batch()))
    # What the losses hand back. PyTorch's own backward pass of a bfloat16 convolution on the CPU
    # leaves now and then a NaN in the weights of a 1 x 1 map, behind these.
    handed: list[Tensor] = []

    def watch(_module: Any, _given: Any, outputs: Any) -> None:
        for each in tree_leaves(outputs):
            if isinstance(each, Tensor) and each.requires_grad:
                each.register_hook(handed.append)

    heads: list[Any] = [module for module in detector.modules() if isinstance(module, RankDetMixin)]
    for head in heads:
        head.register_forward_hook(watch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = tiny.losses_of(detector, tiny.batch())
    total, _ = detector.parse_losses(losses)
    assert total.dtype == torch.float32
    assert_close(total, wanted, rtol=0.05, atol=0)
    assert total != wanted
    total.backward()
    assert len(handed) >= 2 * len(heads) >= 2
    assert all(gradient.isfinite().all() for gradient in handed)
    assert any(gradient.any() for gradient in handed)


@EVERY_CONFIG
def test_every_parameter_learns_and_the_detector_detects(name: str) -> None:
    detector = tiny.build(tiny.tiny_model(name)).train()
    losses = tiny.losses_of(detector, tiny.batch())
    total, log = detector.parse_losses(losses)
    prefixes = ("", "rpn_") if name == "faster_rcnn" else ("",)
    assert_close(total, sum(losses[f"{prefix}loss_rank"] for prefix in prefixes))
    for prefix in prefixes:
        weight = 0.2 if prefix else 1.0
        part = {key: log[f"{prefix}rank_{key}"] for key in ("classification", "localisation")}
        balanced = weight * (part["classification"] + 50 * part["localisation"])
        assert_close(losses[f"{prefix}loss_rank"], balanced)
        assert 0 < part["classification"] < 1
        assert log[f"{prefix}rank_positives"] >= 3
    total.backward()
    trained = {key: value for key, value in detector.named_parameters() if value.requires_grad}
    assert {key for key, value in trained.items() if value.grad is None} == set()
    still = {key for key, value in trained.items() if not value.grad.any()}
    assert all(".scales." in key for key in still), still  # of levels without positives

    detector.eval()
    with torch.no_grad():
        first, second = detector.test_step(tiny.batch())
    for sample in (first, second):
        found = sample.pred_instances
        assert len(found.bboxes) > 0
        assert found.scores.isfinite().all()
        assert (found.scores.diff() <= 0).all()
        assert 0 <= found.labels.min() <= found.labels.max() < len(tiny.CLASSES)


@EVERY_CONFIG
def test_a_batch_without_objects_teaches_nothing_and_spoils_nothing(name: str) -> None:
    detector = tiny.build(tiny.tiny_model(name)).train()
    losses = tiny.losses_of(detector, tiny.batch(empty=True))
    total, _ = detector.parse_losses(losses)
    assert total == 0
    total.backward()
    for parameter in detector.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert not parameter.grad.any()
    for head in tiny.ranking_heads(detector):
        assert head.loss_cls.criterion.balance.count == 0


def train(config: Config) -> Any:
    """Return the model that a run leaves."""
    config.experiment_name = Path(config.work_dir).name + str(config.train_cfg.max_epochs)
    runner = Runner.from_cfg(config)
    runner.train()
    return runner.model


def still_data(config: Config) -> Config:
    """Return the configuration without chance: no shuffling, no flips."""
    config.train_dataloader.sampler.shuffle = False
    for step in config.train_dataloader.dataset.pipeline:
        if step.type == "RandomFlip":
            step.prob = 0.0
    return config


@EVERY_CONFIG
def test_a_run_that_is_resumed_ends_as_one_that_was_not_cut(
    name: str, data: Path, tmp_path: Path
) -> None:
    whole = still_data(tiny.tiny_training(name, data, tmp_path / "whole"))
    whole.train_cfg.max_epochs = 2
    wanted = train(whole).state_dict()

    cut = still_data(tiny.tiny_training(name, data, tmp_path / "cut"))
    model = train(cut)
    file = torch.load(tmp_path / "cut" / "epoch_1.pth", map_location="cpu", weights_only=False)
    balances = [key for key in wanted if key.endswith("balance.weight")]
    assert len(balances) == (2 if name == "faster_rcnn" else 1)
    for key in balances:
        # Written after the epoch's end was noted: a weight for the next one, and nothing left over.
        assert file["state_dict"][key] == model.state_dict()[key] != 50
        assert file["state_dict"][key.replace("weight", "count")] == 0

    again = still_data(tiny.tiny_training(name, data, tmp_path / "cut"))
    again.train_cfg.max_epochs = 2
    again.resume = True
    found = train(again).state_dict()
    assert found.keys() == wanted.keys()
    for key in balances:
        assert found[key] != file["state_dict"][key]
    for key, value in wanted.items():
        assert_close(found[key], value, rtol=1e-5, atol=1e-7)


def test_the_weight_is_the_mean_of_what_the_epoch_saw(data: Path, tmp_path: Path) -> None:
    config = still_data(tiny.tiny_training("retinanet", data, tmp_path / "run"))
    seen: list[Tensor] = []
    runner = Runner.from_cfg(config)
    head = runner.model.bbox_head

    def note(_module: Any, _inputs: Any, terms: Any) -> None:
        parts = terms.parts
        seen.append(torch.stack([parts["classification"], parts["localisation"]]).double())

    head.loss_cls.criterion.register_forward_hook(note)
    runner.train()
    assert len(seen) == 2
    classification, localisation = torch.stack(seen).mean(0)
    assert_close(
        head.loss_cls.criterion.balance.weight, (classification + localisation) / localisation
    )
