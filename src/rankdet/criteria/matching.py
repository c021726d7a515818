"""What every criterion does first: ask who is positive, and gather the positives once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, distributed

from rankdet.ops.boxes import iou
from rankdet.ops.checks import require_floating, require_shape
from rankdet.ops.few import few_nonzero
from rankdet.structures import IGNORED

if TYPE_CHECKING:
    from rankdet.structures import Assigner, Assignment, BoxCoder, Predictions, Targets


@runtime_checkable
class PredictiveAssigner(Protocol):
    """Decides who is positive by what is predicted at present; never differentiated.

    Wherever a criterion takes an assigner, it takes one of these too.
    """

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the assignment of a batch."""
        ...


@dataclass(frozen=True, eq=False)
class Matches:
    """The positives of a batch, P in all, ordered by image and then by prior."""

    targets: Tensor
    """[B * A * C] int8, image by image, prior by prior, class fastest: 1 at the positive of each
    pair (positive prior, class of its object), -1 at all classes of an ignored prior, else 0."""
    entries: Tensor
    """[P] int64, ascending: where ``targets`` is 1."""
    places: Tensor
    """[P] int64, ascending: the positive priors, as indices into B * A."""
    labels: Tensor
    """[P] int64, the class of the object each positive has to find."""
    codes: Tensor
    """[P, 4] the predicted codes of the positives, float32 at least; gradients flow."""
    priors: Tensor
    """[P, 4] the priors of the positives, xyxy in pixels."""
    boxes: Tensor
    """[P, 4] the object each positive has to find, xyxy in pixels."""
    coder: BoxCoder

    @property
    def count(self) -> int:
        """P, the number of positives."""
        return self.entries.shape[0]

    def counted(self) -> Tensor:
        """Return P as 0-d float32 tensor on the device of the predictions, for the log."""
        return torch.full((), float(self.count), device=self.entries.device)

    def wanted_codes(self) -> Tensor:
        """Return the codes of the objects, [P, 4] in the dtype of ``codes``."""
        return self.coder.encode(self.priors, self.boxes).to(self.codes.dtype)

    def in_pixels(self) -> tuple[Tensor, Tensor]:
        """Return the predicted boxes and the objects, [P, 4] each, xyxy in pixels.

        Gradient: ordinary derivative, of the predicted boxes for the codes.
        """
        return self.coder.decode(self.priors, self.codes), self.boxes

    @torch.no_grad()
    def ious(self) -> Tensor:
        """Return the IoU of each predicted box with its object, [P] in [0, 1].

        Gradient: none.
        """
        pred, target = self.in_pixels()
        return iou(pred, target.to(pred.dtype))

    def in_prior_frame(self) -> tuple[Tensor, Tensor]:
        """Return the predicted boxes and the objects, [P, 4] each, relative to the priors.

        Both go through the codes, and so through the coder's limits. IoU and GIoU of a pair are
        the same as in pixels; DIoU and CIoU are not where a prior is not square.

        Gradient: ordinary derivative, of the predicted boxes for the codes.
        """
        both = torch.stack([self.codes, self.wanted_codes()])
        # Decoded together: the time is in the number of operations, not in their size.
        pred, target = self.coder.decode_relative(both).unbind()
        return pred, target


def match(
    assigner: Assigner | PredictiveAssigner, predictions: Predictions, targets: Targets
) -> Matches:
    """Assign the priors of a batch and gather its positives.

    The host waits for the device once, for the number of positives (and where the assigner does).

    Args:
        assigner: decides who is positive, by the priors alone or by the predictions as well.
        predictions: of a batch.
        targets: of the same batch.

    Returns:
        The positives.

    Raises:
        TypeError: logits or codes are not floating point.
        ValueError: shapes do not fit each other, or a label is no class of the predictions
            (looked at on the CPU only, since elsewhere it would mean to wait for the device).
    """
    require_fitting(predictions, targets)
    images, total, classes = predictions.logits.shape
    objects = targets.boxes.shape[1]

    with torch.no_grad():
        if isinstance(assigner, PredictiveAssigner):
            matched = assigner.assign(predictions, targets).matched
        else:
            matched = assigner(predictions.priors, targets).matched
        require_shape("matched", matched, images, total)
        matched = matched.reshape(-1)
        index = few_nonzero(matched >= 0)
        image = index.div(total, rounding_mode="floor")
        prior = torch.sub(index, image, alpha=total)
        of_object = torch.add(matched.index_select(0, index), image, alpha=objects)
        labels = targets.labels.reshape(-1).index_select(0, of_object)
        require_classes(labels, classes)
        entries = torch.add(labels, index, alpha=classes)
        kinds = (matched == IGNORED).to(torch.int8).neg_()
        kinds = kinds[:, None].expand(-1, classes).reshape(-1).index_fill_(0, entries, 1)
        boxes = targets.boxes.reshape(-1, 4).index_select(0, of_object)
        priors = predictions.priors.boxes.index_select(0, prior)
    codes = predictions.codes.reshape(-1, 4).index_select(0, index)
    codes = codes.to(torch.promote_types(codes.dtype, torch.float32))
    return Matches(kinds, entries, index, labels, codes, priors, boxes, predictions.coder)


def require_fitting(predictions: Predictions, targets: Targets) -> None:
    """Raise `TypeError` or `ValueError` unless predictions and targets have fitting shapes."""
    logits, codes = predictions.logits, predictions.codes
    require_floating("logits", logits)
    require_floating("codes", codes)
    require_shape("logits", logits, "B", "A", "C")
    images, total, _ = logits.shape
    require_shape("codes", codes, images, total, 4)
    require_shape("prior boxes", predictions.priors.boxes, total, 4)
    require_shape("target boxes", targets.boxes, images, "G", 4)
    require_shape("target labels", targets.labels, images, targets.boxes.shape[1])


def require_classes(labels: Tensor, classes: int) -> None:
    """Raise `ValueError` unless all labels, [P], are classes; looks on the CPU only."""
    # Such a label would mark a class of the next prior, and nothing would look wrong.
    if not labels.is_cpu or torch.compiler.is_compiling() or not labels.numel():
        return
    lowest, highest = labels.aminmax()
    if highest >= classes or lowest < 0:
        wrong = highest if highest >= classes else lowest
        raise ValueError(
            f"labels of objects must be 0 to {classes - 1} for predictions of {classes} classes, "
            f"got {int(wrong)}"
        )


def require_branches(needs: frozenset[str], branches: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` unless the predictions have exactly the branches that are trained.

    One too many is refused too: nothing would train it, and its noise would go into the scores.
    """
    if branches.keys() == needs:
        return
    missing, surplus = needs - branches.keys(), branches.keys() - needs
    if missing:
        raise ValueError(
            f"this criterion needs the branch {_listed(missing)}, which the detector does not "
            f"have (it has {_listed(branches.keys()) or 'none'}): build the detector with it"
        )
    raise ValueError(
        f"the detector has the branch {_listed(surplus)}, which this criterion does not train: "
        f"build the detector without it, or take a criterion that needs it"
    )


def normaliser_of(count: float | Tensor, *, device: torch.device) -> float | Tensor:
    """Return the mean of a count over all processes, to divide a sum by: at least 1.

    With it each process's gradients, averaged over the processes, are those of one process that
    has the whole batch. Where there is no positive at all the sum stays as it is, so that a batch
    of images without objects still teaches what background looks like.

    Args:
        count: a number, or a 0-d tensor on ``device``, zero or more.
        device: where the processes exchange it.

    Returns:
        A number if a number was given and there is one process; else a 0-d tensor, detached.
    """
    alone = not (distributed.is_available() and distributed.is_initialized())
    if alone and not isinstance(count, Tensor):
        return max(float(count), 1.0)
    if isinstance(count, Tensor):
        mean = count.detach().clone()
    else:
        mean = torch.full((), float(count), device=device)
    if not alone:
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean.clamp(min=1)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
