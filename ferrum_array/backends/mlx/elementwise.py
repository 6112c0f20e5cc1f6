"""Elementwise functions: MLX's own where they agree with the standard, and what is needed where they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ferrum_array.backends.mlx.chapter import RAW_DTYPES, Chapter
from ferrum_array.dtype import Dtype, integer_limits

__all__ = ["BINARY", "UNARY", "Elementwise"]

#: MLX's functions that are right as they are, for the dtypes that do not visit the host.
UNARY: dict[str, Callable[..., mx.array]] = {
    name: getattr(mx, name)
    for name in (
        *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "bitwise_invert", "ceil", "conj", "cos", "cosh"),
        *("exp", "expm1", "floor", "imag", "isfinite", "isinf", "isnan", "log", "log10", "log1p", "log2"),
        *("logical_not", "negative", "positive", "real", "reciprocal", "round", "sinh", "sqrt", "square"),
        *("tan", "tanh", "trunc"),
    )
}
BINARY: dict[str, Callable[..., mx.array]] = {
    name: getattr(mx, name)
    for name in (
        *("add", "subtract", "multiply", "divide", "pow", "atan2", "logaddexp", "maximum", "minimum"),
        *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"),
        *("bitwise_and", "bitwise_or", "bitwise_xor"),
        *("logical_and", "logical_or", "logical_xor"),
    )
}

#: The unsigned and signed integers that have a float's bits.
_BITS = {
    Dtype.F16: (Dtype.U16, Dtype.I16),
    Dtype.BF16: (Dtype.U16, Dtype.I16),
    Dtype.F32: (Dtype.U32, Dtype.I32),
    Dtype.F64: (Dtype.U64, Dtype.I64),
}


class Elementwise(Chapter):
    """Fixes for MLX's elementwise functions."""

    def fn_sin(self, x: mx.array) -> mx.array:
        # MLX loses the sign of -0
        s = self.stream
        return mx.where(mx.equal(x, self.scalar(0, x), stream=s), x, mx.sin(x, stream=s), stream=s)

    def make_sign(self, dtype: Dtype) -> Callable[[mx.array], mx.array]:
        s = self.stream
        if not dtype.is_floating:
            return lambda x: mx.sign(x, stream=s)
        return lambda x: mx.where(mx.isnan(x, stream=s), x, mx.sign(x, stream=s), stream=s)

    def make_signbit(self, dtype: Dtype) -> Callable[[mx.array], mx.array]:
        _, signed = _BITS[dtype]
        s, raw, zero = self.stream, RAW_DTYPES[signed], self.constant(0, signed)
        return lambda x: mx.less(mx.view(x, raw, stream=s), zero, stream=s)

    def make_copysign(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        unsigned, _ = _BITS[dtype]
        s, bits = self.stream, RAW_DTYPES[unsigned]
        sign = self.constant(1 << (dtype.bits - 1), unsigned)
        size = self.constant((1 << (dtype.bits - 1)) - 1, unsigned)

        def copysign(x1: mx.array, x2: mx.array) -> mx.array:
            magnitude = mx.bitwise_and(mx.view(x1, bits, stream=s), size, stream=s)
            signs = mx.bitwise_and(mx.view(x2, bits, stream=s), sign, stream=s)
            return mx.view(mx.bitwise_or(magnitude, signs, stream=s), RAW_DTYPES[dtype], stream=s)

        return copysign

    # Integers: MLX's processors trap where the quotient overflows, and shift by the low bits of the distance alone.

    def make_floor_divide(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        return self._integer_floor_divide(dtype) if dtype.is_integer else self._float_floor_divide

    def make_remainder(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        s = self.stream
        if not dtype.is_integer:
            return self._float_remainder(dtype)
        zero, one = (self.constant(n, dtype) for n in (0, 1))
        trivial = self._trivial_divisor(dtype)

        def remainder(x1: mx.array, x2: mx.array) -> mx.array:
            nothing = trivial(x2)
            return mx.where(nothing, zero, mx.remainder(x1, mx.where(nothing, one, x2, stream=s), stream=s), stream=s)

        return remainder

    def _trivial_divisor(self, dtype: Dtype) -> Callable[[mx.array], mx.array]:
        """Where a divisor is 0, or -1, by which the least integer has no quotient."""
        s = self.stream
        zero = self.constant(0, dtype)
        if dtype.kind == "unsigned integer":
            return lambda x: mx.equal(x, zero, stream=s)
        minus = self.constant(-1, dtype)
        return lambda x: mx.logical_or(mx.equal(x, zero, stream=s), mx.equal(x, minus, stream=s), stream=s)

    def _integer_floor_divide(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        s, one = self.stream, self.constant(1, dtype)
        trivial = self._trivial_divisor(dtype)

        def floor_divide(x1: mx.array, x2: mx.array) -> mx.array:
            special = trivial(x2)
            quotient = mx.floor_divide(x1, mx.where(special, one, x2, stream=s), stream=s)
            # by 0: 0, as in NumPy; by -1: the negative, modulo the size
            return mx.where(special, mx.multiply(x1, x2, stream=s), quotient, stream=s)

        return floor_divide

    def _float_remainder(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        s = self.stream
        copysign = self.make_copysign(dtype)

        def remainder(x1: mx.array, x2: mx.array) -> mx.array:
            result = mx.remainder(x1, x2, stream=s)
            signed = copysign(result, mx.broadcast_to(x2, result.shape, stream=s))
            return mx.where(mx.equal(result, self.scalar(0, result), stream=s), signed, result, stream=s)

        return remainder

    def _float_floor_divide(self, x1: mx.array, x2: mx.array) -> mx.array:
        s = self.stream
        exact = mx.divide(x1, x2, stream=s)
        rest = mx.remainder(x1, x2, stream=s)
        # x1 - rest is a multiple of x2 up to rounding, so the nearest integer is the quotient
        whole = mx.round(mx.divide(mx.subtract(x1, rest, stream=s), x2, stream=s), stream=s)
        nothing = mx.equal(whole, self.scalar(0, whole), stream=s)
        whole = mx.where(nothing, mx.floor(exact, stream=s), whole, stream=s)
        usual = mx.logical_and(mx.isfinite(whole, stream=s), mx.isfinite(x2, stream=s), stream=s)
        return mx.where(usual, whole, mx.floor(exact, stream=s), stream=s)

    def make_bitwise_left_shift(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        return self._shift(mx.left_shift, dtype, fills_with_sign=False)

    def make_bitwise_right_shift(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        return self._shift(mx.right_shift, dtype, fills_with_sign=dtype.kind == "signed integer")

    def _shift(
        self, shift: Callable[..., mx.array], dtype: Dtype, *, fills_with_sign: bool
    ) -> Callable[[mx.array, mx.array], mx.array]:
        s = self.stream
        zero, last = (self.constant(n, dtype) for n in (0, dtype.bits - 1))

        def shifted(x1: mx.array, x2: mx.array) -> mx.array:
            inside = mx.less_equal(x2, last, stream=s)
            if dtype.kind == "signed integer":
                inside = mx.logical_and(inside, mx.greater_equal(x2, zero, stream=s), stream=s)
            if fills_with_sign:
                return shift(x1, mx.where(inside, x2, last, stream=s), stream=s)
            moved = shift(x1, mx.where(inside, x2, zero, stream=s), stream=s)
            return mx.where(inside, moved, zero, stream=s)

        return shifted

    # Complex numbers.

    def make_multiply(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array] | None:
        s = self.stream
        if not dtype.is_complex:
            return None

        def multiply(x1: Any, x2: Any) -> mx.array:
            # by the definition: MLX's own product recovers infinities as C does, NumPy's does not
            a, b = mx.real(x1, stream=s), mx.imag(x1, stream=s)
            c, d = mx.real(x2, stream=s), mx.imag(x2, stream=s)
            real = mx.subtract(mx.multiply(a, c, stream=s), mx.multiply(b, d, stream=s), stream=s)
            imaginary = mx.add(mx.multiply(a, d, stream=s), mx.multiply(b, c, stream=s), stream=s)
            return self.complex_of(real, imaginary)

        return multiply

    def complex_of(self, real: mx.array, imaginary: mx.array) -> mx.array:
        """The complex array with these parts; adding 1j times the second would make NaN of infinities."""
        s = self.stream
        pairs = mx.stack([real, imaginary], axis=-1, stream=s)
        return mx.reshape(mx.view(pairs, mx.complex64, stream=s), real.shape, stream=s)

    def fn_view_real(self, x: mx.array) -> mx.array:
        s = self.stream
        return mx.stack([mx.real(x, stream=s), mx.imag(x, stream=s)], axis=-1, stream=s)

    # Three operands.

    def fn_clip(self, x: mx.array, lower: mx.array | None, upper: mx.array | None) -> mx.array:
        s = self.stream
        if lower is not None:
            x = mx.maximum(x, lower, stream=s)
        return mx.positive(x, stream=s) if upper is None else mx.minimum(x, upper, stream=s)

    def fn_where(self, condition: mx.array, x1: mx.array, x2: mx.array) -> mx.array:
        return mx.where(condition, x1, x2, stream=self.stream)

    # Python numbers as second operands.

    def with_scalars(
        self, operate: Callable[[Any, Any], mx.array], dtype: Dtype, *, as_array: bool
    ) -> Callable[[Any, Any], mx.array]:
        """*operate*, which also takes a Python number in one place, if *dtype* holds it; else OverflowError.

        MLX's own functions take numbers as they are; ours need an array.
        """
        array = mx.array
        raw = RAW_DTYPES[dtype]
        if dtype.is_integer:
            low, high = integer_limits(dtype)
            high = min(high, (1 << 63) - 1)  # MLX reads them as int64; beyond that, the long way

            def number(value: Any) -> Any:
                if not low <= value <= high:
                    raise OverflowError(f"{value} is outside {dtype}")
                return array(value, dtype=raw) if as_array else value
        else:
            kind: type = complex if dtype.is_complex else float

            def number(value: Any) -> Any:
                return array(kind(value), dtype=raw) if as_array else kind(value)

        def call(x1: Any, x2: Any) -> mx.array:
            if x2.__class__ is not array:
                x2 = number(x2)
            elif x1.__class__ is not array:
                x1 = number(x1)
            return operate(x1, x2)

        return call
