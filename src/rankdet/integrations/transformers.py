"""Ranking losses for the DETR family of the library transformers.

    model = AutoModelForObjectDetection.from_pretrained(...)
    use_ranking_loss(model, "alrp")

From then on ``model(pixel_values=..., labels=...)`` returns a loss whose classification is a
ranking of all queries. It works with the `Trainer`, which asks for nothing else. The model keeps
its class, its configuration and its parameters, so that `save_pretrained` and `from_pretrained`
are what they were.

Everything else is left as the model's own loss has it: its Hungarian matching, the same loss for
each layer of the decoder, for the encoder's choice of queries and for the denoising queries, the
weight of the classification, and the box losses. In each of these places the queries of all images
and all their classes are in one ranking, and those that found no object are its negatives.

Why the box losses stay, L1 and GIoU, rather than being the localisation part of aLRP Loss: the
matching puts queries and objects together by the same L1 and GIoU, and pulls a query to and fro
if its loss wants something else. Boxes of DETR do not start from an anchor that overlaps the
object, where GIoU alone says little; and aLRP's localisation part, divided by ranks that are poor
at first, hardly moves boxes then. The localisation of each positive still counts in the ranking:
aLRP Loss treats a badly localised query that scores high as an error, and Rank & Sort Loss sorts
the positives by their IoU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from rankdet.integrations import Kind
from rankdet.losses import error_sharing
from rankdet.losses.alrp import alrp_loss
from rankdet.losses.ap import ap_loss
from rankdet.losses.boxes import iou_loss, localisation_errors
from rankdet.losses.rank_sort import rank_sort_loss
from rankdet.ops.checks import require_choice

# Of each criterion of transformers with a sigmoid for each class: the method that is its
# classification loss, and the key of what it returns.
_CLASSIFICATION = {
    "RTDetrLoss": ("loss_labels_vfl", "loss_vfl"),  # RT-DETR, RT-DETRv2
    "DFineLoss": ("loss_labels_vfl", "loss_vfl"),  # D-FINE
    "DeformableDetrImageLoss": ("loss_labels", "loss_ce"),  # Deformable, Conditional, DAB-DETR
}
# In squares of the image: boxes are given in shares of its sides, and small objects are 1e-5.
_EPS = 1e-12


@dataclass(frozen=True, eq=False)
class RankedQueries:
    """The loss function of a model with another classification loss; called as theirs is.

    Raises:
        TypeError: theirs is no function of transformers whose criterion we know.
    """

    theirs: Callable[..., Any]
    kind: Kind

    def __post_init__(self) -> None:
        require_choice("loss", self.kind, get_args(Kind))
        self._criterion()

    @error_sharing.not_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return loss, parts by name and auxiliary outputs, as theirs does."""
        name = self._criterion()
        method, key = _CLASSIFICATION[name]
        theirs: Any = self.theirs

        def classification(
            _criterion: Any,
            outputs: Mapping[str, Tensor],
            targets: Sequence[Mapping[str, Tensor]],
            indices: Sequence[tuple[Tensor, Tensor]],
            _num_boxes: float,
            **_: Any,
        ) -> dict[str, Tensor]:
            return {key: ranked_queries(outputs, targets, indices, self.kind)}

        base = theirs.__globals__[name]
        ours = type(name, (base,), {method: classification})
        # Their own function, in which one name means something else; theirs is left alone.
        function = FunctionType(
            theirs.__code__,
            {**theirs.__globals__, name: ours},
            theirs.__name__,
            theirs.__defaults__,
            theirs.__closure__,
        )
        function.__kwdefaults__ = theirs.__kwdefaults__
        return function(*args, **kwargs)

    def _criterion(self) -> str:
        """Return the name of the criterion that their function builds."""
        code = getattr(self.theirs, "__code__", None)
        known: tuple[str, ...] = getattr(code, "co_names", ())
        names = [name for name in known if name in _CLASSIFICATION]
        if len(names) != 1:
            raise TypeError(
                "the model must be RT-DETR, RT-DETRv2, D-FINE, Deformable, Conditional or DAB-DETR "
                f"for object detection with its own loss function, got {self.theirs!r}"
            )
        return names[0]


def use_ranking_loss(model: nn.Module, loss: Kind = "alrp") -> None:
    """Let a model of the DETR family rank its queries in training.

    Each process of a distributed training ranks its own batch. There is no state, and nothing to
    be done at the end of an epoch.

    Args:
        model: RT-DETR, RT-DETRv2, D-FINE, Deformable, Conditional or DAB-DETR of transformers, for
            object detection; its ``loss_function`` is set. If it has a ranking loss, that is
            replaced.
        loss: ``"alrp"``, ``"ap"`` or ``"rank_sort"``, see `ranked_queries`.

    Raises:
        TypeError: the model is of another kind, for example DETR, whose softmax has no score of
            each class by itself.
        ValueError: the loss is none of the known ones.
    """
    if not hasattr(model, "loss_function"):
        raise TypeError(f"the model must be one of transformers, got {type(model).__name__}")
    theirs: Any = model.loss_function
    if isinstance(theirs, RankedQueries):
        theirs = theirs.theirs
    changed: Any = model
    changed.loss_function = RankedQueries(theirs, loss)


def remove_ranking_loss(model: nn.Module) -> None:
    """Give a model its own loss back.

    Raises:
        ValueError: it has no ranking loss.
    """
    loss = getattr(model, "loss_function", None)
    if not isinstance(loss, RankedQueries):
        raise ValueError("this model has no ranking loss: call use_ranking_loss first")
    changed: Any = model
    changed.loss_function = loss.theirs


def ranked_queries(
    outputs: Mapping[str, Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    indices: Sequence[tuple[Tensor, Tensor]],
    kind: Kind = "alrp",
) -> Tensor:
    """Rank all queries and classes of a batch: aLRP, AP or Rank & Sort Loss of the logits.

    A query is a positive of the class of the object it is matched to, and a negative of all other
    classes; without an object it is a negative of all. ``"alrp"`` is the classification part of
    aLRP Loss with the localisation errors 1 - GIoU, ``"rank_sort"`` the sum of ranking and
    sorting, whose targets are the IoU.

    Args:
        outputs: "logits" [B, Q, C], floating, and "pred_boxes" [B, Q, 4], centre, width and height
            in shares of the image's sides.
        targets: "class_labels" [G] int64 and "boxes" [G, 4] of each image.
        indices: of each image, which queries are matched to which objects, [P_b] int64 each.
        kind: ``"alrp"``, ``"ap"`` or ``"rank_sort"``.

    Returns:
        0-d, float32 (float64 for float64 logits). Without objects 0, with gradients of 0.

    Raises:
        TypeError: logits are not floating point.
        ValueError: the kind is none of the known ones.

    Gradient: error sharing for the logits; none for the boxes.

    References:
        Oksuz, Cam, Akbas, Kalkan, "A Ranking-based, Balanced Loss Function Unifying Classification
        and Localisation in Object Detection", NeurIPS 2020. Chen et al., "Towards Accurate
        One-Stage Object Detection with AP-Loss", CVPR 2019. Oksuz, Cam, Akbas, Kalkan, "Rank &
        Sort Loss for Object Detection and Instance Segmentation", ICCV 2021.

    Example:
        >>> logits = torch.tensor([[[2.0], [1.0], [-3.0]]])
        >>> outputs = {"logits": logits, "pred_boxes": torch.full((1, 3, 4), 0.5)}
        >>> targets = [{"class_labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5)}]
        >>> indices = [(torch.tensor([1]), torch.tensor([0]))]
        >>> print(f"{ranked_queries(outputs, targets, indices).item():.2f}")
        0.50
    """
    require_choice("kind", kind, get_args(Kind))
    logits = outputs["logits"]
    _, queries, classes = logits.shape
    with torch.no_grad():
        pairs = [(i.to(logits.device), j.to(logits.device)) for i, j in indices]
        place = torch.cat([i + image * queries for image, (i, _) in enumerate(pairs)])
        labels = [t["class_labels"][j] for t, (_, j) in zip(targets, pairs, strict=True)]
        objects = torch.cat([t["boxes"][j] for t, (_, j) in zip(targets, pairs, strict=True)])
        # The losses want the positives in the order of the flat logits; denoising has its own.
        entries, order = (place * classes + torch.cat(labels)).sort()
        kinds = torch.zeros(logits.numel(), dtype=torch.int8, device=logits.device)
        kinds[entries] = 1
        boxes = outputs["pred_boxes"].flatten(0, 1)[place[order]]
        pred, target = _corners(boxes), _corners(objects[order])
    flat = logits.flatten()
    if kind == "ap":
        return ap_loss(flat, kinds)
    if kind == "alrp":
        errors = localisation_errors(pred, target, eps=_EPS)
        return alrp_loss(flat, kinds, errors).classification
    terms = rank_sort_loss(flat, kinds, 1 - iou_loss(pred, target, eps=_EPS))
    return terms.ranking + terms.sorting


def _corners(boxes: Tensor) -> Tensor:
    """Return xyxy, float32 at least, of centres and sides, [P, 4]."""
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    centre, sides = boxes.split(2, 1)
    return torch.cat([centre - sides / 2, centre + sides / 2], 1)
