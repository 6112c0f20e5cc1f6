"""Routing to experts, and plans: which experts tokens go to, where their rows lie, and their sums."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from ferrum_ops.kernels.cuda.source.activations import exponential, over_one_plus_exp

__all__ = ["combine", "count", "permute", "place", "route"]

_LEAST = tl.constexpr(-(1 << 63))


@triton.jit
def _keys(x, index):
    """Whole numbers that are ordered as floats are, NaN above all; of equal ones the lowest index has the greatest."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    bits = tl.where(x != x, 0x7FFFFFFF, bits)
    return (bits.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def _flags(x):
    """1 where x is true, for sums."""
    return tl.where(x, 1, 0)


@triton.jit
def _outside(scores, experts_in, T: tl.constexpr, CHOSEN: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """Which experts [T, GROUPS * SIZE] lie in no chosen group: the best by their two highest scores."""
    place = tl.arange(0, SIZE)[None, None, :]
    inside = experts_in.reshape(T, GROUPS, SIZE)
    x = scores.reshape(T, GROUPS, SIZE)
    keys = tl.where(inside, _keys(x, place), _LEAST)
    highest = tl.max(keys, axis=2)[:, :, None]
    value = tl.sum(tl.where(inside & (keys == highest), x, 0.0), axis=2)
    rest = tl.where(keys == highest, _LEAST, keys)
    second = tl.max(rest, axis=2)[:, :, None]
    value += tl.sum(tl.where(inside & (rest == second) & (second != _LEAST), x, 0.0), axis=2)
    group = tl.arange(0, GROUPS)[None, :]
    there = tl.sum(_flags(inside), axis=2) > 0
    keys = tl.where(there, _keys(value, group), _LEAST)
    for _ in tl.static_range(CHOSEN):
        highest = tl.max(keys, axis=1)[:, None]
        keys = tl.where(keys == highest, _LEAST, keys)
    return tl.broadcast_to((keys != _LEAST)[:, :, None], T, GROUPS, SIZE).reshape(T, GROUPS * SIZE)


@triton.jit
def route(
    logits, bias, ids, weights, tokens, experts, size, x_step, scale,
    K: tl.constexpr, SIGMOID: tl.constexpr, NORM: tl.constexpr, CHOSEN: tl.constexpr, T: tl.constexpr,
    GROUPS: tl.constexpr, SIZE: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """The K experts of T tokens and their weights; experts form groups of *size*, of which CHOSEN count, 0: all."""
    flat = tl.arange(0, GROUPS * SIZE)
    inner = flat % SIZE
    expert = (flat // SIZE) * size + inner
    there = (inner < size) & (expert < experts)
    token = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    known = (token < tokens)[:, None]
    inside = known & there[None, :]
    x = tl.load(logits + token[:, None] * x_step + expert[None, :], mask=inside, other=0.0).to(tl.float32)
    top = tl.max(tl.where(inside, x, float("-inf")), axis=1)[:, None]
    scores = x
    total = tl.full([T, 1], 1.0, tl.float32)
    if not SIGMOID:
        e = tl.where(inside, exponential(x - top, True), 0.0)
        total = tl.sum(e, axis=1)[:, None]
        scores = tl.div_rn(e, tl.broadcast_to(total, T, GROUPS * SIZE))
    else:
        scores = over_one_plus_exp(tl.full([T, GROUPS * SIZE], 1.0, tl.float32), x, True)
    if bias is not None:
        scores += tl.load(bias + expert, mask=there, other=0.0).to(tl.float32)[None, :]
        keys = _keys(scores, expert[None, :])
    else:
        keys = _keys(x, expert[None, :])
    keys = tl.where(inside, keys, _LEAST)
    if CHOSEN:
        keys = tl.where(_outside(scores, inside, T, CHOSEN, GROUPS, SIZE), _LEAST, keys)
    column = tl.arange(0, PLACES)[None, :]
    found = tl.zeros([T, PLACES], tl.int64)
    chosen = tl.zeros([T, PLACES], tl.float32)
    for j in range(K):
        highest = tl.max(keys, axis=1)[:, None]
        here = keys == highest
        keys = tl.where(here, _LEAST, keys)
        index = 0x7FFFFFFF - (highest & 0x7FFFFFFF)
        value = tl.sum(tl.where(here & inside, x, 0.0), axis=1)[:, None]
        found = tl.where(column == j, index, found)
        chosen = tl.where(column == j, value, chosen)
    taken = column < K
    if not SIGMOID:
        if NORM:
            top = tl.max(tl.where(taken, chosen, float("-inf")), axis=1)[:, None]
        w = tl.where(taken, exponential(chosen - top, True), 0.0)
        if NORM:
            total = tl.sum(w, axis=1)[:, None]
        w = tl.div_rn(w, tl.broadcast_to(total, T, PLACES))
    elif NORM:
        low = tl.where(taken, tl.where(chosen > 0.0, 0.0, chosen), float("-inf"))
        w = exponential(low - tl.max(low, axis=1)[:, None], True)
        w = tl.where(taken, tl.div_rn(w, exponential(-tl.abs(chosen), True) + 1.0), 0.0)
        w = tl.div_rn(w, tl.broadcast_to(tl.sum(w, axis=1)[:, None], T, PLACES))
    else:
        w = over_one_plus_exp(tl.full([T, PLACES], 1.0, tl.float32), chosen, True)
    bad = tl.max(_flags(inside & (x != x)), axis=1)[:, None] > 0
    w = tl.where(bad, float("nan"), w * scale)
    at = token[:, None] * K + column
    tl.store(ids + at, found, mask=known & taken)
    tl.store(weights + at, w.to(weights.dtype.element_ty), mask=known & taken)


@triton.jit
def _block(ids, choices, experts, start, BLOCK: tl.constexpr):
    """A block of choices: their numbers and experts, -1 for none."""
    choice = start + tl.arange(0, BLOCK)
    chosen = tl.load(ids + choice, mask=choice < choices, other=-1)
    return choice, tl.where((chosen >= 0) & (chosen < experts), chosen, -1).to(tl.int32)


@triton.jit
def _counted(chosen, EXPERTS: tl.constexpr):
    """How often each expert is in a block; none counts for the last, which the block has room for."""
    return tl.histogram(tl.where(chosen < 0, EXPERTS - 1, chosen), EXPERTS)


@triton.jit
def _own(ids, choices, experts, steps, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """How many of this program's choices each expert has."""
    first = tl.program_id(0) * steps * BLOCK
    total = tl.zeros([EXPERTS], tl.int32)
    for i in range(steps):
        _, chosen = _block(ids, choices, experts, first + i * BLOCK, BLOCK)
        total += _counted(chosen, EXPERTS)
    return tl.where(tl.arange(0, EXPERTS) < experts, total, 0)


@triton.jit
def count(ids, counts, choices, experts, steps, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """How many choices each expert has, of the *steps* blocks of each program: counts [programs, EXPERTS].

    EXPERTS is above the number of experts.
    """
    total = _own(ids, choices, experts, steps, EXPERTS, BLOCK)
    tl.store(counts + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), total)


@triton.jit
def place(
    ids, counts, order, inverse, offsets, choices, steps, experts, block,
    EXPERTS: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """A stable plan: choices go where their expert's rows begin, behind those of programs and blocks before.

    Without counts there is one program. A choice of no expert has no row; its inverse is 0.
    """
    expert = tl.arange(0, EXPERTS)
    before = tl.zeros([EXPERTS], tl.int32)
    if counts is None:
        total = _own(ids, choices, experts, steps, EXPERTS, BLOCK)
    else:
        total = tl.zeros([EXPERTS], tl.int32)
        for start in range(0, tl.num_programs(0), AT_ONCE):
            program = start + tl.arange(0, AT_ONCE)[:, None]
            at = counts + program * EXPERTS + expert[None, :]
            found = tl.load(at, mask=program < tl.num_programs(0), other=0)
            total += tl.sum(found, axis=0)
            before += tl.sum(tl.where(program < tl.program_id(0), found, 0), axis=0)
    total = (total + (block - 1)) // block * block
    end = tl.cumsum(total, axis=0)
    if tl.program_id(0) == 0:
        tl.store(offsets + expert, (end - total).to(tl.int64), mask=expert <= experts)
    before += end - total
    place = tl.arange(0, BLOCK)
    first = tl.program_id(0) * steps * BLOCK
    for i in range(steps):
        choice, chosen = _block(ids, choices, experts, first + i * BLOCK, BLOCK)
        known = chosen >= 0
        # of those with the same expert in this block, how many come before
        same = (chosen[:, None] == chosen[None, :]) & (place[None, :] < place[:, None])
        row = tl.sum(_flags(same), axis=1) + tl.gather(before, tl.where(known, chosen, 0), axis=0)
        before += _counted(chosen, EXPERTS)
        tl.store(order + row, choice.to(tl.int64), mask=known)
        tl.store(inverse + choice, tl.where(known, row, 0).to(tl.int64), mask=choice < choices)


@triton.jit
def permute(x, order, out, rows, tokens, k, size, x_step, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of x where the plan wants them; 0 where it wants none."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = row < rows
    choice = tl.load(order + row, mask=there, other=-1)
    token = choice // k
    known = there & (choice >= 0) & (token < tokens)
    inside = column < size
    y = tl.load(x + token[:, None] * x_step + column, mask=known[:, None] & inside, other=0.0)
    tl.store(out + row.to(tl.int64)[:, None] * size + column, y, mask=there[:, None] & inside)


@triton.jit
def combine(
    y, inverse, w, residual, out, tokens, rows, k, size, y_step, residual_step, experts, ids,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """The weighted sums of each token's rows, in order; without inverse, choices lie in their own order.

    With ids, a choice of no expert is NaN. WAIT: the launch before may not be done yet.
    """
    if WAIT:
        gdc_wait()
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = token < tokens
    inside = there[:, None] & (column < size)
    if residual is None:
        total = tl.zeros([ROWS, BLOCK], tl.float32)
    else:
        total = tl.load(residual + token[:, None] * residual_step + column, mask=inside, other=0.0).to(tl.float32)
    for j in range(k):
        choice = token * k + j
        row = choice if inverse is None else tl.load(inverse + choice, mask=there, other=0)
        weight = tl.load(w + choice, mask=there, other=0.0)
        known = inside & ((row >= 0) & (row < rows))[:, None]
        if ids is not None:
            expert = tl.load(ids + choice, mask=there, other=0)
            of_one = (expert >= 0) & (expert < experts)
            weight = tl.where(of_one, weight, float("nan"))
            known &= of_one[:, None]
        part = tl.load(y + row[:, None] * y_step + column, mask=known, other=0.0).to(tl.float32)
        total += part * weight[:, None]
    tl.store(out + token[:, None] * size + column, total.to(out.dtype.element_ty), mask=inside)
