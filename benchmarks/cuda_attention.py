"""More rows of ``ops_cuda``: attention over prompts and over caches, and what is written into caches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, product
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import ferrum_array as fa
from benchmarks.cuda_rows import Peers, Row, copies, first, normal, shared, taken, turns
from ferrum_ops import KVCache, KVSpec, SequenceMeta, attention, explain, kv_append, kv_gather, paged_attention
from ferrum_ops.kv_cache import kept_as

__all__ = ["appends", "decodes", "prefill"]


def attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: Sequence[int], window: int | None = None
) -> torch.Tensor:
    """Causal attention by its definition, of the last queries of q [T, H, D], k and v [K, Hkv, *], *at* their places.

    Raises:
        IndexError: for places that are none.
    """
    group = q.shape[1] // k.shape[1]
    places = torch.tensor(at, device=q.device) % q.shape[0]
    wide_k, wide_v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q[places].double(), wide_k) * q.shape[-1] ** -0.5
    own = places + k.shape[0] - q.shape[0]
    keys = torch.arange(k.shape[0], device=q.device)
    seen = keys <= own[:, None]
    if window is not None:
        seen &= keys > own[:, None] - window
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), wide_v)


def backends(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> list[SDPBackend]:
    """Those of PyTorch's attention that take these tensors."""
    if q.device.type == "cpu":
        return [SDPBackend.MATH]
    given = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, causal, q.shape[1] != k.shape[1])
    can = {
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.can_use_flash_attention,
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.can_use_cudnn_attention,
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.can_use_efficient_attention,
    }
    return [backend for backend, usable in can.items() if usable(given, False)]


def dot_product(backend: SDPBackend, causal: bool, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's attention by one of its ways, heads first."""
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def sdpa(qs: list[torch.Tensor], ks: list[torch.Tensor], vs: list[torch.Tensor], *, causal: bool) -> Peers:
    """PyTorch's attention by all of its ways that take these tensors, which have heads first."""
    return {
        f"SDPA {backend.name.removesuffix('_ATTENTION').lower()}": turns(
            partial(dot_product, backend, causal), qs, ks, vs
        )
        for backend in backends(qs[0], ks[0], vs[0], causal=causal)
    }


def packed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, longest: int, window: int | None
) -> torch.Tensor:
    """PyTorch's attention of packed sequences, whose arguments differ between its versions."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}
    if "window_size" in known:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    result: torch.Tensor = varlen_attn(q, k, v, starts, starts, longest, longest, **options)
    return result


def prefill(
    device: str,
    lengths: Sequence[int],
    heads: int,
    kv_heads: int,
    size: int,
    value_size: int = 0,
    window: int | None = None,
) -> Row:
    """Causal attention of prompts; those of unequal lengths, or with a window, are packed."""
    value_size = value_size or size
    total, longest = sum(lengths), max(lengths)
    even = len(set(lengths)) == 1 and window is None
    held = 2.0 * total * (heads + kv_heads) * (size + value_size)
    count = copies(held)
    widths = ((heads, size), (kv_heads, size), (kv_heads, value_size))
    qs, ks, vs = ([normal(device, total, *width) for _ in range(count)] for width in widths)
    if even:
        batch = len(lengths)
        given = [[shared(x.view(batch, longest, *x.shape[1:])) for x in xs] for xs in (qs, ks, vs)]
        calls = turns(attention, *given)
        runs = explain(attention, *(xs[0] for xs in given)).runs
        own = [[x.view(batch, longest, *x.shape[1:]).transpose(1, 2).contiguous() for x in xs] for xs in (qs, ks, vs)]
        peers = sdpa(*own, causal=True)
    else:
        meta = SequenceMeta.packed(lengths)
        given = [list(map(shared, xs)) for xs in (qs, ks, vs)]
        options: dict[str, Any] = {"meta": meta} if window is None else {"meta": meta, "window": window}
        calls = turns(attention, *given, **options)
        runs = explain(attention, *(xs[0] for xs in given), **options).runs
        starts = torch.tensor(meta.cu_seqlens, dtype=torch.int32, device=device)
        rest = ([starts] * count, [longest] * count, [window] * count)
        peers = {} if device == "cpu" else {"varlen_attn": turns(packed, qs, ks, vs, *rest)}
    last = slice(total - lengths[-1], total)
    half = lengths[-1] // 2  # the first queries see few keys, and so their results are large and nearly exact
    at = sorted({half + n * (lengths[-1] - 1 - half) // 15 for n in range(16)})

    def found(result: Any) -> torch.Tensor:
        y = first(result)
        if y.ndim == 4:
            y = (y if y.shape[1] == longest else y.transpose(1, 2)).reshape(total, heads, value_size)
        return y[last][at]

    kept = [[min(place + 1, window or place + 1) for place in range(length)] for length in set(lengths)]
    pairs = sum(sum(one) * lengths.count(len(one)) for one in kept)
    sizes = f"{size}" if value_size == size else f"{size}+{value_size}"
    shape = f"{len(lengths)}x{heads}/{kv_heads}x{longest}x{sizes}" if even or window else f"{len(lengths)} prompts"
    extra = "" if window is None else f", window {window}"
    if not even and window is None:
        extra = f" of {min(lengths)} to {longest}, {heads}/{kv_heads}x{sizes}"
    return Row(
        f"causal attention {shape}{extra}",
        runs,
        calls,
        peers,
        lambda: attended(qs[0][last], ks[0][last], vs[0][last], at, window),
        found,
        held,
        2.0 * heads * (size + value_size) * pairs,
    )


def filled(
    device: str, sequences: int, keys: int, page: int, dtype: fa.Dtype | str, k: torch.Tensor, v: torch.Tensor
) -> tuple[KVCache, tuple[tuple[int, ...], ...]]:
    """A paged cache of k and v [sequences * keys, Hkv, D] whose blocks lie in any order, and its block tables."""
    per = -(-keys // page)
    order = torch.randperm(sequences * per).tolist()
    tables = tuple(tuple(order[n * per : (n + 1) * per]) for n in range(sequences))
    held, codes = kept_as(dtype)
    cache = KVCache.empty(KVSpec(k.shape[1], k.shape[2], sequences * per, page, "paged", held, codes=codes), device)
    starts = tuple(accumulate([keys] * sequences, initial=0))
    kv_append(cache, shared(k), shared(v), SequenceMeta(starts, block_tables=tables))
    return cache, tables


def decodes(
    device: str, sequences: int, keys: int, pages: Sequence[int] = (16, 64), heads: int = 32, kv_heads: int = 8
) -> Iterator[Row]:
    """Attention of one new token of each sequence over a paged cache, in bfloat16, int8 and E4M3."""
    size = 128
    held = 4.0 * sequences * keys * kv_heads * size
    count = copies(held)
    qs = [normal(device, sequences, heads, size) for _ in range(count)]
    ks, vs = ([normal(device, sequences * keys, kv_heads, size) for _ in range(count)] for _ in range(2))
    queries = list(map(shared, qs))
    apart = [[x.view(sequences, keys, kv_heads, size).transpose(1, 2).contiguous() for x in xs] for xs in (ks, vs)]
    peers = sdpa([q[:, :, None] for q in qs], *apart, causal=False)
    # the queries of a group as if they were neighbours of one head: what splits work among them gets more of it
    rows = sdpa([q.view(sequences, kv_heads, -1, size) for q in qs], *apart, causal=False)
    peers |= {f"{name}, grouped": calls for name, calls in rows.items()}

    def exact() -> torch.Tensor:
        each = [
            attended(qs[0][n : n + 1], ks[0][n * keys :][:keys], vs[0][n * keys :][:keys], [0])
            for n in (0, sequences - 1)
        ]
        return torch.cat(each)

    def found(result: Any) -> torch.Tensor:
        return first(result).reshape(sequences, heads, size)[[0, sequences - 1]]

    for held_as, page in product(("bf16", "int8", "fp8_e4m3"), pages):
        made = [filled(device, sequences, keys, page, held_as, k, v) for k, v in zip(ks, vs, strict=True)]
        starts = tuple(range(sequences + 1))
        metas = [SequenceMeta(starts, kv_lens=(keys,) * sequences, block_tables=tables) for _, tables in made]
        caches = [cache for cache, _ in made]
        yield Row(
            f"decode {sequences}x{keys} keys, {heads}/{kv_heads}x{size}, {held_as}, pages of {page}",
            explain(paged_attention, queries[0], caches[0], metas[0]).runs,
            turns(paged_attention, queries, caches, metas),
            peers,
            exact,
            found,
            held if held_as == "bf16" else held / 2 + 8.0 * sequences * keys * kv_heads,
            within=held_as,
        )


def appends(device: str, sequences: int, tokens: int, kv_heads: int = 8, page: int = 16) -> Iterator[Row]:
    """New keys and values into a paged cache."""
    size, total = 128, sequences * tokens
    held = 4.0 * total * kv_heads * size
    count = copies(held)
    ks, vs = ([normal(device, total, kv_heads, size) for _ in range(count)] for _ in range(2))
    fk, fv = list(map(shared, ks)), list(map(shared, vs))
    for dtype in (fa.bfloat16, fa.int8):
        held_as = "bf16" if dtype is fa.bfloat16 else "int8"
        made = [filled(device, sequences, tokens, page, dtype, k, v) for k, v in zip(vs, ks, strict=True)]
        caches = [cache for cache, _ in made]
        starts = tuple(accumulate([tokens] * sequences, initial=0))
        metas = [SequenceMeta(starts, block_tables=tables) for _, tables in made]
        own = [[torch.zeros(caches[0].spec.slots, *x.shape[1:], dtype=x.dtype, device=device) for x in xs]
               for xs in (ks, vs)]  # fmt: skip
        slots = [
            torch.tensor([table[t // page] * page + t % page for table in tables for t in range(tokens)], device=device)
            for _, tables in made
        ]

        def copied(
            at: torch.Tensor, k: torch.Tensor, v: torch.Tensor, to_k: torch.Tensor, to_v: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            to_k.index_copy_(0, at, k)
            to_v.index_copy_(0, at, v)
            return at, to_k, to_v

        def found(result: Any, cache: KVCache = caches[0], meta: SequenceMeta = metas[0]) -> torch.Tensor:
            if result is None:  # ours, which writes into the cache
                return torch.cat(list(map(taken, kv_gather(cache, meta))))
            at, to_k, to_v = result
            return torch.cat((to_k[at], to_v[at]))

        yield Row(
            f"cache write {sequences}x{tokens} tokens, {kv_heads}x{size}, {held_as}",
            explain(kv_append, caches[0], fk[0], fv[0], metas[0]).runs,
            turns(kv_append, caches, fk, fv, metas),
            {"index_copy bf16": turns(copied, slots, ks, vs, *own)},
            lambda: torch.cat((ks[0], vs[0])).double(),
            found,
            held * (2 if dtype is fa.bfloat16 else 1.5) + (8.0 * total * kv_heads if dtype is fa.int8 else 0),
            within="exact" if dtype is fa.bfloat16 else "int8",
        )
