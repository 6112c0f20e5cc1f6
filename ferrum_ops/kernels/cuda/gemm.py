"""Rows of ``linear``: few rows with kernels of our own, many with cuBLASLt, which gets quantised weights widened.

Few rows are a matter of reading the weights: the time is that of their bytes. Integers of up to 8 bits and 4-bit
floats are exact in 16 bits; their scales multiply sums in float32. For many rows weights are widened to the dtype of
the inputs, some rows of them at a time, into memory that is taken for the call.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final, NamedTuple

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.cuda.launch import Kernel, empty, power_of_two
from ferrum_ops.kernels.cuda.layouts import in_order, rows
from ferrum_ops.kernels.cuda.source import gemm as source
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.mxfp4 import GROUP, Mxfp4Scheme
from ferrum_ops.quant.tensor import QuantTensor

__all__ = [
    "FEW", "few_dense", "few_dense_refuses", "few_quantised", "few_quantised_refuses", "rounded", "rounded_refuses",
    "widened", "widened_in_blocks", "widened_refuses",
]  # fmt: skip

#: up to so many rows are multiplied by the kernels here
FEW: Final = 64
_WIDE: Final = 1 << 25  # numbers that are widened at a time
_ADDED: Final = 1 << 17  # products of -127..127 with -128..127 whose sum is below 2**31

_DENSE = Kernel(source.few_dense, aligned=("columns", "size", "x_step", "w_step"))
_QUANTISED = Kernel(source.few_quantised, aligned=("columns", "x_step", "w_step", "s_step", "z_step"))
_ROUNDED = Kernel(source.rounded, aligned=("size", "x_step"))
_INTEGERS = Kernel(source.integers, aligned=("columns", "size", "w_step"))
_WIDEN = Kernel(source.widen, aligned=("w_step",))


class Shape(NamedTuple):
    """How a product is cut: rows of weights of a program, warps that share K, and pieces of K that a warp has at once.

    A piece is 32 numbers of dense weights, or a unit of quantised ones.
    """

    columns: int
    warps: int
    chunks: int


def count_of(x: Tensor) -> int:
    """How many rows *x* [..., K] has."""
    return math.prod(x._data.shape[:-1])


def _high(given: int) -> int:
    return power_of_two(-(-given // 8))


# Dense weights.


@cache
def dense_shape(given: int, columns: int, size: int) -> Shape:
    """How the kernel cuts products of so many rows with dense weights [columns, size]."""
    large = columns >= 8192
    if given <= 16:
        warps = 4 if large else 16 if size >= 8192 or columns <= 2048 else 8
        return Shape(8 if columns <= 2048 and given <= 8 else 16, warps, 4 if columns <= 2048 and given > 8 else 2)
    if columns <= 2048:
        return Shape(16, 8, 2)
    return Shape(64 if large and given > 32 else 32, 4 if large else 8, 1)


def few_dense_refuses(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> str | None:
    """Why the kernel for few rows does not take dense weights, or None."""
    if not isinstance(w, Tensor):
        return "takes dense weights"
    if out is fa.float64:
        return "does not give float64"
    if count_of(x) > FEW:
        return f"takes up to {FEW} rows"
    if not _by_rows(w):
        return "the rows of w have gaps"
    return None


def few_dense(x: Tensor, w: Tensor, bias: Tensor | None, out: Dtype, shape: Shape | None = None) -> Tensor:
    """The op, for up to ``FEW`` rows."""
    given = count_of(x)
    columns, size = w._data.shape
    y = empty((*x._data.shape[:-1], columns), x, out)
    if y._data.size:
        x, x_step = rows(x)
        bn, warps, chunks = dense_shape(given, columns, size) if shape is None else shape
        _DENSE(
            (-(-columns // bn),), x, w, None if bias is None else in_order(bias), y, given, columns, size, x_step,
            w._data.strides[0] // w._data.itemsize, warps=warps, stages=1, BN=bn, TILES=max(1, bn // 16),
            HIGH=_high(given), WARPS=warps, CHUNKS=chunks, EVEN=size % (32 * warps * chunks) == 0,
        )  # fmt: skip
    return y


def _by_rows(x: Tensor) -> bool:
    """Whether the numbers of each row lie side by side, and rows begin where a number does."""
    data = x._data
    strides = data.strides
    return bool(
        data.flags.c_contiguous
        or ((strides[-1] == data.itemsize or data.shape[-1] == 1) and strides[0] % data.itemsize == 0)
    )


# Quantised weights.


class Form(NamedTuple):
    """How quantised weights are read: units of K that have one scale.

    Attributes:
        name: ``int4``, ``int8`` or ``mxfp4``.
        unit: the numbers of a unit.
        per: how many units have one scale; 0: all.
    """

    name: str
    unit: int
    per: int


@cache
def form_of(scheme: IntScheme | Mxfp4Scheme, size: int) -> Form | str:
    """How weights of a scheme with rows of *size* numbers are read, or why they are not."""
    if isinstance(scheme, Mxfp4Scheme):
        return Form("mxfp4", GROUP, 1)
    if scheme.bits not in (4, 8):
        return f"reads integers of 4 and 8 bits, not {scheme.name}"
    length = size if scheme.group is None else scheme.group
    # a thread reads 16 bytes of a unit at once, or less
    unit = next((unit for unit in (128, 64, 32) if length % unit == 0 and unit * scheme.bits <= 512), None)
    if unit is None:
        return f"groups are of multiples of 32 numbers, not {length}"
    return Form(scheme.kind, unit, 0 if scheme.group is None and scheme.symmetric else length // unit)


def _refuses(w: Tensor | QuantTensor, out: Dtype) -> str | None:
    if isinstance(w, Tensor):
        return "takes quantised weights"
    if out is fa.float64:
        return "does not give float64"
    scheme = w.scheme
    if w.layout != "plain" or not isinstance(scheme, IntScheme | Mxfp4Scheme):
        return f"reads integers with scales and mxfp4, not {scheme.name}, {w.layout}"
    if isinstance(scheme, IntScheme) and scheme.activations is not None:
        return "does not round inputs"
    return _unreadable(w, scheme)


def _unreadable(w: QuantTensor, scheme: IntScheme | Mxfp4Scheme) -> str | None:
    form = form_of(scheme, w.shape[1])
    if isinstance(form, str):
        return form
    values = w.parts["values"]
    if not all(_by_rows(part) for part in w.parts.values()):
        return "the rows of w have gaps"
    if values._data.strides[0] % 4 or address(values) % 4:
        return "the rows of w are not at multiples of 4 bytes"
    return None


def address(x: Tensor) -> int:
    """Where the memory of *x* begins, on the device or, in the interpreter, here."""
    data = x._data
    return int(data.data.ptr if x.device.kind == "cuda" else data.ctypes.data)


def few_quantised_refuses(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> str | None:
    """Why the kernel for few rows does not take quantised weights, or None."""
    if count_of(x) > FEW:
        return f"takes up to {FEW} rows"
    return _refuses(w, out)


@cache
def quantised_shape(given: int, columns: int, size: int, form: Form) -> Shape:
    """How the kernel cuts products of so many rows with quantised weights [columns, size]."""
    small, large, whole, byte = columns <= 2048, columns >= 8192, form.unit == 128, form.name == "int8"
    if given > 16:
        return Shape(32, 8, 2 if given <= 32 else 1)
    if given > 8:
        if small:
            return Shape(16 if whole else 8, 8, 2)
        if large:
            return Shape(32 if form.name == "int4" else 16, 4, 1 if whole else 2)
        return Shape(32 if form.name == "int4" and form.unit != 64 else 16, 8, 1 if byte else 2)
    if small:
        return Shape(8, 8, 2 if whole else 4)
    if large:
        return Shape(16, 4, 2)
    if byte and size >= 8192:
        return Shape(16, 16, 2)
    return Shape(16, 8, 2 if whole and size >= 8192 else 4)


def _steps(x: Tensor | None) -> int:
    return 0 if x is None else x._data.strides[0] // x._data.itemsize


def few_quantised(x: Tensor, w: QuantTensor, bias: Tensor | None, out: Dtype, shape: Shape | None = None) -> Tensor:
    """The op, for up to ``FEW`` rows."""
    columns, size = w.shape
    y = empty((*x._data.shape[:-1], columns), x, out)
    if not y._data.size:
        return y
    if not size:
        return _nothing(y, bias)
    _few_quantised(x, None, w, bias, y, shape)
    return y


def _few_quantised(
    x: Tensor, x_scales: Tensor | None, w: QuantTensor, bias: Tensor | None, y: Tensor, shape: Shape | None
) -> None:
    given, (columns, size) = count_of(x), w.shape
    x, x_step = rows(x)
    form = _form(w)
    values, scales, zeros = w.parts["values"], w.parts["scales"], w.parts.get("zeros")
    bn, warps, chunks = quantised_shape(given, columns, size, form) if shape is None else shape
    units = size // form.unit
    _QUANTISED(
        (-(-columns // bn),), x, x_scales, values, scales, zeros, None if bias is None else in_order(bias), y, given,
        columns, units, x_step, values._data.strides[0] // 4, _steps(scales), _steps(zeros), 1, warps=warps, stages=1,
        FORM=form.name, PER=form.per, BN=bn, TILES=max(1, bn // 16), HIGH=_high(given), WARPS=warps, CHUNKS=chunks,
        WORDS=form.unit // (16 if form.name == "int8" else 32), EVEN=units % (warps * chunks) == 0,
    )  # fmt: skip


def _form(w: QuantTensor) -> Form:
    scheme = w.scheme
    assert isinstance(scheme, IntScheme | Mxfp4Scheme)
    form = form_of(scheme, w.shape[1])
    assert isinstance(form, Form), form
    return form


def _nothing(y: Tensor, bias: Tensor | None) -> Tensor:
    """*y* filled with the bias, or 0: what rows of no numbers give."""
    y[...] = 0.0 if bias is None else bias.astype(y.dtype, copy=False)
    return y


# Many rows with quantised weights.


def widened_refuses(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> str | None:
    """Why weights are not widened for cuBLASLt, or None."""
    if not x.size or not math.prod(w.shape):
        return "takes at least one row, and weights"
    if out is fa.float32 and x.dtype is not fa.float32:
        return f"rounds weights to {x.dtype}, which a result in float32 would show"
    return _refuses(w, out)


def widened(w: QuantTensor, like: Tensor, block: int = 64) -> Tensor:
    """The numbers of *w* [N, K], which has some, in the dtype of *like*."""
    columns, size = w.shape
    out = empty((columns, size), like)
    form = _form(w)
    values, scales, zeros = w.parts["values"], w.parts["scales"], w.parts.get("zeros")
    numbers = 16 if form.name == "int8" else 32  # of a unit of the kernel's
    units = size // numbers
    _WIDEN(
        (columns, -(-units // block)), values, scales, zeros, out, units, values._data.strides[0] // 4,
        _steps(scales), _steps(zeros), 1, FORM=form.name, PER=form.unit * form.per // numbers, BLOCK=block,
    )  # fmt: skip
    return out


def widened_in_blocks(x: Tensor, w: QuantTensor, bias: Tensor | None, out: Dtype) -> Tensor:
    """The op, for many rows: some rows of the weights after others are widened and multiplied."""
    from ferrum_ops.kernels.cuda.cublas import product

    columns, size = w.shape
    y = empty((*x._data.shape[:-1], columns), x, out)
    step = max(128, _WIDE // size // 128 * 128)
    for start in range(0, columns, step):
        part = slice(start, min(start + step, columns))
        product(x, widened(w[part], x), None if bias is None else bias[part], y, start)
    return y


# Integers, with inputs that are rounded to integers.


class Tile(NamedTuple):
    """How a product of integers is cut: the tile of a program, pieces of K, tiles that go together, and resources."""

    rows: int
    columns: int
    depth: int
    side: int
    warps: int
    stages: int


@cache
def tile_of(given: int, columns: int) -> Tile:
    """The tile for so many rows."""
    if given <= 64:
        return Tile(16 if given <= 16 else 64, 64, 128, 8, 4, 4)
    return Tile(128, 256, 128, 8, 8, 3)


def rounded_refuses(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> str | None:
    """Why inputs are not rounded here, or None."""
    if isinstance(w, Tensor):
        return "takes quantised weights"
    if out is fa.float64:
        return "does not give float64"
    scheme = w.scheme
    if w.layout != "plain" or not isinstance(scheme, IntScheme) or scheme.activations is None or scheme.bits != 8:
        return "takes weights of 8 bits that ask for inputs of 8 bits"
    if not scheme.symmetric:
        return "does not take zeros"
    if (length := scheme.group or w.shape[1]) > _ADDED:
        return f"adds up to {_ADDED} products in 32 bits, not {length}"
    return _unreadable(w, scheme)


def rounded(x: Tensor, w: QuantTensor, bias: Tensor | None, out: Dtype, tile: Tile | None = None) -> Tensor:
    """The op, with integers of 8 bits as weights and inputs."""
    given, (columns, size) = count_of(x), w.shape
    y = empty((*x._data.shape[:-1], columns), x, out)
    if not y._data.size:
        return y
    if not size:
        return _nothing(y, bias)
    scheme = w.scheme
    assert isinstance(scheme, IntScheme)
    few = scheme.group is None and given <= FEW and tile is None
    x, x_step = rows(x)
    length = scheme.group or size
    groups = size // length
    # integers are exact in float16, in which the kernel for few rows takes them
    values = empty((given, size), x, fa.float16 if few else fa.int8)
    x_scales = empty((given, groups), x, fa.float32)
    block = min(4096, power_of_two(length))
    _ROUNDED(
        (given, groups), x, values, x_scales, groups, length, x_step, warps=min(8, max(1, block // 256)), BLOCK=block
    )
    if few:
        _few_quantised(values, x_scales, w, bias, y, None)
        return y
    scales = w.parts["scales"]
    bm, bn, depth, side, warps, stages = tile_of(given, columns) if tile is None else tile
    _INTEGERS(
        (-(-given // bm) * -(-columns // bn),), values, x_scales, w.parts["values"], scales,
        None if bias is None else in_order(bias), y, given, columns, size, groups, _steps(w.parts["values"]),
        _steps(scales), warps=warps, stages=stages, GROUP=0 if groups == 1 else length, BM=bm, BN=bn,
        BK=depth if groups == 1 else min(depth, length & -length), SIDE=side,
    )  # fmt: skip
    return y
