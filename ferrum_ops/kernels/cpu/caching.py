"""Kernels of ``kv_append``, ``kv_gather`` and ``kv_copy_blocks``: one pass over the rows of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.cpu.arrays import Array, empty, flat, written
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.intrinsics import INFINITE, from_bits, get, magnitude, put, put_int
from ferrum_ops.kernels.cpu.jit import EXACT, jit
from ferrum_ops.kernels.cpu.plans import placed
from ferrum_ops.kernels.cpu.threads import crew, rows_each, share
from ferrum_ops.kv_cache import GREATEST_SCALE, KVCache
from ferrum_ops.recorded import records
from ferrum_ops.types import SequenceMeta

__all__ = ["kv_append", "kv_copy_blocks", "kv_gather"]

_ZERO, _ONE, _MOST, _NAN = np.float32(0.0), np.float32(1.0), np.float32(127.0), np.float32(np.nan)
_GREATEST = np.float32(GREATEST_SCALE)
_NO_SCALES: Array = np.empty(0, np.float32)


@jit(fastmath=EXACT, inner=True)
def _write_rows(x: Any, slots: Any, many: int, memory: Any, first: int, end: int) -> None:
    for token in range(first, end):
        at, to = token * many, slots[token] * many
        if to < 0 or to + many > memory.size:  # nowhere
            continue
        for i in range(many):
            put(memory, to + i, get(x, at + i))


@jit(fastmath=EXACT, inner=True)
def _quantise_rows(x: Any, slots: Any, heads: int, size: int, memory: Any, scales: Any, first: int, end: int) -> None:
    """A scale for each head of each token; numbers are divided by it, as the reference does, to have its bytes."""
    for token in range(first, end):
        if slots[token] < 0 or (slots[token] + 1) * heads > scales.size:  # nowhere
            continue
        for head in range(heads):
            at, row = (token * heads + head) * size, slots[token] * heads + head
            most = np.int32(0)
            for i in range(size):
                # by their bits, of which maxima become vectors: NaN is above all
                most = max(most, magnitude(get(x, at + i)))
            if most >= INFINITE:
                for i in range(size):
                    put_int(memory, row * size + i, _ZERO)
                put(scales, row, _NAN)
                continue
            scale = from_bits(most) / _MOST
            scale = _GREATEST if scale > _GREATEST else scale
            step = scale if scale > _ZERO else _ONE
            for i in range(size):
                # a scale that has lost digits, far below 1, may be too small for the greatest number
                number = get(x, at + i) / step
                number = _MOST if number > _MOST else number
                put_int(memory, row * size + i, -_MOST if number < -_MOST else number)
            put(scales, row, scale)


@jit
def _append(x: Any, slots: Any, many: int, memory: Any, crew: int) -> None:
    share(crew, task(_write_rows, (x, slots, many, memory)), slots.size, rows_each(many))


@jit
def _quantise(x: Any, slots: Any, heads: int, size: int, memory: Any, scales: Any, crew: int) -> None:
    share(crew, task(_quantise_rows, (x, slots, heads, size, memory, scales)), slots.size, rows_each(heads * size))


@records
def kv_append(cache: KVCache, k: Tensor, v: Tensor, slots: tuple[int, ...], meta: SequenceMeta) -> None:
    """The op."""
    found = placed("kv_append", cache.spec, meta)
    # of the host's slots the notes keep those alive that they have places for
    places = meta.notes.get(("cpu slots", id(slots))) if found is None else flat(found.slots)
    if places is None:
        places = meta.notes[("cpu slots", id(slots))] = np.array(slots, np.int64)
    # all that may fail first: what is read may be memory that is written, which then moves; both may need memory
    lines = flat(k), flat(v)
    memories = written(cache.k), written(cache.v)
    scales = [None if scale is None else written(scale) for scale in (cache.k_scale, cache.v_scale)]
    for x, line, memory, scale in zip((k, v), lines, memories, scales, strict=True):
        _, heads, size = x._data.shape
        if scale is None:
            launch(_append, line, places, heads * size, memory, crew(2 * line.size))
        else:
            launch(_quantise, line, places, heads, size, memory, scale, crew(3 * line.size))


@jit(fastmath=EXACT, inner=True)
def _read_rows(memory: Any, scales: Any, slots: Any, heads: int, size: int, out: Any, first: int, end: int) -> None:
    for token in range(first, end):
        for head in range(heads):
            row, to = slots[token] * heads + head, (token * heads + head) * size
            if scales.size:
                scale = get(scales, row)
                for i in range(size):
                    put(out, to + i, get(memory, row * size + i) * scale)
            else:
                for i in range(size):
                    put(out, to + i, get(memory, row * size + i))


@jit
def _gather(memory: Any, scales: Any, slots: Any, heads: int, size: int, out: Any, crew: int) -> None:
    share(crew, task(_read_rows, (memory, scales, slots, heads, size, out)), slots.size, rows_each(heads * size))


def kv_gather(cache: KVCache, slots: tuple[int, ...], dtype: Dtype) -> tuple[Tensor, Tensor]:
    """The op."""
    places = np.array(slots, np.int64)

    def gathered(memory: Tensor, scale: Tensor | None) -> Tensor:
        _, heads, size = memory._data.shape
        result, out = empty((places.size, heads, size), dtype, memory)
        scales = _NO_SCALES if scale is None else flat(scale)
        _gather(flat(memory), scales, places, heads, size, out, crew(2 * out.size))
        return result

    return gathered(cache.k, cache.k_scale), gathered(cache.v, cache.v_scale)


def kv_copy_blocks(cache: KVCache, src: tuple[int, ...], dst: tuple[int, ...]) -> None:
    """The op: NumPy copies the blocks out before it writes any."""
    for memory in (cache.k, cache.v, cache.k_scale, cache.v_scale):
        if memory is not None:
            blocks = written(memory).reshape(cache.spec.blocks, -1)
            blocks[list(dst)] = blocks[list(src)]
