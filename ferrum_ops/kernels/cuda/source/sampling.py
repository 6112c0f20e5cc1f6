"""From logits to tokens: rules without a sort, draws in whole numbers, and rows of a table.

A row of logits is shared by programs, each with a part of it that fits into registers. What they find out goes through
memory to the next launch. Numbers are made by the same roundings as in ``ferrum_ops.draws``, so tokens are the same.
"""

import triton
import triton.language as tl

__all__ = ["gather", "leave", "level", "peak", "pick", "settle", "spread", "tally", "tell", "weigh"]

_INF: tl.constexpr = tl.constexpr(float("inf"))
_ONE: tl.constexpr = tl.constexpr(137438953472.0)
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN2_HIGH: tl.constexpr = tl.constexpr(355.0 / 512.0)
_LN2_LOW: tl.constexpr = tl.constexpr(0.6931471805599453 - 355.0 / 512.0)
# a number of this size has no places behind the point: adding it rounds, half to even
_ROUND: tl.constexpr = tl.constexpr(12582912.0)
#: keys are tried at so many places at once
_WAYS: tl.constexpr = tl.constexpr(16)


@triton.jit
def _times(x, y, ASSEMBLY: tl.constexpr):
    """``x * y``, rounded, whatever comes after it: the compiler would make one rounding of a product and a sum."""
    if ASSEMBLY:
        z = tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        z = x * y
    return z


@triton.jit
def _weights(x, top, ASSEMBLY: tl.constexpr):
    """``weights_of_logits`` of ``ferrum_ops.draws``."""
    below = tl.where(x == top, 0.0, x - top)
    below = tl.where(below > -30.0, below, -30.0)
    n = (_times(below, tl.zeros_like(below) + _LOG2_E, ASSEMBLY) + _ROUND) - _ROUND
    r = below - _times(n, tl.zeros_like(n) + _LN2_HIGH, ASSEMBLY)
    r = r - _times(n, tl.zeros_like(n) + _LN2_LOW, ASSEMBLY)
    e = _times(r, tl.zeros_like(r) + 1.0 / 5040.0, ASSEMBLY)
    e = _times(e + 1.0 / 720.0, r, ASSEMBLY)
    e = _times(e + 1.0 / 120.0, r, ASSEMBLY)
    e = _times(e + 1.0 / 24.0, r, ASSEMBLY)
    e = _times(e + 1.0 / 6.0, r, ASSEMBLY)
    e = _times(e + 0.5, r, ASSEMBLY)
    e = _times(e + 1.0, r, ASSEMBLY)
    e = e + 1.0
    return (e * _ONE).to(tl.int64) >> (-n).to(tl.int64)


@triton.jit
def _share(total, part, UP: tl.constexpr):
    """``share`` of ``ferrum_ops.draws``; *part* is in 2**-32."""
    low = (total & 0x7FFFFFFF) * part
    if UP:
        low += 0xFFFFFFFF
    return ((total >> 31) * part + (low >> 31)) >> 1


@triton.jit
def _row(logits, bias, row, step, bias_step, i, size):
    """Elements of a row in float32; -inf behind its end."""
    x = tl.load(logits + row * step + i, mask=i < size, other=-_INF).to(tl.float32)
    if bias is not None:
        x += tl.load(bias + row * bias_step + i, mask=i < size, other=0.0).to(tl.float32)
    return x


@triton.jit
def _peak(peaks, places, flaws, row, SPLITS: tl.constexpr):
    """The greatest of a row, the first place where it stands, or that of a NaN, and whether there is none."""
    s = tl.arange(0, SPLITS)
    values = tl.load(peaks + row * SPLITS + s)
    flawed = tl.load(flaws + row * SPLITS + s) > 0
    top = tl.max(values)
    whole = tl.sum(flawed.to(tl.int32)) == 0
    at = tl.load(places + row * SPLITS + s)
    first = tl.min(tl.where(((values == top) & whole) | flawed, at, 0x7FFFFFFF))
    return top, first, whole


@triton.jit
def _divided(x, top, temperature, most):
    """By the temperature, if there is one; where numbers would be too great, the greatest is subtracted first."""
    if temperature is not None:
        leaves = (tl.abs(top) < _INF) & (tl.div_rn(tl.abs(top), temperature) > most) & (temperature < 1.0)
        x = tl.div_rn(x - tl.where(leaves, top, 0.0), temperature)
    return x


@triton.jit
def _keys(x):
    """Whole numbers from 0 to 2**32 in the order of x, equal for equal x."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def _of_key(key):
    """The number that has this key."""
    bits = (key - 2147483648).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def peak(logits, bias, peaks, places, flaws, size, step, bias_step, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """For each part of each row the greatest, its first place, or that of a NaN, and how many are NaN."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    i = split * BLOCK + tl.arange(0, BLOCK)
    x = _row(logits, bias, row, step, bias_step, i, size)
    known = tl.where(x == x, x, -_INF)
    top = tl.max(known)
    at = row * SPLITS + split
    tl.store(peaks + at, top)
    flawed = tl.sum((x != x).to(tl.int32))
    sought = tl.where(flawed > 0, x != x, known == top)
    tl.store(places + at, tl.min(tl.where(sought & (i < size), i, 0x7FFFFFFF)))
    tl.store(flaws + at, flawed)


@triton.jit
def weigh(logits, peaks, places, flaws, sums, size, step, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
          ASSEMBLY: tl.constexpr):  # fmt: skip
    """For each part of each row the sum of its weights."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    top, _, _ = _peak(peaks, places, flaws, row, SPLITS)
    i = split * BLOCK + tl.arange(0, BLOCK)
    w = tl.where(i < size, _weights(_row(logits, None, row, step, 0, i, size), top, ASSEMBLY), 0)
    tl.store(sums + row * SPLITS + split, tl.sum(w))


@triton.jit
def pick(logits, u, peaks, places, flaws, sums, out, size, step, u_step, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
         ASSEMBLY: tl.constexpr):  # fmt: skip
    """The token of each row: the likeliest, or with u the one that it falls on; -1 where there is none."""
    row = tl.program_id(0).to(tl.int64)
    top, first, whole = _peak(peaks, places, flaws, row, SPLITS)
    found = first.to(tl.int64)
    if u is not None:
        part = tl.load(u + row * u_step).to(tl.float32)
        fits = (part >= 0.0) & (part < 1.0)
        s = tl.arange(0, SPLITS)
        until = tl.cumsum(tl.load(sums + row * SPLITS + s))
        total = tl.max(until)
        bound = _share(total, (tl.where(fits, part, 0.0) * 4294967296.0).to(tl.int64), False)
        split = tl.sum((until <= bound).to(tl.int32))
        before = tl.max(tl.where(until <= bound, until, 0))
        i = split * BLOCK + tl.arange(0, BLOCK)
        w = tl.where(i < size, _weights(_row(logits, None, row, step, 0, i, size), top, ASSEMBLY), 0)
        within = before + tl.cumsum(w)
        found = (split * BLOCK + tl.sum((within <= bound).to(tl.int32))).to(tl.int64)
        whole = whole & fits
    tl.store(out + row, tl.where(whole & (top > -_INF), found, -1))


@triton.jit
def spread(logits, peaks, places, flaws, sums, size, step, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """For each part of each row the sum of the exponentials of how far it lies below the greatest."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    top, _, _ = _peak(peaks, places, flaws, row, SPLITS)
    i = split * BLOCK + tl.arange(0, BLOCK)
    x = _row(logits, None, row, step, 0, i, size)
    e = tl.exp(_under(x, top))
    tl.store(sums + row * SPLITS + split, tl.sum(tl.where(i < size, e, 0.0)))


@triton.jit
def _under(x, top):
    """``x - top``; 0 where both are infinite."""
    below = x - tl.where(tl.abs(top) < _INF, top, 0.0)
    below = tl.where(top == _INF, -_INF, below)
    return tl.where(x == top, 0.0, below)


@triton.jit
def tell(logits, ids, peaks, places, flaws, sums, own, best, greatest, size, step, SPLITS: tl.constexpr):
    """For each row the logarithm of its token's probability, the likeliest token, and that one's logarithm."""
    row = tl.program_id(0).to(tl.int64)
    top, first, whole = _peak(peaks, places, flaws, row, SPLITS)
    total = tl.log(tl.sum(tl.load(sums + row * SPLITS + tl.arange(0, SPLITS))))
    token = tl.load(ids + row)
    x = tl.load(logits + row * step + tl.minimum(tl.maximum(token, 0), size - 1)).to(tl.float32)
    valid = whole & (top > -_INF)
    tl.store(own + row, tl.where(valid & (token >= 0), _under(x, top) - total, float("nan")))
    tl.store(best + row, first.to(tl.int64))
    tl.store(greatest + row, tl.where(valid, -total, float("nan")))


@triton.jit
def _search(state, row, need):
    """What the search needs, the edge below which nothing counts, and what those at the edge count together."""
    edge = tl.full([], -1, tl.int64)
    extra = tl.full([], 0, tl.int64)
    if state is not None:
        need = tl.load(state + row * 4)
        edge = tl.load(state + row * 4 + 1)
        extra = tl.load(state + row * 4 + 2)
    return need, edge, extra


@triton.jit
def _reached(parts, prefixes, row, rows, turn, need, edge, extra, SPLITS: tl.constexpr):
    """The beginning of the greatest key that has *need* at or above it, from what the launch before has counted.

    With it comes how much lies above all keys that begin so.
    """
    s = tl.arange(0, SPLITS)[:, None]
    j = tl.arange(0, _WAYS)
    before = tl.load(prefixes + ((turn - 1) * rows + row) * 2)
    above = tl.load(prefixes + ((turn - 1) * rows + row) * 2 + 1)
    counts = tl.sum(tl.load(parts + (row * SPLITS + s) * _WAYS + j[None, :]), axis=0) + above
    tried = before + (j.to(tl.int64) << (32 - 4 * turn))
    chosen = tl.sum((counts + tl.where(tried <= edge, extra, 0) >= need).to(tl.int64)) - 1
    above = tl.where(chosen == _WAYS - 1, above, tl.sum(tl.where(j == chosen + 1, counts, 0)))
    return before + (chosen << (32 - 4 * turn)), above


@triton.jit
def tally(
    logits, bias, peaks, places, flaws, state, prefixes, before, parts, rows, size, step, bias_step, temperature, most,
    least, turn, WEIGHTS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Of each part of each row, how much has a key of at least those that are tried in this turn, 0 to 7.

    It is counted, until there are *least*, or, above the edge that is in the state, weighed.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    need, edge, extra = _search(state, row, least)
    prefix = tl.zeros([], tl.int64)
    above = tl.zeros([], tl.int64)
    if turn > 0:
        prefix, above = _reached(before, prefixes, row, rows, turn, need, edge, extra, SPLITS)
    if split == 0:
        tl.store(prefixes + (turn * rows + row) * 2, prefix)
        tl.store(prefixes + (turn * rows + row) * 2 + 1, above)
    top, _, _ = _peak(peaks, places, flaws, row, SPLITS)
    i = split * BLOCK + tl.arange(0, BLOCK)
    x = _divided(_row(logits, bias, row, step, bias_step, i, size), top, temperature, most)
    keys = _keys(x)
    place = (keys - prefix) >> (28 - 4 * turn)
    counted = (place >= 0) & (place < _WAYS) & (i < size)
    if WEIGHTS:
        counted = counted & (keys > edge)
    at = parts + (row * SPLITS + split) * _WAYS
    if tl.max(counted.to(tl.int32)) > 0:  # in later turns few parts have such keys
        short = place.to(tl.int32)
        if WEIGHTS:
            amount = tl.where(counted, _weights(x, _divided(top, top, temperature, most), ASSEMBLY), 0)
        else:
            amount = counted.to(tl.int32)
        for j in tl.static_range(16):
            tl.store(at + j, tl.sum(tl.where(short >= j, amount, 0)).to(tl.int64))
    else:
        tl.store(at + tl.arange(0, _WAYS), tl.zeros([_WAYS], tl.int64))


@triton.jit
def level(
    logits, bias, peaks, places, flaws, state, prefixes, before, found, rows, size, step, bias_step, temperature, most,
    least, SEARCHED: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Of each part of each row: how many stand above the key that was reached, how many have it, what the former weigh.

    The key itself goes to the end of the prefixes. Without a search it is one that all stand above.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    key = tl.full([], -1, tl.int64)
    if SEARCHED:
        need, edge, extra = _search(state, row, least)
        key, _ = _reached(before, prefixes, row, rows, 8, need, edge, extra, SPLITS)
    if split == 0:
        tl.store(prefixes + (8 * rows + row) * 2, key)
    top, _, _ = _peak(peaks, places, flaws, row, SPLITS)
    i = split * BLOCK + tl.arange(0, BLOCK)
    x = _divided(_row(logits, bias, row, step, bias_step, i, size), top, temperature, most)
    keys = tl.where(i < size, _keys(x), -2)
    weights = _weights(x, _divided(top, top, temperature, most), ASSEMBLY)
    at = (row * SPLITS + split) * 4
    tl.store(found + at, tl.sum((keys > key).to(tl.int64)))
    tl.store(found + at + 1, tl.sum((keys == key).to(tl.int64)))
    tl.store(found + at + 2, tl.sum(tl.where(keys > key, weights, 0)))


@triton.jit
def settle(
    peaks, places, flaws, state, prefixes, found, rows, top_k, part, temperature, most,
    SHARED: tl.constexpr, SPLITS: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """How many of those with the key that was reached stay, and with a share to be reached next: how much that is.

    The state of a row is: what the search needs, the edge below which nothing counts, the weight of those at the edge
    that stay, and how many they are.
    """
    row = tl.program_id(0).to(tl.int64)
    top, _, _ = _peak(peaks, places, flaws, row, SPLITS)
    top = _divided(top, top, temperature, most)
    s = (row * SPLITS + tl.arange(0, SPLITS)) * 4
    above = tl.sum(tl.load(found + s))
    level = tl.sum(tl.load(found + s + 1))
    weight = tl.sum(tl.load(found + s + 2))
    key = tl.load(prefixes + (8 * rows + row) * 2)
    own = tl.max(_weights(tl.full([SPLITS], 0.0, tl.float32) + _of_key(tl.maximum(key, 0)), top, ASSEMBLY))
    if SHARED:  # after the search for top_k, before that for top_p
        room = tl.minimum(level, top_k - above)
        total = weight + room * own
        tl.store(state + row * 4, tl.maximum(_share(total, part, True), 1))
        tl.store(state + row * 4 + 1, key)
        tl.store(state + row * 4 + 2, room * own)
        tl.store(state + row * 4 + 3, room)
    elif part is not None:  # after the search for top_p: what stayed before is enough, so no more than that stay now
        need = tl.load(state + row * 4)
        tl.store(state + row * 4 + 3, (need - weight + own - 1) // tl.maximum(own, 1))
    else:
        tl.store(state + row * 4 + 3, tl.minimum(level, top_k - above))


@triton.jit
def leave(
    logits, bias, peaks, places, flaws, state, prefixes, found, least, out, rows, size, step, bias_step, temperature,
    most, COLDEST: tl.constexpr, SEARCHED: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """The row after the rules: what stays, and -inf; all NaN where a NaN was among what is selected from."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    top, first, whole = _peak(peaks, places, flaws, row, SPLITS)
    i = split * BLOCK + tl.arange(0, BLOCK)
    x = _divided(_row(logits, bias, row, step, bias_step, i, size), top, temperature, most)
    y = x
    if COLDEST:
        y = tl.where(i == first, y, -_INF)
    if SEARCHED:
        key = tl.load(prefixes + (8 * rows + row) * 2)
        room = tl.load(state + row * 4 + 3)
        s = tl.arange(0, SPLITS)
        levels = tl.load(found + (row * SPLITS + s) * 4 + 1)
        before = tl.sum(tl.where(s < split, levels, 0))
        keys = _keys(x)
        same = (keys == key) & (i < size)
        stays = (keys > key) | (same & (before + tl.cumsum(same.to(tl.int64)) <= room))
        y = tl.where(stays, y, -_INF)
    if least is not None:
        enough = _weights(x, _divided(top, top, temperature, most), ASSEMBLY) >= least
        y = tl.where(enough, y, -_INF)
    if COLDEST or SEARCHED or least is not None:
        y = tl.where(whole, y, float("nan"))
    tl.store(out + row * size + i, y.to(out.dtype.element_ty), mask=i < size)


@triton.jit
def gather(table, ids, out, height, size, step, scale, BLOCK: tl.constexpr):
    """Rows of a table; one that it has not is taken for the nearest."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.minimum(tl.maximum(tl.load(ids + token).to(tl.int64), 0), height - 1)
    x = tl.load(table + row * step + i, mask=i < size, other=0.0)
    if scale is not None:
        x = (x.to(tl.float32) * scale).to(out.dtype.element_ty)
    tl.store(out + token * size + i, x, mask=i < size)
