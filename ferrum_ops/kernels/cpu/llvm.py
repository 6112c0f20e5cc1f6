"""Functions of compiled code that are written in LLVM's intermediate representation.

For what a loop that the compiler sees does not become: see ``microkernels``. Addresses and strides are integers, in
bytes, and nothing is checked: whoever calls such a function sees to it that all that it reads and writes exists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped

from ferrum_ops.kernels.cpu.jit import intrinsic

__all__ = [
    "BFLOATS", "BYTES", "F32", "FLOATS", "I8", "I32", "I64", "LANES", "VECTOR", "WORDS", "Code", "Value", "filled",
    "lanes", "question", "routine", "set_apart", "workspace", "zero",
]  # fmt: skip

VECTOR = 64  # bytes
LANES = 16  # words of 32 bits in a vector

cgutils: Any = untyped  # numba has no types
Value = Any  # a value of the intermediate representation; llvmlite has no types for checkers

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, WORDS, FLOATS = ir.VectorType(I8, VECTOR), ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
#: Sums may be taken in any order, and a product may go into a sum unrounded.
_FAST = ("contract", "reassoc", "nsz")


#: The type ``bfloat``, which llvmlite does not have; it is only needed to name what instructions take.
_BFLOAT = type("_BFloat", (ir.Type,), {"intrinsic_name": "bf16", "_to_string": lambda _: "bfloat"})()
BFLOATS = ir.VectorType(_BFLOAT, 32)


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

    def prefetch(self, address: Value) -> None:
        """Ask for what lies at an address, where there may be nothing."""
        pointer = self.b.inttoptr(address, I8.as_pointer())
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))  # to read, and to the first cache

    def store(self, value: Value, address: Value) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = 1

    def store_rows(self, vectors: list[Value], address: Value, stride: Value) -> None:
        for i, vector in enumerate(vectors):
            self.store(vector, self.at(address, self.times(stride, i)))

    def store_first(self, value: Value, address: Value, count: Value) -> None:
        """Write the first *count* of 16 lanes, and nothing beyond."""
        lanes = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
        mask = self.b.icmp_signed("<", lanes, self.splat(count))
        name = {F32: "f32", ir.HalfType(): "f16", ir.IntType(16): "i16"}[value.type.element]
        pointer = self.b.inttoptr(address, value.type.as_pointer())
        self.call(f"llvm.masked.store.v16{name}.p0", ir.VoidType(), value, pointer, I32(1), mask)

    def pick(self, vector: Value, places: Iterable[int]) -> Value:
        """The lanes of a vector that stand in these places."""
        return self.b.shuffle_vector(vector, vector, lanes(places))

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


def lanes(numbers: Iterable[int]) -> Value:
    """A constant vector that says where the lanes of another come from."""
    listed = list(numbers)
    return ir.Constant(ir.VectorType(I32, len(listed)), listed)


def filled(kind: Any, number: float) -> Value:
    """A constant vector of equal numbers."""
    return ir.Constant(kind, [number] * kind.count)


def routine(emit: Callable[..., None]) -> Any:
    """Make ``emit(code, *integers)``, which writes the instructions, a function of compiled code."""
    return _function(emit, types.void)


def question(emit: Callable[..., Value]) -> Any:
    """Make ``emit(code, *integers)``, which writes the instructions and returns a bit, a function of compiled code."""
    return _function(emit, types.boolean)


def _function(emit: Callable[..., Value | None], result: Any) -> Any:
    @intrinsic
    @functools.wraps(emit)
    def typed(_context: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            found = emit(Code(builder), *values)
            return context.get_dummy_value() if found is None else found

        return result(*[types.intp] * len(arguments)), generate

    return typed


@intrinsic
def set_apart(_context: Any) -> Any:
    """Keep the function that calls this out of the code of its callers, whose registers are for what is done often."""

    def generate(context: Any, builder: Any, _signature: Any, _values: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


def workspace(size: int) -> Any:
    """A function of compiled code that gives the address of *size* bytes of the thread's stack, at a multiple of 64.

    They are there until the function that calls it returns, are the same for each call in one place of the code, and
    hold anything at first.
    """

    def typed(_context: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, _values: Any) -> Any:
            with builder.goto_entry_block():  # numba's own way writes zeros, one by one
                place = builder.alloca(ir.ArrayType(I8, size))
            place.align = VECTOR
            return builder.ptrtoint(place, I64)

        return types.intp(), generate

    return intrinsic(typed)
