"""Heads that turn by the position of their token, after a norm or not, into a tensor or into a cache."""

import triton
import triton.language as tl

from ferrum_ops.kernels.cuda.source.norms import inverse_root
from ferrum_ops.kernels.cuda.source.quantising import magnitude, quantised, quantising_scale

__all__ = ["turn"]


@triton.jit
def _weighted(y, factor, w, offset, col, mask):
    """``y * factor * (offset + w)``; w and offset may be absent."""
    y *= factor
    if w is not None:
        scale = tl.load(w + col, mask=mask, other=0.0).to(tl.float32)
        y *= scale if offset is None else scale + offset
    return y


@triton.jit
def _stored(to, y, scale, mask):
    """y at these addresses, in their dtype, in steps of scale if there is one."""
    if scale is None:
        tl.store(to, y.to(to.dtype.element_ty), mask=mask)
    else:
        tl.store(to, quantised(y, scale, to.dtype.element_ty == tl.uint8), mask=mask)


@triton.jit
def _turned(
    x, w, c, s, out, scales, present, inner, size, half, eps, offset,
    PAIRS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Heads at the addresses x, to the addresses out; scales are the addresses of theirs, or absent."""
    low = tl.arange(0, HALF)[None, None, :]
    both = tl.arange(0, 2 * HALF)[None, None, :]
    rest = 2 * half + tl.arange(0, max(REST, 1))[None, None, :]
    within, in_rest = present & inner, present & (rest < size)
    if PAIRS:
        y = tl.load(x + both, mask=present & (both < 2 * half), other=0.0).to(tl.float32)
        squares = tl.sum(y * y, axis=2, keep_dims=True)
        a = y
        b = y
    else:
        a = tl.load(x + low, mask=within, other=0.0).to(tl.float32)
        b = tl.load(x + half + low, mask=within, other=0.0).to(tl.float32)
        y = a
        squares = tl.sum(a * a + b * b, axis=2, keep_dims=True)
    z = a
    if REST:
        z = tl.load(x + rest, mask=in_rest, other=0.0).to(tl.float32)
        squares += tl.sum(z * z, axis=2, keep_dims=True)
    if eps is not None:
        factor = inverse_root(squares, size.to(tl.float32), eps)
        if PAIRS:
            y = _weighted(y, factor, w, offset, both, both < 2 * half)
        else:
            a = _weighted(a, factor, w, offset, low, inner)
            b = _weighted(b, factor, w, offset, half + low, inner)
        if REST:
            z = _weighted(z, factor, w, offset, rest, rest < size)
    if PAIRS:
        a, b = tl.split(tl.reshape(y, (y.shape[0], y.shape[1], HALF, 2)))
    a, b = a * c - b * s, a * s + b * c
    scale = None
    if scales is not None:
        most = tl.max(tl.maximum(magnitude(a), magnitude(b)), axis=2, keep_dims=True)
        if REST:
            most = tl.maximum(most, tl.max(magnitude(z), axis=2, keep_dims=True))
        scale = quantising_scale(most, out.dtype.element_ty == tl.uint8)
        tl.store(scales, scale, mask=present)
    if PAIRS:
        y = tl.reshape(tl.join(a, b), y.shape)
        _stored(out + both, y, scale, present & (both < 2 * half))
    else:
        _stored(out + low, a, scale, within)
        _stored(out + half + low, b, scale, within)
    if REST:
        _stored(out + rest, z, scale, in_rest)


@triton.jit
def turn(
    q, k, v, wq, wk, cos, sin, slots, q_out, k_out, v_out, k_scale, v_scale,
    tokens, rows, q_heads, k_heads, size, value_size, units, period,
    q_token, q_head, k_token, k_head, v_token, v_head, table_step, eps, offset,
    PAIRS: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr, REST: tl.constexpr, VALUE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Queries, and keys if there are any, normalised if there is an eps, and turned; values beside them copied.

    Keys and values of token t go to row ``slots[t]`` of k_out and v_out, which have so many rows, or to row t without
    slots; in int8 or E4M3, with scales, where there are k_scale and v_scale. Absent steps are those of a tensor without
    gaps, and without a period each token has its row of the tables. Half of the dimensions that turn are so many units:
    the compiler knows the unit, and so how many bytes it may load at once. A program has some heads of some tokens: of
    q, of k or of v.
    """
    half = units * UNIT
    if q_token is None:
        q_token = q_heads * size
        q_head = size
    if k is not None and k_token is None:
        k_token = k_heads * size
        k_head = size
    if v is not None and v_token is None:
        v_token = k_heads * value_size
        v_head = value_size
    if table_step is None:
        table_step = half
    q_parts = tl.cdiv(q_heads, HEADS)
    k_parts = tl.cdiv(k_heads, HEADS)
    parts = q_parts
    if k is not None:
        parts += k_parts
    if v is not None:
        parts += k_parts
    part = tl.program_id(0) % parts
    token = (tl.program_id(0) // parts).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
    there = token < tokens
    row = token
    kept = there
    if slots is not None:
        row = tl.load(slots + token, mask=there, other=-1).to(tl.int64)
        kept = (row >= 0) & (row < rows)
    i = tl.arange(0, HALF)[None, None, :]
    inner = i < half
    at = (token if period is None else token % period) * table_step + i
    if part < q_parts:
        c = tl.load(cos + at, mask=there & inner, other=0.0).to(tl.float32)
        s = tl.load(sin + at, mask=there & inner, other=0.0).to(tl.float32)
        head = part.to(tl.int64) * HEADS + tl.arange(0, HEADS)[None, :, None]
        present = there & (head < q_heads)
        _turned(
            q + token * q_token + head * q_head, wq, c, s, q_out + (token * q_heads + head) * size, None,
            present, inner, size, half, eps, offset, PAIRS, HALF, REST,
        )  # fmt: skip
    elif k is not None:
        if part < q_parts + k_parts:
            c = tl.load(cos + at, mask=there & inner, other=0.0).to(tl.float32)
            s = tl.load(sin + at, mask=there & inner, other=0.0).to(tl.float32)
            head = (part - q_parts).to(tl.int64) * HEADS + tl.arange(0, HEADS)[None, :, None]
            present = kept & (head < k_heads)
            _turned(
                k + token * k_token + head * k_head, wk, c, s, k_out + (row * k_heads + head) * size,
                None if k_scale is None else k_scale + (row * k_heads + head),
                present, inner, size, half, eps, offset, PAIRS, HALF, REST,
            )  # fmt: skip
        elif v is not None:
            head = (part - q_parts - k_parts).to(tl.int64) * HEADS + tl.arange(0, HEADS)[None, :, None]
            present = kept & (head < k_heads)
            col = tl.arange(0, VALUE)[None, None, :]
            inside = present & (col < value_size)
            y = tl.load(v + token * v_token + head * v_head + col, mask=inside, other=0.0).to(tl.float32)
            scale = None
            if v_scale is not None:
                scale = quantising_scale(
                    tl.max(magnitude(y), axis=2, keep_dims=True), v_out.dtype.element_ty == tl.uint8
                )
                tl.store(v_scale + (row * k_heads + head), scale, mask=present)
            _stored(v_out + (row * k_heads + head) * value_size + col, y, scale, inside)
