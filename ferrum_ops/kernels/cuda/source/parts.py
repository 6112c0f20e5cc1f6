"""The parts of split keys put together: by a kernel of its own, or by the last program that has computed one."""

import triton
import triton.language as tl

from ferrum_ops.kernels.cuda.source.scores import LN_2, LOG2_E

__all__ = ["arrived", "combine", "merge", "span"]


@triton.jit
def span(starts, lengths, sequence, tokens, room):
    """A sequence's first token, how many tokens and how many keys it has, within what there is."""
    first = tl.minimum(tl.maximum(tl.load(starts + sequence), 0), tokens)
    last = tl.minimum(tl.maximum(tl.load(starts + sequence + 1), first), tokens)
    keys = tl.minimum(tl.maximum(tl.load(lengths + sequence), 0), room)
    return first, last - first, keys


@triton.jit
def arrived(at, splits):
    """Whether this program is the last of the *splits* that count at *at*: then all that the others wrote is there."""
    tl.debug_barrier()  # what all threads have written comes before what the first one adds
    last = tl.atomic_add(at, 1, sem="acq_rel", scope="gpu") == splits - 1
    if last:
        tl.store(at, 0)  # as the next launch finds it
    return last


@triton.jit
def merge(
    parts, part_sums, sinks, out, sums, first, count, sequence, head, kv_heads, most, splits,
    GROUP: tl.constexpr, VALUE_DIM: tl.constexpr, BV: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """What ``combine`` does, for the ROWS of a sequence that share a head of keys by their last program.

    The parts are taken in their order, whoever comes last; what others have written is read past the first cache. Every
    program has written its part, be it zeros.
    """
    row = tl.arange(0, ROWS)
    token = row // GROUP
    own = head * GROUP + row % GROUP
    here = token < count
    line = (first + token).to(tl.int64) * (kv_heads * GROUP) + own
    place = ((sequence.to(tl.int64) * most + token) * (kv_heads * GROUP) + own) * splits
    e = tl.arange(0, BV)
    kept = here[:, None] & (e[None, :] < VALUE_DIM)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, BV], tl.float32)
    for start in range(0, splits, PIECE):
        levels = tl.tuple(())
        pieces = tl.tuple(())
        for n in tl.static_range(PIECE):  # all are asked for before the first has come
            there = here & (start + n < splits)
            at = place + start + n
            levels += (tl.load(part_sums + at, mask=there, other=float("-inf"), cache_modifier=".cg"),)
            whole = kept & (start + n < splits)
            pieces += (
                tl.load(parts + at[:, None] * VALUE_DIM + e[None, :], mask=whole, other=0.0, cache_modifier=".cg"),
            )
        higher = top
        for n in tl.static_range(PIECE):
            higher = tl.maximum(higher, levels[n])
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(top - base)
        total *= shrink
        result *= shrink[:, None]
        for n in tl.static_range(PIECE):
            weight = tl.exp2(levels[n] - base)
            total += weight
            result += pieces[n] * weight[:, None]
        top = higher
    if sinks is not None:
        sink = tl.load(sinks + own, mask=here, other=0.0).to(tl.float32) * LOG2_E
        higher = tl.maximum(top, sink)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.exp2(sink - base)
        result *= shrink[:, None]
        top = higher
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    result = result / total[:, None]
    tl.store(out + line[:, None] * VALUE_DIM + e[None, :], result.to(out.dtype.element_ty), mask=kept)
    if sums is not None:
        tl.store(sums + line, tl.where(nothing, float("-inf"), top + tl.log2(total)) * LN_2, mask=here)


@triton.jit
def combine(
    parts, sinks, starts, lengths, out, sums, tokens, heads, fewest, most, splits,
    VALUE_DIM: tl.constexpr, BV: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The result of one token and head from the parts of its keys, in their order; PIECE parts at a time."""
    head = tl.program_id(0)
    token = tl.program_id(1)
    sequence = tl.program_id(2)
    first, count, _ = span(starts, lengths, sequence, tokens, 0)
    if (count < fewest) | (count > most) | (token >= count):
        return
    line = (first + token).to(tl.int64) * heads + head
    part_sums = parts + tl.num_programs(2).to(tl.int64) * most * heads * splits * VALUE_DIM
    row = ((sequence.to(tl.int64) * most + token) * heads + head) * splits
    e = tl.arange(0, BV)
    top = float("-inf")
    total = 0.0
    result = tl.zeros([BV], tl.float32)
    for start in range(0, splits, PIECE):
        place = start + tl.arange(0, PIECE)
        level = tl.load(part_sums + row + place, mask=place < splits, other=float("-inf"))
        there = (place < splits)[:, None] & (e[None, :] < VALUE_DIM)
        part = tl.load(parts + (row + place)[:, None] * VALUE_DIM + e[None, :], mask=there, other=0.0)
        higher = tl.maximum(top, tl.max(level, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(top - base)
        weight = tl.exp2(level - base)
        total = total * shrink + tl.sum(weight, 0)
        # an empty part has not been written
        part = tl.where((weight > 0.0)[:, None], part, 0.0) * weight[:, None]
        result = result * shrink + tl.sum(part, 0)
        top = higher
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        higher = tl.maximum(top, sink)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.exp2(sink - base)
        result *= shrink
        top = higher
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    result = result / total
    tl.store(out + line * VALUE_DIM + e, result.to(out.dtype.element_ty), mask=e < VALUE_DIM)
    if sums is not None:
        tl.store(sums + line, tl.where(nothing, float("-inf"), top + tl.log2(total)) * LN_2)
