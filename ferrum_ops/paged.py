"""Attention over a cache of keys and values: prefill, decode and batches of both."""

from __future__ import annotations

from typing import Literal, overload

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, describe, floating
from ferrum_ops.kv_cache import KVCache, KVSpec, cache_of, read
from ferrum_ops.kv_slots import block_tables, reach
from ferrum_ops.planning import block_slots
from ferrum_ops.recorded import on_host
from ferrum_ops.registry import Op
from ferrum_ops.tiled import AttentionOptions, Reader, check_options, check_order, default_scale, tiled
from ferrum_ops.types import SequenceMeta

__all__ = ["paged_attention"]

Tables = tuple[tuple[int, ...], ...]

# Takes q, the cache, meta, its block tables and the options; the log-sum-exp may be None where it is not asked for.
_PAGED_ATTENTION: Op[tuple[Tensor, Tensor | None]] = Op("paged_attention")


@overload
def paged_attention(
    q: Tensor,
    cache: KVCache,
    meta: SequenceMeta,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def paged_attention(
    q: Tensor,
    cache: KVCache,
    meta: SequenceMeta,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def paged_attention(
    q: Tensor,
    cache: KVCache,
    meta: SequenceMeta,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``attention`` of packed queries to the keys and values in *cache*: q [T, H, D] gives [T, H, Dv].

    The tokens of *meta* are the last ones of their sequences: sequence s has ``kv_lens[s]`` keys in the blocks
    ``block_tables[s]``, those of its tokens among them, so ``kv_append`` comes first. A prompt, one new token, a part
    of a prompt, and all of these in one batch are the same call. H must be a multiple of the cache's heads. Options,
    dtypes and the result for queries that see nothing are those of ``attention``; keys and values are read from the
    cache block by block and never beyond ``kv_lens``, so what unused slots hold does not matter.

    Args:
        q: queries, packed.
        cache: with ``spec.head_dim`` D and ``spec.value_dim`` Dv, of any layout and dtype.
        meta: which tokens belong to which sequence, and where its keys lie.
        scale: as in ``attention``, and so are the others.
        causal: the same.
        window: the same. A ring cache needs one, and room for the window and all but one of the new tokens.
        softcap: the same.
        sinks: the same.
        return_lse: the same; [T, H].

    Source: Kwon et al., "Efficient memory management for large language model serving with PagedAttention", 2023.

    Raises:
        TypeError: for anything not real floating-point. ValueError: for shapes, head counts or devices that do not fit,
        a window without *causal*, block tables out of range, lengths beyond the blocks, positions out of order, and
        keys that a ring no longer has.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append, paged_attention
        >>> cache = KVCache.empty(KVSpec(kv_heads=1, head_dim=1, blocks=9, block_size=2, layout="paged"))
        >>> prompt = SequenceMeta((0, 3), block_tables=((7, 2),))
        >>> x = fa.asarray([[[1.0]], [[2.0]], [[6.0]]])
        >>> kv_append(cache, x, x, prompt)
        >>> step = SequenceMeta((0, 1), kv_lens=(3,), block_tables=((7, 2),))
        >>> paged_attention(fa.zeros((1, 2, 1)), cache, step)
        Tensor([[[3.],
                 [3.]]])
    """
    spec = cache_of("paged_attention", cache, meta).spec
    floating("paged_attention", "q", q)
    alike("paged_attention", cache.k, "q", q, dtype=False)
    if q.ndim != 3 or q.shape[0] != meta.tokens or q.shape[2] != spec.head_dim:
        raise ValueError(
            f"paged_attention: q must be [{meta.tokens}, H, {spec.head_dim}] for this meta and {cache!r}, "
            f"got {describe(q)}"
        )
    if q.shape[1] % spec.kv_heads:
        raise ValueError(
            f"paged_attention: {q.shape[1]} query heads are not a multiple of the {spec.kv_heads} heads of {cache!r}"
        )
    options = AttentionOptions(default_scale("paged_attention", scale, q), bool(causal), window, softcap, sinks)
    options = check_options("paged_attention", options, q)
    check_order("paged_attention", meta, options)
    tables = _tables(spec, meta, options)
    features = (
        *options.features,
        *(("ring",) if spec.layout == "ring" else ()),
        *(("lse",) if return_lse else ()),
    )
    result, lse = _PAGED_ATTENTION(q.device, (q.dtype, spec.dtype), features, q, cache, meta, tables, options)
    return result if not return_lse or lse is None else (result, lse)


def _tables(spec: KVSpec, meta: SequenceMeta, options: AttentionOptions) -> Tables:
    """The blocks of each sequence, which must hold all the keys that its tokens see."""
    key = ("read", spec.layout, spec.blocks, spec.block_size, options.causal, options.window)
    known: Tables | None = meta.notes.get(key)
    if known is not None:
        return known
    tables = block_tables("paged_attention", spec, meta)
    for number, (table, tokens, keys) in enumerate(zip(tables, meta.lengths, meta.key_lengths, strict=True)):
        reach("paged_attention", spec, number, table, 0, keys)
        if spec.layout == "ring" and tokens:
            low = 0
            if options.causal and options.window is not None:
                low = max(0, keys - tokens - options.window + 1)
            if keys - low > spec.block_size:
                raise ValueError(
                    f"paged_attention: {tokens} tokens of sequence {number} see keys from position {low} on, but the "
                    f"ring keeps {spec.block_size} and begins at {keys - spec.block_size}; give the window, make the "
                    "ring longer, or give fewer tokens at once"
                )
    meta.notes[key] = tables
    return tables


@_PAGED_ATTENTION.reference
def _paged_attention(
    q: Tensor, cache: KVCache, meta: SequenceMeta, tables: Tables, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    on_host("paged_attention", meta)
    wide = accumulator(q.dtype)
    if options.sinks is not None:
        options = options._replace(sinks=options.sinks.astype(wide, copy=False))
    spec = cache.spec
    results, sums = [], []
    first = 0
    for run in meta.runs:
        rows = run.sequences * run.query_length
        queries = q[run.query : run.query + rows].reshape(run.sequences, run.query_length, *q.shape[1:])
        reader = _reader(cache, tables[first : first + run.sequences], wide)
        keys = (run.key_length, spec.kv_heads, spec.value_dim)
        result, lse = tiled(queries.astype(wide, copy=False), reader, keys, None, options)
        results.append(result.reshape(rows, *result.shape[2:]))
        sums.append(lse.reshape(rows, *lse.shape[2:]))
        first += run.sequences
    if not results:
        shape = (0, q.shape[1])
        results.append(fa.zeros((*shape, spec.value_dim), dtype=wide, device=q.device))
        sums.append(fa.zeros(shape, dtype=wide, device=q.device))
    joined = results[0] if len(results) == 1 else fa.concat(results)
    return joined.astype(q.dtype, copy=False), sums[0] if len(sums) == 1 else fa.concat(sums)


def _reader(cache: KVCache, tables: Tables, wide: fa.Dtype) -> Reader:
    """Reads the keys and values of some sequences of equal lengths, [S, Hkv, length, *]."""
    size, ring = cache.spec.block_size, cache.spec.layout == "ring"

    def rows(start: int, stop: int) -> tuple[Tensor, Tensor]:
        slots = [block_slots(table, size, range(start, stop), ring=ring) for table in tables]
        index = fa.asarray(slots, dtype=fa.int64, device=cache.device)
        keys = read(cache.k, cache.k_scale, index, wide)
        values = read(cache.v, cache.v_scale, index, wide)
        return fa.moveaxis(keys, -2, -3), fa.moveaxis(values, -2, -3)

    return rows
