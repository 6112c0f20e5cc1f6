"""The comparison can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from tests.doors.same import numbers, same


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: np.asarray(x), "came back"),
        (lambda x: x + 1e-3 if isinstance(x, fa.Tensor) else x, "differ|close|tolerance|apart"),
        (lambda x: (x, x) if isinstance(x, fa.Tensor) else (x,), None),
        (lambda x: x[:1] if isinstance(x, fa.Tensor) else x, "."),
    ],
)
def test_a_wrong_result_is_found(function: Callable[[Any], Any], message: str | None) -> None:
    with pytest.raises(AssertionError, match=message):
        same(function, fa.Device("cpu"), numbers(3))


def test_a_result_on_another_device_is_found() -> None:
    if not any(one.kind == "mlx" for one in fa.devices()):
        pytest.skip("not run: needs MLX")
    with pytest.raises(AssertionError, match="lies on cpu"):
        same(lambda x: x.to_device("cpu") if isinstance(x, fa.Tensor) else x, fa.Device("mlx:cpu"), numbers(3))
