"""The innermost loops of attention: tiles of sums that stay in registers, written in LLVM's vectors.

Operands are arrays with one axis and places in them, counted in elements; what is read is widened to float32 as it
comes (int8 without its scale), and nothing is checked. A vector has ``LANES`` numbers: 16 where the processor has
AVX-512, else 8, which every processor can do, if need be in parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types as untyped_types
from numba.core import cgutils as untyped

from ferrum_ops.kernels.cpu.features import features
from ferrum_ops.kernels.cpu.intrinsics import widen, write_exp_below
from ferrum_ops.kernels.cpu.jit import intrinsic
from ferrum_ops.kernels.cpu.llvm import BFLOATS

__all__ = ["FUSED", "LANES", "VECTOR", "Place", "Writer", "mask", "outer", "scale_lanes", "weights", "zero"]

types: Any = untyped_types  # numba's types are of some versions and incomplete
cgutils: Any = untyped

#: numbers in a vector
LANES = 16 if "avx512f" in features() else 8

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
VECTOR, _WORDS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
FUSED = ("contract", "reassoc")


class Place(NamedTuple):
    """An element in memory: the type of the elements and its address."""

    kind: Any
    pointer: Any


def zero(kind: Any) -> Any:
    """The zero of a type of vectors."""
    return ir.Constant(kind, [0] * kind.count)


class Writer:
    """Writes the instructions of one routine."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.b = context, builder

    def place(self, array: Any, value: Any, index: Any) -> Place:
        """Where an element of an array lies."""
        data = self.context.make_array(array)(self.context, self.b, value).data
        return Place(array.dtype, self.b.gep(data, [index]))

    def after(self, place: Place, count: Any) -> Place:
        """So many elements further on."""
        return place._replace(pointer=self.b.gep(place.pointer, [_I64(count) if isinstance(count, int) else count]))

    def times(self, value: Any, factor: int) -> Any:
        return self.b.mul(value, _I64(factor))

    def load(self, place: Place, count: Any = None) -> Any:
        """A vector from memory, widened; only the first *count* numbers where it is given, the others 0."""
        narrow = ir.VectorType(place.pointer.type.pointee, LANES)
        source = self.b.bitcast(place.pointer, narrow.as_pointer())
        if count is None:
            value = self.b.load(source)
            value.align = 1
        else:
            bits = {types.int8: "i8", types.float32: "f32"}.get(place.kind, "i16")
            value = self._masked(f"load.v{LANES}{bits}.p0", narrow, source, _I32(1), self._first(count), zero(narrow))
        return widen(self.b, place.kind, value)

    def load_pairs(self, place: Place, count: Any = None) -> Any:
        """Two vectors of bfloat16 as they are, as integers; only the first *count* numbers where it is given."""
        kind = ir.VectorType(_I16, 2 * LANES)
        source = self.b.bitcast(place.pointer, kind.as_pointer())
        if count is not None:
            return self._masked(
                f"load.v{kind.count}i16.p0", kind, source, _I32(1), self._first(count, kind.count), zero(kind)
            )
        value = self.b.load(source)
        value.align = 1
        return value

    def widen_pairs(self, value: Any) -> tuple[Any, Any]:
        """The bfloat16 in even and those in odd places, as float32."""
        words = self.b.bitcast(value, _WORDS)
        evens = self.b.shl(words, ir.Constant(_WORDS, [16] * LANES))
        odds = self.b.and_(words, ir.Constant(_WORDS, [0xFFFF0000] * LANES))
        return self.b.bitcast(evens, VECTOR), self.b.bitcast(odds, VECTOR)

    def evens_and_odds(self, x: Any, y: Any) -> tuple[Any, Any]:
        """The numbers in even and those in odd places of two vectors that follow each other."""
        first = [*range(0, 2 * LANES, 2)]
        return self._picked(x, y, first), self._picked(x, y, [lane + 1 for lane in first])

    def in_turns(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Two vectors that follow each other, of whose numbers x and y have those in even and in odd places."""
        turns = [lane for i in range(LANES) for lane in (i, i + LANES)]
        return self._picked(x, y, turns[:LANES]), self._picked(x, y, turns[LANES:])

    def _picked(self, x: Any, y: Any, places: list[int]) -> Any:
        return self.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(places)), places))

    def add_pairs(self, total: Any, x: Any, y: Any) -> None:
        """Add products of vectors of bfloat16, of two neighbours to one lane."""
        x, y = self.b.bitcast(x, BFLOATS), self.b.bitcast(y, BFLOATS)
        kind = ir.FunctionType(VECTOR, [VECTOR, BFLOATS, BFLOATS])
        add = cgutils.get_or_insert_function(self.b.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
        self.b.store(self.b.call(add, [self.b.load(total), x, y]), total)

    def store(self, value: Any, place: Place, count: Any = None) -> None:
        """Write a vector of float32, or its first *count* numbers."""
        target = self.b.bitcast(place.pointer, value.type.as_pointer())
        if count is None:
            self.b.store(value, target).align = 1
        else:
            self._masked(f"store.v{LANES}f32.p0", ir.VoidType(), value, target, _I32(1), self._first(count))

    def _masked(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, f"llvm.masked.{name}"), arguments)

    def _first(self, count: Any, lanes: int = LANES) -> Any:
        numbers = ir.Constant(ir.VectorType(_I64, lanes), list(range(lanes)))
        return self.b.icmp_signed("<", numbers, self.splat(count, lanes))

    def splat(self, value: Any, lanes: int = LANES) -> Any:
        """A vector of equal numbers."""
        empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.b.insert_element(empty, value, _I32(0))
        return self.b.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))

    def broadcast(self, place: Place) -> Any:
        """A vector of one number from memory."""
        return self.splat(widen(self.b, place.kind, self.b.load(place.pointer)))

    def variable(self, value: Any) -> Any:
        """A place for a vector that changes; the compiler keeps it in a register."""
        return cgutils.alloca_once_value(self.b, value)

    def add_product(self, total: Any, x: Any, y: Any) -> None:
        product = self.b.fmul(x, y, flags=FUSED)
        self.b.store(self.b.fadd(self.b.load(total), product, flags=FUSED), total)

    @contextmanager
    def loop(self, count: Any) -> Iterator[Any]:
        with cgutils.for_range(self.b, count) as loop:
            yield loop.index

    def sums(self, vectors: list[Any]) -> Any:
        """One vector whose lane i is the sum of the lanes of vector i."""
        half = 1
        while half < LANES:
            joined = []
            for i in range(0, len(vectors), 2):
                a, b = vectors[i], vectors[i + 1]
                own = [lane + LANES if lane & half else lane for lane in range(LANES)]
                other = [lane ^ half if not lane & half else (lane ^ half) + LANES for lane in range(LANES)]
                kind = ir.VectorType(_I32, LANES)
                x = self.b.shuffle_vector(a, b, ir.Constant(kind, own))
                y = self.b.shuffle_vector(a, b, ir.Constant(kind, other))
                joined.append(self.b.fadd(x, y, flags=FUSED))
            vectors, half = joined, half * 2
        return vectors[0]

    def part(self, vector: Any, first: int, count: int) -> Any:
        lanes = ir.Constant(ir.VectorType(_I32, count), list(range(first, first + count)))
        return self.b.shuffle_vector(vector, vector, lanes)


def outer(rows: int, vectors: int) -> Any:
    """``c = start * c + a @ b`` for so many rows and so many vectors of columns; *start* is 0 or 1.

    The function takes a, its place, the steps from row to row and from term to term; b, its place and the step from
    term to term; the number of terms; c, its place, the step from row to row, and *start*.
    """
    cells = [(i, j) for i in range(rows) for j in range(vectors)]

    @intrinsic
    def tile(
        _typing: Any,
        a: Any,
        _a: Any,
        _row: Any,
        _term: Any,
        b: Any,
        _b: Any,
        _step: Any,
        _count: Any,
        c: Any,
        _c: Any,
        _c_row: Any,
        _start: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            writer = Writer(context, builder)
            first, line, count = writer.place(a, *args[:2]), writer.place(b, *args[4:6]), args[7]
            target = writer.place(c, *args[8:10])
            lines = [writer.after(first, writer.times(args[2], i)) for i in range(rows)]
            targets = {
                (i, j): writer.after(writer.after(target, writer.times(args[10], i)), j * LANES) for i, j in cells
            }
            totals = {cell: writer.variable(zero(VECTOR)) for cell in cells}
            with builder.if_then(builder.icmp_signed("!=", args[11], _I64(0))):
                for cell in cells:
                    builder.store(writer.load(targets[cell]), totals[cell])
            with writer.loop(count) as term:
                here = writer.after(line, builder.mul(term, args[6]))
                columns = [writer.load(writer.after(here, j * LANES)) for j in range(vectors)]
                step = builder.mul(term, args[3])
                for i in range(rows):
                    factor = writer.broadcast(writer.after(lines[i], step))
                    for j in range(vectors):
                        writer.add_product(totals[i, j], factor, columns[j])
            for cell in cells:
                writer.store(builder.load(totals[cell]), targets[cell])
            return context.get_dummy_value()

        i = types.intp
        return types.void(a, i, i, i, b, i, i, i, c, i, i, i), generate

    return tile


# Scores are tiles [keys, rows] of so many vectors a key; bounds, maxima, sums and factors have a number for each row.


def mask(vectors: int) -> Any:
    """Scores of keys outside a row's bounds become -inf.

    The function takes the scores, their place, how many keys, which key is the first; and an array of int32 with the
    first and then the last key that each row sees.
    """

    @intrinsic
    def masked(_typing: Any, work: Any, _scores: Any, _keys: Any, _start: Any, bounds: Any, _at: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            writer = Writer(context, builder)
            scores, limits = writer.place(work, *args[:2]), writer.place(bounds, *args[4:6])
            words = ir.VectorType(_I32, LANES)
            low: list[Any] = []
            high: list[Any] = []
            for j in range(vectors):
                for found, more in ((low, 0), (high, vectors * LANES)):
                    pointer = writer.after(limits, more + j * LANES).pointer
                    found.append(builder.load(builder.bitcast(pointer, words.as_pointer())))
                    found[-1].align = 4
            hidden = ir.Constant(VECTOR, [float("-inf")] * LANES)
            with writer.loop(args[2]) as key:
                number = writer.splat(builder.trunc(builder.add(key, args[3]), _I32))
                line = writer.after(scores, writer.times(key, vectors * LANES))
                for j in range(vectors):
                    place = writer.after(line, j * LANES)
                    seen = builder.and_(
                        builder.icmp_signed("<=", low[j], number), builder.icmp_signed("<=", number, high[j])
                    )
                    writer.store(builder.select(seen, writer.load(place), hidden), place)
            return context.get_dummy_value()

        i = types.intp
        return types.void(work, i, i, i, bounds, i), generate

    return masked


def weights(vectors: int) -> Any:
    """Scores become exponentials relative to the greatest score so far; sums so far shrink accordingly.

    The function takes the scores, their place, how many keys; the places of the maxima, of the sums and of the factors
    by which what was summed before shrinks; all in one array. It returns whether any factor is not 1.
    """

    @intrinsic
    def weighted(_typing: Any, work: Any, _scores: Any, _keys: Any, _top: Any, _total: Any, _shrink: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            writer = Writer(context, builder)
            scores = writer.place(work, *args[:2])
            tops, sums, shrinks = (
                [writer.after(writer.place(work, args[0], at), j * LANES) for j in range(vectors)] for at in args[3:6]
            )
            before = [writer.load(top) for top in tops]
            most = [writer.variable(top) for top in before]

            def line(key: Any) -> list[Place]:
                first = writer.after(scores, writer.times(key, vectors * LANES))
                return [writer.after(first, j * LANES) for j in range(vectors)]

            with writer.loop(args[2]) as key:
                for place, top in zip(line(key), most, strict=True):
                    score, so_far = writer.load(place), builder.load(top)
                    # a NaN is no maximum: it makes its weight NaN, and so the sum
                    larger = builder.fcmp_ordered(">", score, so_far, flags=FUSED)
                    builder.store(builder.select(larger, score, so_far), top)
            bases, totals, changed = [], [], ir.Constant(ir.VectorType(ir.IntType(1), LANES), [0] * LANES)
            for j in range(vectors):
                top = builder.load(most[j])
                # where all is hidden, exp(-inf - 0) is the 0 that is wanted and exp(-inf + inf) a NaN
                nothing = builder.fcmp_ordered("==", top, ir.Constant(VECTOR, [float("-inf")] * LANES), flags=FUSED)
                bases.append(builder.select(nothing, zero(VECTOR), top))
                factor = write_exp_below(builder, builder.fsub(before[j], bases[j], flags=FUSED))
                other = builder.fcmp_unordered("!=", factor, ir.Constant(VECTOR, [1.0] * LANES), flags=FUSED)
                changed = builder.or_(changed, other)
                totals.append(writer.variable(builder.fmul(writer.load(sums[j]), factor, flags=FUSED)))
                writer.store(factor, shrinks[j])
                writer.store(top, tops[j])
            with writer.loop(args[2]) as key:
                for place, base, total in zip(line(key), bases, totals, strict=True):
                    weight = write_exp_below(builder, builder.fsub(writer.load(place), base, flags=FUSED))
                    writer.store(weight, place)
                    builder.store(builder.fadd(builder.load(total), weight, flags=FUSED), total)
            for total, place in zip(totals, sums, strict=True):
                writer.store(builder.load(total), place)
            bits = ir.IntType(LANES)
            return builder.icmp_unsigned("!=", builder.bitcast(changed, bits), bits(0))

        i = types.intp
        return types.boolean(work, i, i, i, i, i), generate

    return weighted


def scale_lanes(vectors: int) -> Any:
    """Every row of an array [count, rows of the group] times a factor for each lane.

    The function takes the array, its place, the count and the place of the factors.
    """

    @intrinsic
    def scaled(_typing: Any, work: Any, _at: Any, _count: Any, _factors: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            writer = Writer(context, builder)
            first, factor = writer.place(work, *args[:2]), writer.place(work, args[0], args[3])
            factors = [writer.load(writer.after(factor, j * LANES)) for j in range(vectors)]
            with writer.loop(args[2]) as row:
                line = writer.after(first, writer.times(row, vectors * LANES))
                for j in range(vectors):
                    place = writer.after(line, j * LANES)
                    writer.store(builder.fmul(writer.load(place), factors[j], flags=FUSED), place)
            return context.get_dummy_value()

        i = types.intp
        return types.void(work, i, i, i), generate

    return scaled
