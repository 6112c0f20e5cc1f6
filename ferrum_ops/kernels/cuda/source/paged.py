"""Attention over caches, block by block of queries and tile by tile of keys.

Lengths, blocks and starts come from the memory of the device; nothing outside the tensors is read, whatever they say.
"""

import triton
import triton.language as tl

from ferrum_ops.kernels.cuda.source.parts import arrived, merge, span
from ferrum_ops.kernels.cuda.source.scores import LN_2, LOG2_E, tanh

__all__ = ["attend", "check_tables"]


@triton.jit
def _slots(table, i, j, inside, blocks, size, PAGE: tl.constexpr, LAYOUT: tl.constexpr, BN: tl.constexpr):
    """The rows of the cache that hold the keys *j* = i, i + 1, ..., of which those not *inside* may be any rows."""
    if LAYOUT == "paged":
        if PAGE % BN == 0 and PAGE > 0:  # all in one block
            block = tl.minimum(tl.maximum(tl.load(table + i // PAGE), 0), blocks - 1)
            rows = block.to(tl.int64) * PAGE + i % PAGE + tl.arange(0, BN)
        else:
            length = PAGE if PAGE > 0 else size
            block = tl.minimum(tl.maximum(tl.load(table + j // length, mask=inside, other=0), 0), blocks - 1)
            rows = block.to(tl.int64) * length + j % length
    else:
        block = tl.minimum(tl.maximum(tl.load(table), 0), blocks - 1).to(tl.int64)
        rows = block * size + (j % size if LAYOUT == "ring" else j)
    return rows


@triton.jit
def _even_odd(pairs, FP8: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Of pairs of bytes in an int16 the first ones and the second ones, as float16: exact.

    A byte in the last bits of a float16 that is 1024 adds to it, so no conversion is needed, for which processors have
    few units. The instructions take the two pairs of a register at once, as tensor cores want them. FP8: the bytes are
    codes of E4M3.
    """
    if FP8:
        if ASSEMBLY:
            even, odd = tl.inline_asm_elementwise(
                """{
                .reg .b32 a, b;
                .reg .b16 c, d;
                mov.b32 {c, d}, $2;
                cvt.rn.f16x2.e4m3x2 a, c;
                cvt.rn.f16x2.e4m3x2 b, d;
                prmt.b32 $0, a, b, 0x5410;
                prmt.b32 $1, a, b, 0x7632;
                }""",
                "=r,=r,r", [pairs], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
            )  # fmt: skip
        else:
            even = pairs.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
            odd = (pairs >> 8).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    elif ASSEMBLY:
        even, odd = tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b, c;
            xor.b32 a, $2, 0x80808080;
            mov.b32 c, 0x64806480;
            prmt.b32 b, a, 0x64646464, 0x4240;
            prmt.b32 a, a, 0x64646464, 0x4341;
            sub.f16x2 $0, b, c;
            sub.f16x2 $1, a, c;
            }""",
            "=r,=r,r", [pairs], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        even = ((pairs << 8) >> 8).to(tl.float16)
        odd = (pairs >> 8).to(tl.float16)
    return even, odd


@triton.jit
def _numbers(codes, dtype: tl.constexpr):
    """Keys or values as numbers of *dtype*; uint8 are codes of E4M3, of which float16 holds every one."""
    if codes.dtype == tl.uint8:
        numbers = codes.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(dtype)
    else:
        numbers = codes.to(dtype)
    return numbers


@triton.jit
def _sum_and_greatest(a, b, c, d):
    """Of two pairs of a sum and a greatest number, those of both."""
    return a + c, tl.maximum(b, d)


@triton.jit
def _fetched(at, inside, e, length, MASKED: tl.constexpr, PADDED: tl.constexpr):
    """Rows of keys or values, 0 where they are not *inside*; PADDED: also from their end on."""
    # what lies outside may be anything, NaN too, and 0 times NaN would count
    if MASKED:
        if PADDED:
            numbers = tl.load(at, mask=inside[:, None] & (e[None, :] < length), other=0)
        else:
            numbers = tl.load(at, mask=inside[:, None], other=0)
    elif PADDED:
        numbers = tl.load(at, mask=e[None, :] < length, other=0)
    else:
        numbers = tl.load(at)
    return numbers


@triton.jit
def _tiles(
    begin, end, low, high, q, position, top, total, result, k, v, k_scale, v_scale, table, blocks, size,
    kv_heads, head, scale, cap, window,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, BN: tl.constexpr, PAGE: tl.constexpr, LAYOUT: tl.constexpr, PRECISION: tl.constexpr,
    PAIRS: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Queries against the keys from *begin* to *end*; without MASKED every query sees every one of them.

    PAIRS: keys and values are of 8 bits and taken two by two, as int16.
    """
    FP8: tl.constexpr = k.dtype.element_ty == tl.uint8
    FOLD: tl.constexpr = 2 if PAIRS else 1
    LENGTH: tl.constexpr = DIM // FOLD
    VALUE_LENGTH: tl.constexpr = VALUE_DIM // FOLD
    if PAIRS:
        k = k.to(tl.pointer_type(tl.int16), bitcast=True)
        v = v.to(tl.pointer_type(tl.int16), bitcast=True)
        even_q, odd_q = tl.split(q.reshape(q.shape[0], BD // 2, 2))
        even_result, odd_result = tl.split(result.reshape(q.shape[0], BV // 2, 2))
    d = tl.arange(0, BD // FOLD)
    e = tl.arange(0, BV // FOLD)
    for i in range(begin, end, BN):
        j = i + tl.arange(0, BN)
        inside = (j >= low) & (j < high)
        rows = _slots(table, i, j, inside, blocks, size, PAGE, LAYOUT, BN) * kv_heads + head
        keys = _fetched(k + rows[:, None] * LENGTH + d[None, :], inside, d, LENGTH, MASKED, BD != DIM)
        if PAIRS:
            even, odd = _even_odd(keys, FP8, ASSEMBLY)
            scores = tl.dot(odd_q, tl.trans(odd), tl.dot(even_q, tl.trans(even)))
        else:
            scores = tl.dot(q, tl.trans(_numbers(keys, q.dtype)), input_precision=PRECISION)
        if k_scale is not None:
            scores *= tl.load(k_scale + rows, mask=inside, other=0.0)[None, :]
        if cap is not None:
            scores = tanh(scores * (scale / cap), q.dtype == tl.float32) * (cap * LOG2_E)
        else:
            scores *= scale * LOG2_E
        if MASKED:
            seen = inside[None, :]
            if CAUSAL:
                seen = seen & (j[None, :] <= position[:, None])
            if window is not None:
                seen = seen & (j[None, :] > position[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        top = higher
        at = v + rows[:, None] * VALUE_LENGTH + e[None, :]
        values = _fetched(at, inside, e, VALUE_LENGTH, MASKED, BV != VALUE_DIM)
        if v_scale is not None and q.dtype == tl.float16:
            # whose range does not hold every product: the greatest scale goes behind the sum
            scales = tl.load(v_scale + rows, mask=inside, other=0.0)[None, :].broadcast_to(weights.shape)
            if ASSEMBLY:  # both at once; the interpreter is slow at that
                added, most = tl.reduce((weights, scales), 1, _sum_and_greatest)
            else:
                added, most = tl.sum(weights, 1), tl.max(scales, 1)
            weights *= scales * (1.0 / tl.where(most > 0.0, most, 1.0))[:, None]
            most = most[:, None]
        else:
            added = tl.sum(weights, 1)
            if v_scale is not None:
                weights *= tl.load(v_scale + rows, mask=inside, other=0.0)[None, :]
        total = total * shrink + added
        weights = weights.to(q.dtype)
        if PAIRS:
            even, odd = _even_odd(values, FP8, ASSEMBLY)
            even_result = even_result * shrink[:, None] + tl.dot(weights, even) * most
            odd_result = odd_result * shrink[:, None] + tl.dot(weights, odd) * most
        elif v_scale is not None and q.dtype == tl.float16:
            result = result * shrink[:, None] + tl.dot(weights, _numbers(values, q.dtype)) * most
        else:
            result = tl.dot(weights, _numbers(values, q.dtype), result * shrink[:, None], input_precision=PRECISION)
    if PAIRS:
        result = tl.join(even_result, odd_result).reshape(q.shape[0], BV)
    return top, total, result


@triton.jit
def _phases(begin, end, low, final, keys_before, window, CAUSAL: tl.constexpr, BN: tl.constexpr):
    """From where on all queries see the first key of each tile, and up to where they see its last."""
    middle = begin
    late = end // BN * BN
    if CAUSAL:
        late = tl.minimum(tl.maximum(keys_before + 1, 0) // BN * BN, late)
    if window is not None:
        middle = tl.maximum(middle, tl.cdiv(tl.maximum(final - window + 1, 0), BN) * BN)
        middle = tl.minimum(middle, tl.cdiv(end, BN) * BN)
    return middle, tl.maximum(late, middle)


@triton.jit
def attend(
    q, k, v, k_scale, v_scale, sinks, starts, lengths, tables, out, sums, parts, arrivals,
    tokens, blocks, width, size, room, kv_heads, q_token, q_head, fewest, most, splits, scale, cap, window,
    SPLIT: tl.constexpr, CAUSAL: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PAGE: tl.constexpr, LAYOUT: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, PAIRS: tl.constexpr, ASSEMBLY: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """A block of queries that share a head of keys, of a sequence of *fewest* to *most* tokens, and a split of keys.

    A row of the block is a token and one of the GROUP heads. With SPLIT the result is a part, by its own sum, and
    parts are put together by ``combine``; or, with *arrivals*, [S * Hkv] zeros, by the program that comes last.
    WHOLE: tiles that all queries see are computed without masks.
    """
    # 16-bit numbers of the dtype of both are multiplied so, int8 and E4M3 as float16, and others as float32
    FP8: tl.constexpr = k.dtype.element_ty == tl.uint8
    HALF: tl.constexpr = (FP8 or k.dtype.element_ty == tl.int8) and q.dtype.element_ty != tl.float32
    ALIKE: tl.constexpr = q.dtype.element_ty == k.dtype.element_ty
    SCALED: tl.constexpr = HALF and (PAIRS or FP8)
    COMPUTE: tl.constexpr = tl.float16 if SCALED else q.dtype.element_ty if ALIKE or HALF else tl.float32
    head = tl.program_id(0)
    sequence = tl.program_id(2)
    first, count, keys = span(starts, lengths, sequence, tokens, room)
    if arrivals is not None:  # one block, and no branch before the first keys are asked for
        split = tl.program_id(1)
        block = 0
        keys = tl.where((count < fewest) | (count > most), 0, keys)
        count = tl.where((count < fewest) | (count > most), 0, count)
    else:
        split = tl.program_id(1) % splits
        block = tl.num_programs(1) // splits - 1 - tl.program_id(1) // splits  # those that see most keys begin first
        if (count < fewest) | (count > most) | (block * BM >= count * GROUP):
            return
    row = block * BM + tl.arange(0, BM)
    token = row // GROUP
    heads = kv_heads * GROUP
    own = head * GROUP + row % GROUP
    here = token < count
    line = (first + token).to(tl.int64) * heads + own
    part = ((sequence.to(tl.int64) * most + token) * heads + own) * splits + split
    if SPLIT:  # the sums of the parts lie behind them
        part_sums = parts + tl.num_programs(2).to(tl.int64) * most * heads * splits * VALUE_DIM
    position = keys - count + token
    low = 0
    high = keys
    if CAUSAL:
        final = tl.minimum((block * BM + BM - 1) // GROUP, count - 1)
        high = tl.maximum(tl.minimum(keys, keys - count + final + 1), 0)
    if window is not None:
        low = tl.minimum(tl.maximum(keys - count + (block * BM) // GROUP - window + 1, 0), high)
    begin = low // BN * BN
    end = high
    if SPLIT:
        each = tl.cdiv(tl.cdiv(high - begin, BN), splits) * BN
        begin += split * each
        end = tl.minimum(begin + each, high)
        if arrivals is None and begin >= end:
            tl.store(part_sums + part, tl.full([BM], float("-inf"), tl.float32), mask=here)
            return

    d = tl.arange(0, BD)
    q_at = q + (first + token).to(tl.int64)[:, None] * q_token + own.to(tl.int64)[:, None] * q_head + d[None, :]
    queries = tl.load(q_at, mask=here[:, None] & (d[None, :] < DIM), other=0.0)
    if SCALED:  # powers of 2 bring rows of any range into that of float16
        wide = queries.to(tl.float32)
        power = (tl.max(tl.abs(wide), 1).to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        power = tl.where(power > 0.0, power, 1.0)
        queries = wide / power[:, None]
        scale *= power[:, None]
    queries = queries.to(COMPUTE)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    result = tl.zeros([BM, BV], tl.float32)
    table = tables + sequence.to(tl.int64) * width
    final = keys - count + tl.minimum((block * BM + BM - 1) // GROUP, count - 1)
    middle, late = _phases(begin, end, low, final, keys - count + (block * BM) // GROUP, window, CAUSAL, BN)
    if WHOLE:
        if window is not None:
            top, total, result = _tiles(
                begin, middle, low, end, queries, position, top, total, result, k, v, k_scale, v_scale, table,
                blocks, size, kv_heads, head, scale, cap, window,
                True, CAUSAL, DIM, VALUE_DIM, BD, BV, BN, PAGE, LAYOUT, PRECISION, PAIRS, ASSEMBLY,
            )  # fmt: skip
        top, total, result = _tiles(
            middle, late, low, end, queries, position, top, total, result, k, v, k_scale, v_scale, table,
            blocks, size, kv_heads, head, scale, cap, window,
            False, CAUSAL, DIM, VALUE_DIM, BD, BV, BN, PAGE, LAYOUT, PRECISION, PAIRS, ASSEMBLY,
        )  # fmt: skip
        begin = late
    top, total, result = _tiles(
        begin, end, low, end, queries, position, top, total, result, k, v, k_scale, v_scale, table,
        blocks, size, kv_heads, head, scale, cap, window,
        True, CAUSAL, DIM, VALUE_DIM, BD, BV, BN, PAGE, LAYOUT, PRECISION, PAIRS, ASSEMBLY,
    )  # fmt: skip

    e = tl.arange(0, BV)
    kept = here[:, None] & (e[None, :] < VALUE_DIM)
    if sinks is not None and not SPLIT:
        sink = tl.load(sinks + own, mask=here, other=0.0).to(tl.float32) * LOG2_E
        higher = tl.maximum(top, sink)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(top - base)
        result *= shrink[:, None]
        total = total * shrink + tl.exp2(sink - base)
        top = higher
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    result = result / total[:, None]
    level = tl.where(nothing, float("-inf"), top + tl.log2(total))
    if not SPLIT:
        tl.store(out + line[:, None] * VALUE_DIM + e[None, :], result.to(out.dtype.element_ty), mask=kept)
        if sums is not None:
            tl.store(sums + line, level * LN_2, mask=here)
    else:
        tl.store(parts + part[:, None] * VALUE_DIM + e[None, :], result, mask=kept)
        tl.store(part_sums + part, level, mask=here)
        if arrivals is not None:
            last = arrived(arrivals + sequence * kv_heads + head, splits)
            if last:
                merge(
                    parts, part_sums, sinks, out, sums, first, count, sequence, head, kv_heads, most, splits,
                    GROUP, VALUE_DIM, BV, ROWS, PIECE,
                )  # fmt: skip


@triton.jit
def check_tables(tables, lengths, fault, width, size, blocks, RING: tl.constexpr, BLOCK: tl.constexpr):
    """Lowers *fault* to ``sequence * (width + 1) + place`` for a used place that names no block, or place ``width`` for
    keys beyond the blocks.
    """
    sequence = tl.program_id(0).to(tl.int64)
    keys = tl.load(lengths + sequence)
    used = (keys > 0).to(tl.int64) if RING else tl.cdiv(tl.maximum(keys, 0), size).to(tl.int64)
    least = sequence * (width + 1) + width
    if used > width:
        tl.atomic_min(fault, least)
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < tl.minimum(used, width)
        block = tl.load(tables + sequence * width + place, mask=inside, other=0)
        wrong = inside & ((block < 0) | (block >= blocks))
        found = tl.min(tl.where(wrong, place, width), 0)
        if found < width:
            tl.atomic_min(fault, sequence * (width + 1) + found)
