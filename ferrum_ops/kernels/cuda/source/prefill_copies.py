"""What the programs of attention on Hopper work on, in what order, and how it is copied to them and back.

A program stays on its multiprocessor and takes tiles, blocks of queries of one head, one after another.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

__all__ = ["ROWS", "clear", "dealt", "finish", "leave", "place_of", "produce", "seen", "seen_by"]

ROWS: gl.constexpr = gl.constexpr(64)  # queries of a consumer
_BYTES: gl.constexpr = gl.constexpr(2)  # of a number
_LN_2: gl.constexpr = gl.constexpr(0.6931471805599453)


@gluon.jit
def dealt(tiles):
    """How many tiles this program has. Rounds of tiles are dealt forwards and backwards in turn: the first are long."""
    programs = gl.num_programs(0)
    pid = gl.program_id(0)
    rounds = tiles // programs
    seat = gl.where(rounds % 2 == 0, pid, programs - 1 - pid)
    return rounds + gl.where(seat < tiles - rounds * programs, 1, 0)


@gluon.jit
def place_of(turn, work, CAUSAL: gl.constexpr):
    """Where the tile of this turn lies: the first query and key of its sequence, their numbers, block, batch and head.

    Units, heads of a batch, come in chunks whose keys the cache holds; of a chunk, blocks that see most come first.
    Blocks of packed sequences come in the order of the table, which says in what line of it a block's sequence is.
    """
    blocks, heads, units, chunk, queries, keys, table = work
    programs = gl.num_programs(0)
    pid = gl.program_id(0)
    tile = turn * programs + gl.where(turn % 2 == 0, pid, programs - 1 - pid)
    zero = gl.to_tensor(0)
    first, begin, batch = zero, zero, zero
    if table is None:
        first_unit = tile // (chunk * blocks) * chunk
        rest = tile - first_unit * blocks
        size = gl.minimum(chunk, units - first_unit)
        block = rest // size
        unit = first_unit + rest - block * size
        if CAUSAL:
            block = blocks - 1 - block
        batch = unit // heads
        head = unit - batch * heads
    else:
        line = tile // heads
        head = tile - line * heads
        at = table + line * 5
        block = gl.load(at)
        first = gl.load(at + 1)
        queries = gl.load(at + 2)
        begin = gl.load(at + 3)
        keys = gl.load(at + 4)
    return first, queries, begin, keys, block, batch, head


@gluon.jit
def seen(block, queries, keys, window, PARTS: gl.constexpr, BN: gl.constexpr, CAUSAL: gl.constexpr):
    """The tiles of keys that some query of the block sees: the first, and the one behind the last; at least one."""
    low = 0
    high = gl.cdiv(keys, BN)
    if CAUSAL:
        start = block * PARTS * ROWS + keys - queries
        end = gl.minimum(start + PARTS * ROWS, keys)
        high = gl.minimum(high, gl.cdiv(gl.maximum(end, 0), BN))
        if window is not None:
            low = gl.maximum(start - window + 1, 0) // BN
    return low, gl.maximum(high, low + 1)


@gluon.jit
def seen_by(row, low, high, queries, keys, BN: gl.constexpr, CAUSAL: gl.constexpr):
    """Behind which tile the queries of a consumer see nothing; those behind the last query see what the block does."""
    own = high
    if CAUSAL:
        own = gl.minimum(high, gl.maximum(gl.cdiv(gl.maximum(row + ROWS + keys - queries, 0), BN), low + 1))
    return own


@gluon.jit
def _copy(desc, batch, row, head, at, ring, full, empty):
    """Tile number *at* of all that go through a ring: when its place is free, the copy begins."""
    stage = at % ring.shape[0]
    size: gl.constexpr = ring.shape[2] * ring.shape[4] * _BYTES
    mbarrier.wait(empty.index(stage), ((at // ring.shape[0]) & 1) ^ 1)
    mbarrier.expect(full.index(stage), size)
    tma.async_copy_global_to_shared(desc, [batch, row, head, 0], full.index(stage), ring.index(stage))


@gluon.jit
def produce(maps, tiles, work, window, rings, signs, GROUP: gl.constexpr, CAUSAL: gl.constexpr):
    """Copies in the order in which they are needed: the values of a tile behind the keys of the next.

    Where there is one place for queries, it is free when the last values are used: these do not wait for the next keys.
    """
    q_desc, k_desc, v_desc = maps
    q_ring, k_ring, v_ring, _ = rings
    q_full, q_empty, k_full, k_empty, v_full, v_empty = signs
    SLOTS: gl.constexpr = q_full.shape[0]
    PARTS: gl.constexpr = q_ring.shape[0] // SLOTS
    BN: gl.constexpr = k_ring.shape[2]
    at = 0
    last_batch = 0
    last_row = 0
    last_head = 0
    for turn in range(dealt(tiles)):
        first, queries, begin, keys, block, batch, head = place_of(turn, work, CAUSAL)
        low, high = seen(block, queries, keys, window, PARTS, BN, CAUSAL)
        slot = turn % SLOTS
        mbarrier.wait(q_empty.index(slot), ((turn // SLOTS) & 1) ^ 1)
        mbarrier.expect(q_full.index(slot), PARTS * ROWS * q_ring.shape[4] * _BYTES)
        for part in gl.static_range(PARTS):
            row = first + (block * PARTS + part) * ROWS
            place = q_ring.index(slot * PARTS + part)
            tma.async_copy_global_to_shared(q_desc, [batch, row, head, 0], q_full.index(slot), place)
        for i in range(high - low):
            row = begin + (high - 1 - i) * BN
            _copy(k_desc, batch, row, head // GROUP, at, k_ring, k_full, k_empty)
            if (at if SLOTS > 1 else i) > 0:
                _copy(v_desc, last_batch, last_row, last_head, at - 1, v_ring, v_full, v_empty)
            at += 1
            last_batch = batch
            last_row = row
            last_head = head // GROUP
        if SLOTS == 1:
            _copy(v_desc, last_batch, last_row, last_head, at - 1, v_ring, v_full, v_empty)
    if SLOTS > 1:
        _copy(v_desc, last_batch, last_row, last_head, at - 1, v_ring, v_full, v_empty)


@gluon.jit
def leave(at, count, full, empty):
    """Leave tiles to the other consumers: from number *at*, so many."""
    for i in range(at, at + count):
        mbarrier.wait(full.index(i % full.shape[0]), (i // full.shape[0]) & 1)
        mbarrier.arrive(empty.index(i % empty.shape[0]), count=1)


@gluon.jit
def clear(at, count, ring, full):
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
def finish(
    result, top, total, outputs, mine, first, queries, batch, head, heads, row,
    PACKED: gl.constexpr, VALUE: gl.constexpr, S: gl.constexpr,
):  # fmt: skip
    """Divide the result by the sum, and store both; *mine* is memory that the consumer's last copy may still read."""
    o_desc, out, lse = outputs
    R: gl.constexpr = result.type.layout
    some = gl.where(total == 0.0, 1.0, total)
    if lse is not None:
        rows = row + gl.arange(0, ROWS, layout=S)
        line = gl.cast(first + rows, gl.int64)
        if not PACKED:
            line += gl.cast(batch, gl.int64) * queries
        sums = gl.where(total == 0.0, float("-inf"), top + gl.log2(some)) * _LN_2
        gl.store(lse + line * heads + head, sums, mask=rows < queries)
    result = (result * gl.convert_layout(1.0 / some, gl.SliceLayout(1, R))[:, None]).to(o_desc.dtype)
    tma.store_wait(0)
    tile = mine.reshape([ROWS, result.shape[1]])
    tile.store(result)
    if PACKED and row + ROWS > queries:  # what lies behind belongs to another sequence
        A: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
        lines = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, A))
        columns = gl.arange(0, result.shape[1], layout=gl.SliceLayout(0, A))
        to = out + (gl.cast(first + lines, gl.int64) * heads + head)[:, None] * VALUE + columns[None, :]
        gl.store(to, tile.load(A), mask=(lines < queries)[:, None] & (columns < VALUE)[None, :])
    else:
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [batch, first + row, head, 0], mine)
