"""Attention block by block: scores exist for some queries and some keys at a time.

Source: Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021; Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import alike, describe, finite, floating
from ferrum_ops.planning import Tile, tiles
from ferrum_ops.types import SequenceMeta

__all__ = [
    "AttentionOptions",
    "Reader",
    "check_options",
    "check_order",
    "default_scale",
    "dense",
    "in_memory",
    "tiled",
]

_QUERY_BLOCK = 256
_KEY_BLOCK = 512

#: a window as wide as this sees all that comes before; places minus wider ones would leave the range of int64
_WIDEST = 1 << 62

#: gives the keys and values from one place to another, each [..., Hkv, length, *], in the dtype of the sums
Reader = Callable[[int, int], tuple[Tensor, Tensor]]


class AttentionOptions(NamedTuple):
    """What attention does beside the plain thing, checked; see ``attention``."""

    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """The names of those in use, for the registry."""
        return (
            *(() if self.causal else ("full",)),
            *(() if self.window is None else ("window",)),
            *(() if self.softcap is None else ("softcap",)),
            *(() if self.sinks is None else ("sinks",)),
        )


def default_scale(op: str, scale: float | None, q: Tensor) -> float:
    """*scale*, or 1 / sqrt(D).

    Raises:
        ValueError: if it is not finite, or D is 0.
    """
    if scale is None:
        if not q.shape[-1]:
            raise ValueError(f"{op}: q {describe(q)} has head dimension 0, so scale is needed")
        return 1.0 / math.sqrt(q.shape[-1])
    if not finite(op, "scale", scale):
        raise ValueError(f"{op}: scale must be finite, got {scale}")
    return float(scale)


def check_options(op: str, options: AttentionOptions, q: Tensor) -> AttentionOptions:
    """*options*, once window, softcap and sinks are checked for queries *q*.

    Raises:
        ValueError: naming *op* and what is out of range. TypeError: for sinks that are not floating-point.
    """
    window, softcap, sinks = options.window, options.softcap, options.sinks
    if window is not None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(
                f"{op}: window must be an integer of at least 1, because it counts the token itself, got {window!r}"
            )
        if not options.causal:
            raise ValueError(f"{op}: window={window} looks back from each token and needs causal=True")
    if softcap is not None and not (finite(op, "softcap", softcap) and softcap > 0):
        raise ValueError(f"{op}: softcap must be finite and above 0, or None, got {softcap}")
    if sinks is not None:
        floating(op, "sinks", sinks)
        alike(op, q, "sinks", sinks, dtype=False)
        if sinks.shape != (q.shape[-2],):
            raise ValueError(f"{op}: sinks must have one entry for each of {q.shape[-2]} heads, got {describe(sinks)}")
    return options if window is None else options._replace(window=min(window, _WIDEST))


def check_order(op: str, meta: SequenceMeta, options: AttentionOptions) -> None:
    """Check that the tokens of *meta* are the last ones of their sequences where that decides what they see.

    Raises:
        ValueError: naming *op*.
    """
    if options.causal and not meta.in_order:
        raise ValueError(
            f"{op}: causal is not implemented for meta.positions that are not the last places "
            "of each sequence in order; leave positions out if the tokens are the last ones"
        )


def in_memory(k: Tensor, v: Tensor) -> Reader:
    """A reader of keys and values [..., T, Hkv, *] that lie side by side."""
    k, v = (fa.moveaxis(x, -2, -3) for x in (k, v))
    return lambda start, stop: (k[..., start:stop, :], v[..., start:stop, :])


def dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """Attention of q [..., Tq, H, D] to k and v [..., Tk, Hkv, *]: the result and the log-sum-exp [..., Tq, H]."""
    return tiled(q, in_memory(k, v), (k.shape[-3], k.shape[-2], v.shape[-1]), bias, options)


def tiled(
    q: Tensor, read: Reader, keys: tuple[int, int, int], bias: Tensor | None, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """The same with keys and values that are read when they are needed; *keys* is their number, Hkv and Dv."""
    count, heads, _ = q.shape[-3:]
    length, key_heads, value_dim = keys
    offset = length - count
    q = fa.moveaxis(q * options.scale, -2, -3)  # heads first: [..., H, T, D]
    parts = []
    for first in range(0, max(count, 1), _QUERY_BLOCK):
        last = min(first + _QUERY_BLOCK, count)
        plan = tiles(first, last, length, offset, options.causal, options.window, _KEY_BLOCK)
        # Heads that share keys are rows of one product: [..., Hkv, G * Tq, D].
        group = heads // key_heads * (last - first)
        rows = q[..., first:last, :].reshape(*q.shape[:-3], key_heads, group, q.shape[-1])
        if bias is not None and bias.shape[-2] != 1:
            piece: Tensor | None = bias[..., first:last, :]
        else:
            piece = bias
        parts.append(_block(rows, read, value_dim, piece, options, plan, (heads, first, last, offset)))
    if len(parts) == 1:
        result, lse = parts[0]
    else:
        result, lse = (fa.concat([part[i] for part in parts], axis=-2) for i in (0, 1))
    return fa.moveaxis(result, -3, -2), fa.moveaxis(lse[..., 0], -2, -1)


def _block(
    q: Tensor,
    read: Reader,
    value_dim: int,
    bias: Tensor | None,
    options: AttentionOptions,
    plan: tuple[Tile, ...],
    place: tuple[int, int, int, int],
) -> tuple[Tensor, Tensor]:
    """One block of queries, [..., Hkv, G * Tq, D], against its tiles of keys.

    It keeps the greatest score so far, *top*, and relative to it the sum of the exponentials,
    *total*, and the weighted sum of the values, *result*; all [..., H, Tq, *].
    """
    heads, first, last, offset = place
    rows = (*q.shape[:-3], heads, last - first)
    result = fa.zeros((*rows, value_dim), dtype=q.dtype, device=q.device)
    if options.sinks is None:
        top = fa.full((*rows, 1), -math.inf, dtype=q.dtype, device=q.device)
        total = fa.zeros((*rows, 1), dtype=q.dtype, device=q.device)
    else:
        top = fa.broadcast_to(options.sinks.reshape(heads, 1, 1), (*rows, 1))
        total = fa.ones((*rows, 1), dtype=q.dtype, device=q.device)
    empty = options.sinks is None
    for tile in plan:
        keys, values = read(tile.start, tile.stop)
        scores = (q @ keys.mT).reshape(*rows, tile.stop - tile.start)
        if options.softcap is not None:
            scores = fa.tanh(scores * (1.0 / options.softcap)) * options.softcap
        if bias is not None:
            scores = scores + (bias if bias.shape[-1] == 1 else bias[..., tile.start : tile.stop])
        if tile.masked:
            mask = _mask(tile, first, last, offset, options.window, q)
            scores = fa.where(mask, scores, -math.inf)
        new_top = fa.maximum(top, fa.max(scores, axis=-1, keepdims=True))
        # where all is -inf, exp(-inf - 0) is the 0 that is wanted and exp(-inf + inf) a NaN
        base = fa.where(new_top == -math.inf, 0.0, new_top)
        scores -= base
        weights = fa.exp(scores)
        weights_grouped = weights.reshape(*q.shape[:-1], tile.stop - tile.start)
        seen = (weights_grouped @ values).reshape(result.shape)
        sum_ = fa.sum(weights, axis=-1, keepdims=True)
        if empty:  # nothing to rescale yet
            total, result, empty = sum_, seen, False
        else:
            shrink = fa.exp(top - base)
            total, result = total * shrink + sum_, result * shrink + seen
        top = new_top
    nothing = total == 0.0
    return result / fa.where(nothing, 1.0, total), fa.where(nothing, -math.inf, top + fa.log(total))


def _mask(tile: Tile, first: int, last: int, offset: int, window: int | None, like: Tensor) -> Tensor:
    """Which keys of the tile each query sees, [Tq, tile], as ``planning.visible`` says."""
    place = fa.arange(first + offset, last + offset, device=like.device).reshape(last - first, 1)
    keys = fa.arange(tile.start, tile.stop, device=like.device)
    seen = keys <= place
    return seen if window is None else fa.logical_and(seen, keys > place - window)
