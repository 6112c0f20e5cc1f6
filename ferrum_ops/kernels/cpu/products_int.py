"""Products with weights that are integers with scales: the loops around the tiles, as in ``products``.

Few rows of inputs come as records (see ``integers``), many as rows: int8 with scales and starts of their pieces,
bfloat16, or float32. A piece is a group of weights, or a part of one where groups are longer than a panel is deep.
"""

from __future__ import annotations

from collections.abc import Callable

from ferrum_ops.kernels.cpu.integer_panels import pack_integers, pack_scales
from ferrum_ops.kernels.cpu.integers import Format, blocks_of_piece, inner_integers
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.llvm import set_apart, workspace
from ferrum_ops.kernels.cpu.microkernels import SIZE, any_nan, clear, outer_tile, scaled_outer_tile
from ferrum_ops.kernels.cpu.products import BLOCK, CHUNK, COLUMNS, DEPTH, FEW, LINE, Numbers, block_of, write_panel

__all__ = ["few_integers", "many_integers", "piece_of"]

_panel = workspace(DEPTH * COLUMNS)
_panel_scales = workspace(DEPTH // 32 * LINE)
_sums = workspace((BLOCK + 6) * LINE)
_few_sums = workspace(FEW * 4 * CHUNK)
_unit = jit(blocks_of_piece)


def few_integers(form: Format) -> Callable[..., None]:
    """Chunks of 128 columns for few rows, whose inputs are records."""
    inner_four, inner_two, inner_one = (inner_integers(form, rows) for rows in (4, 2, 1))
    split, block, near = form.split, form.block, form.near
    inner_whole = inner_integers(form, 1, one_part=True) if split else inner_one

    @jit(variant=form, inner=True)
    def mend(x: int, weights: Numbers, count: int, n: int, here: int, unit: int, sums: int) -> None:
        """Make the sums of a row and of *here* columns again where one is NaN: it may be infinite."""
        set_apart()
        if any_nan(sums, here):
            w, w_stride, s, s_stride, z, z_stride, _ = weights
            quarter, last = (here + 3) // 4, n + here - 1
            apart = 1 if near else quarter
            for i in range(quarter):
                n0 = n + (4 * i if near else i)
                n1, n2, n3 = min(n0 + apart, last), min(n0 + 2 * apart, last), min(n0 + 3 * apart, last)
                inner_whole(x, 0, w, w_stride, s, s_stride, z, z_stride,
                            n0, n1, n2, n3, count, unit, sums + 4 * (n0 - n), 0, 4 * apart)  # fmt: skip

    @jit(variant=form)
    def few(inputs: Numbers, weights: Numbers, output: Numbers, sizes: Numbers, first: int, end: int) -> None:
        x, x_stride, _, _, _ = inputs
        w, w_stride, s, s_stride, z, z_stride, group = weights
        rows, count, columns = sizes
        sums, unit = _few_sums(), _unit(group, count, block)
        for n in range(first * CHUNK, min(end * CHUNK, columns), CHUNK):
            here = min(CHUNK, columns - n)
            quarter, last = (here + 3) // 4, n + here - 1
            apart = 1 if near else quarter
            step = 4 * apart
            for i in range(quarter):
                n0 = n + (4 * i if near else i)
                n1, n2, n3 = min(n0 + apart, last), min(n0 + 2 * apart, last), min(n0 + 3 * apart, last)
                m, to = 0, sums + 4 * (n0 - n)
                while m + 4 <= rows:
                    inner_four(x + m * x_stride, x_stride, w, w_stride, s, s_stride, z, z_stride,
                               n0, n1, n2, n3, count, unit, to, 4 * CHUNK, step)  # fmt: skip
                    m, to = m + 4, to + 16 * CHUNK
                if m + 2 <= rows:
                    inner_two(x + m * x_stride, x_stride, w, w_stride, s, s_stride, z, z_stride,
                              n0, n1, n2, n3, count, unit, to, 4 * CHUNK, step)  # fmt: skip
                    m, to = m + 2, to + 8 * CHUNK
                if m < rows:
                    inner_one(x + m * x_stride, x_stride, w, w_stride, s, s_stride, z, z_stride,
                              n0, n1, n2, n3, count, unit, to, 4 * CHUNK, step)  # fmt: skip
            for m in range(rows if split else 0):
                mend(x + m * x_stride, weights, count, n, here, unit, sums + 4 * CHUNK * m)
            for c in range(0, here, COLUMNS):
                write_panel(sums + 4 * c, 4 * CHUNK, rows, 0, output, 0, n + c, min(COLUMNS, here - c))

    found: Callable[..., None] = few
    return found


@jit
def piece_of(group: int, count: int, depth: int) -> int:
    """How many numbers of a row have one scale in a panel of some depth: a group, or the depth if that is less."""
    return min(group, depth, max(count, 1))


def many_integers(form: Format) -> Callable[..., None]:
    """Panels of 32 columns for blocks of rows."""
    return _many_dequantised(form) if form.kind == "f32" else _many_scaled(form)


def _many_scaled(form: Format) -> Callable[..., None]:
    size = SIZE[form.kind]
    per_word, depth = 4 // size, DEPTH // size
    pack, pack_scale = pack_integers(form), pack_scales(form.scales)
    outer_six, outer_two = scaled_outer_tile(form.kind, 6, 2), scaled_outer_tile(form.kind, 2, 2)

    @jit(variant=form)
    def many(inputs: Numbers, weights: Numbers, output: Numbers, sizes: Numbers, first: int, end: int) -> None:
        x, x_stride, x_scales, starts, pieces_stride = inputs
        w, w_stride, s, s_stride, z, z_stride, group = weights
        rows, count, columns = sizes
        sums, panel, scales = _sums(), _panel(), _panel_scales()
        panels, block = (columns + COLUMNS - 1) // COLUMNS, block_of(rows)
        piece = piece_of(group, count, depth)
        for item in range(first, end):
            n, row = item % panels * COLUMNS, item // panels * block
            here, mine = min(COLUMNS, columns - n), min(block, rows - row)
            clear(sums, 2 * mine)
            for k in range(0, count, depth // piece * piece):
                now = min(depth // piece * piece, count - k)
                pieces = (now + piece - 1) // piece
                for j in range(0, here, 16):
                    some = min(16, here - j)
                    pack(w + (n + j) * w_stride, w_stride, s, s_stride, z + (n + j) * z_stride, z_stride,
                         some, k, now, group, panel + 4 * j, LINE)  # fmt: skip
                    of_rows = s + (n + j) * s_stride
                    pack_scale(of_rows, s_stride, some, k, piece, pieces, group, scales + 4 * j, LINE)
                steps = (min(piece, now) + per_word - 1) // per_word
                m, at, skip = 0, x + row * x_stride + k * size, row * pieces_stride + k // piece * 4
                while m + 6 <= mine:
                    ahead = skip + m * pieces_stride
                    outer_six(at + m * x_stride, x_stride, x_scales + ahead, starts + ahead, pieces_stride,
                              panel, scales, pieces, steps, sums + m * LINE, LINE)  # fmt: skip
                    m += 6
                while m < mine:  # the last row twice where there is one too few
                    ahead, both = skip + m * pieces_stride, 1 if m + 1 < mine else 0
                    outer_two(at + m * x_stride, both * x_stride, x_scales + ahead, starts + ahead,
                              both * pieces_stride, panel, scales, pieces, steps, sums + m * LINE, LINE)  # fmt: skip
                    m += 2
            write_panel(sums, LINE, mine, 0, output, row, n, here)

    found: Callable[..., None] = many
    return found


def _many_dequantised(form: Format) -> Callable[..., None]:
    depth = DEPTH // 4
    pack = pack_integers(form)
    outer_six, outer_two = outer_tile("f32", 6, 2), outer_tile("f32", 2, 2)

    @jit(variant=form)
    def many(inputs: Numbers, weights: Numbers, output: Numbers, sizes: Numbers, first: int, end: int) -> None:
        x, x_stride, _, _, _ = inputs
        w, w_stride, s, s_stride, z, z_stride, group = weights
        rows, count, columns = sizes
        sums, panel = _sums(), _panel()
        panels, block = (columns + COLUMNS - 1) // COLUMNS, block_of(rows)
        for item in range(first, end):
            n, row = item % panels * COLUMNS, item // panels * block
            here, mine = min(COLUMNS, columns - n), min(block, rows - row)
            clear(sums, 2 * mine)
            for k in range(0, count, depth):
                now = min(depth, count - k)
                for j in range(n, n + here, 16):
                    pack(w + j * w_stride, w_stride, s + j * s_stride, s_stride, z + j * z_stride, z_stride,
                         min(16, n + here - j), k, now, group, panel + 4 * (j - n), LINE)  # fmt: skip
                m, at = 0, x + row * x_stride + 4 * k
                while m + 6 <= mine:
                    outer_six(at + m * x_stride, x_stride, panel, now, sums + m * LINE, LINE)
                    m += 6
                while m < mine:  # the last row twice where there is one too few
                    step = x_stride if m + 1 < mine else 0
                    outer_two(at + m * x_stride, step, panel, now, sums + m * LINE, LINE)
                    m += 2
            write_panel(sums, LINE, mine, 0, output, row, n, here)

    found: Callable[..., None] = many
    return found
