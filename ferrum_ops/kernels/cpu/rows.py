"""The innermost loops of attention of few queries, where vectors lie along keys and values as they lie in memory.

As in ``tiles``, whose conventions hold here too. An array says how many elements after a first place each key or value
begins, so that blocks of a cache are read where they are.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ferrum_ops.kernels.cpu.features import features
from ferrum_ops.kernels.cpu.intrinsics import write_exp_below
from ferrum_ops.kernels.cpu.jit import intrinsic
from ferrum_ops.kernels.cpu.tiles import FUSED, LANES, VECTOR, Place, Writer, cgutils, types, zero

__all__ = ["PAIRS", "dots", "row_weights", "touch", "weighted_rows"]

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
#: bytes that come from memory together
_LINE = 64
#: whether two bfloat16 are multiplied with two at once, by ``vdpbf16ps``
PAIRS = "avx512bf16" in features()


def _row_of(writer: Writer, places: Place, first: Place, key: Any) -> Place:
    return writer.after(first, writer.b.load(writer.after(places, key).pointer))


@intrinsic
def touch(_typing: Any, array: Any, _first: Any, _count: Any) -> Any:
    """Read so many elements of an array from a place on, a byte of each cache line, so that they are near by.

    Atomic loads, because the compiler keeps these though nobody uses what they give; they cost no more than others.
    """

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        writer = Writer(context, builder)
        first = writer.place(array, *args[:2])
        address = builder.ptrtoint(first.pointer, _I64)
        size = writer.times(args[2], array.dtype.bitwidth // 8)
        with writer.loop(builder.sdiv(size, _I64(_LINE))) as i:
            place = builder.inttoptr(builder.add(address, writer.times(i, _LINE)), _I8.as_pointer())
            builder.load_atomic(place, "monotonic", 1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


def dots(rows: int) -> Any:
    """The products of so many queries and ``LANES // rows`` keys, each a sum over the head's dimensions, scaled.

    The function takes the queries, where each row of them begins and the first row; the keys, and the place from which
    their rows are counted; their rows, and which of them is the first; the dimensions and the scale; and where the
    scores go: an array, a place, and the step from row to row.

    Products of bfloat16 are exact either way; ``vdpbf16ps`` takes twice as many at once and takes those of numbers
    below 2^-126 for 0.
    """
    keys = LANES // rows
    cells = [(row, key) for row in range(rows) for key in range(keys)]

    @intrinsic
    def products(
        _typing: Any,
        q: Any,
        q_lines: Any,
        _q_row: Any,
        k: Any,
        _k: Any,
        k_lines: Any,
        _key: Any,
        _dim: Any,
        _scale: Any,
        out: Any,
        _out: Any,
        _out_row: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            writer = Writer(context, builder)
            query0, key0 = writer.place(q, args[0], _I64(0)), writer.place(k, *args[3:5])
            first, here = writer.place(q_lines, *args[1:3]), writer.place(k_lines, *args[5:7])
            target = writer.place(out, *args[9:11])
            queries = [_row_of(writer, first, query0, row) for row in range(rows)]
            now = [_row_of(writer, here, key0, key) for key in range(keys)]
            totals = {cell: writer.variable(zero(VECTOR)) for cell in cells}
            pairs = PAIRS and q.dtype == k.dtype == types.uint16
            step = 2 * LANES if pairs else LANES
            load, add_product = (writer.load_pairs, writer.add_pairs) if pairs else (writer.load, writer.add_product)

            def add(at: Any, count: Any = None) -> None:
                loaded = [load(writer.after(line, at), count) for line in now]
                for row in range(rows):
                    numbers = load(writer.after(queries[row], at), count)
                    for key in range(keys):
                        add_product(totals[row, key], numbers, loaded[key])

            whole = builder.sdiv(args[7], _I64(step))
            with writer.loop(whole) as i:
                add(writer.times(i, step))
            done = writer.times(whole, step)
            left = builder.sub(args[7], done)
            with builder.if_then(builder.icmp_signed(">", left, _I64(0))):
                add(done, left)
            sums = writer.sums([builder.load(totals[cell]) for cell in cells])
            sums = builder.fmul(sums, writer.splat(args[8]), flags=FUSED)
            for row in range(rows):
                place = writer.after(target, writer.times(args[11], row))
                writer.store(writer.part(sums, row * keys, keys), place)
            return context.get_dummy_value()

        i = types.intp
        return types.void(q, q_lines, i, k, i, k_lines, i, i, types.float32, out, i, i), generate

    return products


def _each_pair(writer: Writer, totals: dict[Any, Any], rows: int, vectors: int, change: Any) -> None:
    """Put two vectors in the place of each two neighbours."""
    for row in range(rows):
        for j in range(0, vectors, 2):
            pair = totals[row, j], totals[row, j + 1]
            for place, changed in zip(pair, change(*map(writer.b.load, pair)), strict=True):
                writer.b.store(changed, place)


#: vectors of values whose sums stay in registers while keys pass by
_VECTORS = 4


def weighted_rows(rows: int) -> Any:
    """``out += weights @ values`` for so many rows of weights.

    The function takes the weights, their place and the step from row to row; the values, and the place from which rows
    are counted; the rows, and how many there are; the dimensions of a value; and an array, a place and the step from
    row to row for the sums, which are whole vectors.

    Of bfloat16 two vectors are read at once, and the sums of numbers in even and in odd places are kept apart: one
    shift or one mask makes float32 of a vector then.
    """

    @intrinsic
    def add(
        _typing: Any,
        p: Any,
        _p: Any,
        _p_row: Any,
        v: Any,
        _v: Any,
        lines: Any,
        _count: Any,
        _dim: Any,
        out: Any,
        _out: Any,
        _out_row: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            writer = Writer(context, builder)
            weight0, value0 = writer.place(p, *args[:2]), writer.place(v, *args[3:5])
            here, target = writer.place(lines, args[5], _I64(0)), writer.place(out, *args[8:10])

            def add_up(first: Any, vectors: int, left: Any = None) -> None:
                """The sums of some vectors from the dimension *first* on, of the last of which only so much is left."""
                values, sums = writer.after(value0, first), writer.after(target, first)
                cells = [(row, j) for row in range(rows) for j in range(vectors)]
                places = {
                    (row, j): writer.after(writer.after(sums, writer.times(args[10], row)), j * LANES)
                    for row, j in cells
                }
                totals = {cell: writer.variable(writer.load(places[cell])) for cell in cells}
                apart = v.dtype == types.uint16 and vectors % 2 == 0
                if apart:
                    _each_pair(writer, totals, rows, vectors, writer.evens_and_odds)
                with writer.loop(args[6]) as key:
                    line = _row_of(writer, here, values, key)
                    if apart:
                        words = [writer.load_pairs(writer.after(line, j * LANES)) for j in range(0, vectors, 2)]
                        loaded = [numbers for pair in words for numbers in writer.widen_pairs(pair)]
                    else:
                        loaded = [writer.load(writer.after(line, j * LANES), left) for j in range(vectors)]
                    for row in range(rows):
                        factor = writer.broadcast(writer.after(writer.after(weight0, writer.times(args[2], row)), key))
                        for j in range(vectors):
                            writer.add_product(totals[row, j], factor, loaded[j])
                if apart:
                    _each_pair(writer, totals, rows, vectors, writer.in_turns)
                for cell in cells:
                    writer.store(builder.load(totals[cell]), places[cell])

            dim, together = args[7], _VECTORS * LANES
            whole = builder.sdiv(dim, _I64(together))
            with writer.loop(whole) as i:
                add_up(writer.times(i, together), _VECTORS)
            done = writer.times(whole, together)
            left = builder.sub(dim, done)
            with writer.loop(builder.sdiv(builder.add(left, _I64(LANES - 1)), _I64(LANES))) as i:
                first = writer.times(i, LANES)  # one at a time; a mask costs nothing where processors have them
                add_up(builder.add(done, first), 1, builder.sub(left, first))
            return context.get_dummy_value()

        i = types.intp
        return types.void(p, i, i, v, i, lines, i, i, out, i, i), generate

    return add


@intrinsic
def row_weights(_typing: Any, work: Any, _scores: Any, _vectors: Any, _top: Any, _total: Any) -> Any:
    """One row of scores becomes exponentials relative to its greatest score so far.

    The function takes an array, the place of the scores, how many vectors they are (hidden ones are -inf), and the
    places of the row's maximum and of its sum. It returns the factor by which what was summed before shrinks.
    """

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        writer = Writer(context, builder)
        scores, top, sum_ = (writer.place(work, args[0], at) for at in (args[1], args[3], args[4]))
        hidden = ir.Constant(_F32, float("-inf"))
        most = writer.variable(ir.Constant(VECTOR, [float("-inf")] * LANES))

        def larger(x: Any, y: Any) -> Any:
            # a NaN is no maximum: it makes its weight NaN, and so the sum
            return builder.select(builder.fcmp_ordered(">", x, y, flags=FUSED), x, y)

        with writer.loop(args[2]) as i:
            score = writer.load(writer.after(scores, writer.times(i, LANES)))
            builder.store(larger(score, builder.load(most)), most)
        found = builder.load(most)
        half = LANES // 2
        while half:
            found = larger(found, builder.shuffle_vector(found, found, _turned(half)))
            half //= 2
        before = builder.load(top.pointer)
        greatest = larger(builder.extract_element(found, _I32(0)), before)
        builder.store(greatest, top.pointer)
        # where all is hidden, exp(-inf - 0) is the 0 that is wanted and exp(-inf + inf) a NaN
        nothing = builder.fcmp_ordered("==", greatest, hidden, flags=FUSED)
        base = builder.select(nothing, ir.Constant(_F32, 0.0), greatest)
        factor = write_exp_below(builder, builder.fsub(before, base, flags=FUSED))
        bases, total = writer.splat(base), writer.variable(zero(VECTOR))
        with writer.loop(args[2]) as i:
            place = writer.after(scores, writer.times(i, LANES))
            weight = write_exp_below(builder, builder.fsub(writer.load(place), bases, flags=FUSED))
            writer.store(weight, place)
            builder.store(builder.fadd(builder.load(total), weight, flags=FUSED), total)
        kind = ir.FunctionType(_F32, [_F32, VECTOR])
        add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        added = builder.call(add, [ir.Constant(_F32, -0.0), builder.load(total)], fastmath=FUSED)
        sum_before = builder.fmul(builder.load(sum_.pointer), factor, flags=FUSED)
        builder.store(builder.fadd(sum_before, added, flags=FUSED), sum_.pointer)
        return factor

    i = types.intp
    return types.float32(work, i, i, i, i), generate


def _turned(half: int) -> Any:
    return ir.Constant(ir.VectorType(_I32, LANES), [lane ^ half for lane in range(LANES)])
