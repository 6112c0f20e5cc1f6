"""Attention of few queries to many keys, as when text is generated token by token: keys and values are read once.

A unit of work is a stretch of the keys of a sequence, for all heads; where there are several, their results are merged
at the end. All stretches of a sequence are of one length, so that threads end together, and it follows from the number
of keys that the sequence sees: so the bits of a result depend neither on the batch nor on the number of threads.

The heads of a key lie side by side, so one head's part of the keys is many short pieces, which memory is slow to give:
9 GB/s with one thread where 27 are possible. Therefore up to 80 keys with all their heads are first read in one go.

Source: "Flash-Decoding for long-context inference", Dao, Haziza, Massa and Sizov, 2023, for the stretches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ferrum_ops.kernels.cpu.activations import tanh
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.flash import K_COUNT, K_FIRST, Q_COUNT, Q_FIRST, UNIT, sequence_of, slot_of
from ferrum_ops.kernels.cpu.intrinsics import exp_below, get, put
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.rows import dots, row_weights, touch, weighted_rows
from ferrum_ops.kernels.cpu.scratch import lay_down, pick_up
from ferrum_ops.kernels.cpu.threads import share
from ferrum_ops.kernels.cpu.tiles import LANES

__all__ = ["GRAIN", "decode", "most_stretches", "padded", "part_size", "room", "stretches"]

_ZERO, _ONE, _NONE = np.float32(0.0), np.float32(1.0), np.float32(-math.inf)

#: stretches begin at multiples of so many keys
GRAIN = 8
#: the most keys that are looked at at once; the fewest and the most of a stretch; and of what number stretches are a
#: multiple where there are enough keys, so that two or four threads have as much to do as each other
_KEYS, _SHORT, _LONG, _EVEN = 80, 32, 256, 4
#: rows (queries of one head) that share what is read of a key: so many, or all two, or one
_MANY = LANES // 4
_DOTS, _DOTS_OF_TWO, _DOTS_OF_ONE = dots(_MANY), dots(2), dots(1)
_SUM, _SUM_OF_TWO, _SUM_OF_ONE = weighted_rows(_MANY), weighted_rows(2), weighted_rows(1)

#: the column of the plan after those of ``flash``: the key with which the first stretch begins
KEY_FIRST = 5
PLAN = 6


@jit
def most_stretches(keys: int) -> int:
    """The most stretches that so many keys, or fewer, are read in."""
    return min((keys + _SHORT - 1) // _SHORT, _EVEN * ((keys + _EVEN * _LONG - 1) // (_EVEN * _LONG)))


@jit(inner=True)
def _even_part(keys: int, count: int) -> int:
    """The length of so many equal parts of so many keys, a multiple of ``GRAIN``."""
    grains = GRAIN * max(1, count)
    return max(1, (keys + grains - 1) // grains) * GRAIN


@jit(inner=True)
def _stretch(keys: int) -> int:
    """The length of a stretch of so many keys."""
    return _even_part(keys, most_stretches(keys))


@jit
def stretches(keys: int) -> int:
    """How many stretches so many keys are read in."""
    length = _stretch(keys)
    return (keys + length - 1) // length


@jit
def padded(size: int) -> int:
    """A number of elements, up to whole vectors."""
    return (size + LANES - 1) // LANES * LANES


@jit
def _rows_of(group: int) -> int:
    """The rows of one head of keys, filled up to what is computed together."""
    return group if group <= 2 else (group + _MANY - 1) // _MANY * _MANY


@jit
def part_size(rows: int, key_heads: int, value_dim: int) -> int:
    """How many numbers the results of a stretch are: sums of values, and each row's maximum and sum of weights."""
    return _rows_of(rows) * key_heads * (padded(value_dim) + 2)


@jit
def room(rows: int, key_heads: int, value_dim: int) -> int:
    """How many numbers a thread works in."""
    return _rows_of(rows) * _KEYS + part_size(rows, key_heads, value_dim)


@jit(inner=True)
def _place_queries(q_steps: Any, first: int, rows: int, group: int, key_heads: int, lines: Any) -> None:
    """Where each row of queries begins, [key heads, rows]; rows that fill up are the last one again."""
    all_rows = _rows_of(rows)
    for head in range(key_heads):
        for row in range(all_rows):
            r = min(row, rows - 1)
            lines[head * all_rows + row] = (first + r // group) * q_steps[0] + (head * group + r % group) * q_steps[1]


@jit(inner=True)
def _scores_of_head(
    q: Any,
    q_lines: Any,
    queries: int,
    rows: int,
    k: Any,
    k_first: int,
    k_lines: Any,
    count: int,
    dim: int,
    scale: Any,
    work: Any,
    scores: int,
) -> None:
    for j in range(0, count, LANES // min(rows, _MANY)):
        if rows == 1:
            _DOTS_OF_ONE(q, q_lines, queries, k, k_first, k_lines, j, dim, scale, work, scores + j, _KEYS)
        elif rows == 2:
            _DOTS_OF_TWO(q, q_lines, queries, k, k_first, k_lines, j, dim, scale, work, scores + j, _KEYS)
        else:
            for r in range(0, rows, _MANY):
                to = scores + r * _KEYS + j
                _DOTS(q, q_lines, queries + r, k, k_first, k_lines, j, dim, scale, work, to, _KEYS)


@jit(inner=True)
def _sums_of_head(
    work: Any, scores: int, rows: int, v: Any, v_first: int, lines: Any, count: int, dim: int, sums: int
) -> None:
    """Add the values times their weights to the sums."""
    wide = padded(dim)
    if rows == 1:
        _SUM_OF_ONE(work, scores, _KEYS, v, v_first, lines, count, dim, work, sums, wide)
    elif rows == 2:
        _SUM_OF_TWO(work, scores, _KEYS, v, v_first, lines, count, dim, work, sums, wide)
    else:
        for r in range(0, rows, _MANY):
            _SUM(work, scores + r * _KEYS, _KEYS, v, v_first, lines, count, dim, work, sums + r * wide, wide)


@jit(inner=True)
def _come_near(x: Any, lines: Any, count: int, heads: int, step: int, dim: int) -> None:
    """Read so many rows of keys or values, if their heads lie side by side."""
    if step == dim:
        for j in range(count):
            touch(x, lines[j], heads * dim)


@jit(inner=True)
def _stretches(
    q: Any,
    q_steps: Any,
    k: Any,
    k_scales: Any,
    k_steps: Any,
    v: Any,
    v_scales: Any,
    v_steps: Any,
    paging: Any,
    plan: Any,
    sizes: Any,
    options: Any,
    parts: Any,
    scratch: Any,
    begin: int,
    end: int,
) -> None:
    heads, key_heads, dim, value_dim, most_rows = sizes
    scale, causal, window, cap = options
    tables, block, ring = paging
    group = heads // key_heads
    wide_out = padded(value_dim)
    size = room(most_rows, key_heads, value_dim)
    each = part_size(most_rows, key_heads, value_dim)
    scores = pick_up(scratch, size)
    q_lines = np.empty(_rows_of(most_rows) * key_heads, np.int64)
    slots = np.empty(_KEYS, np.int64)
    k_lines, v_lines = np.empty(_KEYS, np.int64), np.empty(_KEYS, np.int64)
    for unit in range(begin, end):
        s = sequence_of(plan, unit)
        count, length = plan[s, Q_COUNT], plan[s, K_COUNT]
        rows = count * group
        if rows == 0:
            continue
        all_rows = _rows_of(rows)
        offset = length - count
        sums = scores + all_rows * _KEYS
        tops = sums + all_rows * key_heads * wide_out
        totals = tops + all_rows * key_heads
        _place_queries(q_steps, plan[s, Q_FIRST], rows, group, key_heads, q_lines)
        for i in range(all_rows * key_heads * wide_out):
            put(scratch, sums + i, _ZERO)
        for i in range(all_rows * key_heads):
            put(scratch, tops + i, _NONE)
            put(scratch, totals + i, _ZERO)
        stretch = _stretch(length - plan[s, KEY_FIRST])
        first = plan[s, KEY_FIRST] + (unit - plan[s, UNIT]) * stretch
        last = min(first + stretch, length)
        at_once = _even_part(stretch, (stretch + _KEYS - 1) // _KEYS)
        low = offset - window + 1 if window else 0  # of the first query
        for piece in range(first, last, at_once):
            # what lies before a window is not read at all
            key = max(piece, low)
            many = min(piece + at_once, last) - key
            if many <= 0:
                continue
            for j in range(_KEYS):
                slots[j] = slot_of(key + min(j, many - 1), plan[s, K_FIRST], tables, block, ring)
                k_lines[j], v_lines[j] = slots[j] * k_steps[0], slots[j] * v_steps[0]
            _come_near(k, k_lines, many, key_heads, k_steps[1], dim)
            _come_near(v, v_lines, many, key_heads, v_steps[1], value_dim)
            vectors = (many + LANES - 1) // LANES
            for head in range(key_heads):
                at, k_first, v_first = head * all_rows, head * k_steps[1], head * v_steps[1]
                _scores_of_head(q, q_lines, at, all_rows, k, k_first, k_lines, many, dim, scale, scratch, scores)
                for r in range(rows):
                    line = scores + r * _KEYS
                    if k_scales.size:
                        for j in range(many):
                            factor = get(k_scales, slots[j] * k_steps[2] + head)
                            put(scratch, line + j, get(scratch, line + j) * factor)
                    if cap > _ZERO:
                        for j in range(many):
                            put(scratch, line + j, tanh(get(scratch, line + j) * (_ONE / cap)) * cap)
                    seen = many
                    if causal:
                        place = r // group + offset
                        seen = max(0, min(many, place - key + 1))
                        if window:
                            for j in range(min(seen, place - window + 1 - key)):
                                put(scratch, line + j, _NONE)
                    for j in range(seen, vectors * LANES):
                        put(scratch, line + j, _NONE)
                    index = head * all_rows + r
                    factor = row_weights(scratch, line, vectors, tops + index, totals + index)
                    if factor != _ONE:
                        for i in range(wide_out):
                            to = sums + index * wide_out + i
                            put(scratch, to, get(scratch, to) * factor)
                    if v_scales.size:
                        for j in range(many):
                            scale_of = get(v_scales, slots[j] * v_steps[2] + head)
                            put(scratch, line + j, get(scratch, line + j) * scale_of)
                for r in range(rows, all_rows):
                    for j in range(many):
                        put(scratch, scores + r * _KEYS + j, _ZERO)
                to = sums + head * all_rows * wide_out
                _sums_of_head(scratch, scores, all_rows, v, v_first, v_lines, many, value_dim, to)
        for i in range(each):
            put(parts, unit * each + i, get(scratch, sums + i))
    lay_down(scratch, size, scores)


@jit(inner=True)
def _merge(plan: Any, sizes: Any, units: int, sinks: Any, parts: Any, out: Any, lse: Any, begin: int, end: int) -> None:
    """The results of one head of keys of one sequence, from those of its stretches."""
    heads, key_heads, _, value_dim, most_rows = sizes
    group = heads // key_heads
    wide = padded(value_dim)
    each = part_size(most_rows, key_heads, value_dim)
    for item in range(begin, end):
        s, head = divmod(item, key_heads)
        first = plan[s, UNIT]
        last = plan[s + 1, UNIT] if s + 1 < len(plan) else units
        all_rows = _rows_of(plan[s, Q_COUNT] * group)
        tops = all_rows * key_heads * wide
        totals = tops + all_rows * key_heads
        for r in range(plan[s, Q_COUNT] * group):
            index = head * all_rows + r
            token, h = plan[s, Q_FIRST] + r // group, head * group + r % group
            top = get(sinks, h) if sinks.size else _NONE
            for unit in range(first, last):
                found = get(parts, unit * each + tops + index)
                top = found if found > top else top
            base = _ZERO if top == _NONE else top
            total = exp_below(get(sinks, h) - base) if sinks.size else _ZERO
            for unit in range(first, last):
                factor = exp_below(get(parts, unit * each + tops + index) - base)
                total += get(parts, unit * each + totals + index) * factor
            nothing = total == _ZERO
            inverse = _ZERO if nothing else _ONE / total
            to = (token * heads + h) * value_dim
            mine = first * each + index * wide  # nobody else reads this row, so it holds the sum
            for unit in range(first, last):
                factor = exp_below(get(parts, unit * each + tops + index) - base)
                at = unit * each + index * wide
                for i in range(value_dim):
                    before = _ZERO if unit == first else get(parts, mine + i)
                    put(parts, mine + i, before + get(parts, at + i) * factor)
            for i in range(value_dim):
                put(out, to + i, get(parts, mine + i) * inverse if first < last else _ZERO)
            put(lse, token * heads + h, _NONE if nothing else top + np.float32(math.log(total)))


@jit
def decode(
    q: Any,
    q_steps: Any,
    k: Any,
    k_scales: Any,
    k_steps: Any,
    v: Any,
    v_scales: Any,
    v_steps: Any,
    tables: Any,
    block: int,
    ring: bool,
    plan: Any,
    sizes: Any,
    options: Any,
    sinks: Any,
    out: Any,
    lse: Any,
    parts: Any,
    scratch: Any,
    crew: int,
) -> None:
    """All stretches of all sequences, then their results; the arguments are those of ``flash``.

    How many there are is in the plan, which may have been written a moment ago.
    """
    last = len(plan) - 1
    units = plan[last, UNIT] + stretches(max(0, plan[last, K_COUNT] - plan[last, KEY_FIRST]))
    scale, causal, window, cap = options
    numbers = np.float32(scale), causal, window, np.float32(cap)
    paging = tables, block, ring
    arguments = (q, q_steps, k, k_scales, k_steps, v, v_scales, v_steps, paging, plan, sizes, numbers, parts, scratch)
    share(crew, task(_stretches, arguments), units, 1)
    share(crew, task(_merge, (plan, sizes, units, sinks, parts, out, lse)), len(plan) * sizes[1], 4)
