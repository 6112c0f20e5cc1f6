"""Products of a few rows with the weights of their experts, in one pass over the weights, straight to registers.

The layout is that of gemm.py: K is taken in the order in which the threads have it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ferrum_ops.kernels.cuda.source.activations import gated
from ferrum_ops.kernels.cuda.source.gemm import _along, _numbers, _scales, dense_sums
from ferrum_ops.kernels.cuda.source.moe import choices_of, nth

__all__ = ["down", "few"]


@triton.jit
def _words(w_at, w_in, unit, start, units, WORDS: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr):
    """The words of units from *start* on; with EVEN all of these units are there, or with AHEAD none may be."""
    inside = w_in
    if not EVEN:
        inside = w_in & (unit < units - start)
    elif AHEAD:
        inside = w_in & (start < units)
    return tl.load(w_at + start * (4 * WORDS), mask=inside, other=0, eviction_policy="evict_first")


@triton.jit
def _of_groups(part, row, s_in, s_unit, lane, start, units, spread, PER: tl.constexpr, OWN: tl.constexpr,
    EVEN: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Scales or zeros of the groups of units from *start* on."""
    group = (s_unit + start) // PER if PER > 0 else s_unit * 0
    if OWN:
        group = (s_unit + start) * 4 + _along(lane, 0, 5)
    inside = s_in
    if not EVEN:
        inside = s_in & (s_unit < units - start)
    elif AHEAD:
        inside = s_in & (start < units)
    return tl.load(part + row + group + spread, mask=inside, other=0)


@triton.jit
def _few_quantised(
    x, w, scales, zeros, x_row, x_in, w_row, w_in, s_row, z_row, units, one,
    FORM: tl.constexpr, PER: tl.constexpr, TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr,
    CHUNKS: tl.constexpr, WORDS: tl.constexpr, EVEN: tl.constexpr, APART: tl.constexpr, AHEAD: tl.constexpr,
    WAIT: tl.constexpr,
):  # fmt: skip
    """Like ``dense_sums``, for weights of units of 4 * WORDS words; PER of them have one scale, or where PER is 0 none.

    PER -1 is a scale for each quarter of a unit, which is what a thread has of it. WAIT: x is what the launch before
    writes, which may not be done yet.
    *one* is 1, which the compiler must not know: otherwise it gives neighbouring words to one thread where they belong
    to four. AHEAD: weights are loaded while those before them are multiplied.
    """
    KIND: tl.constexpr = x.dtype.element_ty
    EIGHTS: tl.constexpr = WORDS // 2 if FORM == "int8" else WORDS  # a thread has so many times 8 numbers of a unit
    BK: tl.constexpr = 32 * EIGHTS
    BATCH: tl.constexpr = CHUNKS * WARPS
    STEP: tl.constexpr = CHUNKS if APART else BATCH
    OWN: tl.constexpr = PER < 0
    SCALED: tl.constexpr = OWN or PER > 0
    lane = tl.arange(0, 4) * one
    unit = _along(tl.arange(0, CHUNKS), 4, 6)
    x_unit = _along(tl.arange(0, CHUNKS), 4, 7)
    s_unit = _along(tl.arange(0, CHUNKS) * one, 4, 5)
    if not APART:
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
    if AHEAD:
        next_a = _words(w_at, w_in, unit, 0, units, WORDS, EVEN, AHEAD)
        next_s = 0
        if SCALED:
            next_s = _of_groups(scales, s_row, s_in, s_unit, lane, 0, units, spread, PER, OWN, EVEN, AHEAD)
        if zeros is not None:
            next_z = _of_groups(zeros, z_row, s_in, s_unit, lane, 0, units, spread, PER, OWN, EVEN, AHEAD)
        else:
            next_z = 0
    if WAIT:
        gdc_wait()
    for start in range(0, units, STEP):
        if AHEAD:
            a = next_a
            s = next_s
            z = next_z
            next_a = _words(w_at, w_in, unit, start + STEP, units, WORDS, EVEN, AHEAD)
            if SCALED:
                next_s = _of_groups(
                    scales, s_row, s_in, s_unit, lane, start + STEP, units, spread, PER, OWN, EVEN, AHEAD
                )
            if zeros is not None:
                next_z = _of_groups(
                    zeros, z_row, s_in, s_unit, lane, start + STEP, units, spread, PER, OWN, EVEN, AHEAD
                )
        else:
            a = _words(w_at, w_in, unit, start, units, WORDS, EVEN, AHEAD)
            if SCALED:
                s = _of_groups(scales, s_row, s_in, s_unit, lane, start, units, spread, PER, OWN, EVEN, AHEAD)
            if zeros is not None:
                z = _of_groups(zeros, z_row, s_in, s_unit, lane, start, units, spread, PER, OWN, EVEN, AHEAD)
        b = tl.load(x_at + start * BK, mask=b_in if EVEN else b_in & (x_unit < units - start), other=0.0)
        if zeros is None:
            a = _numbers(a, None, one, FORM, KIND)
        else:
            a = _numbers(a, z.reshape(4, 8, WARPS, 2 * TILES, CHUNKS, 1, 1, 1, 1), one, FORM, KIND)
        if OWN:  # rounds as weights that are made before, and powers of two not at all
            a *= _scales(s).to(KIND).reshape(4, 8, WARPS, 2 * TILES, CHUNKS, 1, 1, 1, 1)
        a = a.reshape(4, 8, WARPS, 2 * TILES, CHUNKS, EIGHTS, 2, 2, 2)
        b = b.reshape(4, 8, WARPS, HIGH, CHUNKS, EIGHTS, 2, 2, 2)
        # K in the order in which the compiler gives it to threads: four neighbours, but eight if it sees bytes here
        if AHEAD or (zeros is None and not OWN):
            a = a.permute(4, 2, 3, 1, 5, 6, 0, 7, 8)
            b = b.permute(4, 2, 5, 6, 0, 8, 7, 3, 1) if FORM == "int8" else b.permute(4, 2, 5, 7, 0, 8, 6, 3, 1)
        else:
            a = a.permute(4, 2, 3, 1, 5, 0, 6, 7, 8)
            b = b.permute(4, 2, 5, 0, 6, 8, 7, 3, 1) if FORM == "int8" else b.permute(4, 2, 5, 0, 7, 8, 6, 3, 1)
        a = a.reshape(BATCH, 16 * TILES, BK)
        b = b.reshape(BATCH, BK, 8 * HIGH)
        if PER > 0:
            s = _scales(s).permute(4, 2, 3, 1, 0).reshape(BATCH, 16 * TILES, 1, 4, 1)
            s = tl.broadcast_to(s, BATCH, 16 * TILES, HIGH, 4, 2).reshape(BATCH, 16 * TILES, 8 * HIGH)
            sums += tl.dot(a, b) * s
        else:
            sums = tl.dot(a, b, sums)
    return tl.sum(sums.reshape(CHUNKS, WARPS, 16 * TILES, 8 * HIGH), axis=0)


@triton.jit
def _few_sums(
    x, w, scales, zeros, x_row, x_in, expert, row, row_in, size, w_expert, w_step, s_expert, s_step, z_expert, z_step,
    one, FORM: tl.constexpr, PER: tl.constexpr, TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr,
    CHUNKS: tl.constexpr, WORDS: tl.constexpr, EVEN: tl.constexpr, APART: tl.constexpr, AHEAD: tl.constexpr,
    WAIT: tl.constexpr,
):  # fmt: skip
    """Sums of each warp for rows of weights of experts; *size* counts numbers, or units of them.

    The warps share K; with APART each has all of it, of an expert and a row of x of its own: of quantised weights only.
    """
    w_row = expert * w_expert + row * w_step
    if FORM == "dense":
        if WAIT:
            gdc_wait()
        sums = dense_sums(x, w, x_row, x_in, w_row, row_in, size, TILES, HIGH, WARPS, CHUNKS, EVEN)
    else:
        s_row = expert * s_expert + row * s_step
        z_row = None if zeros is None else expert * z_expert + row * z_step
        words = w.to(tl.pointer_type(tl.uint32))
        sums = _few_quantised(
            x, words, scales, zeros, x_row, x_in, w_row, row_in, s_row, z_row, size, one, FORM, PER, TILES, HIGH,
            WARPS, CHUNKS, WORDS, EVEN, APART, AHEAD, WAIT,
        )  # fmt: skip
        if PER == 0:
            s = tl.load(scales + s_row, mask=row_in, other=0.0).to(tl.float32)
            s = s.reshape(8, s.shape[2], 2 * TILES).permute(1, 2, 0).reshape(s.shape[2], 16 * TILES)
            sums *= s[:, :, None]
    return sums


@triton.jit
def down(
    x, w, scales, zeros, bias, ids, weights, out, columns, size, x_step, w_expert, w_step, s_expert, s_step, z_expert,
    z_step, k, experts, one,
    FORM: tl.constexpr, PER: tl.constexpr, TILES: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr,
    WORDS: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """The weighted sums of what the k experts of a token give for 16 * TILES columns; x has a row for each choice.

    Each warp has an expert at a time, and what they give is added in one order. A choice of no expert is NaN. CHAIN: x
    is what the launch before writes, which this one need not be behind.
    """
    token = tl.program_id(1).to(tl.int64)
    low = _along(tl.arange(0, 8), 1, 6)
    n = tl.program_id(0) * (16 * TILES) + _along(tl.arange(0, 2 * TILES), 3, 6) * 8 + low
    line = tl.program_id(0) * (16 * TILES) + tl.arange(0, 16 * TILES)
    total = tl.zeros([16 * TILES], tl.float32)
    for first in range(0, k, WARPS):
        j = first + tl.arange(0, WARPS)
        choice = token * k + j
        e = tl.load(ids + choice, mask=j < k, other=0)
        known = (e >= 0) & (e < experts)
        share = tl.load(weights + choice, mask=j < k, other=0.0).to(tl.float32)
        share = tl.where(known, share, float("nan"))
        known = known & (j < k)
        e = tl.where(known, e, 0)
        own = _along(known, 2, 6)
        sums = _few_sums(
            x, w, scales, zeros, _along(choice, 2, 6) * x_step, own & (low == 0), _along(e, 2, 6), n.to(tl.int64),
            own & (n < columns), size, w_expert, w_step, s_expert, s_step, z_expert, z_step, one, FORM, PER, TILES, 1,
            WARPS, CHUNKS, WORDS, EVEN, True, AHEAD, CHAIN,
        )  # fmt: skip
        # one of 8 columns is a row of x
        y = tl.sum(tl.where(tl.arange(0, 8)[None, None, :] == 0, sums, 0.0), axis=2)
        if bias is not None:
            there = known[:, None] & (line < columns)[None, :]
            y += tl.load(bias + e[:, None] * columns + line[None, :], mask=there, other=0.0).to(tl.float32)
        total += tl.sum(tl.where((j < k)[:, None], y * share[:, None], 0.0), axis=0)
    tl.store(out + token * columns + line, total.to(out.dtype.element_ty), mask=line < columns)


@triton.jit
def few(
    x, w, scales, zeros, bias, ids, order, offsets, out, choices, columns, size, x_step, w_expert, w_step, s_expert,
    s_step, z_expert, z_step, k, experts, limit, alpha, up_offset, one,
    FORM: tl.constexpr, PER: tl.constexpr, ACT: tl.constexpr, CHOICES: tl.constexpr, EACH: tl.constexpr,
    TILES: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr, CHUNKS: tl.constexpr, WORDS: tl.constexpr,
    EVEN: tl.constexpr, AHEAD: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Rows of x with the weights of their experts; a program has 16 * TILES rows of the weights of an expert.

    With ids, x has a row for k choices each, and results lie in the order of choices. Otherwise offsets say which rows
    an expert has, of x or of what *order* names, and results lie so too. CHAIN: the next launch may come
    at once.
    """
    if CHAIN:
        gdc_launch_dependents()
    if offsets is None:
        e, rank, count = choices_of(ids, tl.program_id(1), choices, experts, CHOICES, EACH)
        begin = 0
    else:
        e = tl.program_id(1).to(tl.int64)
        begin = tl.minimum(tl.maximum(tl.load(offsets + e), 0), choices).to(tl.int32)
        count = tl.minimum(tl.maximum(tl.load(offsets + e + 1), 0), choices).to(tl.int32) - begin
        rank = None
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
        m = first + tl.arange(0, 8 * HIGH)
        m_in = m < count
        index = nth(rank, m, CHOICES) if offsets is None else begin + m
        at = (index if order is None else tl.load(order + index, mask=m_in, other=0)) // k
        at = at.reshape(HIGH, 8).permute(1, 0).reshape(1, 8, 1, HIGH, 1, 1)
        at_in = m_in.reshape(HIGH, 8).permute(1, 0).reshape(1, 8, 1, HIGH, 1, 1)
        sums = _few_sums(
            x, w, scales, zeros, at.to(tl.int64) * x_step, at_in, e, row.to(tl.int64), n < columns, size,
            w_expert, w_step, s_expert, s_step, z_expert, z_step, one, FORM, PER, TILES, HIGH, WARPS, CHUNKS, WORDS,
            EVEN, False, AHEAD, False,
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
