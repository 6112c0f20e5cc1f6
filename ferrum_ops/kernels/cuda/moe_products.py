"""Products of rows with the weights of their experts, as rows of ``grouped_linear`` and ``moe_ffn`` launch them.

Where the experts' rows lie is in the memory of the device: sorted rows have offsets, and few rows the ids of their
experts. The host knows bounds, from which grids are made.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.gemm import address, form_of, widened
from ferrum_ops.kernels.cuda.launch import Kernel, chains, empty, power_of_two, processors
from ferrum_ops.kernels.cuda.layouts import in_order, rows
from ferrum_ops.kernels.cuda.source import moe as source
from ferrum_ops.kernels.cuda.source import moe_bulk, moe_few
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.mxfp4 import Mxfp4Scheme
from ferrum_ops.quant.tensor import QuantTensor

__all__ = [
    "FEW", "WIDE", "Bulk", "Cut", "Gate", "Listed", "Pass", "Product", "Sorted", "Stack", "bulk", "bulk_refuses",
    "down", "few", "fours", "many", "some", "stack_of", "widened_stack",
]  # fmt: skip

#: dtypes in which all 4-bit floats with their scales are exact
WIDE: Final = (fa.bfloat16,)
#: so many choices at most are looked up among all by every program
FEW: Final = 128

_PLAIN: Final = ("columns", "size", "x_step", "w_expert", "w_step")
_QUANTISED: Final = (*_PLAIN, "s_expert", "s_step", "z_expert", "z_step")
_MANY: Final = Kernel(source.many, aligned=_QUANTISED)
_BULK: Final = Kernel(moe_bulk.bulk, aligned=("columns", "size", "x_step", "w_step"))
_FEW: Final = Kernel(moe_few.few, aligned=_QUANTISED)
_SOME: Final = Kernel(source.some, aligned=_PLAIN)
_DOWN: Final = Kernel(moe_few.down, aligned=_QUANTISED)


class Cut(NamedTuple):
    """How kernels that load tiles ahead cut a product.

    Attributes:
        rows: of a tile.
        narrow: of a tile where these are enough; 0: there are none.
        columns: of a tile.
        depth: numbers of K at a time.
        warps: of a program.
        stages: loads that are under way.
        bulk: whether descriptors copy tiles, where addresses allow it.
        programs: on each multiprocessor.
    """

    rows: int
    narrow: int
    columns: int
    depth: int
    warps: int
    stages: int
    bulk: bool
    programs: int = 1


class Bulk(NamedTuple):
    """How the kernel with copying warps cuts a product.

    Attributes:
        rows: of each of the two groups of warps that multiply.
        columns: of a tile; with a gate, of both halves together.
        depth: numbers of K at a time.
        stages: pieces of K that are copied ahead.
        registers: of each thread that multiplies.
    """

    rows: int
    columns: int
    depth: int
    stages: int
    registers: int


class Pass(NamedTuple):
    """How kernels whose weights go to registers cut a product.

    Attributes:
        tiles: of 16 rows of weights each.
        warps: of a program.
        chunks: 32 numbers of dense weights, or units of others, that each warp takes at once.
        stages: loads that are under way.
        ahead: whether weights are loaded while those before them are multiplied.
        registers: that a thread may have; 0: as many as the compiler likes.
    """

    tiles: int
    warps: int
    chunks: int
    stages: int = 1
    ahead: bool = False
    registers: int = 0


class Gate(NamedTuple):
    """The activation between the two halves; None is what does not matter."""

    kind: str
    limit: float | None
    alpha: float | None
    up_offset: float | None


class Stack(NamedTuple):
    """Weights [experts, rows, size] as kernels take them: *unit* numbers of a row belong together, *per* units a scale.

    Steps are from expert to expert and from row to row, of values (in words of 4 bytes if quantised), scales and zeros.
    """

    values: Tensor
    scales: Tensor | None
    zeros: Tensor | None
    steps: tuple[int, ...]
    experts: int
    rows: int
    size: int
    form: str
    unit: int
    per: int


class Product(NamedTuple):
    """Rows of x, of which each meets its expert's weights; *columns* of the result, of each half if there is a gate."""

    x: Tensor
    w: Stack
    bias: Tensor | None
    columns: int
    gate: Gate | None


class Sorted(NamedTuple):
    """Rows sorted by expert: *given* rows of x, or those of choices *order*, k of which share a row of x.

    *tail*: the last rows may belong to nobody, and give 0.
    """

    order: Tensor | None
    offsets: Tensor
    given: int
    k: int
    tail: bool = False


class Listed(NamedTuple):
    """The experts [...] of choices, k of which share a row of x; results lie in their order.

    *chained*: the launch before signals that the product may come, which is of dense weights.
    """

    ids: Tensor
    k: int
    chained: bool = False


def stack_of(w: Tensor | QuantTensor) -> Stack:
    """*w* for the kernels, which take it."""
    experts, count, size = w.shape
    if isinstance(w, Tensor):
        steps = tuple(step // w._data.itemsize for step in w._data.strides[:2])
        return Stack(w, None, None, (*steps, 0, 0, 0, 0), experts, count, size, "dense", 1, 0)
    scheme = w.scheme
    assert isinstance(scheme, IntScheme | Mxfp4Scheme)
    form = form_of(scheme, size)
    assert not isinstance(form, str), form
    values, scales, zeros = w.parts["values"], w.parts["scales"], w.parts.get("zeros")
    steps = tuple(step // 4 for step in values._data.strides[:2])
    for part in (scales, zeros):
        steps += (0, 0) if part is None else tuple(step // part._data.itemsize for step in part._data.strides[:2])
    return Stack(values, scales, zeros, steps, experts, count, size, form.name, form.unit, form.per)


def widened_stack(w: QuantTensor, like: Tensor) -> Stack:
    """The numbers of *w* in the dtype of *like*, as dense weights in memory of their own."""
    experts, count, size = w.shape
    parts = {name: fa.reshape(part, (experts * count, -1)) for name, part in w.parts.items()}
    flat = QuantTensor(w.scheme, (experts * count, size), parts, dtype=w.dtype)
    return stack_of(fa.reshape(widened(flat, like), w.shape))


def _operands(product: Product) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Values, scales, zeros and bias."""
    w, bias = product.w, product.bias
    return w.values, w.scales, w.zeros, None if bias is None else in_order(bias)


def _by_descriptor(w: Stack) -> bool:
    """Whether descriptors can copy dense weights: no gaps between rows, which lie at multiples of 16 bytes."""
    line = w.steps[1]
    whole = line * w.values._data.itemsize % 16 == 0 and address(w.values) % 16 == 0
    return w.form == "dense" and whole and w.steps[0] == line * w.rows


def _rows_by_descriptor(x: Tensor, step: int) -> bool:
    return step * x._data.itemsize % 16 == 0 and address(x) % 16 == 0


def many(product: Product, where: Sorted, cut: Cut) -> Tensor:
    """Sorted rows, tile by tile."""
    out = empty((where.given, product.columns), product.x)
    x, x_step = rows(product.x)
    w, columns, given = product.w, product.columns, where.given
    bulk = cut.bulk and _rows_by_descriptor(x, x_step) and (w.form != "dense" or _by_descriptor(w))
    tiles = (given // cut.rows + min(w.experts + 1, given)) * -(-columns // cut.columns)
    kind, *numbers = product.gate or (None, None, None, None)
    _MANY(
        (min(tiles, processors(x.device) * cut.programs),), x, *_operands(product), where.order,
        in_order(where.offsets), out, given, columns, w.size, x_step, *w.steps, where.k, w.experts, *numbers, 1,
        warps=cut.warps, stages=cut.stages, FORM=w.form, GROUP=w.unit * w.per, ACT=kind,
        EXPERTS=power_of_two(w.experts + 1), BM=cut.rows, NARROW=cut.narrow, BN=cut.columns, BK=cut.depth, BULK=bulk,
        EVEN=w.size % cut.depth == 0,
    )  # fmt: skip
    return out


def bulk_refuses(product: Product) -> str | None:
    """Why the kernel with copying warps does not take a product, or None."""
    x, step = rows(product.x)
    if not (_by_descriptor(product.w) and _rows_by_descriptor(x, step)) or product.w.size % 16:
        return "copies dense weights without gaps, rows at multiples of 16 bytes, and multiples of 16 numbers"
    gate = product.gate
    return None if gate is None or gate.kind == "silu" else f"has silu, not {gate.kind}"


def bulk(product: Product, where: Sorted, cut: Bulk) -> Tensor:
    """Sorted rows, tile by tile, by programs whose warps copy or multiply; :func:`bulk_refuses` is asked before."""
    out = empty((where.given, product.columns), product.x)
    x, x_step = rows(product.x)
    w, columns, given, gate = product.w, product.columns, where.given, product.gate
    values, _, _, bias = _operands(product)
    blocks = -(-columns // (cut.columns // 2 if gate else cut.columns))
    tiles = (given // (2 * cut.rows) + min(w.experts + 1, given)) * blocks
    programs = min(tiles, processors(x.device))
    slots = power_of_two(-(-tiles // programs))
    table = empty((programs, slots, 4), where.offsets, fa.int32)
    numbers = (None, None, None) if gate is None else gate[1:]
    _BULK(
        (programs,), x, values, bias, where.order, in_order(where.offsets), table, out, given, x._data.shape[0],
        columns, w.size, x_step, w.steps[1], where.k, w.experts, *numbers, warps=4, stages=1, GATE=gate is not None,
        EXPERTS=max(128, power_of_two(w.experts + 1)), SLOTS=slots, CM=cut.rows, BN=cut.columns, BK=cut.depth,
        STAGES=cut.stages, EVEN=w.size % cut.depth == 0, REGISTERS=cut.registers,
    )  # fmt: skip
    return out


def _rounds(product: Product) -> bool:
    """Whether weights times their scales are rounded as they would be if they were made before."""
    x, scales = product.x, product.w.scales
    return x.dtype in WIDE and scales is not None and scales.dtype is x.dtype


def fours(product: Product) -> Product:
    """The same with units of four groups of 32 numbers of 4 bits, where there are so many and the dtype allows it."""
    w = product.w
    if w.form == "mxfp4" and w.size % 128 == 0 and product.x.dtype in WIDE:
        return product._replace(w=w._replace(unit=128, per=-1))
    if w.form == "int4" and w.unit == 32 and w.per == 1 and w.size % 128 == 0 and _rounds(product):
        return product._replace(w=w._replace(unit=128, per=-1))
    return product


def _constants(w: Stack, cut: Pass, apart: bool) -> dict[str, Any]:
    """What is compiled in; *apart*: warps do not share K."""
    depth, piece = (w.size, 32) if w.form == "dense" else (w.size // w.unit, 1)
    step = piece * cut.chunks * (1 if apart else cut.warps)
    return {
        "FORM": w.form, "PER": w.per, "TILES": cut.tiles, "WARPS": cut.warps, "CHUNKS": cut.chunks,
        "WORDS": 0 if w.form == "dense" else w.unit // (16 if w.form == "int8" else 32), "EVEN": depth % step == 0,
        "AHEAD": cut.ahead,
    }  # fmt: skip


def _looked_up(choices: int) -> int:
    """The choices that programs are compiled for."""
    return 32 if choices <= 32 else FEW


def few(product: Product, where: Sorted | Listed, cut: Pass) -> Tensor:
    """Up to a few rows of each expert, sorted or not; weights go straight to registers."""
    product = fours(product)
    x, x_step = rows(product.x)
    w, columns = product.w, product.columns
    kind, *numbers = product.gate or (None, None, None, None)
    if isinstance(where, Listed):
        ids, order, offsets, given = where.ids, None, None, where.ids._data.size
        slots = min(given, w.experts)
    else:
        ids, order, offsets, given, slots = None, where.order, in_order(where.offsets), where.given, w.experts
    out = empty((given, columns), product.x)
    if isinstance(where, Sorted) and where.tail:  # no program has the rows of nobody
        out[...] = 0.0
    width = cut.tiles * (8 if product.gate else 16)
    _FEW(
        (-(-columns // width), slots), x, *_operands(product), ids, order, offsets, out, given, columns,
        w.size // w.unit, x_step, *w.steps, where.k, w.experts, *numbers, 1, warps=cut.warps, stages=cut.stages,
        registers=cut.registers, ACT=kind,
        CHOICES=_looked_up(0 if ids is None else given), EACH=w.experts < given,
        HIGH=1 if given <= 4 * w.experts else 2, **_constants(w, cut, False),
        CHAIN=offsets is None and chains(x),
    )  # fmt: skip
    return out


def down(product: Product, ids: Tensor, weights: Tensor, cut: Pass, chained: bool = False) -> Tensor:
    """The weighted sums [..., columns] of what the experts of each token give; x has a row for each choice.

    *chained*: the launch before signals that this one may come.
    """
    product = fours(product)
    x, x_step = rows(product.x)
    w, columns = product.w, product.columns
    *lead, k = ids._data.shape
    out = empty((*lead, columns), product.x)
    _DOWN(
        (-(-columns // (16 * cut.tiles)), math.prod(lead)), x, *_operands(product), ids, weights, out, columns,
        w.size // w.unit, x_step, *w.steps, k, w.experts, 1, warps=cut.warps, stages=cut.stages,
        registers=cut.registers, early=chained, **_constants(w, cut, True), CHAIN=chained,
    )  # fmt: skip
    return out


def some(product: Product, where: Listed, cut: Cut) -> Tensor:
    """Few rows that are not sorted, with dense weights."""
    x, x_step = rows(product.x)
    w, columns, ids = product.w, product.columns, where.ids
    given: int = ids._data.size
    out = empty((given, columns), product.x)
    values, _, _, bias = _operands(product)
    kind, *numbers = product.gate or (None, None, None, None)
    _SOME(
        (-(-columns // cut.columns), min(given, w.experts)), x, values, bias, ids, out, given, columns, w.size, x_step,
        *w.steps[:2], where.k, w.experts, *numbers, 1, warps=cut.warps, stages=cut.stages,
        early=where.chained, ACT=kind,
        CHOICES=_looked_up(given), EACH=w.experts < given, BM=cut.rows, BN=cut.columns, BK=cut.depth,
        BULK=cut.bulk and _by_descriptor(w), EVEN=w.size % cut.depth == 0, CHAIN=chains(x), WAIT=where.chained,
    )  # fmt: skip
    return out
