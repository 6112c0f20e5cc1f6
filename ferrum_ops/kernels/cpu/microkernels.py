"""The innermost loops of matrix products, for processors with AVX-512: tiles of sums that stay in registers.

They are written in LLVM's intermediate representation, because no loop that the compiler sees becomes ``vdpbf16ps``
or ``vpdpbusd``. Each is a function for use inside compiled code; addresses and strides are integers, in bytes, and
nothing is checked: whoever calls them sees to it that all that they read and write exists.

A vector is 64 bytes. All kinds of numbers are multiplied in steps of 4 bytes along K: one float32, two bfloat16 or
four int8, whose products are added up by one instruction. So rows are rows of 32-bit words whatever they hold, and
one transposition packs them all.

======== ==================================== ===========================================================
``f32``  ``vfmadd``                           one rounding for each product
``bf16`` ``vdpbf16ps`` (AVX512_BF16)          products are added in float32, to the nearest even; numbers below
                                              the normal ones count as 0, whatever the processor's modes are
``int8`` ``vpdpbusd`` (AVX512_VNNI)           exact in int32: bytes 0 to 255 of weights times -128 to 127 of inputs
======== ==================================== ===========================================================

Two shapes of tile, after Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008:

- ``outer_tile`` for many rows: weights are packed so that a vector holds one step of 16 columns; each step takes
  the outer product of some rows of inputs, one word each, with it.
- ``inner_tile`` for few rows: vectors lie along K in both operands, so weights are read once, as they lie.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped
from numba.extending import intrinsic

__all__ = ["VECTOR", "inner_tile", "outer_tile", "scaled_outer_tile", "transpose_words"]

VECTOR = 64  # bytes
LANES = 16  # words of 32 bits in a vector

cgutils: Any = untyped  # numba has no types
Value = Any  # a value of the intermediate representation; llvmlite has no types for checkers

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, WORDS, FLOATS = ir.VectorType(I8, VECTOR), ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
#: Sums may be taken in any order, and a product may go into a sum unrounded.
_FAST = ("contract", "reassoc", "nsz")


#: The type ``bfloat``, which llvmlite does not have; it is only needed to name what instructions take.
_BFLOAT = type("_BFloat", (ir.Type,), {"intrinsic_name": "bf16", "_to_string": lambda _: "bfloat"})()
_BFLOATS = ir.VectorType(_BFLOAT, 32)


class Code:
    """The instructions of a function, with memory addressed in bytes."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def at(self, address: Value, *offsets: Value) -> Value:
        """The sum of integers."""
        for offset in offsets:
            address = self.b.add(address, I64(offset) if isinstance(offset, int) else offset)
        return address

    def times(self, value: Value, factor: int) -> Value:
        return self.b.mul(value, I64(factor))

    def load(self, address: Value, kind: Any) -> Value:
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = 1
        return value

    def load_first(self, address: Value, count: Value) -> Value:
        """A vector whose first *count* bytes are read and whose others are 0; nothing beyond them is touched."""
        lanes = ir.Constant(ir.VectorType(I64, VECTOR), list(range(VECTOR)))
        mask = self.b.icmp_signed("<", lanes, self.splat(count, VECTOR))
        pointer = self.b.inttoptr(address, BYTES.as_pointer())
        return self.call("llvm.masked.load.v64i8.p0", BYTES, pointer, I32(1), mask, zero(BYTES))

    def store(self, value: Value, address: Value) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = 1

    def splat(self, value: Value, lanes: int = LANES) -> Value:
        """A vector of equal values."""
        empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.b.insert_element(empty, value, I32(0))
        return self.b.shuffle_vector(first, empty, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def call(self, name: str, result: Any, *arguments: Value) -> Value:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), arguments)

    def variable(self, value: Value) -> Value:
        """A place for a value that changes; the compiler keeps it in a register."""
        return cgutils.alloca_once_value(self.b, value)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        return self.call("llvm.fma.v16f32", FLOATS, x, y, z)

    def total(self, vector: Value) -> Value:
        """The sum of the lanes."""
        if vector.type.element == F32:
            kind = ir.FunctionType(F32, [F32, FLOATS])
            add = cgutils.get_or_insert_function(self.b.module, kind, "llvm.vector.reduce.fadd.v16f32")
            return self.b.call(add, [ir.Constant(F32, -0.0), vector], fastmath=_FAST)
        return self.call("llvm.vector.reduce.add.v16i32", I32, vector)

    def plus(self, x: Value, y: Value) -> Value:
        return self.b.add(x, y) if x.type.element == I32 else self.b.fadd(x, y, flags=_FAST)

    @contextmanager
    def loop(self, count: Value) -> Iterator[Value]:
        with cgutils.for_range(self.b, count) as loop:
            yield loop.index

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        with self.b.if_then(condition):
            yield


def zero(kind: Any) -> Value:
    """The zero of a type."""
    return ir.Constant(kind, [0] * kind.count if isinstance(kind, ir.VectorType) else 0)


class Multiply(NamedTuple):
    """How a kind of numbers is multiplied: the type of sums, and ``sum + inputs * weights`` for vectors."""

    sums: Any
    add: Callable[[Code, Value, Value, Value], Value]


def _f32(code: Code, total: Value, x: Value, w: Value) -> Value:
    return code.fma(code.b.bitcast(x, FLOATS), code.b.bitcast(w, FLOATS), total)


def _bf16(code: Code, total: Value, x: Value, w: Value) -> Value:
    x, w = code.b.bitcast(x, _BFLOATS), code.b.bitcast(w, _BFLOATS)
    return code.call("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, x, w)


def _int8(code: Code, total: Value, x: Value, w: Value) -> Value:
    x, w = code.b.bitcast(x, BYTES), code.b.bitcast(w, BYTES)
    return code.call("llvm.x86.avx512.vpdpbusd.512", WORDS, total, w, x)  # the unsigned operand comes first


MULTIPLY = {"f32": Multiply(FLOATS, _f32), "bf16": Multiply(FLOATS, _bf16), "int8": Multiply(WORDS, _int8)}


def routine(emit: Callable[..., None]) -> Any:
    """Make ``emit(code, *integers)``, which writes the instructions, a function of compiled code."""

    @intrinsic
    @functools.wraps(emit)
    def typed(_context: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            emit(Code(builder), *values)
            return context.get_dummy_value()

        return types.void(*[types.intp] * len(arguments)), generate

    return typed


@routine
def transpose_words(code: Code, source: Value, source_stride: Value, target: Value, target_stride: Value) -> None:
    """Write 16 rows of 16 words as 16 rows of 16 words, the first of which are the first words of all."""
    rows = [code.load(code.at(source, code.times(source_stride, i)), WORDS) for i in range(LANES)]
    for half in (8, 4, 2, 1):  # exchange the off-diagonal blocks of this size
        turned = []
        for i, row in enumerate(rows):
            upper, lower = (row, rows[i | half]) if not i & half else (rows[i ^ half], row)
            if not i & half:
                lanes = [LANES + (lane ^ half) if lane & half else lane for lane in range(LANES)]
            else:
                lanes = [LANES + lane if lane & half else lane ^ half for lane in range(LANES)]
            turned.append(code.b.shuffle_vector(upper, lower, ir.Constant(WORDS, lanes)))
        rows = turned
    for i, row in enumerate(rows):
        code.store(row, code.at(target, code.times(target_stride, i)))


def outer_tile(kind: str, rows: int, columns: int) -> Any:
    """``out += x @ w`` for so many rows of inputs and so many vectors of 16 columns; sums stay in registers.

    The function takes (x, stride of x, w, steps, out, stride of out). A step is a word of each row of x and
    ``columns`` vectors of w, which follow each other.
    """
    sums, add = MULTIPLY[kind]
    cells = [(i, j) for i in range(rows) for j in range(columns)]

    @routine
    def tile(code: Code, x: Value, x_stride: Value, w: Value, steps: Value, out: Value, out_stride: Value) -> None:
        lines = [code.at(x, code.times(x_stride, i)) for i in range(rows)]
        places = {(i, j): code.at(out, code.times(out_stride, i), VECTOR * j) for i, j in cells}
        totals = {cell: code.variable(code.load(places[cell], sums)) for cell in cells}
        with code.loop(steps) as step:
            _outer(code, add, totals, lines, code.times(step, 4), code.at(w, code.times(step, VECTOR * columns)))
        for cell in cells:
            code.store(code.b.load(totals[cell]), places[cell])

    return tile


def scaled_outer_tile(kind: str, rows: int, columns: int) -> Any:
    """``out += sum over groups of (start + x @ w) * scale of x * scale of w``, out and scales float32.

    The function takes (x, stride of x, its scales, starts, stride of both, w, its scales, groups, steps of a group,
    out, stride of out). Each row of x has a scale and a start for each group; w has a scale for each group and column.
    Starts are integers: what the sum of ``int8`` begins with. Of ``bf16`` only w has scales, and there are no starts.
    """
    sums, add = MULTIPLY[kind]
    cells = [(i, j) for i in range(rows) for j in range(columns)]

    @routine
    def tile(
        code: Code,
        x: Value,
        x_stride: Value,
        x_scales: Value,
        starts: Value,
        group_stride: Value,
        w: Value,
        w_scales: Value,
        groups: Value,
        steps: Value,
        out: Value,
        out_stride: Value,
    ) -> None:
        lines = [code.at(x, code.times(x_stride, i)) for i in range(rows)]
        places = {(i, j): code.at(out, code.times(out_stride, i), VECTOR * j) for i, j in cells}
        totals = {cell: code.variable(code.load(places[cell], FLOATS)) for cell in cells}
        parts = {cell: code.variable(zero(sums)) for cell in cells}
        with code.loop(groups) as group:
            mine = [code.at(code.times(group_stride, i), code.times(group, 4)) for i in range(rows)]
            for i, j in cells:
                begin = code.splat(code.load(code.at(starts, mine[i]), I32)) if sums is WORDS else zero(sums)
                code.b.store(begin, parts[i, j])
            first = code.b.mul(group, steps)
            with code.loop(steps) as step:
                now = code.at(first, step)
                _outer(code, add, parts, lines, code.times(now, 4), code.at(w, code.times(now, VECTOR * columns)))
            for j in range(columns):
                of_w = code.load(code.at(w_scales, code.times(group, VECTOR * columns), VECTOR * j), FLOATS)
                for i in range(rows):
                    part, scale = code.b.load(parts[i, j]), of_w
                    if sums is WORDS:
                        part = code.b.sitofp(part, FLOATS)
                        scale = code.b.fmul(scale, code.splat(code.load(code.at(x_scales, mine[i]), F32)))
                    code.b.store(code.fma(part, scale, code.b.load(totals[i, j])), totals[i, j])
        for cell in cells:
            code.store(code.b.load(totals[cell]), places[cell])

    return tile


def _outer(code: Code, add: Any, totals: dict[tuple[int, int], Value], lines: list[Value], at: Value, w: Value) -> None:
    """One step: the word at *at* of each line times the vectors at *w*."""
    columns = 1 + max(j for _, j in totals)
    weights = [code.load(code.at(w, VECTOR * j), WORDS) for j in range(columns)]
    for i, line in enumerate(lines):
        word = code.splat(code.load(code.at(line, at), I32))
        for j, weight in enumerate(weights):
            code.b.store(add(code, code.b.load(totals[i, j]), word, weight), totals[i, j])


class Stored(NamedTuple):
    """How weights lie in memory: bytes of each, and what makes vectors of one kind of number from them."""

    size: int
    widen: Callable[[Code, Value], Value]


def _from_f16(code: Code, raw: Value) -> Value:
    return code.b.fpext(code.b.bitcast(raw, ir.VectorType(ir.HalfType(), LANES)), FLOATS)


def _from_int8(code: Code, raw: Value) -> Value:
    return code.b.sitofp(code.b.sext(raw, WORDS), FLOATS)


def _unsigned(code: Code, raw: Value) -> Value:
    return code.b.xor(raw, ir.Constant(BYTES, [-128] * VECTOR))  # 128 more


#: by the kind of number that is multiplied, and what is stored
STORED = {
    ("f32", "f32"): Stored(4, lambda code, raw: raw),
    ("f32", "f16"): Stored(2, _from_f16),
    ("f32", "int8"): Stored(1, _from_int8),
    ("bf16", "bf16"): Stored(2, lambda code, raw: raw),
    ("int8", "int8"): Stored(1, _unsigned),
}
_SIZE = {"f32": 4, "bf16": 2, "int8": 1}


def inner_tile(kind: str, stored: str, rows: int, unroll: int) -> Any:
    """The products of so many rows of inputs with one row of weights, which is read as it lies.

    The function takes (x, stride of x, w, count, out): *count* numbers of each row are multiplied, and out gets a word
    for each row: float32, or int32 for ``int8``, whose weights count 128 too much. Nothing beyond the count is read.
    """
    sums, add = MULTIPLY[kind]
    size, (width, widen) = _SIZE[kind], STORED[kind, stored]
    many = VECTOR // size  # numbers in a vector
    raw = ir.VectorType(I8, many * width)

    @routine
    def tile(code: Code, x: Value, x_stride: Value, w: Value, count: Value, out: Value) -> None:
        lines = [code.at(x, code.times(x_stride, i)) for i in range(rows)]
        totals = [[code.variable(zero(sums)) for _ in range(unroll)] for _ in range(rows)]

        def step(k: Value, u: int) -> None:
            weights = widen(code, code.load(code.at(w, code.times(k, width)), raw))
            for line, total in zip(lines, totals, strict=True):
                inputs = code.load(code.at(line, code.times(k, size)), BYTES)
                code.b.store(add(code, code.b.load(total[u]), inputs, weights), total[u])

        blocks = code.b.udiv(count, I64(many * unroll))
        with code.loop(blocks) as block:
            for u in range(unroll):
                step(code.at(code.times(block, many * unroll), many * u), u)
        done = code.times(blocks, many * unroll)
        vectors = code.b.udiv(code.b.sub(count, done), I64(many))
        with code.loop(vectors) as vector:
            step(code.at(done, code.times(vector, many)), 0)
        done = code.at(done, code.times(vectors, many))
        left = code.b.sub(count, done)
        with code.when(code.b.icmp_signed(">", left, I64(0))):
            some = code.load_first(code.at(w, code.times(done, width)), code.times(left, width))
            lanes = ir.Constant(ir.VectorType(I32, raw.count), list(range(raw.count)))
            weights = widen(code, code.b.shuffle_vector(some, some, lanes))
            for line, total in zip(lines, totals, strict=True):
                inputs = code.load_first(code.at(line, code.times(done, size)), code.times(left, size))
                code.b.store(add(code, code.b.load(total[0]), inputs, weights), total[0])
        for i, total in enumerate(totals):
            value = code.b.load(total[0])
            for other in total[1:]:
                value = code.plus(value, code.b.load(other))
            code.store(code.total(value), code.at(out, 4 * i))

    return tile
