"""Activation functions, elementwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, floating

__all__ = ["ActivationKind", "activation"]

ActivationKind = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "softplus"]

# exp(t*t/2) * Q(t), where Q is the upper tail of the standard normal distribution, as a quotient of
# polynomials in t, lowest power first. The form follows W. J. Cody, "Rational Chebyshev
# approximations for the error function", 1969; the coefficients come from a Remez exchange in 60
# digits. All are positive, so nothing cancels for t >= 0. A row is numerator, denominator and the
# largest t: beyond it the tail is 0 in that precision.
# fmt: off
_TAIL_F32 = (
    (0.500000003144981, 0.439288887431272, 0.183973099129748, 4.08824310004685e-2,
     4.15341469496737e-3),
    (1.0, 1.67646278166712, 1.20556489243969, 0.471419101697248, 0.102483171989251,
     1.04109550922896e-2),
    15.0,  # relative error 6.4e-9
)
_TAIL_F64 = (
    (0.5, 0.7996952178547520, 0.6359535655889304, 0.3239374526999113, 0.1158026998676515,
     3.019198162642206e-2, 5.801074546409300e-3, 8.112682454777327e-4, 7.921898082109748e-5,
     4.901084732998783e-6, 1.470899824156858e-7),
    (1.0, 2.397274996512369, 2.684655838893823, 1.857244372333906, 0.8837269931836071,
     0.3044219787088861, 7.768905337550002e-2, 1.473897258217440e-2, 2.045833120929966e-3,
     1.989412371060783e-4, 1.228519756826951e-5, 3.686999088373156e-7),
    39.0,  # relative error 6.2e-17
)
# fmt: on

# On the CPU the intermediate results of a whole tensor would leave the caches: work goes block by
# block there.
_BLOCK = {"cpu": 1 << 16}


def _polynomial(coefficients: tuple[float, ...], t: Tensor) -> Tensor:
    """The polynomial in *t*, lowest power first, by Horner's rule."""
    value = t * coefficients[-1]
    value += coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value *= t
        value += coefficient
    return value


def _gelu(x: Tensor) -> Tensor:
    # x * Phi(x) is x - |x| Q(|x|) on the right and -|x| Q(|x|) on the left. Neither cancels, so the
    # left tail keeps its relative accuracy, which x * (1 + erf) / 2 loses.
    numerator, denominator, limit = _TAIL_F64 if x.dtype is fa.float64 else _TAIL_F32
    t = fa.minimum(fa.abs(x), limit)
    tail = _polynomial(numerator, t)
    tail /= _polynomial(denominator, t)
    tail *= t
    t *= t
    t *= -0.5
    tail *= fa.exp(t)
    result = fa.maximum(x, 0.0)
    result -= tail
    return result


def _over_one_plus_exp(x: Tensor, u: Tensor) -> Tensor:
    """``x / (1 + exp(-u))``, with the limit 0 (and not NaN) for -inf."""
    return fa.maximum(x, -1000.0) / (fa.exp(-u) + 1.0)


def _gelu_tanh(x: Tensor) -> Tensor:
    # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), which does not cancel on the left
    return _over_one_plus_exp(x, (x * x * 0.044715 + 1.0) * x * (2.0 * math.sqrt(2.0 / math.pi)))


def _softplus(x: Tensor) -> Tensor:
    return fa.maximum(x, 0.0) + fa.log1p(fa.exp(-fa.abs(x)))


_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: _over_one_plus_exp(x, x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: fa.maximum(x, 0.0),
    "relu2": lambda x: fa.square(fa.maximum(x, 0.0)),
    "sigmoid": lambda x: 1.0 / (fa.exp(-x) + 1.0),
    "softplus": _softplus,
}


def activation(x: Tensor, kind: ActivationKind) -> Tensor:
    """The activation function *kind* of each element of *x*, in the dtype of *x*.

    ======================  ==============================================================
    ``silu``                x / (1 + exp(-x))
    ``gelu``                x Phi(x), Phi the standard normal distribution function: exact
    ``gelu_tanh``           x (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))) / 2
    ``relu``, ``relu2``     max(x, 0) and its square
    ``sigmoid``             1 / (1 + exp(-x))
    ``softplus``            log(1 + exp(x))
    ======================  ==============================================================

    Computed in float32 (float64 for float64) and rounded once. The relative error of ``gelu`` is a
    few units in the last place where its absolute value exceeds 0.01, and grows by x**2/2 units
    along the left tail. Infinities give the limits, NaN gives NaN.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; So et al., "Primer", 2021,
    for ``relu2``.

    Raises:
        ValueError: for an unknown *kind*. TypeError: if *x* is not real floating-point.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import activation
        >>> activation(fa.asarray([-1.0, 0.0, 2.0]), "relu2")
        Tensor([0., 0., 4.])
    """
    floating("activation", "x", x)
    function = _KINDS.get(kind)
    if function is None:
        raise ValueError(f"activation: no kind is called {kind!r}; known are {', '.join(_KINDS)}")
    wide = accumulator(x.dtype)

    def rounded(part: Tensor) -> Tensor:
        return function(part.astype(wide, copy=False)).astype(x.dtype, copy=False)

    block = _BLOCK.get(x.device.kind, x.size)
    if x.size <= block:
        return rounded(x)
    flat = x.reshape(x.size)
    parts = [rounded(flat[start : start + block]) for start in range(0, x.size, block)]
    return fa.concat(parts).reshape(x.shape)
