"""Attention to parts of the keys, put together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, describe, floating, listed
from ferrum_ops.registry import Op

__all__ = ["merge_attention"]

_MERGE_ATTENTION: Op[tuple[Tensor, Tensor]] = Op("merge_attention")


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention to all keys from attention to parts of them: results [..., H, Dv], log-sum-exps [..., H].

    Each part's result counts with ``exp(lse)`` of it. Gives the merged result in the dtype of the first, computed in
    float32 (float64 for float64) and rounded once, and the merged log-sum-exp. A part that saw nothing (-inf) counts
    for nothing, whatever its result holds; where no part saw anything the result is 0 and the log-sum-exp -inf. Sinks
    must be in one part alone, because each log-sum-exp includes those of its call.

    Source: Juravsky et al., "Hydragen", 2024; Dao et al., "FlashAttention", 2022.

    Raises:
        TypeError: for anything but lists, different dtypes, or what is not real floating-point. ValueError: for no
        part at all, lists of different lengths, and shapes or devices that do not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import merge_attention
        >>> first, second = fa.asarray([[[1.0]]]), fa.asarray([[[4.0]]])
        >>> merge_attention([first, second], [fa.asarray([[0.0]]), fa.log(fa.asarray([[2.0]]))])[0]
        Tensor([[[3.]]])
    """
    listed("merge_attention", "outs", outs)
    listed("merge_attention", "lses", lses)
    if not outs or len(outs) != len(lses):
        raise ValueError(f"merge_attention: outs and lses must be lists of one length, got {len(outs)} and {len(lses)}")
    for number, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        for what, x, like in ((f"outs[{number}]", out, outs[0]), (f"lses[{number}]", lse, lses[0])):
            floating("merge_attention", what, x)
            alike("merge_attention", like, what, x)
            if x.shape != like.shape:
                raise ValueError(
                    f"merge_attention: {what} is {describe(x)}, but the first one is {describe(like)}; all parts have "
                    "the same queries"
                )
    alike("merge_attention", outs[0], "lses[0]", lses[0], dtype=False)
    if not outs[0].ndim or outs[0].shape[:-1] != lses[0].shape:
        raise ValueError(
            f"merge_attention: outs must be [..., H, Dv] and lses [..., H], got {describe(outs[0])} and "
            f"{describe(lses[0])}"
        )
    if lses[0].dtype is not accumulator(outs[0].dtype):
        raise TypeError(
            f"merge_attention: lses must be {accumulator(outs[0].dtype)} for outs {describe(outs[0])}, "
            f"got {describe(lses[0])}"
        )
    return _MERGE_ATTENTION(outs[0].device, (outs[0].dtype,), (), tuple(outs), tuple(lses))


@_MERGE_ATTENTION.reference
def _merge_attention(outs: tuple[Tensor, ...], lses: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    sums = fa.stack(lses)
    top = fa.max(sums, axis=0)
    base = fa.where(top == -math.inf, 0.0, top)
    weights = fa.exp(sums - base)
    total = fa.sum(weights, axis=0)
    empty = total == 0.0
    shares = weights / fa.where(empty, 1.0, total)
    zero = fa.zeros((), dtype=sums.dtype, device=sums.device)
    result = zero
    for number, out in enumerate(outs):
        share = fa.expand_dims(shares[number], axis=-1)
        result = result + fa.where(share == 0.0, zero, out.astype(sums.dtype, copy=False) * share)
    return result.astype(outs[0].dtype, copy=False), fa.where(empty, -math.inf, base + fa.log(total))
