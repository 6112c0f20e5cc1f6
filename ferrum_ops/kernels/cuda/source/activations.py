"""Activations and gates, element by element, in float32."""

import triton
import triton.language as tl

from ferrum_ops.activation import _TAIL_F32

__all__ = [
    "activated", "activation", "exponential", "gated", "gated_activation", "hyperbolic_tangent",
    "over_one_plus_exp", "quotient", "sigmoid_gate", "softcap",
]  # fmt: skip

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOG2_E_LOW = tl.constexpr(1.925963033500e-08)  # what float32 leaves out of it
_LN_2 = tl.constexpr(0.6931471805599453)
# the tail of the normal distribution, as the reference has it
_A0, _A1, _A2, _A3, _A4 = map(tl.constexpr, _TAIL_F32[0])
_B0, _B1, _B2, _B3, _B4, _B5 = map(tl.constexpr, _TAIL_F32[1])
_FURTHEST = tl.constexpr(_TAIL_F32[2])
# tanh(x) = x + x**3 * R(x**2) near 0, where the form with exponentials would cancel; as on the CPU
_NEAR = tl.constexpr(0.5625)
_NEARER = tl.constexpr(0.25)  # where three terms of its series are enough for 16 bits
_SMALL = tl.constexpr(0.015625)  # and below this four of the logarithm's
_R0 = tl.constexpr(-0.33333313709)
_R1 = tl.constexpr(0.13332445885)
_R2 = tl.constexpr(-0.05383673615)
_R3 = tl.constexpr(0.021004531326)
_R4 = tl.constexpr(-0.0061756035935)
_COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)  # the interpreter knows no instructions


@triton.jit
def _power_of_two(x):
    """``2**x`` to 2 units in the last place; 0 below the least normal number."""
    if _COMPILED:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def _logarithm(x):
    """``log2(x)``, which is off by 2**-22 near 1."""
    if _COMPILED:
        y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        y = tl.log2(x)
    return y


@triton.jit
def _inverse(x):
    """``1 / x`` to a unit in the last place; 0 for x beyond 2**126."""
    if _COMPILED:
        y = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        y = 1.0 / x
    return y


@triton.jit
def exponential(x, EXACT: tl.constexpr):
    """``exp(x)``; EXACT is to 2 units in the last place, otherwise an error of about ``|x|`` units is too small to see.

    The product with log2(e) is rounded, and what it lacks is made up for by a factor near 1.
    """
    if EXACT:
        x = tl.where(x < -1000.0, -1000.0, tl.where(x > 1000.0, 1000.0, x))
        high = x * _LOG2_E
        low = tl.fma(x, _LOG2_E, -high) + x * _LOG2_E_LOW
        y = tl.exp2(high) * (low * _LN_2 + 1.0)
    else:
        y = _power_of_two(x * _LOG2_E)
    return y


@triton.jit
def quotient(a, b, EXACT: tl.constexpr):
    """``a / b``, to the last place or to 2 units in it."""
    return tl.div_rn(a, b) if EXACT else a / b


@triton.jit
def over_one_plus_exp(x, u, EXACT: tl.constexpr):
    """``x / (1 + exp(-u))``, with the limit 0 (and not NaN) for -inf."""
    return quotient(tl.where(x < -1000.0, -1000.0, x), exponential(-u, EXACT) + 1.0, EXACT)


@triton.jit
def _gelu(x, EXACT: tl.constexpr):
    t = tl.abs(x)
    t = tl.where(t > _FURTHEST, _FURTHEST, t)
    above = (((_A4 * t + _A3) * t + _A2) * t + _A1) * t + _A0
    below = ((((_B5 * t + _B4) * t + _B3) * t + _B2) * t + _B1) * t + _B0
    ratio = tl.div_rn(above, below) if EXACT else above * _inverse(below)
    tail = ratio * t * exponential(t * t * -0.5, EXACT)
    return tl.where(x < 0.0, 0.0, x) - tail


@triton.jit
def _softplus(x, EXACT: tl.constexpr):
    e = exponential(-tl.abs(x), EXACT)
    u = e + 1.0
    if EXACT:  # u is rounded; the quotient makes up for it (Kahan's logarithm of 1 + e)
        log = tl.where(u == 1.0, e, tl.log(u) * tl.div_rn(e, tl.where(u == 1.0, 1.0, u - 1.0)))
    else:
        series = e * (((0.3333333333333333 - 0.25 * e) * e - 0.5) * e + 1.0)
        log = tl.where(e < _SMALL, series, _logarithm(u) * _LN_2)
    return tl.where(x < 0.0, 0.0, x) + log


@triton.jit
def hyperbolic_tangent(x, EXACT: tl.constexpr):
    """``tanh(x)``, to the last places near 0 too."""
    t = tl.abs(x)
    e = exponential(-2.0 * t, EXACT)
    s = x * x
    if EXACT:
        near = t + t * s * ((((_R4 * s + _R3) * s + _R2) * s + _R1) * s + _R0)
        found = tl.where(t < _NEAR, near, tl.div_rn(1.0 - e, e + 1.0))
    else:
        near = t + t * s * ((-0.05396825396825397 * s + 0.13333333333333333) * s - 0.3333333333333333)
        found = tl.where(t < _NEARER, near, (1.0 - e) * _inverse(e + 1.0))
    return tl.where(x < 0.0, -found, found)


@triton.jit
def activated(x, KIND: tl.constexpr, EXACT: tl.constexpr):
    """The activation function KIND of a float32 block; EXACT where the result is a float32."""
    if KIND == "silu":
        y = over_one_plus_exp(x, x, EXACT)
    elif KIND == "gelu":
        y = _gelu(x, EXACT)
    elif KIND == "gelu_tanh":
        y = over_one_plus_exp(x, (x * x * 0.044715 + 1.0) * x * 1.5957691216057308, EXACT)
    elif KIND == "relu":
        y = tl.where(x < 0.0, 0.0, x)
    elif KIND == "relu2":
        y = tl.where(x < 0.0, 0.0, x)
        y *= y
    elif KIND == "sigmoid":
        y = quotient(1.0, exponential(-x, EXACT) + 1.0, EXACT)
    else:
        tl.static_assert(KIND == "softplus")
        y = _softplus(x, EXACT)
    return y


@triton.jit
def gated(g, u, limit, alpha, up_offset, KIND: tl.constexpr, EXACT: tl.constexpr):
    """``act(g) * (u + up_offset)`` of float32 blocks; limit, alpha and up_offset may be absent."""
    if limit is not None:
        g = tl.where(g > limit, limit, g)
        u = tl.where(u > limit, limit, tl.where(u < -limit, -limit, u))
    y = activated(g, KIND, EXACT) if alpha is None else over_one_plus_exp(g, g * alpha, EXACT)
    if up_offset is not None:
        u += up_offset
    return y * u


@triton.jit
def tile(rows, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The rows and columns of this program, and which of them there are; without ROWS there is one row."""
    if ROWS == 0:
        row = tl.full([1, 1], 0, tl.int64)
        col = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = col < size
    else:
        across = tl.cdiv(size, BLOCK)
        pid = tl.program_id(0)
        row = (pid // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        col = (pid % across).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (col < size)
    return row, col, inside


@triton.jit
def activation(x, out, rows, size, x_step, KIND: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """``out = act(x)``."""
    row, col, inside = tile(rows, size, ROWS, BLOCK)
    EXACT: tl.constexpr = out.dtype.element_ty == tl.float32
    y = activated(tl.load(x + row * x_step + col, mask=inside, other=0.0).to(tl.float32), KIND, EXACT)
    tl.store(out + row * size + col, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_activation(
    gate, up, out, rows, size, gate_step, up_step, limit, alpha, up_offset,
    KIND: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out = act(gate) * (up + up_offset)``."""
    row, col, inside = tile(rows, size, ROWS, BLOCK)
    EXACT: tl.constexpr = out.dtype.element_ty == tl.float32
    g = tl.load(gate + row * gate_step + col, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_step + col, mask=inside, other=0.0).to(tl.float32)
    y = gated(g, u, limit, alpha, up_offset, KIND, EXACT)
    tl.store(out + row * size + col, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sigmoid_gate(
    x, gate, residual, out, rows, size, x_step, gate_step, residual_step,
    BY_ROW: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out = x / (1 + exp(-gate)) + residual``; residual may be absent."""
    row, col, inside = tile(rows, size, ROWS, BLOCK)
    EXACT: tl.constexpr = out.dtype.element_ty == tl.float32
    if BY_ROW:
        g = tl.load(gate + row * gate_step, mask=row < rows, other=0.0).to(tl.float32)
    else:
        g = tl.load(gate + row * gate_step + col, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(x + row * x_step + col, mask=inside, other=0.0).to(tl.float32)
    y, below = tl.broadcast(y, exponential(-g, EXACT) + 1.0)
    y = quotient(y, below, EXACT)
    if residual is not None:
        y += tl.load(residual + row * residual_step + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + col, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def softcap(x, out, rows, size, x_step, cap, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """``out = cap * tanh(x / cap)``."""
    row, col, inside = tile(rows, size, ROWS, BLOCK)
    EXACT: tl.constexpr = out.dtype.element_ty == tl.float32
    y = tl.load(x + row * x_step + col, mask=inside, other=0.0).to(tl.float32)
    y = hyperbolic_tangent(tl.div_rn(y, cap) if EXACT else y * quotient(1.0, cap, True), EXACT) * cap
    tl.store(out + row * size + col, y.to(out.dtype.element_ty), mask=inside)
