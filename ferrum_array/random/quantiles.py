"""From random bits to distributions by inversion, with operations that IEEE 754 rounds one way.

Libraries differ in the last bit of ``log`` and ``erfinv``, so neither is used. Everything here is
made of integer operations, conversions of integers that the float type holds, ``+ - * / sqrt`` and
comparisons, one library call each: no compiler can contract two of them into one. Hence the same
bits come out of every storage.

The float type is float32 for 32-bit words and float64 for 64-bit words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ferrum_array.dtype import Dtype
from ferrum_array.elementwise import bitwise_invert, sqrt
from ferrum_array.searching import where
from ferrum_array.tensor import Tensor

__all__ = ["below", "exponential_from_bits", "nearest", "normal_from_bits", "unit_from_bits"]

_LOG2 = 0.6931471805599453  # log(2), rounded to float64

#: significant bits and the exponent of the least subnormal of each real type (IEEE 754-2019)
_PRECISION = {Dtype.F16: (11, -24), Dtype.BF16: (8, -133), Dtype.F32: (24, -149)}


def _quantum(value: float, dtype: Dtype) -> float:
    digits, least = _PRECISION[dtype]
    return math.ldexp(1.0, max(math.frexp(value)[1] - digits, least))


def nearest(value: float, dtype: Dtype) -> float:
    """*value* rounded to the float type *dtype*, ties to even, without the limit of its range.

    Examples:
        >>> from ferrum_array.dtype import Dtype
        >>> nearest(0.1, Dtype.BF16)
        0.10009765625
    """
    if dtype is Dtype.F64 or not math.isfinite(value):
        return value
    step = _quantum(value, dtype)
    return round(value / step) * step


def below(value: float, dtype: Dtype) -> float:
    """The greatest number of the float type *dtype* that is less than *value*.

    Examples:
        >>> from ferrum_array.dtype import Dtype
        >>> below(1.0, Dtype.F16)
        0.99951171875
    """
    lower = math.nextafter(value, -math.inf)
    if dtype is Dtype.F64:
        return lower
    step = _quantum(lower, dtype)
    return math.floor(lower / step) * step


def unit_from_bits(bits: Tensor, digits: int) -> Tensor:
    """Multiples of 2**-digits in [0, 1), equally likely, from the upper *digits* bits: exact."""
    floating = _float_of(bits)
    result: Tensor = (bits >> (bits.dtype.bits - digits)).astype(floating) * 2.0**-digits
    return result


def _float_of(bits: Tensor) -> Dtype:
    return Dtype.F64 if bits.dtype is Dtype.U64 else Dtype.F32


def _to_float(x: Tensor) -> Any:
    """*x* rounded once to its float type: its halves convert exactly, and their sum is rounded."""
    floating, half = _float_of(x), x.dtype.bits // 2
    upper = (x >> half).astype(floating) * 2.0**half
    return upper + (x & ((1 << half) - 1)).astype(floating)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Any:
    """Horner's rule, lowest power first; the coefficients are rounded on the host."""
    numbers = [nearest(c, x.dtype) for c in coefficients]
    result: Any = numbers[-1]
    for number in reversed(numbers[:-1]):
        result = result * x + number
    return result


#: terms of the series of log1p below: enough for the precision of each float type
_TERMS = {Dtype.F32: 5, Dtype.F64: 11}


def exponential_from_bits(bits: Tensor) -> Any:
    """``-log(u)`` for u = (bits | 1) / 2**width: a standard exponential variable, always positive.

    With u = 2**-n * m and m in [sqrt(1/2), sqrt(2)) the logarithm is log m - n log 2. m - 1 = g is
    computed in integers, so that results near 0 keep their relative precision, and
    log m = 2 artanh(g / (2 + g)) by its Taylor series.
    """
    width, floating = bits.dtype.bits, _float_of(bits)
    top = 1 << (width - 1)
    y: Any = bits | 1
    zeros: Any = 0
    step = width // 2
    while step:  # shift the leading one to the top
        shift = (y < (1 << (width - step))).astype(bits.dtype) * step
        y, zeros = y << shift, shift + zeros
        step //= 2
    upper = y >= math.isqrt(top * top * 2)
    distance = where(upper, bitwise_invert(y) + 1, y - top)  # from 2**width downwards, or from top upwards
    is_upper = upper.astype(floating)
    gap = _to_float(distance) * ((is_upper * -1.5 + 1.0) * 2.0 ** (1 - width))
    halvings = zeros.astype(floating) + (1.0 - is_upper)
    s = gap / (gap + 2.0)
    series = _polynomial([2.0 / (2 * n + 1) for n in range(_TERMS[floating])], s * s) * s
    return halvings * nearest(_LOG2, floating) - series


# M. Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied
# Statistics 37 (1988), doi 10.2307/2347330: numerators and denominators, lowest power first. PPND7
# for float32 (a relative error of 1e-7), PPND16 for float64 (1e-16); each: centre, tail, far tail.
# fmt: off
_AS241: dict[Dtype, tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]] = {
    Dtype.F32: (
        ((3.3871327179, 50.434271938, 159.29113202, 59.109374720),
         (1.0, 17.895169469, 78.757757664, 67.187563600)),
        ((1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103),
         (1.0, 0.73700164250, 0.12021132975)),
    ),  # 2**-33 is the least tail probability: the far tail begins at 1.4e-11
    Dtype.F64: (
        ((3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427,
          13731.693765509461125, 45921.953931549871457, 67265.770927008700853,
          33430.575583588128105, 2509.0809287301226727),
         (1.0, 42.313330701600911252, 687.18700749205790830,
          5394.1960214247511077, 21213.794301586595867, 39307.895800092710610,
          28729.085735721942674, 5226.4952788528545610)),
        ((1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550,
          3.64784832476320460504, 1.27045825245236838258, 0.241780725177450611770,
          0.0227238449892691845833, 7.74545014278341407640e-4),
         (1.0, 2.05319162663775882187, 1.67638483018380384940,
          0.689767334985100004550, 0.148103976427480074590, 0.0151986665636164571966,
          5.47593808499534494600e-4, 1.05075007164441684324e-9)),
        ((6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580,
          0.296560571828504891230, 0.0265321895265761230930, 1.24266094738807843860e-3,
          2.71155556874348757815e-5, 2.01033439929228813265e-7),
         (1.0, 0.599832206555887937690, 0.136929880922735805310,
          0.0148753612908506148525, 7.86869131145613259100e-4, 1.84631831751005468180e-5,
          1.42151175831644588870e-7, 2.04426310338993978564e-15)),
    ),
}
# fmt: on


def normal_from_bits(bits: Tensor) -> Any:
    """A standard normal variable: the lowest bit is its sign, the others its tail probability.

    The probability is p = (bits | 1) / 2**(width + 1), in (0, 1/2), and the result the quantile of
    1 - p by algorithm AS 241. Never 0; symmetric about 0; at most 6.34 for 32-bit and 9.16 for
    64-bit words.
    """
    width, floating = bits.dtype.bits, _float_of(bits)
    q = _to_float(bitwise_invert(bits) | 1) * 2.0 ** -(width + 1)  # 1/2 - p, without cancellation
    r = sqrt(exponential_from_bits(bits) + nearest(_LOG2, floating))  # sqrt(-log p)
    central, *tails = _AS241[floating]
    result = _ratio(tails[0], r - nearest(1.6, floating))
    if len(tails) > 1:
        result = where(r <= 5.0, result, _ratio(tails[1], r - 5.0))
    inner = q * _ratio(central, nearest(0.180625, floating) - q * q)
    result = where(q <= nearest(0.425, floating), inner, result)
    return result * ((bits & 1).astype(floating) * -2.0 + 1.0)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Any:
    return _polynomial(coefficients[0], x) / _polynomial(coefficients[1], x)
