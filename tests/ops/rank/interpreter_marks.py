"""What the tests in Triton's interpreter are all marked with."""

from __future__ import annotations

import pytest

# The interpreter computes with numpy, which warns of NaN and overflow in entries that are masked.
MARKS = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
    # Triton 3.6 makes numbers of arrays with one entry, which numpy 2.3 still allows.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]
