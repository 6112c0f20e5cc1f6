"""Integers of 4 and 8 bits and their scales, packed for the tiles of many rows: see ``microkernels`` and ``integers``.

A word of 32 bits holds as many numbers as one instruction multiplies: four int8, two bfloat16, or one float32.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ferrum_ops.kernels.cpu.integers import SCALE_SIZE, Format, widened
from ferrum_ops.kernels.cpu.llvm import F32, I8, I16, I32, I64, LANES, WORDS, Code, Value, filled, lanes, routine
from ferrum_ops.kernels.cpu.microkernels import transposed

__all__ = ["pack_integers", "pack_scales"]

#: the least group, of which the largest vector of numbers has two
_LEAST = 32


def pack_integers(form: Format) -> Any:
    """Write 16 rows of integers so that a vector holds one word of each: see ``packer`` in ``microkernels``.

    The function takes (values, stride, scales, stride, zeros, stride, rows, first number, count, group, target, stride
    of target). ``int8`` gets integers with 128 added of 8 bits, and 16 of 4 bits after their zero is taken off;
    ``bf16`` integers less their zero; ``f32`` those times their scale. Groups are multiples of 32.
    """
    kind, many = form.kind, form.block // form.inputs  # numbers in a vector

    def numbers(code: Code, raw: Value, zero_of: Value | None, scale: Value) -> Value:
        if form.bits == 4:
            halves = [code.b.and_(raw, filled(raw.type, 15)), code.b.lshr(raw, filled(raw.type, 4))]
            places = [i // 2 + i % 2 * raw.type.count for i in range(many)]
            raw = code.b.shuffle_vector(*halves, lanes(places))
            less = filled(raw.type, 8) if zero_of is None else zero_of
            raw = code.b.sub(raw, less)
        if kind == "int8":
            return code.b.add(raw, filled(raw.type, 16 if form.bits == 4 else -128))
        bits = ir.VectorType(I32, many)
        wide = code.b.sitofp(code.b.sext(raw, bits), ir.VectorType(F32, many))
        if kind == "f32":
            return code.b.fmul(wide, code.splat(scale))
        high = code.b.lshr(code.b.bitcast(wide, bits), filled(bits, 16))
        return code.b.trunc(high, ir.VectorType(I16, many))

    @routine
    def pack(
        code: Code, values: Value, value_stride: Value, scales: Value, scale_stride: Value, zeros: Value,
        zero_stride: Value, rows: Value, first: Value, count: Value, group: Value, to: Value, to_stride: Value,
    ) -> None:  # fmt: skip
        last = code.b.sub(rows, I64(1))
        numbered = [code.b.select(code.b.icmp_signed("<", I64(i), rows), I64(i), last) for i in range(LANES)]
        of_values, of_scales, of_zeros = (
            [code.at(address, code.b.mul(stride, n)) for n in numbered]
            for address, stride in ((values, value_stride), (scales, scale_stride), (zeros, zero_stride))
        )

        def zero_of(address: Value, k: Value, left: Value | None) -> Value:
            """The zeros of the numbers from *k* on: of one group, or of one for each half."""
            each = []
            for half in range(max(many // _LEAST, 1)):
                ahead: Value = I64(_LEAST * half)
                if left is not None:  # there may be no second group
                    end = code.at(left, -1)
                    ahead = code.b.select(code.b.icmp_signed("<", ahead, end), ahead, end)
                found = code.load(code.at(address, code.b.udiv(code.at(k, ahead), group)), I8)
                each.append(code.splat(found, many))
            if len(each) == 1:
                return each[0]
            return code.b.shuffle_vector(each[0], each[1], lanes(i + i // _LEAST * many for i in range(many)))

        def block(k: Value, left: Value | None) -> None:
            words = []
            at = code.at(first, k)
            for value, scale, offset in zip(of_values, of_scales, of_zeros, strict=True):
                place = code.at(value, code.b.udiv(code.times(at, form.bits), I64(8)))
                size = many * form.bits // 8
                if left is None:
                    raw = code.load(place, ir.VectorType(I8, size))
                else:
                    bytes_ = code.b.udiv(code.at(code.times(left, form.bits), 7), I64(8))
                    raw = code.pick(code.load_first(place, bytes_), range(size))
                factor = None
                if kind == "f32":
                    width = SCALE_SIZE[form.scales]
                    found = code.load(
                        code.at(scale, code.times(code.b.udiv(at, group), width)), ir.VectorType(I8, width)
                    )
                    factor = code.b.extract_element(widened(code, found, form.scales), I32(0))
                vector = numbers(code, raw, zero_of(offset, at, left) if form.zeros else None, factor)
                words.append(code.b.bitcast(vector, WORDS))
            line = code.b.udiv(k, I64(many // LANES))
            code.store_rows(transposed(code, words), code.at(to, code.b.mul(to_stride, line)), to_stride)

        whole = code.b.udiv(count, I64(many))
        with code.loop(whole) as vector:
            block(code.times(vector, many), None)
        left = code.b.sub(count, code.times(whole, many))
        with code.when(code.b.icmp_signed(">", left, I64(0))):
            block(code.times(whole, many), left)

    return pack


def pack_scales(scales: str) -> Any:
    """Write the scales of 16 rows as vectors, one for each piece of a row.

    The function takes (scales, stride, rows, first number, numbers of a piece, pieces, group, target, its stride).
    """
    width = SCALE_SIZE[scales]

    @routine
    def pack(
        code: Code, address: Value, stride: Value, rows: Value, first: Value, piece: Value, pieces: Value,
        group: Value, to: Value, to_stride: Value,
    ) -> None:  # fmt: skip
        last = code.b.sub(rows, I64(1))
        with code.loop(pieces) as p:
            at = code.times(code.b.udiv(code.at(first, code.b.mul(p, piece)), group), width)
            for i in range(LANES):
                row = code.b.select(code.b.icmp_signed("<", I64(i), rows), I64(i), last)
                raw = code.load(code.at(address, code.b.mul(stride, row), at), ir.VectorType(I8, width))
                code.store(widened(code, raw, scales), code.at(to, code.b.mul(to_stride, p), 4 * i))

    return pack
