"""Scaled dot-product attention, dense or over packed sequences."""

from __future__ import annotations

from typing import Literal, overload

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, describe, floating, instance
from ferrum_ops.registry import Op
from ferrum_ops.tiled import AttentionOptions, check_options, check_order, default_scale, dense
from ferrum_ops.types import SequenceMeta

__all__ = ["attention"]

# Takes q, k, v, bias, meta and the options; gives the result and the log-sum-exp, which may be None where the feature
# "lse" is not asked for. A bias has all axes of the scores.
_ATTENTION: Op[tuple[Tensor, Tensor | None]] = Op("attention")


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    meta: SequenceMeta | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    meta: SequenceMeta | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    meta: SequenceMeta | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(cap(scale q k) + bias) v`` for each head: the mean of the values a query sees.

    Shapes: q [..., Tq, H, D], k [..., Tk, Hkv, D] and v [..., Tk, Hkv, Dv] give [..., Tq, H, Dv] in
    the dtype of *q*. H must be a multiple of Hkv; head h reads key head h // (H // Hkv). Sums are
    accumulated in float32 (float64 for float64) and rounded once. Scores exist for blocks of
    queries and keys only, so memory grows with Tq and Tk, not with their product.

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: factor of the scores; 1 / sqrt(D) if absent.
        causal: query i sees the keys up to Tk - Tq + i: the last query is level with the last key.
            Where Tq > Tk, the first queries see nothing.
        window: of those keys, only the last *window*, its own counted. Needs *causal*.
        softcap: scores become ``softcap * tanh(score / softcap)``, before bias and mask.
        sinks: [H], one more score per head, which takes its share of the softmax without a value.
        bias: added to the scores; broadcasts to [..., H, Tq, Tk]. -inf hides a key.
        meta: packed sequences: q [T, H, D] holds them one after another as ``cu_seqlens`` says, k
            and v as ``kv_lens`` says (without it, as q). Refused with it: *bias*, paged caches
            (``block_tables``, ``slots``), and causal with ``positions`` out of order.
        return_lse: also return the logarithm of the sum of exponentials, [..., Tq, H], sinks
            included, in float32 (float64 for float64).

    A query that sees no key gives 0; its log-sum-exp is -inf, or the sink where there is one. The
    last bits of a sequence may depend on its neighbours in a batch, because the storage library
    chooses its kernel by shape.

    Source: Vaswani et al., "Attention is all you need", 2017; Rabe and Staats, "Self-attention does
    not need O(n^2) memory", 2021, for the blocks; Ainslie et al., "GQA", 2023; Xiao et al.,
    "Efficient streaming language models with attention sinks", 2023.

    Raises:
        TypeError: for different dtypes of q, k and v, or anything not real floating-point.
        ValueError: for shapes, head counts or devices that do not fit, a window without *causal*,
            and parameters that are out of range or cannot be honoured together.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import attention
        >>> x = fa.asarray([[[1.0]], [[2.0]]])
        >>> attention(fa.zeros((2, 1, 1)), x, x)
        Tensor([[[1. ]],
        <BLANKLINE>
                [[1.5]]])
    """
    _check_operands(q, k, v)
    options = AttentionOptions(default_scale("attention", scale, q), bool(causal), window, softcap, sinks)
    options = check_options("attention", options, q)
    if meta is not None:
        _check_meta(meta, q, k, bias, options)
    elif bias is not None:
        bias = _checked_bias(bias, q, k)
    features = (
        *options.features,
        *(() if bias is None else ("bias",)),
        *(() if meta is None else ("meta",)),
        *(("lse",) if return_lse else ()),
    )
    result, lse = _ATTENTION(q.device, (q.dtype,), features, q, k, v, bias, meta, options)
    return result if not return_lse or lse is None else (result, lse)


# What is asked for.


def _check_operands(q: Tensor, k: Tensor, v: Tensor) -> None:
    for what, x in (("q", q), ("k", k), ("v", v)):
        floating("attention", what, x)
        if x.ndim < 3:
            raise ValueError(f"attention: {what} must be [..., T, H, D], got {describe(x)}")
        alike("attention", q, what, x)
    given = f"got q {describe(q)}, k {describe(k)}, v {describe(v)}"
    if q.shape[:-3] != k.shape[:-3] or k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"attention: q, k and v must share the axes before T, k and v also T and heads; {given}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"attention: q and k must share the head dimension; {given}")
    heads, key_heads = q.shape[-2], k.shape[-2]
    if not key_heads or heads % key_heads:
        raise ValueError(
            f"attention: {heads} query heads are not a multiple of {key_heads} key heads; {given}; the layout is "
            "[..., T, H, D], tokens before heads"
        )


def _checked_bias(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    floating("attention", "bias", bias)
    alike("attention", q, "bias", bias, dtype=False)
    want = (*q.shape[:-3], q.shape[-2], q.shape[-3], k.shape[-3])
    short = len(want) - bias.ndim
    if short < 0 or any(n not in (1, m) for n, m in zip(bias.shape, want[short:], strict=True)):
        raise ValueError(f"attention: bias must broadcast to [..., H, Tq, Tk], {want}, got {describe(bias)}")
    return bias.reshape(*(1,) * short, *bias.shape)


def _check_meta(meta: SequenceMeta, q: Tensor, k: Tensor, bias: Tensor | None, options: AttentionOptions) -> None:
    instance("attention", "meta", meta, SequenceMeta, "SequenceMeta.packed(lengths)")
    if meta.block_tables is not None or meta.slots is not None:
        raise ValueError(
            "attention: k and v are packed here, but meta has block_tables or slots, "
            "which belong to a paged cache; leave them out"
        )
    if bias is not None:
        raise ValueError(
            "attention: bias and meta together are not defined, because packed sequences have no common [Tq, Tk]"
        )
    keys = sum(meta.key_lengths)
    if q.ndim != 3 or q.shape[0] != meta.tokens or k.shape[0] != keys:
        raise ValueError(
            f"attention: with this meta q must be [{meta.tokens}, H, D] and k [{keys}, Hkv, D], "
            f"got q {describe(q)} and k {describe(k)}"
        )
    check_order("attention", meta, options)


# The work.


@_ATTENTION.reference
def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, meta: SequenceMeta | None, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    wide = accumulator(q.dtype)
    if options.sinks is not None:
        options = options._replace(sinks=options.sinks.astype(wide, copy=False))
    queries, keys, values = (x.astype(wide, copy=False) for x in (q, k, v))
    if meta is None:
        result, lse = dense(queries, keys, values, None if bias is None else bias.astype(wide, copy=False), options)
    else:
        result, lse = _packed(queries, keys, values, meta, options)
    return result.astype(q.dtype, copy=False), lse


def _packed(q: Tensor, k: Tensor, v: Tensor, meta: SequenceMeta, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    results, sums = [], []
    for run in meta.runs:
        rows = run.sequences * run.query_length
        many = slice(run.query, run.query + rows)
        seen = slice(run.key, run.key + run.sequences * run.key_length)
        queries = q[many].reshape(run.sequences, run.query_length, *q.shape[1:])
        keys, values = (x[seen].reshape(run.sequences, run.key_length, *x.shape[1:]) for x in (k, v))
        result, lse = dense(queries, keys, values, None, options)
        results.append(result.reshape(rows, *result.shape[2:]))
        sums.append(lse.reshape(rows, *lse.shape[2:]))
    if not results:  # no sequence at all
        return dense(q, k, v, None, options)
    if len(results) == 1:
        return results[0], sums[0]
    return fa.concat(results), fa.concat(sums)
