"""Rows in int8 with a scale for each, as caches of keys and values have them."""

import triton
import triton.language as tl

from ferrum_ops.kv_cache import GREATEST_SCALE

__all__ = ["magnitude", "quantised", "quantising_scale"]

_GREATEST = tl.constexpr(GREATEST_SCALE)
_WITHOUT_SIGN = tl.constexpr(0x7FFFFFFF)
_INFINITE = tl.constexpr(0x7F800000)
_TINY = tl.constexpr(2.0**-60)
_GROWN = tl.constexpr(2.0**80)
_ROUNDING = tl.constexpr(12582912.0)  # 1.5 * 2**23: behind it float32 has no places, so adding it rounds half to even


@triton.jit
def magnitude(x):
    """The bits of ``abs(x)`` as an integer: they are in the order of the numbers, infinity and NaN above all."""
    return x.to(tl.int32, bitcast=True) & _WITHOUT_SIGN


@triton.jit
def quantising_scale(most):
    """The scale of a row, from the bits of its greatest magnitude; NaN for a row that is not finite."""
    scale = tl.div_rn(most.to(tl.float32, bitcast=True), 127.0)
    scale = tl.where(scale > _GREATEST, _GREATEST, scale)
    return tl.where(most >= _INFINITE, float("nan"), scale)


@triton.jit
def quantised(x, scale):
    """x in steps of scale, half to even, as int8; 0 where scale is NaN."""
    small = scale < _TINY  # its inverse would be infinite
    x = tl.where(scale == scale, x, 0.0) * tl.where(small, _GROWN, 1.0)
    scale = tl.where(scale > 0.0, scale, 1.0) * tl.where(small & (scale > 0.0), _GROWN, 1.0)
    inverse = tl.div_rn(1.0, scale)
    steps = x * inverse
    steps = tl.fma(tl.fma(-steps, scale, x), inverse, steps)  # the rounded quotient (Markstein)
    steps = (steps + _ROUNDING) - _ROUNDING
    return tl.where(steps > 127.0, 127.0, tl.where(steps < -127.0, -127.0, steps)).to(tl.int8)
