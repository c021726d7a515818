"""The indices of few entries that are not zero, against `torch.nonzero`."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankdet.ops.few import few_nonzero


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.sampled_from([0, 0, 0, 1, -1]), max_size=70),
    offset=st.integers(0, 9),
    dtype=st.sampled_from([torch.int8, torch.uint8, torch.bool, torch.float32, torch.int64]),
    strided=st.booleans(),
    apart=st.sampled_from([0, 30]),
)
def test_the_same_as_nonzero(
    values: list[int], offset: int, dtype: torch.dtype, strided: bool, apart: int
) -> None:
    # With zeros between, few are left; without, many.
    values = [each for value in values for each in (value, *[0] * apart)]
    flags = torch.tensor([0] * offset + values).to(dtype)[offset:]
    if strided:
        flags = flags[::2]
    assert torch.equal(few_nonzero(flags), flags.nonzero().squeeze(1))
