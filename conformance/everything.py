"""A pytest plugin for the array API suite: all of its tests run, on devices without some dtype as well.

The suite leaves out a few of its tests for every library ("flaky"). With this plugin nothing is
left out, so that the count of skipped tests must be zero. Marks that are added during collection,
for a missing extension or from a list of skips, stay: those tests show up as skipped.

A few functions turn real numbers into complex ones. On a device that has float64 but no complex128
there is no dtype for their results, which the suite does not foresee. There, and only for such
input, the test is that the call is refused by an error that names the missing dtype.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest

#: Tests of functions whose result is complex for real input, by module.
COMPLEX_RESULT = {
    "test_fft": {"test_rfft", "test_rfftn", "test_ihfft"},
    "test_linalg": {"test_eig", "test_eigvals"},
}


def refused_without_complex128(test: Callable[..., None]) -> Callable[..., None]:
    """*test*, which for float64 input expects a TypeError that names complex128."""

    @functools.wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        x = kwargs["x"] if "x" in kwargs else args[0]
        if str(x.dtype) != "float64":
            test(*args, **kwargs)
            return
        with pytest.raises(TypeError, match="has no complex128"):
            test(*args, **kwargs)

    return call


@pytest.hookimpl(tryfirst=True)  # before the suite's own hook adds the marks that must stay
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Remove the skip marks that tests were written with; expect refusals where a dtype is missing."""
    absent = os.environ.get("ARRAY_API_TESTS_SKIP_DTYPES", "").split(",")
    for item in items:
        for node in item.listchain():
            node.own_markers[:] = [mark for mark in node.own_markers if mark.name != "skip"]
        if not isinstance(item, pytest.Function) or "complex128" not in absent:
            continue
        if item.originalname in COMPLEX_RESULT.get(item.path.stem, ()):
            # what Hypothesis calls for each example
            handle = item.obj.hypothesis
            handle.inner_test = refused_without_complex128(handle.inner_test)
