"""Kernels of ``attention`` and ``paged_attention``: what they have in common is which rows of memory a sequence has."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.cpu import flash as prefill
from ferrum_ops.kernels.cpu.arrays import Array, empty, heads, new, plain
from ferrum_ops.kernels.cpu.scratch import borrow, give_back
from ferrum_ops.kernels.cpu.threads import crew
from ferrum_ops.tiled import AttentionOptions
from ferrum_ops.types import SequenceMeta

__all__ = ["attention"]

_NO_SCALES: Array = np.empty(0, np.float32)
_NO_TABLES: Array = np.empty(0, np.int64)


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, meta: SequenceMeta | None, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """The op."""
    *batch, count, head_count, dim = q._data.shape
    length, key_heads, value_dim = v._data.shape[-3:]
    out, out_line = new((*batch, count, head_count, value_dim), q)
    lse, lse_line = empty((*batch, count, head_count), fa.float32, q)
    if meta is None:
        many = math.prod(batch)
        counts, lengths = [count] * many, [length] * many
    else:
        counts, lengths = list(meta.lengths), list(meta.key_lengths)
    plan, units = _plan(counts, lengths, head_count // key_heads, key_heads)
    q_line, *q_steps = heads(q)
    k_line, *k_steps = heads(k)
    v_line, *v_steps = heads(v)
    added, bias_steps = _bias(bias, batch)
    scratch = borrow(prefill.scratch_size(dim, value_dim))
    prefill.flash(
        q_line,
        tuple(q_steps),
        k_line,
        _NO_SCALES,
        (*k_steps, 0),
        v_line,
        _NO_SCALES,
        (*v_steps, 0),
        *(_NO_TABLES, 0, False),
        plan,
        units,
        (head_count, key_heads, dim, value_dim),
        (float(options.scale), bool(options.causal), options.window or 0, float(options.softcap or 0.0)),
        _sinks(options),
        added,
        bias_steps,
        out_line,
        lse_line,
        scratch,
        crew(1 << 20),
    )
    give_back(scratch)
    return out, lse


def _plan(counts: list[int], lengths: list[int], group: int, key_heads: int) -> tuple[Array, int]:
    """For each sequence where its queries and keys begin, how many there are, and the number of its first unit."""
    block = prefill.GROUPS * prefill.ROWS
    units = [key_heads * (-(-count * group // block)) for count in counts]
    plan = np.empty((len(counts), prefill.PLAN), np.int64)
    starts = list(accumulate(units, initial=0))
    plan[:, prefill.Q_FIRST] = list(accumulate(counts, initial=0))[:-1]
    plan[:, prefill.Q_COUNT] = counts
    plan[:, prefill.K_FIRST] = list(accumulate(lengths, initial=0))[:-1]
    plan[:, prefill.K_COUNT] = lengths
    plan[:, prefill.UNIT] = starts[:-1]
    return plan, starts[-1]


def _sinks(options: AttentionOptions) -> Array:
    if options.sinks is None:
        return _NO_SCALES
    return plain(np.ascontiguousarray(options.sinks._data, np.float32))


def _bias(bias: Tensor | None, batch: list[int]) -> tuple[Array, Any]:
    if bias is None:
        return _NO_SCALES, (0, 0, 0, 0)
    shape = (*batch, *bias._data.shape[-3:])
    data = np.ascontiguousarray(np.broadcast_to(bias._data, shape), np.float32)
    steps = [0 if n == 1 else step // 4 for n, step in zip(data.shape[-3:], data.strides[-3:], strict=True)]
    return plain(data.reshape(-1)), (*steps, math.prod(data.shape[-3:]))
