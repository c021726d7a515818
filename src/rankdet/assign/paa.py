"""Probabilistic anchor assignment: what a detector finds easy to learn of an object is positive.

Kim, Lee, "Probabilistic Anchor Assignment with IoU Prediction for Object Detection", ECCV 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.ops.checks import require_positive
from rankdet.ops.few import few_nonzero
from rankdet.structures import NEGATIVE, Assigner, Assignment, Predictions, Targets

# Of the mixture, as in scikit-learn, which the authors use.
_STEPS = 100
_TOLERANCE = 1e-3
_LEAST_VARIANCE = 1e-6


class Cost(Protocol):
    """How hard it is for a detector, as it is now, to find an object from a prior."""

    def __call__(self, logits: Tensor, labels: Tensor, predicted: Tensor, boxes: Tensor) -> Tensor:
        """Return the costs, [P]: the lower, the better the prior.

        Args:
            logits: [P, C] all class logits of each prior.
            labels: [P] int64, the class of the object.
            predicted: [P, 4] the predicted box, xyxy in pixels.
            boxes: [P, 4] the object.
        """
        ...


@dataclass(frozen=True)
class PAAAssigner:
    """The positives of an object are the lower of the two heaps that its costs fall into.

    Needs the predictions, so criteria call `assign`, once for each step:

    1. ``first`` tells which priors come into question for which object.
    2. Of these, of each level the ``top_k`` of the lowest costs are candidates.
    3. Two normal distributions are fitted to the costs of an object's candidates, see
       `fit_two_normals`.
    4. Of the candidates that belong rather to the lower one, the one at which the density of the
       mixture is largest marks the bar: all candidates whose cost is not above its cost are
       positive, the others negative. If none belongs there, all candidates are positive, and so
       is a single one.

    Equal costs are treated alike: in step 4 all or none are positive; in step 2 those of lower
    index come first. An object with a candidate whose cost is not finite keeps all its
    candidates, so that the loss shows what went wrong. What ``first`` ignores stays ignored.

    Args:
        cost: for example `rankdet.criteria.FocalGIoUCost`.
        first: the assigner of step 1, by default IoU of at least 0.1, and the best prior of each
            object.
        top_k: candidates per level and object, 1 or more.

    Raises:
        ValueError: top_k is below 1.

    References:
        Kim, Lee, ECCV 2020 (see the top of this file), algorithm 1 and figure 3 (c).
    """

    cost: Cost
    first: Assigner = field(default_factory=lambda: MaxIoUAssigner(positive=0.1, negative=0.1))
    top_k: int = 9

    def __post_init__(self) -> None:
        require_positive("top_k", self.top_k)

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the assignment of a batch; see `structures` for the shapes.

        Raises:
            TypeError: boxes of priors or targets are not floating point.
            ValueError: the shapes of priors or targets do not fit together.

        Gradient: none.
        """
        priors = predictions.priors
        matched = self.first(priors, targets).matched
        images, total = matched.shape
        matched = matched.flatten()
        index = few_nonzero(matched >= 0)  # [P] into B * A
        image = index.div(max(total, 1), rounding_mode="floor")
        prior = index - image * total
        objects = matched[index] + image * targets.boxes.shape[1]  # [P] into B * G

        codes = predictions.codes.reshape(-1, 4).index_select(0, index)
        costs = self.cost(
            predictions.logits.flatten(0, 1).index_select(0, index),
            targets.labels.flatten()[objects],
            predictions.coder.decode(priors.boxes[prior], codes),
            targets.boxes.reshape(-1, 4)[objects],
        )
        counts = torch.tensor(priors.counts, device=index.device)
        level = torch.arange(len(counts), device=index.device)
        level = level.repeat_interleave(counts, output_size=total)[prior]
        positive = cheap_ones(costs, objects, level, top_k=self.top_k)
        matched = matched.index_fill(0, index[~positive], NEGATIVE)
        return Assignment(matched.view(images, total))


def cheap_ones(costs: Tensor, objects: Tensor, levels: Tensor, *, top_k: int) -> Tensor:
    """Return which priors are positive for the object they come into question for.

    Steps 2 to 4 of `PAAAssigner`.

    Args:
        costs: [P], floating.
        objects: [P] int64, 0 and more: the object of each.
        levels: [P] int64, 0 and more: the feature level of each.
        top_k: candidates per level and object, 1 or more.

    Returns:
        [P] bool.

    Gradient: none.

    Example:
        >>> costs = torch.tensor([0.3, 4.0, 0.2, 5.0, 0.25, 4.5])
        >>> nothing = torch.zeros(6, dtype=torch.int64)
        >>> cheap_ones(costs, nothing, nothing, top_k=9)
        tensor([False, False,  True, False,  True, False])
    """
    positive = torch.zeros_like(costs, dtype=torch.bool)
    if not len(costs):
        return positive
    # What is not a number is chosen first: it must not vanish.
    costs = costs.detach().double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    places = torch.arange(len(costs), device=costs.device)
    groups = objects * (levels.amax() + 1) + levels
    order = _by(groups, costs)
    chosen = order[places - _start(groups[order]) < top_k]  # [Q]
    chosen = chosen[_by(objects[chosen], costs[chosen])]
    start = _start(objects[chosen])
    column = places[: len(chosen)] - start
    row = (column == 0).cumsum(0) - 1
    shape = (int(row[-1]) + 1, int(column.amax()) + 1)
    real = torch.zeros(shape, dtype=torch.bool, device=costs.device)
    real[row, column] = True
    table = torch.zeros(shape, dtype=costs.dtype, device=costs.device)
    table[row, column] = costs[chosen]
    positive[chosen] = _lower_heap(table, real)[row, column]
    return positive


class TwoNormals(NamedTuple):
    """Mixtures of two normal distributions, the lower one first: [N, 2] each, float64."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def log_densities(self, values: Tensor) -> Tensor:
        """Return the logarithm of weight times density of each part at [N, K]: [N, 2, K]."""
        weights, means, variances = (part[..., None] for part in self)
        squares = (values[:, None] - means).square() / variances
        return weights.log() - (math.log(2 * math.pi) + variances.log() + squares) / 2


def fit_two_normals(values: Tensor, real: Tensor) -> TwoNormals:
    """Fit a mixture of two normal distributions to each row, by expectation-maximisation.

    It starts from the smallest and the largest value as means, variances of 1 and equal weights,
    and ends when a step changes the mean log-likelihood by less than 1e-3, after 100 steps at
    most. 1e-6 is added to each variance. These are the settings of scikit-learn's
    `GaussianMixture` in the authors' code, with which it agrees; here all rows go together, each
    until it has converged.

    Args:
        values: [N, K], floating.
        real: [N, K] bool: which of them count; at least one in each row.

    Returns:
        N mixtures.

    Gradient: none.
    """
    values = values.detach().double()
    low = torch.where(real, values, torch.inf).amin(1)
    high = torch.where(real, values, -torch.inf).amax(1)
    means = torch.stack([low, high], 1)
    fitted = TwoNormals(torch.full_like(means, 0.5), means, torch.ones_like(means))
    likelihood = torch.full_like(low, -torch.inf)
    active = torch.arange(len(values), device=values.device)
    for _ in range(_STEPS):
        current = TwoNormals(*(part[active] for part in fitted))
        improved, reached = _improved(current, values[active], real[active])
        for part, better in zip(fitted, improved, strict=True):
            part[active] = better
        # False for NaN: there is nothing to wait for.
        goes_on = (reached - likelihood[active]).abs() >= _TOLERANCE
        likelihood[active] = reached
        active = active[goes_on]
        if not len(active):
            break
    return fitted


def _improved(mixture: TwoNormals, values: Tensor, real: Tensor) -> tuple[TwoNormals, Tensor]:
    """Return the mixtures after one step, and the mean log-likelihood before it, [N]."""
    parts = mixture.log_densities(values)  # [N, 2, K]
    density = parts.logsumexp(1)
    shares = (parts - density[:, None]).exp() * real[:, None]
    count = shares.sum(-1) + 10 * torch.finfo(values.dtype).eps  # [N, 2]
    means = (shares * values[:, None]).sum(-1) / count
    squares = (values[:, None] - means[..., None]).square()
    variances = (shares * squares).sum(-1) / count + _LEAST_VARIANCE
    weights = count / count.sum(1, keepdim=True)
    likelihood = (density * real).sum(1) / real.sum(1)
    return TwoNormals(weights, means, variances), likelihood


def _lower_heap(costs: Tensor, real: Tensor) -> Tensor:
    """Return which entries of each row, [N, K], are positive."""
    sound = real.sum(1) > 1
    sound &= torch.where(real, costs, 0).isfinite().all(1)
    costs = torch.where(real & sound[:, None], costs, 0)
    parts = fit_two_normals(costs, real).log_densities(costs)
    lower = real & (parts[:, 0] >= parts[:, 1])
    density = torch.where(lower, parts.logsumexp(1), -torch.inf)
    marks = lower & (density == density.amax(1, keepdim=True))
    bar = torch.where(marks, costs, torch.inf).amin(1, keepdim=True)  # infinite without a mark
    return real & ((costs <= bar) | ~sound[:, None])


def _by(groups: Tensor, values: Tensor) -> Tensor:
    """Return the order by group, within a group by value, then as they stand."""
    by_value = values.argsort(stable=True)
    return by_value[groups[by_value].argsort(stable=True)]


def _start(groups: Tensor) -> Tensor:
    """Return where the group of each entry of an ascending tensor starts."""
    return torch.searchsorted(groups, groups)
