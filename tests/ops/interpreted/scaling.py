"""The simplest kernel: a row times a number, and times weights if there are any."""

import triton
import triton.language as tl

__all__ = ["scaled"]


@triton.jit
def scaled(x, w, out, size, factor, BLOCK: tl.constexpr):
    """``out = x * factor * w`` over a flat row; w may be absent."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factor
    if w is not None:
        y = y * tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)
