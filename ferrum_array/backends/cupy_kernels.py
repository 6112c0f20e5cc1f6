"""CUDA kernels for what CuPy has otherwise than the standard or NumPy. CuPy compiles each for a dtype at first use.

``T`` is the dtype of the operands. ``wide<T>::type`` is what to compute in: 16-bit floats in float, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import cupy as cp

__all__ = [
    "ANY_OUTSIDE",
    "ARGMAX",
    "ARGMIN",
    "FLOOR_DIVIDE",
    "LEFT_SHIFT",
    "MAX",
    "MIN",
    "NEXT_AFTER",
    "ORDERED_PRODUCT",
    "REMAINDER",
    "RIGHT_SHIFT",
    "SORT_KEY",
    "SUM_16",
]

_WIDE = """
template <typename T> struct wide { typedef float type; };
template <> struct wide<double> { typedef double type; };
"""

# Python's divmod, as NumPy computes it; where that has no finite answer, the quotient rounded down (the standard).
FLOOR_DIVIDE: Final[Callable[..., Any]] = cp.ElementwiseKernel(
    "T x, T y",
    "T z",
    """
    typedef wide<T>::type W;
    const W a = x, b = y;
    W m = fmod(a, b), q;
    if (b == 0) {
        q = a / b;
    } else {
        q = (a - m) / b;
        if (m != 0 && (b < 0) != (m < 0)) q -= 1;
        if (q != 0) {
            const W down = floor(q);
            q = q - down > W(0.5) ? down + 1 : down;
        } else {
            q = copysign(W(0), a / b);
        }
    }
    if (!isfinite(q) || isinf(b)) q = floor(a / b);
    z = static_cast<T>(q);
    """,
    "ferrum_floor_divide",
    preamble=_WIDE,
)

REMAINDER: Final[Callable[..., Any]] = cp.ElementwiseKernel(
    "T x, T y",
    "T z",
    """
    typedef wide<T>::type W;
    const W a = x, b = y;
    W m = fmod(a, b);
    if (m != 0) {
        if ((b < 0) != (m < 0)) m += b;
    } else {
        m = copysign(W(0), b);
    }
    z = static_cast<T>(m);
    """,
    "ferrum_remainder",
    preamble=_WIDE,
)

# In C++ a shift by the width or more, or by a negative number, has no meaning; here every bit falls out.
LEFT_SHIFT: Final[Callable[..., Any]] = cp.ElementwiseKernel(
    "T x, T y",
    "T z",
    "z = static_cast<unsigned long long>(y) < 8 * sizeof(T) ? static_cast<T>(x << y) : T(0)",
    "ferrum_left_shift",
)
RIGHT_SHIFT: Final[Callable[..., Any]] = cp.ElementwiseKernel(
    "T x, T y",
    "T z",
    "z = static_cast<unsigned long long>(y) < 8 * sizeof(T) ? static_cast<T>(x >> y) : x < T(0) ? T(-1) : T(0)",
    "ferrum_right_shift",
)

# The bits of a float as an integer of its size that sorts as the standard wants: -0 equals 0, every NaN comes last.
# Negative floats have their magnitude inverted, because more bits mean a smaller number there.
SORT_KEY: Final[Callable[..., Any]] = cp.ElementwiseKernel(
    "T bits, int64 infinity, bool descending",
    "T key",
    """
    const T magnitude = static_cast<T>((1ULL << (8 * sizeof(T) - 1)) - 1);
    const T size = bits & magnitude;
    T k = size == 0 ? T(0) : bits < 0 ? static_cast<T>(bits ^ magnitude) : bits;
    if (static_cast<long long>(size) > infinity) k = magnitude;
    key = descending ? static_cast<T>(~k) : k;
    """,
    "ferrum_sort_key",
)

# Floats as integers that count the representable numbers from zero: the next one is one more or one less. Numbers
# below the normal ones come out right although CuPy compiles arithmetic to flush them.
NEXT_AFTER: Final[Callable[..., Any]] = cp.ElementwiseKernel(
    "T x, T y, int64 infinity",
    "T z",
    """
    const T magnitude = static_cast<T>((1ULL << (8 * sizeof(T) - 1)) - 1), sign = static_cast<T>(~magnitude);
    const T from_size = x & magnitude, to_size = y & magnitude;
    if (static_cast<long long>(from_size) > infinity) {
        z = x;
    } else if (static_cast<long long>(to_size) > infinity) {
        z = y;
    } else {
        const long long from = x < 0 ? -static_cast<long long>(from_size) : static_cast<long long>(from_size);
        const long long to = y < 0 ? -static_cast<long long>(to_size) : static_cast<long long>(to_size);
        const long long next = from + (from < to) - (from > to);
        z = from == to ? y : next < 0 || (next == 0 && from < 0) ? static_cast<T>(static_cast<T>(-next) | sign)
                                                                : static_cast<T>(next);
    }
    """,
    "ferrum_next_after",
)

# One thread a product, factors in row-major order: overflow and underflow meet zeros where NumPy has them.
ORDERED_PRODUCT: Final[Callable[..., Any]] = cp.ElementwiseKernel(
    "raw T x, int64 n",
    "T y",
    """
    T product(1);
    for (long long j = 0; j < n; ++j) product *= x[i * n + j];
    y = product;
    """,
    "ferrum_ordered_product",
)

_BEST = """
template <typename T> struct Best {
    T value;
    long long index;
    __device__ Best() : value(), index(-1) {}
    __device__ Best(T v, long long i) : value(v), index(i) {}
};
template <typename T> __device__ bool is_nan(T v) { return v != v; }
template <typename T> __device__ Best<T> earlier(const Best<T>& a, const Best<T>& b) {
    return a.index <= b.index ? a : b;
}
template <typename T> __device__ Best<T> better(const Best<T>& a, const Best<T>& b, bool greatest) {
    if (a.index < 0) return b;
    if (b.index < 0) return a;
    if (is_nan(a.value) || is_nan(b.value)) {
        return is_nan(a.value) && is_nan(b.value) ? earlier(a, b) : is_nan(a.value) ? a : b;
    }
    if (a.value == b.value) return earlier(a, b);
    return (a.value > b.value) == greatest ? a : b;
}
"""


def _extreme(name: str, greatest: str, result: str, out: str) -> Any:
    """The first greatest or least element, a NaN counting as extreme: its value or its place."""
    return cp.ReductionKernel(
        "T x",
        out,
        "Best<T>(x, _J)",
        f"better(a, b, {greatest})",
        result,
        None,
        name,
        reduce_type="Best<T>",
        preamble=_BEST,
    )


MAX: Final[Callable[..., Any]] = _extreme("ferrum_max", "true", "y = a.value", "T y")
MIN: Final[Callable[..., Any]] = _extreme("ferrum_min", "false", "y = a.value", "T y")
ARGMAX: Final[Callable[..., Any]] = _extreme("ferrum_argmax", "true", "y = a.index", "int64 y")
ARGMIN: Final[Callable[..., Any]] = _extreme("ferrum_argmin", "false", "y = a.index", "int64 y")

ANY_OUTSIDE: Final[Callable[..., Any]] = cp.ReductionKernel(
    "int64 index, int64 length",
    "bool y",
    "index < -length || index >= length",
    "a || b",
    "y = a",
    "false",
    "ferrum_any_outside",
)

# 16-bit floats added in float32 and rounded once, without a float32 copy of the operand.
SUM_16: Final[Callable[..., Any]] = cp.ReductionKernel(
    "T x",
    "T y",
    "static_cast<float>(x)",
    "a + b",
    "y = static_cast<T>(a)",
    "0",
    "ferrum_sum_16",
    reduce_type="float",
)
