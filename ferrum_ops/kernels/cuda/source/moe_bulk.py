"""Products of rows with the weights of their experts, by warps that copy and warps that multiply.

Copying warps run ahead of the two groups that multiply, by STAGES pieces of K, also from one tile to the next. Each
group has 64 rows of a tile or more, and all its columns; a group without rows multiplies nothing.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

__all__ = ["bulk"]

_AT_ONCE = gl.constexpr(8)  # tiles that are looked up together


@gluon.jit
def _schedule(
    offsets, table, rows, experts, blocks, EXPERTS: gl.constexpr, BM: gl.constexpr, SLOTS: gl.constexpr
):  # fmt: skip
    """Write this program's tiles into its part of the table: expert, first row, end of the rows; and count them.

    A tile after another, expert by expert; rows that belong to nobody are those of an expert behind the last. Offsets
    that are wrong lead to no other rows than there are, and to no more tiles than the table holds.
    """
    FLAT: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [4, 1], [1, 0])
    DOWN: gl.constexpr = gl.SliceLayout(1, WIDE)
    ALONG: gl.constexpr = gl.SliceLayout(0, WIDE)
    e = gl.arange(0, EXPERTS, layout=FLAT)
    first = gl.load(offsets + e, mask=e <= experts, other=0).to(gl.int32)
    last = gl.load(offsets + e + 1, mask=e < experts, other=0).to(gl.int32)
    first = gl.minimum(gl.maximum(first, 0), rows)
    last = gl.where(e == experts, rows, gl.minimum(gl.maximum(last, 0), rows))
    tiles = gl.where(e <= experts, gl.maximum(last - first + (BM - 1), 0) // BM, 0)
    end = gl.associative_scan(tiles, 0, _add)
    total = gl.max(end, 0) * blocks
    before = gl.convert_layout(end - tiles, DOWN)[:, None]
    end = gl.convert_layout(end, DOWN)[:, None]
    expert = gl.convert_layout(e, DOWN)[:, None]
    first = gl.convert_layout(first, DOWN)[:, None]
    last = gl.convert_layout(last, DOWN)[:, None]
    mine = gl.minimum(gl.cdiv(gl.maximum(total - gl.program_id(0), 0), gl.num_programs(0)), SLOTS)
    for start in range(0, mine, _AT_ONCE):
        i = start + gl.arange(0, _AT_ONCE, layout=ALONG)
        tile = ((gl.program_id(0) + i * gl.num_programs(0)) // blocks)[None, :]
        here = (before <= tile) & (tile < end)
        found = gl.sum(gl.where(here, expert, 0), 0)
        begin = gl.sum(gl.where(here, first + (tile - before) * BM, 0), 0)
        stop = gl.sum(gl.where(here, last, 0), 0)
        gl.store(table + i * 4, found, mask=i < mine)
        gl.store(table + i * 4 + 1, begin, mask=i < mine)
        gl.store(table + i * 4 + 2, stop, mask=i < mine)
    return mine


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def _steps(expert, experts, size, BK: gl.constexpr):
    """How many pieces of K a tile has."""
    return gl.where(expert < experts, gl.cdiv(size, BK), 0)


@gluon.jit
def _copy_weights(
    w_desc, w_s, ready, line, columns, k,
    PARTS: gl.constexpr, BN: gl.constexpr,
):  # fmt: skip
    """Copy a piece of the weights of a tile, or of both halves of it."""
    if PARTS == 2:
        tma.async_copy_global_to_shared(w_desc, [line, k], ready, w_s.slice(0, BN // 2, dim=0))
        tma.async_copy_global_to_shared(w_desc, [line + columns, k], ready, w_s.slice(BN // 2, BN // 2, dim=0))
    else:
        tma.async_copy_global_to_shared(w_desc, [line, k], ready, w_s)


@gluon.jit
def _copy(
    x_desc, w_desc, x_s, w_s, full, empty, table, mine, blocks, columns, size, experts,
    PARTS: gl.constexpr, CM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy weights and rows of x for the tiles of this program."""
    at = 0
    for i in range(mine):
        p = gl.program_id(0) + i * gl.num_programs(0)
        expert = gl.load(table + i * 4)
        begin = gl.load(table + i * 4 + 1)
        two = gl.load(table + i * 4 + 2) - begin > CM
        line = expert * (columns * PARTS) + p % blocks * (BN // PARTS)
        for step in range(_steps(expert, experts, size, BK)):
            stage = at % STAGES
            ready = full.index(stage)
            mbarrier.wait(empty.index(stage), ((at // STAGES) & 1) ^ 1)
            if two:
                mbarrier.expect(ready, (BN + 2 * CM) * BK * 2)
            else:
                mbarrier.expect(ready, (BN + CM) * BK * 2)
            _copy_weights(w_desc, w_s.index(stage), ready, line, columns, step * BK, PARTS, BN)
            tma.async_copy_global_to_shared(x_desc, [begin, step * BK], ready, x_s.index(stage * 2))
            tma.async_copy_global_to_shared(x_desc, [begin + CM, step * BK], ready, x_s.index(stage * 2 + 1), two)
            at += 1


@gluon.jit
def _gather(
    x, order, w_desc, x_s, w_s, full, empty, table, mine, blocks, columns, size, x_step, k, experts,
    PARTS: gl.constexpr, CM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
    EVEN: gl.constexpr,
):  # fmt: skip
    """Copy weights and the rows of x that belong to the sorted choices."""
    L: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (BK // 8), BK // 8], [4, 1], [1, 0])
    place = gl.arange(0, CM, layout=gl.SliceLayout(1, L))
    column = gl.arange(0, BK, layout=gl.SliceLayout(0, L))[None, :]
    at = 0
    for i in range(mine):
        p = gl.program_id(0) + i * gl.num_programs(0)
        expert = gl.load(table + i * 4)
        begin = gl.load(table + i * 4 + 1)
        end = gl.load(table + i * 4 + 2)
        line = expert * (columns * PARTS) + p % blocks * (BN // PARTS)
        row = begin + place
        choice = gl.load(order + row, mask=row < end, other=0)
        low = x + (choice // k)[:, None] * x_step + column
        row += CM
        choice = gl.load(order + row, mask=row < end, other=0)
        high = x + (choice // k)[:, None] * x_step + column
        two = end - begin > CM
        for step in range(_steps(expert, experts, size, BK)):
            stage = at % STAGES
            ready = full.index(stage)
            mbarrier.wait(empty.index(stage), ((at // STAGES) & 1) ^ 1)
            mbarrier.expect(ready, BN * BK * 2)
            _copy_weights(w_desc, w_s.index(stage), ready, line, columns, step * BK, PARTS, BN)
            if EVEN:
                async_copy.async_copy_global_to_shared(x_s.index(stage * 2), low + step * BK)
                if two:
                    async_copy.async_copy_global_to_shared(x_s.index(stage * 2 + 1), high + step * BK)
            else:
                inside = column < size - step * BK
                async_copy.async_copy_global_to_shared(x_s.index(stage * 2), low + step * BK, inside)
                if two:
                    async_copy.async_copy_global_to_shared(x_s.index(stage * 2 + 1), high + step * BK, inside)
            async_copy.mbarrier_arrive(ready, increment_count=False)
            at += 1
    async_copy.wait_group(0)


@gluon.jit
def _gate(g, u, limit, alpha, up_offset):
    """``silu(g) * (u + up_offset)``; limit, alpha and up_offset may be absent."""
    if limit is not None:
        g = gl.where(g > limit, limit, g)
        u = gl.where(u > limit, limit, gl.where(u < -limit, -limit, u))
    turned = g
    if alpha is not None:
        turned = g * alpha
    y = gl.where(g < -1000.0, -1000.0, g) / (gl.exp(-turned) + 1.0)
    if up_offset is not None:
        u += up_offset
    return y * u


@gluon.jit
def _put(out, y, begin, end, n0, columns, CM: gl.constexpr, WIDTH: gl.constexpr):
    """Store columns of a tile, by whole rows."""
    ALONG: gl.constexpr = min(32, WIDTH // 8)
    S: gl.constexpr = gl.BlockedLayout([1, 8], [32 // ALONG, ALONG], [4, 1], [1, 0])
    y = gl.convert_layout(y, S)
    row = begin + gl.arange(0, CM, layout=gl.SliceLayout(1, S))
    n = n0 + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, S))
    inside = (row < end)[:, None] & (n < columns)[None, :]
    gl.store(out + row.to(gl.int64)[:, None] * columns + n[None, :], y, mask=inside)


@gluon.jit
def _multiply(
    bias, out, x_s, w_s, full, empty, table, mine, blocks, columns, size, experts, limit, alpha, up_offset,
    PART: gl.constexpr, GATHER: gl.constexpr, PARTS: gl.constexpr, CM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Multiply the rows of one group, and store them."""
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    HALF: gl.constexpr = BN // 2
    dtype: gl.constexpr = out.dtype.element_ty
    at = 0
    for i in range(mine):
        p = gl.program_id(0) + i * gl.num_programs(0)
        expert = gl.load(table + i * 4)
        begin = gl.load(table + i * 4 + 1) + PART * CM
        end = gl.load(table + i * 4 + 2)
        steps = _steps(expert, experts, size, BK)
        n0 = p % blocks * (BN // PARTS)
        acc = gl.zeros([CM, BN], gl.float32, layout=L)
        if begin < end:
            for step in range(steps):
                stage = at % STAGES
                mbarrier.wait(full.index(stage), (at // STAGES) & 1)
                if GATHER:
                    fence_async_shared()
                acc = warpgroup_mma(
                    x_s.index(stage * 2 + PART), w_s.index(stage).permute([1, 0]), acc, is_async=True
                )  # fmt: skip
                acc = warpgroup_mma_wait(1, [acc])
                if step > 0:
                    mbarrier.arrive(empty.index((at - 1) % STAGES), count=1)
                at += 1
            acc = warpgroup_mma_wait(0, [acc])
            if steps > 0:
                mbarrier.arrive(empty.index((at - 1) % STAGES), count=1)
            low, high = acc.reshape([CM, 2, HALF]).permute([0, 2, 1]).split()
            M: gl.constexpr = low.type.layout
            if bias is not None:
                n = n0 + gl.arange(0, HALF, layout=gl.SliceLayout(0, M))
                more = bias + expert.to(gl.int64) * (columns * PARTS) + n
                known = (n < columns) & (expert < experts)
                low += gl.load(more, mask=known, other=0.0).to(gl.float32)[None, :]
                if PARTS == 2:
                    high += gl.load(more + columns, mask=known, other=0.0).to(gl.float32)[None, :]
                else:
                    known = (n + HALF < columns) & (expert < experts)
                    high += gl.load(more + HALF, mask=known, other=0.0).to(gl.float32)[None, :]
            if PARTS == 2:
                low = _gate(low, high, limit, alpha, up_offset)
                _put(out, low.to(dtype), begin, end, n0, columns, CM, HALF)
            else:
                _put(out, low.to(dtype), begin, end, n0, columns, CM, HALF)
                _put(out, high.to(dtype), begin, end, n0 + HALF, columns, CM, HALF)
        else:
            for _ in range(steps):
                stage = at % STAGES
                mbarrier.wait(full.index(stage), (at // STAGES) & 1)
                mbarrier.arrive(empty.index(stage), count=1)
                at += 1


@gluon.jit
def bulk(
    x, w, bias, order, offsets, table, out, rows, x_rows, columns, size, x_step, w_step, k, experts, limit, alpha,
    up_offset,
    GATE: gl.constexpr, EXPERTS: gl.constexpr, SLOTS: gl.constexpr, CM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, EVEN: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Rows of x, or those that *order* names, with their experts' weights [experts, columns, size].

    A tile has 2 * CM rows. With GATE there are two halves of so many columns, the gate's first, and the result is
    theirs. *table* has room for SLOTS tiles of each program.
    """
    dtype: gl.constexpr = x.dtype.element_ty
    PARTS: gl.constexpr = 2 if GATE else 1
    GATHER: gl.constexpr = order is not None
    blocks = gl.cdiv(columns, BN // PARTS)
    table += gl.program_id(0) * (SLOTS * 4)
    mine = _schedule(offsets, table, rows, experts, blocks, EXPERTS, 2 * CM, SLOTS)
    X: gl.constexpr = gl.NVMMASharedLayout.get_default_for([CM, BK], dtype)
    W: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BN, BK], dtype)
    w_desc = tma.make_tensor_descriptor(w, [experts * columns * PARTS, size], [w_step, 1], [BN // PARTS, BK], W)
    x_s = gl.allocate_shared_memory(dtype, [STAGES * 2, CM, BK], X)
    w_s = gl.allocate_shared_memory(dtype, [STAGES, BN, BK], W)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=129 if GATHER else 1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    gl.thread_barrier()
    # fmt: off
    if GATHER:
        gl.warp_specialize(
            [
                (_multiply, (bias, out, x_s, w_s, full, empty, table, mine, blocks, columns, size, experts, limit,
                             alpha, up_offset, 0, True, PARTS, CM, BN, BK, STAGES)),
                (_multiply, (bias, out, x_s, w_s, full, empty, table, mine, blocks, columns, size, experts, limit,
                             alpha, up_offset, 1, True, PARTS, CM, BN, BK, STAGES)),
                (_gather, (x, order, w_desc, x_s, w_s, full, empty, table, mine, blocks, columns, size, x_step, k,
                           experts, PARTS, CM, BN, BK, STAGES, EVEN)),
            ],
            [4, 4],
            [REGISTERS, 96],
        )
    else:
        x_desc = tma.make_tensor_descriptor(x, [x_rows, size], [x_step, 1], [CM, BK], X)
        gl.warp_specialize(
            [
                (_multiply, (bias, out, x_s, w_s, full, empty, table, mine, blocks, columns, size, experts, limit,
                             alpha, up_offset, 0, False, PARTS, CM, BN, BK, STAGES)),
                (_multiply, (bias, out, x_s, w_s, full, empty, table, mine, blocks, columns, size, experts, limit,
                             alpha, up_offset, 1, False, PARTS, CM, BN, BK, STAGES)),
                (_copy, (x_desc, w_desc, x_s, w_s, full, empty, table, mine, blocks, columns, size, experts,
                         PARTS, CM, BN, BK, STAGES)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    # fmt: on
