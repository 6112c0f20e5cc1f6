"""Checks of what a generator's methods are given; each error names the method and the value."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from ferrum_array.device import Device, get_default_device
from ferrum_array.dispatch import shape_tuple
from ferrum_array.dtype import Dtype
from ferrum_array.random.quantiles import nearest
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Tensor

__all__ = [
    "LARGEST",
    "Shape",
    "count",
    "floating",
    "index",
    "real",
    "same_device",
    "target_device",
    "whole",
]

Shape = int | Sequence[int]

#: the largest finite number of each real type (IEEE 754-2019)
LARGEST = {
    Dtype.F16: 65504.0,
    Dtype.BF16: math.ldexp(255.0, 120),
    Dtype.F32: math.ldexp(16777215.0, 104),
    Dtype.F64: math.nextafter(math.inf, 0.0),
}


def target_device(device: Any) -> Device:
    """*device*, or the default device for None."""
    return get_default_device() if device is None else Device(device)


def floating(name: str, shape: Shape, dtype: Any, device: Any) -> tuple[Dtype, tuple[int, ...], Device]:
    """The real floating dtype (float32 for None), lengths and device of a draw."""
    wanted, target = Dtype.F32 if dtype is None else Dtype(dtype), target_device(device)
    if not wanted.is_floating:
        raise TypeError(f"{name}: dtype must be a real floating dtype, got {wanted}")
    spec_of(wanted, target)  # says which dtypes the device has
    return wanted, shape_tuple(name, shape), target


def real(name: str, what: str, value: Any, dtype: Dtype) -> float:
    """*value* rounded to *dtype* on the host, so that every storage computes with one number."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        kind = type(value).__name__
        raise TypeError(f"{name}: {what} must be a real number, got {kind} {value!r:.60}")
    try:
        number = nearest(float(value), dtype)
    except OverflowError:  # an integer beyond float64
        number = math.inf
    if not abs(number) <= LARGEST[dtype]:
        raise ValueError(f"{name}: {what} must be finite in {dtype}, got {value!r:.60}")
    return number


def index(name: str, what: str, value: Any) -> int:
    """*value*, which must be an integer and not a bool."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        kind = type(value).__name__
        raise TypeError(f"{name}: {what} must be an integer, got {kind} {value!r:.60}")
    return operator.index(value)


def whole(name: str, what: str, value: Any, least: int, most: int) -> int:
    """*value*, which must be an integer of [*least*, *most*]."""
    number = index(name, what, value)
    if not least <= number <= most:
        raise ValueError(f"{name}: {what} must lie in [{least}, {most}], got {number}")
    return number


def count(name: str, what: str, value: Any) -> int:
    """*value*, which stands where a Tensor may stand too, and must be a number of things."""
    if not hasattr(value, "__index__"):
        kind = type(value).__name__
        hint = "; make one with asarray()" if isinstance(value, (list, tuple)) else ""
        raise TypeError(f"{name}: {what} must be an integer or a Tensor, got {kind} {value!r:.60}{hint}")
    return whole(name, what, value, 0, 1 << 40)


def same_device(name: str, x: Tensor, device: Any) -> None:
    """Check that *device*, if it is given, is that of *x*."""
    if device is not None and Device(device) is not x.device:
        raise ValueError(f"{name}: the tensor lies on {x.device}, not on {Device(device)}; move it with to_device()")
