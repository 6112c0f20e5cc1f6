"""Arithmetic inside compiled code that numba does not have: 16-bit floats, and exponentials that become vectors.

Elements are read and written by ``get`` and ``put``, which go by the type of the array: float32, bfloat16 as ``uint16``
and float16 as ``int16`` (see ``arrays``) are read as float32, and int8 too. Writing rounds to the nearest, ties to
even; NaN stays NaN and what is too large becomes infinite. Places count from 0 and are not checked, which is also what
lets loops over them become vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types as untyped_types
from numba.core import cgutils as untyped

from ferrum_ops.kernels.cpu.jit import intrinsic

__all__ = [
    "INFINITE", "exp", "exp_below", "from_bits", "get", "get_bits", "get_int", "magnitude", "put", "put_int", "unpack",
    "unpack_and_bits", "unpack_e2m1", "unpack_two", "widen", "write_exp", "write_exp_below",
]  # fmt: skip

types: Any = untyped_types  # numba's types are of some versions and incomplete
cgutils: Any = untyped

_I8, _I16, _I32, _F16, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()
#: A flag of its own keeps an instruction from getting the flags of its kernel, which let sums be taken in any order.
_AS_WRITTEN = ("contract",)

#: the bits of infinity; those of NaN, without its sign, are above
INFINITE = np.int32(0x7F800000)

Emit = Callable[[Any, Any], Any]


def _like(value: Any, element: Any) -> Any:
    """The type of *value*, a number or a vector, with other elements."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _constant(value: Any, element: Any, number: float) -> Any:
    kind = _like(value, element)
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def _widen_bf16(builder: Any, value: Any) -> Any:
    words = builder.zext(value, _like(value, _I32))
    return builder.bitcast(builder.shl(words, _constant(value, _I32, 16)), _like(value, _F32))


def _narrow_bf16(builder: Any, value: Any) -> Any:
    word = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(word, _I32(16)), _I32(1))
    rounded = builder.add(word, builder.add(odd, _I32(0x7FFF)))
    quiet = builder.or_(word, _I32(0x400000))  # rounding could turn a NaN into an infinity
    nan = builder.fcmp_unordered("uno", value, value, flags=_AS_WRITTEN)
    return builder.trunc(builder.lshr(builder.select(nan, quiet, rounded), _I32(16)), _I16)


def _widen_f16(builder: Any, value: Any) -> Any:
    return builder.fpext(builder.bitcast(value, _like(value, _F16)), _like(value, _F32))


def _narrow_f16(builder: Any, value: Any) -> Any:
    return builder.bitcast(builder.fptrunc(value, _F16), _I16)


def _widen_int8(builder: Any, value: Any) -> Any:
    return builder.sitofp(builder.sext(value, _like(value, _I32)), _like(value, _F32))


def _same(_builder: Any, value: Any) -> Any:
    return value


#: how elements of a type become float32, numbers as well as vectors, and how a float32 is written to them
_WIDEN: dict[Any, Emit] = {
    types.float32: _same,
    types.uint16: _widen_bf16,
    types.int16: _widen_f16,
    types.int8: _widen_int8,
}
_NARROW: dict[Any, Emit] = {types.float32: _same, types.uint16: _narrow_bf16, types.int16: _narrow_f16}


def widen(builder: Any, kind: Any, value: Any) -> Any:
    """Write the instructions that make float32 of *value*, which was read from an array of this type of elements."""
    return _WIDEN[kind](builder, value)


def _place(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Any:
    data = context.make_array(array)(context, builder, value).data
    return builder.gep(data, [index], inbounds=True)


@intrinsic
def get(_typing: Any, array: Any, _index: Any) -> Any:
    """The element at a place of an array with one axis, as a number to compute with."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return widen(builder, array.dtype, builder.load(_place(context, builder, array, *args)))

    return types.float32(array, types.intp), generate


@intrinsic
def put(_typing: Any, array: Any, _index: Any, _value: Any) -> Any:
    """Write a number to a place of an array with one axis, rounded to the array's type."""
    narrow = _NARROW[array.dtype]

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(narrow(builder, args[2]), _place(context, builder, array, *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), generate


@intrinsic
def get_bits(_typing: Any, array: Any, _index: Any, _shift: Any, _mask: Any) -> Any:
    """Some bits of the uint8 at a place, ``(byte >> shift) & mask``, as the number that they are in float32."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte = builder.zext(builder.load(_place(context, builder, array, *args[:2])), _I32)
        moved = builder.lshr(byte, builder.trunc(args[2], _I32))
        return builder.uitofp(builder.and_(moved, builder.trunc(args[3], _I32)), _F32)

    return types.float32(array, types.intp, types.intp, types.intp), generate


# Bits of 16 bytes at a time: in a loop over so few the compiler finds no vectors.


def _sixteen(context: Any, builder: Any, array: Any, value: Any, where: Any) -> Any:
    """Some bits of each of 16 bytes, as integers; *where*: the first byte, how far to shift, and the mask."""
    index, shift, mask = where
    kind = ir.VectorType(_I8, 16)
    bytes_ = builder.load(builder.bitcast(_place(context, builder, array, value, index), kind.as_pointer()))
    bytes_.align = 1
    words = builder.zext(bytes_, _like(bytes_, _I32))
    return builder.and_(builder.lshr(words, _words(builder, shift)), _words(builder, mask))


def _splat(builder: Any, value: Any) -> Any:
    nothing = ir.Constant(ir.VectorType(value.type, 16), ir.Undefined)
    first = builder.insert_element(nothing, value, _I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, 16), [0] * 16))


def _words(builder: Any, number: Any) -> Any:
    return _splat(builder, builder.trunc(number, _I32))


def _put_sixteen(context: Any, builder: Any, array: Any, where: Any, bits: Any, line: Any) -> None:
    """Write ``step * (bits - zero) + offset``, where *line* is zero, step and offset."""
    zero, step, offset = line
    numbers = builder.sitofp(builder.sub(bits, _words(builder, zero)), _like(bits, _F32))
    numbers = builder.fmul(numbers, _splat(builder, step), flags=_AS_WRITTEN)
    _store_sixteen(context, builder, array, where, builder.fadd(numbers, _splat(builder, offset), flags=_AS_WRITTEN))


def _store_sixteen(context: Any, builder: Any, array: Any, where: Any, numbers: Any) -> None:
    target = builder.bitcast(_place(context, builder, array, *where), numbers.type.as_pointer())
    builder.store(numbers, target).align = 1


@intrinsic
def unpack(
    _typing: Any, y: Any, _to: Any, b: Any, _at: Any, _shift: Any, _mask: Any, _zero: Any, _step: Any, _offset: Any
) -> Any:
    """Write 16 float32: ``step * (bits - zero) + offset``, of bits ``(byte >> shift) & mask`` of 16 bytes of *b*."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = _sixteen(context, builder, b, args[2], args[3:6])
        _put_sixteen(context, builder, y, args[:2], bits, args[6:])
        return context.get_dummy_value()

    i, f = types.intp, types.float32
    return types.void(y, i, b, i, i, i, i, f, f), generate


@intrinsic
def unpack_two(
    _typing: Any, y: Any, _to: Any, b: Any, _at: Any, _shift: Any, _mask: Any, _at_high: Any, _shift_high: Any,
    _mask_high: Any, _worth: Any, _zero: Any, _step: Any, _offset: Any,
) -> Any:  # fmt: skip
    """``unpack`` for integers in two places: bits of 16 bytes, and *worth* times bits of 16 other bytes."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        low = _sixteen(context, builder, b, args[2], args[3:6])
        high = builder.mul(_sixteen(context, builder, b, args[2], args[6:9]), _words(builder, args[9]))
        _put_sixteen(context, builder, y, args[:2], builder.add(low, high), args[10:])
        return context.get_dummy_value()

    i, f = types.intp, types.float32
    return types.void(y, i, b, i, i, i, i, i, i, i, i, f, f), generate


@intrinsic
def unpack_and_bits(
    _typing: Any, y: Any, _to: Any, b: Any, _at: Any, _shift: Any, _mask: Any, _bits: Any, _worth: Any, _zero: Any,
    _step: Any, _offset: Any,
) -> Any:  # fmt: skip
    """``unpack`` for integers whose highest bits are those of a number, the first its lowest; each counts *worth*."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        low = _sixteen(context, builder, b, args[2], args[3:6])
        places = ir.Constant(low.type, list(range(16)))
        high = builder.and_(builder.lshr(_words(builder, args[6]), places), _constant(low, _I32, 1))
        high = builder.mul(high, _words(builder, args[7]))
        _put_sixteen(context, builder, y, args[:2], builder.add(low, high), args[8:])
        return context.get_dummy_value()

    i, f = types.intp, types.float32
    return types.void(y, i, b, i, i, i, i, i, i, f, f), generate


@intrinsic
def unpack_e2m1(_typing: Any, y: Any, _to: Any, b: Any, _at: Any, _shift: Any, _step: Any) -> Any:
    """Write *step* times twice the floats of 4 bits that bits from *shift* on of 16 bytes are, as ``unpack``."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = _sixteen(context, builder, b, args[2], (args[3], args[4], args[4].type(15)))
        bits = builder.trunc(bits, _like(bits, _I16))  # in the high bits of a float16 they are 2**-14 times the float

        def moved(mask: int, places: int) -> Any:
            return builder.shl(builder.and_(bits, _constant(bits, _I16, mask)), _constant(bits, _I16, places))

        numbers = _widen_f16(builder, builder.or_(moved(7, 9), moved(8, 12)))
        doubled = builder.fmul(numbers, _constant(numbers, _F32, 2.0**15), flags=_AS_WRITTEN)
        numbers = builder.fmul(doubled, _splat(builder, args[5]), flags=_AS_WRITTEN)
        _store_sixteen(context, builder, y, args[:2], numbers)
        return context.get_dummy_value()

    i, f = types.intp, types.float32
    return types.void(y, i, b, i, i, f), generate


@intrinsic
def get_int(_typing: Any, array: Any, _index: Any) -> Any:
    """The int8 at a place, as int32; products and sums of such stay int32 and become vectors."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.sext(builder.load(_place(context, builder, array, *args)), _I32)

    return types.int32(array, types.intp), generate


@intrinsic
def put_int(_typing: Any, array: Any, _index: Any, _value: Any) -> Any:
    """Write a number between -128 and 127 to a place of an int8 array: the nearest integer, half to even."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_F32, [_F32])
        rint = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32")
        code = builder.trunc(builder.fptosi(builder.call(rint, [args[2]]), _I32), _I8)
        builder.store(code, _place(context, builder, array, *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), generate


@intrinsic
def magnitude(_typing: Any, _x: Any) -> Any:
    """The bits of the absolute value, which are ordered as the values are, NaN above all."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.and_(builder.bitcast(args[0], _I32), _I32(0x7FFFFFFF))

    return types.int32(types.float32), generate


@intrinsic
def from_bits(_typing: Any, _bits: Any) -> Any:
    """The float32 of these bits."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), generate


# exp(x) = 2**n * exp(r) with n = round(x / log(2)) and |r| <= log(2) / 2. Adding 1.5 * 2**23 rounds to an integer,
# which the lowest bits of the sum then hold, and NaN goes its way through all of it. log(2) comes in two parts, of
# which the first has few digits, so that its product with n is exact. exp(r) = 1 + r + r**2 * P(r); P comes from a
# Remez exchange in 50 digits, and the relative error of this form is 3.2e-9.
_PER_LOG2, _ROUND, _ROUND_BITS = 1.4426950408889634, 12582912.0, 0x4B400000
_LOG2_HIGH, _LOG2_LOW = 0.693359375, -2.12194440054690583e-4
_P = (0.49999993428, 0.16666519153, 0.041668374322, 0.008368896081, 0.0013816618457)


def _reduced_exp(builder: Any, x: Any) -> tuple[Any, Any]:
    """exp(r) and n, as above; *x* is between -104 and 89, or NaN."""

    def number(value: float) -> Any:
        return _constant(x, _F32, value)

    def times_plus(a: Any, b: Any, c: Any) -> Any:
        return builder.fadd(builder.fmul(a, b, flags=_AS_WRITTEN), c, flags=_AS_WRITTEN)

    shifted = times_plus(x, number(_PER_LOG2), number(_ROUND))
    n = builder.fsub(shifted, number(_ROUND), flags=_AS_WRITTEN)
    r = times_plus(n, number(-_LOG2_LOW), times_plus(n, number(-_LOG2_HIGH), x))
    p = number(_P[-1])
    for coefficient in _P[-2::-1]:
        p = times_plus(p, r, number(coefficient))
    p = times_plus(times_plus(p, r, number(1.0)), r, number(1.0))
    return p, builder.sub(builder.bitcast(shifted, _like(x, _I32)), _constant(x, _I32, _ROUND_BITS))


def _limited(builder: Any, compare: str, x: Any, limit: float) -> Any:
    """*limit* where *x* compares with it so, else *x*: NaN stays."""
    bound = _constant(x, _F32, limit)
    return builder.select(builder.fcmp_ordered(compare, x, bound, flags=_AS_WRITTEN), bound, x)


def _power(builder: Any, n: Any) -> Any:
    shifted = builder.shl(builder.add(n, _constant(n, _I32, 127)), _constant(n, _I32, 23))
    return builder.bitcast(shifted, _like(n, _F32))


def write_exp(builder: Any, x: Any) -> Any:
    """Write the instructions of ``exp`` for a number or a vector."""
    p, n = _reduced_exp(builder, _limited(builder, "<", _limited(builder, ">", x, 89.0), -104.0))
    half = builder.ashr(n, _constant(n, _I32, 1))  # 2**128 has no exponent of its own, so two factors
    p = builder.fmul(p, _power(builder, half), flags=_AS_WRITTEN)
    return builder.fmul(p, _power(builder, builder.sub(n, half)), flags=_AS_WRITTEN)


def write_exp_below(builder: Any, x: Any) -> Any:
    """Write the instructions of ``exp_below`` for a number or a vector."""
    p, n = _reduced_exp(builder, _limited(builder, "<", x, -87.0))
    found = builder.fmul(p, _power(builder, n), flags=_AS_WRITTEN)
    tiny = builder.fcmp_ordered("<", x, _constant(x, _F32, -87.0), flags=_AS_WRITTEN)
    return builder.select(tiny, _constant(x, _F32, 0.0), found)


@intrinsic
def exp(_typing: Any, _x: Any) -> Any:
    """exp of a float32, within 1 unit in the last place: also infinite, 0, subnormal and NaN."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return write_exp(builder, args[0])

    return types.float32(types.float32), generate


@intrinsic
def exp_below(_typing: Any, _x: Any) -> Any:
    """exp of a float32 of at most 0, or NaN, within 1 unit in the last place; 0 where it would be subnormal."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return write_exp_below(builder, args[0])

    return types.float32(types.float32), generate
