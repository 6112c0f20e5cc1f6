"""Rows in int8 or E4M3 with a scale for each, as caches of keys and values have them."""

import triton
import triton.language as tl

from ferrum_ops.kv_cache import GREATEST_SCALE

__all__ = ["magnitude", "quantised", "quantising_scale"]

_GREATEST = tl.constexpr(GREATEST_SCALE)
_WITHOUT_SIGN = tl.constexpr(0x7FFFFFFF)
_INFINITE = tl.constexpr(0x7F800000)
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
_TINY = tl.constexpr(2.0**-60)
_GROWN = tl.constexpr(2.0**80)
#: of 2.0**-6, the least normal number of E4M3; and what leaves the bits of 1 / x of a power of two x
_LOWEST = tl.constexpr(0x3C800000)
_INVERSE = tl.constexpr(0x7F000000)
_ROUNDING = tl.constexpr(12582912.0)  # 1.5 * 2**23: behind it float32 has no places, so adding it rounds half to even


@triton.jit
def magnitude(x):
    """The bits of ``abs(x)`` as an integer: they are in the order of the numbers, infinity and NaN above all."""
    return x.to(tl.int32, bitcast=True) & _WITHOUT_SIGN


@triton.jit
def quantising_scale(most, FP8: tl.constexpr):
    """The scale of a row, from the bits of its greatest magnitude; NaN for a row that is not finite."""
    TOP: tl.constexpr = 448.0 if FP8 else 127.0
    scale = tl.div_rn(most.to(tl.float32, bitcast=True), TOP)
    scale = tl.where(scale > _GREATEST, _GREATEST, scale)
    return tl.where(most >= _INFINITE, float("nan"), scale)


@triton.jit
def _to_e4m3(x, signed):
    """The codes of x, half to even, the greatest for what is beyond; 0 too has the sign of *signed*."""
    if _INTERPRETED:  # it cuts digits off: a step is a power of two, and what is left is exact in E4M3
        x = tl.where(x > 448.0, 448.0, tl.where(x < -448.0, -448.0, x))
        power = tl.maximum(x.to(tl.int32, bitcast=True) & _INFINITE, _LOWEST)
        inverse = (0 - power + _INVERSE).to(tl.float32, bitcast=True) * 8.0
        x = ((x * inverse + _ROUNDING) - _ROUNDING) * (power.to(tl.float32, bitcast=True) * 0.125)
    # Signs are set before, not in the codes: where two codes are taken apart after their conversion, ptxas 12.9 shifts
    # a register that was never set.
    x = ((x.to(tl.int32, bitcast=True) & _WITHOUT_SIGN) | (signed.to(tl.int32, bitcast=True) & ~_WITHOUT_SIGN)).to(
        tl.float32, bitcast=True
    )
    return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)


@triton.jit
def quantised(x, scale, FP8: tl.constexpr):
    """x in steps of scale, half to even, as int8 or as codes of E4M3; 0 where scale is NaN."""
    small = scale < _TINY  # its inverse would be infinite
    x = tl.where(scale == scale, x, 0.0) * tl.where(small, _GROWN, 1.0)
    scale = tl.where(scale > 0.0, scale, 1.0) * tl.where(small & (scale > 0.0), _GROWN, 1.0)
    inverse = tl.div_rn(1.0, scale)
    steps = x * inverse
    steps = tl.fma(tl.fma(-steps, scale, x), inverse, steps)  # the rounded quotient (Markstein)
    if FP8:
        codes = _to_e4m3(steps, x)
    else:
        steps = tl.minimum(tl.maximum(steps, -127.0), 127.0) + _ROUNDING
        codes = steps.to(tl.int32, bitcast=True).to(tl.int8)  # its last bits
    return codes
