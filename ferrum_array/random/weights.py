"""Probabilities for ``choice``, on the host in exact arithmetic: planning, without tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ferrum_array.conversion import asarray
from ferrum_array.device import Device
from ferrum_array.dtype import Dtype
from ferrum_array.random.quantiles import nearest
from ferrum_array.tensor import Tensor

__all__ = ["as_float32", "checked", "cumulative", "nonzero"]

#: how far from 1 the sum of probabilities may be: the square root of the precision that they have
_SLACK = {Dtype.F16: 2.0**-5, Dtype.BF16: 2.0**-3.5, Dtype.F32: 2.0**-11.5}
_SUM_BITS = 62


def checked(p: Any, n: int) -> list[float]:
    """The *n* probabilities *p* as Python floats.

    Raises:
        TypeError: if they are not real numbers. ValueError: if they are not *n* finite numbers of
        at least 0 with the sum 1, as far as their dtype can tell.

    Examples:
        >>> checked([0.25, 0.75], 2)
        [0.25, 0.75]
    """
    given = asarray(
        p,
        dtype=None if hasattr(p, "dtype") else Dtype.F64,
        device=None if isinstance(p, Tensor) else "cpu",
    )
    if not given.dtype.is_floating:
        raise TypeError(f"choice: p must hold real floating numbers, got {given._summary()}")
    if given.shape != (n,):
        raise ValueError(f"choice: p must have the shape ({n},), one number an element; got {given.shape}")
    numbers: list[float] = given.tolist()
    for i, number in enumerate(numbers):
        if not 0 <= number < math.inf:
            raise ValueError(f"choice: p[{i}] is {number}; probabilities are finite and not negative")
    total = math.fsum(numbers)
    if n and abs(total - 1) > _SLACK.get(given.dtype, 2.0**-26):
        raise ValueError(f"choice: the probabilities add up to {total}, not to 1; divide them by their sum")
    return numbers


def cumulative(p: Sequence[float]) -> list[int]:
    """The running sums of *p*, scaled by a power of two to integers whose last is below 2**62.

    Each probability is rounded down to an integer, so it loses less than 2**-61 of their sum.

    Examples:
        >>> [c / 2**59 for c in cumulative([0.5, 0.25, 0.25])]
        [2.0, 3.0, 4.0]
    """
    if not p:
        return []
    scale = _SUM_BITS - math.frexp(math.fsum(p))[1]
    return list(accumulate(int(math.ldexp(number, scale)) for number in p))


def as_float32(p: Sequence[float], device: Device) -> Tensor:
    """*p* over its greatest as float32: [n]."""
    greatest = max(p, default=1.0)
    return asarray([_share(number, greatest) for number in p], dtype=Dtype.F32, device=device)


def _share(number: float, greatest: float) -> float:
    share = nearest(number / greatest, Dtype.F32)
    return share if share >= 2.0**-126 else 0.0  # some devices flush subnormal numbers to zero


def nonzero(p: Sequence[float]) -> int:
    """How many of *p* are not zero in :func:`as_float32`."""
    greatest = max(p, default=1.0)
    return sum(_share(number, greatest) > 0 for number in p)
