"""Rows of ``rope`` and ``qk_norm_rope``, and of both with ``kv_append``: one launch for queries, keys and values."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Final, NamedTuple

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.caching import owned
from ferrum_ops.kernels.cuda.launch import Kernel, empty, power_of_two
from ferrum_ops.kernels.cuda.layouts import heads, in_order, rows
from ferrum_ops.kernels.cuda.plans import slots_of
from ferrum_ops.kernels.cuda.source import ropes as source
from ferrum_ops.kv_cache import KVCache
from ferrum_ops.types import SequenceMeta

__all__ = ["qk_norm_rope", "rope", "rope_append"]

_ALIGNED: Final = (
    *("size", "value_size", "units", "table_step"),
    *("q_token", "q_head", "k_token", "k_head", "v_token", "v_head"),
)
_TURN = Kernel(source.turn, aligned=_ALIGNED)

_TILE: Final = 1024  # elements
_SHORTEST: Final = 16
_UNIT: Final = 8  # elements: 16 bytes of 16 bits
_FEW: Final = 256  # tokens, which leave most of a GPU idle


def _block(size: int) -> int:
    """The length of a block for so many elements; not every length has its own code."""
    return max(_SHORTEST, power_of_two(size))


@cache
def _shape(tokens: int, fewest: int, length: int) -> tuple[int, int, int]:
    """How many tokens and heads a program has, and how many warps."""
    many = max(1, min(power_of_two(fewest), _TILE // length))
    together = max(1, min(_TILE // (many * length), power_of_two(tokens)))
    share = _TILE // 4 if tokens <= _FEW else _TILE  # elements of a warp
    return together, many, max(1, min(8, together * many * length // share))


def _tables(cos: Tensor, sin: Tensor, before: tuple[int, ...]) -> tuple[Tensor, Tensor, int | None, int | None]:
    """The tables, after how many tokens they begin again, and how far rows are apart; None for what is plain."""
    shape = cos._data.shape[:-1]
    if shape == before and cos._data.flags.c_contiguous and sin._data.flags.c_contiguous:
        return cos, sin, None, None
    while shape and shape[0] == 1:
        shape = shape[1:]
    if shape != before[len(before) - len(shape) :]:
        cos, sin = (fa.broadcast_to(table, (*before, table.shape[-1])) for table in (cos, sin))
        shape = before
    cos, step = rows(cos)
    sin, other = rows(sin)
    if step != other:
        cos, sin = in_order(cos), in_order(sin)
        step = cos._data.shape[-1]
    return cos, sin, prod(shape), step


def _heads(x: Tensor | None) -> tuple[Tensor | None, int | None, int | None]:
    """*x* [..., T, H, D] and its steps from token to token and from head to head, None where there are no gaps."""
    return (x, None, None) if x is None or x._data.flags.c_contiguous else heads(x)


class Written(NamedTuple):
    """Where keys and values go: values, the rows of the tokens, and the memory of a cache."""

    v: Tensor
    slots: Tensor
    k_out: Tensor
    v_out: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None


def turn(
    q: Tensor,
    k: Tensor | None,
    wq: Tensor | None,
    wk: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    norm: tuple[float, float] | None,
    rotary_dim: int,
    interleaved: bool,
    written: Written | None = None,
) -> tuple[Tensor, Tensor | None]:
    """q and k turned, after a norm of eps and offset if there is one; k and v into a cache if there is one."""
    *before, count, size = q._data.shape
    out = empty(q._data.shape, q)
    k_heads = 0 if k is None else k._data.shape[-2]
    k_out = written.k_out if written is not None else None if k is None else empty(k._data.shape, k)
    tokens = prod(before)
    if not tokens or not (count or k_heads):
        return out, k_out
    cos, sin, period, table_step = _tables(cos, sin, tuple(before))
    placed, *steps = _heads(q)
    k, *k_steps = _heads(k)
    v, *v_steps = _heads(None if written is None else written.v)
    value_size = None if v is None else v._data.shape[-1]
    held = None if written is None else written.k_out._data.shape[0]
    half = rotary_dim // 2
    unit = 1 if half % _UNIT else _UNIT
    rest = size - rotary_dim
    block = _block(half)
    rest_block = _block(rest) if rest else 0
    value_block = _block(value_size or 0)
    length = max(2 * block + rest_block, value_block)
    together, many, warps = _shape(tokens, min(count, k_heads) or max(count, k_heads), power_of_two(length))
    parts = -(-count // many) + -(-k_heads // many) * (1 if v is None else 2)
    eps, offset = (None, None) if norm is None else (float(norm[0]), float(norm[1]) or None)
    _TURN(
        (-(-tokens // together) * parts,),
        *(placed, k, v, None if wq is None else in_order(wq), None if wk is None else in_order(wk), cos, sin),
        *((None,) if written is None else (written.slots,)),
        *(out, k_out),
        *((None, None, None) if written is None else (written.v_out, written.k_scale, written.v_scale)),
        *(tokens, held, count, k_heads, size, value_size, half // unit, period),
        *(*steps, *k_steps, *v_steps, table_step, eps, offset),
        warps=warps,
        PAIRS=interleaved,
        TOKENS=together,
        HEADS=many,
        HALF=block,
        REST=rest_block,
        VALUE=value_block,
        UNIT=unit,
    )
    return out, k_out


def rope(x: Tensor, cos: Tensor, sin: Tensor, rotary_dim: int, interleaved: bool) -> Tensor:
    """The op."""
    return turn(x, None, None, None, cos, sin, None, rotary_dim, interleaved)[0]


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    wq: Tensor | None,
    wk: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    offset: float,
    rotary_dim: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """The op; nothing is rounded between norm and turn."""
    queries, keys = turn(q, k, wq, wk, cos, sin, (eps, offset), rotary_dim, interleaved)
    assert keys is not None
    return queries, keys


def rope_append(
    cache: KVCache,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    meta: SequenceMeta,
    wq: Tensor | None,
    wk: Tensor | None,
    norm: tuple[float, float] | None,
    rotary_dim: int,
    interleaved: bool,
) -> Tensor:
    """The op; turned keys are rounded once, to the dtype of the cache."""
    written = Written(
        v,
        slots_of(cache.spec, meta, q.device),
        owned(cache.k),
        owned(cache.v),
        None if cache.k_scale is None else owned(cache.k_scale),
        None if cache.v_scale is None else owned(cache.v_scale),
    )
    return turn(q, k, wq, wk, cos, sin, norm, rotary_dim, interleaved, written)[0]
