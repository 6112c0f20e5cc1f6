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
from ferrum_ops.kernels.cpu.arrays import Array
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.integers import Format
from ferrum_ops.kernels.cpu.intrinsics import get, get_int, put
from ferrum_ops.kernels.cpu.jit import EXACT, intrinsic, jit
from ferrum_ops.kernels.cpu.threads import share

__all__ = ["Inputs", "as_int8", "as_records", "as_rows"]

cgutils: Any = untyped
types: Any = untyped_types  # numba's types are of some versions and incomplete
_I8, _I32, _FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
_LEAST, _ONE, _HIGHEST = np.float32(2.0**-126), np.float32(1.0), np.float32(127.0)
_NAN, _ZERO = np.float32(np.nan), np.float32(0.0)
_INT8, _BF16, _F32 = range(3)
_KINDS = {"int8": _INT8, "bf16": _BF16, "f32": _F32}
_STORED: dict[Dtype, Any] = {fa.float32: np.float32, fa.bfloat16: np.uint16}
#: the bits of infinity
_INFINITE = np.int32(0x7F800000)


@intrinsic
def _magnitude(_typing: Any, _x: Any) -> Any:
    """The bits of the absolute value, which are ordered as the values are, NaN above all."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.and_(builder.bitcast(args[0], _I32), _I32(0x7FFFFFFF))

    return types.int32(types.float32), generate


@intrinsic
def _from_bits(_typing: Any, _bits: Any) -> Any:
    """The float32 of these bits."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.int32), generate


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


@jit
def _copy_row(x: Any, at: int, count: int, out: Any, to: int, end: int) -> None:
    """Numbers *at* of x as the numbers *to* of out, and zeros up to *end*."""
    for i in range(count):
        put(out, to + i, get(x, at + i))
    for i in range(to + count, end):
        put(out, i, _ZERO)


@jit(fastmath=EXACT)
def _quantise_row(x: Any, at: int, count: int, group: int, q: Any, to: int, end: int, scales: Any, first: int) -> None:
    """A row of x as int8 with a scale for each group: ``IntScheme.inputs`` says how.

    Integers are written from *to* to *end* of q, zeros behind the last. A group that holds infinities or NaN has the
    scale NaN.
    """
    for start in range(0, count, max(group, 1)):
        stop = min(start + group, count)
        most = np.int32(0)
        for i in range(start, stop):
            most = max(most, _magnitude(get(x, at + i)))
        scale = max(_from_bits(most) / _HIGHEST, _LEAST)
        factor = _ONE / scale
        if most >= _INFINITE:
            scale, factor = _NAN, _ZERO
        scales[first + start // group] = scale
        for i in range(start, stop):
            _write(q, to + i, _nearest(get(x, at + i), factor))
    for i in range(to + count, end):
        q[i] = 0


# Records of the inputs of 64 bytes of weights: see ``integers``. Rows are padded with zeros to whole blocks.


@jit
def _records_int8(
    q: Any, at: int, blocks: int, bits: int, scales: Any, first: int, group: int, zeros: bool,
    out: Any, words: Any, floats: Any, to: int,
) -> None:  # fmt: skip
    """Records of a row of int8; out, words and floats are the same memory."""
    in_lane = 32 // bits
    block = 16 * in_lane
    for b in range(blocks):
        source, target = at + b * block, to + b * (block + 128)
        if bits == 8:
            for i in range(64):
                out[target + i] = q[source + i]
        else:
            for i in range(64):
                out[target + i] = q[source + 2 * i]
                out[target + 64 + i] = q[source + 2 * i + 1]
        lanes = (target + block) // 4
        if group >= block:
            scale = scales[first + b * block // group]
            for lane in range(16):
                floats[lanes + lane] = scale
        else:
            for lane in range(16):
                floats[lanes + lane] = scales[first + b * (block // group) + lane * in_lane // group]
        for lane in range(16):
            total = np.int32(0)
            for i in range(in_lane):
                total = _plus(total, get_int(q, source + lane * in_lane + i))
            if zeros:
                floats[lanes + 16 + lane] = np.float32(total)
            else:
                words[lanes + 16 + lane] = total * (-128 if bits == 8 else -8)


@jit
def _records_f32(x: Any, at: int, blocks: int, bits: int, out: Any, to: int) -> None:
    """Records of a row of float32, in float32."""
    block = 512 // bits
    for b in range(blocks):
        source, target = at + b * block, to + b * (block + 32)
        if bits == 8:
            for i in range(64):
                out[target + i] = x[source + i]
        else:
            for t in range(8):
                for lane in range(16):
                    out[target + 16 * t + lane] = x[source + 8 * lane + t]
            _sums_of_lanes(x, source, out, target + block + 16)


@jit
def _records_bf16(x: Any, at: int, blocks: int, out: Any, floats: Any, to: int) -> None:
    """Records of a row of float32 that bfloat16 holds, for 4 bits; out and floats are the same memory."""
    for b in range(blocks):
        source, target = at + b * 128, to + b * 96
        for t in range(4):
            for i in range(32):
                put(out, 2 * target + 32 * t + i, x[source + 4 * i + t])
        _sums_of_lanes(x, source, floats, target + 80)


@jit
def _sums_of_lanes(x: Any, at: int, out: Any, to: int) -> None:
    for lane in range(16):
        total = _ZERO
        for i in range(8):
            total += x[at + 8 * lane + i]
        out[to + lane] = total


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


@jit
def _source(index: Any, row: int) -> int:
    return index[row] if index.size else row


@jit
def _rows_body(x: Any, step: int, index: Any, count: int, out: Any, out_step: int, first: int, end: int) -> None:
    for row in range(first, end):
        _copy_row(x, _source(index, row) * step, count, out, row * out_step, (row + 1) * out_step)


@jit
def _rows(x: Any, step: int, index: Any, rows: int, count: int, out: Any, out_step: int, crew: int) -> None:
    share(crew, task(_rows_body, (x, step, index, count, out, out_step)), rows, _grain(count))


@jit
def _grain(count: int) -> int:
    return 1 + (1 << 13) // (count + 1)


def as_rows(line: Array, step: int, index: Array, rows: int, count: int, dtype: Dtype, crew: int) -> Inputs:
    """Rows in float32 or bfloat16, without gaps but for zeros that fill up words."""
    padded = count + count % 2 if dtype is fa.bfloat16 else count
    out = np.empty(rows * padded, _STORED[dtype])
    _rows(line, step, index, rows, count, out, padded, crew)
    return Inputs((out.ctypes.data, padded * out.itemsize, 0, 0, 0), out)


@jit
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
    share(crew, task(_int8_body, given), rows, _grain(count))


def as_int8(
    line: Array, step: int, index: Array, rows: int, count: int, group: int, piece: int, offset: int, crew: int
) -> Inputs:
    """Rows in int8, with a scale and a start for each piece: minus *offset* times the sum of its integers."""
    q_step, pieces = -(-count // 4) * 4, -(-count // max(piece, 1))
    q, starts = np.empty(rows * q_step, np.int8), np.empty(rows * pieces, np.int32)
    scales = np.empty(rows * pieces, np.float32)
    _int8(line, step, index, rows, count, group, piece, offset, q, q_step, scales, starts, pieces, crew)
    numbers = q.ctypes.data, q_step, scales.ctypes.data, starts.ctypes.data, 4 * pieces
    return Inputs(numbers, (q, scales, starts))


@jit
def _records(
    x: Any, step: int, index: Any, rows: int, count: int, group: int, bits: int, zeros: bool, kind: int, size: int,
    row: Any, q: Any, scales: Any, out: Any, words: Any, floats: Any, halves: Any,
) -> None:  # fmt: skip
    block = 512 // bits
    blocks = (count + block - 1) // block
    for r in range(rows):
        at = _source(index, r) * step
        if kind == _INT8:
            _quantise_row(x, at, count, group, q, 0, blocks * block, scales, 0)
            _records_int8(q, 0, blocks, bits, scales, 0, group, zeros, out, words, floats, r * size)
        else:
            _copy_row(x, at, count, row, 0, blocks * block)
            if kind == _F32:
                _records_f32(row, 0, blocks, bits, floats, r * size // 4)
            else:
                _records_bf16(row, 0, blocks, halves, floats, r * size // 4)


def _on_a_line(size: int) -> Array:
    """Memory of so many bytes that begins with a cache line, as float32."""
    memory = np.empty(size // 4 + 16, np.float32)
    skip = -memory.ctypes.data % 64 // 4
    return memory[skip : skip + size // 4]


def as_records(line: Array, step: int, index: Array, rows: int, count: int, group: int, form: Format) -> Inputs:
    """Records for ``few_integers``."""
    blocks = -(-count // form.block)
    size = blocks * form.record * 64
    floats = _on_a_line(rows * size)
    row, q = np.empty(blocks * form.block, np.float32), np.empty(blocks * form.block, np.int8)
    scales = np.empty(-(-count // max(group, 1)), np.float32)
    _records(
        line, step, index, rows, count, group, form.bits, form.zeros, _KINDS[form.kind], size, row, q, scales,
        floats.view(np.int8), floats.view(np.int32), floats, floats.view(np.uint16),
    )  # fmt: skip
    return Inputs((floats.ctypes.data, size, 0, 0, 0), floats)
