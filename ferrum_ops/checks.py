"""What every op checks before it works, so that errors of one kind read the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor

__all__ = [
    "Shaped", "accumulator", "alike", "count", "describe", "finite", "floating", "instance", "integers",
    "last_axis", "listed",
]  # fmt: skip

_T = TypeVar("_T")


class Shaped(Protocol):
    """What has a dtype, a shape and a device: a Tensor, or numbers stored in another way."""

    @property
    def dtype(self) -> Dtype: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> Device: ...


def describe(x: Shaped) -> str:
    """Dtype, shape and device of *x*, as errors show them: ``float32[2,3]``."""
    where = "" if x.device.kind == "cpu" else f" on {x.device}"
    return f"{x.dtype}[{','.join(map(str, x.shape))}]{where}"


def floating(op: str, what: str, x: object) -> Tensor:
    """*x*, which must be a Tensor of real floating-point numbers.

    Raises:
        TypeError: naming the op, the argument and what came.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {what} must be a Tensor, got {type(x).__name__}; make one with ferrum_array.asarray")
    if not x.dtype.is_floating:
        raise TypeError(
            f"{op}: {what} must be real floating-point, got {describe(x)}; convert it with astype('float32')"
        )
    return x


def alike(op: str, reference: Shaped, what: str, x: Shaped, *, dtype: bool = True) -> None:
    """Check that *x* lies on the device of *reference* and, unless *dtype* is False, has its dtype.

    Raises:
        ValueError: for different devices. TypeError: for different dtypes.
    """
    if x.device is not reference.device:
        raise ValueError(
            f"{op}: {what} is on device {x.device} but the input on {reference.device} "
            f"({describe(x)} and {describe(reference)}); "
            f"move one with to_device('{reference.device}')"
        )
    if dtype and x.dtype is not reference.dtype:
        raise TypeError(
            f"{op}: {what} is {describe(x)} but the input is {describe(reference)}; "
            f"convert one, for example with astype('{reference.dtype}')"
        )


def count(op: str, what: str, n: int, most: int | None = None, of: str = "") -> None:
    """Check that *n* is an integer from 1 to *most*; *of* says what there are so many of.

    Raises:
        ValueError: naming the op, the argument and what came.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1 or (most is not None and n > most):
        limit = "at least 1" if most is None else f"from 1 to {most}, {of}"
        raise ValueError(f"{op}: {what} must be an integer {limit}, got {n!r}")


def finite(op: str, what: str, x: object) -> bool:
    """Whether the number *x* is finite.

    Raises:
        TypeError: naming the op, the argument and what came, if it is no real number.
    """
    try:
        return math.isfinite(x)  # type: ignore[arg-type]  # whether it is a number, it says itself
    except TypeError:
        raise TypeError(f"{op}: {what} must be a real number, got {type(x).__name__} {x!r:.60}") from None
    except OverflowError:  # an integer beyond all floats
        return False


def instance(op: str, what: str, x: object, kind: type[_T], how: str) -> _T:
    """*x*, which must be a *kind*; *how* says what makes one.

    Raises:
        TypeError: naming the op, the argument and what came.
    """
    if not isinstance(x, kind):
        given = describe(x) if isinstance(x, Tensor) else f"{type(x).__name__} {x!r:.60}"
        raise TypeError(f"{op}: {what} must be a {kind.__name__}, got {given}; {how} makes one")
    return x


def integers(op: str, what: str, x: object) -> Tensor:
    """*x*, which must be a Tensor of integers.

    Raises:
        TypeError: naming the op, the argument and what came.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{op}: {what} must be a Tensor of integers, got {type(x).__name__}; make one with ferrum_array.asarray"
        )
    if not x.dtype.is_integer:
        raise TypeError(
            f"{op}: {what} must be a Tensor of integers, got {describe(x)}; convert it with astype('int64')"
        )
    return x


def last_axis(op: str, x: Tensor, what: str, vector: Tensor) -> None:
    """Check that *vector* is 1-D and as long as the last axis of *x*.

    Raises:
        ValueError: naming both shapes.
    """
    if vector.ndim != 1 or vector.shape[0] != x.shape[-1]:
        raise ValueError(
            f"{op}: {what} must have shape ({x.shape[-1]},), as the last axis of {describe(x)}, got {describe(vector)}"
        )


def listed(op: str, what: str, x: object) -> None:
    """Check that *x* is a list, or another sequence.

    Raises:
        TypeError: naming the op, the argument and what came.
    """
    if not isinstance(x, Sequence):
        given = describe(x) if isinstance(x, Tensor) else f"{type(x).__name__} {x!r:.60}"
        raise TypeError(f"{op}: {what} must be a list or another sequence, got {given}")


def accumulator(dtype: Dtype) -> Dtype:
    """The dtype in which sums of *dtype* are taken: float32, or float64 for float64."""
    return fa.float64 if dtype is fa.float64 else fa.float32
