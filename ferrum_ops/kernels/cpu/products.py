"""Products of rows of inputs with rows of weights, for processors with AVX-512: the loops around the tiles.

The weights W[N, K] are read as they lie. Up to ``FEW`` rows of inputs take four rows of W at a time, along K. More take
W in panels of 32 rows, which are packed for the outer tiles and stay in the second cache while all inputs pass by.
Work is split by columns of the result, and by blocks of rows where there are many; each number is made by one thread,
in an order that does not depend on how many threads there are.

Compiled functions take integers, in tuples:

* inputs: address, stride, and for ``int8`` the scales and starts of pieces of rows and their stride;
* weights: address, stride, scales, their stride, zeros, their stride, numbers of a group. Where weights are not
  integers with scales in groups, the scales are float32, one for each row, or 0 for none;
* output: address, stride, how it is written, and biases, float32, or 0 for none;
* sizes: rows of inputs, K, N.

Words of inputs are read whole: where K numbers end inside one, the rest of it counts as numbers, and must be finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.llvm import workspace
from ferrum_ops.kernels.cpu.microkernels import (
    SIZE,
    STORED,
    clear,
    inner_tile,
    outer_tile,
    packer,
    take_row,
    write_bf16,
    write_f16,
    write_f32,
)
from ferrum_ops.kernels.cpu.threads import share

__all__ = [
    "BF16", "DEPTH", "F16", "F32", "FEW", "Product", "block_of", "blocks_of", "product", "together", "whole",
    "write_rows",
]  # fmt: skip

#: how results are written
F32, F16, BF16 = range(3)
#: rows of inputs for which packing would not pay
FEW = 15
COLUMNS = 32  # of a panel
LINE = 4 * COLUMNS  # bytes of a row of sums
DEPTH = 4096  # bytes of each row of weights in a panel
BLOCK = 768  # rows of inputs whose sums are kept
CHUNK = 128  # columns of few rows: four streams of 32
#: weights that a thread takes at a time, in bytes, where there are few rows
GRAIN = 1 << 17

Numbers = tuple[int, ...]

_panel = workspace(DEPTH * COLUMNS)
_sums = workspace((BLOCK + 6) * LINE)
_few_sums = workspace(FEW * 4 * CHUNK)
_row = workspace(LINE)
_other_row = workspace(LINE)


class Product(NamedTuple):
    """How one kind of weights is multiplied: compiled functions that take (inputs, weights, output, sizes, first, end).

    Attributes:
        few: makes chunks of 128 columns.
        many: makes panels of 32 columns of blocks of rows.
        bits: of a weight.
    """

    few: Callable[..., None]
    many: Callable[..., None]
    bits: int


@jit(inner=True)
def write_rows(
    sums: int, sums_stride: int, rows: int, scales: int, biases: int, out: int, out_stride: int, kind: int, count: int
) -> None:
    """Rows of *count* <= 32 sums, times scales, plus biases, as numbers of a kind; addresses may be 0 for none."""
    scale, bias = _row(), _other_row()
    take_row(scale, scales, count, 1)
    take_row(bias, biases, count, 0)
    for m in range(rows):
        at, to = sums + m * sums_stride, out + m * out_stride
        if kind == F32:
            write_f32(at, scale, bias, to, count)
        elif kind == F16:
            write_f16(at, scale, bias, to, count)
        else:
            write_bf16(at, scale, bias, to, count)


@jit(inner=True)
def write_panel(sums: int, stride: int, rows: int, scales: int, output: Numbers, row: int, n: int, count: int) -> None:
    """The sums of rows and columns that begin at *row* and *n* into the output."""
    out, out_stride, kind, biases = output
    to = out + row * out_stride + n * (4 if kind == F32 else 2)
    scale = scales + 4 * n if scales else 0
    bias = biases + 4 * n if biases else 0
    write_rows(sums, stride, rows, scale, bias, to, out_stride, kind, count)


@jit(inner=True)
def blocks_of(rows: int) -> int:
    """How many blocks of inputs there are."""
    return (rows + BLOCK - 1) // BLOCK


@jit(inner=True)
def block_of(rows: int) -> int:
    """Rows in a block: all have about as many, a multiple of 6."""
    blocks = blocks_of(rows)
    return (rows + 6 * blocks - 1) // (6 * blocks) * 6


@jit(inner=True)
def items_of(rows: int, columns: int) -> int:
    """How many items a product is split into."""
    if rows <= FEW:
        return (columns + CHUNK - 1) // CHUNK
    return (columns + COLUMNS - 1) // COLUMNS * blocks_of(rows)


def product(kind: str, stored: str) -> Product:
    """The product of inputs of a *kind* with weights *stored* as numbers that are turned into that kind."""
    size, width = SIZE[kind], STORED[kind, stored].size
    depth, per_word = DEPTH // size, 4 // size
    inner_four, inner_two, inner_one = (inner_tile(kind, stored, rows) for rows in (4, 2, 1))
    outer_six, outer_two = outer_tile(kind, 6, 2), outer_tile(kind, 2, 2)
    pack = packer(kind, stored)

    @jit(variant=(kind, stored), inner=True)
    def few(inputs: Numbers, weights: Numbers, output: Numbers, sizes: Numbers, first: int, end: int) -> None:
        x, x_stride, _, _, _ = inputs
        w, stride, scales, _, _, _, _ = weights
        rows, count, columns = sizes
        sums = _few_sums()
        for n in range(first * CHUNK, min(end * CHUNK, columns), CHUNK):
            here = min(CHUNK, columns - n)
            quarter = (here + 3) // 4
            at, last, step = w + n * stride, here - 1, 4 * quarter
            for i in range(quarter):
                w0, w1 = at + i * stride, at + min(quarter + i, last) * stride
                w2, w3 = at + min(2 * quarter + i, last) * stride, at + min(3 * quarter + i, last) * stride
                m, to = 0, sums + 4 * i
                while m + 4 <= rows:
                    inner_four(x + m * x_stride, x_stride, w0, w1, w2, w3, count, to, 4 * CHUNK, step)
                    m, to = m + 4, to + 16 * CHUNK
                if m + 2 <= rows:
                    inner_two(x + m * x_stride, x_stride, w0, w1, w2, w3, count, to, 4 * CHUNK, step)
                    m, to = m + 2, to + 8 * CHUNK
                if m < rows:
                    inner_one(x + m * x_stride, x_stride, w0, w1, w2, w3, count, to, 4 * CHUNK, step)
            for c in range(0, here, COLUMNS):
                write_panel(sums + 4 * c, 4 * CHUNK, rows, scales, output, 0, n + c, min(COLUMNS, here - c))

    @jit(variant=(kind, stored), inner=True)
    def many(inputs: Numbers, weights: Numbers, output: Numbers, sizes: Numbers, first: int, end: int) -> None:
        x, x_stride, _, _, _ = inputs
        w, stride, scales, _, _, _, _ = weights
        rows, count, columns = sizes
        sums, panel = _sums(), _panel()
        panels, block = (columns + COLUMNS - 1) // COLUMNS, block_of(rows)
        for item in range(first, end):
            n, row = item % panels * COLUMNS, item // panels * block
            here, mine = min(COLUMNS, columns - n), min(block, rows - row)
            clear(sums, 2 * mine)
            for k in range(0, count, depth):
                now = min(depth, count - k)
                for j in range(0, here, COLUMNS // 2):
                    pack(w + (n + j) * stride + k * width, stride, min(16, here - j), now, panel + 4 * j, LINE)
                steps = (now + per_word - 1) // per_word
                m, at = 0, x + row * x_stride + k * size
                while m + 6 <= mine:
                    outer_six(at + m * x_stride, x_stride, panel, steps, sums + m * LINE, LINE)
                    m += 6
                while m < mine:  # the last row twice where there is one too few
                    step = x_stride if m + 1 < mine else 0
                    outer_two(at + m * x_stride, step, panel, steps, sums + m * LINE, LINE)
                    m += 2
            write_panel(sums, LINE, mine, scales, output, row, n, here)

    return Product(few, many, 8 * width)


def whole(made: Product, variant: tuple[object, ...]) -> Callable[..., None]:
    """A function that takes (inputs, weights, output, sizes, crew) and makes all of a product."""
    few, many, bits = made

    @jit(variant=variant)
    def run(inputs: Numbers, weights: Numbers, output: Numbers, sizes: Numbers, crew: int) -> None:
        rows, count, columns = sizes
        items = items_of(rows, columns)
        if rows <= FEW:
            grain = max(1, GRAIN // (CHUNK * bits // 8 * (count + 1)))
            share(crew, task(few, (inputs, weights, output, sizes)), items, grain)
        else:
            share(crew, task(many, (inputs, weights, output, sizes)), items, 1)

    found: Callable[..., Any] = run
    return found


def together(made: Product, variant: tuple[object, ...]) -> Callable[..., None]:
    """The same for few rows and several weights: it takes tuples of weights, outputs and numbers of columns.

    Each item is made as it would be alone, so the bits are those of as many products.
    """
    few, _, bits = made

    @jit(variant=variant, inner=True)
    def parts(
        inputs: Numbers, weights: Any, outputs: Any, rows: int, count: int, columns: Any, first: int, end: int
    ) -> None:
        begin = 0
        for i in range(len(columns)):
            items = items_of(rows, columns[i])
            low, high = max(first - begin, 0), min(end - begin, items)
            if low < high:
                few(inputs, weights[i], outputs[i], (rows, count, columns[i]), low, high)
            begin += items

    @jit(variant=variant)
    def run_parts(inputs: Numbers, weights: Any, outputs: Any, rows: int, count: int, columns: Any, crew: int) -> None:
        items = 0
        for i in range(len(columns)):
            items += items_of(rows, columns[i])
        grain = max(1, GRAIN // (CHUNK * bits // 8 * (count + 1)))
        share(crew, task(parts, (inputs, weights, outputs, rows, count, columns)), items, grain)

    found: Callable[..., Any] = run_parts
    return found
