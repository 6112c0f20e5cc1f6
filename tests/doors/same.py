"""A library's function on tensors and on NumPy arrays: the same numbers, in tensors, where they came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import ferrum_array as fa
from ferrum_array.testing import assert_close


def numbers(*shape: int, seed: int = 0) -> Any:
    """Standard normal numbers in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def same(function: Callable[..., Any], device: fa.Device, *arrays: Any, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    """Check that *function* gives tensors on *device* for tensors, with the numbers that it gives for arrays.

    Raises:
        AssertionError: for a result that is no tensor, lies elsewhere or differs.
    """
    with fa.default_device(device):  # where libraries put what they make without being asked
        found = function(*(fa.asarray(array) for array in arrays))
    expected = function(*arrays)
    if not isinstance(expected, tuple):
        found, expected = (found,), (expected,)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is fa.Tensor, f"{type(one)} came back"
        assert one.device is device, f"a result lies on {one.device}"
        assert_close(one, np.asarray(other), rtol=rtol, atol=atol, check_dtype=False)
