"""For tests of code on tensors: comparisons with stated tolerances, and Hypothesis strategies.

The comparisons need nothing else. The strategies need Hypothesis, which is loaded when the first
of them is called.

Examples:
    >>> import ferrum_array as fa
    >>> from ferrum_array.testing import assert_close
    >>> assert_close(fa.ones(3) / 3, [1 / 3, 1 / 3, 1 / 3])
"""

from __future__ import annotations

from ferrum_array.testing.comparison import (
    TOLERANCES,
    Tolerance,
    assert_close,
    assert_equal,
    tolerance,
)
from ferrum_array.testing.strategies import (
    broadcastable_pairs,
    broadcastable_shapes,
    devices,
    dtypes,
    elements,
    indices,
    shapes,
    tensors,
)

__all__ = [
    "TOLERANCES",
    "Tolerance",
    "assert_close",
    "assert_equal",
    "broadcastable_pairs",
    "broadcastable_shapes",
    "devices",
    "dtypes",
    "elements",
    "indices",
    "shapes",
    "tensors",
    "tolerance",
]
