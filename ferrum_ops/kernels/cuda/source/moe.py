"""Products of rows with the weights of their experts, dense or quantised; offsets and ids stay in the device's memory.

Sums are [n, m]: columns of the result first, so that a tensor core's wide side has the weights, and the narrow side,
which comes in steps of 8, has the rows of an expert. For a gate, a program has the same columns of both halves.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ferrum_ops.kernels.cuda.source.activations import gated
from ferrum_ops.kernels.cuda.source.gemm import _numbers, _scales

__all__ = ["choices_of", "many", "nth", "some"]


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
    x, x_block, w, w_block, scales, zeros, bias, row, there, begin, expert, n0, half, columns, size, x_step, w_expert,
    w_step, s_expert, s_step, z_expert, z_step, one,
    FORM: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The products [BN, BM] of rows with the weights of an expert, and those with PARTS 2 of the second half."""
    KIND: tl.constexpr = x.dtype.element_ty
    x_at = x + row.to(tl.int64)[:, None] * x_step + tl.arange(0, BK)[None, :]
    n = n0 + tl.arange(0, BN)
    n_in = n < columns
    e = expert.to(tl.int64)
    w_at = w + e * w_expert + n.to(tl.int64)[:, None] * w_step
    s_at, z_at, word = None, None, None
    if FORM != "dense":
        WORDS: tl.constexpr = BK // (4 if FORM == "int8" else 8)
        word = tl.arange(0, WORDS)[None, :]
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
    row = begin + tl.arange(0, BM)
    there = row < end
    if order is not None:
        row = tl.load(order + row, mask=there, other=0) // k
    a, b = _sums(
        x, x_block, w, w_block, scales, zeros, bias, row, there, begin, expert, n0, columns, columns, size, x_step,
        w_expert, w_step, s_expert, s_step, z_expert, z_step, one, FORM, GROUP, PARTS, BM, BN, BK, EVEN,
    )  # fmt: skip
    if ACT is not None:
        a = gated(a, b, limit, alpha, up_offset, ACT, False)
    y = tl.trans(a.to(out.dtype.element_ty))
    row = begin + tl.arange(0, BM)[:, None]
    n = n0 + tl.arange(0, BN)[None, :]
    tl.store(out + row.to(tl.int64) * columns + n, y, mask=(row < end) & (n < columns))


@triton.jit
def many(
    x, w, scales, zeros, bias, order, offsets, out, rows, columns, size, x_step, w_expert, w_step, s_expert,
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


# Few rows, whose experts programs look up themselves.


@triton.jit
def choices_of(ids, slot, choices, experts, CHOICES: tl.constexpr, EACH: tl.constexpr):
    """The expert of a slot, the places of choices among those of this expert, or -1, and how many these are.

    With EACH a slot is an expert, otherwise a choice, which stands for its expert if it is the first of it.
    """
    choice = tl.arange(0, CHOICES)
    chosen = tl.load(ids + choice, mask=choice < choices, other=-1)
    chosen = tl.where((chosen >= 0) & (chosen < experts), chosen, -1).to(tl.int32)
    if EACH:
        e = slot
        mine = chosen == e
    else:
        e = tl.sum(tl.where(choice == slot, chosen, 0), axis=0)
        mine = (chosen == e) & (choice < choices)
        first = tl.min(tl.where(mine, choice, CHOICES), axis=0)
        mine = mine & (e >= 0) & (first == slot)
    own = tl.where(mine, 1, 0)
    return e.to(tl.int64), tl.where(mine, tl.cumsum(own, axis=0) - 1, -1), tl.sum(own, axis=0)


@triton.jit
def nth(rank, m, CHOICES: tl.constexpr):
    """The choices whose ranks are m."""
    here = rank[None, :] == m[:, None]
    return tl.sum(tl.where(here, tl.arange(0, CHOICES)[None, :], 0), axis=1)


@triton.jit
def some(
    x, w, bias, ids, out, choices, columns, size, x_step, w_expert, w_step, k, experts, limit, alpha, up_offset, one,
    ACT: tl.constexpr, CHOICES: tl.constexpr, EACH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BULK: tl.constexpr, EVEN: tl.constexpr, CHAIN: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """Rows of x, one for k choices each, with their experts' dense weights; results lie in the order of choices.

    CHAIN: the next launch may come at once. WAIT: x is what the launch before writes, which may not be done yet.
    """
    if CHAIN:
        gdc_launch_dependents()
    PARTS: tl.constexpr = 1 if ACT is None else 2
    n0 = tl.program_id(0) * BN
    e, rank, count = choices_of(ids, tl.program_id(1), choices, experts, CHOICES, EACH)
    w_block = None
    if WAIT:  # descriptors too, which lie where the launch before had its own
        gdc_wait()
    if BULK:
        w_block = tl.make_tensor_descriptor(w, [experts * columns * PARTS, size], [w_step, 1], [BN, BK])
    for first in range(0, count, BM):
        m = first + tl.arange(0, BM)
        there = m < count
        index = nth(rank, m, CHOICES)
        a, b = _sums(
            x, None, w, w_block, None, None, bias, index // k, there, 0, e.to(tl.int32), n0, columns, columns, size,
            x_step, w_expert, w_step, 0, 0, 0, 0, one, "dense", 0, PARTS, BM, BN, BK, EVEN,
        )  # fmt: skip
        if ACT is not None:
            a = gated(a, b, limit, alpha, up_offset, ACT, False)
        n = n0 + tl.arange(0, BN)
        to = out + index.to(tl.int64)[:, None] * columns + n[None, :]
        tl.store(to, tl.trans(a.to(out.dtype.element_ty)), mask=there[:, None] & (n < columns)[None, :])
