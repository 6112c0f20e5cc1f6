"""Products of a few rows with dense weights, of which the next are on their way while some are multiplied.

One launch may have several weights: queries, keys and values, or the two of a gated perceptron. How weights go from
memory into a product is told in ``gemm.py``.
"""

import triton
import triton.language as tl

from ferrum_ops.kernels.cuda.source.activations import gated
from ferrum_ops.kernels.cuda.source.gemm import _along

__all__ = ["few_gated", "few_linears"]


@triton.jit
def _product(
    a, b, sums, TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """The sums and a product more, of what was loaded with an axis for each part of a warp."""
    BK: tl.constexpr = CHUNKS * 32
    a = a.reshape(4, 8, WARPS, 2 * TILES, CHUNKS, 4, 2)
    a = a.permute(2, 3, 1, 4, 5, 0, 6).reshape(WARPS, 16 * TILES, BK)
    b = b.reshape(4, 8, WARPS, HIGH, CHUNKS, 4, 2)
    b = b.permute(2, 4, 5, 0, 6, 3, 1).reshape(WARPS, BK, 8 * HIGH)
    return tl.dot(a, b, sums)


@triton.jit
def _sums(
    x, w, x_row, x_in, w_row, w_in, size,
    TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The sums [16 * TILES, 8 * HIGH] of a program; *x_row* and *w_row* are where rows begin.

    Operands are loaded a turn before they are multiplied: otherwise a warp asks for weights only once it has used up
    those that it had, and the memory waits for it.
    """
    STEP: tl.constexpr = WARPS * CHUNKS * 32
    k = _along(tl.arange(0, WARPS), 2, 6) * CHUNKS + _along(tl.arange(0, CHUNKS), 4, 6)
    k = (k * 4 + _along(tl.arange(0, 4), 0, 6)) * 8 + _along(tl.arange(0, 8), 5, 6)
    w_at = w + w_row + k
    x_at = x + x_row + k
    sums = tl.zeros([WARPS, 16 * TILES, 8 * HIGH], tl.float32)
    whole = size if EVEN else size // STEP * STEP
    if whole > 0:
        a = tl.load(w_at, mask=w_in, other=0.0, eviction_policy="evict_first")
        b = tl.load(x_at, mask=x_in, other=0.0)
        for start in range(STEP, whole, STEP):
            next_a = tl.load(w_at + start, mask=w_in, other=0.0, eviction_policy="evict_first")
            next_b = tl.load(x_at + start, mask=x_in, other=0.0)
            sums = _product(a, b, sums, TILES, HIGH, WARPS, CHUNKS)
            a = next_a
            b = next_b
        sums = _product(a, b, sums, TILES, HIGH, WARPS, CHUNKS)
    if not EVEN:
        k_in = k < size - whole
        a = tl.load(w_at + whole, mask=w_in & k_in, other=0.0, eviction_policy="evict_first")
        b = tl.load(x_at + whole, mask=x_in & k_in, other=0.0)
        sums = _product(a, b, sums, TILES, HIGH, WARPS, CHUNKS)
    return tl.sum(sums, axis=0)


@triton.jit
def _chosen(which, a, b, c):
    """The first, second or third of some; those behind the first may be absent, and are not asked for then."""
    found = a
    if b is not None:
        found = tl.where(which >= 1, b, found)
    if c is not None:
        found = tl.where(which == 2, c, found)
    return found


@triton.jit
def few_linears(
    x, w0, w1, w2, bias0, bias1, bias2, out0, out1, out2, rows, n0, n1, n2, size, x_step, step0, step1, step2,
    BN: tl.constexpr, TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """``x @ w.T + bias`` for up to 8 * HIGH rows of x and up to three w; a program has BN rows of one of them.

    BN is at most 16 * TILES.
    """
    tile = tl.program_id(0)
    which = 0
    if w1 is not None:
        tiles0 = tl.cdiv(n0, BN)
        which += (tile >= tiles0).to(tl.int32)
        before = tl.where(which >= 1, tiles0, 0)
        if w2 is not None:
            tiles1 = tiles0 + tl.cdiv(n1, BN)
            which += (tile >= tiles1).to(tl.int32)
            before = tl.where(which == 2, tiles1, before)
        tile -= before
    columns = _chosen(which, n0, n1, n2)
    out = _chosen(which, out0, out1, out2)
    # axes: 4 threads along K, 8 along rows, warps along K, more rows, more K, 8 numbers that a thread loads at once
    low = _along(tl.arange(0, 8), 1, 6)
    row = _along(tl.arange(0, 2 * TILES), 3, 6) * 8 + low
    n = tile * BN + row
    m = _along(tl.arange(0, HIGH), 3, 6) * 8 + low
    y = _sums(
        x, _chosen(which, w0, w1, w2), m.to(tl.int64) * x_step, m < rows,
        n.to(tl.int64) * _chosen(which, step0, step1, step2), (row < BN) & (n < columns), size,
        TILES, HIGH, WARPS, CHUNKS, EVEN,
    )  # fmt: skip
    row = tl.arange(0, y.shape[0])[:, None]
    n = tile * BN + row
    m = tl.arange(0, y.shape[1])[None, :]
    inside = (row < BN) & (n < columns)
    if bias0 is not None:
        y += tl.load(bias0 + n, mask=inside & (which == 0), other=0.0).to(tl.float32)
    if bias1 is not None:
        y += tl.load(bias1 + n, mask=inside & (which == 1), other=0.0).to(tl.float32)
    if bias2 is not None:
        y += tl.load(bias2 + n, mask=inside & (which == 2), other=0.0).to(tl.float32)
    tl.store(out + m.to(tl.int64) * columns + n, y.to(out.dtype.element_ty), mask=inside & (m < rows))


@triton.jit
def few_gated(
    x, gate, up, gate_bias, up_bias, out, rows, columns, size, x_step, gate_step, up_step, limit, alpha, up_offset,
    TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr, EVEN: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """``act(x @ gate.T) * (x @ up.T)`` for up to 8 * HIGH rows of x; a program has 8 * TILES rows of gate and of up.

    Eights of rows of the two take turns, so that a tile of a product has both.
    """
    BN: tl.constexpr = 8 * TILES
    low = _along(tl.arange(0, 8), 1, 6)
    eight = _along(tl.arange(0, 2 * TILES), 3, 6)
    n = tl.program_id(0) * BN + eight // 2 * 8 + low
    m = _along(tl.arange(0, HIGH), 3, 6) * 8 + low
    w = tl.where(eight % 2 == 0, gate, up)
    w_row = n.to(tl.int64) * tl.where(eight % 2 == 0, gate_step, up_step)
    both = _sums(x, w, m.to(tl.int64) * x_step, m < rows, w_row, n < columns, size, TILES, HIGH, WARPS, CHUNKS, EVEN)
    both = both.reshape(TILES, 2, 8, 8 * HIGH).permute(0, 2, 3, 1)
    g, u = both.reshape(BN, 8 * HIGH, 2).split()
    n = tl.program_id(0) * BN + tl.arange(0, BN)[:, None]
    m = tl.arange(0, 8 * HIGH)[None, :]
    if gate_bias is not None:
        g += tl.load(gate_bias + n, mask=n < columns, other=0.0).to(tl.float32)
    if up_bias is not None:
        u += tl.load(up_bias + n, mask=n < columns, other=0.0).to(tl.float32)
    y = gated(g, u, limit, alpha, up_offset, KIND, out.dtype.element_ty == tl.float32)
    tl.store(out + m.to(tl.int64) * columns + n, y.to(out.dtype.element_ty), mask=(n < columns) & (m < rows))
