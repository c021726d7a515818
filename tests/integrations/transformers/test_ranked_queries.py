"""Models of transformers with a ranking loss: their matching, our classification."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_detr import CLASSES, NAMES, batch, build, outputs_of
from torch import Tensor, nn
from torch.testing import assert_close

from rankdet.criteria import (
    ALRPCriterion,
    APClassification,
    DenseCriterion,
    IoUBox,
    RankSortCriterion,
    ScalarBalance,
)
from rankdet.integrations.transformers import (
    RankedQueries,
    ranked_queries,
    remove_ranking_loss,
    use_ranking_loss,
)
from rankdet.structures import NEGATIVE, Assignment, Predictions, Priors, Targets

hf: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install './rankdet[transformers]'"
)
pytest.importorskip("scipy", reason="the Hungarian matching of transformers needs scipy")

KINDS: list[Any] = ["alrp", "ap", "rank_sort"]
Labels = list[dict[str, Tensor]]


@dataclass
class Given:
    """An assigner that says what it was told."""

    matched: Tensor

    def __call__(self, priors: Priors, targets: Targets) -> Assignment:  # noqa: ARG002 - as any
        return Assignment(self.matched)


def criterion_of(kind: str, matched: Tensor) -> nn.Module:
    """Return our criterion whose boxes cost nothing."""

    given = Given(matched)
    if kind == "alrp":
        return ALRPCriterion(given, ScalarBalance(0.0), frame="pixels", eps=1e-12)
    if kind == "ap":
        return DenseCriterion(given, APClassification(), IoUBox(), box_weight=0.0)
    return RankSortCriterion(given, eps=1e-12)


class Corners:
    """A coder of centres and sides, which need no prior."""

    def encode(self, _priors: Tensor, boxes: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, _priors: Tensor, codes: Tensor) -> Tensor:
        return self.decode_relative(codes)

    def decode_relative(self, codes: Tensor) -> Tensor:
        centre, sides = codes.split(2, -1)
        return torch.cat([centre - sides / 2, centre + sides / 2], -1)


def classification(
    kind: str, logits: Tensor, boxes: Tensor, labels: Labels, indices: Any
) -> tuple[Tensor, Tensor]:
    """Return the value of our criterion for these matches, and its gradient for the logits."""
    images, queries, _ = logits.shape
    logits = logits.detach().requires_grad_()
    matched = torch.full((images, queries), NEGATIVE)
    for row, (i, j) in zip(matched, indices, strict=True):
        row[i] = j
    coder = Corners()
    targets = Targets.stack(
        [coder.decode_relative(each["boxes"]) for each in labels],
        [each["class_labels"] for each in labels],
        [torch.zeros(len(each["boxes"]), dtype=torch.bool) for each in labels],
        [(1, 1)] * images,
    )
    priors = Priors(torch.zeros(queries, 4), (queries,), (1,))
    terms = criterion_of(kind, matched)(Predictions(logits, boxes.detach(), priors, coder), targets)
    (gradient,) = torch.autograd.grad(terms.total, logits)
    return terms.parts["classification"], gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_last_layer_is_our_criterion_on_their_matching(name: str, kind: Any) -> None:
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
    from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

    model = build(name)
    use_ranking_loss(model, kind)
    found = outputs_of(model)
    _, labels = batch()
    logits, boxes = found.logits, found.pred_boxes
    if (split := getattr(found, "denoising_meta_values", None)) is not None:
        _, logits = logits.split(split["dn_num_split"], 1)
        _, boxes = boxes.split(split["dn_num_split"], 1)
        if name == "d_fine":  # whose loss looks at boxes within the image only
            boxes = boxes.clamp(0, 1)
    config = model.config
    if name == "deformable_detr":
        costs = config.class_cost, config.bbox_cost, config.giou_cost
        matcher: Any = DeformableDetrHungarianMatcher(*costs)
    else:
        matcher = RTDetrHungarianMatcher(config)
    indices = matcher({"logits": logits, "pred_boxes": boxes}, labels)
    key = "loss_ce" if name == "deformable_detr" else "loss_vfl"
    value, gradient = classification(kind, logits, boxes, labels, indices)
    assert value > 0.1
    assert_close(found.loss_dict[key], value, rtol=1e-5, atol=1e-7)
    (ours,) = torch.autograd.grad(found.loss_dict[key], found.logits, retain_graph=True)
    assert_close(ours[:, -logits.shape[1] :], gradient, rtol=1e-4, atol=1e-7)
    assert not ours[:, : -logits.shape[1]].any()
    if split is None:
        assert name == "deformable_detr"
        return
    # The denoising queries have their objects given, in as many groups as there is room for.
    groups = split["dn_num_group"]
    given = [
        (i, torch.arange(len(each["boxes"])).repeat(groups))
        for i, each in zip(split["dn_positive_idx"], labels, strict=True)
    ]
    for layer in range(config.decoder_layers):
        dn, _ = found.intermediate_logits[:, layer].split(split["dn_num_split"], 1)
        dn_boxes, _ = found.intermediate_reference_points[:, layer].split(split["dn_num_split"], 1)
        value, _ = classification(kind, dn, dn_boxes, labels, given)
        assert_close(found.loss_dict[f"{key}_dn_{layer}"], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_everything_else_is_as_their_own_loss_has_it(name: str) -> None:
    model = build(name)
    theirs = outputs_of(model)
    use_ranking_loss(model)
    ours = outputs_of(model)
    assert ours.loss_dict.keys() == theirs.loss_dict.keys()
    changed = {k for k in ours.loss_dict if not torch.equal(ours.loss_dict[k], theirs.loss_dict[k])}
    assert changed == {k for k in ours.loss_dict if "loss_vfl" in k or "loss_ce" in k}
    assert len(changed) >= 2  # one for each layer at least
    assert torch.equal(ours.logits, theirs.logits)
    # Their weights of the parts are kept, also that of the classification.
    model.config.weight_loss_vfl = 3.0
    if "vfl" in min(changed):
        again = outputs_of(model)
        assert_close(again.loss_dict["loss_vfl"], 3 * ours.loss_dict["loss_vfl"])
    remove_ranking_loss(model)
    model.config.weight_loss_vfl = 1.0
    assert torch.equal(outputs_of(model).loss, theirs.loss)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_trains(name: str, kind: Any) -> None:
    model = build(name)
    use_ranking_loss(model, kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        found = outputs_of(model)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        ranked = [v for k, v in found.loss_dict.items() if "vfl" in k or "loss_ce" in k]
        losses.append(float(torch.stack(ranked).sum().detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_objects_ranks_nothing(name: str) -> None:
    model = build(name)
    use_ranking_loss(model)
    found = outputs_of(model, objects=False)
    key = "loss_ce" if name == "deformable_detr" else "loss_vfl"
    assert float(found.loss_dict[key].detach()) == 0
    found.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_weights_are_saved_and_loaded_as_ever(tmp_path: Path) -> None:
    model = build("rt_detr")
    names = list(model.state_dict())
    use_ranking_loss(model)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    plain = hf.RTDetrForObjectDetection.from_pretrained(tmp_path).train()
    assert not isinstance(plain.loss_function, RankedQueries)
    wanted = outputs_of(model).loss
    use_ranking_loss(plain)
    assert_close(outputs_of(plain).loss, wanted)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(outputs_of(other).loss, wanted)
    model.eval()
    with torch.no_grad():
        assert model(pixel_values=batch()[0]).loss is None


def test_a_second_loss_takes_the_place_of_the_first() -> None:
    model = build("deformable_detr")
    theirs = model.loss_function
    use_ranking_loss(model, "ap")
    use_ranking_loss(model, "alrp")
    assert model.loss_function.kind == "alrp"
    assert model.loss_function.theirs is theirs
    remove_ranking_loss(model)
    assert model.loss_function is theirs
    with pytest.raises(ValueError, match="no ranking loss"):
        remove_ranking_loss(model)


def test_what_cannot_be_ranked_is_refused() -> None:
    config = hf.DetrConfig(
        backbone_config=hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, layer_type="basic"
        ),
        use_timm_backbone=False,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        num_labels=CLASSES,
    )
    with pytest.raises(TypeError, match="must be RT-DETR"):
        use_ranking_loss(hf.DetrForObjectDetection(config))
    with pytest.raises(TypeError, match="one of transformers, got Linear"):
        use_ranking_loss(nn.Linear(2, 2))
    model: Any = build("rt_detr")
    with pytest.raises(ValueError, match="loss must be one of"):
        use_ranking_loss(model, "focal")  # type: ignore[arg-type]


def test_half_precision_is_ranked_in_full() -> None:
    outputs = {"logits": torch.randn(2, 5, 3).bfloat16(), "pred_boxes": torch.rand(2, 5, 4)}
    _, labels = batch()
    indices = [(torch.tensor([3, 1]), torch.tensor([0, 1])), (torch.tensor([2]), torch.tensor([0]))]
    for kind in KINDS:
        value = ranked_queries(outputs, labels, indices, kind)
        assert value.dtype == torch.float32
        wide = {key: each.float() for key, each in outputs.items()}
        assert_close(value, ranked_queries(wide, labels, indices, kind))
        # The order in which matches are told does not matter.
        turned = [(i.flip(0), j.flip(0)) for i, j in indices]
        assert torch.equal(value, ranked_queries(outputs, labels, turned, kind))
