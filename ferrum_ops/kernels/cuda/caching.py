"""Rows of ``kv_append``, ``kv_gather`` and ``kv_copy_blocks``.

``kv_append`` takes its slots from the plan in the device's memory and can be captured in a graph. The other two are
told slots and blocks by the host, and copy them to the device.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.cuda import plans
from ferrum_ops.kernels.cuda.launch import Kernel, empty, power_of_two
from ferrum_ops.kernels.cuda.layouts import heads
from ferrum_ops.kernels.cuda.source import caching as source
from ferrum_ops.kv_cache import KVCache, KVSpec
from ferrum_ops.types import SequenceMeta

__all__ = ["kv_append", "kv_copy_blocks", "kv_gather", "owned"]

_APPEND: Final = Kernel(source.append, aligned=("k_token", "k_head", "v_token", "v_head"))
_GATHER: Final = Kernel(source.gather)
_MOVE: Final = Kernel(source.move, aligned=("size",))

_TILE: Final = 2048  # elements of the rows that a program has
_PIECE: Final = 4096  # elements of a block that a program copies


def owned(memory: Tensor) -> Tensor:
    """*memory*, to be written: where others see it, it gets memory of its own first."""
    if not (memory._spec.device.backend.exclusive(memory) and memory._data.flags.c_contiguous):
        memory._data = memory._data.copy("C")
    return memory


@cache
def _rows(spec: KVSpec) -> tuple[int, int, int]:
    """How many rows of a cache a program has, and the blocks that hold a key and a value."""
    sizes = power_of_two(spec.head_dim), power_of_two(spec.value_dim)
    return max(1, _TILE // max(sizes)), *sizes


def kv_append(cache: KVCache, k: Tensor, v: Tensor, slots: tuple[int, ...], meta: SequenceMeta) -> None:
    """The op: all of it in one launch."""
    spec = cache.spec
    places = plans.slots_of(spec, meta, k._spec.device)
    if plans.CHECK:
        plans.check_slots(spec, meta, places)
    # k and v may be views of the cache, which is then no longer theirs when it is written
    k, k_token, k_head = heads(k)
    v, v_token, v_head = heads(v)
    memories = [None if x is None else owned(x) for x in (cache.k, cache.v, cache.k_scale, cache.v_scale)]
    tokens = k._data.shape[0]
    rows, key_block, value_block = _rows(spec)
    _APPEND(
        (-(-tokens * spec.kv_heads // rows), 2),
        *(k, v, places, *memories, tokens, spec.slots, spec.kv_heads, k_token, k_head, v_token, v_head),
        ROWS=rows,
        warps=2 if spec.quantised else 4,  # as timed on an H200
        DIM=spec.head_dim,
        VALUE_DIM=spec.value_dim,
        BD=key_block,
        BV=value_block,
    )


def kv_gather(cache: KVCache, slots: tuple[int, ...], dtype: Dtype) -> tuple[Tensor, Tensor]:
    """The op."""
    spec = cache.spec
    tokens = len(slots)
    k = empty((tokens, spec.kv_heads, spec.head_dim), cache.k, dtype)
    v = empty((tokens, spec.kv_heads, spec.value_dim), cache.v, dtype)
    if tokens:
        rows, key_block, value_block = _rows(spec)
        _GATHER(
            (-(-tokens * spec.kv_heads // rows), 2),
            *(cache.k, cache.v, cache.k_scale, cache.v_scale),
            *(fa.asarray(slots, dtype=fa.int64, device=cache.device), k, v, tokens, spec.slots, spec.kv_heads),
            ROWS=rows,
            DIM=spec.head_dim,
            VALUE_DIM=spec.value_dim,
            BD=key_block,
            BV=value_block,
        )
    return k, v


def kv_copy_blocks(cache: KVCache, src: tuple[int, ...], dst: tuple[int, ...]) -> None:
    """The op: through memory of its own where a block is both read and written."""
    pairs = [(a, b) for a, b in zip(src, dst, strict=True) if a != b]
    if not pairs:
        return
    sources, targets = (fa.asarray([pair[n] for pair in pairs], dtype=fa.int64, device=cache.device) for n in range(2))
    through = not {a for a, _ in pairs}.isdisjoint({b for _, b in pairs})
    for memory in (cache.k, cache.v, cache.k_scale, cache.v_scale):
        if memory is None:
            continue
        owned(memory)
        blocks = cache.spec.blocks
        size = memory._data.size // blocks
        if through:
            held = empty((len(pairs), size), memory)
            _move(memory, held, sources, None, blocks, len(pairs), size)
            _move(held, memory, None, targets, len(pairs), blocks, size)
        else:
            _move(memory, memory, sources, targets, blocks, blocks, size)


def _move(
    source: Tensor,
    target: Tensor,
    sources: Tensor | None,
    targets: Tensor | None,
    from_blocks: int,
    to_blocks: int,
    size: int,
) -> None:
    count = next(x for x in (sources, targets) if x is not None)._data.shape[0]
    piece = min(_PIECE, power_of_two(size))
    pieces = -(-size // piece)
    grid = (count * pieces,)
    _MOVE(grid, source, target, sources, targets, from_blocks, to_blocks, size, pieces, BLOCK=piece)
