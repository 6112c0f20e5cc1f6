"""Weights and draws in whole numbers, so that a choice does not depend on where it is computed.

Two libraries rarely agree about the last bit of an exponential, and never about the order of a sum; a token that is
drawn from floating-point sums may then differ from machine to machine. Here exponentials are made from additions and
multiplications of float32 alone, which round alike everywhere, and are cut to whole numbers; their sums are exact in
any order. What is left of the distance from the distribution that was meant is in ``draw``.
"""

from __future__ import annotations

import math

import ferrum_array as fa
from ferrum_array import Tensor

__all__ = ["MOST", "ONE", "draw", "share", "weights_of_logits", "weights_of_probabilities"]

#: the weight of the likeliest
ONE = 1 << 37
#: how many weights there may be, so that no sum leaves 61 bits
MOST = 1 << 24

_LOG2_E = 1.0 / math.log(2.0)
# ln 2 in two parts: the first has so few digits that a small whole number times it is exact in float32
_LN2_HIGH = 355.0 / 512.0
_LN2_LOW = math.log(2.0) - _LN2_HIGH
# 1 / k!, highest power first: for |r| <= ln(2) / 2 the next term is below 2**-27
_SERIES = tuple(1.0 / math.factorial(k) for k in range(7, -1, -1))


def weights_of_logits(x: Tensor, top: Tensor) -> Tensor:
    """``ONE * exp(x - top)`` rounded down, int64: *x* [..., V], float32 or float64, and its greatest, *top* [..., 1].

    The relative error is below 2e-7, and one more below the point. Where *top* is infinite, what equals it weighs ONE.
    A row whose *top* is NaN has no weights: it gives numbers without meaning.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.draws import ONE, weights_of_logits
        >>> x = fa.asarray([[0.0, -fa.inf, -100.0, 0.0]])
        >>> (weights_of_logits(x, fa.asarray([[0.0]])) / ONE).tolist()
        [[1.0, 0.0, 0.0, 1.0]]
    """
    # inf - inf would be a NaN. Below -30 all weights are 0; a NaN, which no integer can be made of, goes there too.
    below = fa.where(x == top, 0.0, x - top).astype("f32", copy=False)
    below = fa.where(below > -30.0, below, -30.0)
    n = fa.round(below * _LOG2_E)
    r = below - n * _LN2_HIGH
    r -= n * _LN2_LOW
    e = r * _SERIES[0]
    for coefficient in _SERIES[1:-1]:
        e += coefficient
        e *= r
    e += _SERIES[-1]
    return fa.bitwise_right_shift((e * float(ONE)).astype("i64"), (-n).astype("i64"))


def weights_of_probabilities(p: Tensor) -> Tensor:
    """``ONE * p / max(p)`` rounded down, int64, for *p* [..., V] of float32 or float64 that is not negative.

    A row of zeros gives zeros, and one with a NaN or an infinity numbers without meaning.
    """
    top = fa.max(p, axis=-1, keepdims=True)
    part = p / fa.where(top > 0.0, top, 1.0)
    return (fa.where(part >= 0.0, part, 0.0) * float(ONE)).astype("i64")


def share(total: Tensor, part: Tensor | float, *, up: bool = False) -> Tensor:
    """``part * total`` rounded down, or *up*: for *total*, int64, from 0 to 2**61 and *part* from 0 to 1.

    *part* is first cut to 32 binary places; from there on the result is exact.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.draws import share
        >>> total = fa.asarray([2**60 + 1, 3])
        >>> share(total, 0.5).tolist(), share(total, 0.5, up=True).tolist()
        ([576460752303423488, 1], [576460752303423489, 2])
    """
    scaled = (part * 2.0**32).astype("i64") if isinstance(part, Tensor) else int(part * 2.0**32)
    # scaled * total has up to 93 bits; the low 31 of total are multiplied apart
    low = fa.bitwise_and(total, (1 << 31) - 1) * scaled
    if up:
        low += (1 << 32) - 1
    high = fa.bitwise_right_shift(total, 31) * scaled
    return fa.bitwise_right_shift(high + fa.bitwise_right_shift(low, 31), 1)


def draw(weights: Tensor, u: Tensor) -> Tensor:
    """The first place whose weight and those before it exceed the share *u* of all: [..., V] and [...] give [...].

    A weight of 0 is never drawn. Over all u each place comes with its weight's part of the sum; for weights made
    above, the distance in all from the distribution that was meant is below 2e-7 + V * 2**-37, and that from u itself,
    which has 32 places, below V * 2**-32. Where u is outside of [0, 1) or NaN, or all weights are 0, the place is -1.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.draws import draw
        >>> draw(fa.asarray([[1, 0, 3]] * 4), fa.asarray([0.0, 0.25, 0.9, 1.0]))
        Tensor([ 0,  2,  2, -1])
    """
    u = u.astype(fa.float64 if u.dtype is fa.float64 else fa.float32, copy=False)
    fits = fa.logical_and(u >= 0.0, u < 1.0)
    until = fa.cumulative_sum(weights, axis=-1)
    total = until[..., -1]
    bound = share(total, fa.where(fits, u, 0.0))
    place = fa.sum((until <= bound[..., None]).astype("i64"), axis=-1)
    return fa.where(fa.logical_and(fits, total > 0), place, -1)
