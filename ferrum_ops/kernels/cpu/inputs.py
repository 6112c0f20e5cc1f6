"""Inputs of products as their kernels read them: rows of another dtype, int8 with scales, or records for few rows.

Rows may be gathered: row r is then row ``index[r]`` of x. All are plain loops, for every processor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types as untyped_types
from numba.core import cgutils as untyped

import ferrum_array as fa
from ferrum_array import Dtype
from ferrum_ops.kernels.cpu.arrays import Array, address
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.integers import Format, blocks_of_piece
from ferrum_ops.kernels.cpu.intrinsics import INFINITE, from_bits, get, get_int, magnitude, put
from ferrum_ops.kernels.cpu.jit import EXACT, intrinsic, jit
from ferrum_ops.kernels.cpu.threads import rows_each, share

__all__ = ["Inputs", "as_int8", "as_records", "as_rows"]

cgutils: Any = untyped
types: Any = untyped_types  # numba's types are of some versions and incomplete
_I8, _I32, _FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
_LEAST, _ONE, _HIGHEST = np.float32(2.0**-126), np.float32(1.0), np.float32(127.0)
_NAN, _ZERO = np.float32(np.nan), np.float32(0.0)
_INT8, _BF16, _F32 = range(3)
_KINDS = {"int8": _INT8, "bf16": _BF16, "f32": _F32}
_STORED: dict[Dtype, Any] = {fa.float32: np.float32, fa.bfloat16: np.uint16}


@intrinsic
def _nearest(_typing: Any, _x: Any, _factor: Any) -> Any:
    """The integer next to ``x * factor``, half to even, if it fits 8 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        # The product is rounded for itself, as that of the reference is. Adding a large number in order to round would
        # not do: the compiler puts product and sum into one instruction, which rounds once.
        kind = ir.FunctionType(_FLOAT, [_FLOAT])
        rint = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32")
        return builder.trunc(builder.fptosi(builder.call(rint, [builder.fmul(*args)]), _I32), _I8)

    return types.int8(types.float32, types.float32), generate


@intrinsic
def _plus(_typing: Any, _total: Any, _x: Any) -> Any:
    """``total + x`` in 32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.add(*args)

    return types.int32(types.int32, types.int32), generate


@intrinsic
def _write(_typing: Any, array: Any, _index: Any, _value: Any) -> Any:
    """Write an int8 to a place, which counts from 0: numba's own way looks for negative ones, one by one."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]], inbounds=True))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int8), generate


@jit(inner=True)
def _copy_row(x: Any, at: int, count: int, out: Any, to: int, end: int) -> None:
    """Numbers *at* of x as the numbers *to* of out, and zeros up to *end*."""
    for i in range(count):
        put(out, to + i, get(x, at + i))
    for i in range(to + count, end):
        put(out, i, _ZERO)


@jit(fastmath=EXACT, inner=True)
def _quantise_row(x: Any, at: int, count: int, group: int, q: Any, to: int, end: int, scales: Any, first: int) -> None:
    """A row of x as int8 with a scale for each group: ``IntScheme.inputs`` says how.

    Integers are written from *to* to *end* of q, zeros behind the last. A group that holds infinities or NaN has the
    scale NaN.
    """
    for start in range(0, count, max(group, 1)):
        stop = min(start + group, count)
        most = np.int32(0)
        for i in range(start, stop):
            most = max(most, magnitude(get(x, at + i)))
        scale = max(from_bits(most) / _HIGHEST, _LEAST)
        factor = _ONE / scale
        if most >= INFINITE:
            scale, factor = _NAN, _ZERO
        scales[first + start // group] = scale
        for i in range(start, stop):
            _write(q, to + i, _nearest(get(x, at + i), factor))
    for i in range(to + count, end):
        q[i] = 0


# Records: see ``integers``. Rows are padded with zeros to whole blocks; *to* is where the vectors of a block or of a
# piece begin.


@jit(inner=True)
def _piece(scales: Any, group: int, last: int, at: int, in_lane: int, out: Any, to: int) -> None:
    """The scales of the lanes of a piece, whose first number is *at*; the row has *last* + 1 of them."""
    if group >= 16 * in_lane:
        scale = scales[min(at // group, last)]
        for lane in range(16):
            put(out, to + lane, scale)
    else:
        for lane in range(16):
            put(out, to + lane, scales[min((at + lane * in_lane) // group, last)])


@jit(inner=True)
def _lanes_of_integers(
    q: Any, at: int, blocks: int, in_lane: int, factor: int, floats: bool, out: Any, to: int
) -> None:
    """Sums of the numbers that lanes meet in a piece: times a factor, or, with *floats*, as float32."""
    for lane in range(16):
        total = np.int32(0)
        for b in range(blocks):
            for i in range(in_lane):
                total = _plus(total, get_int(q, at + (b * 16 + lane) * in_lane + i))
        put(out, to + lane, np.float32(total) if floats else from_bits(np.int32(total * factor)))


@jit(inner=True)
def _lanes_of_floats(x: Any, at: int, blocks: int, in_lane: int, out: Any, to: int) -> None:
    for lane in range(16):
        total = _ZERO
        for b in range(blocks):
            for i in range(in_lane):
                total += get(x, at + (b * 16 + lane) * in_lane + i)
        put(out, to + lane, total)


@jit(inner=True)
def _vectors_int8(q: Any, at: int, in_lane: int, out: Any, to: int) -> None:
    """The inputs of a block; out is int8."""
    if in_lane == 4:
        for i in range(64):
            _write(out, to + i, q[at + i])
    else:
        for i in range(64):
            _write(out, to + i, q[at + 2 * i])
            _write(out, to + 64 + i, q[at + 2 * i + 1])


@jit(inner=True)
def _vectors_f32(x: Any, at: int, in_lane: int, out: Any, to: int) -> None:
    """The inputs of a block; out is float32."""
    if in_lane == 4:
        for i in range(64):
            put(out, to + i, get(x, at + i))
    else:
        for t in range(8):
            for lane in range(16):
                put(out, to + 16 * t + lane, get(x, at + 8 * lane + t))


@jit(inner=True)
def _vectors_bf16(x: Any, at: int, in_lane: int, out: Any, to: int) -> None:
    """The inputs of a block, of which every fourth or, of 8 bits, every second meet; out is uint16.

    Numbers that lie side by side are written in one turn, which the compiler makes vectors of.
    """
    if in_lane == 4:
        for i in range(32):
            put(out, to + i, get(x, at + 2 * i))
            put(out, to + 32 + i, get(x, at + 2 * i + 1))
    else:
        for i in range(32):
            first = at + 4 * i
            put(out, to + i, get(x, first))
            put(out, to + 32 + i, get(x, first + 1))
            put(out, to + 64 + i, get(x, first + 2))
            put(out, to + 96 + i, get(x, first + 3))


# What is called: rows of x are of its flat array *line*, a *step* of elements apart.


class Inputs(NamedTuple):
    """Inputs as a kernel takes them.

    Attributes:
        numbers: address, stride, scales, starts, their stride: see ``products``.
        memory: what must exist as long as they are used.
    """

    numbers: tuple[int, int, int, int, int]
    memory: Any

    def row(self, first: int) -> tuple[int, int, int, int, int]:
        """The numbers from another row on."""
        at, stride, scales, starts, step = self.numbers
        return at + first * stride, stride, scales + first * step, starts + first * step, step


@jit(inner=True)
def _source(index: Any, row: int) -> int:
    return index[row] if index.size else row


@jit(inner=True)
def _rows_body(x: Any, step: int, index: Any, count: int, out: Any, out_step: int, first: int, end: int) -> None:
    for row in range(first, end):
        _copy_row(x, _source(index, row) * step, count, out, row * out_step, (row + 1) * out_step)


@jit
def _rows(x: Any, step: int, index: Any, rows: int, count: int, out: Any, out_step: int, crew: int) -> None:
    share(crew, task(_rows_body, (x, step, index, count, out, out_step)), rows, rows_each(count))


def as_rows(line: Array, step: int, index: Array, rows: int, count: int, dtype: Dtype, crew: int) -> Inputs:
    """Rows in float32 or bfloat16, without gaps but for zeros that fill up words."""
    padded = count + count % 2 if dtype is fa.bfloat16 else count
    out = np.empty(rows * padded, _STORED[dtype])
    launch(_rows, line, step, index, rows, count, out, padded, crew)
    return Inputs((address(out), padded * out.itemsize, 0, 0, 0), out)


@jit(inner=True)
def _int8_body(
    x: Any, step: int, index: Any, count: int, group: int, piece: int, offset: int, q: Any, q_step: int, scales: Any,
    starts: Any, pieces: int, first: int, end: int,
) -> None:  # fmt: skip
    for row in range(first, end):
        at, place = row * q_step, row * pieces
        _quantise_row(x, _source(index, row) * step, count, group, q, at, at + q_step, scales, place)
        for p in range(pieces):
            if group > piece:  # pieces of one group
                scales[place + p] = scales[place]
            total = np.int32(0)
            for i in range(p * piece, min(count, (p + 1) * piece)):
                total = _plus(total, get_int(q, at + i))
            starts[place + p] = total * -offset


@jit
def _int8(
    x: Any, step: int, index: Any, rows: int, count: int, group: int, piece: int, offset: int, q: Any, q_step: int,
    scales: Any, starts: Any, pieces: int, crew: int,
) -> None:  # fmt: skip
    given = (x, step, index, count, group, piece, offset, q, q_step, scales, starts, pieces)
    share(crew, task(_int8_body, given), rows, rows_each(count))


def as_int8(
    line: Array, step: int, index: Array, rows: int, count: int, group: int, piece: int, offset: int, crew: int
) -> Inputs:
    """Rows in int8, with a scale and a start for each piece: minus *offset* times the sum of its integers."""
    q_step, pieces = -(-count // 4) * 4, -(-count // max(piece, 1))
    q, starts = np.empty(rows * q_step, np.int8), np.empty(rows * pieces, np.int32)
    scales = np.empty(rows * pieces, np.float32)
    launch(_int8, line, step, index, rows, count, group, piece, offset, q, q_step, scales, starts, pieces, crew)
    numbers = address(q), q_step, address(scales), address(starts), 4 * pieces
    return Inputs(numbers, (q, scales, starts))


@jit
def _records(
    x: Any, step: int, index: Any, rows: int, count: int, group: int, unit: int, in_lane: int, zeros: bool, kind: int,
    size: int, memory: Any,
) -> int:  # fmt: skip
    """Write records of *size* bytes; where they begin. *memory* has room for them, from a cache line on, and a row."""
    block = 16 * in_lane
    blocks, whole = (count + block - 1) // block, count // block
    begin: int = -memory.ctypes.data % 64 // 4
    end = begin + rows * size // 4
    behind_row = end + blocks * block
    floats, row, q = memory[begin:end], memory[end:behind_row], memory[end:behind_row].view(np.int8)
    scales, bytes_, halves = memory[behind_row:], floats.view(np.int8), floats.view(np.uint16)
    pieces = whole // unit + (1 if whole < blocks else 0)
    vectors = block * (1 if kind == _INT8 else 2 if kind == _BF16 else 4)  # bytes of a block
    for r in range(rows):
        at, start = _source(index, r) * step, r * size
        behind = (start + blocks * vectors) // 4
        if kind == _INT8:
            _quantise_row(x, at, count, group, q, 0, blocks * block, scales, 0)
        else:
            _copy_row(x, at, count, row, 0, blocks * block)
        for b in range(blocks):
            if kind == _INT8:
                _vectors_int8(q, b * block, in_lane, bytes_, start + b * vectors)
            elif kind == _F32:
                _vectors_f32(row, b * block, in_lane, floats, (start + b * vectors) // 4)
            else:
                _vectors_bf16(row, b * block, in_lane, halves, (start + b * vectors) // 2)
        for p in range(pieces):
            first, to = p * unit * block, behind + 32 * p
            length = min(unit, blocks - p * unit)
            if p == whole // unit:  # what is left
                first, length = whole * block, 1
            if kind == _INT8:
                _piece(scales, group, (count - 1) // group, first, in_lane, floats, to)
                factor = -128 if in_lane == 4 else -8
                _lanes_of_integers(q, first, length, in_lane, factor, zeros, floats, to + 16)
            elif zeros:
                _lanes_of_floats(row, first, length, in_lane, floats, to + 16)
    found: int = memory.ctypes.data + 4 * begin
    return found


def as_records(line: Array, step: int, index: Array, rows: int, count: int, group: int, form: Format) -> Inputs:
    """Records for ``few_integers``."""
    block = form.block
    blocks = -(-count // block)
    unit = blocks_of_piece(group, count, block)
    size = 64 * (blocks * form.inputs + 2 * (blocks // unit + 1))
    memory = np.empty(16 + rows * size // 4 + blocks * block + -(-count // max(group, 1)), np.float32)
    kind = _KINDS[form.kind]
    at = launch(_records, line, step, index, rows, count, group, unit, block // 16, form.zeros, kind, size, memory)
    return Inputs((at, size, 0, 0, 0), memory)
