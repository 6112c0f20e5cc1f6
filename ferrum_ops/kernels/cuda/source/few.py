"""Products of a few rows with weights of 4 bits: the weights are on their way before anything else is known.

A program takes one tile of 16 rows of weights after another. Its warps share K; each keeps its part of x in registers,
in the order in which numbers come out of words: a sum may be taken in any order, if both operands agree. Words are
copied to shared memory by the thread that will read them, STAGES - 1 pieces ahead of the one that is multiplied.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.runtime.jit import constexpr_function

from ferrum_ops.kernels.cuda.source.activations import gated

__all__ = ["few_int4"]


@constexpr_function
def _alone(layout, axis, rank):
    """The layout of one axis."""
    for i in range(rank - 1, -1, -1):
        if i != axis:
            layout = gl.SliceLayout(i, layout)
    return layout


@gluon.jit
def _axis(SIZE: gl.constexpr, AXIS: gl.constexpr, RANK: gl.constexpr, L: gl.constexpr):
    """The numbers of an axis of tensors of so many axes."""
    places = gl.arange(0, SIZE, layout=_alone(L, AXIS, RANK))
    for i in gl.static_range(RANK):
        if i != AXIS:
            places = gl.expand_dims(places, i)
    return places


@gluon.jit
def _chosen(which, a, b, c):
    """The first, second or third of some; those behind the first may be absent, and are not asked for then."""
    found = a
    if b is not None:
        found = gl.where(which >= 1, b, found)
    if c is not None:
        found = gl.where(which == 2, c, found)
    return found


@gluon.jit
def _place(tile, n0, n1, n2):
    """Which of the weights a tile is of, and which of its tiles."""
    which = tile * 0
    if n1 is not None:
        tiles0 = n0 // 16
        which += (tile >= tiles0).to(gl.int32)
        start = gl.where(which == 1, tiles0, 0)
        if n2 is not None:
            tiles1 = tiles0 + n1 // 16
            which += (tile >= tiles1).to(gl.int32)
            start = gl.where(which == 2, tiles1, gl.where(which == 1, tiles0, 0))
        tile -= start
    return which, tile


@gluon.jit
def _source(
    piece, first, step, w0, w1, w2, n0, n1, n2, GATED: gl.constexpr, PIECES: gl.constexpr, LINE: gl.constexpr,
    PART: gl.constexpr,
):  # fmt: skip
    """Where the first row of a piece's tile begins in its weights, and in the second of a pair."""
    tile = first + piece // PIECES * step
    if GATED:
        at = tile.to(gl.int64) * (8 * LINE) + piece % PIECES * PART
        return w0 + at, w1 + at
    which, tile = _place(tile, n0, n1, n2)
    at = _chosen(which, w0, w1, w2) + (tile.to(gl.int64) * (16 * LINE) + piece % PIECES * PART)
    return at, at + 8 * LINE


@gluon.jit
def _halves(words, KIND: gl.constexpr):
    """Words as two numbers each, of 16 bits, along a new axis."""
    low = words.to(gl.uint16).to(KIND, bitcast=True)
    return gl.join(low, (words >> 16).to(gl.uint16).to(KIND, bitcast=True))


@gluon.jit
def _numbers(words, one, KIND: gl.constexpr):
    """The numbers [..., 2, 2, 2] of 8 fields of 4 bits, and 128 or 1024 more.

    A field in the last bits of a float that is a power of two adds to it. *one* keeps the compiler from seeing two
    constants, which one instruction cannot have.
    """
    power = ((0x43004300 if gl.bfloat16 == KIND else 0x64006400) * one).to(gl.uint32)
    a = (words & 0x000F000F) | power
    b = ((words >> 4) & 0x000F000F) | power
    c = ((words >> 8) & 0x000F000F) | power
    d = ((words >> 12) & 0x000F000F) | power
    return _halves(gl.join(gl.join(a, c), gl.join(b, d)), KIND)


@gluon.jit
def _given(x_at, inside, C: gl.constexpr, W: gl.constexpr, HIGH: gl.constexpr, L: gl.constexpr):
    """Numbers of x [units, 128, 8 * HIGH] as threads need them."""
    x = gl.load(x_at, mask=inside, other=0.0).reshape([4, 8, W, HIGH, C, 4, 2, 2, 2])
    return gl.convert_layout(x.permute([4, 2, 5, 7, 0, 8, 6, 3, 1]).reshape([C * W, 128, 8 * HIGH]), L)


@gluon.jit
def _total(parts, L: gl.constexpr):
    """The sums of the warps, added in one order."""
    return gl.sum(parts.load(L), 0)


@gluon.jit
def _store(
    parts, which, tile, bias0, bias1, bias2, out0, out1, out2, rows, n0, n1, n2, HIGH: gl.constexpr, L: gl.constexpr
):  # fmt: skip
    """Add the sums of the warps and biases for a tile, and store them in an output [m, n]."""
    y = _total(parts, L)
    i = gl.arange(0, 128 * HIGH, layout=gl.SliceLayout(0, L))
    n = tile * 16 + i // (8 * HIGH)
    m = i % (8 * HIGH)
    inside = m < rows
    if bias0 is not None:
        y += gl.load(bias0 + n, mask=inside & (which == 0), other=0.0).to(gl.float32)
    if bias1 is not None:
        y += gl.load(bias1 + n, mask=inside & (which == 1), other=0.0).to(gl.float32)
    if bias2 is not None:
        y += gl.load(bias2 + n, mask=inside & (which == 2), other=0.0).to(gl.float32)
    out = _chosen(which, out0, out1, out2)
    gl.store(out + (m.to(gl.int64) * _chosen(which, n0, n1, n2) + n), y.to(out.dtype.element_ty), mask=inside)


@gluon.jit
def _store_gated(
    parts, tile, gate_bias, up_bias, out, rows, columns, limit, alpha, up_offset, ACT: gl.constexpr,
    HIGH: gl.constexpr, L: gl.constexpr,
):  # fmt: skip
    """Gate the sums of the second half of a tile by those of the first, and store them in out [m, n]."""
    g = _total(parts.slice(0, 64 * HIGH, 1), L)
    u = _total(parts.slice(64 * HIGH, 64 * HIGH, 1), L)
    i = gl.arange(0, 64 * HIGH, layout=gl.SliceLayout(0, L))
    n = tile * 8 + i // (8 * HIGH)
    m = i % (8 * HIGH)
    inside = m < rows
    if gate_bias is not None:
        g += gl.load(gate_bias + n, mask=inside, other=0.0).to(gl.float32)
    if up_bias is not None:
        u += gl.load(up_bias + n, mask=inside, other=0.0).to(gl.float32)
    y = gated(g, u, limit, alpha, up_offset, ACT, False)
    gl.store(out + (m.to(gl.int64) * columns + n), y.to(out.dtype.element_ty), mask=inside)


@gluon.jit
def few_int4(
    x, w0, w1, w2, s0, s1, s2, bias0, bias1, bias2, out0, out1, out2, rows, n0, n1, n2, tiles, x_step, limit, alpha,
    up_offset, one,
    PIECES: gl.constexpr, HIGH: gl.constexpr, W: gl.constexpr, C: gl.constexpr,
    STAGES: gl.constexpr, ACT: gl.constexpr,
):  # fmt: skip
    """``x @ w.T + bias`` for up to 8 * HIGH rows of x and up to three w, or ``act(x @ w0.T) * (x @ w1.T)``.

    Rows are made of PIECES * C * W units of 128 numbers that have a scale each. *one* is 1, which the compiler must not
    know.
    """
    KIND: gl.constexpr = x.dtype.element_ty
    BASE: gl.constexpr = 136.0 if gl.bfloat16 == KIND else 1032.0
    GATED: gl.constexpr = ACT is not None
    B: gl.constexpr = W * C
    LINE: gl.constexpr = PIECES * B * 16  # words of a row
    # axes: 4 threads along K, 8 along rows, warps along units, halves of the tile, more units, words of a thread
    L: gl.constexpr = gl.BlockedLayout([1, 1, 1, 1, 1, 4], [4, 8, 1, 1, 1, 1], [1, 1, W, 1, 1, 1], [5, 0, 1, 2, 3, 4])
    X: gl.constexpr = gl.BlockedLayout(
        [1, 1, 1, 1, 1, 1, 8], [4, 8, 1, 1, 1, 1, 1], [1, 1, W, 1, 1, 1, 1], [6, 0, 1, 2, 3, 4, 5]
    )
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [W, 1, 1], [1, 16, 8])
    LA: gl.constexpr = gl.DotOperandLayout(0, MMA, 4)
    LB: gl.constexpr = gl.DotOperandLayout(1, MMA, 4)
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [5, 0, 1, 2, 3, 4])
    R: gl.constexpr = gl.BlockedLayout([W, 1], [1, 32], [1, W], [0, 1])
    parts = gl.allocate_shared_memory(gl.float32, [W, 128 * HIGH], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    ring = gl.allocate_shared_memory(gl.uint32, [STAGES, 4, 8, W, 2, C, 4], SHARED)
    first = gl.program_id(0)
    step = gl.num_programs(0)
    total = gl.cdiv(tiles - first, step) * PIECES
    w0 = w0.to(gl.pointer_type(gl.uint32), bitcast=True)
    if w1 is not None:
        w1 = w1.to(gl.pointer_type(gl.uint32), bitcast=True)
    if w2 is not None:
        w2 = w2.to(gl.pointer_type(gl.uint32), bitcast=True)
    second = _axis(2, 3, 6, L) == 1
    word = ((_axis(W, 2, 6, L) * C + _axis(C, 4, 6, L)) * 4 + _axis(4, 0, 6, L)) * 4 + _axis(4, 5, 6, L)
    word = _axis(8, 1, 6, L) * LINE + word
    for piece in gl.static_range(STAGES - 1):
        low, high = _source(first * 0 + piece, first, step, w0, w1, w2, n0, n1, n2, GATED, PIECES, LINE, B * 16)
        async_copy.async_copy_global_to_shared(
            ring.index(piece), gl.where(second, high, low) + word, mask=(word >= 0) & (piece < total)
        )
        async_copy.commit_group()
    S: gl.constexpr = gl.SliceLayout(2, MMA)
    batch = gl.arange(0, B, layout=gl.SliceLayout(1, S))[:, None]
    row = gl.arange(0, 16, layout=gl.SliceLayout(0, S))[None, :]
    unit = row % 8 * (PIECES * B) + (batch % W * C + batch // W)
    low, high = _source(first * 0, first, step, s0, s1, s2, n0, n1, n2, GATED, PIECES, PIECES * B, B)
    s_next = gl.load(gl.where(row >= 8, high, low) + unit)
    m = _axis(HIGH, 3, 7, X) * 8 + _axis(8, 1, 7, X)
    k = ((_axis(W, 2, 7, X) * C + _axis(C, 4, 7, X)) * 4 + _axis(4, 0, 7, X)) * 4 + _axis(4, 5, 7, X)
    x_at = x + (m.to(gl.int64) * x_step + (k * 8 + _axis(8, 6, 7, X)))
    if PIECES == 1:
        b = _given(x_at, m < rows, C, W, HIGH, LB)
    sums = gl.zeros([B, 16, 8 * HIGH], gl.float32, MMA)
    stage = 0
    free = STAGES - 1
    for i in range(total):
        if PIECES > 1:
            b = _given(x_at + i % PIECES * (B * 128), m < rows, C, W, HIGH, LB)
        async_copy.wait_group(STAGES - 2)
        words = ring.index(stage).load(L)
        j = i + (STAGES - 1)
        low, high = _source(j, first, step, w0, w1, w2, n0, n1, n2, GATED, PIECES, LINE, B * 16)
        async_copy.async_copy_global_to_shared(
            ring.index(free), gl.where(second, high, low) + word, mask=(word >= 0) & (j < total)
        )
        async_copy.commit_group()
        stage = gl.where(stage == STAGES - 1, 0, stage + 1)
        free = gl.where(free == STAGES - 1, 0, free + 1)
        s = s_next
        low, high = _source(
            gl.minimum(i + 1, total - 1), first, step, s0, s1, s2, n0, n1, n2, GATED, PIECES, PIECES * B, B
        )
        s_next = gl.load(gl.where(row >= 8, high, low) + unit)
        a = _numbers(words, one, KIND) - gl.full([], BASE, KIND)
        a = a.reshape([4, 8, W, 2, C, 4, 2, 2, 2]).permute([4, 2, 3, 1, 5, 6, 0, 7, 8]).reshape([B, 16, 128])
        y = mma_v2(gl.convert_layout(a, LA, assert_trivial=True), b, gl.zeros([B, 16, 8 * HIGH], gl.float32, MMA))
        sums += y * gl.expand_dims(s.to(gl.float32), 2)
        if PIECES == 1 or i % PIECES == PIECES - 1:
            # the warps meet in shared memory
            parts.store(gl.sum(sums.reshape([C, W, 16, 8 * HIGH]), 0).reshape([W, 128 * HIGH]))
            sums = gl.zeros([B, 16, 8 * HIGH], gl.float32, MMA)
            tile = first + i // PIECES * step
            if GATED:
                _store_gated(parts, tile, bias0, bias1, out0, rows, n0, limit, alpha, up_offset, ACT, HIGH, R)
            else:
                which, tile = _place(tile, n0, n1, n2)
                _store(parts, which, tile, bias0, bias1, bias2, out0, out1, out2, rows, n0, n1, n2, HIGH, R)
