"""Attention of many queries: scores exist for a tile of keys and a group of queries at a time.

A group is 48 rows (24 without AVX-512), a row being a query of one head; the heads that share keys are in one group.
All that belongs to a row lies in one lane of vectors: a tile of scores is [keys, rows], so that maxima and sums over
keys need no exchange between lanes, and both products multiply a number from memory with vectors of rows. Keys and
values of a tile are copied, as float32, from wherever they lie: rows with gaps, blocks of a cache, int8 with scales.

Tiles begin at multiples of 64 keys whatever the queries are, and each group is computed by itself. So the bits of a
sequence's result depend neither on its neighbours in a batch nor on the number of threads.

Source: Dao et al., "FlashAttention", 2022, and Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021,
for the order of the work.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ferrum_ops.kernels.cpu.activations import tanh
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.intrinsics import get, put
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.scratch import lay_down, pick_up
from ferrum_ops.kernels.cpu.threads import share
from ferrum_ops.kernels.cpu.tiles import LANES, mask, outer, scale_lanes, weights

__all__ = ["GROUPS", "ROWS", "flash", "scratch_size", "sequence_of", "slot_of"]

_ZERO, _ONE, _NONE = np.float32(0.0), np.float32(1.0), np.float32(-math.inf)

_VECTORS, _STEP = 3, 8
_TILE, _MASK, _WEIGHTS, _SCALE = outer(_STEP, _VECTORS), mask(_VECTORS), weights(_VECTORS), scale_lanes(_VECTORS)
#: rows of a group
ROWS = _VECTORS * LANES
#: keys of a tile
KEYS = 64
#: so many groups go over the keys together, so that keys are copied once for all of them
GROUPS = 4

# Columns of the plan: a row for each sequence.
Q_FIRST, Q_COUNT, K_FIRST, K_COUNT, UNIT = 0, 1, 2, 3, 4
PLAN = 5


@jit(inner=True)
def _padded(dim: int) -> int:
    return (dim + _STEP - 1) // _STEP * _STEP


@jit
def scratch_size(dim: int, value_dim: int) -> int:
    """How many numbers a thread works in."""
    wide = _padded(value_dim)
    return GROUPS * ROWS * (dim + wide + 2) + KEYS * (dim + wide + ROWS) + ROWS


@jit(inner=True)
def slot_of(place: int, first: int, tables: Any, block: int, ring: bool) -> int:
    """The row of memory where the key at a place of a sequence lies: *first* rows on, or as the block table says."""
    if block == 0:
        return first + place
    held: int = tables[first] if ring else tables[first + place // block]
    return held * block + place % block


@jit(inner=True)
def _copy_rows(
    source: Any,
    scales: Any,
    steps: Any,
    head: int,
    size: int,
    start: int,
    stop: int,
    first: int,
    paging: Any,
    work: Any,
    to: int,
    wide: int,
) -> None:
    """Keys or values of one head from *start* to *stop*, in rows of *wide* numbers; zeros fill the last rows."""
    tables, block, ring = paging
    for place in range(start, stop):
        row = slot_of(place, first, tables, block, ring)
        at = row * steps[0] + head * steps[1]
        if scales.size:
            scale = get(scales, row * steps[2] + head)
            for i in range(size):
                put(work, to + i, get(source, at + i) * scale)
        else:
            for i in range(size):
                put(work, to + i, get(source, at + i))
        for i in range(size, wide):
            put(work, to + i, _ZERO)
        to += wide
    for i in range(-(stop - start) % _STEP * wide):
        put(work, to + i, _ZERO)


@jit(inner=True)
def _bounds(row: int, group: int, offset: int, keys: int, causal: bool, window: int) -> tuple[int, int]:
    """The first and the last key that a row sees."""
    if not causal:
        return 0, keys - 1
    place = row // group + offset
    low = place - window + 1 if window else 0
    return max(low, 0), min(place, keys - 1)


@jit(inner=True)
def _change_scores(
    work: Any,
    scores: int,
    start: int,
    keys: int,
    rows: int,
    first_row: int,
    group: int,
    head: int,
    bias: Any,
    bias_at: int,
    bias_steps: Any,
    cap: Any,
) -> None:
    """Soft cap, then bias."""
    if cap > _ZERO:
        inverse = _ONE / cap
        for i in range(keys * ROWS):
            put(work, scores + i, tanh(get(work, scores + i) * inverse) * cap)
    if bias.size:
        for r in range(rows):
            row = first_row + r
            at = bias_at + (head * group + row % group) * bias_steps[0] + row // group * bias_steps[1]
            for j in range(keys):
                place = scores + j * ROWS + r
                put(work, place, get(work, place) + get(bias, at + (start + j) * bias_steps[2]))


@jit(inner=True)
def _load_queries(
    q: Any,
    steps: Any,
    first: int,
    head: int,
    group: int,
    row: int,
    rows: int,
    dim: int,
    scale: Any,
    sinks: Any,
    work: Any,
    to: int,
    top: int,
    total: int,
) -> None:
    """The rows of a group, scaled, one a lane; and what their maxima and sums begin with."""
    for r in range(ROWS):
        if r < rows:
            token, h = first + (row + r) // group, head * group + (row + r) % group
            at = token * steps[0] + h * steps[1]
            for i in range(dim):
                put(work, to + i * ROWS + r, get(q, at + i) * scale)
            put(work, top + r, get(sinks, h) if sinks.size else _NONE)
        else:
            for i in range(dim):
                put(work, to + i * ROWS + r, _ZERO)
            put(work, top + r, _NONE)
        put(work, total + r, _ONE if sinks.size else _ZERO)


@jit(inner=True)
def _store_results(
    work: Any,
    at: int,
    top: int,
    total: int,
    first: int,
    head: int,
    group: int,
    heads: int,
    row: int,
    rows: int,
    dim: int,
    out: Any,
    lse: Any,
) -> None:
    for r in range(rows):
        token, h = first + (row + r) // group, head * group + (row + r) % group
        sum_ = get(work, total + r)
        nothing = sum_ == _ZERO
        inverse = _ZERO if nothing else _ONE / sum_
        to = (token * heads + h) * dim
        for i in range(dim):
            put(out, to + i, get(work, at + i * ROWS + r) * inverse)
        put(lse, token * heads + h, _NONE if nothing else get(work, top + r) + np.float32(math.log(sum_)))


@jit(inner=True)
def sequence_of(plan: Any, unit: int) -> int:
    """The sequence to which a unit of work belongs."""
    low, high = 0, len(plan)
    while high - low > 1:
        middle = (low + high) // 2
        if plan[middle, UNIT] <= unit:
            low = middle
        else:
            high = middle
    return low


@jit(inner=True)
def _units(
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
    sinks: Any,
    bias: Any,
    bias_steps: Any,
    out: Any,
    lse: Any,
    scratch: Any,
    begin: int,
    end: int,
) -> None:
    heads, key_heads, dim, value_dim = sizes
    scale, causal, window, cap = options
    group = heads // key_heads
    wide = _padded(value_dim)
    size = scratch_size(dim, value_dim)
    work = scratch
    start = pick_up(scratch, size)
    queries = start
    results = queries + GROUPS * ROWS * dim
    tops = results + GROUPS * ROWS * wide
    totals = tops + GROUPS * ROWS
    keys_at = totals + GROUPS * ROWS
    values_at = keys_at + KEYS * dim
    scores = values_at + KEYS * wide
    shrink = scores + KEYS * ROWS
    bounds = np.empty((GROUPS, 2 * ROWS), np.int32).reshape(-1)
    for unit in range(begin, end):
        s = sequence_of(plan, unit)
        q_first, count, k_first, length = plan[s, Q_FIRST], plan[s, Q_COUNT], plan[s, K_FIRST], plan[s, K_COUNT]
        rows_in_all = count * group
        blocks = (rows_in_all + GROUPS * ROWS - 1) // (GROUPS * ROWS)
        head, block = divmod(unit - plan[s, UNIT], blocks)
        # the last queries of a causal sequence have the most work, so they come first
        first_row = (blocks - 1 - block) * GROUPS * ROWS
        rows_here = min(GROUPS * ROWS, rows_in_all - first_row)
        groups = (rows_here + ROWS - 1) // ROWS
        offset = length - count
        for g in range(groups):
            row = first_row + g * ROWS
            rows = min(ROWS, first_row + rows_here - row)
            top, total = tops + g * ROWS, totals + g * ROWS
            to = queries + g * ROWS * dim
            _load_queries(q, q_steps, q_first, head, group, row, rows, dim, scale, sinks, work, to, top, total)
            for i in range(ROWS * wide):
                put(work, results + g * ROWS * wide + i, _ZERO)
            for r in range(ROWS):
                low, high = _bounds(row + min(r, rows - 1), group, offset, length, causal, window)
                bounds[g * 2 * ROWS + r] = low
                bounds[g * 2 * ROWS + ROWS + r] = high
        low = _bounds(first_row, group, offset, length, causal, window)[0]
        high = _bounds(first_row + rows_here - 1, group, offset, length, causal, window)[1]
        for tile in range(low // KEYS * KEYS, high + 1, KEYS):
            # what no row sees is not read at all
            key, stop = max(tile, low), min(tile + KEYS, high + 1)
            _copy_rows(k, k_scales, k_steps, head, dim, key, stop, k_first, paging, work, keys_at, dim)
            _copy_rows(v, v_scales, v_steps, head, value_dim, key, stop, k_first, paging, work, values_at, wide)
            for g in range(groups):
                first, last = g * 2 * ROWS, g * 2 * ROWS + ROWS - 1
                seen = min(stop, bounds[last + ROWS] + 1) - key  # up to the last row's last key
                if seen <= 0 or bounds[first] >= stop:
                    continue
                queries_at, results_at = queries + g * ROWS * dim, results + g * ROWS * wide
                for i in range(0, seen, _STEP):
                    _TILE(
                        work, keys_at + i * dim, dim, 1, work, queries_at, ROWS, dim, work, scores + i * ROWS, ROWS, 0
                    )
                if cap > _ZERO or bias.size:
                    row = first_row + g * ROWS
                    rows = min(ROWS, first_row + rows_here - row)
                    bias_at = s * bias_steps[3]
                    _change_scores(work, scores, key, seen, rows, row, group, head, bias, bias_at, bias_steps, cap)
                # the first row sees the least at the end, the last row at the beginning
                if bounds[first + ROWS] < key + seen - 1 or bounds[last] > key:
                    _MASK(work, scores, seen, key, bounds, first)
                top, total = tops + g * ROWS, totals + g * ROWS
                if _WEIGHTS(work, scores, seen, top, total, shrink):
                    _SCALE(work, results_at, wide, shrink)
                for i in range(0, wide, _STEP):
                    _TILE(work, values_at + i, 1, wide, work, scores, ROWS, seen, work, results_at + i * ROWS, ROWS, 1)
        for g in range(groups):
            row = first_row + g * ROWS
            rows = min(ROWS, first_row + rows_here - row)
            at, top, total = results + g * ROWS * wide, tops + g * ROWS, totals + g * ROWS
            _store_results(work, at, top, total, q_first, head, group, heads, row, rows, value_dim, out, lse)
    lay_down(scratch, size, start)


@jit
def flash(
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
    units: int,
    sizes: Any,
    options: Any,
    sinks: Any,
    bias: Any,
    bias_steps: Any,
    out: Any,
    lse: Any,
    scratch: Any,
    crew: int,
) -> None:
    """All units of work: a block of rows of one head of keys of one sequence each.

    Steps of q, k and v go from token to token and from head to head, those of k and v also from row to row of the
    scales; steps of the bias from head to head, query to query, key to key and sequence to sequence. *options* are
    scale, causal, window (0 for none) and soft cap (0 for none).
    """
    scale, causal, window, cap = options
    numbers = np.float32(scale), causal, window, np.float32(cap)
    paging = tables, block, ring
    arguments = (
        q,
        q_steps,
        k,
        k_scales,
        k_steps,
        v,
        v_scales,
        v_steps,
        paging,
        plan,
        sizes,
        numbers,
        sinks,
        bias,
        bias_steps,
    ) + (out, lse, scratch)
    share(crew, task(_units, arguments), units, 1)
