"""What one pass through a decoder knows beside its tokens' vectors, and where layers keep what later passes need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ferrum_array import Device, Dtype, Tensor
from ferrum_ops import (
    KVCache,
    KVSpec,
    SequenceMeta,
    attention,
    kv_append,
    mla_attention,
    paged_attention,
    qk_norm_rope,
    rope,
    rope_append,
)
from ferrum_ops.kv_cache import Layout

__all__ = ["CacheKind", "Room", "Step", "Turn"]

CacheKind = Literal["contiguous", "paged"]


@dataclass(frozen=True)
class Room:
    """What a cache shall have room for; each layer makes its own part of it.

    Attributes:
        sequences: how many.
        capacity: the longest, in tokens.
        device: where.
        dtype: of keys and values, floating or int8; uint8 with *codes*.
        kind: ``contiguous``: memory for the longest from the start; layers with a window keep rings. ``paged``: blocks,
            given to sequences as they grow.
        block_size: tokens of a block, where they are paged.
        blocks: how many blocks, where they are paged.
        chunk: the most tokens of one sequence in a pass; rings are longer by it.
        codes: what uint8 stands for, as in ``KVSpec``.
    """

    sequences: int
    capacity: int
    device: Device
    dtype: Dtype
    kind: CacheKind
    block_size: int
    blocks: int
    chunk: int
    codes: Literal["", "fp8_e4m3"] = ""

    @property
    def kept(self) -> str:
        """The name of what keys and values are kept as, as ``make_cache`` takes it."""
        return self.codes or self.dtype.standard_name

    def keys(self, heads: int, head_dim: int, value_dim: int, window: int | None = None) -> KVCache:
        """Memory for keys and values of one layer."""
        if window is not None and window + self.chunk < self.capacity:
            layout: Layout = "ring"
            blocks, size = self.sequences, window + self.chunk
        elif self.kind == "paged":
            layout, blocks, size = "paged", self.blocks, self.block_size
        else:
            layout, blocks, size = "contiguous", self.sequences, self.capacity
        spec = KVSpec(heads, head_dim, blocks, size, layout, self.dtype, value_dim, self.codes)
        return KVCache.empty(spec, self.device)


@dataclass(frozen=True)
class Turn:
    """How the queries and keys of a layer turn, and their norms before it.

    Attributes:
        cos: [T, dim / 2]; the first dim dimensions of each head turn.
        sin: the same.
        eps: of the norms; None where there are none.
        wq: weights of the norm of queries, wk of that of keys.
        offset: added to the weights.
    """

    cos: Tensor
    sin: Tensor
    eps: float | None = None
    wq: Tensor | None = None
    wk: Tensor | None = None
    offset: float = 0.0

    @property
    def dim(self) -> int:
        """How many dimensions of a head turn."""
        return 2 * self.cos.shape[-1]

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, turned."""
        cos, sin, dim = self.cos, self.sin, self.dim
        if self.eps is None:
            return rope(q, cos, sin, rotary_dim=dim), rope(k, cos, sin, rotary_dim=dim)
        return qk_norm_rope(q, k, self.wq, self.wk, cos, sin, eps=self.eps, offset=self.offset, rotary_dim=dim)

    def append(self, cache: KVCache, q: Tensor, k: Tensor, v: Tensor, meta: SequenceMeta) -> Tensor:
        """The queries, turned; keys, turned, and values are written into the cache."""
        return rope_append(
            cache, q, k, v, self.cos, self.sin, meta,
            wq=self.wq, wk=self.wk, eps=self.eps, offset=self.offset, rotary_dim=self.dim,
        )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One pass: which tokens belong to which sequence, how heads turn, and what earlier passes left.

    Attributes:
        meta: the packed sequences; with a cache, ``kv_lens`` counts what it holds too.
        tables: cosines and sines, [T, dim / 2], by the name under which attention layers ask for them.
        kept: for each layer what it made of a :class:`Room`, or nothing without a cache.
        blocks: the block tables of the sequences, where keys and values are paged.
        states: what recurrent layers leave for the next pass, by the layer's number; taken over when the pass is done.
        known: whether ids are known to be in the vocabulary, so that nobody need look at them.
    """

    meta: SequenceMeta
    tables: Mapping[str, tuple[Tensor, Tensor]]
    kept: tuple[Any, ...] = ()
    blocks: tuple[tuple[int, ...], ...] | None = None
    states: dict[int, Any] = field(default_factory=dict)
    known: bool = False

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, number: int, *, turn: Turn | None = None, **options: Any
    ) -> Tensor:
        """Causal attention of layer *number*, after a *turn*: q [T, H, D], k and v ``[T, Hkv, *]`` to [T, H, Dv]."""
        result: Tensor
        if not self.kept:
            if turn is not None:
                q, k = turn(q, k)
            result = attention(q, k, v, causal=True, meta=self.meta, **options)
            return result
        cache = self.kept[number]
        meta = self.meta_of(cache)
        if turn is None:
            kv_append(cache, k, v, meta)
        else:
            q = turn.append(cache, q, k, v, meta)
        result = paged_attention(q, cache, meta, causal=True, **options)
        return result

    def attend_latent(
        self, q: Tensor, w: Tensor, latent: Tensor, k_rope: Tensor, number: int, **options: Any
    ) -> Tensor:
        """Causal latent attention of layer *number*; shapes as in ``mla_attention``."""
        if not self.kept:
            result = mla_attention(q, w, latent, k_rope, meta=self.meta, **options)
        else:
            cache = self.kept[number]
            meta = self.meta_of(cache)
            kv_append(cache, latent[:, None], k_rope[:, None], meta)
            result = mla_attention(q, w, cache=cache, meta=meta, **options)
        assert isinstance(result, Tensor)
        return result

    def meta_of(self, cache: KVCache) -> SequenceMeta:
        """The packed sequences as this memory sees them."""
        if cache.spec.layout != "paged" or self.blocks is None:
            return self.meta
        return self.paged

    @cached_property
    def paged(self) -> SequenceMeta:
        """The packed sequences with their blocks."""
        return SequenceMeta(self.meta.cu_seqlens, kv_lens=self.meta.key_lengths, block_tables=self.blocks)
