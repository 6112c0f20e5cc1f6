"""From random bits to integers below a bound, by multiplication and shift in exact arithmetic."""

from __future__ import annotations

from typing import Any

from ferrum_array.dtype import Dtype
from ferrum_array.tensor import Tensor

__all__ = ["below_bound", "pair", "words_for_bound"]

_LOW = 0xFFFFFFFF


def pair(words: Tensor) -> Tensor:
    """uint32 [2 n] as uint64 [n]; the first word of each pair is the upper half."""
    halves = words.reshape((-1, 2))
    result: Tensor = (halves[:, 0].astype(Dtype.U64) << 32) | halves[:, 1].astype(Dtype.U64)
    return result


def words_for_bound(bound: int) -> int:
    """How many 32-bit words an integer below *bound* (at most 2**64) takes.

    With b random bits each value has a probability between floor(2**b / bound) / 2**b and one
    2**-b more. 64 bits for bounds up to 2**32 and 128 beyond keep the relative error below 2**-32
    and 2**-64. For a power of two there is none.
    """
    return 2 if bound <= 1 << 32 else 4


def below_bound(words: Tensor, bound: int) -> Any:
    """floor(x * bound / 2**b) for the b-bit numbers x of :func:`words_for_bound`: uint64.

    Source: D. Lemire, "Fast random integer generation in an interval", ACM TOMACS 29 (2019),
    doi 10.1145/3230636, without its rejection step.
    """
    if bound <= 1 << 32:
        halves = words.reshape((-1, 2))
        upper, lower = halves[:, 0].astype(Dtype.U64), halves[:, 1].astype(Dtype.U64)
        return (upper * bound + ((lower * bound) >> 32)) >> 32
    quads = words.reshape((-1, 4))
    upper, lower = pair(quads[:, :2].reshape(-1)), pair(quads[:, 2:].reshape(-1))
    if bound == 1 << 64:
        return upper
    carried = _high(lower, bound)
    carry = (upper * bound + carried < carried).astype(Dtype.U64)  # unsigned sums wrap around
    return _high(upper, bound) + carry


def _high(x: Any, bound: int) -> Any:
    """The upper 64 bits of the 128-bit product x * bound."""
    x1, x0, b1, b0 = x >> 32, x & _LOW, bound >> 32, bound & _LOW
    cross = x1 * b0 + ((x0 * b0) >> 32)
    return x1 * b1 + (cross >> 32) + ((x0 * b1 + (cross & _LOW)) >> 32)
