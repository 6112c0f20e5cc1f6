"""``attention`` by MLX's fused function.

MLX fuses on its GPUs, for some head dimensions, with scores and sums in float32. Everywhere else it composes products
and a softmax, with scores in the dtype of the operands. There 16-bit operands are widened first, so that a score keeps
its digits.
"""

from __future__ import annotations

from math import prod
from typing import Any

import mlx.core as mx

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.mlx.calls import on_gpu, run
from ferrum_ops.tiled import AttentionOptions
from ferrum_ops.types import SequenceMeta

__all__ = ["attention", "fits"]

#: Head dimensions that MLX fuses for up to _FEW queries, and for more.
_FUSED_FEW, _FUSED_MANY, _FEW = frozenset((64, 96, 128, 256)), frozenset((64, 80, 128)), 8

#: How many scores, or entries of a mask, may exist at a time.
_MOST = 1 << 26


def fits(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, meta: SequenceMeta | None, options: AttentionOptions
) -> str | None:
    """Why attention is left to others, or None."""
    queries, keys = q.shape[-3], k.shape[-3]
    if not (q.size and k.size and v.size):
        return "takes at least one query, key and value"
    if options.causal and queries > keys:
        return f"takes at most as many queries as keys where they are causal, got {queries} and {keys}"
    entries = 0 if _fused(q, k, v) else prod(q.shape[:-1]) * keys
    if bias is not None or _windowed(options, keys):
        entries = max(entries, queries * keys)
    if bias is not None:
        entries = max(entries, prod(bias.shape[:-2]) * queries * keys)
    return f"takes up to {_MOST} scores or entries of a mask at once, got {entries}" if entries > _MOST else None


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, meta: None, options: AttentionOptions
) -> tuple[Tensor, None]:
    """All but soft caps, packed sequences and the log-sum-exp."""
    lead = q.shape[:-3]
    work = _dtype_of_work(q, k, v, bias, options.sinks)
    operands = [_heads_first(x, lead).astype(work, copy=False) for x in (q, k, v)]
    more: dict[str, Any] = {"scale": options.scale}
    if options.sinks is not None:
        more["sinks"] = options.sinks.astype(work, copy=False)
    mask, hidden = _mask(q, k, bias, options, work)
    if mask is not None:
        more["mask"] = mask
    elif options.causal and q.shape[-3] > 1:
        more["mask"] = "causal"
    y = run(mx.fast.scaled_dot_product_attention, *operands, **more)
    if hidden is not None:
        y = fa.where(hidden, fa.zeros((), dtype=work, device=y.device), y)
    y = fa.moveaxis(y, -3, -2)
    return y.reshape(*lead, *y.shape[1:]).astype(q.dtype, copy=False), None


def _heads_first(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """[..., T, H, D] as [B, H, T, D]."""
    return fa.moveaxis(x if len(lead) == 1 else x.reshape(prod(lead), *x.shape[-3:]), -2, -3)


def _windowed(options: AttentionOptions, keys: int) -> bool:
    return options.window is not None and options.window < keys


def _fused(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether MLX surely has a fused kernel for these."""
    queries, heads, dim = q.shape[-3:]
    if not on_gpu(q) or v.shape[-1] != dim:
        return False
    if queries > _FEW:
        return dim in _FUSED_MANY
    return dim in _FUSED_FEW and queries <= k.shape[-3] and queries * (heads // k.shape[-2]) <= 32


def _dtype_of_work(q: Tensor, k: Tensor, v: Tensor, *others: Tensor | None) -> Dtype:
    """That of q where a fused kernel takes all operands in it."""
    alike = all(other is None or other.dtype is q.dtype for other in others)
    return q.dtype if alike and _fused(q, k, v) else Dtype.F32


def _mask(
    q: Tensor, k: Tensor, bias: Tensor | None, options: AttentionOptions, work: Dtype
) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the scores, or which of them count, if MLX must be told; and which queries see nothing.

    MLX gives a query without keys their mean, or NaN.
    """
    queries, keys = q.shape[-3], k.shape[-3]
    seen = None
    if options.causal and (bias is not None or _windowed(options, keys)):
        place = fa.expand_dims(fa.arange(keys - queries, keys, device=q.device), axis=1)
        key = fa.arange(keys, device=q.device)
        seen = key <= place
        if options.window is not None:
            seen = fa.logical_and(seen, key > place - options.window)
    if bias is None:
        return seen, None
    mask = bias.astype(work, copy=False)
    if seen is not None:
        mask = fa.where(seen, mask, -fa.inf)
    lead, rest = q.shape[:-3], mask.shape[-3:]
    if len(lead) != 1:  # [..., H, Tq, Tk] to [B, H, Tq, Tk]
        whole = prod(mask.shape[:-3]) != 1
        mask = (fa.broadcast_to(mask, (*lead, *rest)) if whole else mask).reshape(prod(lead) if whole else 1, *rest)
    return mask, fa.all(mask == -fa.inf, axis=-1, keepdims=True)
