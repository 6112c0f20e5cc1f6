"""Kernels of ``activation``, ``gated_activation``, ``sigmoid_gate`` and ``softcap``.

Each kind is compiled by itself, because a model has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ferrum_array import Tensor
from ferrum_ops.activation import _TAIL_F32
from ferrum_ops.kernels.cpu.arrays import empty_like, flat, flat_or_nothing, rows
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.intrinsics import exp, exp_below, get, put
from ferrum_ops.kernels.cpu.jit import EXACT, jit
from ferrum_ops.kernels.cpu.threads import GRAIN, crew, rows_each, share
from ferrum_ops.recorded import records

__all__ = ["activation", "gate_kernel", "gated_activation", "over_one_plus_exp", "sigmoid_gate", "softcap", "tanh"]

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@jit(fastmath=EXACT, inner=True)
def _at_least(x: Any, low: Any) -> Any:
    """The larger one; NaN stays NaN."""
    return low if x < low else x


@jit(fastmath=EXACT, inner=True)
def over_one_plus_exp(x: Any, u: Any) -> Any:
    """``x / (1 + exp(-u))``, with the limit 0 (and not NaN) for -inf."""
    return _at_least(x, np.float32(-1000.0)) / (exp(-u) + _ONE)


@jit(fastmath=EXACT, inner=True)
def _silu(x: Any) -> Any:
    return over_one_plus_exp(x, x)


@jit(fastmath=EXACT, inner=True)
def _sigmoid(x: Any) -> Any:
    return _ONE / (exp(-x) + _ONE)


_TWICE_ROOT = np.float32(2.0 * math.sqrt(2.0 / math.pi))


@jit(fastmath=EXACT, inner=True)
def _gelu_tanh(x: Any) -> Any:
    return over_one_plus_exp(x, (x * x * np.float32(0.044715) + _ONE) * x * _TWICE_ROOT)


_ABOVE, _BELOW = (tuple(map(np.float32, part)) for part in _TAIL_F32[:2])
_FURTHEST = np.float32(_TAIL_F32[2])
_A0, _A1, _A2, _A3, _A4 = _ABOVE
_B0, _B1, _B2, _B3, _B4, _B5 = _BELOW


@jit(fastmath=EXACT, inner=True)
def _gelu(x: Any) -> Any:
    # the tail of the normal distribution, as the reference has it
    t = abs(x)
    t = _FURTHEST if t > _FURTHEST else t
    above = (((_A4 * t + _A3) * t + _A2) * t + _A1) * t + _A0
    below = ((((_B5 * t + _B4) * t + _B3) * t + _B2) * t + _B1) * t + _B0
    return _at_least(x, _ZERO) - above / below * t * exp_below(t * t * np.float32(-0.5))


@jit(fastmath=EXACT, inner=True)
def _relu(x: Any) -> Any:
    return _at_least(x, _ZERO)


@jit(fastmath=EXACT, inner=True)
def _relu2(x: Any) -> Any:
    y = _at_least(x, _ZERO)
    return y * y


_KINDS: dict[str, Callable[[Any], Any]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "relu2": _relu2,
    "sigmoid": _sigmoid,
}


@cache
def _activation(kind: str) -> Any:
    """The kernel of one kind."""
    function = _KINDS[kind]

    @jit(fastmath=EXACT, variant=(kind,), inner=True)
    def part(x: Any, out: Any, first: int, end: int) -> None:
        for i in range(first, end):
            put(out, i, function(get(x, i)))

    @jit(fastmath=EXACT, variant=(kind,))
    def whole(x: Any, out: Any, crew: int) -> None:
        share(crew, task(part, (x, out)), out.size, GRAIN)

    return whole


@records
def activation(x: Tensor, kind: str) -> Tensor:
    """The op."""
    result, out = empty_like(x)
    launch(_activation(kind), flat(x), out, crew(4 * out.size))
    return result


@cache
def gate_kernel(kind: str, special: bool) -> Any:
    """The kernel of one kind of gate, *special* with limit, alpha and offset."""
    function = _KINDS[kind]
    silu = kind == "silu"

    @jit(fastmath=EXACT, variant=(kind, special), inner=True)
    def part(
        gate: Any, gate_step: int, up: Any, up_step: int, numbers: Any, out: Any, size: int, first: int, end: int
    ) -> None:
        limit, alpha, up_offset = numbers
        for row in range(first // size, (end + size - 1) // size):
            left, right = max(first - row * size, 0), min(end - row * size, size)
            for i in range(left, right):
                g, u = get(gate, row * gate_step + i), get(up, row * up_step + i)
                if special:
                    g = limit if g > limit else g
                    u = limit if u > limit else u
                    u = _at_least(u, -limit) + up_offset
                    y = over_one_plus_exp(g, g * alpha) if silu else function(g)
                else:
                    y = function(g)
                put(out, row * size + i, y * u)

    @jit(fastmath=EXACT, variant=(kind, special))
    def whole(
        gate: Any,
        gate_step: int,
        up: Any,
        up_step: int,
        limit: float,
        alpha: float,
        up_offset: float,
        out: Any,
        size: int,
        crew: int,
    ) -> None:
        if out.size:
            numbers = np.float32(limit), np.float32(alpha), np.float32(up_offset)
            share(crew, task(part, (gate, gate_step, up, up_step, numbers, out, size)), out.size, GRAIN)

    return whole


@records
def gated_activation(
    gate: Tensor, up: Tensor, kind: str, limit: float | None, alpha: float, up_offset: float
) -> Tensor:
    """The op; halves of one tensor are read where they lie."""
    shape = gate._data.shape
    size = shape[-1] if shape else 1
    gates, gate_step = rows(gate)
    ups, up_step = rows(up)
    result, out = empty_like(gate)
    special = limit is not None or alpha != 1.0 or up_offset != 0.0
    kernel = gate_kernel(kind, special)
    bound = math.inf if limit is None else float(limit)
    numbers = bound, float(alpha), float(up_offset)
    launch(kernel, gates, gate_step, ups, up_step, *numbers, out, size, crew(5 * out.size))
    return result


@jit(fastmath=EXACT, inner=True)
def _sigmoid_part(x: Any, gate: Any, size: int, by_row: bool, residual: Any, out: Any, first: int, end: int) -> None:
    for row in range(first, end):
        at = row * size
        if by_row:
            # the quotient itself, not a product with a rounded sigmoid
            below = exp(-get(gate, row)) + _ONE
            for i in range(at, at + size):
                y = get(x, i) / below
                put(out, i, y + get(residual, i) if residual.size else y)
        else:
            for i in range(at, at + size):
                y = get(x, i) / (exp(-get(gate, i)) + _ONE)
                put(out, i, y + get(residual, i) if residual.size else y)


@jit(fastmath=EXACT)
def _sigmoid_gate(x: Any, gate: Any, size: int, by_row: bool, residual: Any, out: Any, crew: int) -> None:
    if out.size:
        job = task(_sigmoid_part, (x, gate, size, by_row, residual, out))
        share(crew, job, out.size // size, rows_each(size))


@records
def sigmoid_gate(x: Tensor, gate: Tensor, residual: Tensor | None) -> Tensor:
    """The op."""
    shape = x._data.shape
    by_row = gate._data.shape != shape
    result, out = empty_like(x)
    size = shape[-1] if shape else 1
    added = flat_or_nothing(residual, x)
    launch(_sigmoid_gate, flat(x), flat(gate), size, by_row, added, out, crew(4 * out.size))
    return result


# tanh(x) = x + x**3 * R(x**2) near 0, where the form with exponentials would cancel. R comes from a Remez exchange in
# 50 digits; the relative error of this form is 1.4e-9 for |x| <= 0.5625.
_NEAR = np.float32(0.5625)
_R0, _R1, _R2, _R3, _R4 = map(
    np.float32, (-0.33333313709, 0.13332445885, -0.05383673615, 0.021004531326, -0.0061756035935)
)


@jit(fastmath=EXACT, inner=True)
def tanh(x: Any) -> Any:
    """The hyperbolic tangent of a float32, within 3 units in the last place; becomes a vector in loops."""
    t = abs(x)
    e = exp_below(np.float32(-2.0) * t)
    far = (_ONE - e) / (_ONE + e)
    s = x * x
    near = t + t * s * ((((_R4 * s + _R3) * s + _R2) * s + _R1) * s + _R0)
    found = near if t < _NEAR else far
    return math.copysign(found, x)


@jit(fastmath=EXACT, inner=True)
def _softcap_part(x: Any, cap: Any, out: Any, first: int, end: int) -> None:
    for i in range(first, end):
        put(out, i, tanh(get(x, i) / cap) * cap)


@jit(fastmath=EXACT)
def _softcap(x: Any, cap: float, out: Any, crew: int) -> None:
    share(crew, task(_softcap_part, (x, np.float32(cap), out)), out.size, GRAIN)


@records
def softcap(x: Tensor, cap: float) -> Tensor:
    """The op."""
    result, out = empty_like(x)
    launch(_softcap, flat(x), float(cap), out, crew(4 * out.size))
    return result
