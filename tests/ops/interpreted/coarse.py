"""What 16-bit results are rounded from, before it is rounded."""

import triton
import triton.language as tl

from ferrum_ops.kernels.cuda.source.activations import activated, hyperbolic_tangent

__all__ = ["coarse"]


@triton.jit
def coarse(x, out, size, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """``out = act(x)`` or the hyperbolic tangent, in the form for 16 bits."""
    at = tl.arange(0, BLOCK)
    y = tl.load(x + at, mask=at < size, other=0.0)
    y = hyperbolic_tangent(y, False) if KIND == "tanh" else activated(y, KIND, False)
    tl.store(out + at, y, mask=at < size)
