"""Attention on Hopper: one group of warps copies tiles of keys and values, two others multiply them.

A program stays on its multiprocessor and takes blocks of queries one after another. Its consumers, groups of four
warps, have 64 queries each. While the weights of a tile are multiplied with its values, the scores of the next tile
are computed.

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

__all__ = ["attention"]

_LOG2_E: gl.constexpr = gl.constexpr(1.4426950408889634)
_PARTS: gl.constexpr = gl.constexpr(2)  # consumers
_ROWS: gl.constexpr = gl.constexpr(64)  # queries of one


# What a program works on.


@gluon.jit
def _dealt(tiles):
    """How many tiles this program has. Rounds of tiles are dealt forwards and backwards in turn: the first are long."""
    programs = gl.num_programs(0)
    pid = gl.program_id(0)
    rounds = tiles // programs
    seat = gl.where(rounds % 2 == 0, pid, programs - 1 - pid)
    return rounds + gl.where(seat < tiles - rounds * programs, 1, 0)


@gluon.jit
def _place(turn, blocks, heads, units, chunk, CAUSAL: gl.constexpr):
    """Block, batch and head of the tile of this turn.

    Units, heads of a batch, come in chunks whose keys the cache holds; of a chunk, blocks that see most come first.
    """
    programs = gl.num_programs(0)
    pid = gl.program_id(0)
    tile = turn * programs + gl.where(turn % 2 == 0, pid, programs - 1 - pid)
    first = tile // (chunk * blocks) * chunk
    rest = tile - first * blocks
    size = gl.minimum(chunk, units - first)
    block = rest // size
    unit = first + rest - block * size
    if CAUSAL:
        block = blocks - 1 - block
    return block, unit // heads, unit % heads


@gluon.jit
def _seen(block, queries, keys, BN: gl.constexpr, CAUSAL: gl.constexpr):
    """How many tiles of keys some query of the block sees."""
    count = gl.cdiv(keys, BN)
    if CAUSAL:
        last = gl.minimum(block * _PARTS * _ROWS + _PARTS * _ROWS, queries) + keys - queries
        count = gl.minimum(count, gl.cdiv(gl.maximum(last, 0), BN))
    return count


# Copies.


@gluon.jit
def _copy(desc, batch, row, head, at, ring, full, empty, STAGES: gl.constexpr, SIZE: gl.constexpr):
    """Tile number *at* of all that go through a ring: when its place is free, the copy of SIZE bytes begins."""
    stage = at % STAGES
    mbarrier.wait(empty.index(stage), ((at // STAGES) & 1) ^ 1)
    mbarrier.expect(full.index(stage), SIZE)
    tma.async_copy_global_to_shared(desc, [batch, row, head, 0], full.index(stage), ring.index(stage))


@gluon.jit
def _produce(
    q_desc, k_desc, v_desc, q_ring, k_ring, v_ring, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    tiles, blocks, heads, units, chunk, queries, keys,
    GROUP: gl.constexpr, D: gl.constexpr, DV: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    SLOTS: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Copies in the order in which they are needed: the values of a tile behind the keys of the next."""
    done = 0
    for turn in range(_dealt(tiles)):
        block, batch, head = _place(turn, blocks, heads, units, chunk, CAUSAL)
        count = _seen(block, queries, keys, BN, CAUSAL)
        slot = turn % SLOTS
        mbarrier.wait(q_empty.index(slot), ((turn // SLOTS) & 1) ^ 1)
        mbarrier.expect(q_full.index(slot), _PARTS * _ROWS * D * 2)
        for part in gl.static_range(_PARTS):
            row = (block * _PARTS + part) * _ROWS
            place = q_ring.index(slot * _PARTS + part)
            tma.async_copy_global_to_shared(q_desc, [batch, row, head, 0], q_full.index(slot), place)
        shared = head // GROUP
        for i in range(count):
            row = (count - 1 - i) * BN
            _copy(k_desc, batch, row, shared, done + i, k_ring, k_full, k_empty, STAGES, BN * D * 2)
            if i > 0:
                _copy(v_desc, batch, row + BN, shared, done + i - 1, v_ring, v_full, v_empty, STAGES, BN * DV * 2)
        done += count
        if count > 0:
            _copy(v_desc, batch, 0, shared, done - 1, v_ring, v_full, v_empty, STAGES, BN * DV * 2)


# Products.


@gluon.jit
def _weigh(
    scores, tile, place, top, total, factor, keys, MASKED: gl.constexpr, CAUSAL: gl.constexpr, BN: gl.constexpr,
    L: gl.constexpr,
):  # fmt: skip
    """The exponentials of the scores for a tile of keys, the greatest score and the sum so far, and how it shrinks."""
    if MASKED:
        j = tile * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, L))
        sees = (j < keys)[None, :]
        if CAUSAL:
            sees = sees & (j[None, :] <= place[:, None])
        scores = gl.where(sees, scores, float("-inf"))
    higher = gl.maximum(top, gl.max(scores, 1) * factor)
    base = gl.where(higher == float("-inf"), 0.0, higher)  # with all hidden, -inf + inf would be a NaN
    weights = gl.exp2(scores * factor - base[:, None])
    shrink = gl.exp2(top - base)
    return weights, higher, total * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _step(
    tile, at, result, weights, top, total, place, q, k_ring, v_ring, k_full, k_empty, v_full, v_empty, factor, keys,
    MASKED: gl.constexpr, CAUSAL: gl.constexpr, D: gl.constexpr, DV: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, L: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """The scores of tile number *at* become weights; those of the one before are multiplied with their values."""
    stage = at % STAGES
    before = (at - 1) % STAGES
    mbarrier.wait(k_full.index(stage), (at // STAGES) & 1)
    zeros = gl.zeros([_ROWS, BN], gl.float32, layout=L)
    columns = k_ring.index(stage).reshape([BN, D]).permute([1, 0])
    scores = warpgroup_mma(q, columns, zeros, use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(before), ((at - 1) // STAGES) & 1)
    result = warpgroup_mma(weights, v_ring.index(before).reshape([BN, DV]), result, is_async=True)
    scores = warpgroup_mma_wait(1, [scores])
    mbarrier.arrive(k_empty.index(stage), count=1)
    fresh, top, total, shrink = _weigh(scores, tile, place, top, total, factor, keys, MASKED, CAUSAL, BN, L)
    result, weights = warpgroup_mma_wait(0, [result, weights])
    mbarrier.arrive(v_empty.index(before), count=1)
    result = result * gl.convert_layout(shrink, gl.SliceLayout(1, W.parent))[:, None]
    weights = gl.convert_layout(fresh.to(weights.dtype), W)
    return result, weights, top, total


@gluon.jit
def _consume(
    o_desc, q_ring, k_ring, v_ring, o_mem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    tiles, blocks, heads, units, chunk, queries, keys, factor,
    PART: gl.constexpr, D: gl.constexpr, DV: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    SLOTS: gl.constexpr, CAUSAL: gl.constexpr, SHARED: gl.constexpr,
):  # fmt: skip
    """This consumer's queries of every block of the program, each against the keys from the last to the first."""
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    R: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DV, 16])
    W: gl.constexpr = gl.DotOperandLayout(0, R, 2)
    S: gl.constexpr = gl.SliceLayout(1, L)
    dtype: gl.constexpr = q_ring.dtype
    done = 0
    for turn in range(_dealt(tiles)):
        block, batch, head = _place(turn, blocks, heads, units, chunk, CAUSAL)
        count = _seen(block, queries, keys, BN, CAUSAL)
        row = (block * _PARTS + PART) * _ROWS
        place = row + gl.arange(0, _ROWS, layout=S) + keys - queries
        top = gl.full([_ROWS], float("-inf"), gl.float32, layout=S)
        total = gl.zeros([_ROWS], gl.float32, layout=S)
        result = gl.zeros([_ROWS, DV], gl.float32, layout=R)
        slot = turn % SLOTS
        q = q_ring.index(slot * _PARTS + PART).reshape([_ROWS, D])
        mine = q_ring.index(slot * _PARTS + PART) if SHARED else o_mem.index(PART)
        mbarrier.wait(q_full.index(slot), (turn // SLOTS) & 1)
        if count > 0:
            stage = done % STAGES
            mbarrier.wait(k_full.index(stage), (done // STAGES) & 1)
            zeros = gl.zeros([_ROWS, BN], gl.float32, layout=L)
            columns = k_ring.index(stage).reshape([BN, D]).permute([1, 0])
            scores = warpgroup_mma(q, columns, zeros, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, [scores])
            mbarrier.arrive(k_empty.index(stage), count=1)
            fresh, top, total, _shrink = _weigh(
                scores, count - 1, place, top, total, factor, keys, True, CAUSAL, BN, L
            )  # fmt: skip
            weights = gl.convert_layout(fresh.to(dtype), W)
            whole = keys // BN  # so many tiles are seen whole by all queries of the consumer
            if CAUSAL:
                whole = gl.maximum(gl.minimum(whole, (row + keys - queries + 1) // BN), 0)
            whole = gl.minimum(whole, count - 1)
            for i in range(count - 1 - whole):
                result, weights, top, total = _step(
                    count - 2 - i, done + 1 + i, result, weights, top, total, place, q, k_ring, v_ring,
                    k_full, k_empty, v_full, v_empty, factor, keys, True, CAUSAL, D, DV, BN, STAGES, L, W,
                )  # fmt: skip
            for i in range(whole):
                result, weights, top, total = _step(
                    0, done + count - whole + i, result, weights, top, total, place, q, k_ring, v_ring,
                    k_full, k_empty, v_full, v_empty, factor, keys, False, CAUSAL, D, DV, BN, STAGES, L, W,
                )  # fmt: skip
            done += count
            if not SHARED:
                mbarrier.arrive(q_empty.index(slot), count=1)
            stage = (done - 1) % STAGES
            mbarrier.wait(v_full.index(stage), ((done - 1) // STAGES) & 1)
            result = warpgroup_mma(weights, v_ring.index(stage).reshape([BN, DV]), result, is_async=True)
            result, weights = warpgroup_mma_wait(0, [result, weights])
            mbarrier.arrive(v_empty.index(stage), count=1)
        elif not SHARED:
            mbarrier.arrive(q_empty.index(slot), count=1)
        over = 1.0 / gl.where(total == 0.0, 1.0, total)
        result = result * gl.convert_layout(over, gl.SliceLayout(1, R))[:, None]
        tma.store_wait(0)
        mine.reshape([_ROWS, DV]).store(result.to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [batch, row, head, 0], mine)
        if SHARED:
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index(slot), count=1)
    tma.store_wait(0)


@gluon.jit
def attention(
    q, k, v, out, batches, queries, keys, heads, blocks, tiles, units, chunk,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, scale,
    GROUP: gl.constexpr, D: gl.constexpr, DV: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    SLOTS: gl.constexpr, CAUSAL: gl.constexpr, SHARED: gl.constexpr,
):  # fmt: skip
    """Attention [batches, queries, heads, D] to [batches, keys, heads / GROUP, D and DV], in 16 bits.

    A tile has BN keys. There is room for STAGES tiles of keys, as many of values, and SLOTS blocks of queries. SHARED:
    results go through the memory of their queries.
    """
    dtype: gl.constexpr = q.dtype.element_ty
    QL: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, _ROWS, 1, D], dtype)
    KL: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, BN, 1, D], dtype)
    VL: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, BN, 1, DV], dtype)
    OL: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, _ROWS, 1, DV], dtype)
    key_heads = heads // GROUP
    q_desc = tma.make_tensor_descriptor(
        q, [batches, queries, heads, D], [q_batch, q_token, q_head, 1], [1, _ROWS, 1, D], QL
    )
    k_desc = tma.make_tensor_descriptor(
        k, [batches, keys, key_heads, D], [k_batch, k_token, k_head, 1], [1, BN, 1, D], KL
    )
    v_desc = tma.make_tensor_descriptor(
        v, [batches, keys, key_heads, DV], [v_batch, v_token, v_head, 1], [1, BN, 1, DV], VL
    )
    o_desc = tma.make_tensor_descriptor(
        out, [batches, queries, heads, DV], [queries * heads * DV, heads * DV, DV, 1], [1, _ROWS, 1, DV], OL
    )
    q_ring = gl.allocate_shared_memory(dtype, [SLOTS * _PARTS, 1, _ROWS, 1, D], QL)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, BN, 1, D], KL)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, BN, 1, DV], VL)
    o_mem = q_ring if SHARED else gl.allocate_shared_memory(dtype, [_PARTS, 1, _ROWS, 1, DV], OL)
    q_full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=_PARTS)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=_PARTS)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=_PARTS)
    fence_async_shared()
    factor = scale * _LOG2_E
    gl.warp_specialize(
        [
            (_consume, (
                o_desc, q_ring, k_ring, v_ring, o_mem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                tiles, blocks, heads, units, chunk, queries, keys, factor,
                0, D, DV, BN, STAGES, SLOTS, CAUSAL, SHARED,
            )),
            (_consume, (
                o_desc, q_ring, k_ring, v_ring, o_mem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                tiles, blocks, heads, units, chunk, queries, keys, factor,
                1, D, DV, BN, STAGES, SLOTS, CAUSAL, SHARED,
            )),
            (_produce, (
                q_desc, k_desc, v_desc, q_ring, k_ring, v_ring, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                tiles, blocks, heads, units, chunk, queries, keys,
                GROUP, D, DV, BN, STAGES, SLOTS, CAUSAL,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
