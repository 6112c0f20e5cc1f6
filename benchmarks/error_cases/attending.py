"""Attention; to a cache of 8 bits the distance is from what the cache holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

import ferrum_array as fa
from benchmarks.error_cases.caches import Filled, empty, fill, numbers
from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import (
    KVCache,
    KVSpec,
    SequenceMeta,
    attention,
    kv_append,
    merge_attention,
    mla_attention,
    paged_attention,
)
from tests.ops.oracle import Array
from tests.ops.test_attention import exact_attention


def options_of(draw: Draw, heads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Causal or not, window, cap and sinks, as tensors and as what they hold."""
    causal = draw.flag()
    options: dict[str, Any] = {
        "causal": causal,
        "window": draw.one_of(None, None, 1, 7, 40) if causal else None,
        "softcap": draw.one_of(None, None, 5.0, 30.0),
        "scale": draw.one_of(None, None, 0.3),
    }
    exact = dict(options)
    if draw.flag():
        options["sinks"], exact["sinks"] = draw.noise(heads, dtype=fa.float32)
    return options, exact


@case("attention")
def _attention(draw: Draw) -> Results:
    key_heads, dim = draw.one_of(1, 2), draw.one_of(8, 16, 64, 128)
    heads = key_heads * draw.one_of(1, 2, 4)
    keys = draw.between(1, 90)
    queries = draw.one_of(1, keys, min(keys, 17))
    q, q64 = draw.noise(queries, heads, dim)
    k, k64 = draw.noise(keys, key_heads, dim)
    v, v64 = draw.noise(keys, key_heads, draw.one_of(dim, 24))
    options, exact = options_of(draw, heads)
    if draw.one_of(False, False, True):
        shape = draw.one_of((heads, queries, keys), (1, keys))
        hidden = draw.rng.random(shape) < 0.3
        options["bias"], exact["bias"] = draw.tensor(np.where(hidden, -np.inf, draw.values(*shape)), fa.float32)
    out, lse = draw.call(attention, q, k, v, return_lse=True, **options)
    want: tuple[Array, Array] = exact_attention(q64, k64, v64, **exact)
    yield out, want[0]
    yield lse, want[1]


def to_a_cache(draw: Draw, filled: Filled) -> Results:
    """The last tokens of each sequence, one or a few or all, to what the cache holds."""
    fill(draw, filled)
    draw.ran.clear()
    spec = filled.cache.spec
    counts = [draw.one_of(1, 1, min(n, 5), n) for n in filled.lengths]
    heads = spec.kv_heads * draw.one_of(1, 4)
    q, q64 = draw.noise(sum(counts), heads, spec.head_dim)
    options, exact = options_of(draw, heads)
    if spec.layout == "ring":
        counts = [1 for _ in filled.lengths]
        q, q64 = q[: len(counts)], q64[: len(counts)]
        options |= {"causal": True, "window": 7}
        exact |= {"causal": True, "window": 7}
    before = [n - c for n, c in zip(filled.lengths, counts, strict=True)]
    meta = filled.meta(counts, before)
    k64, v64 = numbers(filled.cache)
    wants, at = [], 0
    for s, (length, count) in enumerate(zip(filled.lengths, counts, strict=True)):
        # of a ring the keys within the window: the others are no longer there
        slots = [filled.slot(s, p) for p in range(max(0, length - 7) if spec.layout == "ring" else 0, length)]
        wants.append(exact_attention(q64[at : at + count], k64[slots], v64[slots], **exact))
        at += count
    out, lse = draw.call(paged_attention, q, filled.cache, meta, return_lse=True, **options)
    yield out, np.concatenate([want for want, _ in wants])
    yield lse, np.concatenate([want for _, want in wants])


@case("paged_attention")
def _paged_attention(draw: Draw) -> Results:
    yield from to_a_cache(draw, empty(draw, draw.dtype))


@case("paged_attention", "int8")
def _paged_attention_int8(draw: Draw) -> Results:
    yield from to_a_cache(draw, empty(draw, fa.int8))


@case("paged_attention", "E4M3")
def _paged_attention_e4m3(draw: Draw) -> Results:
    yield from to_a_cache(draw, empty(draw, "fp8_e4m3"))


@case("merge_attention")
def _merge_attention(draw: Draw) -> Results:
    parts, shape = draw.one_of(1, 2, 5), (draw.between(1, 30), draw.one_of(1, 4))
    size = draw.one_of(16, 64)
    outs, o64 = zip(*(draw.noise(*shape, size) for _ in range(parts)), strict=True)
    unseen = draw.rng.random((parts, *shape)) < draw.one_of(0.0, 0.3)
    values = np.where(unseen, -np.inf, draw.values(parts, *shape) * 3)
    lses, l64 = zip(*(draw.tensor(part, draw.wide) for part in values), strict=True)
    sums = special.logsumexp(np.stack(l64), axis=0)
    base = np.where(np.isfinite(sums), sums, 0.0)
    want = sum(np.exp(lse - base)[..., None] * out for lse, out in zip(l64, o64, strict=True))
    out, lse = draw.call(merge_attention, outs, lses)
    yield from ((out, np.asarray(want)), (lse, sums))


def latents(draw: Draw, *, cached: bool) -> Results:
    """Latent attention, against attention with the keys and values that the latents make."""
    heads, nope, turned, value, rank = draw.one_of((2, 16, 8, 16, 32), (4, 32, 16, 24, 48), (1, 8, 8, 8, 16))
    lengths = [draw.between(1, 40) for _ in range(draw.one_of(1, 3))]
    counts = [draw.one_of(1, min(n, 5), n) for n in lengths]
    starts, total = np.cumsum([0, *lengths]), sum(lengths)
    q, q64 = draw.noise(sum(counts), heads, nope + turned)
    w, w64 = draw.tensor(draw.values(heads, nope + value, rank) / rank**0.5)
    latent, c64 = draw.noise(total, rank)
    k_rope, r64 = draw.noise(total, turned)
    causal = draw.flag()
    options: dict[str, Any] = {
        "causal": causal,
        "window": draw.one_of(None, 5) if causal else None,
        "softcap": draw.one_of(None, None, 20.0),
        "absorb": draw.one_of(None, True, False),
    }
    size = 4
    tables = None
    if cached:
        needed = [-(-n // size) for n in lengths]
        order = iter(draw.rng.permutation(sum(needed)).tolist())
        tables = tuple(tuple(next(order) for _ in range(n)) for n in needed)
        cache = KVCache.empty(KVSpec(1, rank, sum(needed), size, "paged", draw.dtype, turned), draw.device)
        kv_append(cache, latent[:, None], k_rope[:, None], SequenceMeta(tuple(starts.tolist()), block_tables=tables))
        where: dict[str, Any] = {"cache": cache}
    else:
        where = {"latent": latent, "k_rope": k_rope}
    ends = tuple(np.cumsum([0, *counts]).tolist())
    meta = SequenceMeta(ends, kv_lens=tuple(lengths), block_tables=tables)
    out, lse = draw.call(mla_attention, q, w, meta=meta, return_lse=True, **where, **options)
    made = np.einsum("hnr,tr->thn", w64, c64)
    keys = np.concatenate([made[..., :nope], np.broadcast_to(r64[:, None], (total, heads, turned))], axis=-1)
    del options["absorb"]
    wants = []
    for s, start in enumerate(starts[:-1]):
        rows = slice(start, start + lengths[s])
        wants.append(exact_attention(q64[ends[s] : ends[s + 1]], keys[rows], made[rows][..., nope:], **options))
    yield out, np.concatenate([want for want, _ in wants])
    yield lse, np.concatenate([want for _, want in wants])


@case("mla_attention")
def _mla_attention(draw: Draw) -> Results:
    yield from latents(draw, cached=False)


@case("mla_attention", "cache")
def _mla_attention_cache(draw: Draw) -> Results:
    yield from latents(draw, cached=True)
