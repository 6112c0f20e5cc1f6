"""Kernels of ``linear`` for weights in the blocks of GGUF, which are read where they lie.

One row of inputs is multiplied with the integers of a block as they are read, see ``block_dots``. With a few rows a
block becomes float32 in a buffer that stays in the nearest cache, and is multiplied with all of them there.
With many rows of inputs the weights of some hundred columns become float32 first, and dense products do the rest.

Each type is compiled by itself, because a model has one or two. What a block holds is said in
``ferrum_ops.quant.gguf_legacy`` and ``gguf_k``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.gemm import linear as products
from ferrum_ops.kernels.cpu.arrays import Array, empty, flat, rows
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.block_dots import DOTS, POWERS, step_and_offset
from ferrum_ops.kernels.cpu.gemm import EVERY
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.inputs import as_rows
from ferrum_ops.kernels.cpu.intrinsics import get, get_bits, put
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.threads import crew, share
from ferrum_ops.quant.gguf import TYPES, GgufScheme, GgufType
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.recorded import records

__all__ = ["linear", "linear_few", "linear_few_refuses", "linear_refuses"]

#: with so many rows of inputs or fewer, a block of so many numbers is multiplied as soon as it is read
_FEW = {32: 2, 256: 8}
#: weights that become float32 at once where there are more
_SOME = 1 << 20
#: numbers of weights that a thread takes at a time
_GRAIN = 1 << 15
_DTYPES = (fa.float32, fa.float16, fa.bfloat16)
_0, _4, _8, _16, _32, _128 = (np.float32(number) for number in (0, 4, 8, 16, 32, 128))
#: twice the 4-bit floats of MXFP4
_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)

# Each writes the numbers of the block at byte *at* of the line *b*, whose bytes in pairs are the halves *h*,
# to the line *y* from place *to* on. All in float32, where integers of some bits are exact.


@jit(inner=True)
def _q4_0(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d = get(h, at >> 1)
    for i in range(16):
        put(y, to + i, d * (get_bits(b, at + 2 + i, 0, 15) - _8))
    for i in range(16):
        put(y, to + 16 + i, d * (get_bits(b, at + 2 + i, 4, 15) - _8))


@jit(inner=True)
def _q4_1(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d, m = get(h, at >> 1), get(h, (at >> 1) + 1)
    for i in range(16):
        put(y, to + i, d * get_bits(b, at + 4 + i, 0, 15) + m)
    for i in range(16):
        put(y, to + 16 + i, d * get_bits(b, at + 4 + i, 4, 15) + m)


@jit(inner=True)
def _fives(b: Any, at: int, d: Any, m: Any, y: Any, to: int) -> None:
    """``d q + m``, with q of 5 bits: 4 bytes of fifth bits, and 16 of the lower four."""
    for i in range(16):
        put(y, to + i, d * (get_bits(b, at + 4 + i, 0, 15) + _16 * get_bits(b, at + (i >> 3), i & 7, 1)) + m)
    for i in range(16):
        put(y, to + 16 + i, d * (get_bits(b, at + 4 + i, 4, 15) + _16 * get_bits(b, at + 2 + (i >> 3), i & 7, 1)) + m)


@jit(inner=True)
def _q5_0(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d = get(h, at >> 1)
    _fives(b, at + 2, d, d * -_16, y, to)


@jit(inner=True)
def _q5_1(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    _fives(b, at + 4, get(h, at >> 1), get(h, (at >> 1) + 1), y, to)


@jit(inner=True)
def _q8_0(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d = get(h, at >> 1)
    for i in range(32):
        put(y, to + i, d * (get_bits(b, at + 2 + i, 0, 127) - _128 * get_bits(b, at + 2 + i, 7, 1)))


@jit(inner=True)
def _mxfp4(b: Any, _h: Any, at: int, y: Any, to: int) -> None:
    d = POWERS[b[at]]
    for i in range(16):
        byte = b[at + 1 + i]
        put(y, to + i, d * _DOUBLED[byte & 15])
        put(y, to + 16 + i, d * _DOUBLED[byte >> 4])


@jit(inner=True)
def _q2_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d, least = get(h, (at + 80) >> 1), get(h, (at + 82) >> 1)
    for group in range(16):
        q, shift = at + 16 + group // 8 * 32 + group % 2 * 16, group % 8 // 2 * 2
        step, offset = d * get_bits(b, at + group, 0, 15), least * get_bits(b, at + group, 4, 15)
        for i in range(16):
            put(y, to + 16 * group + i, step * get_bits(b, q + i, shift, 3) - offset)


@jit(inner=True)
def _q3_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d = get(h, (at + 108) >> 1)
    for group in range(16):
        q, shift = at + 32 + group // 8 * 32 + group % 2 * 16, group % 8 // 2 * 2
        third, place = at + group % 2 * 16, group // 2
        low = get_bits(b, at + 96 + group % 8, group // 8 * 4, 15)
        step = d * (low + _16 * get_bits(b, at + 104 + group % 4, group // 4 * 2, 3) - _32)
        for i in range(16):
            number = get_bits(b, q + i, shift, 3) + _4 * get_bits(b, third + i, place, 1)
            put(y, to + 16 * group + i, step * (number - _4))


@jit(inner=True)
def _q4_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d, least = get(h, at >> 1), get(h, (at >> 1) + 1)
    for group in range(8):
        s, o = step_and_offset(b, at + 4, group)
        step, offset, q, shift = d * s, least * o, at + 16 + group // 2 * 32, group % 2 * 4
        for i in range(32):
            put(y, to + 32 * group + i, step * get_bits(b, q + i, shift, 15) - offset)


@jit(inner=True)
def _q5_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d, least = get(h, at >> 1), get(h, (at >> 1) + 1)
    for group in range(8):
        s, o = step_and_offset(b, at + 4, group)
        step, offset, q, shift = d * s, least * o, at + 48 + group // 2 * 32, group % 2 * 4
        for i in range(32):
            number = get_bits(b, q + i, shift, 15) + _16 * get_bits(b, at + 16 + i, group, 1)
            put(y, to + 32 * group + i, step * number - offset)


@jit(inner=True)
def _q6_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d = get(h, (at + 208) >> 1)
    for group in range(16):
        scale = get_bits(b, at + 192 + group, 0, 127) - _128 * get_bits(b, at + 192 + group, 7, 1)
        step, low = d * scale, at + group // 8 * 64 + group % 4 * 16
        high, shift, up = at + 128 + group // 8 * 32 + group % 2 * 16, group % 8 // 4 * 4, group % 8 // 2 * 2
        for i in range(16):
            number = get_bits(b, low + i, shift, 15) + _16 * get_bits(b, high + i, up, 3)
            put(y, to + 16 * group + i, step * (number - _32))


_READ: dict[str, Callable[..., None]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "MXFP4": _mxfp4,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip


@cache
def _products(name: str) -> Any:
    """The products of a few rows of inputs [rows, K] with the columns [N, K] of a type: [rows, N]."""
    read, length, size = _READ[name], TYPES[name].block, TYPES[name].size

    @jit(variant=(name,))
    def part(b: Any, h: Any, x: Any, out: Any, rows: int, columns: int, blocks: int, first: int, end: int) -> None:
        y = np.empty(length, np.float32)
        for column in range(first, end):
            for row in range(rows):
                out[row * columns + column] = 0.0
            for block in range(blocks):
                read(b, h, (column * blocks + block) * size, y, 0)
                for row in range(rows):
                    start = (row * blocks + block) * length
                    total = _0
                    for i in range(length):
                        total += get(y, i) * get(x, start + i)
                    out[row * columns + column] += total

    @jit(variant=(name,))
    def whole(b: Any, h: Any, x: Any, out: Any, rows: int, columns: int, blocks: int, grain: int, crew: int) -> None:
        share(crew, task(part, (b, h, x, out, rows, columns, blocks)), columns, grain)

    return whole


@cache
def _row(name: str) -> Any:
    """The products of one row of inputs [K] with the columns [N, K] of a type: [N]."""
    dot, length, size = DOTS[name], TYPES[name].block, TYPES[name].size

    @jit(variant=(name,))
    def part(b: Any, h: Any, x: Any, out: Any, blocks: int, first: int, end: int) -> None:
        for column in range(first, end):
            total = _0
            for block in range(blocks):
                total += dot(b, h, (column * blocks + block) * size, x, block * length)
            put(out, column, total)

    @jit(variant=(name,))
    def whole(b: Any, h: Any, x: Any, out: Any, columns: int, blocks: int, grain: int, crew: int) -> None:
        share(crew, task(part, (b, h, x, out, blocks)), columns, grain)

    return whole


@cache
def _numbers(name: str) -> Any:
    """The numbers of some blocks of a type."""
    read, length, size = _READ[name], TYPES[name].block, TYPES[name].size

    @jit(variant=(name,))
    def part(b: Any, h: Any, first_block: int, out: Any, first: int, end: int) -> None:
        for block in range(first, end):
            read(b, h, (first_block + block) * size, out, block * length)

    @jit(variant=(name,))
    def whole(b: Any, h: Any, first_block: int, blocks: int, out: Any, grain: int, crew: int) -> None:
        share(crew, task(part, (b, h, first_block, out)), blocks, grain)

    return whole


def linear_refuses(_x: Tensor, w: Tensor | QuantTensor, _bias: Tensor | None, out: Dtype) -> str | None:
    """Why the kernel does not take a call, or None."""
    if not isinstance(w, QuantTensor):
        return "reads GGUF's blocks alone"
    return None if out in _DTYPES else f"does not give {out}"


def linear_few_refuses(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> str | None:
    """The same, for a few rows of inputs."""
    reason = linear_refuses(x, w, bias, out)
    if reason is not None:
        return reason
    assert isinstance(w, QuantTensor)
    most = _FEW[_type_of(w).block]
    return None if math.prod(x.shape[:-1]) <= most or not x.shape[-1] else f"takes up to {most} rows"


def _type_of(w: QuantTensor) -> GgufType:
    assert isinstance(w.scheme, GgufScheme)
    return TYPES[w.scheme.type]


def _lines(w: QuantTensor) -> tuple[Array, Array]:
    """The bytes of the blocks, and the same in pairs where all blocks have an even number."""
    line = flat(w.parts["blocks"])
    return line, line.view(np.int16) if _type_of(w).size % 2 == 0 else np.empty(0, np.int16)


@records
def linear_few(x: Tensor, w: QuantTensor, bias: Tensor | None, out: Dtype) -> Tensor:
    """The op, for a few rows of inputs."""
    assert isinstance(w.scheme, GgufScheme)
    name = w.scheme.type
    (columns, count), given = w.shape, math.prod(x.shape[:-1])
    blocks, grain, work = count // _type_of(w).block, max(_GRAIN // max(count, 1), 1), crew(columns * count)
    numbers = flat(x) if x.dtype is fa.float32 else as_rows(*rows(x), EVERY, given, count, fa.float32, 0).memory
    alone = given == 1 and name in DOTS
    result, target = empty((*x.shape[:-1], columns), out if alone and bias is None else fa.float32, x)
    if alone:
        launch(_row(name), *_lines(w), numbers, target, columns, blocks, grain, work)
    else:
        launch(_products(name), *_lines(w), numbers, target, given, columns, blocks, grain, work)
    if bias is not None:
        result += bias.astype("f32", copy=False)
    return result.astype(out, copy=False)


def linear(x: Tensor, w: QuantTensor, bias: Tensor | None, out: Dtype) -> Tensor:
    """The op, for many rows of inputs."""
    assert isinstance(w.scheme, GgufScheme)
    (columns, count), given = w.shape, math.prod(x.shape[:-1])
    result, target = empty((*x.shape[:-1], columns), fa.float32, x)
    x = fa.reshape(x.astype("f32", copy=False), (given, count))
    _many(w.scheme.type, *_lines(w), x, target.reshape(given, columns))
    if bias is not None:
        result += bias.astype("f32", copy=False)
    return result.astype(out, copy=False)


def _many(name: str, line: Array, halves: Array, x: Tensor, out: Array) -> None:
    """Write the products of many rows of inputs, some columns of the weights at a time."""
    columns, count = out.shape[1], x.shape[1]
    found = TYPES[name]
    some = min(max(_SOME // count, 1), columns)
    wide, memory = empty((some, count), fa.float32, x)
    for first in range(0, columns, some):
        part = wide[: columns - first]
        blocks = part.size // found.block
        start = first * (count // found.block)
        grain = max(_GRAIN // found.block, 1)
        _numbers(name)(line, halves, start, blocks, memory, grain, crew(part.size))
        out[:, first : first + part.shape[0]] = products(x, part)._data
