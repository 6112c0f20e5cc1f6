"""Kernels of ``linear`` for weights in the blocks of GGUF, which are read where they lie.

With one or two rows of inputs some blocks at a time become float32 in a buffer that stays in the nearest cache, and are
multiplied there. With more rows the weights of some hundred columns become float32 first, and dense products do the
rest.

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
from ferrum_ops.kernels.cpu.gemm import EVERY
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.inputs import as_rows
from ferrum_ops.kernels.cpu.intrinsics import get, get_bits, put, unpack, unpack_and_bits, unpack_e2m1, unpack_two
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.threads import crew, share
from ferrum_ops.quant.gguf import TYPES, GgufScheme, GgufType
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.recorded import records

__all__ = ["linear", "linear_few", "linear_few_refuses", "linear_refuses"]

#: with so many rows of inputs or fewer, numbers are multiplied as soon as they are read
_FEW = 2
#: so many at a time: what a multiple of every block has and the nearest cache holds twice
_PIECE = 4096
#: weights that become float32 at once where there are more
_SOME = 1 << 20
#: numbers of weights that a thread takes at a time
_GRAIN = 1 << 15
_DTYPES = (fa.float32, fa.float16, fa.bfloat16)
_NO_BIAS = np.empty(0, np.float32)
_0, _16, _32, _128 = (np.float32(number) for number in (0, 16, 32, 128))
#: of the exponents of MXFP4
_POWERS = np.array([2.0 ** (e - 128) for e in range(256)], np.float32)


@jit(inner=True)
def _step_and_offset(b: Any, at: int, group: int) -> Any:
    """The 6-bit scale and offset of a group of Q4_K or Q5_K, in the 12 bytes from *at* on."""
    if group < 4:
        return get_bits(b, at + group, 0, 63), get_bits(b, at + 4 + group, 0, 63)
    return (
        get_bits(b, at + 4 + group, 0, 15) + _16 * get_bits(b, at + group - 4, 6, 3),
        get_bits(b, at + 4 + group, 4, 15) + _16 * get_bits(b, at + group, 6, 3),
    )


# Each writes the numbers of the block at byte *at* of the line *b*, whose bytes in pairs are the halves *h*,
# to the line *y* from place *to* on. All in float32, where integers of some bits are exact.


@jit(inner=True)
def _q4_0(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d = get(h, at >> 1)
    for half in range(2):
        unpack(y, to + 16 * half, b, at + 2, 4 * half, 15, 8, d, _0)


@jit(inner=True)
def _q4_1(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d, m = get(h, at >> 1), get(h, (at >> 1) + 1)
    for half in range(2):
        unpack(y, to + 16 * half, b, at + 4, 4 * half, 15, 0, d, m)


@jit(inner=True)
def _fives(b: Any, at: int, zero: int, d: Any, m: Any, y: Any, to: int) -> None:
    """``d (q - zero) + m``, with q of 5 bits: 4 bytes of fifth bits, and 16 of the lower four."""
    for half in range(2):
        bits = b[at + 2 * half] + 256 * b[at + 2 * half + 1]
        unpack_and_bits(y, to + 16 * half, b, at + 4, 4 * half, 15, bits, 16, zero, d, m)


@jit(inner=True)
def _q5_0(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    _fives(b, at + 2, 16, get(h, at >> 1), _0, y, to)


@jit(inner=True)
def _q5_1(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    _fives(b, at + 4, 0, get(h, at >> 1), get(h, (at >> 1) + 1), y, to)


@jit(inner=True)
def _q8_0(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d = get(h, at >> 1)
    for half in range(2):
        q = at + 2 + 16 * half
        unpack_two(y, to + 16 * half, b, q, 0, 127, q, 7, 1, -128, 0, d, _0)


@jit(inner=True)
def _mxfp4(b: Any, _h: Any, at: int, y: Any, to: int) -> None:
    d = _POWERS[b[at]]
    for half in range(2):
        unpack_e2m1(y, to + 16 * half, b, at + 1, 4 * half, d)


@jit(inner=True)
def _q2_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d, least = get(h, (at + 80) >> 1), get(h, (at + 82) >> 1)
    for part in range(4):
        half, side = part >> 1, part & 1
        for line in range(4):
            said, place = at + 8 * half + 2 * line + side, to + 128 * half + 32 * line + 16 * side
            step, offset = d * get_bits(b, said, 0, 15), least * get_bits(b, said, 4, 15)
            unpack(y, place, b, at + 16 + 32 * half + 16 * side, 2 * line, 3, 0, step, -offset)


@jit(inner=True)
def _q3_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d = get(h, (at + 108) >> 1)
    for part in range(4):
        half, side = part >> 1, part & 1
        for line in range(4):
            group = 8 * half + 2 * line + side
            low = get_bits(b, at + 96 + group % 8, 4 * half, 15)
            step = d * (low + _16 * get_bits(b, at + 104 + group % 4, group // 4 * 2, 3) - _32)
            q, third = at + 32 + 32 * half + 16 * side, at + 16 * side
            unpack_two(y, to + 16 * group, b, q, 2 * line, 3, third, 4 * half + line, 1, 4, 4, step, _0)


@jit(inner=True)
def _q4_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d, least = get(h, at >> 1), get(h, (at >> 1) + 1)
    for group in range(8):
        s, o = _step_and_offset(b, at + 4, group)
        for half in range(2):
            q = at + 16 + group // 2 * 32 + 16 * half
            unpack(y, to + 32 * group + 16 * half, b, q, group % 2 * 4, 15, 0, d * s, -(least * o))


@jit(inner=True)
def _q5_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d, least = get(h, at >> 1), get(h, (at >> 1) + 1)
    for group in range(8):
        s, o = _step_and_offset(b, at + 4, group)
        for half in range(2):
            q, high = at + 48 + group // 2 * 32 + 16 * half, at + 16 + 16 * half
            place = to + 32 * group + 16 * half
            unpack_two(y, place, b, q, group % 2 * 4, 15, high, group, 1, 16, 0, d * s, -(least * o))


@jit(inner=True)
def _q6_k(b: Any, h: Any, at: int, y: Any, to: int) -> None:
    d = get(h, (at + 208) >> 1)
    for part in range(4):
        half, side = part >> 1, part & 1
        for line in range(4):
            group = 8 * half + 2 * line + side
            step = d * (get_bits(b, at + 192 + group, 0, 127) - _128 * get_bits(b, at + 192 + group, 7, 1))
            low, high = at + 64 * half + 32 * (line & 1) + 16 * side, at + 128 + 32 * half + 16 * side
            unpack_two(y, to + 16 * group, b, low, line // 2 * 4, 15, high, 2 * line, 3, 16, 32, step, _0)


_READ: dict[str, Callable[..., None]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "MXFP4": _mxfp4,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip


@cache
def _products(name: str) -> Any:
    """The products of a few rows of inputs [rows, K] with the columns [N, K] of a type: [rows, N]."""
    read, length, size = _READ[name], TYPES[name].block, TYPES[name].size
    at_once = _PIECE // length

    @jit(variant=(name,))
    def part(
        b: Any, h: Any, x: Any, bias: Any, out: Any, rows: int, columns: int, blocks: int, first: int, end: int
    ) -> None:
        y, totals = np.empty(_PIECE, np.float32), np.empty(rows, np.float32)
        for column in range(first, end):
            for row in range(rows):
                put(totals, row, get(bias, column) if bias.size else _0)
            for begin in range(0, blocks, at_once):
                here = min(at_once, blocks - begin)
                for block in range(here):
                    read(b, h, (column * blocks + begin + block) * size, y, block * length)
                for row in range(rows):
                    start, total = (row * blocks + begin) * length, _0
                    for i in range(here * length):
                        total += get(y, i) * get(x, start + i)
                    put(totals, row, get(totals, row) + total)
            for row in range(rows):
                put(out, row * columns + column, get(totals, row))

    @jit(variant=(name,))
    def whole(
        b: Any, h: Any, x: Any, bias: Any, out: Any, rows: int, columns: int, blocks: int, grain: int, crew: int
    ) -> None:
        share(crew, task(part, (b, h, x, bias, out, rows, columns, blocks)), columns, grain)

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
    return None if math.prod(x.shape[:-1]) <= _FEW or not x.shape[-1] else f"takes up to {_FEW} rows"


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
    (columns, count), given = w.shape, math.prod(x.shape[:-1])
    blocks, grain, work = count // _type_of(w).block, max(_GRAIN // max(count, 1), 1), crew(columns * count)
    numbers = flat(x) if x.dtype is fa.float32 else as_rows(*rows(x), EVERY, given, count, fa.float32, 0).memory
    result, target = empty((*x.shape[:-1], columns), out, x)
    biases = _NO_BIAS if bias is None else flat(bias.astype("f32", copy=False))
    launch(_products(w.scheme.type), *_lines(w), numbers, biases, target, given, columns, blocks, grain, work)
    return result


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
