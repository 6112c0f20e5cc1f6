"""Attention of a block of queries to the keys that it sees, tile by tile: any heads, masks and lengths.

Source: Dao, "FlashAttention-2", 2023. Scores are kept as powers of two: what is added to one is multiplied by log2(e).
"""

import triton
import triton.language as tl

from ferrum_ops.kernels.cuda.source.scores import LN_2, LOG2_E, tanh

__all__ = ["attention"]


@triton.jit
def _tile(
    x, j, i, keys, step, MASKED: tl.constexpr, BULK: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Rows i, i + 1, ... of x, their places in j; 0 where there are none. BULK: x is a descriptor."""
    if BULK:
        rows = x.load([i, 0])
    else:
        d = tl.arange(0, BLOCK)
        at = x + j.to(tl.int64)[:, None] * step + d[None, :]
        if MASKED:
            rows = tl.load(at, mask=(j < keys)[:, None] & (d < SIZE)[None, :], other=0.0)
        elif SIZE < BLOCK:
            rows = tl.load(at, mask=(d < SIZE)[None, :], other=0.0)
        else:
            rows = tl.load(at)
    return rows


@triton.jit
def _tiles(
    begin, end, top, total, result, q, k, v, bias, place, inside, keys, k_step, v_step, bias_step, scale, cap, window,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, BULK: tl.constexpr, EXACT: tl.constexpr, DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Queries against the keys from *begin* to *end*; without MASKED every query sees every one of them."""
    for i in tl.range(begin, end, BN):
        j = i + tl.arange(0, BN)
        scores = tl.dot(q, tl.trans(_tile(k, j, i, keys, k_step, MASKED, BULK, DIM, BD)), input_precision="ieee")
        factor = scale * LOG2_E
        if cap is not None:
            scores = tanh(scores * (scale / cap), EXACT) * cap
            factor = LOG2_E
        if bias is not None:
            if cap is None:
                scores *= scale
            factor = LOG2_E
            at = bias + j.to(tl.int64)[None, :] * bias_step
            scores += tl.load(at, mask=inside[:, None] & (j < keys)[None, :], other=0.0).to(tl.float32)
        if MASKED:
            seen = (j < keys)[None, :]
            if CAUSAL:
                seen = seen & (j[None, :] <= place[:, None])
            if window is not None:
                seen = seen & (j[None, :] > place[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * factor)
        base = tl.where(higher == float("-inf"), 0.0, higher)  # with all hidden, -inf + inf would be a NaN
        weights = tl.exp2(scores * factor - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, 1)
        top = higher
        values = _tile(v, j, i, keys, v_step, MASKED, BULK, VALUE_DIM, BV)
        rounded = weights.to(values.dtype)
        result = tl.dot(rounded, values, result * shrink[:, None], input_precision="ieee")
        if EXACT and values.dtype != tl.float32:
            rest = (weights - rounded.to(tl.float32)).to(values.dtype)
            result = tl.dot(rest, values, result, input_precision="ieee")
    return top, total, result


@triton.jit
def attention(
    q, k, v, out, lse, sinks, bias, q_starts, k_starts, heads, blocks, queries, keys, q_batch, q_token, q_head,
    k_batch, k_token, k_head, v_batch, v_token, v_head, bias_batch, bias_head, bias_query, bias_key, scale, cap, window,
    GROUP: tl.constexpr, PACK: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, BULK: tl.constexpr,
    EXACT: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A block of queries of one batch, or of one sequence if there are starts, and of PACK heads that share keys.

    A row of the block is a query and one of the PACK heads. BULK: keys and values are copied by descriptors, which
    asks for addresses and steps of whole 16 bytes. EXACT: weights are not rounded to 16 bits. WHOLE: there is code for
    tiles that all queries see, without masks.
    """
    pid = tl.program_id(0)
    units = heads // PACK
    head = pid % units * PACK
    pid = pid // units
    block = blocks - 1 - pid % blocks  # those that see most keys begin first
    batch = (pid // blocks).to(tl.int64)
    if q_starts is not None:
        first = tl.load(q_starts + batch).to(tl.int64)
        queries = (tl.load(q_starts + batch + 1) - first).to(tl.int32)
        begin = tl.load(k_starts + batch).to(tl.int64)
        keys = (tl.load(k_starts + batch + 1) - begin).to(tl.int32)
        q_from, k_from, v_from = first * q_token, begin * k_token, begin * v_token
        to = first
    else:
        q_from, k_from, v_from = batch * q_batch, batch * k_batch, batch * v_batch
        to = batch * queries
    row = block * BM + tl.arange(0, BM)
    query = row // PACK
    inside = query < queries
    if block * BM < queries * PACK:
        shared = (head // GROUP).to(tl.int64)
        d = tl.arange(0, BD)
        own = (head + row % PACK).to(tl.int64)
        q_at = q + q_from + query.to(tl.int64) * q_token + own * q_head
        x = tl.load(q_at[:, None] + d[None, :], mask=inside[:, None] & (d < DIM)[None, :], other=0.0)
        k_first = k + k_from + shared * k_head
        v_first = v + v_from + shared * v_head
        if BULK:
            length = tl.maximum(keys, 1)
            y = tl.make_tensor_descriptor(k_first, [length, DIM], [k_token, 1], [BN, BD])
            z = tl.make_tensor_descriptor(v_first, [length, VALUE_DIM], [v_token, 1], [BN, BV])
        else:
            y, z = k_first, v_first
        bias_at = None
        if bias is not None:
            bias_at = (bias + batch * bias_batch + own * bias_head + query.to(tl.int64) * bias_query)[:, None]
        if sinks is None:
            top = tl.full([BM], float("-inf"), tl.float32)
            total = tl.zeros([BM], tl.float32)
        else:
            top = tl.load(sinks + own).to(tl.float32) * LOG2_E
            total = tl.full([BM], 1.0, tl.float32)
        result = tl.zeros([BM, BV], tl.float32)
        # low..high: what any of the queries sees; from..to: what all of them see
        offset = keys - queries
        place = query + offset
        low, high, whole_low, whole_high = 0, keys, 0, keys
        if CAUSAL:
            earliest = block * BM // PACK + offset
            latest = tl.minimum((block * BM + BM - 1) // PACK, queries - 1) + offset
            high = tl.maximum(tl.minimum(keys, latest + 1), 0)
            whole_high = tl.maximum(tl.minimum(keys, earliest + 1), 0)
            if window is not None:
                low = tl.minimum(tl.maximum(earliest - window + 1, 0), high)
                whole_low = tl.maximum(latest - window + 1, 0)
        if WHOLE:
            a = low
            if window is not None:
                a = tl.minimum(low + tl.cdiv(tl.maximum(whole_low - low, 0), BN) * BN, high)
                top, total, result = _tiles(
                    low, a, top, total, result, x, y, z, bias_at, place, inside, keys, k_token, v_token, bias_key,
                    scale, cap, window, True, CAUSAL, BULK, EXACT, DIM, VALUE_DIM, BD, BV, BN,
                )  # fmt: skip
                a = low + tl.cdiv(tl.maximum(a - low, 0), BN) * BN
            low = a + tl.maximum(whole_high - a, 0) // BN * BN
            top, total, result = _tiles(
                a, low, top, total, result, x, y, z, bias_at, place, inside, keys, k_token, v_token, bias_key,
                scale, cap, window, False, CAUSAL, BULK, EXACT, DIM, VALUE_DIM, BD, BV, BN,
            )  # fmt: skip
        top, total, result = _tiles(
            low, high, top, total, result, x, y, z, bias_at, place, inside, keys, k_token, v_token, bias_key,
            scale, cap, window, True, CAUSAL, BULK, EXACT, DIM, VALUE_DIM, BD, BV, BN,
        )  # fmt: skip
        line = (to + query) * heads + own
        some = tl.where(total == 0.0, 1.0, total)
        if lse is not None:
            tl.store(lse + line, tl.where(total == 0.0, float("-inf"), top + tl.log2(some)) * LN_2, mask=inside)
        result = result / some[:, None]
        e = tl.arange(0, BV)
        at = out + line[:, None] * VALUE_DIM + e[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=inside[:, None] & (e < VALUE_DIM)[None, :])
