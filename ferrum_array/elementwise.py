"""Elementwise functions of the array API standard, one row each; their dtypes stand in ``spec.py``."""

from __future__ import annotations

from typing import Any

from ferrum_array.dispatch import Operand, binary, broadcast, predicate, raw, real_valued, suited, tensor, unary, unify
from ferrum_array.tensor import Tensor, wrap

__all__ = [
    "abs", "acos", "acosh", "add", "asin", "asinh", "atan", "atan2", "atanh", "bitwise_and", "bitwise_invert",
    "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "ceil", "clip", "conj", "copysign",
    "cos", "cosh", "divide", "equal", "exp", "expm1", "floor", "floor_divide", "greater", "greater_equal", "hypot",
    "imag", "isfinite", "isinf", "isnan", "less", "less_equal", "log", "log10", "log1p", "log2", "logaddexp",
    "logical_and", "logical_not", "logical_or", "logical_xor", "maximum", "minimum", "multiply", "negative",
    "nextafter", "not_equal", "positive", "pow", "real", "reciprocal", "remainder", "round", "sign", "signbit",
    "sin", "sinh", "sqrt", "square", "subtract", "tan", "tanh", "trunc",
]  # fmt: skip


def _doc(summary: str, example: str, result: str) -> str:
    return (
        f"{summary}\n\n"
        "Shapes broadcast; dtypes promote; integers in floating functions become float32. "
        "Special cases are those of the array API standard 2025.12.\n\n"
        "Raises:\n"
        "    TypeError: for a dtype outside the function's kinds. ValueError: for shapes that do not broadcast.\n\n"
        f"Examples:\n    >>> import ferrum_array as fa\n    >>> {example}\n    {result}\n"
    )


# One tensor.
abs = real_valued(
    "abs", _doc("The absolute value, ``|x|``; real for complex x.", "fa.abs(fa.asarray([-1, 2]))", "Tensor([1, 2])")
)
acos = unary("acos", _doc("The inverse cosine, in radians.", "fa.acos(fa.asarray([1.0]))", "Tensor([0.])"))
acosh = unary("acosh", _doc("The inverse hyperbolic cosine.", "fa.acosh(fa.asarray([1.0]))", "Tensor([0.])"))
asin = unary("asin", _doc("The inverse sine, in radians.", "fa.asin(fa.asarray([0.0]))", "Tensor([0.])"))
asinh = unary("asinh", _doc("The inverse hyperbolic sine.", "fa.asinh(fa.asarray([0.0]))", "Tensor([0.])"))
atan = unary("atan", _doc("The inverse tangent, in radians.", "fa.atan(fa.asarray([0.0]))", "Tensor([0.])"))
atanh = unary("atanh", _doc("The inverse hyperbolic tangent.", "fa.atanh(fa.asarray([0.0]))", "Tensor([0.])"))
bitwise_invert = unary(
    "bitwise_invert", _doc("Every bit inverted, ~x.", "fa.bitwise_invert(fa.asarray([0, 5]))", "Tensor([-1, -6])")
)
ceil = unary("ceil", _doc("The least integer not below x.", "fa.ceil(fa.asarray([1.5]))", "Tensor([2.])"))
conj = unary("conj", _doc("The complex conjugate.", "fa.conj(fa.asarray([1 + 2j]))", "Tensor([1.-2.j])"))
cos = unary("cos", _doc("The cosine of x radians.", "fa.cos(fa.asarray([0.0]))", "Tensor([1.])"))
cosh = unary("cosh", _doc("The hyperbolic cosine.", "fa.cosh(fa.asarray([0.0]))", "Tensor([1.])"))
exp = unary("exp", _doc("e to the power x.", "fa.exp(fa.asarray([0.0]))", "Tensor([1.])"))
expm1 = unary("expm1", _doc("exp(x) - 1, accurate near 0.", "fa.expm1(fa.asarray([0.0]))", "Tensor([0.])"))
floor = unary("floor", _doc("The greatest integer not above x.", "fa.floor(fa.asarray([1.5]))", "Tensor([1.])"))
imag = real_valued("imag", _doc("The imaginary part.", "fa.imag(fa.asarray([1 + 2j]))", "Tensor([2.])"))
isfinite = predicate(
    "isfinite", _doc("Whether x is finite.", "fa.isfinite(fa.asarray([1.0, fa.inf]))", "Tensor([ True, False])")
)
isinf = predicate(
    "isinf", _doc("Whether x is infinite.", "fa.isinf(fa.asarray([1.0, fa.inf]))", "Tensor([False,  True])")
)
isnan = predicate("isnan", _doc("Whether x is NaN.", "fa.isnan(fa.asarray([1.0, fa.nan]))", "Tensor([False,  True])"))
log = unary("log", _doc("The natural logarithm.", "fa.log(fa.asarray([1.0, 0.0]))", "Tensor([  0., -inf])"))
log10 = unary("log10", _doc("The logarithm to base 10.", "fa.log10(fa.asarray([1.0]))", "Tensor([0.])"))
log1p = unary("log1p", _doc("log(1 + x), accurate near 0.", "fa.log1p(fa.asarray([0.0]))", "Tensor([0.])"))
log2 = unary("log2", _doc("The logarithm to base 2.", "fa.log2(fa.asarray([8.0]))", "Tensor([3.])"))
logical_not = unary("logical_not", _doc("Not x, of booleans.", "fa.logical_not(fa.asarray([True]))", "Tensor([False])"))
negative = unary("negative", _doc("-x.", "fa.negative(fa.asarray([1, -2]))", "Tensor([-1,  2])"))
positive = unary("positive", _doc("+x: a copy.", "fa.positive(fa.asarray([1, -2]))", "Tensor([ 1, -2])"))
real = real_valued("real", _doc("The real part.", "fa.real(fa.asarray([1 + 2j]))", "Tensor([1.])"))
reciprocal = unary("reciprocal", _doc("1 / x.", "fa.reciprocal(fa.asarray([4.0]))", "Tensor([0.25])"))
round = unary(
    "round", _doc("The nearest integer, halves to even.", "fa.round(fa.asarray([0.5, 1.5]))", "Tensor([0., 2.])")
)
sign = unary(
    "sign", _doc("-1, 0 or 1; ``x / |x|`` for complex x.", "fa.sign(fa.asarray([-3, 0, 3]))", "Tensor([-1,  0,  1])")
)
signbit = predicate(
    "signbit", _doc("Whether the sign bit is set.", "fa.signbit(fa.asarray([-0.0, 0.0]))", "Tensor([ True, False])")
)
sin = unary("sin", _doc("The sine of x radians.", "fa.sin(fa.asarray([0.0]))", "Tensor([0.])"))
sinh = unary("sinh", _doc("The hyperbolic sine.", "fa.sinh(fa.asarray([0.0]))", "Tensor([0.])"))
sqrt = unary("sqrt", _doc("The principal square root.", "fa.sqrt(fa.asarray([9.0]))", "Tensor([3.])"))
square = unary("square", _doc("x times x.", "fa.square(fa.asarray([3]))", "Tensor([9])"))
tan = unary("tan", _doc("The tangent of x radians.", "fa.tan(fa.asarray([0.0]))", "Tensor([0.])"))
tanh = unary("tanh", _doc("The hyperbolic tangent.", "fa.tanh(fa.asarray([0.0]))", "Tensor([0.])"))
trunc = unary("trunc", _doc("x without its fraction.", "fa.trunc(fa.asarray([-1.5]))", "Tensor([-1.])"))

# Two operands.
add = binary("add", _doc("x1 + x2.", "fa.add(fa.asarray([1, 2]), 3)", "Tensor([4, 5])"))
atan2 = binary("atan2", _doc("The angle of (x2, x1), in radians.", "fa.atan2(fa.asarray([0.0]), 1.0)", "Tensor([0.])"))
bitwise_and = binary("bitwise_and", _doc("x1 & x2.", "fa.bitwise_and(fa.asarray([6]), 3)", "Tensor([2])"))
bitwise_left_shift = binary(
    "bitwise_left_shift", _doc("x1 << x2.", "fa.bitwise_left_shift(fa.asarray([1]), 3)", "Tensor([8])")
)
bitwise_or = binary("bitwise_or", _doc("x1 | x2.", "fa.bitwise_or(fa.asarray([6]), 3)", "Tensor([7])"))
bitwise_right_shift = binary(
    "bitwise_right_shift", _doc("x1 >> x2.", "fa.bitwise_right_shift(fa.asarray([8]), 3)", "Tensor([1])")
)
bitwise_xor = binary("bitwise_xor", _doc("x1 ^ x2.", "fa.bitwise_xor(fa.asarray([6]), 3)", "Tensor([5])"))
copysign = binary(
    "copysign", _doc("``|x1|`` with the sign of x2.", "fa.copysign(fa.asarray([1.0]), -0.0)", "Tensor([-1.])")
)
divide = binary("divide", _doc("x1 / x2.", "fa.divide(fa.asarray([1, 2]), 2)", "Tensor([0.5, 1. ])"))
equal = binary("equal", _doc("Whether x1 == x2.", "fa.equal(fa.asarray([1, 2]), 2)", "Tensor([False,  True])"))
floor_divide = binary(
    "floor_divide", _doc("x1 / x2, rounded down.", "fa.floor_divide(fa.asarray([-7]), 2)", "Tensor([-4])")
)
greater = binary("greater", _doc("Whether x1 > x2.", "fa.greater(fa.asarray([1, 2]), 1)", "Tensor([False,  True])"))
greater_equal = binary(
    "greater_equal", _doc("Whether x1 >= x2.", "fa.greater_equal(fa.asarray([1, 2]), 2)", "Tensor([False,  True])")
)
hypot = binary(
    "hypot", _doc("sqrt(x1**2 + x2**2) without overflow.", "fa.hypot(fa.asarray([3.0]), 4.0)", "Tensor([5.])")
)
less = binary("less", _doc("Whether x1 < x2.", "fa.less(fa.asarray([1, 2]), 2)", "Tensor([ True, False])"))
less_equal = binary(
    "less_equal", _doc("Whether x1 <= x2.", "fa.less_equal(fa.asarray([1, 2]), 1)", "Tensor([ True, False])")
)
logaddexp = binary(
    "logaddexp", _doc("log(exp(x1) + exp(x2)).", "fa.logaddexp(fa.asarray([0.0]), -fa.inf)", "Tensor([0.])")
)
logical_and = binary(
    "logical_and", _doc("x1 and x2, of booleans.", "fa.logical_and(fa.asarray([True]), False)", "Tensor([False])")
)
logical_or = binary(
    "logical_or", _doc("x1 or x2, of booleans.", "fa.logical_or(fa.asarray([True]), False)", "Tensor([ True])")
)
logical_xor = binary(
    "logical_xor", _doc("Either x1 or x2, of booleans.", "fa.logical_xor(fa.asarray([True]), True)", "Tensor([False])")
)
maximum = binary(
    "maximum", _doc("The greater; NaN if either is.", "fa.maximum(fa.asarray([1, 5]), 3)", "Tensor([3, 5])")
)
minimum = binary(
    "minimum", _doc("The lesser; NaN if either is.", "fa.minimum(fa.asarray([1, 5]), 3)", "Tensor([1, 3])")
)
multiply = binary("multiply", _doc("x1 * x2.", "fa.multiply(fa.asarray([1, 2]), 3)", "Tensor([3, 6])"))
nextafter = binary(
    "nextafter",
    _doc("The next number after x1 towards x2.", "fa.nextafter(fa.asarray([0.0]), 1.0) > 0", "Tensor([ True])"),
)
not_equal = binary(
    "not_equal", _doc("Whether x1 != x2.", "fa.not_equal(fa.asarray([1, 2]), 2)", "Tensor([ True, False])")
)
pow = binary("pow", _doc("x1 to the power x2.", "fa.pow(fa.asarray([2, 3]), 2)", "Tensor([4, 9])"))
remainder = binary(
    "remainder", _doc("x1 modulo x2, with the sign of x2.", "fa.remainder(fa.asarray([-7]), 3)", "Tensor([2])")
)
subtract = binary("subtract", _doc("x1 - x2.", "fa.subtract(fa.asarray([1, 2]), 3)", "Tensor([-2, -1])"))


def clip(x: Tensor, /, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """*x* limited to at least *min* and at most *max*; either may be None, a number or a tensor that broadcasts.

    The result has the dtype of *x* (array API standard, ``clip``). A NaN in any operand gives NaN.

    Raises:
        TypeError: for complex or boolean *x*, or a bound of a higher kind than *x*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.clip(fa.asarray([-5, 0, 5]), -1, 3)
        Tensor([-1,  0,  3])
    """
    x = tensor("clip", x)
    spec = suited("clip", x._spec)
    lower, upper = _bound("min", min, x), _bound("max", max, x)
    broadcast("clip", x.shape, *(tuple(one.shape) for one in (lower, upper) if one is not None))
    return wrap(spec.call["clip"](x._data, lower, upper), spec)


def _bound(which: str, bound: Operand | None, x: Tensor) -> Any:
    """A bound as a raw array in the dtype of *x*."""
    spec = x._spec
    if bound is None:
        return None
    if bound.__class__ not in spec.scalars and not (isinstance(bound, Tensor) and bound._spec is spec):
        common, (_, limit) = unify("clip", x, bound)
        if common.dtype.kind != spec.dtype.kind and not (common.dtype.is_integer and spec.dtype.is_integer):
            raise TypeError(f"clip: {which} would lift {x.dtype} to {common.dtype}; convert x first with astype()")
        return limit if common is spec else spec.call["astype"](limit)
    return raw("clip", bound, spec)
