"""What takes the place of torchvision's own methods where a detector has a ranking loss.

Each is called as the method is and returns what it returns. They are objects rather than
functions so that a model can be copied and pickled with them; none of them is a module, so the
model's parameters and buffers stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from rankdet.criteria.matching import Matches, match
from rankdet.ops.few import few_nonzero
from rankdet.structures import IGNORED, NEGATIVE, Assignment, Predictions, Priors, Targets

if TYPE_CHECKING:
    from rankdet.integrations import RankedLosses, RankingLoss

Outputs = Mapping[str, Tensor]
Target = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class DenseLosses:
    """For ``compute_loss`` of the heads of RetinaNet and FCOS."""

    loss: RankingLoss
    scores: Callable[[Outputs], Tensor]
    """From what the head says to the logits that are ranked, [B, A, C]."""
    coder: Any
    """torchvision's."""

    def __call__(
        self,
        targets: Sequence[Target],
        head_outputs: Outputs,
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses of a batch of B images.

        Args:
            targets: "boxes" [G, 4] and "labels" [G] of each image.
            head_outputs: "cls_logits" [B, A, C], "bbox_regression" [B, A, 4], of FCOS also
                "bbox_ctrness" [B, A, 1].
            anchors: of each image, [A, 4].
            matched_idxs: of each image, [A] int64, torchvision's matching: an object of the image,
                -1 background, -2 neither.
        """
        found = flat_matches(
            self.scores(head_outputs).flatten(0, 1),
            head_outputs["bbox_regression"].flatten(0, 1),
            anchors,
            matched_idxs,
            [target["boxes"] for target in targets],
            [target["labels"] for target in targets],
            self.coder,
        )
        losses: RankedLosses = self.loss(found.logits, found.matches.targets, *found.boxes())
        return {
            "classification": losses.classification,
            "bbox_regression": losses.localisation,
        }


@dataclass(frozen=True, eq=False)
class RPNLosses:
    """For ``compute_loss`` of the region proposal network; nothing is sampled."""

    loss: RankingLoss
    coder: Any
    """torchvision's."""
    weight: float

    def __call__(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: Sequence[Tensor],
        regression_targets: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of objectness and boxes.

        Args:
            objectness: [B * A, 1] logits.
            pred_bbox_deltas: [B * A, 4].
            labels: of each image, [A] floating: 1, 0, or -1 for ignored.
            regression_targets: of each image, [A, 4], the codes of the matched objects.
        """
        kinds = torch.cat(list(labels)).to(torch.int8)
        positive = few_nonzero(kinds == 1)
        codes = pred_bbox_deltas.index_select(0, positive)
        codes = codes.to(torch.promote_types(codes.dtype, torch.float32))
        wanted = torch.cat(list(regression_targets)).index_select(0, positive)
        # IoU and GIoU of two boxes of one anchor are the same in its own frame.
        frame = codes.new_tensor([[-0.5, -0.5, 0.5, 0.5]]).expand_as(codes)
        pred, target = (self.coder.decode_single(each, frame) for each in (codes, wanted))
        losses: RankedLosses = self.loss(objectness.flatten(), kinds, pred, target)
        return self.weight * losses.classification, self.weight * losses.localisation


@dataclass(frozen=True, eq=False)
class RegionLosses:
    """For ``forward`` of the heads of regions: their own in evaluation, a ranking in training."""

    loss: RankingLoss
    heads: Any
    """torchvision's `RoIHeads`, without masks and keypoints."""

    def __call__(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections and losses, as `RoIHeads` does: one of them is empty."""
        heads = self.heads
        if not heads.training:
            theirs: Callable[..., Any] = type(heads).forward
            found: tuple[list[dict[str, Tensor]], dict[str, Tensor]] = theirs(
                heads, features, proposals, image_shapes, targets
            )
            return found
        # Also raises what there is to say of the targets.
        regions, objects, labels, _ = heads.select_training_samples(proposals, targets)
        assert targets is not None
        pooled = heads.box_roi_pool(features, regions, image_shapes)
        class_logits, codes = heads.box_predictor(heads.box_head(pooled))
        of_class = torch.cat(labels)
        codes = codes.reshape(len(of_class), -1, 4)
        own = codes[torch.arange(len(of_class), device=codes.device), of_class]
        matches = flat_matches(
            softmax_logits(class_logits)[:, 1:],
            own,
            regions,
            [torch.where(k > 0, o, NEGATIVE) for k, o in zip(labels, objects, strict=True)],
            [target["boxes"] for target in targets],
            [target["labels"] - 1 for target in targets],  # class 0 is their background
            heads.box_coder,
        )
        losses: RankedLosses = self.loss(matches.logits, matches.matches.targets, *matches.boxes())
        return [], {
            "loss_classifier": losses.classification,
            "loss_box_reg": losses.localisation,
        }


def all_but_ignored(labels: Sequence[Tensor]) -> list[Tensor]:
    """Return the regions that take part, for ``subsample`` of the heads of regions: no sample."""
    return [torch.where(label >= 0)[0] for label in labels]


def retinanet_scores(outputs: Outputs) -> Tensor:
    """Return the logits that RetinaNet detects by, [B, A, C]."""
    return outputs["cls_logits"]


def fcos_scores(outputs: Outputs) -> Tensor:
    """Return the logit of σ(class) σ(centreness), [B, A, C], float32 at least.

    With a and c the two logits it is a + c - log(1 + e^a + e^c).

    >>> outputs = {"cls_logits": torch.tensor([0.3, -2.0]), "bbox_ctrness": torch.tensor([1.0])}
    >>> score = outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()
    >>> torch.allclose(fcos_scores(outputs).sigmoid(), score)
    True
    """
    a, c = outputs["cls_logits"], outputs["bbox_ctrness"]
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, c = a.to(dtype), c.to(dtype)
    return a + c - torch.logaddexp(functional.softplus(a), c)


def softmax_logits(logits: Tensor) -> Tensor:
    """Return the logit of each probability of a softmax, [R, K], float32 at least.

    It is x_k - log Σ_{j ≠ k} e^{x_j}, for all K at once. Where one probability is nearly 1 the
    sum over the others is not taken as a difference, which would leave nothing of it.

    >>> x = torch.tensor([[0.0, 1.0, 60.0]])
    >>> softmax_logits(x)
    tensor([[-60.0000, -59.0000,  58.6867]])
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = logits.argmax(1, keepdim=True)
    without_top = logits.scatter(1, top, -torch.inf)
    beside_top = without_top.logsumexp(1, keepdim=True)
    # All but the top one have at most half: 1 - p loses nothing.
    shares = without_top.softmax(1) * torch.sigmoid(beside_top - logits.gather(1, top))
    whole = logits.logsumexp(1, keepdim=True)
    others = torch.log1p(-shares) + whole
    return logits - others.scatter(1, top, beside_top)


@dataclass(frozen=True, eq=False)
class FlatMatches:
    """A batch as one long image: N places, P positives."""

    logits: Tensor
    """[N * C]"""
    matches: Matches

    def boxes(self) -> tuple[Tensor, Tensor]:
        """Return the predicted boxes of the positives and their objects, [P, 4] in pixels."""
        return self.matches.in_pixels()


def flat_matches(
    logits: Tensor,
    codes: Tensor,
    priors: Sequence[Tensor],
    matched: Sequence[Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    coder: Any,
) -> FlatMatches:
    """Put the images of a batch one after the other, so that all its logits are in one ranking.

    Args:
        logits: [N, C], image by image.
        codes: [N, 4], likewise.
        priors: of each image, [N_b, 4].
        matched: of each image, [N_b] int64: an object of this image, `NEGATIVE` or `IGNORED`,
            which are torchvision's numbers too.
        boxes: of each image, [G_b, 4].
        labels: of each image, [G_b] int64, 0 .. C-1.
        coder: torchvision's, of boxes to codes.

    Raises:
        TypeError: logits or codes are not floating point.
        ValueError: shapes do not fit, or a label is no class.
    """
    before = list(accumulate(map(len, boxes), initial=0))[:-1]
    moved = [torch.where(m >= 0, m + b, m) for m, b in zip(matched, before, strict=True)]
    where = torch.cat(list(priors))
    objects = Targets(
        boxes=torch.cat(list(boxes))[None].to(where.dtype),
        labels=torch.cat(list(labels))[None],
        crowd=torch.zeros(1, sum(map(len, boxes)), dtype=torch.bool, device=where.device),
        sizes=torch.zeros(1, 2, dtype=torch.int64, device=where.device),  # nobody asks for them
    )
    predictions = Predictions(
        logits=logits[None],
        codes=codes[None],
        priors=Priors(where, (len(where),), (1,)),
        coder=_Coder(coder),
    )
    return FlatMatches(logits.flatten(), match(_Given(torch.cat(moved)), predictions, objects))


@dataclass(frozen=True, eq=False)
class _Given:
    """An assigner that was asked before."""

    matched: Tensor
    """[N] int64"""

    def __call__(self, priors: Priors, targets: Targets) -> Assignment:  # noqa: ARG002 - as any
        return Assignment(self.matched[None])


@dataclass(frozen=True, eq=False)
class _Coder:
    """A coder of torchvision in our words."""

    theirs: Any

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        codes: Tensor = (
            self.theirs.encode_single(boxes, priors)
            if hasattr(self.theirs, "encode_single")
            else self.theirs.encode(priors, boxes)
        )
        return codes

    def decode(self, priors: Tensor, codes: Tensor) -> Tensor:
        boxes: Tensor = (
            self.theirs.decode_single(codes, priors)
            if hasattr(self.theirs, "decode_single")
            else self.theirs.decode(codes, priors)
        )
        return boxes

    def decode_relative(self, codes: Tensor) -> Tensor:
        frame = codes.new_tensor([-0.5, -0.5, 0.5, 0.5]).expand_as(codes)
        return self.decode(frame.reshape(-1, 4), codes.reshape(-1, 4)).view_as(codes)


assert (NEGATIVE, IGNORED) == (-1, -2)
