"""Norms over rows, accumulated in float32."""

import triton
import triton.language as tl

from ferrum_ops.kernels.cuda.source.activations import over_one_plus_exp

__all__ = ["inverse_root", "layer_norm", "layer_norm_wide", "rms_norm", "rms_norm_wide"]


@triton.jit
def inverse_root(squares, parts, eps):
    """One over the root of the mean square plus eps, to the last places."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, parts) + eps))


@triton.jit
def _summed(x, residual, at, residual_at, total, to, mask):
    """Elements of x in float32, plus those of residual if there is one; that sum is rounded, and stored in total."""
    y = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        kind: tl.constexpr = residual.dtype.element_ty
        y = (y + tl.load(residual + residual_at, mask=mask, other=0.0).to(tl.float32)).to(kind)
        if total is not None:
            tl.store(total + to, y, mask=mask)
        y = y.to(tl.float32)
    return y


@triton.jit
def _scaled(y, w, offset, col, mask):
    """``y * (offset + w)`` for these columns; w and offset may be absent."""
    if w is not None:
        factor = tl.load(w + col, mask=mask, other=0.0).to(tl.float32)
        if offset is not None:
            factor += offset
        y *= factor
    return y


@triton.jit
def _opened(y, gate, at, mask, EXACT: tl.constexpr):
    """``y * gate / (1 + exp(-gate))``; gate may be absent."""
    if gate is not None:
        g = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
        y *= over_one_plus_exp(g, g, EXACT)
    return y


@triton.jit
def rms_norm(
    x, w, residual, gate, out, total, rows, size, x_step, residual_step, gate_step, parts, eps, offset,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Whole rows: ``x / sqrt(sum(x**2) / parts + eps) * (offset + w) * silu(gate)``, x with residual added first.

    A row is some blocks, which are all held in registers and added up before threads meet. EARLY: weights are asked for
    before that too, in a row of one block.
    """
    EXACT: tl.constexpr = out.dtype.element_ty == tl.float32
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    if EARLY:
        weights = tl.load(w + tl.arange(0, BLOCK)[None, :], mask=tl.arange(0, BLOCK)[None, :] < size, other=0.0)
    held = ()
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(BLOCKS):
        col = i * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (col < size)
        y = _summed(x, residual, row * x_step + col, row * residual_step + col, total, row * size + col, inside)
        squares += y * y
        held = held + (y,)  # type: ignore[assignment]  # the loop is unrolled, each turn has its own type
    factor = inverse_root(tl.sum(squares, axis=1, keep_dims=True), parts, eps)
    for i in tl.static_range(BLOCKS):
        col = i * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (col < size)
        if EARLY:
            y = weights.to(tl.float32)
            if offset is not None:
                y += offset
            y *= held[i] * factor
        else:
            y = _scaled(held[i] * factor, w, offset, col, col < size)
        y = _opened(y, gate, row * gate_step + col, inside, EXACT)
        tl.store(out + row * size + col, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_wide(
    x, w, residual, gate, out, total, size, x_step, residual_step, gate_step, parts, eps, offset,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The same for a row that is longer than a block: it is read twice."""
    EXACT: tl.constexpr = out.dtype.element_ty == tl.float32
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < size
        y = _summed(x, residual, row * x_step + col, row * residual_step + col, total, row * size + col, inside)
        squares += y * y
    factor = inverse_root(tl.sum(squares, axis=0), parts, eps)
    for start in range(0, size, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < size
        y = _summed(x, residual, row * x_step + col, row * residual_step + col, None, row * size + col, inside)
        y = _opened(_scaled(y * factor, w, offset, col, inside), gate, row * gate_step + col, inside, EXACT)
        tl.store(out + row * size + col, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _shifted(y, b, col, mask):
    """``y + b`` for these columns; b may be absent."""
    if b is not None:
        y += tl.load(b + col, mask=mask, other=0.0).to(tl.float32)
    return y


@triton.jit
def layer_norm(
    x, w, b, residual, out, total, rows, size, x_step, residual_step, parts, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Whole rows: ``(x - mean) / sqrt(variance + eps) * w + b``, x with residual added first; blocks as above."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    held = ()
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(BLOCKS):
        col = i * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (col < size)
        y = _summed(x, residual, row * x_step + col, row * residual_step + col, total, row * size + col, inside)
        sums += y
        held = held + (y,)  # type: ignore[assignment]  # the loop is unrolled, each turn has its own type
    mean = tl.div_rn(tl.sum(sums, axis=1, keep_dims=True), parts)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(BLOCKS):
        col = i * BLOCK + tl.arange(0, BLOCK)[None, :]
        y = tl.where(col < size, held[i] - mean, 0.0)
        squares += y * y
    factor = inverse_root(tl.sum(squares, axis=1, keep_dims=True), parts, eps)
    for i in tl.static_range(BLOCKS):
        col = i * BLOCK + tl.arange(0, BLOCK)[None, :]
        y = _shifted(_scaled((held[i] - mean) * factor, w, None, col, col < size), b, col, col < size)
        tl.store(out + row * size + col, y.to(out.dtype.element_ty), mask=(row < rows) & (col < size))


@triton.jit
def layer_norm_wide(
    x, w, b, residual, out, total, size, x_step, residual_step, parts, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """The same for a row that is longer than a block: it is read three times, so that nothing cancels."""
    row = tl.program_id(0).to(tl.int64)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < size
        sums += _summed(x, residual, row * x_step + col, row * residual_step + col, total, row * size + col, inside)
    mean = tl.div_rn(tl.sum(sums, axis=0), parts)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < size
        y = _summed(x, residual, row * x_step + col, row * residual_step + col, None, row * size + col, inside)
        y = tl.where(inside, y - mean, 0.0)
        squares += y * y
    factor = inverse_root(tl.sum(squares, axis=0), parts, eps)
    for start in range(0, size, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < size
        y = _summed(x, residual, row * x_step + col, row * residual_step + col, None, row * size + col, inside)
        y = _shifted(_scaled((y - mean) * factor, w, None, col, inside), b, col, inside)
        tl.store(out + row * size + col, y.to(out.dtype.element_ty), mask=inside)
