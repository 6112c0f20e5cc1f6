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

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from ferrum_ops.kernels.cpu.llvm import (
    BFLOATS,
    BYTES,
    F32,
    FLOATS,
    I8,
    I16,
    I32,
    I64,
    LANES,
    VECTOR,
    WORDS,
    Code,
    Value,
    filled,
    lanes,
    question,
    routine,
    zero,
)

__all__ = [
    "SIZE",
    "STORED",
    "any_nan",
    "clear",
    "inner_tile",
    "outer_tile",
    "packer",
    "scaled_outer_tile",
    "take_row",
    "write_bf16",
    "write_f16",
    "write_f32",
]


class Multiply(NamedTuple):
    """How a kind of numbers is multiplied: the type of sums, and ``sum + inputs * weights`` for vectors."""

    sums: Any
    add: Callable[[Code, Value, Value, Value], Value]


def _f32(code: Code, total: Value, x: Value, w: Value) -> Value:
    return code.fma(code.b.bitcast(x, FLOATS), code.b.bitcast(w, FLOATS), total)


def _bf16(code: Code, total: Value, x: Value, w: Value) -> Value:
    x, w = code.b.bitcast(x, BFLOATS), code.b.bitcast(w, BFLOATS)
    return code.call("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, x, w)


def _int8(code: Code, total: Value, x: Value, w: Value) -> Value:
    x, w = code.b.bitcast(x, BYTES), code.b.bitcast(w, BYTES)
    return code.call("llvm.x86.avx512.vpdpbusd.512", WORDS, total, w, x)  # the unsigned operand comes first


MULTIPLY = {"f32": Multiply(FLOATS, _f32), "bf16": Multiply(FLOATS, _bf16), "int8": Multiply(WORDS, _int8)}


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
        totals = {cell: code.variable(zero(sums)) for cell in cells}
        with code.loop(steps) as step:
            _outer(code, add, totals, lines, code.times(step, 4), code.at(w, code.times(step, VECTOR * columns)))
        for cell, place in places.items():  # added last, since sums of sums lose less than one long sum
            code.store(code.plus(code.b.load(totals[cell]), code.load(place, sums)), place)

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
    return code.b.xor(raw, filled(BYTES, -128))  # 128 more


def _bf16_from_int8(code: Code, raw: Value) -> Value:
    words = ir.VectorType(I32, 32)
    wide = code.b.bitcast(code.b.sitofp(code.b.sext(raw, words), ir.VectorType(F32, 32)), words)
    return code.b.trunc(code.b.lshr(wide, filled(words, 16)), ir.VectorType(I16, 32))  # exact: eight bits suffice


#: by the kind of number that is multiplied, and what is stored
STORED = {
    ("f32", "f32"): Stored(4, lambda code, raw: raw),
    ("f32", "f16"): Stored(2, _from_f16),
    ("f32", "int8"): Stored(1, _from_int8),
    ("bf16", "bf16"): Stored(2, lambda code, raw: raw),
    ("bf16", "int8"): Stored(1, _bf16_from_int8),
    ("int8", "int8"): Stored(1, _unsigned),
}
SIZE = {"f32": 4, "bf16": 2, "int8": 1}


def transposed(code: Code, rows: list[Value]) -> list[Value]:
    """16 vectors of 16 words: the first has the first words of all, and so on."""
    for half in (8, 4, 2, 1):  # exchange the off-diagonal blocks of this size
        turned = []
        for i, row in enumerate(rows):
            upper, lower = (rows[i ^ half], row) if i & half else (row, rows[i ^ half])
            if i & half:
                places = [LANES + lane if lane & half else lane + half for lane in range(LANES)]
            else:
                places = [LANES + lane - half if lane & half else lane for lane in range(LANES)]
            turned.append(code.b.shuffle_vector(upper, lower, lanes(places)))
        rows = turned
    return rows


def packer(kind: str, stored: str) -> Any:
    """Write 16 rows of weights so that a vector holds one word of each: one vector of what ``outer_tile`` takes.

    The function takes (w, stride of w, rows, count, target, stride of target). Of each row *count* numbers are read,
    and zeros fill up the last vectors' worth of 16 words. Where there are fewer than 16 rows, the last is repeated.
    """
    size, (width, widen) = SIZE[kind], STORED[kind, stored]
    many = VECTOR // size

    @routine
    def pack(code: Code, w: Value, stride: Value, rows: Value, count: Value, to: Value, to_stride: Value) -> None:
        last = code.b.sub(rows, I64(1))
        lines = []
        for i in range(LANES):
            row = code.b.select(code.b.icmp_signed("<", I64(i), rows), I64(i), last)
            lines.append(code.at(w, code.b.mul(stride, row)))

        def block(k: Value, read: Callable[[Value], Value]) -> None:
            words = [code.b.bitcast(widen(code, read(code.at(line, code.times(k, width)))), WORDS) for line in lines]
            first = code.at(to, code.b.mul(to_stride, code.b.udiv(code.times(k, size), I64(4))))
            code.store_rows(transposed(code, words), first, to_stride)

        whole = code.b.udiv(count, I64(many))
        with code.loop(whole) as vector:
            block(code.times(vector, many), lambda address: code.load(address, ir.VectorType(I8, many * width)))
        done = code.times(whole, many)
        left = code.b.sub(count, done)
        with code.when(code.b.icmp_signed(">", left, I64(0))):
            block(done, lambda address: _first(code, address, left, many, width))

    return pack


def _first(code: Code, address: Value, count: Value, many: int, width: int) -> Value:
    """The first *count* of *many* numbers of so many bytes, and zeros."""
    some = code.load_first(address, code.times(count, width))
    return code.pick(some, range(many * width))


def inner_tile(kind: str, stored: str, rows: int) -> Any:
    """The products of so many rows of inputs with four rows of weights, which are read as they lie.

    The function takes (x, stride of x, four addresses of weights, count, out, stride of out, step of out): *count*
    numbers of each row are multiplied, and ``out`` gets a float32 for each pair: rows lie a stride apart, weights a
    step. Nothing beyond the count is read. Each row of weights should go on where the one of the call before ended,
    so that memory is read in four long streams.
    """
    sums, add = MULTIPLY[kind]
    size, (width, widen) = SIZE[kind], STORED[kind, stored]
    many = VECTOR // size  # numbers in a vector
    raw = ir.VectorType(I8, many * width)
    unroll = 2 if rows == 1 else 1

    @routine
    def tile(
        code: Code, x: Value, x_stride: Value, w0: Value, w1: Value, w2: Value, w3: Value, count: Value,
        out: Value, out_stride: Value, out_step: Value,
    ) -> None:  # fmt: skip
        columns = (w0, w1, w2, w3)
        lines = [code.at(x, code.times(x_stride, i)) for i in range(rows)]
        totals = {(i, j): [code.variable(zero(sums)) for _ in range(unroll)] for i in range(rows) for j in range(4)}

        def step(k: Value, u: int, left: Value | None = None) -> None:
            if left is None:
                weights = [code.load(code.at(w, code.times(k, width)), raw) for w in columns]
                inputs = [code.load(code.at(line, code.times(k, size)), BYTES) for line in lines]
            else:
                weights = [_first(code, code.at(w, code.times(k, width)), left, many, width) for w in columns]
                inputs = [code.load_first(code.at(line, code.times(k, size)), code.times(left, size)) for line in lines]
            weights = [widen(code, weight) for weight in weights]
            for (i, j), total in totals.items():
                code.b.store(add(code, code.b.load(total[u]), inputs[i], weights[j]), total[u])

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
            step(done, 0, left)
        for (i, j), total in totals.items():
            value = code.b.load(total[0])
            for other in total[1:]:
                value = code.plus(value, code.b.load(other))
            place = code.at(out, code.times(out_stride, i), code.times(out_step, j))
            code.store(code.total(value), place)

    return tile


def _to_f32(code: Code, x: Value) -> Value:
    return x


def _to_f16(code: Code, x: Value) -> Value:
    return code.b.fptrunc(x, ir.VectorType(ir.HalfType(), LANES))


def _to_bf16(code: Code, x: Value) -> Value:
    # To the nearest, ties to even: the half of the last place less one, plus the last bit, carries where it must.
    bits = code.b.bitcast(x, WORDS)
    odd = code.b.and_(code.b.lshr(bits, filled(WORDS, 16)), filled(WORDS, 1))
    rounded = code.b.add(bits, code.b.add(odd, filled(WORDS, 0x7FFF)))
    quiet = code.b.or_(bits, filled(WORDS, 0x400000))
    kept = code.b.select(code.b.fcmp_unordered("uno", x, x), quiet, rounded)
    return code.b.trunc(code.b.lshr(kept, filled(WORDS, 16)), ir.VectorType(I16, LANES))


def row_writer(columns: int, size: int, convert: Callable[[Code, Value], Value]) -> Any:
    """``out = convert(sums * scales + biases)``, for the sums of a row of a tile.

    The function takes (sums, scales, biases, out, count). Of the columns, in vectors, the first *count* are written;
    sums, scales and biases exist for all.
    """

    @routine
    def write(code: Code, sums: Value, scales: Value, biases: Value, out: Value, count: Value) -> None:
        for j in range(columns):
            total, scale, bias = (code.load(code.at(a, VECTOR * j), FLOATS) for a in (sums, scales, biases))
            value = convert(code, code.fma(total, scale, bias))
            code.store_first(value, code.at(out, LANES * size * j), code.at(count, -LANES * j))

    return write


write_f32, write_f16, write_bf16 = (
    row_writer(2, size, convert) for size, convert in ((4, _to_f32), (2, _to_f16), (2, _to_bf16))
)


@routine
def clear(code: Code, address: Value, vectors: Value) -> None:
    """Fill so many vectors with zeros."""
    with code.loop(vectors) as vector:
        code.store(zero(WORDS), code.at(address, code.times(vector, VECTOR)))


@question
def any_nan(code: Code, address: Value, count: Value) -> Value:
    """Whether one of so many float32 is NaN."""
    found = code.variable(zero(WORDS))
    with code.loop(code.b.udiv(code.at(count, LANES - 1), I64(LANES))) as vector:
        left = code.times(code.b.sub(count, code.times(vector, LANES)), 4)
        raw = code.load_first(code.at(address, code.times(vector, VECTOR)), left)
        numbers = code.b.bitcast(raw, FLOATS)
        nan = code.b.sext(code.b.fcmp_unordered("uno", numbers, numbers), WORDS)
        code.b.store(code.b.or_(code.b.load(found), nan), found)
    bits = code.call("llvm.vector.reduce.or.v16i32", I32, code.b.load(found))
    return code.b.icmp_signed("!=", bits, I32(0))


@routine
def take_row(code: Code, to: Value, source: Value, count: Value, default: Value) -> None:
    """The first *count* of 32 float32 from *source*, or the integer *default* 32 times if that is 0."""
    with code.b.if_else(code.b.icmp_signed("==", source, I64(0))) as (none, some):
        with none:
            value = code.splat(code.b.sitofp(default, F32))
            for j in range(2):
                code.store(value, code.at(to, VECTOR * j))
        with some:
            for j in range(2):
                left = code.times(code.at(count, -LANES * j), 4)
                code.store(code.load_first(code.at(source, VECTOR * j), left), code.at(to, VECTOR * j))
