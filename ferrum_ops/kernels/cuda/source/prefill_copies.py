"""What the programs of attention on Hopper work on, in what order, and the warps that copy it.

A program stays on its multiprocessor and takes tiles, blocks of queries of one head, one after another.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

__all__ = ["ROWS", "dealt", "place_of", "produce", "seen"]

ROWS: gl.constexpr = gl.constexpr(64)  # queries of a consumer


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
def _copy(desc, batch, row, head, at, ring, full, empty):
    """Tile number *at* of all that go through a ring: when its place is free, the copy begins."""
    stage = at % ring.shape[0]
    size: gl.constexpr = ring.shape[2] * ring.shape[4] * ring.dtype.primitive_bitwidth // 8
    mbarrier.wait(empty.index(stage), ((at // ring.shape[0]) & 1) ^ 1)
    mbarrier.expect(full.index(stage), size)
    tma.async_copy_global_to_shared(desc, [batch, row, head, 0], full.index(stage), ring.index(stage))


@gluon.jit
def produce(q_desc, k_desc, v_desc, tiles, work, window, rings, signs, GROUP: gl.constexpr, CAUSAL: gl.constexpr):
    """Copies in the order in which they are needed: the values of a tile behind the keys of the next.

    Where there is one place for queries, it is free when the last values are used: these do not wait for the next keys.
    """
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
        mbarrier.expect(q_full.index(slot), PARTS * ROWS * q_ring.shape[4] * q_ring.dtype.primitive_bitwidth // 8)
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
