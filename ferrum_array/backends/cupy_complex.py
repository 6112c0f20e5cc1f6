"""Complex functions whose special cases CuPy has otherwise than the array API standard, or less exact than NumPy.

``T`` is the complex dtype, ``R`` that of its parts; a and b are the parts of x.
"""

from __future__ import annotations

from typing import Any, Final

import cupy as cp

__all__ = ["KERNELS"]

_PARTS = "typedef T::value_type R; const R a = x.real(), b = x.imag();"

_PREAMBLE = """
template <typename T> __device__ T ferrum_tanh(const T& x) {
    typedef typename T::value_type R;
    const R a = x.real(), b = x.imag();
    if (isinf(a) && isfinite(b)) return T(copysign(R(1), a), copysign(R(0), b));
    if (a == 0 && !isfinite(b)) return T(a, b - b);
    return tanh(x);
}
template <typename T> __device__ T ferrum_log(const T& x) {
    typedef typename T::value_type R;
    const R a = x.real(), b = x.imag();
    if (isinf(a) || isinf(b)) return T(fabs(isinf(a) ? a : b), atan2(b, a));
    return log(x);
}
// Smith's division: the parts of the divisor divide each other first, so that nothing overflows on the way.
template <typename T> __device__ T ferrum_divide(const T& x, const T& y) {
    typedef typename T::value_type R;
    const R a = x.real(), b = x.imag(), c = y.real(), d = y.imag();
    if (fabs(c) >= fabs(d)) {
        if (c == 0 && d == 0) return T(a / fabs(c), b / fabs(c));
        const R t = d / c, s = R(1) / (c + d * t);
        return T((a + b * t) * s, (b - a * t) * s);
    }
    const R t = c / d, s = R(1) / (d + c * t);
    return T((a * t + b) * s, (b * t - a) * s);
}
template <typename T> __device__ T ferrum_reciprocal(const T& x) {
    typedef typename T::value_type R;
    const R a = x.real(), b = x.imag();
    if (fabs(b) <= fabs(a)) {
        const R t = b / a, s = a + b * t;
        return T(R(1) / s, -t / s);
    }
    const R t = a / b, s = a * t + b;
    return T(t / s, R(-1) / s);
}
"""


def _one(name: str, code: str) -> Any:
    return cp.ElementwiseKernel("T x", "T z", _PARTS + code, f"ferrum_complex_{name}", preamble=_PREAMBLE)


def _two(name: str, code: str) -> Any:
    return cp.ElementwiseKernel("T x, T y", "T z", _PARTS + code, f"ferrum_complex_{name}", preamble=_PREAMBLE)


_SIGN = """
    const R size = hypot(a, b);
    if (isnan(size) || (isinf(a) && isinf(b))) {
        z = T(size - size, size - size);
    } else if (isinf(size)) {
        z = T(isinf(a) ? copysign(R(1), a) : R(0), isinf(b) ? copysign(R(1), b) : R(0));
    } else {
        z = size == 0 ? T(0) : T(a / size, b / size);
    }
"""

# Whole exponents by repeated multiplication, as NumPy: exact for small numbers, where the logarithm is not.
_POWER = """
    const R c = y.real(), d = y.imag();
    const int n = fabs(c) < 100 ? static_cast<int>(c) : 0;
    if (c == 0 && d == 0) {
        z = T(1);
    } else if (a == 0 && b == 0) {
        z = c > 0 ? T(0) : T(R(0) / b, R(0) / b);
    } else if (d == 0 && n == c) {
        T product(1), factor = x;
        for (int k = n < 0 ? -n : n; k; k >>= 1) {
            if (k & 1) product = product == T(1) ? factor : product * factor;
            if (k > 1) factor = factor * factor;
        }
        z = n < 0 ? ferrum_divide(T(1), product) : product;
    } else {
        z = exp(y * ferrum_log(x));
    }
"""

#: function -> its kernel for complex operands
KERNELS: Final[dict[str, Any]] = {
    "divide": _two("divide", "z = ferrum_divide(x, y);"),
    "pow": _two("pow", _POWER),
    "reciprocal": _one("reciprocal", "z = ferrum_reciprocal(x);"),
    "sign": _one("sign", _SIGN),
    "exp": _one("exp", "z = exp(x); if (b == 0) z = T(z.real(), b);"),
    "expm1": _one("expm1", "z = expm1(x); if (b == 0) z = T(z.real(), b);"),
    "log": _one("log", "z = ferrum_log(x);"),
    "log2": _one("log2", "z = ferrum_log(x); const R s = 1.4426950408889634; z = T(z.real() * s, z.imag() * s);"),
    "log10": _one("log10", "z = ferrum_log(x); const R s = 0.4342944819032518; z = T(z.real() * s, z.imag() * s);"),
    "log1p": _one("log1p", "z = T(log(hypot(a + R(1), b)), atan2(b, a + R(1)));"),
    "tanh": _one("tanh", "z = ferrum_tanh(x);"),
    "tan": _one("tan", "const T turned = ferrum_tanh(T(-b, a)); z = T(turned.imag(), -turned.real());"),
    "acosh": _one("acosh", "z = a == 0 && isnan(b) ? T(b, R(1.5707963267948966)) : acosh(x);"),
}
