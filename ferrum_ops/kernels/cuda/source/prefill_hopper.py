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

from ferrum_ops.kernels.cuda.source.prefill_copies import (
    ROWS,
    clear,
    dealt,
    finish,
    leave,
    place_of,
    produce,
    seen,
    seen_by,
)

__all__ = ["attention"]

_LOG2_E: gl.constexpr = gl.constexpr(1.4426950408889634)
_TURN: gl.constexpr = gl.constexpr("bar.sync $1, 256; mov.b32 $0, $1;")
_NEXT: gl.constexpr = gl.constexpr("bar.arrive $1, 256; mov.b32 $0, $1;")


@gluon.jit
def _speak(what: gl.constexpr, part):
    """Wait for this consumer's turn at the tensor cores, or give the turn to that consumer."""
    name = gl.full([128], 8, gl.int32, layout=gl.BlockedLayout([1], [32], [4], [0])) + part
    gl.inline_asm_elementwise(what, "=r,r,~{memory}", [name], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _ask(at, q, ring, full, HEAD: gl.constexpr, L: gl.constexpr):
    """Begin the scores for the keys of tile number *at*, over the first HEAD columns at least: others are 0."""
    BN: gl.constexpr = ring.shape[2]
    DIM: gl.constexpr = ring.shape[4]
    stage = at % ring.shape[0]
    mbarrier.wait(full.index(stage), (at // ring.shape[0]) & 1)
    keys = ring.index(stage).reshape([BN, DIM])
    zeros = gl.zeros([ROWS, BN], gl.float32, layout=L)
    HALF: gl.constexpr = DIM // 2
    QUARTER: gl.constexpr = DIM // 4
    if HEAD <= HALF + QUARTER and DIM >= 128:
        scores = warpgroup_mma(
            q.slice(0, HALF, 1), keys.slice(0, HALF, 1).permute([1, 0]), zeros, use_acc=False, is_async=True
        )
        rest = keys.slice(HALF, QUARTER, 1).permute([1, 0])
        scores = warpgroup_mma(q.slice(HALF, QUARTER, 1), rest, scores, is_async=True)
    else:
        scores = warpgroup_mma(q, keys.permute([1, 0]), zeros, use_acc=False, is_async=True)
    return scores


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
def _begin(
    at, last, q, weights, result, rings, signs, PART: gl.constexpr, HEAD: gl.constexpr, TURNS: gl.constexpr,
    L: gl.constexpr,
):  # fmt: skip
    """Begin the scores of tile number *at*, and the products of weights with the values of tile number *last*."""
    q_ring, k_ring, v_ring, _ = rings
    q_full, _, k_full, _, v_full, _ = signs
    PARTS: gl.constexpr = q_ring.shape[0] // q_full.shape[0]
    if TURNS:
        _speak(_TURN, PART)
    scores = _ask(at, q, k_ring, k_full, HEAD, L)
    result = _add(last, weights, result, v_ring, v_full)
    if TURNS:
        _speak(_NEXT, (PART + 1) % PARTS)
    return scores, result


@gluon.jit
def _end(
    at, last, tile, scores, weights, result, top, total, place, keys, numbers, rings, signs,
    MASKED: gl.constexpr, CAUSAL: gl.constexpr, L: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """The scores of tile number *at* become weights, while the result of those of number *last* is on its way."""
    _, k_ring, v_ring, _ = rings
    _, _, _, k_empty, _, v_empty = signs
    scores = warpgroup_mma_wait(1, [scores])
    mbarrier.arrive(k_empty.index(at % k_ring.shape[0]), count=1)
    fresh, top, total, shrink = _weigh(scores, tile, place, top, total, keys, numbers, MASKED, CAUSAL, L)
    result, weights = warpgroup_mma_wait(0, [result, weights])
    then = gl.convert_layout(fresh.to(weights.dtype), W)
    mbarrier.arrive(v_empty.index(last % v_ring.shape[0]), count=1)
    return then, result, top, total, gl.convert_layout(shrink, gl.SliceLayout(1, W.parent))[:, None]


@gluon.jit
def _step(
    at, tile, q, weights, result, top, total, place, keys, numbers, rings, signs,
    PART: gl.constexpr, MASKED: gl.constexpr, HEAD: gl.constexpr, CAUSAL: gl.constexpr, TURNS: gl.constexpr,
    L: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Tile number *at* of a block that has gone before."""
    scores, result = _begin(at, at - 1, q, weights, result, rings, signs, PART, HEAD, TURNS, L)
    weights, result, top, total, shrink = _end(
        at, at - 1, tile, scores, weights, result, top, total, place, keys, numbers, rings, signs, MASKED, CAUSAL, L, W
    )
    return weights, result * shrink, top, total


@gluon.jit
def _first(
    at, tile, q, top, total, place, keys, numbers, rings, signs,
    PART: gl.constexpr, HEAD: gl.constexpr, CAUSAL: gl.constexpr, TURNS: gl.constexpr, L: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    """The scores of tile number *at* become weights, with nothing to do beside."""
    q_ring, k_ring, _, _ = rings
    q_full, _, k_full, k_empty, _, _ = signs
    PARTS: gl.constexpr = q_ring.shape[0] // q_full.shape[0]
    if TURNS:
        _speak(_TURN, PART)
    scores = _ask(at, q, k_ring, k_full, HEAD, L)
    if TURNS:
        _speak(_NEXT, (PART + 1) % PARTS)
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
        top = gl.zeros([ROWS], gl.float32, layout=S) + gl.cast(gl.load(sinks + head), gl.float32) * _LOG2_E
        total = gl.full([ROWS], 1.0, gl.float32, layout=S)
    return top, total


@gluon.jit
def _consume(
    task, PART: gl.constexpr, HEAD: gl.constexpr, VALUE: gl.constexpr, CAUSAL: gl.constexpr, TURNS: gl.constexpr,
    SHARED: gl.constexpr,
):  # fmt: skip
    """Blocks of queries, one after another: the last product of a block goes on while the next block begins.

    Not with SHARED, where the next queries wait until the result has left their memory.
    """
    outputs, tiles, work, numbers, rings, signs = task
    sinks, _, _, window = numbers
    q_ring, k_ring, v_ring, o_mem = rings
    q_full, q_empty, k_full, k_empty, v_full, v_empty = signs
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
    if TURNS and PART == PARTS - 1:
        _speak(_NEXT, 0)
    here = place_of(0, work, CAUSAL)
    after = place_of(gl.minimum(1, turns - 1), work, CAUSAL)
    if not SHARED:
        first, queries, _from, keys, block, batch, head = here
        low, high = seen(block, queries, keys, window, PARTS, BN, CAUSAL)
        row = (block * PARTS + PART) * ROWS
        own = high if TURNS else seen_by(row, low, high, queries, keys, BN, CAUSAL)
        place = row + keys - queries + gl.arange(0, ROWS, layout=S)
        top, total = _start(sinks, head, S)
        mbarrier.wait(q_full.index(0), 0)
        q = q_ring.index(PART).reshape([ROWS, DIM])
        leave(0, high - own, k_full, k_empty)
        at = high - own
        weights, top, total = _first(
            at, own - 1, q, top, total, place, keys, numbers, rings, signs, PART, HEAD, CAUSAL, TURNS, L, W
        )
        leave(0, high - own, v_full, v_empty)
        at += 1
    for turn in range(turns):
        first, queries, _from, keys, block, batch, head = here
        low, high = seen(block, queries, keys, window, PARTS, BN, CAUSAL)
        part = PART if TURNS else (PART + turn) % PARTS
        row = (block * PARTS + part) * ROWS
        own = high if TURNS else seen_by(row, low, high, queries, keys, BN, CAUSAL)
        place = row + keys - queries + gl.arange(0, ROWS, layout=S)
        slot = turn % SLOTS
        q = q_ring.index(slot * PARTS + part).reshape([ROWS, DIM])
        if SHARED:
            top, total = _start(sinks, head, S)
            mbarrier.wait(q_full.index(slot), (turn // SLOTS) & 1)
            leave(at, high - own, k_full, k_empty)
            leave(at, high - own, v_full, v_empty)
            at += high - own
            weights, top, total = _first(
                at, own - 1, q, top, total, place, keys, numbers, rings, signs, PART, HEAD, CAUSAL, TURNS, L, W
            )
            at += 1
        if PACKED and own * BN > keys:
            clear(at - 1, keys - (own - 1) * BN, v_ring, v_full)
        if not TURNS:  # whose queries are none leaves the rest of the tiles alone
            idle = gl.where(row < queries, 0, own - 1 - low)
            for i in range(at, at + idle):
                leave(i, 1, k_full, k_empty)
                leave(i - 1, 1, v_full, v_empty)
            at += idle
            own -= idle
        # low..own: tiles that some query sees; whole_low..whole_high: those that all see whole
        whole_low = low
        whole_high = keys // BN
        if CAUSAL:
            whole_high = gl.minimum(whole_high, gl.maximum(row + keys - queries + 1, 0) // BN)
            if window is not None:
                whole_low = gl.maximum(gl.cdiv(row + ROWS + keys - queries - window, BN), low)
        whole_high = gl.maximum(gl.minimum(whole_high, own - 1), low)
        whole_low = gl.minimum(whole_low, whole_high)
        result = gl.zeros([ROWS, DV], gl.float32, layout=R)
        for i in range(own - 1 - whole_high):
            weights, result, top, total = _step(
                at, own - 2 - i, q, weights, result, top, total, place, keys, numbers, rings, signs,
                PART, True, HEAD, CAUSAL, TURNS, L, W,
            )  # fmt: skip
            at += 1
        for _i in range(whole_high - whole_low):
            weights, result, top, total = _step(
                at, 0, q, weights, result, top, total, place, keys, numbers, rings, signs,
                PART, False, HEAD, CAUSAL, TURNS, L, W,
            )  # fmt: skip
            at += 1
        if window is not None:
            for i in range(whole_low - low):
                weights, result, top, total = _step(
                    at, whole_low - 1 - i, q, weights, result, top, total, place, keys, numbers, rings, signs,
                    PART, True, HEAD, CAUSAL, TURNS, L, W,
                )  # fmt: skip
                at += 1
        next_top = top
        next_total = total
        if SHARED:
            result = _add(at - 1, weights, result, v_ring, v_full)
            then = place_of(gl.minimum(turn + 2, turns - 1), work, CAUSAL)
            result, weights = warpgroup_mma_wait(0, [result, weights])
            mbarrier.arrive(v_empty.index((at - 1) % v_ring.shape[0]), count=1)
            mine = q_ring.index(slot * PARTS + part)
        else:
            mbarrier.arrive(q_empty.index(slot), count=1)
            then = after
            if turn + 1 < turns:
                _first_query, more, _from, many, following, _batch, next_head = after
                bottom, end = seen(following, more, many, window, PARTS, BN, CAUSAL)
                next_part = PART if TURNS else (PART + turn + 1) % PARTS
                next_row = (following * PARTS + next_part) * ROWS
                next_own = end if TURNS else seen_by(next_row, bottom, end, more, many, BN, CAUSAL)
                there = next_row + many - more + gl.arange(0, ROWS, layout=S)
                next_top, next_total = _start(sinks, next_head, S)
                next_slot = (turn + 1) % SLOTS
                mbarrier.wait(q_full.index(next_slot), ((turn + 1) // SLOTS) & 1)
                next_q = q_ring.index(next_slot * PARTS + next_part).reshape([ROWS, DIM])
                to = at + end - next_own
                leave(at, end - next_own, k_full, k_empty)
                scores, result = _begin(to, at - 1, next_q, weights, result, rings, signs, PART, HEAD, TURNS, L)
                then = place_of(gl.minimum(turn + 2, turns - 1), work, CAUSAL)
                weights, result, next_top, next_total, _shrink = _end(
                    to, at - 1, next_own - 1, scores, weights, result, next_top, next_total, there, many, numbers,
                    rings, signs, True, CAUSAL, L, W,
                )  # fmt: skip
                leave(at, end - next_own, v_full, v_empty)
                at = to
            else:
                result = _add(at - 1, weights, result, v_ring, v_full)
                result, weights = warpgroup_mma_wait(0, [result, weights])
                mbarrier.arrive(v_empty.index((at - 1) % v_ring.shape[0]), count=1)
            at += 1
            mine = o_mem.index(PART)
        finish(result, top, total, outputs, mine, first, queries, batch, head, heads, row, PACKED, VALUE, S)
        top = next_top
        total = next_total
        here = after
        after = then
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
    q_desc, k_desc, v_desc, o_desc, out, lse, sinks, table, queries, keys, heads, blocks, units, chunk,
    scale, cap, window,
    GROUP: gl.constexpr, HEAD: gl.constexpr, VALUE: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    SLOTS: gl.constexpr, CAUSAL: gl.constexpr, TURNS: gl.constexpr, SHARED: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Attention [batches, queries, heads, HEAD] to [batches, keys, heads / GROUP, HEAD and VALUE].

    With a table there is one batch of packed sequences. A line of it has a block of a sequence, where its queries
    begin, how many they are, where its keys begin, and how many they are; *blocks* is 1, and *units* lines times heads.

    There are PARTS consumers. A tile has BN keys. There is room for STAGES tiles of keys, as many of values, and SLOTS
    blocks of queries. With TURNS the consumers take turns at the tensor cores. SHARED: results go through the memory of
    their queries.
    """
    dtype: gl.constexpr = q_desc.dtype
    D: gl.constexpr = q_desc.block_shape[3]
    DV: gl.constexpr = v_desc.block_shape[3]
    q_ring = gl.allocate_shared_memory(dtype, [SLOTS * PARTS, 1, ROWS, 1, D], q_desc.layout)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, BN, 1, D], k_desc.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, BN, 1, DV], v_desc.layout)
    o_mem = q_ring if SHARED else gl.allocate_shared_memory(dtype, [PARTS, 1, ROWS, 1, DV], o_desc.layout)
    rings = (q_ring, k_ring, v_ring, o_mem)
    signs = (_signs(SLOTS, 1), _signs(SLOTS, PARTS), _signs(STAGES, 1), _signs(STAGES, PARTS),
             _signs(STAGES, 1), _signs(STAGES, PARTS))  # fmt: skip
    fence_async_shared()
    work = (blocks, heads, units, chunk, queries, keys, table)
    tiles = blocks * units
    task = ((o_desc, out, lse), tiles, work, (sinks, scale, cap, window), rings, signs)
    maps = (q_desc, k_desc, v_desc)
    if PARTS == 2:
        gl.warp_specialize(
            [
                (_consume, (task, 0, HEAD, VALUE, CAUSAL, TURNS, SHARED)),
                (_consume, (task, 1, HEAD, VALUE, CAUSAL, TURNS, SHARED)),
                (produce, (maps, tiles, work, window, rings, signs, GROUP, CAUSAL)),
            ],
            [4, 1],
            [240, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (task, 0, HEAD, VALUE, CAUSAL, TURNS, SHARED)),
                (_consume, (task, 1, HEAD, VALUE, CAUSAL, TURNS, SHARED)),
                (_consume, (task, 2, HEAD, VALUE, CAUSAL, TURNS, SHARED)),
                (produce, (maps, tiles, work, window, rings, signs, GROUP, CAUSAL)),
            ],
            [4, 4, 1],
            [160, 160, 24],
        )
