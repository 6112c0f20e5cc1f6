"""Products of a few rows with dense or quantised weights, in one pass over the weights, and dequantising.

A program has 8 to 64 rows of weights and all of K, which its warps share: each warp multiplies its part on tensor
cores, and the sums of the warps are added in the end, in a fixed order. Weights go from memory to registers and into
the product without being moved among threads. For that, tensors are loaded with an axis for each part of a warp, and
K is taken in the order in which the threads have it: a sum may be taken in any order, if both operands agree.
"""

import triton
import triton.language as tl

__all__ = ["dense_sums", "few_dense", "few_quantised", "integers", "rounded", "widen"]


@triton.jit
def _along(values, AXIS: tl.constexpr, AXES: tl.constexpr):
    """A vector as a tensor of so many axes, of which all others have one place."""
    for i in tl.static_range(AXES):
        if i != AXIS:
            values = tl.expand_dims(values, i)
    return values


@triton.jit
def _finish(y, bias, out, rows, columns, BN: tl.constexpr):
    """Add the bias to the sums [n, m], and store what there is of them in out [m, n]."""
    row = tl.arange(0, y.shape[0])[:, None]
    n = tl.program_id(0) * BN + row
    m = tl.arange(0, y.shape[1])[None, :]
    if bias is not None:
        y += tl.load(bias + n, mask=n < columns, other=0.0).to(tl.float32)
    inside = (row < BN) & (n < columns) & (m < rows)
    tl.store(out + m.to(tl.int64) * columns + n, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def dense_sums(
    x, w, x_row, x_in, w_row, w_in, size,
    TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The sums [WARPS, 16 * TILES, 8 * HIGH] of each warp; *x_row* and *w_row* are where rows begin."""
    BK: tl.constexpr = CHUNKS * 32
    k = _along(tl.arange(0, WARPS), 2, 6) * CHUNKS + _along(tl.arange(0, CHUNKS), 4, 6)
    k = (k * 4 + _along(tl.arange(0, 4), 0, 6)) * 8 + _along(tl.arange(0, 8), 5, 6)
    w_at = w + w_row + k
    x_at = x + x_row + k
    sums = tl.zeros([WARPS, 16 * TILES, 8 * HIGH], tl.float32)
    for start in range(0, size, WARPS * BK):
        if EVEN:
            a = tl.load(w_at + start, mask=w_in, other=0.0, eviction_policy="evict_first")
            b = tl.load(x_at + start, mask=x_in, other=0.0)
        else:
            k_in = k < size - start
            a = tl.load(w_at + start, mask=w_in & k_in, other=0.0, eviction_policy="evict_first")
            b = tl.load(x_at + start, mask=x_in & k_in, other=0.0)
        a = a.reshape(4, 8, WARPS, 2 * TILES, CHUNKS, 4, 2)
        a = a.permute(2, 3, 1, 4, 5, 0, 6).reshape(WARPS, 16 * TILES, BK)
        b = b.reshape(4, 8, WARPS, HIGH, CHUNKS, 4, 2)
        b = b.permute(2, 4, 5, 0, 6, 3, 1).reshape(WARPS, BK, 8 * HIGH)
        sums = tl.dot(a, b, sums)
    return sums


@triton.jit
def few_dense(
    x, w, bias, out, rows, columns, size, x_step, w_step,
    BN: tl.constexpr, TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """``x @ w.T + bias`` for up to 8 * HIGH rows of x; a program has BN rows of w, at most 16 * TILES."""
    # axes: 4 threads along K, 8 along rows, warps along K, more rows, more K, 8 numbers that a thread loads at once
    low = _along(tl.arange(0, 8), 1, 6)
    row = _along(tl.arange(0, 2 * TILES), 3, 6) * 8 + low
    n = tl.program_id(0) * BN + row
    m = _along(tl.arange(0, HIGH), 3, 6) * 8 + low
    n_in = (row < BN) & (n < columns)
    sums = dense_sums(
        x, w, m.to(tl.int64) * x_step, m < rows, n.to(tl.int64) * w_step, n_in, size, TILES, HIGH, WARPS, CHUNKS, EVEN
    )
    _finish(tl.sum(sums, axis=0), bias, out, rows, columns, BN)


# Quantised numbers come in words of 32 bits. A word of 8 numbers becomes three axes, of the bits 1, 0 and 2 of a
# number's place in the word: the last axis is what the 16 bits of a register's halves hold. A word of 4 numbers
# becomes an axis of one place, and the bits 0 and 1.


@triton.jit
def _halves(words, KIND: tl.constexpr):
    """Words as two numbers each, of 16 bits, along a new axis."""
    low = words.to(tl.uint16).to(KIND, bitcast=True)
    return tl.join(low, (words >> 16).to(tl.uint16).to(KIND, bitcast=True))


@triton.jit
def _fours(a, b, c, d):
    """Four tensors side by side: along two new axes."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def _plus(zeros, base, KIND: tl.constexpr):
    """Bytes as floats, and a number more."""
    return (zeros.to(tl.float32) + base).to(KIND)


@triton.jit
def _int4(words, zeros, one, KIND: tl.constexpr):
    """The numbers [..., 2, 2, 2] of 8 fields of 4 bits, less zeros, or 8: exact.

    A field in the last bits of a float that is a power of two adds to it. The bits of that float are put into a
    register, by a factor that the compiler does not know: one instruction cannot have two constants.
    """
    power = ((0x43004300 if tl.bfloat16 == KIND else 0x64006400) * one).to(tl.uint32)
    pairs = _fours(
        (words & 0x000F000F) | power,
        ((words >> 4) & 0x000F000F) | power,
        ((words >> 8) & 0x000F000F) | power,
        ((words >> 12) & 0x000F000F) | power,
    )
    BASE: tl.constexpr = 128.0 if tl.bfloat16 == KIND else 1024.0
    return _halves(pairs, KIND) - (tl.full([], BASE + 8.0, KIND) if zeros is None else _plus(zeros, BASE, KIND))


@triton.jit
def _int8(words, zeros, KIND: tl.constexpr):
    """The numbers [..., 1, 2, 2] of 4 bytes, less zeros; signed ones where there are no zeros. They are exact."""
    words = words ^ 0x80808080 if zeros is None else words
    if tl.bfloat16 == KIND:
        fields = _fours(words & 0xFF, (words >> 16) & 0xFF, (words >> 8) & 0xFF, words >> 24) | 0x4B000000
        numbers = tl.expand_dims(fields.to(tl.float32, bitcast=True), -3)
        numbers = (numbers - (8388736.0 if zeros is None else _plus(zeros, 8388608.0, tl.float32))).to(KIND)
    else:
        pairs = tl.join(words & 0x00FF00FF, (words >> 8) & 0x00FF00FF) | 0x64006400
        numbers = tl.expand_dims(_halves(pairs, KIND), -3)
        numbers = numbers - (tl.full([], 1152.0, KIND) if zeros is None else _plus(zeros, 1024.0, KIND))
    return numbers


@triton.jit
def _e2m1(words, KIND: tl.constexpr):
    """The floats [..., 2, 2, 2] in 8 fields of 4 bits: exact.

    Their exponent and fraction are moved to where a wider float has them; a product makes the exponents right.
    """
    if tl.bfloat16 == KIND:
        bits = _fours(
            (words << 6) & 0x01C001C0, (words << 2) & 0x01C001C0, (words >> 2) & 0x01C001C0, (words >> 6) & 0x01C001C0
        )
    else:
        bits = _fours(
            (words << 9) & 0x0E000E00, (words << 5) & 0x0E000E00, (words << 1) & 0x0E000E00, (words >> 3) & 0x0E000E00
        )
    bits |= _fours((words << 12) & 0x80008000, (words << 8) & 0x80008000, (words << 4) & 0x80008000, words & 0x80008000)
    return _halves(bits, KIND) * tl.full([], 8.507059173023462e37 if tl.bfloat16 == KIND else 16384.0, KIND)


@triton.jit
def _numbers(words, zeros, one, FORM: tl.constexpr, KIND: tl.constexpr):
    """The numbers in words, with three axes more; zeros, if any, have these too."""
    if FORM == "int4":
        numbers = _int4(words, zeros, one, KIND)
    elif FORM == "int8":
        numbers = _int8(words, zeros, KIND)
    else:
        numbers = _e2m1(words, KIND)
    return numbers


@triton.jit
def _scales(scales):
    """Scales in float32; bytes are exponents of 2, 255 is NaN."""
    if scales.dtype == tl.uint8:
        wide = scales.to(tl.uint32)
        bits = tl.where(wide == 0, 0x00400000, tl.where(wide == 255, 0x7FC00000, wide << 23))
        found = bits.to(tl.float32, bitcast=True)
    else:
        found = scales.to(tl.float32)
    return found


@triton.jit
def few_quantised(
    x, x_scales, w, scales, zeros, bias, out, rows, columns, units, x_step, w_step, s_step, z_step, one,
    FORM: tl.constexpr, PER: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr, HIGH: tl.constexpr,
    WARPS: tl.constexpr, CHUNKS: tl.constexpr, WORDS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """``x @ w.T + bias`` for up to 8 * HIGH rows of x and weights of integers or 4-bit floats.

    A row of w is made of *units*, of 4 * WORDS words each; PER of them have one scale, or all have, where PER is 0.
    Each row of x has a scale in x_scales, if there are any.
    A program has BN rows of w, at most 16 * TILES. *one* is 1, which the compiler must not know: otherwise it gives
    neighbouring words to one thread where they belong to four.
    """
    KIND: tl.constexpr = x.dtype.element_ty
    EIGHTS: tl.constexpr = WORDS // 2 if FORM == "int8" else WORDS  # a thread has so many times 8 numbers of a unit
    BK: tl.constexpr = 32 * EIGHTS
    BATCH: tl.constexpr = CHUNKS * WARPS
    lane = tl.arange(0, 4) * one
    # axes: 4 threads along K, 8 along rows, warps along units, more rows, more units, words of a thread
    row = _along(tl.arange(0, 2 * TILES), 3, 6) * 8 + _along(tl.arange(0, 8), 1, 6)
    n = tl.program_id(0) * BN + row
    n_in = (row < BN) & (n < columns)
    unit = _along(tl.arange(0, WARPS), 2, 6) * CHUNKS + _along(tl.arange(0, CHUNKS), 4, 6)
    word = (unit * 4 + _along(lane, 0, 6)) * WORDS + _along(tl.arange(0, WORDS), 5, 6)
    w_at = w.to(tl.pointer_type(tl.uint32)) + n.to(tl.int64) * w_step + word
    # the same, with two axes for the numbers of a thread
    m = _along(tl.arange(0, HIGH), 3, 7) * 8 + _along(tl.arange(0, 8), 1, 7)
    m_in = m < rows
    x_unit = _along(tl.arange(0, WARPS), 2, 7) * CHUNKS + _along(tl.arange(0, CHUNKS), 4, 7)
    k = (x_unit * 4 + _along(lane, 0, 7)) * EIGHTS + _along(tl.arange(0, EIGHTS), 5, 7)
    k = k * 8 + _along(tl.arange(0, 8), 6, 7)
    x_at = x + m.to(tl.int64) * x_step + k
    # scales and zeros: an axis less
    s_row = _along(tl.arange(0, 2 * TILES), 3, 5) * 8 + _along(tl.arange(0, 8), 1, 5)
    s_n = tl.program_id(0) * BN + s_row + _along(lane, 0, 5) * 0
    s_in = (s_row < BN) & (s_n < columns)
    s_unit = _along(tl.arange(0, WARPS), 2, 5) * CHUNKS + _along(tl.arange(0, CHUNKS) * one, 4, 5)
    sums = tl.zeros([BATCH, 16 * TILES, 8 * HIGH], tl.float32)
    for start in range(0, units, BATCH):
        rest = units - start
        if EVEN:
            a_in = n_in
            b_in = m_in
            g_in = s_in
        else:
            a_in = n_in & (unit < rest)
            b_in = m_in & (x_unit < rest)
            g_in = s_in & (s_unit < rest)
        a = tl.load(w_at + start * (4 * WORDS), mask=a_in, other=0, eviction_policy="evict_first")
        b = tl.load(x_at + start * BK, mask=b_in, other=0.0)
        group = (s_unit + start) // PER if PER else s_unit * 0
        if zeros is None:
            z = None
        else:
            z = tl.load(zeros + s_n.to(tl.int64) * z_step + group, mask=g_in, other=0)
            z = z.reshape(4, 8, WARPS, 2 * TILES, CHUNKS, 1, 1, 1, 1)
        a = _numbers(a, z, one, FORM, KIND).reshape(4, 8, WARPS, 2 * TILES, CHUNKS, EIGHTS, 2, 2, 2)
        b = b.reshape(4, 8, WARPS, HIGH, CHUNKS, EIGHTS, 2, 2, 2)
        # K in the order in which the compiler gives it to threads: four neighbours, but eight if it sees bytes
        if zeros is None:
            a = a.permute(4, 2, 3, 1, 5, 6, 0, 7, 8)
            b = b.permute(4, 2, 5, 6, 0, 8, 7, 3, 1) if FORM == "int8" else b.permute(4, 2, 5, 7, 0, 8, 6, 3, 1)
        else:
            a = a.permute(4, 2, 3, 1, 5, 0, 6, 7, 8)
            b = b.permute(4, 2, 5, 0, 6, 8, 7, 3, 1) if FORM == "int8" else b.permute(4, 2, 5, 0, 7, 8, 6, 3, 1)
        a = a.reshape(BATCH, 16 * TILES, BK)
        b = b.reshape(BATCH, BK, 8 * HIGH)
        if PER:
            s = _scales(tl.load(scales + s_n.to(tl.int64) * s_step + group, mask=g_in, other=0))
            s = s.permute(4, 2, 3, 1, 0).reshape(BATCH, 16 * TILES, 1, 4, 1)
            s = tl.broadcast_to(s, BATCH, 16 * TILES, HIGH, 4, 2).reshape(BATCH, 16 * TILES, 8 * HIGH)
            sums += tl.dot(a, b) * s
        else:
            sums = tl.dot(a, b, sums)
    y = tl.sum(sums, axis=0)
    if PER == 0:
        last = tl.arange(0, 16 * TILES)
        n = tl.program_id(0) * BN + last
        y *= tl.load(scales + n.to(tl.int64) * s_step, mask=n < columns, other=0.0).to(tl.float32)[:, None]
    if x_scales is not None:
        last_m = tl.arange(0, 8 * HIGH)
        y *= tl.load(x_scales + last_m, mask=last_m < rows, other=0.0)[None, :]
    _finish(y, bias, out, rows, columns, BN)


@triton.jit
def widen(
    w, scales, zeros, out, units, w_step, s_step, z_step, one,
    FORM: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The numbers that weights stand for, [rows, K], in the dtype of out; a program has BLOCK units of 4 words."""
    NUMBERS: tl.constexpr = 16 if FORM == "int8" else 32
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    row = tl.program_id(0).to(tl.int64)
    inside = unit < units
    word = unit * 4 + tl.arange(0, 4)[None, :]
    words = tl.load(w.to(tl.pointer_type(tl.uint32)) + row * w_step + word, mask=inside, other=0)
    group = unit // PER if PER else unit * 0
    if zeros is None:
        z = None
    else:
        z = tl.load(zeros + row * z_step + group, mask=inside, other=0).reshape(BLOCK, 1, 1, 1, 1)
    # integers and 4-bit floats are exact in float16
    numbers = _numbers(words, z, one, FORM, tl.float16).to(tl.float32)
    s = _scales(tl.load(scales + row * s_step + group, mask=inside, other=0)).reshape(BLOCK, 1, 1, 1, 1)
    numbers = (numbers * s).to(out.dtype.element_ty)
    # from the order of _numbers to that of memory
    numbers = numbers.permute(0, 1, 2, 4, 3) if FORM == "int8" else numbers.permute(0, 1, 4, 2, 3)
    numbers = numbers.reshape(BLOCK, NUMBERS)
    k = unit * (NUMBERS) + tl.arange(0, NUMBERS)[None, :]
    tl.store(out + row * (units * NUMBERS) + k, numbers, mask=inside)


# Inputs that are rounded to integers, too.


@triton.jit
def rounded(x, out, scales, groups, size, x_step, BLOCK: tl.constexpr):
    """A group of *size* numbers of a row of x as integers from -127 to 127, and their scale: see ``IntScheme``."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    at = x + row * x_step + group * size
    to = out + (row * groups + group) * size
    most = tl.zeros([BLOCK], tl.float32)
    infinite = tl.zeros([BLOCK], tl.int32)
    for start in range(0, size, BLOCK):
        k = start + tl.arange(0, BLOCK)
        y = tl.abs(tl.load(at + k, mask=k < size, other=0.0).to(tl.float32))
        finite = y < float("inf")
        most = tl.where(finite, tl.maximum(most, y), most)
        infinite = tl.where(finite, infinite, 1)
    bad = tl.max(infinite, axis=0) > 0
    most = tl.max(most, axis=0)
    scale = tl.maximum(tl.div_rn(most, 127.0), 1.1754943508222875e-38)
    tl.store(scales + row * groups + group, tl.where(bad, float("nan"), scale))
    factor = tl.div_rn(1.0, scale)
    for start in range(0, size, BLOCK):
        k = start + tl.arange(0, BLOCK)
        y = tl.load(at + k, mask=k < size, other=0.0).to(tl.float32)
        y = tl.where(bad, 0.0, y) * factor
        # to the nearest, half to even, by comparisons: the compiler would join a sum with the product before it
        below = tl.floor(y)
        odd = (below.to(tl.int32) & 1) == 1
        y = below + tl.where((y > below + 0.5) | ((y == below + 0.5) & odd), 1.0, 0.0)
        tl.store(to + k, y.to(out.dtype.element_ty), mask=k < size)


@triton.jit
def integers(
    x, x_scales, w, scales, bias, out, rows, columns, size, groups, w_step, s_step,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """``x @ w.T + bias`` of integers of 8 bits, which have a scale for GROUP numbers of a row, or for all if it is 0.

    Programs are numbered so that SIDE tiles of rows go together over the columns: they read the same weights.
    """
    down = tl.cdiv(rows, BM)
    across = tl.cdiv(columns, BN)
    band = tl.program_id(0) // (SIDE * across)
    height = tl.minimum(down - band * SIDE, SIDE)
    place = tl.program_id(0) % (SIDE * across)
    m = (band * SIDE + place % height) * BM + tl.arange(0, BM)
    n = place // height * BN + tl.arange(0, BN)
    m_in = m < rows
    n_in = n < columns
    k = tl.arange(0, BK)
    # rows beyond the last are the last once more
    a_at = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * size + k[None, :]
    b_at = w + tl.minimum(n, columns - 1).to(tl.int64)[None, :] * w_step + k[:, None]
    if GROUP == 0:
        counts = tl.zeros([BM, BN], tl.int32)
        for start in range(0, size, BK):
            k_in = k < size - start
            a = tl.load(a_at + start, mask=k_in[None, :], other=0)
            b = tl.load(b_at + start, mask=k_in[:, None], other=0)
            counts = tl.dot(a, b, counts, out_dtype=tl.int32)
        sums = counts.to(tl.float32)
        sums *= tl.load(x_scales + m, mask=m_in, other=0.0)[:, None]
        sums *= tl.load(scales + n.to(tl.int64) * s_step, mask=n_in, other=0.0).to(tl.float32)[None, :]
    else:
        sums = tl.zeros([BM, BN], tl.float32)
        for start in range(0, size, BK):
            group = start // GROUP
            a = tl.load(a_at + start)
            b = tl.load(b_at + start)
            part = tl.dot(a, b, out_dtype=tl.int32).to(tl.float32)
            part *= tl.load(x_scales + m.to(tl.int64) * groups + group, mask=m_in, other=0.0)[:, None]
            s = tl.load(scales + n.to(tl.int64) * s_step + group, mask=n_in, other=0.0)
            sums += part * s.to(tl.float32)[None, :]
    if bias is not None:
        sums += tl.load(bias + n, mask=n_in, other=0.0).to(tl.float32)[None, :]
    at = out + m.to(tl.int64)[:, None] * columns + n[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=m_in[:, None] & n_in[None, :])
