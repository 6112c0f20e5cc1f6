"""Rows of ``linear``, ``linears`` and ``gated_linear`` for dense weights and few rows: one launch for all weights.

Such a product takes the time in which its weights are read, and some microseconds in which the memory is idle: while
it is launched, until the first weights come, and while the last sums are added. Three products in one launch take these
once.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from ferrum_array import Dtype, Tensor
from ferrum_ops.activation import ActivationKind
from ferrum_ops.kernels.cuda.gemm import Shape, address, count_of, few_dense_refuses
from ferrum_ops.kernels.cuda.launch import Kernel, empty, power_of_two
from ferrum_ops.kernels.cuda.layouts import in_order, rows
from ferrum_ops.kernels.cuda.source import dense as source
from ferrum_ops.quant.tensor import QuantTensor

__all__ = [
    "FEW", "FEWEST", "gated_linear", "gated_linear_refuses", "linear", "linear_refuses", "linears", "linears_refuses",
]  # fmt: skip

Weight = Tensor | QuantTensor

#: up to so many rows
FEW: Final = 16
#: up to so many a single product is made here, and not by cuBLASLt, if it has this many columns or more
FEWEST: Final = 8
_COLUMNS: Final = 2048
_MOST: Final = 3  # weights of a launch
_UNIT: Final = 16  # bytes that a thread loads at once

_LINEARS = Kernel(source.few_linears, aligned=("size", "n0", "n1", "n2", "x_step", "step0", "step1", "step2"))
_GATED = Kernel(source.few_gated, aligned=("columns", "size", "x_step", "gate_step", "up_step"))


# The fastest that were found on an H200.


@cache
def linears_shape(given: int, columns: int, size: int) -> Shape:
    """How products of so many rows with weights of so many *columns* in all are cut."""
    if columns >= 65536:
        return Shape(32, 4, 2)
    return Shape(16, 4, 8 if given <= 8 and columns <= 4096 and size <= 4096 else 4)


@cache
def gated_shape(given: int, columns: int, size: int) -> Shape:
    """How a gated product is cut; the columns of a program are rows of both weights together."""
    return Shape(64, 2, 2) if columns >= 8192 else Shape(16, 4, 4)


def _refusal(x: Tensor, ws: tuple[Weight, ...], out: Dtype) -> str | None:
    if count_of(x) > FEW:
        return f"takes up to {FEW} rows"
    for w in ws:
        if reason := few_dense_refuses(x, w, None, out):
            return reason
        assert isinstance(w, Tensor)
        if address(w) % _UNIT or w._data.strides[0] % _UNIT:
            return f"the rows of w are not at multiples of {_UNIT} bytes"
    return None


def linear_refuses(x: Tensor, w: Weight, bias: Tensor | None, out: Dtype) -> str | None:
    """Why cuBLASLt is as fast, or may be, or None."""
    if count_of(x) > FEWEST:
        return f"takes up to {FEWEST} rows"
    if w.shape[0] < _COLUMNS:
        return f"takes weights of at least {_COLUMNS} rows"
    return _refusal(x, (w,), out)


def linear(x: Tensor, w: Tensor, bias: Tensor | None, out: Dtype) -> Tensor:
    """The op."""
    return linears(x, (w,), (bias,), out)[0]


def linears_refuses(x: Tensor, ws: tuple[Weight, ...], biases: tuple[Tensor | None, ...], out: Dtype) -> str | None:
    """Why several products are not one launch, or None."""
    if len(ws) > _MOST:
        return f"takes up to {_MOST} weights"
    if not all(w.shape[0] for w in ws):
        return "takes weights that have rows"
    return _refusal(x, ws, out)


def linears(
    x: Tensor,
    ws: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    out: Dtype,
    shape: Shape | None = None,
) -> tuple[Tensor, ...]:
    """The op, for up to three weights that have rows."""
    given, size = count_of(x), x._data.shape[-1]
    columns = [w._data.shape[0] for w in ws]
    made = tuple(empty((*x._data.shape[:-1], n), x, out) for n in columns)
    if not given:
        return made
    x, x_step = rows(x)
    bn, warps, chunks = linears_shape(given, sum(columns), size) if shape is None else shape
    absent = (None,) * (_MOST - len(ws))
    _LINEARS(
        (sum(-(-n // bn) for n in columns),),
        *(x, *ws, *absent),
        *(*(None if bias is None else in_order(bias) for bias in biases), *absent),
        *(*made, *absent, given),
        *(*columns, *absent, size, x_step),
        *(*(w._data.strides[0] // w._data.itemsize for w in ws), *absent),
        warps=warps,
        stages=1,
        BN=bn,
        TILES=max(1, bn // 16),
        HIGH=power_of_two(-(-given // 8)),
        WARPS=warps,
        CHUNKS=chunks,
        EVEN=size % (32 * warps * chunks) == 0,
    )
    return made


def gated_linear_refuses(
    x: Tensor, gate: Weight, up: Weight, kind: ActivationKind, gate_bias: Tensor | None, up_bias: Tensor | None,
    limit: float | None, alpha: float, up_offset: float,
) -> str | None:  # fmt: skip
    """Why a gated product is not one launch, or None."""
    return _refusal(x, (gate, up), x.dtype)


def gated_linear(
    x: Tensor, gate: Tensor, up: Tensor, kind: ActivationKind, gate_bias: Tensor | None, up_bias: Tensor | None,
    limit: float | None, alpha: float, up_offset: float, shape: Shape | None = None,
) -> Tensor:  # fmt: skip
    """The op; nothing is rounded before the activation."""
    given = count_of(x)
    columns, size = gate._data.shape
    y = empty((*x._data.shape[:-1], columns), x)
    if not y._data.size:
        return y
    x, x_step = rows(x)
    bn, warps, chunks = gated_shape(given, columns, size) if shape is None else shape
    _GATED(
        (-(-columns // (bn // 2)),),
        *(x, gate, up),
        *(None if bias is None else in_order(bias) for bias in (gate_bias, up_bias)),
        *(y, given, columns, size, x_step),
        *(w._data.strides[0] // w._data.itemsize for w in (gate, up)),
        None if limit is None else float(limit),
        None if alpha == 1.0 else float(alpha),
        float(up_offset) if up_offset else None,
        warps=warps,
        stages=1,
        TILES=bn // 16,
        HIGH=power_of_two(-(-given // 8)),
        WARPS=warps,
        CHUNKS=chunks,
        EVEN=size % (32 * warps * chunks) == 0,
        KIND=kind,
    )
    return y
