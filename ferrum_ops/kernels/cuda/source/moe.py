"""Products of rows with the weights of their experts, dense or quantised; offsets and ids stay in the device's memory.

Sums are [n, m]: columns of the result first, so that a tensor core's wide side has the weights, and the narrow side,
which comes in steps of 8, has the rows of an expert. For a gate, a program has the same columns of both halves.
"""

import triton
import triton.language as tl

from ferrum_ops.kernels.cuda.source.activations import gated
from ferrum_ops.kernels.cuda.source.gemm import _along, _numbers, _scales

__all__ = ["few", "few_summed", "many"]


@triton.jit
def _tile_of(p, offsets, rows, experts, blocks, EXPERTS: tl.constexpr, BM: tl.constexpr):
    """Tile p: its expert, first row, the end of the expert's rows, and block of columns; and how many tiles there are.

    Rows that belong to nobody are those of an expert behind the last. Offsets that are wrong lead to no other rows
    than there are.
    """
    e = tl.arange(0, EXPERTS)
    first = tl.load(offsets + e, mask=e <= experts, other=rows)
    last = tl.load(offsets + e + 1, mask=e < experts, other=rows)
    first = tl.minimum(tl.maximum(first, 0), rows).to(tl.int32)
    last = tl.minimum(tl.maximum(last, 0), rows).to(tl.int32)
    tiles = tl.where(e <= experts, tl.maximum(last - first + (BM - 1), 0) // BM, 0)
    end = tl.cumsum(tiles * blocks, axis=0)
    before = end - tiles * blocks
    here = (before <= p) & (p < end)
    expert = tl.sum(tl.where(here, e, 0), axis=0)
    count = tl.sum(tl.where(here, tiles, 0), axis=0)
    place = p - tl.sum(tl.where(here, before, 0), axis=0)
    safe = tl.maximum(count, 1)
    begin = tl.sum(tl.where(here, first, 0), axis=0) + place % safe * BM
    return expert, begin, tl.sum(tl.where(here, last, 0), axis=0), place // safe, tl.max(end, axis=0)


@triton.jit
def _weights(
    at, word, s_at, z_at, n_in, start, size, one, FORM: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Weights [BN, BK] from *start* on: loaded, or made of words, groups of GROUP numbers having one scale."""
    if FORM == "dense":
        k = tl.arange(0, BK)[None, :]
        if EVEN:
            found = tl.load(at + start + k, mask=n_in[:, None], other=0.0)
        else:
            found = tl.load(at + start + k, mask=n_in[:, None] & (k < size - start), other=0.0)
    else:
        UNITS: tl.constexpr = BK // 32
        WORDS: tl.constexpr = 8 if FORM == "int8" else 4  # of 32 numbers
        known = n_in[:, None] & (word < (size - start) // (32 // WORDS))
        words = tl.load(at + start // (32 // WORDS) + word, mask=known, other=0).reshape(BN, UNITS, WORDS)
        unit = tl.arange(0, UNITS)[None, :]
        group = (start + unit * 32) // GROUP if GROUP else unit * 0
        known = n_in[:, None] & (unit * 32 < size - start)
        z = None if z_at is None else tl.load(z_at + group, mask=known, other=0).reshape(BN, UNITS, 1, 1, 1, 1)
        found = _numbers(words, z, one, FORM, KIND)
        if GROUP:
            s = _scales(tl.load(s_at + group, mask=known, other=0)).reshape(BN, UNITS, 1, 1, 1, 1)
            found = (found.to(tl.float32) * s).to(KIND)
        found = found.permute(0, 1, 2, 3, 5, 4) if FORM == "int8" else found.permute(0, 1, 2, 5, 3, 4)
        found = found.reshape(BN, BK)
    return found


@triton.jit
def _sums(
    x, x_block, w, w_block, scales, zeros, bias, order, expert, begin, end, n0, half, columns, size, x_step, w_expert,
    w_step, s_expert, s_step, z_expert, z_step, k, one,
    FORM: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The products [BN, BM] of rows with the weights of an expert, and those with PARTS 2 of the second half."""
    KIND: tl.constexpr = x.dtype.element_ty
    row = begin + tl.arange(0, BM)
    there = row < end
    if order is not None:
        row = tl.load(order + row, mask=there, other=0) // k
    x_at = x + row.to(tl.int64)[:, None] * x_step + tl.arange(0, BK)[None, :]
    n = n0 + tl.arange(0, BN)
    n_in = n < columns
    e = expert.to(tl.int64)
    w_at = w + e * w_expert + n.to(tl.int64)[:, None] * w_step
    s_at, z_at, word = None, None, None
    if FORM != "dense":
        WORDS: tl.constexpr = BK // (4 if FORM == "int8" else 8)
        word = tl.arange(0, WORDS)[None, :] * one
        s_at = scales + e * s_expert + n.to(tl.int64)[:, None] * s_step
        if zeros is not None:
            z_at = zeros + e * z_expert + n.to(tl.int64)[:, None] * z_step
    up_w = half.to(tl.int64) * w_step
    up_s = half.to(tl.int64) * s_step
    up_z = half.to(tl.int64) * z_step
    line = expert * (half * PARTS) + n0
    a = tl.zeros([BN, BM], tl.float32)
    b = tl.zeros([BN if PARTS == 2 else 16, BM], tl.float32)
    for start in range(0, size, BK):
        if x_block is not None:
            y = x_block.load([begin, start])
        elif EVEN:
            y = tl.load(x_at + start, mask=there[:, None], other=0.0)
        else:
            y = tl.load(x_at + start, mask=there[:, None] & (tl.arange(0, BK) < size - start)[None, :], other=0.0)
        if w_block is not None:
            v = w_block.load([line, start])
        else:
            v = _weights(w_at, word, s_at, z_at, n_in, start, size, one, FORM, GROUP, KIND, BN, BK, EVEN)
        a = tl.dot(v, tl.trans(y), a)
        if PARTS == 2:
            if w_block is not None:
                v = w_block.load([line + half, start])
            else:
                z_up = None if zeros is None else z_at + up_z
                s_up = None if FORM == "dense" else s_at + up_s
                v = _weights(w_at + up_w, word, s_up, z_up, n_in, start, size, one, FORM, GROUP, KIND, BN, BK, EVEN)
            b = tl.dot(v, tl.trans(y), b)
    if FORM != "dense" and GROUP == 0:
        last = scales + e * s_expert + n.to(tl.int64) * s_step
        a *= tl.load(last, mask=n_in, other=0.0).to(tl.float32)[:, None]
        if PARTS == 2:
            b *= tl.load(last + up_s, mask=n_in, other=0.0).to(tl.float32)[:, None]
    if bias is not None:
        at = bias + e * (half * PARTS) + n
        a += tl.load(at, mask=n_in, other=0.0).to(tl.float32)[:, None]
        if PARTS == 2:
            b += tl.load(at + half, mask=n_in, other=0.0).to(tl.float32)[:, None]
    return a, b


@triton.jit
def _tile(
    x, x_block, w, w_block, scales, zeros, bias, order, out, expert, begin, end, n0, columns, size, x_step, w_expert,
    w_step, s_expert, s_step, z_expert, z_step, k, limit, alpha, up_offset, one,
    FORM: tl.constexpr, GROUP: tl.constexpr, ACT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """A tile of the result."""
    PARTS: tl.constexpr = 1 if ACT is None else 2
    a, b = _sums(
        x, x_block, w, w_block, scales, zeros, bias, order, expert, begin, end, n0, columns, columns, size, x_step,
        w_expert, w_step, s_expert, s_step, z_expert, z_step, k, one, FORM, GROUP, PARTS, BM, BN, BK, EVEN,
    )  # fmt: skip
    if ACT is not None:
        a = gated(a, b, limit, alpha, up_offset, ACT, False)
    y = tl.trans(a.to(out.dtype.element_ty))
    row = begin + tl.arange(0, BM)[:, None]
    n = n0 + tl.arange(0, BN)[None, :]
    tl.store(out + row.to(tl.int64) * columns + n, y, mask=(row < end) & (n < columns))


@triton.jit
def many(
    x, w, scales, zeros, bias, order, offsets, out, rows, x_rows, columns, size, x_step, w_expert, w_step, s_expert,
    s_step, z_expert, z_step, k, experts, limit, alpha, up_offset, one,
    FORM: tl.constexpr, GROUP: tl.constexpr, ACT: tl.constexpr, EXPERTS: tl.constexpr, BM: tl.constexpr,
    NARROW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BULK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Rows of x, or those that *order* names, with their experts' weights; a tile after another, expert by expert.

    A tile has BM rows of one expert, or NARROW where that is enough. BULK: tiles are copied by descriptors, which asks
    for addresses and steps of whole 16 bytes. ACT: w has two halves, the gate's first, and the result is that of the
    gate. Quantised: w is read in words, and w_expert and w_step count them.
    """
    PARTS: tl.constexpr = 1 if ACT is None else 2
    blocks = tl.cdiv(columns, BN)
    x_block, x_narrow, w_block = None, None, None
    if BULK:
        if order is None:
            x_block = tl.make_tensor_descriptor(x, [rows, size], [x_step, 1], [BM, BK])
            if NARROW:
                x_narrow = tl.make_tensor_descriptor(x, [rows, size], [x_step, 1], [NARROW, BK])
        if FORM == "dense":
            w_block = tl.make_tensor_descriptor(w, [experts * columns * PARTS, size], [w_step, 1], [BN, BK])
    words = w if FORM == "dense" else w.to(tl.pointer_type(tl.uint32))
    p = tl.program_id(0)
    expert, begin, end, block, tiles = _tile_of(p, offsets, rows, experts, blocks, EXPERTS, BM)
    while p < tiles:
        n0 = block * BN
        if expert == experts:
            row = begin + tl.arange(0, BM)[:, None]
            n = n0 + tl.arange(0, BN)[None, :]
            nothing = tl.zeros([BM, BN], out.dtype.element_ty)
            tl.store(out + row.to(tl.int64) * columns + n, nothing, mask=(row < end) & (n < columns))
        elif end - begin <= NARROW:
            if NARROW:
                _tile(
                    x, x_narrow, words, w_block, scales, zeros, bias, order, out, expert, begin, end, n0, columns,
                    size, x_step, w_expert, w_step, s_expert, s_step, z_expert, z_step, k, limit, alpha, up_offset,
                    one, FORM, GROUP, ACT, NARROW, BN, BK, EVEN,
                )  # fmt: skip
        else:
            _tile(
                x, x_block, words, w_block, scales, zeros, bias, order, out, expert, begin, end, n0, columns, size,
                x_step, w_expert, w_step, s_expert, s_step, z_expert, z_step, k, limit, alpha, up_offset, one, FORM,
                GROUP, ACT, BM, BN, BK, EVEN,
            )  # fmt: skip
        p += tl.num_programs(0)
        expert, begin, end, block, tiles = _tile_of(p, offsets, rows, experts, blocks, EXPERTS, BM)


# Few rows: a pass over the weights that are needed, from memory to registers, as in the products of gemm.py.


@triton.jit
def _few_dense(
    x, w, x_row, x_in, w_row, w_in, size,
    TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr, SHARED: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Sums [WARPS, 16 * TILES, 8 * HIGH] of each warp; SHARED: warps share K."""
    BK: tl.constexpr = CHUNKS * 32
    STEP: tl.constexpr = BK * WARPS if SHARED else BK
    k = _along(tl.arange(0, CHUNKS), 4, 6)
    if SHARED:
        k += _along(tl.arange(0, WARPS), 2, 6) * CHUNKS
    k = (k * 4 + _along(tl.arange(0, 4), 0, 6)) * 8 + _along(tl.arange(0, 8), 5, 6)
    w_at = w + w_row + k
    x_at = x + x_row + k
    sums = tl.zeros([WARPS, 16 * TILES, 8 * HIGH], tl.float32)
    for start in range(0, size, STEP):
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
def _few_quantised(
    x, w, scales, zeros, x_row, x_in, w_row, w_in, s_row, z_row, units, one,
    FORM: tl.constexpr, PER: tl.constexpr, TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr,
    CHUNKS: tl.constexpr, WORDS: tl.constexpr, SHARED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The same for weights of units of 4 * WORDS words each, of which PER have one scale; where PER is 0, without it.

    *one* is 1, which the compiler must not know: otherwise it gives neighbouring words to one thread where they belong
    to four.
    """
    KIND: tl.constexpr = x.dtype.element_ty
    EIGHTS: tl.constexpr = WORDS // 2 if FORM == "int8" else WORDS  # a thread has so many times 8 numbers of a unit
    BK: tl.constexpr = 32 * EIGHTS
    BATCH: tl.constexpr = CHUNKS * WARPS
    STEP: tl.constexpr = BATCH if SHARED else CHUNKS
    lane = tl.arange(0, 4) * one
    unit = _along(tl.arange(0, CHUNKS), 4, 6)
    x_unit = _along(tl.arange(0, CHUNKS), 4, 7)
    s_unit = _along(tl.arange(0, CHUNKS) * one, 4, 5)
    if SHARED:
        unit += _along(tl.arange(0, WARPS), 2, 6) * CHUNKS
        x_unit += _along(tl.arange(0, WARPS), 2, 7) * CHUNKS
        s_unit += _along(tl.arange(0, WARPS), 2, 5) * CHUNKS
    word = (unit * 4 + _along(lane, 0, 6)) * WORDS + _along(tl.arange(0, WORDS), 5, 6)
    w_at = w + w_row + word
    k = (x_unit * 4 + _along(lane, 0, 7)) * EIGHTS + _along(tl.arange(0, EIGHTS), 5, 7)
    k = k * 8 + _along(tl.arange(0, 8), 6, 7)
    x_at = x + x_row[:, :, :, :, :, :, None] + k
    b_in = x_in[:, :, :, :, :, :, None]
    s_in = w_in.reshape(w_in.shape[0], w_in.shape[1], w_in.shape[2], w_in.shape[3], 1)
    s_row = s_row.reshape(s_row.shape[0], s_row.shape[1], s_row.shape[2], s_row.shape[3], 1) + _along(lane, 0, 5) * 0
    if zeros is not None:
        z_row = z_row.reshape(z_row.shape[0], z_row.shape[1], z_row.shape[2], z_row.shape[3], 1)
        z_row += _along(lane, 0, 5) * 0
    spread = tl.zeros([4, 8, WARPS, 2 * TILES, CHUNKS], tl.int32)
    sums = tl.zeros([BATCH, 16 * TILES, 8 * HIGH], tl.float32)
    for start in range(0, units, STEP):
        rest = units - start
        if EVEN:
            a = tl.load(w_at + start * (4 * WORDS), mask=w_in, other=0, eviction_policy="evict_first")
            b = tl.load(x_at + start * BK, mask=b_in, other=0.0)
            g_in = s_in
        else:
            a_in = w_in & (unit < rest)
            a = tl.load(w_at + start * (4 * WORDS), mask=a_in, other=0, eviction_policy="evict_first")
            b = tl.load(x_at + start * BK, mask=b_in & (x_unit < rest), other=0.0)
            g_in = s_in & (s_unit < rest)
        group = (s_unit + start) // PER if PER else s_unit * 0
        if zeros is None:
            z = None
        else:
            z = tl.load(zeros + z_row + group + spread, mask=g_in, other=0)
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
            s = _scales(tl.load(scales + s_row + group + spread, mask=g_in, other=0))
            s = s.permute(4, 2, 3, 1, 0).reshape(BATCH, 16 * TILES, 1, 4, 1)
            s = tl.broadcast_to(s, BATCH, 16 * TILES, HIGH, 4, 2).reshape(BATCH, 16 * TILES, 8 * HIGH)
            sums += tl.dot(a, b) * s
        else:
            sums = tl.dot(a, b, sums)
    return tl.sum(sums.reshape(CHUNKS, WARPS, 16 * TILES, 8 * HIGH), axis=0)


@triton.jit
def _few_sums(
    x, w, scales, zeros, x_row, x_in, expert, row, row_in, size, w_expert, w_step, s_expert, s_step, z_expert, z_step,
    one, FORM: tl.constexpr, PER: tl.constexpr, TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr,
    CHUNKS: tl.constexpr, WORDS: tl.constexpr, SHARED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Sums of each warp for rows of weights of experts; *size* counts numbers, or units of them."""
    w_row = expert * w_expert + row * w_step
    if FORM == "dense":
        sums = _few_dense(x, w, x_row, x_in, w_row, row_in, size, TILES, HIGH, WARPS, CHUNKS, SHARED, EVEN)
    else:
        s_row = expert * s_expert + row * s_step
        z_row = None if zeros is None else expert * z_expert + row * z_step
        words = w.to(tl.pointer_type(tl.uint32))
        sums = _few_quantised(
            x, words, scales, zeros, x_row, x_in, w_row, row_in, s_row, z_row, size, one, FORM, PER, TILES, HIGH,
            WARPS, CHUNKS, WORDS, SHARED, EVEN,
        )  # fmt: skip
        if PER == 0:
            s = tl.load(scales + s_row, mask=row_in, other=0.0).to(tl.float32)
            s = s.reshape(8, s.shape[2], 2 * TILES).permute(1, 2, 0).reshape(s.shape[2], 16 * TILES)
            sums *= s[:, :, None]
    return sums


@triton.jit
def few(
    x, w, scales, zeros, bias, ids, out, choices, columns, size, x_step, w_expert, w_step, s_expert, s_step, z_expert,
    z_step, k, experts, limit, alpha, up_offset, one,
    FORM: tl.constexpr, PER: tl.constexpr, ACT: tl.constexpr, CHOICES: tl.constexpr, EACH: tl.constexpr,
    TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr, WORDS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Rows of x, one for k choices each, with the weights of their experts; results lie in the order of choices.

    A program has 16 * TILES rows of the weights of an expert: that of a choice which is its first, or with EACH that
    of its number.
    """
    slot = tl.program_id(1)
    choice = tl.arange(0, CHOICES)
    chosen = tl.load(ids + choice, mask=choice < choices, other=-1)
    e = slot.to(tl.int64) if EACH else tl.load(ids + slot)
    mine = (chosen == e) & (choice < choices)
    if not EACH:
        e = tl.where((e >= 0) & (e < experts) & (tl.min(tl.where(mine, choice, CHOICES), axis=0) == slot), e, -1)
        mine = mine & (e >= 0)
    own = tl.where(mine, 1, 0)
    rank = tl.cumsum(own, axis=0) - 1
    count = tl.sum(own, axis=0)
    group = _along(tl.arange(0, 2 * TILES), 3, 6)
    low = _along(tl.arange(0, 8), 1, 6)
    out_row = tl.arange(0, 16 * TILES)
    PARTS: tl.constexpr = 1 if ACT is None else 2
    if PARTS == 2:
        n = tl.program_id(0) * (8 * TILES) + group // 2 * 8 + low
        row = n + group % 2 * columns
        line = tl.program_id(0) * (8 * TILES) + out_row // 16 * 8 + out_row % 8
        bias_row = line + out_row // 8 % 2 * columns
    else:
        n = tl.program_id(0) * (16 * TILES) + group * 8 + low
        row = n
        line = tl.program_id(0) * (16 * TILES) + out_row
        bias_row = line
    for first in range(0, count, 8 * HIGH):
        m = tl.arange(0, 8 * HIGH)
        here = mine[None, :] & (rank[None, :] == first + m[:, None])
        index = tl.sum(tl.where(here, choice[None, :], 0), axis=1)
        m_in = m < count - first
        at = index.reshape(HIGH, 8).permute(1, 0).reshape(1, 8, 1, HIGH, 1, 1)
        at_in = m_in.reshape(HIGH, 8).permute(1, 0).reshape(1, 8, 1, HIGH, 1, 1)
        sums = _few_sums(
            x, w, scales, zeros, (at // k).to(tl.int64) * x_step, at_in, e, row.to(tl.int64), n < columns, size,
            w_expert, w_step, s_expert, s_step, z_expert, z_step, one, FORM, PER, TILES, HIGH, WARPS, CHUNKS, WORDS,
            True, EVEN,
        )  # fmt: skip
        y = tl.sum(sums, axis=0)
        if bias is not None:
            known = line < columns
            y += tl.load(bias + e * (columns * PARTS) + bias_row, mask=known, other=0.0).to(tl.float32)[:, None]
        if PARTS == 2:
            g, u = tl.split(y.reshape(TILES, 2, 8, 8 * HIGH).permute(0, 2, 3, 1))
            y = gated(g, u, limit, alpha, up_offset, ACT, False).reshape(8 * TILES, 8 * HIGH)
            column = tl.program_id(0) * (8 * TILES) + tl.arange(0, 8 * TILES)[:, None]
        else:
            column = line[:, None]
        to = out + index[None, :].to(tl.int64) * columns + column
        tl.store(to, y.to(out.dtype.element_ty), mask=m_in[None, :] & (column < columns))


@triton.jit
def few_summed(
    x, w, scales, zeros, bias, ids, weights, out, columns, size, x_step, w_expert, w_step, s_expert, s_step, z_expert,
    z_step, k, experts, one,
    FORM: tl.constexpr, PER: tl.constexpr, TILES: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr,
    WORDS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The weighted sum of what the experts of a token make of its k rows of x; each warp has an expert."""
    token = tl.program_id(1).to(tl.int64)
    j = tl.arange(0, WARPS)
    e = tl.load(ids + token * k + j, mask=j < k, other=0)
    weight = tl.load(weights + token * k + j, mask=j < k, other=0.0)
    known = (e >= 0) & (e < experts)
    weight = tl.where(known, weight, float("nan"))
    known = known & (j < k)
    n = tl.program_id(0) * (16 * TILES) + _along(tl.arange(0, 2 * TILES), 3, 6) * 8 + _along(tl.arange(0, 8), 1, 6)
    m = _along(tl.arange(0, 8), 1, 6)
    x_row = (token * k + _along(j, 2, 6)) * x_step + m.to(tl.int64) * 0
    sums = _few_sums(
        x, w, scales, zeros, x_row, (m == 0) & _along(known, 2, 6), _along(e, 2, 6), n.to(tl.int64),
        (n < columns) & _along(known, 2, 6), size, w_expert, w_step, s_expert, s_step, z_expert, z_step, one, FORM, PER,
        TILES, 1, WARPS, CHUNKS, WORDS, False, EVEN,
    )  # fmt: skip
    line = tl.program_id(0) * (16 * TILES) + tl.arange(0, 16 * TILES)
    y = tl.sum(tl.where(tl.arange(0, 8)[None, None, :] == 0, sums, 0.0), axis=2)
    if bias is not None:
        at = bias + e[:, None] * columns + line[None, :]
        y += tl.load(at, mask=known[:, None] & (line < columns)[None, :], other=0.0).to(tl.float32)
    y = tl.sum(tl.where((j < k)[:, None], y * weight[:, None], 0.0), axis=0)
    tl.store(out + token * columns + line, y.to(out.dtype.element_ty), mask=line < columns)
