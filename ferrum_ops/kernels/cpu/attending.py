"""Kernels of ``attention`` and ``paged_attention``: what they have in common is which rows of memory a sequence has."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np

import ferrum_array as fa
from ferrum_array import CaptureError, Tensor
from ferrum_ops.kernels.cpu import decode as decoding
from ferrum_ops.kernels.cpu import flash as prefill
from ferrum_ops.kernels.cpu.arrays import Array, empty, flat, heads, new, plain
from ferrum_ops.kernels.cpu.convert import convert
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.plans import Placed, placed, reading_plan
from ferrum_ops.kernels.cpu.rows import PAIRS
from ferrum_ops.kernels.cpu.scratch import borrow, borrow_line, give_back
from ferrum_ops.kernels.cpu.threads import crew
from ferrum_ops.kernels.cpu.tiles import LANES
from ferrum_ops.kv_cache import KVCache
from ferrum_ops.recorded import records
from ferrum_ops.tiled import AttentionOptions
from ferrum_ops.types import SequenceMeta

__all__ = ["attention", "paged_attention"]

_NO_SCALES: Array = np.empty(0, np.float32)
_NO_TABLES: Array = np.empty(0, np.int64)
_NO_ROWS: Array = np.empty((0, prefill.PLAN), np.int64)
#: sequences of so few rows for each head of keys go to ``decode``
_FEW = 32

Steps = tuple[int, int, int]


class _Keys(NamedTuple):
    """Keys and values as kernels take them: lines, scales (or nothing) and steps; then how blocks are found."""

    k: Array
    k_scales: Array
    k_steps: Steps
    v: Array
    v_scales: Array
    v_steps: Steps
    tables: Array
    block: int
    ring: bool


class _Plan(NamedTuple):
    """What the sequences of a call are: rows for ``flash`` and for ``decode``, and how many units of work they have.

    Where lengths lie in memory, the units of ``decode`` are the most that there may be.
    """

    flash: Array
    flash_units: int
    decode: Array
    decode_units: int
    most_rows: int
    work: int


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, meta: SequenceMeta | None, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """The op."""
    *batch, count, head_count, _ = q._data.shape
    length, key_heads, value_dim = v._data.shape[-3:]
    if meta is None:
        many = math.prod(batch)
        counts: Sequence[int] = (count,) * many
        lengths: Sequence[int] = (length,) * many
    else:
        counts, lengths = meta.lengths, meta.key_lengths
    starts = tuple(accumulate(lengths, initial=0))
    # a bias is for ``flash`` alone
    few = 0 if bias is not None else _FEW
    plan = _planned(counts, lengths, starts, head_count // key_heads, key_heads, options.window, few)
    k_line, k_token, k_head = heads(k)
    v_line, v_token, v_head = heads(v)
    keys = _Keys(
        *(k_line, _NO_SCALES, (k_token, k_head, 0)),
        *(v_line, _NO_SCALES, (v_token, v_head, 0)),
        *(_NO_TABLES, 0, False),
    )
    return _attend(q, keys, key_heads, value_dim, plan, options, _bias(bias, batch))


def _attend(
    q: Tensor,
    keys: _Keys,
    key_heads: int,
    value_dim: int,
    plan: _Plan,
    options: AttentionOptions,
    bias: tuple[Array, tuple[int, ...]],
) -> tuple[Tensor, Tensor]:
    *tokens, head_count, dim = q._data.shape
    out, out_line = new((*tokens, head_count, value_dim), q)
    lse, lse_line = empty((*tokens, head_count), fa.float32, q)
    line, token, head = heads(q)
    sizes = head_count, key_heads, dim, value_dim
    numbers = (
        *(float(options.scale), bool(options.causal)),
        *(options.window or 0, float(options.softcap or 0.0)),
    )
    sinks = _NO_SCALES
    if options.sinks is not None:
        sinks = flat(options.sinks.astype("f32", copy=False))
    # Queries go in and results come out as float32, so that code is compiled for the dtypes of keys alone; but where
    # products of bfloat16 are an instruction, ``decode`` takes queries as they are.
    narrow = q.dtype is not fa.float32
    result = borrow_line(out_line.size) if narrow else out_line
    as_is = PAIRS and q.dtype is fa.bfloat16 and keys.k.dtype == line.dtype
    wide = line
    if narrow and (plan.flash_units or not as_is):
        wide = borrow_line(line.size)
        launch(convert, line, wide, line.size, crew(line.size))
    helpers = crew(plan.work * (dim + value_dim))
    if plan.flash_units:
        scratch = borrow(prefill.scratch_size(dim, value_dim))
        launch(
            prefill.flash,
            *(wide, (token, head), *keys, plan.flash, plan.flash_units, sizes, numbers, sinks),
            *(*bias, result, lse_line, scratch, helpers),
        )
        give_back(scratch)
    if len(plan.decode):
        rows = plan.most_rows
        scratch = borrow(decoding.room(rows, key_heads, value_dim))
        parts = borrow_line(plan.decode_units * decoding.part_size(rows, key_heads, value_dim))
        launch(
            decoding.decode,
            *(line if as_is else wide, (token, head), *keys, plan.decode, (*sizes, rows), numbers, sinks),
            *(result, lse_line, parts, scratch, helpers),
        )
        give_back(scratch, parts)
    if narrow:
        launch(convert, result, out_line, out_line.size, crew(out_line.size))
        give_back(result)
    if wide is not line:
        give_back(wide)
    return out, lse


def _planned(
    counts: Sequence[int],
    lengths: Sequence[int],
    starts: Sequence[int],
    group: int,
    key_heads: int,
    window: int | None,
    few: int,
) -> _Plan:
    """A plan for sequences of so many queries and keys, whose keys (or block tables) begin at *starts*."""
    many: list[tuple[int, ...]] = []
    some: list[tuple[int, ...]] = []
    units = stretches = token = most = work = 0
    for count, length, start in zip(counts, lengths, starts, strict=False):
        rows = count * group
        if count and (rows <= few or (few and count == 1)):
            low = max(0, length - count - window + 1) if window else 0
            first = low // decoding.GRAIN * decoding.GRAIN
            some.append((token, count, start, length, stretches, first))
            stretches += decoding.stretches(max(0, length - first))
            most = max(most, rows)
        elif count:
            many.append((token, count, start, length, units))
            units += key_heads * -(-rows // (prefill.GROUPS * prefill.ROWS))
        work += length * key_heads * max(1, rows // LANES)
        token += count
    table = np.array(many, np.int64) if many else _NO_ROWS
    return _Plan(table, units, np.array(some or np.empty((0, decoding.PLAN)), np.int64), stretches, most, work)


def _bias(bias: Tensor | None, batch: list[int]) -> tuple[Array, tuple[int, ...]]:
    if bias is None:
        return _NO_SCALES, (0, 0, 0, 0)
    shape = (*batch, *bias._data.shape[-3:])
    data = np.ascontiguousarray(np.broadcast_to(bias._data, shape), np.float32)
    steps = [0 if n == 1 else step // 4 for n, step in zip(data.shape[-3:], data.strides[-3:], strict=True)]
    return plain(data.reshape(-1)), (*steps, math.prod(data.shape[-3:]))


class _Tables(NamedTuple):
    """What a batch says about a cache, as arrays, and of whom it was made."""

    meta: weakref.ref[SequenceMeta]
    key: tuple[object, ...]
    tables: Array
    plan: _Plan


#: the last batches; a model asks once for each of its layers
_recent: list[_Tables] = []
_RECENT = 4


@records
def paged_attention(
    q: Tensor, cache: KVCache, meta: SequenceMeta, tables: tuple[tuple[int, ...], ...], options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """The op."""
    spec = cache.spec
    memory = placed("paged_attention", spec, meta)
    if memory is not None:
        return _attend_placed(q, cache, meta, memory, options)
    group = q._data.shape[1] // spec.kv_heads
    key = (group, spec.kv_heads, spec.layout, options.window, tables)
    found = next((one for one in _recent if one.meta() is meta and one.key == key), None)
    if found is None:
        starts = tuple(accumulate(map(len, tables), initial=0))
        plan = _planned(meta.lengths, meta.key_lengths, starts, group, spec.kv_heads, options.window, _FEW)
        found = _Tables(weakref.ref(meta), key, np.array(list(chain(*tables)), np.int64), plan)
        _recent.insert(0, found)
        del _recent[_RECENT:]
    return _attend_cache(q, cache, found.tables, found.plan, options)


def _attend_cache(
    q: Tensor, cache: KVCache, tables: Array, plan: _Plan, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    spec = cache.spec
    keys = _Keys(
        *_held(cache.k, cache.k_scale),
        *_held(cache.v, cache.v_scale),
        *(tables, spec.block_size, spec.layout == "ring"),
    )
    return _attend(q, keys, spec.kv_heads, spec.value_dim, plan, options, (_NO_SCALES, (0, 0, 0, 0)))


def _attend_placed(
    q: Tensor, cache: KVCache, meta: SequenceMeta, memory: Placed, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """The op where lengths lie in memory: few tokens of each sequence, with a plan that is made when it is run."""
    spec = cache.spec
    group = q._data.shape[1] // spec.kv_heads
    most, longest = max(meta.lengths, default=0), max(meta.key_lengths, default=0)
    if most != 1 and most * group > _FEW:
        raise CaptureError(
            f"paged_attention: with lengths in memory a sequence can have {max(1, _FEW // group)} tokens at most, not "
            f"{most}; capture steps of fewer tokens"
        )
    units = len(meta.lengths) * decoding.most_stretches(longest)
    made = reading_plan(spec, meta, memory, options.window or 0)
    work = len(meta.lengths) * longest * spec.kv_heads
    return _attend_cache(q, cache, made.tables, _Plan(_NO_ROWS, 0, made.rows, units, most * group, work), options)


def _held(memory: Tensor, scale: Tensor | None) -> tuple[Array, Array, Steps]:
    _, head_count, dim = memory._data.shape
    return flat(memory), _NO_SCALES if scale is None else flat(scale), (head_count * dim, dim, head_count)
