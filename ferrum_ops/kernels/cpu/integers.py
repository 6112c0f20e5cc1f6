"""Products of few rows of inputs with integers of 4 and 8 bits that have scales, for processors with AVX-512.

What packs them for many rows is in ``integer_panels``.

Weights are read as ``IntScheme`` stores them, 64 bytes at a time, of four rows at once. Of 8 bits the four lie far
apart, so that memory is read in four long streams: see ``microkernels``. Of 4 bits they lie side by side, and what
comes after them is asked for ahead: 46 G weights a second with one thread where four streams give 31. (8 bits are
slower so, up to a third where inputs have 8 bits too.) Inputs are arranged for that once, by ``as_records`` in
``inputs``: in vectors as they meet those 64 bytes, one block after another, and behind all blocks two vectors for each
piece, which is a group of numbers or a block of several.

Of 4 bits, the lane of 32 bits number l of 64 bytes holds the numbers 8 l to 8 l + 7, and every way of multiplying them
below leaves their sum in lane l; of 8 bits, 4 l to 4 l + 3. So a vector of scales, each repeated for the lanes of its
group, brings all sums of a piece to one scale at once. (Of 8 bits and float32, vectors lie along the row instead.)

========  =====  ======================================================================================
``int8``  8, 4   ``vpdpbusd``; what was added to the weights to make them unsigned is taken off again
                 through the piece: minus so many times the sum of the lane's inputs, exact
``bf16``  4      the numbers of a lane are looked up as bfloat16, which holds them exactly: ``vdpbf16ps``
``bf16``  8      a number is the sum of two that bfloat16 holds and that its bits are put into:
                 128 plus the seven low bits, and -128 or, where the high bit is set, -256
``f32``   4, 8   looked up, or converted, as float32
========  =====  ======================================================================================

Where a weight is the difference of two numbers that are multiplied each for itself (zeros of groups, and bfloat16 with
8 bits), an infinite input makes NaN of what should be infinite. A tile for weights in one part multiplies their
difference. That takes longer, so it only makes once more what is found to be NaN.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, NamedTuple

from llvmlite import ir

from ferrum_ops.kernels.cpu.llvm import (
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
    routine,
    zero,
)
from ferrum_ops.kernels.cpu.microkernels import MULTIPLY

__all__ = ["SCALE_SIZE", "Format", "blocks_of_piece", "inner_integers", "widened"]


class Format(NamedTuple):
    """What a tile is made for.

    Attributes:
        kind: the numbers that are multiplied: ``int8``, ``bf16`` or ``f32``.
        bits: of the weights: 4 or 8.
        zeros: whether groups of weights have a zero of their own; else 8 stands for 0 in 4 bits, and 0 in 8 bits.
        scales: how scales are stored: ``f32``, ``f16`` or ``bf16``.
        share: how many groups share 64 bytes of weights; 1 also where groups are larger.
    """

    kind: str
    bits: int
    zeros: bool
    scales: str
    share: int

    @property
    def block(self) -> int:
        """How many numbers 64 bytes of weights hold."""
        return VECTOR * 8 // self.bits

    @property
    def inputs(self) -> int:
        """How many vectors the inputs of a block are."""
        return self.block * {"int8": 1, "bf16": 2, "f32": 4}[self.kind] // VECTOR

    @property
    def near(self) -> bool:
        """Whether the rows of weights that are read at once lie side by side."""
        return self.bits == 4

    @property
    def split(self) -> bool:
        """Whether inputs meet weights in two parts, whose infinities can have opposite signs."""
        return self.kind != "int8" and (self.zeros or (self.kind == "bf16" and self.bits == 8))


def blocks_of_piece(group: int, count: int, block: int) -> int:
    """How many blocks a piece of a row of *count* numbers is."""
    return max(1, min(group, count) // block)


HALVES = ir.VectorType(I16, 32)
_ELEMENTS = {"f32": F32, "f16": ir.HalfType(), "bf16": I16}
#: how many numbers ahead weights are asked for
_AHEAD = 8192
#: bytes of a scale
SCALE_SIZE = {"f32": 4, "f16": 2, "bf16": 2}


def widened(code: Code, raw: Value, scales: str) -> Value:
    """float32 from bytes of so many scales."""
    count = raw.type.count // SCALE_SIZE[scales]
    stored, wide = code.b.bitcast(raw, ir.VectorType(_ELEMENTS[scales], count)), ir.VectorType(F32, count)
    if scales == "f16":
        return code.b.fpext(stored, wide)
    if scales == "bf16":
        bits = ir.VectorType(I32, count)
        return code.b.bitcast(code.b.shl(code.b.zext(stored, bits), filled(bits, 16)), wide)
    return stored


def _looked_up(form: Format, code: Code, raw: Value, t: int) -> list[Value]:
    """What vector number *t* of the inputs of a block is multiplied with."""
    if form.bits == 8:
        return _of_eight_bits(form, code, raw, t)
    if form.kind == "int8":
        return [code.b.and_(code.b.lshr(raw, filled(BYTES, 4)) if t else raw, filled(BYTES, 15))]
    numbers = [number if form.zeros else number - 8 for number in range(16)]
    if form.kind == "f32":  # the lowest four bits of a lane choose
        places = code.b.lshr(code.b.bitcast(raw, WORDS), filled(WORDS, 4 * t))
        table = ir.Constant(FLOATS, [float(number) for number in numbers])
        return [code.call("llvm.x86.avx512.permvar.sf.512", FLOATS, table, code.b.bitcast(places, WORDS))]
    # the lowest five bits choose, of which the fifth says nothing
    places = code.b.lshr(code.b.bitcast(raw, HALVES), filled(HALVES, 4 * t))
    table = ir.Constant(HALVES, [_bf16(number) for number in numbers] * 2)
    return [code.call("llvm.x86.avx512.permvar.hi.512", HALVES, table, places)]


def _of_eight_bits(form: Format, code: Code, raw: Value, t: int) -> list[Value]:
    if form.kind == "int8":
        return [code.b.xor(raw, filled(BYTES, -128))]
    if form.kind == "f32":
        some = code.pick(raw, range(LANES * t, LANES * (t + 1)))
        return [code.b.sitofp(code.b.sext(some, WORDS), FLOATS)]
    halves = code.b.bitcast(raw, HALVES)
    if t:
        halves = code.b.lshr(halves, filled(HALVES, 8))
    low = code.b.or_(code.b.and_(halves, filled(HALVES, 0x7F)), filled(HALVES, _bf16(128)))
    high = code.b.or_(code.b.and_(halves, filled(HALVES, 0x80)), filled(HALVES, _bf16(-128)))
    return [low, high]


def _bf16(number: float) -> int:
    return int.from_bytes(struct.pack(">f", number)[:2], "big", signed=True)


def _in_one_part(form: Format, code: Code, raw: Value, t: int, zeros: list[Value]) -> Value:
    """What vector number *t* is multiplied with as ``_looked_up`` gives it, but less the zeros, in one part."""
    if form.kind == "f32":
        return code.b.fsub(_looked_up(form, code, raw, t)[0], zeros[0])
    if form.bits == 8:  # every second byte, with its sign
        halves = code.b.bitcast(raw, HALVES)
        halves = code.b.ashr(halves if t else code.b.shl(halves, filled(HALVES, 8)), filled(HALVES, 8))
    else:
        halves = code.b.and_(code.b.lshr(code.b.bitcast(raw, HALVES), filled(HALVES, 4 * t)), filled(HALVES, 15))
    wide, bits = ir.VectorType(F32, 2 * LANES), ir.VectorType(I32, 2 * LANES)
    numbers = code.b.sitofp(halves, wide)
    if zeros:
        numbers = code.b.fsub(numbers, code.pick(zeros[0], [i // 2 for i in range(2 * LANES)]))
    return code.b.trunc(code.b.lshr(code.b.bitcast(numbers, bits), filled(bits, 16)), HALVES)  # exact: eight bits do


class _Block:
    """The code for 64 bytes of weights and the inputs of some rows, in records."""

    def __init__(self, form: Format, code: Code, lines: list[Value], pieces: Value, one_part: bool) -> None:
        """*pieces*: how far behind the beginning of a record its pieces are."""
        self.form, self.code, self.lines, self.pieces, self.one_part = form, code, lines, pieces, one_part
        self.sums, self.add = MULTIPLY[form.kind]
        #: 8 bits become float32 in the order of memory, where a group is some vectors, not lanes of all vectors
        self.in_order = form.bits == 8 and form.kind == "f32"
        #: sums that take turns, so that each waits less for itself
        self.turns = 2 if len(lines) == 1 and form.kind != "int8" else 1

    def spread(self, raw: Value) -> list[Value]:
        """Numbers of groups as vectors: one for the lanes of all groups, or one for each group."""
        share = self.form.share
        each = [self.code.pick(raw, [group] * LANES) for group in range(share)]
        if self.in_order:
            return each
        return [self.code.pick(raw, [lane * share // LANES for lane in range(LANES)])]

    def scales(self, address: Value, count: Value | None = None) -> list[Value]:
        """The scales of a piece; so many of them where there are fewer."""
        size = SCALE_SIZE[self.form.scales] * self.form.share
        return self.spread(widened(self.code, self._some(address, size, count, size), self.form.scales))

    def zeros(self, address: Value, count: Value | None = None) -> list[Value]:
        """The zeros of a piece."""
        if not self.form.zeros:
            return []
        raw = self._some(address, self.form.share, count, self.form.share)
        kind = ir.VectorType(F32, self.form.share)
        return self.spread(self.code.b.uitofp(self.code.b.zext(raw, ir.VectorType(I32, self.form.share)), kind))

    def _some(self, address: Value, size: int, count: Value | None, whole: int) -> Value:
        if count is None:
            return self.code.load(address, ir.VectorType(I8, size))
        bytes_ = self.code.times(count, whole // self.form.share)
        return self.code.pick(self.code.load_first(address, bytes_), range(size))

    def start(self, piece: Value) -> list[list[Value]]:
        """What the sums of a piece begin with, for each row."""
        begin = zero(self.sums)
        found = [[begin] * self.turns for _ in self.lines]
        if self.form.kind == "int8" and not self.form.zeros:
            for row, part in enumerate(found):
                part[0] = self.code.load(self._of_piece(row, piece, 1), WORDS)
        return found

    def _of_piece(self, row: int, piece: Value, which: int) -> Value:
        return self.code.at(self.lines[row], self.pieces, self.code.times(piece, 2 * VECTOR), which * VECTOR)

    def multiply(
        self, parts: list[list[Value]], raw: Value, b: Value, zeros: list[Value], these: range | None = None
    ) -> None:
        """Add the products of block number *b*, whose weights are *raw*, to the sums of each row."""
        form, code = self.form, self.code
        records = [code.at(line, code.times(b, VECTOR * form.inputs)) for line in self.lines]
        turn = 0
        for t in these or range(form.inputs):
            found = [_in_one_part(form, code, raw, t, zeros)] if self.one_part else _looked_up(form, code, raw, t)
            inputs = [code.load(code.at(record, VECTOR * t), BYTES) for record in records]
            for weights in found:
                for part, x in zip(parts, inputs, strict=True):
                    part[turn] = self.add(code, part[turn], x, weights)
                turn = (turn + 1) % self.turns

    def scaled(
        self, totals: list[Value], parts: list[list[Value]], piece: Value, scale: Value, zeros: list[Value]
    ) -> None:
        """Bring the sums of a piece to their scale, and add them to one variable for each row."""
        code = self.code
        for row, (total, some) in enumerate(zip(totals, parts, strict=True)):
            part, factor = functools.reduce(code.plus, some), scale
            if self.form.kind == "int8":
                part = code.b.sitofp(part, FLOATS)
                factor = code.b.fmul(factor, code.load(self._of_piece(row, piece, 0), FLOATS))
            if zeros and not self.one_part:
                part = code.fma(code.b.fneg(zeros[0]), code.load(self._of_piece(row, piece, 1), FLOATS), part)
            code.b.store(code.fma(part, factor, code.b.load(total)), total)

    def alone(
        self, totals: list[Value], raw: Value, b: Value, piece: Value, scales: list[Value], zeros: list[Value]
    ) -> None:
        """A block whose piece it is."""
        step = self.form.inputs // len(scales)
        for group, scale in enumerate(scales):
            parts = self.start(piece)
            self.multiply(parts, raw, b, zeros, range(group * step, (group + 1) * step))
            self.scaled(totals, parts, piece, scale, zeros)


def inner_integers(form: Format, rows: int, one_part: bool = False) -> Any:
    """The products of so many rows of inputs with four rows of integers with scales.

    The function takes (records of x, their stride, values, stride, scales, stride, zeros, stride, four row numbers,
    count, blocks of a piece, out, stride of out, step of out). *count* numbers are multiplied; ``out`` gets a float32
    for each pair: rows of inputs lie a stride apart, those of weights a step. Where groups are blocks or more, a piece
    is a group of whole blocks, but that what a row of one group has beyond whole blocks is a piece too.

    Args:
        form: what is multiplied.
        rows: of inputs.
        one_part: weights are multiplied in one part, see above; for a form that is ``split``.
    """
    size, share = SCALE_SIZE[form.scales], form.share

    @routine
    def tile(
        code: Code, x: Value, x_stride: Value, values: Value, value_stride: Value, scales: Value, scale_stride: Value,
        zeros: Value, zero_stride: Value, n0: Value, n1: Value, n2: Value, n3: Value, count: Value, unit: Value,
        out: Value, out_stride: Value, out_step: Value,
    ) -> None:  # fmt: skip
        of_values, of_scales, of_zeros = (
            [code.at(address, code.b.mul(stride, n)) for n in (n0, n1, n2, n3)]
            for address, stride in ((values, value_stride), (scales, scale_stride), (zeros, zero_stride))
        )
        blocks = code.b.udiv(code.at(count, form.block - 1), I64(form.block))
        lines = [code.at(x, code.times(x_stride, i)) for i in range(rows)]
        block = _Block(form, code, lines, code.times(blocks, form.inputs * VECTOR), one_part)
        totals = [[code.variable(zero(FLOATS)) for _ in range(rows)] for _ in of_values]

        def factors(group: Value, left: Value | None = None) -> list[tuple[list[Value], list[Value]]]:
            return [
                (block.scales(code.at(s, code.times(group, size)), left), block.zeros(code.at(z, group), left))
                for s, z in zip(of_scales, of_zeros, strict=True)
            ]

        def raw(j: int, b: Value) -> Value:
            if form.near:
                code.prefetch(code.at(of_values[0], code.times(b, 4 * VECTOR), form.bits * _AHEAD // 8 + VECTOR * j))
            return code.load(code.at(of_values[j], code.times(b, VECTOR)), BYTES)

        whole = code.b.udiv(count, I64(form.block))
        if share > 1:
            with code.loop(whole) as b:
                for j, (scale, offset) in enumerate(factors(code.times(b, share))):
                    block.alone(totals[j], raw(j, b), b, b, scale, offset)
            last = whole
        else:
            last = code.b.udiv(whole, unit)
            with code.loop(last) as piece:
                parts = [[[code.variable(v) for v in row] for row in block.start(piece)] for _ in of_values]
                of_piece = factors(piece) if one_part else []  # else after the sums, which need the registers
                zeros_of = [offset for _, offset in of_piece] or [[] for _ in of_values]
                first = code.b.mul(piece, unit)
                with code.loop(unit) as i:
                    b = code.at(first, i)
                    for j, (mine, offset) in enumerate(zip(parts, zeros_of, strict=True)):
                        now = [[code.b.load(v) for v in row] for row in mine]
                        block.multiply(now, raw(j, b), b, offset)
                        for row, changed in zip(mine, now, strict=True):
                            for v, value in zip(row, changed, strict=True):
                                code.b.store(value, v)
                for sums, mine, (scale, offset) in zip(totals, parts, of_piece or factors(piece), strict=True):
                    block.scaled(sums, [[code.b.load(v) for v in row] for row in mine], piece, scale[0], offset)
        left = code.b.sub(count, code.times(whole, form.block))
        with code.when(code.b.icmp_signed(">", left, I64(0))):
            bytes_ = code.b.udiv(code.at(code.times(left, form.bits), 7), I64(8))
            groups = code.b.udiv(code.times(left, share), I64(form.block)) if share > 1 else None
            found = factors(code.times(whole, share) if share > 1 else I64(0), groups)
            for line, sums, (scale, offset) in zip(of_values, totals, found, strict=True):
                some = code.load_first(code.at(line, code.times(whole, VECTOR)), bytes_)
                block.alone(sums, some, whole, last, scale, offset)
        for j, sums in enumerate(totals):
            for i, total in enumerate(sums):
                place = code.at(out, code.times(out_stride, i), code.times(out_step, j))
                code.store(code.total(code.b.load(total)), place)

    return tile
