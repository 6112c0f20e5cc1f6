"""Writing to, reading from and sharing parts of a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.checks import alike, describe, floating, listed
from ferrum_ops.kv_cache import KVCache, cache_of, quantised, read
from ferrum_ops.kv_slots import block_tables, cache_slots, reach
from ferrum_ops.planning import block_slots, stretches
from ferrum_ops.recorded import on_host
from ferrum_ops.registry import Op
from ferrum_ops.types import SequenceMeta

__all__ = ["append_slots", "kv_append", "kv_copy_blocks", "kv_gather"]

_KV_APPEND: Op[None] = Op("kv_append")
_KV_GATHER: Op[tuple[Tensor, Tensor]] = Op("kv_gather")
_KV_COPY_BLOCKS: Op[None] = Op("kv_copy_blocks")

# Beyond so many stretches of neighbouring slots, one write by indices is faster than a write for each.
_STRETCHES = 8


def kv_append(cache: KVCache, k: Tensor, v: Tensor, meta: SequenceMeta) -> None:
    """Write the keys and values of new tokens into *cache*: k [T, Hkv, D] and v [T, Hkv, Dv].

    Each token goes to the slot of its place: ``meta.slots`` where given; otherwise that of its position, which is the
    last ones of its sequence (``kv_lens``, which count the new tokens too, without it the tokens alone) unless
    ``positions`` say otherwise. Numbers are rounded to the dtype of the cache; in int8 and E4M3 each token and head has
    the scale amax / 127 or amax / 448 and is rounded half to even, and a row with NaN or infinity becomes NaN.
    Everything is checked before anything is written; after an error the cache is as before.

    Raises:
        TypeError: for anything not real floating-point, or two dtypes. ValueError: for shapes, head counts or devices
        that do not fit, block tables out of range, positions beyond the blocks, and two tokens with one slot.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append
        >>> cache = KVCache.empty(KVSpec(kv_heads=1, head_dim=1, blocks=4, block_size=2, layout="paged"))
        >>> meta = SequenceMeta((0, 3), block_tables=((3, 1),))
        >>> x = fa.asarray([[[1.0]], [[2.0]], [[3.0]]])
        >>> kv_append(cache, x, x, meta)
        >>> cache.k[:, 0, 0]
        Tensor([0., 0., 3., 0., 0., 0., 1., 2.])
    """
    slots = append_slots("kv_append", cache, k, v, meta)
    if slots:
        _KV_APPEND(k.device, (k.dtype, cache.spec.dtype), (), cache, k, v, slots, meta)


def append_slots(op: str, cache: KVCache, k: Tensor, v: Tensor, meta: SequenceMeta) -> tuple[int, ...]:
    """The slots of the tokens of *meta*, once it is known that their keys and values can be written to *cache*.

    Raises:
        TypeError, ValueError: as ``kv_append`` says, in the name of *op*.
    """
    spec = cache_of(op, cache, meta).spec
    for what, x, size in (("k", k, spec.head_dim), ("v", v, spec.value_dim)):
        floating(op, what, x)
        alike(op, cache.k, what, x, dtype=False)
        if x.shape != (meta.tokens, spec.kv_heads, size):
            raise ValueError(
                f"{op}: {what} must be [{meta.tokens},{spec.kv_heads},{size}] for this meta and {cache!r}, "
                f"got {describe(x)}"
            )
    alike(op, k, "v", v)
    return cache_slots(op, spec, meta)


@_KV_APPEND.reference
def _kv_append(cache: KVCache, k: Tensor, v: Tensor, slots: tuple[int, ...], meta: SequenceMeta) -> None:
    on_host("kv_append", meta)
    # All numbers first, then all writes: an error in between would leave half of a token.
    if cache.spec.quantised:
        k_codes, k_scale = quantised(k, cache.spec.codes)
        v_codes, v_scale = quantised(v, cache.spec.codes)
        pairs = [(cache.k, k_codes), (cache.v, v_codes), (cache.k_scale, k_scale), (cache.v_scale, v_scale)]
    else:
        dtype = cache.spec.dtype
        pairs = [(cache.k, k.astype(dtype, copy=False)), (cache.v, v.astype(dtype, copy=False))]
    runs = stretches(slots)
    index = None if len(runs) <= _STRETCHES else fa.asarray(slots, dtype=fa.int64, device=cache.device)
    for memory, x in pairs:
        assert memory is not None
        if index is not None:
            memory[index] = x
            continue
        for run in runs:
            memory[run.slot : run.slot + run.length] = x[run.token : run.token + run.length]


def kv_gather(cache: KVCache, seq: SequenceMeta, *, dtype: Any = None) -> tuple[Tensor, Tensor]:
    """All keys and values of sequences, packed one after another: [N, Hkv, D] and [N, Hkv, Dv].

    Args:
        cache: where they lie.
        seq: which: its ``kv_lens`` (or else its lengths) say how many keys each sequence has, its ``block_tables``
            where they lie; N is their sum.
        dtype: of the result, floating; the dtype of the cache, or float32 for int8 and E4M3.

    The result is a copy, in the order of positions, as ``attention`` takes it with *seq* as its meta.

    Raises:
        TypeError: for a *dtype* that is not floating. ValueError: for block tables out of range, lengths beyond the
        blocks, and sequences of which a ring no longer has the beginning.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append, kv_gather
        >>> cache = KVCache.empty(KVSpec(kv_heads=1, head_dim=1, blocks=1, block_size=4, dtype="int8"))
        >>> x = fa.asarray([[[0.5]], [[-2.0]]])
        >>> kv_append(cache, x, x, SequenceMeta.packed([2]))
        >>> kv_gather(cache, SequenceMeta.packed([2]))[0][:, 0, 0]
        Tensor([ 0.5, -2. ])
    """
    spec = cache_of("kv_gather", cache, seq).spec
    on_host("kv_gather", seq)
    if dtype is None:
        wanted = fa.float32 if spec.quantised else spec.dtype
    else:
        wanted = Dtype(dtype)
        if not wanted.is_floating:
            raise TypeError(f"kv_gather: dtype must be real floating-point, got {wanted}")
    slots: list[int] = []
    for number, (table, keys) in enumerate(zip(block_tables("kv_gather", spec, seq), seq.key_lengths, strict=True)):
        reach("kv_gather", spec, number, table, 0, keys)
        if spec.layout == "ring" and keys > spec.block_size:
            raise ValueError(
                f"kv_gather: sequence {number} has {keys} keys, but the ring keeps the last {spec.block_size}"
            )
        slots += block_slots(table, spec.block_size, range(keys), ring=spec.layout == "ring")
    return _KV_GATHER(cache.device, (spec.dtype, wanted), (), cache, tuple(slots), wanted)


@_KV_GATHER.reference
def _kv_gather(cache: KVCache, slots: tuple[int, ...], dtype: Dtype) -> tuple[Tensor, Tensor]:
    index = fa.asarray(slots, dtype=fa.int64, device=cache.device)
    return read(cache.k, cache.k_scale, index, dtype), read(cache.v, cache.v_scale, index, dtype)


def kv_copy_blocks(cache: KVCache, src: Sequence[int], dst: Sequence[int]) -> None:
    """Copy whole blocks inside *cache*: block ``src[i]`` to block ``dst[i]``, all as they were before.

    With it a sequence that shares a prefix with another gets blocks of its own before it writes (copy on write).

    Source: Kwon et al., "Efficient memory management for large language model serving with PagedAttention", 2023.

    Raises:
        ValueError: for lists of different lengths, blocks out of range, or a block that is written twice.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append, kv_copy_blocks
        >>> cache = KVCache.empty(KVSpec(kv_heads=1, head_dim=1, blocks=3, block_size=1, layout="paged"))
        >>> kv_append(cache, fa.ones((1, 1, 1)), fa.ones((1, 1, 1)), SequenceMeta((0, 1), block_tables=((0,),)))
        >>> kv_copy_blocks(cache, [0], [2])
        >>> cache.k[:, 0, 0]
        Tensor([1., 0., 1.])
    """
    spec = cache_of("kv_copy_blocks", cache).spec
    for what, blocks in (("src", src), ("dst", dst)):
        listed("kv_copy_blocks", what, blocks)
    if len(src) != len(dst):
        raise ValueError(f"kv_copy_blocks: src and dst must have one length, got {len(src)} and {len(dst)}")
    for what, blocks in (("src", src), ("dst", dst)):
        wrong = [b for b in blocks if isinstance(b, bool) or not isinstance(b, int) or not 0 <= b < spec.blocks]
        if wrong:
            raise ValueError(f"kv_copy_blocks: {what} has {wrong[0]!r}, but blocks are 0 to {spec.blocks - 1}")
    if len(set(dst)) < len(dst):
        raise ValueError(f"kv_copy_blocks: dst names a block twice: {list(dst)}")
    if len(src):
        _KV_COPY_BLOCKS(cache.device, (spec.dtype,), (), cache, tuple(src), tuple(dst))


@_KV_COPY_BLOCKS.reference
def _kv_copy_blocks(cache: KVCache, src: tuple[int, ...], dst: tuple[int, ...]) -> None:
    size = cache.spec.block_size

    def rows(blocks: tuple[int, ...]) -> Tensor:
        numbers = [b * size + s for b in blocks for s in range(size)]
        return fa.asarray(numbers, dtype=fa.int64, device=cache.device)

    memories = [memory for memory in (cache.k, cache.v, cache.k_scale, cache.v_scale) if memory is not None]
    source, target = rows(src), rows(dst)
    copies = [fa.take(memory, source, axis=0) for memory in memories]
    for memory, copy in zip(memories, copies, strict=True):
        memory[target] = copy
