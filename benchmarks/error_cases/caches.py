"""Caches of keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

import ferrum_array as fa
from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append, kv_copy_blocks, kv_gather
from ferrum_ops.kv_cache import kept_as
from tests.array.oracle import to_dtype, wide
from tests.ops.oracle import Array


@dataclass
class Filled:
    """A cache with some sequences in it, and what it holds: keys and values by sequence and position."""

    cache: KVCache
    lengths: list[int]
    tables: tuple[tuple[int, ...], ...] | None
    held: list[list[tuple[Array, Array]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held = [[] for _ in self.lengths]

    def meta(self, counts: list[int], before: list[int]) -> SequenceMeta:
        """So many tokens of each sequence, after the ones before."""
        ends = tuple(a + b for a, b in zip(counts, before, strict=True))
        return SequenceMeta((0, *np.cumsum(counts).tolist()), kv_lens=ends, block_tables=self.tables)

    def slot(self, sequence: int, position: int) -> int:
        spec = self.cache.spec
        if spec.layout == "paged":
            assert self.tables is not None
            block = self.tables[sequence][position // spec.block_size]
        else:
            block = sequence
        return block * spec.block_size + position % spec.block_size

    def memory(self) -> tuple[Array, Array]:
        """What the slots must hold."""
        spec = self.cache.spec
        k, v = (np.zeros((spec.slots, spec.kv_heads, size)) for size in (spec.head_dim, spec.value_dim))
        for s, tokens in enumerate(self.held):
            for position, (key, value) in enumerate(tokens):
                k[self.slot(s, position)], v[self.slot(s, position)] = key, value
        return k, v


def empty(draw: Draw, dtype: fa.Dtype | str, *, ring: bool = True) -> Filled:
    """A cache of any layout with room for some sequences."""
    layout = draw.one_of("contiguous", "paged", "paged", *(("ring",) if ring else ()))
    lengths = [draw.between(1, 40) for _ in range(draw.one_of(1, 2, 4))]
    size, blocks = draw.one_of(1, 4, 16), len(lengths)
    tables = None
    if layout == "paged":
        needed = [-(-n // size) for n in lengths]
        blocks = sum(needed) + draw.one_of(0, 3)
        shuffled = iter(draw.rng.permutation(blocks).tolist())
        tables = tuple(tuple(next(shuffled) for _ in range(n)) for n in needed)
    else:
        size = max(lengths) if layout == "contiguous" else 20
    dims = draw.one_of((16, 16), (64, 64), (24, 16))
    held, codes = kept_as(dtype)
    spec = KVSpec(draw.one_of(1, 2), dims[0], blocks, size, layout, held, dims[1], codes)
    return Filled(KVCache.empty(spec, draw.device), lengths, tables)


def fill(draw: Draw, filled: Filled) -> None:
    """Append all tokens: a first piece of each sequence, and the rest in pieces that fit."""
    spec, done = filled.cache.spec, [0] * len(filled.lengths)
    while done != filled.lengths:
        piece = draw.one_of(1, 7, 20) if spec.layout == "ring" else draw.one_of(1, 7, 40)
        counts = [min(piece, n - d) for n, d in zip(filled.lengths, done, strict=True)]
        k, k64 = draw.noise(sum(counts), spec.kv_heads, spec.head_dim)
        v, v64 = draw.noise(sum(counts), spec.kv_heads, spec.value_dim)
        draw.call(kv_append, filled.cache, k, v, filled.meta(counts, done))
        rows = iter(zip(k64, v64, strict=True))
        for tokens, n in zip(filled.held, counts, strict=True):
            tokens += [next(rows) for _ in range(n)]
        done = [a + b for a, b in zip(done, counts, strict=True)]


def numbers(cache: KVCache) -> tuple[Array, Array]:
    """What the cache holds, in float64."""
    found = []
    for memory, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        held = memory.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64) if cache.spec.codes else wide(memory)
        found.append(held * (1.0 if scale is None else wide(scale)[..., None]))
    return found[0], found[1]


@case("kv_append")
def _kv_append(draw: Draw) -> Results:
    dtype = draw.one_of(draw.dtype, draw.wide)
    filled = empty(draw, dtype)
    fill(draw, filled)
    for memory, want in zip((filled.cache.k, filled.cache.v), filled.memory(), strict=True):
        yield memory, wide(to_dtype(want, dtype))


def rounded(draw: Draw, dtype: str) -> Results:
    """Tokens appended to a cache of 8 bits: against the tokens as they were."""
    filled = empty(draw, dtype)
    fill(draw, filled)
    for got, want in zip(numbers(filled.cache), filled.memory(), strict=True):
        yield fa.asarray(got, device="cpu"), want


@case("kv_append", "int8")
def _kv_append_int8(draw: Draw) -> Results:
    yield from rounded(draw, "int8")


@case("kv_append", "E4M3")
def _kv_append_e4m3(draw: Draw) -> Results:
    yield from rounded(draw, "fp8_e4m3")


@case("kv_gather")
def _kv_gather(draw: Draw) -> Results:
    filled = empty(draw, draw.dtype, ring=False)
    fill(draw, filled)
    draw.ran.clear()
    seq = filled.meta([0] * len(filled.lengths), filled.lengths)
    got = draw.call(kv_gather, filled.cache, seq, dtype=draw.one_of(None, draw.wide))
    for i, tensor in enumerate(got):
        yield tensor, np.stack([token[i] for tokens in filled.held for token in tokens])


def gathered(draw: Draw, dtype: str) -> Results:
    """Tokens read from a cache of 8 bits: against what it holds."""
    filled = empty(draw, dtype, ring=False)
    fill(draw, filled)
    draw.ran.clear()
    seq = filled.meta([0] * len(filled.lengths), filled.lengths)
    slots = [filled.slot(s, p) for s, n in enumerate(filled.lengths) for p in range(n)]
    got = draw.call(kv_gather, filled.cache, seq, dtype=draw.dtype)
    for tensor, held in zip(got, numbers(filled.cache), strict=True):
        yield tensor, held[slots]


@case("kv_gather", "int8")
def _kv_gather_int8(draw: Draw) -> Results:
    yield from gathered(draw, "int8")


@case("kv_gather", "E4M3")
def _kv_gather_e4m3(draw: Draw) -> Results:
    yield from gathered(draw, "fp8_e4m3")


@case("kv_copy_blocks")
def _kv_copy_blocks(draw: Draw) -> Results:
    filled = empty(draw, draw.dtype)
    fill(draw, filled)
    draw.ran.clear()
    cache = filled.cache
    spec = cache.spec
    many = draw.between(1, spec.blocks)
    src = [int(draw.rng.integers(spec.blocks)) for _ in range(many)]
    dst = draw.rng.permutation(spec.blocks)[:many].tolist()
    wants = []
    for memory in numbers(cache):
        blocks = memory.reshape(spec.blocks, spec.block_size, *memory.shape[1:])
        after = blocks.copy()
        after[dst] = blocks[src]
        wants.append(after.reshape(memory.shape))
    draw.call(kv_copy_blocks, cache, src, dst)
    yield from zip((cache.k, cache.v), wants, strict=True)
