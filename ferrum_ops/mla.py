"""Multi-head latent attention: all heads read one short vector for each token."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, describe, floating, instance
from ferrum_ops.kv_cache import KVCache, cache_of, read
from ferrum_ops.kv_slots import block_tables, reach
from ferrum_ops.planning import Run, block_slots
from ferrum_ops.recorded import on_host
from ferrum_ops.registry import Op
from ferrum_ops.tiled import AttentionOptions, check_options, check_order, default_scale, tiled
from ferrum_ops.types import SequenceMeta

__all__ = ["mla_attention"]

#: gives latents and rotated keys from one place to another, [S, length, R] and [S, length, Dr]
_Latents = Callable[[int, int], tuple[Tensor, Tensor]]

# Takes q, w, latent, k_rope (both None where there is a cache), cache, meta, absorb and the options.
_MLA_ATTENTION: Op[tuple[Tensor, Tensor | None]] = Op("mla_attention")


class _Sizes(NamedTuple):
    heads: int
    nope: int
    rope: int
    value: int
    rank: int


def mla_attention(
    q: Tensor,
    w: Tensor,
    latent: Tensor | None = None,
    k_rope: Tensor | None = None,
    *,
    cache: KVCache | None = None,
    meta: SequenceMeta | None = None,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    absorb: bool | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention with keys and values made from one latent vector a token: q [T, H, Dn + Dr] gives [T, H, Dv].

    Head h has the keys ``concat(w[h, :Dn] @ latent, k_rope)`` and the values ``w[h, Dn:] @ latent``; the rotated part
    of a key is shared by all heads. There are two ways, which give the same up to rounding: *absorb* multiplies queries
    and results by w, and reads the latents themselves, as if they were keys and values of one head; otherwise keys and
    values are made block by block. Sums accumulate in float32 (float64 for float64) and are rounded once.

    Args:
        q: queries, packed; their last Dr numbers are rotated already, and so is *k_rope*.
        w: [H, Dn + Dv, R]: the rows that make keys, then those that make values, of each head.
        latent: [Tk, R], packed like the keys of ``attention``.
        k_rope: [Tk, Dr].
        cache: in place of both: a ``KVCache`` of one head whose keys are the latents and whose values the rotated
            keys, ``KVSpec(kv_heads=1, head_dim=R, value_dim=Dr, ...)``, filled by
            ``kv_append(cache, latent[:, None], k_rope[:, None], meta)``. Needs *meta*.
        meta: packed sequences; without it and a cache the tokens are one sequence.
        scale: as in ``attention``; 1 / sqrt(Dn + Dr) if absent.
        causal: as in ``attention``.
        window: the same.
        softcap: the same.
        absorb: which way; if absent, the one with fewer multiplications for each run of sequences.
        return_lse: also return the log-sum-exp [T, H].

    Source: DeepSeek-AI, "DeepSeek-V2", 2024, and "DeepSeek-V3", 2024.

    Raises:
        TypeError: for different dtypes or anything not real floating-point. ValueError: for shapes or devices that do
        not fit, both or neither of latents and cache, and whatever ``paged_attention`` refuses.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import mla_attention
        >>> latent, k_rope = fa.asarray([[1.0], [2.0]]), fa.zeros((2, 2))
        >>> w = fa.asarray([[[0.0], [3.0]]])  # one head: a key of length 1, a value of length 1
        >>> mla_attention(fa.zeros((2, 1, 3)), w, latent, k_rope)
        Tensor([[[3. ]],
        <BLANKLINE>
                [[4.5]]])
    """
    sizes = _check_operands(q, w, latent, k_rope, cache, meta)
    options = AttentionOptions(default_scale("mla_attention", scale, q), bool(causal), window, softcap)
    options = check_options("mla_attention", options, q)
    if meta is None:
        assert latent is not None
        meta = SequenceMeta((0, q.shape[0]), kv_lens=(latent.shape[0],))
    check_order("mla_attention", meta, options)
    if cache is None:
        assert latent is not None
        if q.shape[0] != meta.tokens or latent.shape[0] != sum(meta.key_lengths):
            raise ValueError(
                f"mla_attention: this meta has {meta.tokens} tokens and {sum(meta.key_lengths)} keys, "
                f"got q {describe(q)} and latent {describe(latent)}"
            )
    else:
        if cache.spec.layout == "ring":
            raise ValueError("mla_attention: ring caches are not implemented; use a contiguous or a paged one")
        for number, (table, keys) in enumerate(zip(_tables(cache, meta), meta.key_lengths, strict=True)):
            reach("mla_attention", cache.spec, number, table, 0, keys)
    features = (
        *options.features,
        *(() if cache is None else ("cache",)),
        *(("lse",) if return_lse else ()),
    )
    stored = q.dtype if cache is None else cache.spec.dtype
    arguments = (q, w, latent, k_rope, cache, meta, absorb, sizes, options)
    result, lse = _MLA_ATTENTION(q.device, (q.dtype, stored), features, *arguments)
    return result if not return_lse or lse is None else (result, lse)


def _check_operands(
    q: Tensor, w: Tensor, latent: Tensor | None, k_rope: Tensor | None, cache: KVCache | None, meta: SequenceMeta | None
) -> _Sizes:
    op = "mla_attention"
    floating(op, "q", q)
    floating(op, "w", w)
    alike(op, q, "w", w)
    if meta is not None:
        instance(op, "meta", meta, SequenceMeta, "SequenceMeta.packed(lengths)")
    if cache is not None:
        cache_of(op, cache)
        if latent is not None or k_rope is not None:
            raise ValueError(f"{op}: give latent and k_rope, or a cache that holds them, not both")
        if meta is None:
            raise ValueError(f"{op}: a cache needs meta, which says where each sequence lies in it")
        alike(op, q, "the cache", cache.k, dtype=False)
        if cache.spec.kv_heads != 1:
            raise ValueError(f"{op}: latents are kept as one head, but this is {cache!r}")
        rank, turned = cache.spec.head_dim, cache.spec.value_dim
    elif latent is None or k_rope is None:
        raise ValueError(f"{op}: give latent and k_rope, or a cache that holds them")
    else:
        for what, x in (("latent", latent), ("k_rope", k_rope)):
            floating(op, what, x)
            alike(op, q, what, x)
        if latent.ndim != 2 or k_rope.ndim != 2 or latent.shape[0] != k_rope.shape[0]:
            raise ValueError(
                f"{op}: latent must be [Tk, R] and k_rope [Tk, Dr], got {describe(latent)} and {describe(k_rope)}"
            )
        rank, turned = latent.shape[1], k_rope.shape[1]
    if q.ndim != 3 or w.ndim != 3 or w.shape[0] != q.shape[1] or w.shape[2] != rank:
        raise ValueError(
            f"{op}: q must be [T, H, Dn + Dr] and w [H, Dn + Dv, {rank}], got {describe(q)} and {describe(w)}"
        )
    nope = q.shape[2] - turned
    value = w.shape[1] - nope
    if nope < 0 or value < 1:
        raise ValueError(
            f"{op}: with {turned} rotated dimensions q {describe(q)} has {nope} others, which leaves {value} of w "
            f"{describe(w)} for values"
        )
    if cache is not None and meta is not None and q.shape[0] != meta.tokens:
        raise ValueError(f"{op}: this meta has {meta.tokens} tokens, got q {describe(q)}")
    return _Sizes(q.shape[1], nope, turned, value, rank)


@_MLA_ATTENTION.reference
def _mla_attention(
    q: Tensor,
    w: Tensor,
    latent: Tensor | None,
    k_rope: Tensor | None,
    cache: KVCache | None,
    meta: SequenceMeta,
    absorb: bool | None,
    sizes: _Sizes,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor]:
    on_host("mla_attention", meta)
    wide = accumulator(q.dtype)
    weights = w.astype(wide, copy=False)
    tables = () if cache is None else _tables(cache, meta)
    results, sums, first = [], [], 0
    for run in meta.runs:
        rows = run.sequences * run.query_length
        queries = q[run.query : run.query + rows].astype(wide, copy=False)
        queries = queries.reshape(run.sequences, run.query_length, *q.shape[1:])
        if cache is None:
            assert latent is not None
            assert k_rope is not None
            latents = _packed(latent, k_rope, run, wide)
        else:
            latents = _cached(cache, tables[first : first + run.sequences], wide)
        absorbed = _cheaper(run, sizes) if absorb is None else absorb
        result, lse = (_absorbed if absorbed else _expanded)(queries, weights, latents, run.key_length, sizes, options)
        results.append(result.reshape(rows, sizes.heads, sizes.value))
        sums.append(lse.reshape(rows, sizes.heads))
        first += run.sequences
    if not results:
        results.append(fa.zeros((0, sizes.heads, sizes.value), dtype=wide, device=q.device))
        sums.append(fa.zeros((0, sizes.heads), dtype=wide, device=q.device))
    return fa.concat(results).astype(q.dtype, copy=False), fa.concat(sums)


def _tables(cache: KVCache, meta: SequenceMeta) -> tuple[tuple[int, ...], ...]:
    return block_tables("mla_attention", cache.spec, meta)


def _cheaper(run: Run, sizes: _Sizes) -> bool:
    """Whether absorbing takes fewer multiplications; for one head and one sequence."""
    queries, keys = run.query_length, run.key_length
    made = (sizes.nope + sizes.value) * sizes.rank
    absorbing = queries * (made + keys * (2 * sizes.rank + sizes.rope))
    expanding = keys * made + queries * keys * (sizes.nope + sizes.rope + sizes.value)
    return absorbing <= expanding


def _packed(latent: Tensor, k_rope: Tensor, run: Run, wide: fa.Dtype) -> _Latents:
    seen = slice(run.key, run.key + run.sequences * run.key_length)
    shape = (run.sequences, run.key_length)
    latents, turned = (x[seen].astype(wide, copy=False).reshape(*shape, x.shape[1]) for x in (latent, k_rope))
    return lambda start, stop: (latents[:, start:stop], turned[:, start:stop])


def _cached(cache: KVCache, tables: tuple[tuple[int, ...], ...], wide: fa.Dtype) -> _Latents:
    def rows(start: int, stop: int) -> tuple[Tensor, Tensor]:
        slots = [block_slots(table, cache.spec.block_size, range(start, stop)) for table in tables]
        index = fa.asarray(slots, dtype=fa.int64, device=cache.device)
        latents = read(cache.k, cache.k_scale, index, wide)
        turned = read(cache.v, cache.v_scale, index, wide)
        return latents[:, :, 0], turned[:, :, 0]

    return rows


def _absorbed(
    q: Tensor, w: Tensor, latents: _Latents, keys: int, sizes: _Sizes, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """Queries take on what makes keys, results what makes values: q [S, T, H, D] to [S, T, H, Dv]."""
    # [S, H, T, Dn] @ [H, Dn, R]
    inner = fa.moveaxis(q[..., : sizes.nope], -2, -3) @ w[:, : sizes.nope]
    queries = fa.concat((fa.moveaxis(inner, -3, -2), q[..., sizes.nope :]), axis=-1)

    def rows(start: int, stop: int) -> tuple[Tensor, Tensor]:
        latent, turned = latents(start, stop)
        return fa.concat((latent, turned), axis=-1)[:, None], latent[:, None]

    result, lse = tiled(queries, rows, (keys, 1, sizes.rank), None, options)
    out = fa.moveaxis(result, -2, -3) @ w[:, sizes.nope :].mT
    return fa.moveaxis(out, -3, -2), lse


def _expanded(
    q: Tensor, w: Tensor, latents: _Latents, keys: int, sizes: _Sizes, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """Keys and values are made from the latents: q [S, T, H, D] to [S, T, H, Dv]."""

    def rows(start: int, stop: int) -> tuple[Tensor, Tensor]:
        latent, turned = latents(start, stop)
        both = latent[:, None] @ w.mT  # [S, H, length, Dn + Dv]
        shared = fa.broadcast_to(turned[:, None], (*both.shape[:-1], sizes.rope))
        return fa.concat((both[..., : sizes.nope], shared), axis=-1), both[..., sizes.nope :]

    return tiled(q, rows, (keys, sizes.heads, sizes.value), None, options)
