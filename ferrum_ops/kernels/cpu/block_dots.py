"""Products of one row of inputs with blocks of GGUF, without writing the numbers of a block anywhere.

Each function multiplies the block at byte *at* of the line *b*, whose bytes in pairs are the halves *h*, with the
inputs from place *to* of the line *x* on. Integers are multiplied with inputs first, in loops whose shifts are
constants; scales and offsets meet the sums of a group. What a block holds is said in ``ferrum_ops.quant.gguf_legacy``
and ``gguf_k``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ferrum_ops.kernels.cpu.intrinsics import get, get_bits
from ferrum_ops.kernels.cpu.jit import jit

__all__ = ["DOTS", "POWERS", "step_and_offset"]

_0, _1, _2, _4, _6 = (np.float32(number) for number in (0, 1, 2, 4, 6))
_16, _32, _128 = (np.float32(number) for number in (16, 32, 128))
#: of the exponents of MXFP4
POWERS = np.array([2.0 ** (e - 128) for e in range(256)], np.float32)


@jit(inner=True)
def step_and_offset(b: Any, at: int, group: int) -> Any:
    """The 6-bit scale and offset of a group of Q4_K or Q5_K, in the 12 bytes from *at* on."""
    if group < 4:
        return get_bits(b, at + group, 0, 63), get_bits(b, at + 4 + group, 0, 63)
    return (
        get_bits(b, at + 4 + group, 0, 15) + _16 * get_bits(b, at + group - 4, 6, 3),
        get_bits(b, at + 4 + group, 4, 15) + _16 * get_bits(b, at + group, 6, 3),
    )


@jit(inner=True)
def _q4_1(b: Any, h: Any, at: int, x: Any, to: int) -> Any:
    product, total = _0, _0
    for i in range(16):
        first, second = get(x, to + i), get(x, to + 16 + i)
        product += get_bits(b, at + 4 + i, 0, 15) * first + get_bits(b, at + 4 + i, 4, 15) * second
        total += first + second
    return get(h, at >> 1) * product + get(h, (at >> 1) + 1) * total


@jit(inner=True)
def _e2m1(code: Any, sign: Any) -> Any:
    """Twice the 4-bit float of a code without its sign: 0 1 2 3 4 6 8 12."""
    size = code + max(code - _4, _0) + _2 * max(code - _6, _0)
    return (_1 - _2 * sign) * size


@jit(inner=True)
def _mxfp4(b: Any, _h: Any, at: int, x: Any, to: int) -> Any:
    product = _0
    for i in range(16):
        low = _e2m1(get_bits(b, at + 1 + i, 0, 7), get_bits(b, at + 1 + i, 3, 1))
        high = _e2m1(get_bits(b, at + 1 + i, 4, 7), get_bits(b, at + 1 + i, 7, 1))
        product += low * get(x, to + i) + high * get(x, to + 16 + i)
    return POWERS[b[at]] * product


@jit(inner=True)
def _q2_k(b: Any, h: Any, at: int, x: Any, to: int) -> Any:
    product, least = _0, _0
    for part in range(4):
        half, side = part >> 1, part & 1
        q, said, place = at + 16 + 32 * half + 16 * side, at + 8 * half + side, to + 128 * half + 16 * side
        p0, p1, p2, p3, t0, t1, t2, t3 = _0, _0, _0, _0, _0, _0, _0, _0
        for i in range(16):
            x0, x1 = get(x, place + i), get(x, place + 32 + i)
            x2, x3 = get(x, place + 64 + i), get(x, place + 96 + i)
            p0 += get_bits(b, q + i, 0, 3) * x0
            p1 += get_bits(b, q + i, 2, 3) * x1
            p2 += get_bits(b, q + i, 4, 3) * x2
            p3 += get_bits(b, q + i, 6, 3) * x3
            t0, t1, t2, t3 = t0 + x0, t1 + x1, t2 + x2, t3 + x3
        product += get_bits(b, said, 0, 15) * p0 + get_bits(b, said + 2, 0, 15) * p1
        product += get_bits(b, said + 4, 0, 15) * p2 + get_bits(b, said + 6, 0, 15) * p3
        least += get_bits(b, said, 4, 15) * t0 + get_bits(b, said + 2, 4, 15) * t1
        least += get_bits(b, said + 4, 4, 15) * t2 + get_bits(b, said + 6, 4, 15) * t3
    return get(h, (at + 80) >> 1) * product - get(h, (at + 82) >> 1) * least


@jit(inner=True)
def _q4_k(b: Any, h: Any, at: int, x: Any, to: int) -> Any:
    product, least = _0, _0
    for pair in range(4):
        s0, o0 = step_and_offset(b, at + 4, 2 * pair)
        s1, o1 = step_and_offset(b, at + 4, 2 * pair + 1)
        q, place = at + 16 + 32 * pair, to + 64 * pair
        p0, p1, t0, t1 = _0, _0, _0, _0
        for i in range(32):
            x0, x1 = get(x, place + i), get(x, place + 32 + i)
            p0 += get_bits(b, q + i, 0, 15) * x0
            p1 += get_bits(b, q + i, 4, 15) * x1
            t0, t1 = t0 + x0, t1 + x1
        product += s0 * p0 + s1 * p1
        least += o0 * t0 + o1 * t1
    return get(h, at >> 1) * product - get(h, (at >> 1) + 1) * least


@jit(inner=True)
def _signed(b: Any, at: int) -> Any:
    return get_bits(b, at, 0, 127) - _128 * get_bits(b, at, 7, 1)


@jit(inner=True)
def _q6_k(b: Any, h: Any, at: int, x: Any, to: int) -> Any:
    product = _0
    for part in range(4):
        half, side = part >> 1, part & 1
        low, high, said = at + 64 * half + 16 * side, at + 128 + 32 * half + 16 * side, at + 192 + 8 * half + side
        place = to + 128 * half + 16 * side
        p0, p1, p2, p3 = _0, _0, _0, _0
        for i in range(16):
            p0 += (get_bits(b, low + i, 0, 15) + _16 * get_bits(b, high + i, 0, 3) - _32) * get(x, place + i)
            p1 += (get_bits(b, low + 32 + i, 0, 15) + _16 * get_bits(b, high + i, 2, 3) - _32) * get(x, place + 32 + i)
            p2 += (get_bits(b, low + i, 4, 15) + _16 * get_bits(b, high + i, 4, 3) - _32) * get(x, place + 64 + i)
            p3 += (get_bits(b, low + 32 + i, 4, 15) + _16 * get_bits(b, high + i, 6, 3) - _32) * get(x, place + 96 + i)
        product += _signed(b, said) * p0 + _signed(b, said + 2) * p1
        product += _signed(b, said + 4) * p2 + _signed(b, said + 6) * p3
    return get(h, (at + 208) >> 1) * product


#: of the types for which this is faster
DOTS: dict[str, Callable[..., Any]] = {"Q4_1": _q4_1, "MXFP4": _mxfp4, "Q2_K": _q2_k, "Q4_K": _q4_k, "Q6_K": _q6_k}
