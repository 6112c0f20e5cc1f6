"""Caches of keys and values: contiguous, ring or paged, in floating-point or int8.

The three layouts are one memory, a row of slots that lie in blocks. They differ in which slot a position of a sequence
has: see :class:`KVSpec`. Which sequence a token belongs to, where it stands and which blocks its sequence has is said
by a ``SequenceMeta``; the cache itself remembers nothing but the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_ops.checks import alike, count, describe, floating, instance, listed
from ferrum_ops.planning import block_slots, stretches
from ferrum_ops.registry import Op
from ferrum_ops.types import SequenceMeta

__all__ = [
    "KVCache", "KVSpec", "append_slots", "cache_of", "cache_slots", "kv_append", "kv_copy_blocks", "kv_gather",
]  # fmt: skip

Layout = Literal["contiguous", "ring", "paged"]

_KV_APPEND: Op[None] = Op("kv_append")
_KV_GATHER: Op[tuple[Tensor, Tensor]] = Op("kv_gather")
_KV_COPY_BLOCKS: Op[None] = Op("kv_copy_blocks")

#: 127 times the float32 after it is infinite
GREATEST_SCALE = 2.6793883890187504e36

# Beyond so many stretches of neighbouring slots, one write by indices is faster than a write for each.
_STRETCHES = 8


@dataclass(frozen=True)
class KVSpec:
    """What a cache of keys and values holds, and in which order.

    Attributes:
        kv_heads: heads of keys and values, Hkv.
        head_dim: the length of a key, D.
        blocks: how many blocks there are; ``contiguous`` and ``ring`` have one for each sequence.
        block_size: slots of a block: for ``contiguous`` the longest sequence, for ``ring`` how many positions are kept.
        layout: where position p of a sequence lies. ``contiguous``: in slot p of its block. ``ring``: in slot
            ``p % block_size`` of its block, in place of what was there. ``paged``: in slot ``p % block_size`` of the
            block that the sequence's block table names at ``p // block_size``.
        dtype: a real floating dtype, or int8: then each token and head has a float32 scale, the greatest magnitude
            over 127, for its key and one for its value.
        value_dim: the length of a value, Dv; that of a key if absent.

    Raises:
        ValueError: for numbers below 1 or an unknown layout. TypeError: for another dtype.

    Examples:
        >>> from ferrum_ops import KVSpec
        >>> spec = KVSpec(kv_heads=8, head_dim=128, blocks=100, block_size=16, layout="paged", dtype="int8")
        >>> spec.slots, spec.nbytes
        (1600, 3379200)
    """

    kv_heads: int
    head_dim: int
    blocks: int
    block_size: int
    layout: Layout = "contiguous"
    dtype: Dtype = fa.float32
    value_dim: int = 0

    def __post_init__(self) -> None:
        if self.value_dim == 0:
            object.__setattr__(self, "value_dim", self.head_dim)
        for what in ("kv_heads", "head_dim", "blocks", "block_size", "value_dim"):
            count("KVSpec", what, getattr(self, what))
        if self.layout not in get_args(Layout):
            raise ValueError(f"KVSpec: layout must be one of {', '.join(get_args(Layout))}, got {self.layout!r}")
        dtype = Dtype(self.dtype)
        if not (dtype.is_floating or dtype is fa.int8):
            raise TypeError(f"KVSpec: dtype must be real floating-point or int8, got {dtype}")
        object.__setattr__(self, "dtype", dtype)

    @property
    def slots(self) -> int:
        """How many tokens there is room for."""
        return self.blocks * self.block_size

    @property
    def quantised(self) -> bool:
        """Whether keys and values are int8 with scales."""
        return self.dtype is fa.int8

    @property
    def nbytes(self) -> int:
        """The bytes of a cache like this."""
        numbers = self.slots * self.kv_heads * (self.head_dim + self.value_dim) * self.dtype.bytes_per_elem
        return numbers + (8 * self.slots * self.kv_heads if self.quantised else 0)


@dataclass(frozen=True, eq=False)
class KVCache:
    """The memory of a cache, which it owns: ``kv_append`` and ``kv_copy_blocks`` write into it.

    Made by :meth:`empty`. All tensors are in C order; slot s of block b has row ``b * block_size + s``.

    Attributes:
        spec: what it holds.
        k: [slots, Hkv, D].
        v: [slots, Hkv, Dv].
        k_scale: [slots, Hkv] float32 where keys are int8: ``k * k_scale[..., None]`` are the numbers.
        v_scale: the same of the values.

    Raises:
        ValueError: for tensors that are not as *spec* says.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append, kv_gather
        >>> cache = KVCache.empty(KVSpec(kv_heads=1, head_dim=2, blocks=1, block_size=8))
        >>> kv_append(cache, fa.ones((3, 1, 2)), fa.zeros((3, 1, 2)), SequenceMeta.packed([3]))
        >>> keys, values = kv_gather(cache, SequenceMeta((0, 0), kv_lens=(3,)))
        >>> keys.shape
        (3, 1, 2)
    """

    spec: KVSpec
    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    def __post_init__(self) -> None:
        spec = self.spec
        rows = (spec.slots, spec.kv_heads)
        for name, shape, dtype in (
            ("k", (*rows, spec.head_dim), spec.dtype),
            ("v", (*rows, spec.value_dim), spec.dtype),
            ("k_scale", rows, fa.float32),
            ("v_scale", rows, fa.float32),
        ):
            found: Tensor | None = getattr(self, name)
            if name.endswith("scale") and not spec.quantised:
                if found is not None:
                    raise ValueError(f"KVCache: {name} belongs to int8 caches, but this one holds {spec.dtype}")
            elif found is None or found.shape != shape or found.dtype is not dtype or found.device is not self.k.device:
                given = "None" if found is None else describe(found)
                raise ValueError(f"KVCache: {name} must be {dtype}[{','.join(map(str, shape))}], got {given}")

    @classmethod
    def empty(cls, spec: KVSpec, device: Device | str | None = None) -> KVCache:
        """A cache of zeros on *device*, or the default device.

        Raises:
            TypeError: if the device does not have the dtype. MemoryError: if it lacks the memory.
        """
        rows = (spec.slots, spec.kv_heads)

        def made(*shape: int, dtype: Dtype) -> Tensor:
            return fa.zeros(shape, dtype=dtype, device=device)

        return cls(
            spec,
            made(*rows, spec.head_dim, dtype=spec.dtype),
            made(*rows, spec.value_dim, dtype=spec.dtype),
            made(*rows, dtype=fa.float32) if spec.quantised else None,
            made(*rows, dtype=fa.float32) if spec.quantised else None,
        )

    @property
    def device(self) -> Device:
        """Where the memory lies."""
        return self.k.device

    def __repr__(self) -> str:
        s = self.spec
        where = "" if self.device.kind == "cpu" else f" on {self.device}"
        return (
            f"KVCache({s.layout}, {s.dtype.name}, {s.blocks} blocks of {s.block_size} slots, "
            f"{s.kv_heads} heads of {s.head_dim}+{s.value_dim}{where})"
        )


def cache_of(op: str, cache: KVCache, *metas: SequenceMeta) -> KVCache:
    """*cache*, once it is known to be one, and the metas to be metas.

    Raises:
        TypeError: naming the op and what came.
    """
    for meta in metas:
        instance(op, "meta", meta, SequenceMeta, "SequenceMeta(cu_seqlens, kv_lens=..., block_tables=...)")
    return instance(op, "cache", cache, KVCache, "KVCache.empty(spec)")


# Plans.


def cache_slots(op: str, spec: KVSpec, meta: SequenceMeta) -> tuple[int, ...]:
    """The slot of each token of *meta* in a cache like *spec*: ``meta.slots``, or where its position lies.

    Raises:
        ValueError: naming the op, for tokens that have no slot, slots out of range, or two tokens with one slot.
    """
    key = ("slots", spec.layout, spec.blocks, spec.block_size)
    known: tuple[int, ...] | None = meta.notes.get(key)
    if known is not None:
        return known
    if meta.slots is not None:
        found = meta.slots
        if found and not (min(found) >= 0 and max(found) < spec.slots):
            raise ValueError(f"{op}: slots run from {min(found)} to {max(found)}, but the cache has {spec.slots}")
    else:
        tables = block_tables(op, spec, meta)
        positions = meta.token_positions
        parts: list[int] = []
        for number, table in enumerate(tables):
            own = positions[meta.cu_seqlens[number] : meta.cu_seqlens[number + 1]]
            if own:
                reach(op, spec, number, table, min(own), max(own) + 1)
                parts += block_slots(table, spec.block_size, own, ring=spec.layout == "ring")
        found = tuple(parts)
    if len(set(found)) < len(found):
        twice = next(slot for n, slot in enumerate(found) if slot in found[:n])
        raise ValueError(
            f"{op}: two tokens would be written to slot {twice}; give each its own place"
            + (f", and a ring of {spec.block_size} at most that many at once" if spec.layout == "ring" else "")
        )
    meta.notes[key] = found
    return found


def block_tables(op: str, spec: KVSpec, meta: SequenceMeta) -> tuple[tuple[int, ...], ...]:
    """The blocks of each sequence: ``meta.block_tables``, or block s for sequence s of a cache that is not paged.

    Raises:
        ValueError: for a paged cache without tables, blocks out of range, or more sequences than blocks.
    """
    sequences = len(meta.lengths)
    tables = meta.block_tables
    if tables is None:
        if spec.layout == "paged":
            raise ValueError(f"{op}: the cache is paged, so meta needs block_tables")
        if sequences > spec.blocks:
            raise ValueError(f"{op}: meta has {sequences} sequences, but the cache has room for {spec.blocks}")
        return tuple((s,) for s in range(sequences))
    for number, table in enumerate(tables):
        if table and not (min(table) >= 0 and max(table) < spec.blocks):
            raise ValueError(
                f"{op}: the block table of sequence {number} runs from {min(table)} to {max(table)}, "
                f"but the cache has {spec.blocks} blocks, counted from 0"
            )
        if spec.layout != "paged" and len(table) != 1:
            raise ValueError(
                f"{op}: in a {spec.layout} cache each sequence has one block, but sequence {number} has {len(table)}"
            )
    return tables


def reach(op: str, spec: KVSpec, number: int, table: Sequence[int], low: int, high: int) -> None:
    """Check that the positions from *low* to *high* (exclusive) of sequence *number* have slots.

    Raises:
        ValueError: for positions below 0 or beyond the blocks.
    """
    if low < 0:
        raise ValueError(f"{op}: sequence {number} has fewer keys than tokens; kv_lens counts the new tokens too")
    room = len(table) * spec.block_size
    if spec.layout != "ring" and high > room:
        raise ValueError(
            f"{op}: sequence {number} reaches position {high - 1}, but its {len(table)} blocks of {spec.block_size} "
            f"end at {room - 1}; allocate more, or end the sequence"
        )


# The ops.


def kv_append(cache: KVCache, k: Tensor, v: Tensor, meta: SequenceMeta) -> None:
    """Write the keys and values of new tokens into *cache*: k [T, Hkv, D] and v [T, Hkv, Dv].

    Each token goes to the slot of its place: ``meta.slots`` where given; otherwise that of its position, which is the
    last ones of its sequence (``kv_lens``, which count the new tokens too, without it the tokens alone) unless
    ``positions`` say otherwise. Numbers are rounded to the dtype of the cache; in int8 each token and head has the
    scale amax / 127 and is rounded half to even, and a row with NaN or infinity becomes NaN. Everything is checked
    before anything is written; after an error the cache is as before.

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
    # All numbers first, then all writes: an error in between would leave half of a token.
    if cache.spec.quantised:
        k_codes, k_scale = quantised(k)
        v_codes, v_scale = quantised(v)
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


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows x [..., D] as int8 codes and float32 scales [...]: ``codes * scales[..., None]`` is x to half a step."""
    wide = x.astype(fa.float32, copy=False)
    scale = fa.max(fa.abs(wide), axis=-1) / 127.0
    finite = fa.isfinite(scale)
    scale = fa.where(finite, fa.minimum(scale, GREATEST_SCALE), fa.nan)
    step = fa.expand_dims(fa.where(fa.logical_and(finite, scale > 0.0), scale, 1.0), axis=-1)
    steps = fa.clip(fa.round(fa.where(fa.expand_dims(finite, axis=-1), wide, 0.0) / step), -127.0, 127.0)
    return steps.astype(fa.int8), scale


def kv_gather(cache: KVCache, seq: SequenceMeta, *, dtype: Any = None) -> tuple[Tensor, Tensor]:
    """All keys and values of sequences, packed one after another: [N, Hkv, D] and [N, Hkv, Dv].

    Args:
        cache: where they lie.
        seq: which: its ``kv_lens`` (or else its lengths) say how many keys each sequence has, its ``block_tables``
            where they lie; N is their sum.
        dtype: of the result, floating; the dtype of the cache, or float32 for int8.

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


def read(memory: Tensor, scale: Tensor | None, index: Tensor, dtype: Dtype) -> Tensor:
    """The rows *index* [...] of keys or values, [..., Hkv, *], as numbers of *dtype*."""
    rows = fa.take(memory, index, axis=0)
    if scale is None:
        return rows.astype(dtype, copy=False)
    wide = rows.astype(fa.float32) * fa.expand_dims(fa.take(scale, index, axis=0), axis=-1)
    return wide.astype(dtype, copy=False)


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
