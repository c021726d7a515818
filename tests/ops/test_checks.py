"""The checks that several losses share."""

from __future__ import annotations

import pytest
import torch

from rankdet.losses import dr_loss, focal_loss
from rankdet.ops.checks import require_kinds


@pytest.mark.parametrize("bad", [2.0, -2.0, 0.5, torch.nan])
def test_a_target_that_is_none_of_the_three_is_named(bad: float) -> None:
    targets = torch.tensor([[1.0, 0.0], [-1.0, bad]])
    with pytest.raises(ValueError, match=r"targets must be 1 .* at index \[1, 1\]"):
        require_kinds("targets", targets)
    with pytest.raises(ValueError, match="targets must be 1"):
        focal_loss(torch.zeros(2, 2), targets, normaliser=1.0)
    with pytest.raises(ValueError, match="targets must be 1"):
        dr_loss(torch.zeros(2, 2), targets)


def test_where_values_are_not_looked_at_the_loss_is_nan() -> None:
    targets = torch.tensor([1, 2, 0])
    for loss in (lambda x, t: focal_loss(x, t, normaliser=1.0), dr_loss):
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        assert compiled(torch.zeros(3), targets).isnan()
        assert compiled(torch.zeros(3), targets.clamp(max=1)).isfinite()
