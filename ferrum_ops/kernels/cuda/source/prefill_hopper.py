"""Attention on Hopper: one group of warps copies tiles of keys and values, the others multiply them.

A program stays on its multiprocessor and takes blocks of queries one after another. Its consumers, groups of four
warps, have 64 queries each. While the weights of a tile are multiplied with its values, the scores of the next tile
become weights.

Source: Shah et al., "FlashAttention-3", 2024. Scores are kept as powers of two: they are multiplied by log2(e).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ferrum_ops.kernels.cuda.source.prefill_copies import ROWS, dealt, place_of, produce, seen

__all__ = ["attention"]

_LOG2_E: gl.constexpr = gl.constexpr(1.4426950408889634)
_LN_2: gl.constexpr = gl.constexpr(0.6931471805599453)
_TURN: gl.constexpr = gl.constexpr("bar.sync $1, 256; mov.b32 $0, $1;")
_NEXT: gl.constexpr = gl.constexpr("bar.arrive $1, 256; mov.b32 $0, $1;")


@gluon.jit
def _speak(what: gl.constexpr, part):
    """Wait for this consumer's turn at the tensor cores, or give the turn to that consumer."""
    name = gl.full([128], 8, gl.int32, layout=gl.BlockedLayout([1], [32], [4], [0])) + part
    gl.inline_asm_elementwise(what, "=r,r,~{memory}", [name], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _ask(at, q, ring, full, L: gl.constexpr):
    """Begin the scores for the keys of tile number *at*."""
    BN: gl.constexpr = ring.shape[2]
    stage = at % ring.shape[0]
    mbarrier.wait(full.index(stage), (at // ring.shape[0]) & 1)
    keys = ring.index(stage).reshape([BN, ring.shape[4]]).permute([1, 0])
    zeros = gl.zeros([ROWS, BN], gl.float32, layout=L)
    return warpgroup_mma(q, keys, zeros, use_acc=False, is_async=True)


@gluon.jit
def _add(at, weights, result, ring, full):
    """Begin to add the values of tile number *at*."""
    stage = at % ring.shape[0]
    mbarrier.wait(full.index(stage), (at // ring.shape[0]) & 1)
    return warpgroup_mma(weights, ring.index(stage).reshape([ring.shape[2], ring.shape[4]]), result, is_async=True)


@gluon.jit
def _tanh(x):
    t = gl.abs(x)
    e = gl.exp2(t * (-2.0 * _LOG2_E))
    found = (1.0 - e) / (1.0 + e)
    return gl.where(x < 0.0, -found, found)


@gluon.jit
def _weigh(
    scores, tile, place, top, total, keys, numbers, MASKED: gl.constexpr, CAUSAL: gl.constexpr, L: gl.constexpr
):  # fmt: skip
    """The exponentials of the scores for a tile of keys, the greatest score and the sum so far, and how it shrinks."""
    _, scale, cap, window = numbers
    if cap is None:
        factor = scale * _LOG2_E
    else:
        scores = _tanh(scores * (scale / cap)) * cap
        factor = _LOG2_E
    if MASKED:
        j = tile * scores.shape[1] + gl.arange(0, scores.shape[1], layout=gl.SliceLayout(0, L))
        sees = (j < keys)[None, :]
        if CAUSAL:
            sees = sees & (j[None, :] <= place[:, None])
            if window is not None:
                sees = sees & (j[None, :] > place[:, None] - window)
        scores = gl.where(sees, scores, float("-inf"))
    higher = gl.maximum(top, gl.max(scores, 1) * factor)
    base = gl.where(higher == float("-inf"), 0.0, higher)  # with all hidden, -inf + inf would be a NaN
    weights = gl.exp2(scores * factor - base[:, None])
    shrink = gl.exp2(top - base)
    return weights, higher, total * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _step(
    at, tile, q, weights, result, top, total, place, keys, numbers, rings, signs,
    PART: gl.constexpr, MASKED: gl.constexpr, CAUSAL: gl.constexpr, TURNS: gl.constexpr, L: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    """The scores of tile number *at* become weights; those of the one before are multiplied with their values."""
    _, k_ring, v_ring, _ = rings
    _, _, k_full, k_empty, v_full, v_empty = signs
    if TURNS:
        _speak(_TURN, PART)
    scores = _ask(at, q, k_ring, k_full, L)
    result = _add(at - 1, weights, result, v_ring, v_full)
    if TURNS:
        _speak(_NEXT, 1 - PART)
    scores = warpgroup_mma_wait(1, [scores])
    mbarrier.arrive(k_empty.index(at % k_ring.shape[0]), count=1)
    fresh, top, total, shrink = _weigh(scores, tile, place, top, total, keys, numbers, MASKED, CAUSAL, L)
    result, weights = warpgroup_mma_wait(0, [result, weights])
    then = gl.convert_layout(fresh.to(q.dtype), W)
    mbarrier.arrive(v_empty.index((at - 1) % v_ring.shape[0]), count=1)
    return then, result, top, total, gl.convert_layout(shrink, gl.SliceLayout(1, W.parent))[:, None]


@gluon.jit
def _first(at, tile, q, top, total, place, keys, numbers, rings, signs, PART: gl.constexpr, CAUSAL: gl.constexpr,
           TURNS: gl.constexpr, L: gl.constexpr, W: gl.constexpr):  # fmt: skip
    """The scores of tile number *at* become weights, with nothing to do beside."""
    _, k_ring, _, _ = rings
    _, _, k_full, k_empty, _, _ = signs
    if TURNS:
        _speak(_TURN, PART)
    scores = _ask(at, q, k_ring, k_full, L)
    if TURNS:
        _speak(_NEXT, 1 - PART)
    scores = warpgroup_mma_wait(0, [scores])
    mbarrier.arrive(k_empty.index(at % k_ring.shape[0]), count=1)
    fresh, top, total, _shrink = _weigh(scores, tile, place, top, total, keys, numbers, True, CAUSAL, L)
    return gl.convert_layout(fresh.to(q.dtype), W), top, total


@gluon.jit
def _start(sinks, head, S: gl.constexpr):
    """The greatest score and the sum of a row that has seen nothing but its sink."""
    if sinks is None:
        top = gl.full([ROWS], float("-inf"), gl.float32, layout=S)
        total = gl.zeros([ROWS], gl.float32, layout=S)
    else:
        top = gl.zeros([ROWS], gl.float32, layout=S) + gl.load(sinks + head).to(gl.float32) * _LOG2_E
        total = gl.full([ROWS], 1.0, gl.float32, layout=S)
    return top, total


@gluon.jit
def _clear(at, count, ring, full):
    """Make the values of tile number *at* behind the first *count* 0: they belong to others, and may be NaN."""
    BN: gl.constexpr = ring.shape[2]
    stage = at % ring.shape[0]
    mbarrier.wait(full.index(stage), (at // ring.shape[0]) & 1)
    A: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    tile = ring.index(stage).reshape([BN, ring.shape[4]])
    rows = gl.arange(0, BN, layout=gl.SliceLayout(1, A))
    tile.store(gl.where((rows < count)[:, None], tile.load(A), 0.0))
    fence_async_shared()


@gluon.jit
def _finish(
    result, top, total, outputs, mine, first, queries, batch, head, heads, row,
    PACKED: gl.constexpr, VALUE: gl.constexpr, S: gl.constexpr,
):  # fmt: skip
    """Divide the result by the sum, and store both; *mine* is memory that the consumer's last copy may still read."""
    o_desc, out, lse = outputs
    R: gl.constexpr = result.type.layout
    some = gl.where(total == 0.0, 1.0, total)
    if lse is not None:
        rows = row + gl.arange(0, ROWS, layout=S)
        line = (first + rows).to(gl.int64)
        if not PACKED:
            line += batch.to(gl.int64) * queries
        sums = gl.where(total == 0.0, float("-inf"), top + gl.log2(some)) * _LN_2
        gl.store(lse + line * heads + head, sums, mask=rows < queries)
    result = (result * gl.convert_layout(1.0 / some, gl.SliceLayout(1, R))[:, None]).to(out.dtype.element_ty)
    tma.store_wait(0)
    if PACKED and row + ROWS > queries:  # what lies behind belongs to another sequence
        lines = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, R))
        columns = gl.arange(0, result.shape[1], layout=gl.SliceLayout(0, R))
        to = out + ((first + lines).to(gl.int64) * heads + head)[:, None] * VALUE + columns[None, :]
        gl.store(to, result, mask=(lines < queries)[:, None] & (columns < VALUE)[None, :])
    else:
        mine.reshape([ROWS, result.shape[1]]).store(result)
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [batch, first + row, head, 0], mine)


@gluon.jit
def _consume(
    outputs, tiles, work, numbers, rings, signs,
    VALUE: gl.constexpr, PART: gl.constexpr, CAUSAL: gl.constexpr, TURNS: gl.constexpr, SHARED: gl.constexpr,
):  # fmt: skip
    """Blocks of queries, one after another: the last product of a block goes on while the next block begins.

    Not with SHARED, where the next queries wait until the result has left their memory.
    """
    sinks, _, _, window = numbers
    q_ring, k_ring, v_ring, o_mem = rings
    q_full, q_empty, _, _, v_full, v_empty = signs
    SLOTS: gl.constexpr = q_full.shape[0]
    PARTS: gl.constexpr = q_ring.shape[0] // SLOTS
    BN: gl.constexpr = k_ring.shape[2]
    DIM: gl.constexpr = q_ring.shape[4]
    DV: gl.constexpr = v_ring.shape[4]
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    R: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DV, 16])
    W: gl.constexpr = gl.DotOperandLayout(0, R, 2)
    S: gl.constexpr = gl.SliceLayout(1, L)
    PACKED: gl.constexpr = work[6] is not None
    heads = work[1]
    turns = dealt(tiles)
    at = 0  # how many tiles of keys are weighed
    if TURNS and PART == 1:
        _speak(_NEXT, 0)
    if not SHARED:
        first, queries, _begin, keys, block, batch, head = place_of(0, work, CAUSAL)
        low, high = seen(block, queries, keys, window, PARTS, BN, CAUSAL)
        row = (block * PARTS + PART) * ROWS
        place = row + keys - queries + gl.arange(0, ROWS, layout=S)
        top, total = _start(sinks, head, S)
        mbarrier.wait(q_full.index(0), 0)
        q = q_ring.index(PART).reshape([ROWS, DIM])
        weights, top, total = _first(
            0, high - 1, q, top, total, place, keys, numbers, rings, signs, PART, CAUSAL, TURNS, L, W
        )
        at += 1
    for turn in range(turns):
        first, queries, _begin, keys, block, batch, head = place_of(turn, work, CAUSAL)
        low, high = seen(block, queries, keys, window, PARTS, BN, CAUSAL)
        row = (block * PARTS + PART) * ROWS
        place = row + keys - queries + gl.arange(0, ROWS, layout=S)
        slot = turn % SLOTS
        q = q_ring.index(slot * PARTS + PART).reshape([ROWS, DIM])
        if SHARED:
            top, total = _start(sinks, head, S)
            mbarrier.wait(q_full.index(slot), (turn // SLOTS) & 1)
            weights, top, total = _first(
                at, high - 1, q, top, total, place, keys, numbers, rings, signs, PART, CAUSAL, TURNS, L, W
            )
            at += 1
        if PACKED and high * BN > keys:
            _clear(at - 1, keys - (high - 1) * BN, v_ring, v_full)
        # low..high: tiles that some query sees; from..to: those that all see whole
        whole_low = low
        whole_high = keys // BN
        if CAUSAL:
            whole_high = gl.minimum(whole_high, gl.maximum(row + keys - queries + 1, 0) // BN)
            if window is not None:
                whole_low = gl.maximum(gl.cdiv(row + ROWS + keys - queries - window, BN), low)
        whole_high = gl.maximum(gl.minimum(whole_high, high - 1), low)
        whole_low = gl.minimum(whole_low, whole_high)
        result = gl.zeros([ROWS, DV], gl.float32, layout=R)
        for i in range(high - 1 - whole_high):
            weights, result, top, total, shrink = _step(
                at, high - 2 - i, q, weights, result, top, total, place, keys, numbers, rings, signs,
                PART, True, CAUSAL, TURNS, L, W,
            )  # fmt: skip
            result = result * shrink
            at += 1
        for _i in range(whole_high - whole_low):
            weights, result, top, total, shrink = _step(
                at, 0, q, weights, result, top, total, place, keys, numbers, rings, signs,
                PART, False, CAUSAL, TURNS, L, W,
            )  # fmt: skip
            result = result * shrink
            at += 1
        if window is not None:
            for i in range(whole_low - low):
                weights, result, top, total, shrink = _step(
                    at, whole_low - 1 - i, q, weights, result, top, total, place, keys, numbers, rings, signs,
                    PART, True, CAUSAL, TURNS, L, W,
                )  # fmt: skip
                result = result * shrink
                at += 1
        next_top = top
        next_total = total
        if SHARED:
            result = _add(at - 1, weights, result, v_ring, v_full)
            result, weights = warpgroup_mma_wait(0, [result, weights])
            mbarrier.arrive(v_empty.index((at - 1) % v_ring.shape[0]), count=1)
            mine = q_ring.index(slot * PARTS + PART)
        else:
            mbarrier.arrive(q_empty.index(slot), count=1)
            if turn + 1 < turns:
                _first_query, more, _begin, many, following, _batch, next_head = place_of(turn + 1, work, CAUSAL)
                _low, end = seen(following, more, many, window, PARTS, BN, CAUSAL)
                there = (following * PARTS + PART) * ROWS + many - more + gl.arange(0, ROWS, layout=S)
                next_top, next_total = _start(sinks, next_head, S)
                next_slot = (turn + 1) % SLOTS
                mbarrier.wait(q_full.index(next_slot), ((turn + 1) // SLOTS) & 1)
                next_q = q_ring.index(next_slot * PARTS + PART).reshape([ROWS, DIM])
                weights, result, next_top, next_total, _shrink = _step(
                    at, end - 1, next_q, weights, result, next_top, next_total, there, many, numbers, rings, signs,
                    PART, True, CAUSAL, TURNS, L, W,
                )  # fmt: skip
            else:
                result = _add(at - 1, weights, result, v_ring, v_full)
                result, weights = warpgroup_mma_wait(0, [result, weights])
                mbarrier.arrive(v_empty.index((at - 1) % v_ring.shape[0]), count=1)
            at += 1
            mine = o_mem.index(PART)
        _finish(result, top, total, outputs, mine, first, queries, batch, head, heads, row, PACKED, VALUE, S)
        top = next_top
        total = next_total
        if SHARED:
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index(slot), count=1)
    tma.store_wait(0)
    if TURNS and PART == 0:
        _speak(_TURN, 0)


@gluon.jit
def _signs(many: gl.constexpr, count: gl.constexpr):
    signs = gl.allocate_shared_memory(gl.int64, [many, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(many):
        mbarrier.init(signs.index(i), count=count)
    return signs


@gluon.jit
def attention(
    q, k, v, out, lse, sinks, table, batches, queries, keys, heads, blocks, units, chunk,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, scale, cap, window,
    GROUP: gl.constexpr, HEAD: gl.constexpr, VALUE: gl.constexpr, D: gl.constexpr, DV: gl.constexpr,
    BN: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr, CAUSAL: gl.constexpr, TURNS: gl.constexpr,
    SHARED: gl.constexpr,
):  # fmt: skip
    """Attention [batches, queries, heads, HEAD] to [batches, keys, heads / GROUP, HEAD and VALUE].

    With a table there is one batch of packed sequences. A line of it has a block of a sequence, where its queries
    begin, how many they are, where its keys begin, and how many they are; *blocks* is 1, and *units* lines times heads.

    A tile has BN keys. There is room for STAGES tiles of keys, as many of values, and SLOTS blocks of queries. With
    TURNS the two consumers take turns at the tensor cores. SHARED: results go through the memory of their queries.
    """
    PARTS: gl.constexpr = 2
    dtype: gl.constexpr = q.dtype.element_ty
    A: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, ROWS, 1, D], dtype)
    B: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, BN, 1, DV], dtype)
    key_heads = heads // GROUP
    q_desc = tma.make_tensor_descriptor(
        q, [batches, queries, heads, HEAD], [q_batch, q_token, q_head, 1], [1, ROWS, 1, D], A
    )
    k_desc = tma.make_tensor_descriptor(
        k, [batches, keys, key_heads, HEAD], [k_batch, k_token, k_head, 1], [1, BN, 1, D], A
    )
    v_desc = tma.make_tensor_descriptor(
        v, [batches, keys, key_heads, VALUE], [v_batch, v_token, v_head, 1], [1, BN, 1, DV], B
    )
    o_desc = tma.make_tensor_descriptor(
        out, [batches, queries, heads, VALUE], [queries * heads * VALUE, heads * VALUE, VALUE, 1], [1, ROWS, 1, DV], B
    )
    q_ring = gl.allocate_shared_memory(dtype, [SLOTS * PARTS, 1, ROWS, 1, D], A)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, BN, 1, D], A)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, BN, 1, DV], B)
    o_mem = q_ring if SHARED else gl.allocate_shared_memory(dtype, [PARTS, 1, ROWS, 1, DV], B)
    rings = (q_ring, k_ring, v_ring, o_mem)
    signs = (_signs(SLOTS, 1), _signs(SLOTS, PARTS), _signs(STAGES, 1), _signs(STAGES, PARTS),
             _signs(STAGES, 1), _signs(STAGES, PARTS))  # fmt: skip
    fence_async_shared()
    work = (blocks, heads, units, chunk, queries, keys, table)
    tiles = blocks * units
    outputs = (o_desc, out, lse)
    numbers = (sinks, scale, cap, window)
    gl.warp_specialize(
        [
            (_consume, (outputs, tiles, work, numbers, rings, signs, VALUE, 0, CAUSAL, TURNS, SHARED)),
            (_consume, (outputs, tiles, work, numbers, rings, signs, VALUE, 1, CAUSAL, TURNS, SHARED)),
            (produce, (q_desc, k_desc, v_desc, tiles, work, window, rings, signs, GROUP, CAUSAL)),
        ],
        [4, 1],
        [240, 24],
    )
