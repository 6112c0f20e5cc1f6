"""What the kernels of attention share: scores as powers of two, and the softcap's tanh."""

import triton
import triton.language as tl

__all__ = ["LN_2", "LOG2_E", "tanh"]

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
# tanh(x) = x + x**3 * R(x**2) near 0, where the form with exponentials would cancel
_NEAR: tl.constexpr = tl.constexpr(0.5625)
_R0: tl.constexpr = tl.constexpr(-0.33333313709)
_R1: tl.constexpr = tl.constexpr(0.13332445885)
_R2: tl.constexpr = tl.constexpr(-0.05383673615)
_R3: tl.constexpr = tl.constexpr(0.021004531326)
_R4: tl.constexpr = tl.constexpr(-0.0061756035935)


@triton.jit
def tanh(x, EXACT: tl.constexpr):
    """tanh(x); without EXACT with an absolute error of some units in float32's last place of 1."""
    t = tl.abs(x)
    e = tl.exp2(t * (-2.0 * LOG2_E))
    found = (1.0 - e) / (1.0 + e)
    if EXACT:
        s = x * x
        near = t + t * s * ((((_R4 * s + _R3) * s + _R2) * s + _R1) * s + _R0)
        found = tl.where(t < _NEAR, near, found)
    return tl.where(x < 0.0, -found, found)
