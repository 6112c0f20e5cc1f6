"""Caches as plain lists: what a position of a sequence holds, whatever the layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append
from ferrum_ops.kv_cache import kept_as
from tests.array.oracle import wide
from tests.ops.oracle import Array, make, noise

LAYOUTS = ("contiguous", "ring", "paged")
#: relative L2 distance of int8 keys and values from what was written
INT8 = 1e-2


def shuffled_tables(lengths: Sequence[int], block_size: int, blocks: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Blocks for sequences of these lengths, in an order that no formula has."""
    order = iter(np.random.default_rng(seed).permutation(blocks).tolist())
    return tuple(tuple(next(order) for _ in range(-(-max(n, 1) // block_size))) for n in lengths)


@dataclass(frozen=True)
class Case:
    """Sequences of *keys* tokens in a cache, of which the last *queries* are new."""

    spec: KVSpec
    keys: tuple[int, ...]
    queries: tuple[int, ...]
    tables: tuple[tuple[int, ...], ...] | None

    @property
    def meta(self) -> SequenceMeta:
        starts = SequenceMeta.packed(self.queries).cu_seqlens
        return SequenceMeta(starts, kv_lens=self.keys, block_tables=self.tables)

    @property
    def prompts(self) -> SequenceMeta:
        """All keys as tokens, to fill the cache."""
        starts = SequenceMeta.packed(self.keys).cu_seqlens
        return SequenceMeta(starts, block_tables=self.tables)


@st.composite
def cases(draw: Any, dtype: fa.Dtype | str | None = None, layouts: Sequence[str] = LAYOUTS) -> Case:
    """Mixed batches: prompts, single tokens, parts of prompts, with partial last blocks."""
    sequences = draw(st.integers(1, 4))
    keys = tuple(draw(st.integers(0, 11)) for _ in range(sequences))
    queries = tuple(draw(st.integers(0, n)) for n in keys)
    if draw(st.booleans()):
        queries = tuple(min(1, n) for n in keys)  # a decode step
    layout = draw(st.sampled_from(layouts))
    size = draw(st.sampled_from([1, 2, 3, 4, 16])) if layout == "paged" else 11
    needed = sum(-(-max(n, 1) // size) for n in keys)
    blocks = needed + draw(st.integers(0, 3)) if layout == "paged" else sequences + draw(st.integers(0, 2))
    tables = shuffled_tables(keys, size, blocks, draw(st.integers(0, 99))) if layout == "paged" else None
    if layout != "paged" and draw(st.booleans()):
        order = draw(st.permutations(range(blocks)))
        tables = tuple((b,) for b in order[:sequences])
    heads = draw(st.sampled_from([1, 2, 3]))
    dim, value_dim = draw(st.sampled_from([(1, 1), (4, 4), (8, 5)]))
    held, codes = kept_as(dtype or fa.float32)
    spec = KVSpec(heads, dim, blocks, size, layout, held, value_dim, codes)
    return Case(spec, keys, queries, tables)


def poisoned(spec: KVSpec, device: fa.Device) -> KVCache:
    """A cache whose unused memory would ruin whatever reads it."""
    cache = KVCache.empty(spec, device)
    if spec.quantised:
        assert cache.k_scale is not None
        assert cache.v_scale is not None
        cache.k_scale[...] = fa.nan
        cache.v_scale[...] = fa.nan
    else:
        cache.k[...] = fa.nan
        cache.v[...] = fa.nan
    return cache


def filled(case: Case, device: fa.Device, dtype: fa.Dtype, seed: int) -> tuple[KVCache, list[Array], list[Array]]:
    """A cache that holds noise, and the keys and values [n, Hkv, *] of each sequence in float64 as it holds them."""
    spec = case.spec
    total = sum(case.keys)
    k, exact_k = make(noise(seed, total, spec.kv_heads, spec.head_dim), dtype, device)
    v, exact_v = make(noise(seed + 1, total, spec.kv_heads, spec.value_dim), dtype, device)
    cache = poisoned(spec, device)
    kv_append(cache, k, v, case.prompts)
    if spec.quantised:
        exact_k, exact_v = held_by(spec, exact_k), held_by(spec, exact_v)
    elif spec.dtype is not dtype:
        exact_k, exact_v = (wide(fa.asarray(x).astype(spec.dtype).numpy()) for x in (exact_k, exact_v))
    starts = np.cumsum((0, *case.keys))
    split = [slice(a, b) for a, b in pairwise(starts)]
    return cache, [exact_k[s] for s in split], [exact_v[s] for s in split]


def int8(x: Array) -> Array:
    """What is left of rows x [..., D] after int8 with a float32 scale for each."""
    x = x.astype(np.float32)
    scale = np.max(np.abs(x), axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(x / np.where(scale > 0, scale, 1)).clip(-127, 127)
    return (codes * scale).astype(np.float64)


def e4m3(x: Array) -> Array:
    """What is left of rows x [..., D] after E4M3 with a float32 scale for each."""
    x = x.astype(np.float32)
    scale = np.max(np.abs(x), axis=-1, keepdims=True) / np.float32(448)
    codes = (x / np.where(scale > 0, scale, 1)).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    return (codes.astype(np.float32) * scale).astype(np.float64)


def held_by(spec: KVSpec, x: Array) -> Array:
    """What is left of rows in a cache of codes or int8."""
    return e4m3(x) if spec.codes else int8(x)
