"""Activation functions and gates, elementwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, describe, finite, floating
from ferrum_ops.registry import Op

__all__ = ["ActivationKind", "activation", "gated_activation", "sigmoid_gate", "softcap"]

_ACTIVATION: Op[Tensor] = Op("activation")
_GATED_ACTIVATION: Op[Tensor] = Op("gated_activation")
_SIGMOID_GATE: Op[Tensor] = Op("sigmoid_gate")
_SOFTCAP: Op[Tensor] = Op("softcap")

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


def over_one_plus_exp(x: Tensor, u: Tensor) -> Tensor:
    """``x / (1 + exp(-u))``, with the limit 0 (and not NaN) for -inf."""
    return fa.maximum(x, -1000.0) / (fa.exp(-u) + 1.0)


def _gelu_tanh(x: Tensor) -> Tensor:
    # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), which does not cancel on the left
    return over_one_plus_exp(x, (x * x * 0.044715 + 1.0) * x * (2.0 * math.sqrt(2.0 / math.pi)))


def _softplus(x: Tensor) -> Tensor:
    return fa.maximum(x, 0.0) + fa.log1p(fa.exp(-fa.abs(x)))


_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: over_one_plus_exp(x, x),
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
    _known("activation", kind)
    return _ACTIVATION(x.device, (x.dtype,), (kind,), x, kind)


@_ACTIVATION.reference
def _activation(x: Tensor, kind: ActivationKind) -> Tensor:
    return _by_blocks(_KINDS[kind], x)


def gate_features(op: str, kind: str, limit: float | None, alpha: float, up_offset: float) -> tuple[str, ...]:
    """The features of a gate with these parameters, once they are checked; for all ops that have such a gate.

    Raises:
        ValueError: for the parameters that ``gated_activation`` refuses.
    """
    _known(op, kind)
    if limit is not None and not (finite(op, "limit", limit) and limit > 0):
        raise ValueError(f"{op}: limit must be finite and above 0, or None, got {limit}")
    if not (finite(op, "alpha", alpha) and alpha > 0):
        raise ValueError(f"{op}: alpha must be finite and above 0, got {alpha}")
    if alpha != 1.0 and kind != "silu":
        raise ValueError(f"{op}: alpha={alpha} belongs to kind 'silu', got kind {kind!r}")
    if not finite(op, "up_offset", up_offset):
        raise ValueError(f"{op}: up_offset must be finite, got {up_offset}")
    return (
        kind,
        *(("limit",) if limit is not None else ()),
        *(("alpha",) if alpha != 1.0 else ()),
        *(("up_offset",) if up_offset else ()),
    )


def gated_activation(
    gate: Tensor,
    up: Tensor,
    kind: ActivationKind,
    *,
    limit: float | None = None,
    alpha: float = 1.0,
    up_offset: float = 0.0,
) -> Tensor:
    """``act(gate) * (up + up_offset)``, elementwise: two tensors of one shape and dtype give one like them.

    The activations are those of ``activation``. Computed in float32 (float64 for float64) and rounded once. A linear
    layer that makes both halves at once gives them as ``h[..., :n]`` (the gate comes first) and ``h[..., n:]``.

    Args:
        gate: goes through the activation.
        up: multiplies it.
        kind: the activation.
        limit: first of all, gate becomes min(gate, limit), and up is clamped to -limit .. limit; NaN stays NaN.
        alpha: the activation becomes ``gate / (1 + exp(-alpha gate))``. For ``silu`` alone.
        up_offset: added to *up* after the clamp.

    The gate of gpt-oss is ``silu`` with ``limit=7, alpha=1.702, up_offset=1``.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020; OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025.

    Raises:
        TypeError: for anything not real floating-point, or two dtypes. ValueError: for an unknown *kind*, two shapes or
        devices, a *limit* that is not finite and above 0, an *alpha* that is not or that *kind* does not have, and an
        *up_offset* that is not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import gated_activation
        >>> gated_activation(fa.asarray([-1.0, 2.0, 9.0]), fa.asarray([3.0, 3.0, -9.0]), "relu", limit=4.0)
        Tensor([  0.,   6., -16.])
    """
    floating("gated_activation", "gate", gate)
    floating("gated_activation", "up", up)
    alike("gated_activation", gate, "up", up)
    if gate.shape != up.shape:
        raise ValueError(f"gated_activation: gate and up must share a shape, got {describe(gate)} and {describe(up)}")
    features = gate_features("gated_activation", kind, limit, alpha, up_offset)
    return _GATED_ACTIVATION(gate.device, (gate.dtype,), features, gate, up, kind, limit, alpha, up_offset)


@_GATED_ACTIVATION.reference
def _gated_activation(
    gate: Tensor, up: Tensor, kind: ActivationKind, limit: float | None, alpha: float, up_offset: float
) -> Tensor:
    function = _KINDS[kind]

    def gated(g: Tensor, u: Tensor) -> Tensor:
        if limit is not None:
            g, u = fa.minimum(g, float(limit)), fa.clip(u, -float(limit), float(limit))
        y = over_one_plus_exp(g, g * float(alpha)) if alpha != 1.0 else function(g)
        return y * (u + float(up_offset) if up_offset else u)

    return _by_blocks(gated, gate, up)


def sigmoid_gate(x: Tensor, gate: Tensor, *, residual: Tensor | None = None) -> Tensor:
    """``x / (1 + exp(-gate)) + residual``: x [..., D], gate [..., D] or one for each row, [..., 1].

    Computed in float32 (float64 for float64) and rounded once. All operands have one dtype, and the result has it too.

    Source: Dauphin et al., "Language Modeling with Gated Convolutional Networks", 2017.

    Raises:
        TypeError: for anything not real floating-point, or different dtypes. ValueError: for shapes or devices that do
        not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import sigmoid_gate
        >>> sigmoid_gate(fa.asarray([[2.0, 4.0]]), fa.asarray([[0.0]]), residual=fa.asarray([[1.0, 1.0]]))
        Tensor([[2., 3.]])
    """
    floating("sigmoid_gate", "x", x)
    floating("sigmoid_gate", "gate", gate)
    alike("sigmoid_gate", x, "gate", gate)
    by_row = gate.shape != x.shape
    if by_row and (not x.ndim or gate.shape != (*x.shape[:-1], 1)):
        raise ValueError(
            f"sigmoid_gate: gate must have the shape of x {describe(x)}, or 1 for the last axis, got {describe(gate)}"
        )
    if residual is not None:
        floating("sigmoid_gate", "residual", residual)
        alike("sigmoid_gate", x, "residual", residual)
        if residual.shape != x.shape:
            raise ValueError(f"sigmoid_gate: residual must have the shape of x {describe(x)}, got {describe(residual)}")
    features = (*(("by_row",) if by_row else ()), *(("residual",) if residual is not None else ()))
    return _SIGMOID_GATE(x.device, (x.dtype,), features, x, gate, residual)


@_SIGMOID_GATE.reference
def _sigmoid_gate(x: Tensor, gate: Tensor, residual: Tensor | None) -> Tensor:
    wide = accumulator(x.dtype)
    y = x.astype(wide, copy=False) / (fa.exp(-gate.astype(wide, copy=False)) + 1.0)
    if residual is not None:
        y += residual.astype(wide, copy=False)
    return y.astype(x.dtype, copy=False)


def softcap(x: Tensor, cap: float) -> Tensor:
    """``cap * tanh(x / cap)``, elementwise, in the dtype of *x*: keeps scores and logits between -cap and cap.

    Computed in float32 (float64 for float64) and rounded once.

    Source: Bello et al., "Neural Combinatorial Optimization with Reinforcement Learning", 2016; in Gemma 2.

    Raises:
        TypeError: if *x* is not real floating-point. ValueError: if *cap* is not finite and above 0.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import softcap
        >>> softcap(fa.asarray([0.0, fa.inf]), 30.0)
        Tensor([ 0., 30.])
    """
    floating("softcap", "x", x)
    if not (finite("softcap", "cap", cap) and cap > 0):
        raise ValueError(f"softcap: cap must be finite and above 0, got {cap}")
    return _SOFTCAP(x.device, (x.dtype,), (), x, cap)


@_SOFTCAP.reference
def _softcap(x: Tensor, cap: float) -> Tensor:
    return _by_blocks(lambda part: fa.tanh(part / float(cap)) * float(cap), x)


def _known(op: str, kind: str) -> None:
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"{op}: no kind is called {kind!r}; known are {', '.join(_KINDS)}")


def _by_blocks(function: Callable[..., Tensor], x: Tensor, *more: Tensor) -> Tensor:
    """An elementwise *function* of tensors of one shape and dtype, in the wide dtype, rounded to their own."""
    wide = accumulator(x.dtype)

    def rounded(*parts: Tensor) -> Tensor:
        return function(*(part.astype(wide, copy=False) for part in parts)).astype(x.dtype, copy=False)

    block = _BLOCK.get(x.device.kind, x.size)
    if x.size <= block:
        return rounded(x, *more)
    flat = [operand.reshape(x.size) for operand in (x, *more)]
    parts = [rounded(*(one[start : start + block] for one in flat)) for start in range(0, x.size, block)]
    return fa.concat(parts).reshape(x.shape)
