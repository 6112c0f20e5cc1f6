"""New keys and values into caches, and rows and blocks of caches out of them; no slot or block outside is touched."""

import triton
import triton.language as tl

from ferrum_ops.kernels.cuda.source.quantising import magnitude, quantised, quantising_scale

__all__ = ["append", "check_slots", "gather", "move"]


@triton.jit
def _write(
    x, slots, memory, scales, tokens, total, kv_heads, token_step, head_step,
    ROWS: tl.constexpr, DIM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token = row // kv_heads
    head = row % kv_heads
    there = token < tokens
    d = tl.arange(0, BD)[None, :]
    at = x + token[:, None] * token_step + head[:, None] * head_step + d
    # whatever the slots are: the numbers are asked for at once, not when the slots have come
    numbers = tl.load(at, mask=there[:, None] & (d < DIM), other=0.0).to(tl.float32)
    slot = tl.load(slots + token, mask=there, other=-1)
    inside = (slot >= 0) & (slot < total)
    to = slot * kv_heads + head
    whole = inside[:, None] & (d < DIM)
    if scales is not None:
        FP8: tl.constexpr = memory.dtype.element_ty == tl.uint8
        scale = quantising_scale(tl.max(magnitude(numbers), 1), FP8)
        tl.store(scales + to, scale, mask=inside)
        tl.store(memory + to[:, None] * DIM + d, quantised(numbers, scale[:, None], FP8), mask=whole)
    else:
        tl.store(memory + to[:, None] * DIM + d, numbers.to(memory.dtype.element_ty), mask=whole)


@triton.jit
def append(
    k, v, slots, k_memory, v_memory, k_scales, v_scales, tokens, total, kv_heads, k_token, k_head, v_token, v_head,
    ROWS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The keys (programs 0 along the second axis) or values of some tokens and heads into their slots."""
    if tl.program_id(1) == 0:
        _write(k, slots, k_memory, k_scales, tokens, total, kv_heads, k_token, k_head, ROWS, DIM, BD)
    else:
        _write(v, slots, v_memory, v_scales, tokens, total, kv_heads, v_token, v_head, ROWS, VALUE_DIM, BV)


@triton.jit
def _read(
    memory, scales, slots, out, tokens, total, kv_heads, ROWS: tl.constexpr, DIM: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(slots + row // kv_heads, mask=row // kv_heads < tokens, other=-1)
    inside = (slot >= 0) & (slot < total)
    at = slot * kv_heads + row % kv_heads
    d = tl.arange(0, BD)
    whole = inside[:, None] & (d[None, :] < DIM)
    numbers = tl.load(memory + at[:, None] * DIM + d[None, :], mask=whole, other=0)
    if memory.dtype.element_ty == tl.uint8:
        numbers = numbers.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    if scales is not None:
        numbers = numbers.to(tl.float32) * tl.load(scales + at, mask=inside, other=0.0)[:, None]
    elif out.dtype != memory.dtype:
        numbers = numbers.to(tl.float32)
    tl.store(out + row[:, None] * DIM + d[None, :], numbers.to(out.dtype.element_ty), mask=whole)


@triton.jit
def gather(
    k_memory, v_memory, k_scales, v_scales, slots, k, v, tokens, total, kv_heads,
    ROWS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The keys (programs 0 along the second axis) or values of some slots, one after another."""
    if tl.program_id(1) == 0:
        _read(k_memory, k_scales, slots, k, tokens, total, kv_heads, ROWS, DIM, BD)
    else:
        _read(v_memory, v_scales, slots, v, tokens, total, kv_heads, ROWS, VALUE_DIM, BV)


@triton.jit
def move(source, target, sources, targets, from_blocks, to_blocks, size, pieces, BLOCK: tl.constexpr):
    """A piece of one of the blocks *sources* of *source* to the block *targets* of *target*; of absent lists block i is
    number i.
    """
    i = tl.program_id(0) // pieces
    from_block = i if sources is None else tl.load(sources + i)
    to_block = i if targets is None else tl.load(targets + i)
    at = (tl.program_id(0) % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < size) & (from_block >= 0) & (from_block < from_blocks) & (to_block >= 0) & (to_block < to_blocks)
    numbers = tl.load(source + from_block.to(tl.int64) * size + at, mask=inside, other=0)
    tl.store(target + to_block.to(tl.int64) * size + at, numbers, mask=inside)


@triton.jit
def check_slots(slots, fault, tokens, total, BLOCK: tl.constexpr):
    """Lowers *fault* to the first token whose slot lies outside."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + token, mask=token < tokens, other=0)
    found = tl.min(tl.where((slot < 0) | (slot >= total), token, tokens), 0)
    if found < tokens:
        tl.atomic_min(fault, found.to(tl.int64))
