"""Rows of ``linears`` and ``gated_linear`` for weights of 4 bits and few rows: one launch reads them all.

Source: Frantar et al., "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models", 2024,
whose products, too, keep copies of weights under way while others are widened and multiplied.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.activation import ActivationKind
from ferrum_ops.kernels.cuda.gemm import address, count_of
from ferrum_ops.kernels.cuda.launch import Kernel, capability, empty, processors
from ferrum_ops.kernels.cuda.layouts import flat, in_order, rows
from ferrum_ops.kernels.cuda.source import few as source
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.tensor import QuantTensor

__all__ = [
    "FEW", "FEWEST", "Cut", "Gate", "cut_of", "gated_linear", "gated_linear_refuses", "linears", "linears_refuses",
]  # fmt: skip

Weight = Tensor | QuantTensor

#: up to so many rows; of a gated product, whose activation two launches hide well enough, up to fewer
FEW: Final = 16
FEWEST: Final = 8
_MOST: Final = 3  # weights of a launch
_UNIT: Final = 128  # numbers that have one scale
_TILE: Final = 16  # rows of weights of a tile
_HOPPER: Final = 90

_FEW = Kernel(source.few_int4, aligned=("n0", "n1", "n2", "x_step"))


class Cut(NamedTuple):
    """How products are cut.

    Attributes:
        warps: that share K.
        chunks: units of a warp in a piece of K.
        stages: pieces that shared memory holds.
        programs: of a multiprocessor.
    """

    warps: int
    chunks: int
    stages: int
    programs: int


class Gate(NamedTuple):
    """What the second of two products is multiplied by: a function of the first; as in ``gated_activation``."""

    kind: ActivationKind
    limit: float | None
    alpha: float
    up_offset: float


@cache
def cut_of(given: int, units: int) -> Cut | None:
    """How so many rows times weights with rows of so many units are cut, or None: these do not fall into pieces."""
    cuts = (Cut(4, 2, 6, 4), Cut(4, 1, 8, 4)) if given <= 8 else (Cut(8, 4, 3, 1), Cut(8, 2, 6, 1), Cut(4, 1, 8, 3))
    return next((cut for cut in cuts if units % (cut.warps * cut.chunks) == 0), None)


def _refusal(x: Tensor, ws: tuple[Weight, ...], out: Dtype, tile: int, most: int) -> str | None:
    if not 0 < count_of(x) <= most:
        return f"takes 1 to {most} rows"
    if out is fa.float64:
        return "does not give float64"
    if capability(x.device) < _HOPPER:
        return "is made for Hopper"
    reason = next((reason for w in ws if (reason := _unreadable(w, tile)) is not None), None)
    if reason is None and len({w.scheme for w in ws if isinstance(w, QuantTensor)}) > 1:
        return "takes weights of one scheme"
    return reason


def _unreadable(w: Weight, tile: int) -> str | None:
    if isinstance(w, Tensor):
        return "takes quantised weights"
    scheme = w.scheme
    if not isinstance(scheme, IntScheme) or scheme.bits != 4 or scheme.group != _UNIT or not scheme.symmetric:
        return f"reads symmetric integers of 4 bits in groups of {_UNIT}, not {scheme.name}"
    if w.layout != "plain" or scheme.activations is not None:
        return f"reads plain weights whose inputs are not rounded, not {scheme.name}, {w.layout}"
    columns, size = w.shape
    if columns == 0 or columns % tile:
        return f"takes weights of multiples of {tile} rows, not {columns}"
    if not size or cut_of(1, size // _UNIT) is None:
        return f"rows of {size} numbers do not fall into pieces for some warps"
    if not flat(*w.parts.values()) or address(w.parts["values"]) % 16:
        return "the rows of w have gaps, or are not at multiples of 16 bytes"
    return None


def linears_refuses(x: Tensor, ws: tuple[Weight, ...], biases: tuple[Tensor | None, ...], out: Dtype) -> str | None:
    """Why several products are not one launch, or None."""
    if len(ws) > _MOST:
        return f"takes up to {_MOST} weights"
    return _refusal(x, ws, out, _TILE, FEW)


def linears(
    x: Tensor, ws: tuple[QuantTensor, ...], biases: tuple[Tensor | None, ...], out: Dtype, cut: Cut | None = None
) -> tuple[Tensor, ...]:
    """The op."""
    return _products(x, ws, biases, out, None, cut)


def gated_linear_refuses(
    x: Tensor, gate: Weight, up: Weight, kind: ActivationKind, gate_bias: Tensor | None, up_bias: Tensor | None,
    limit: float | None, alpha: float, up_offset: float,
) -> str | None:  # fmt: skip
    """Why a gated product is not one launch, or None."""
    return _refusal(x, (gate, up), x.dtype, _TILE // 2, FEWEST)


def gated_linear(
    x: Tensor, gate: QuantTensor, up: QuantTensor, kind: ActivationKind, gate_bias: Tensor | None,
    up_bias: Tensor | None, limit: float | None, alpha: float, up_offset: float, cut: Cut | None = None,
) -> Tensor:  # fmt: skip
    """The op; nothing is rounded before the activation."""
    return _products(x, (gate, up), (gate_bias, up_bias), x.dtype, Gate(kind, limit, alpha, up_offset), cut)[0]


def _products(
    x: Tensor,
    ws: tuple[QuantTensor, ...],
    biases: tuple[Tensor | None, ...],
    out: Dtype,
    gate: Gate | None,
    cut: Cut | None,
) -> tuple[Tensor, ...]:
    given, units = count_of(x), ws[0].shape[1] // _UNIT
    columns = [w.shape[0] for w in ws[: None if gate is None else 1]]
    made = tuple(empty((*x._data.shape[:-1], n), x, out) for n in columns)
    x, x_step = rows(x)
    cut = cut_of(given, units) if cut is None else cut
    assert cut is not None
    pieces = units // (cut.warps * cut.chunks)
    tiles = sum(columns) // (_TILE if gate is None else _TILE // 2)
    absent = (None,) * (_MOST - len(ws))
    _FEW(
        (min(tiles, cut.programs * processors(x.device)),),
        *(x, *(w.parts["values"] for w in ws), *absent, *(w.parts["scales"] for w in ws), *absent),
        *(*(None if bias is None else in_order(bias) for bias in biases), *absent),
        *(*made, *(None,) * (_MOST - len(made)), given, *columns, *(None,) * (_MOST - len(made)), tiles, x_step),
        None if gate is None or gate.limit is None else float(gate.limit),
        None if gate is None or gate.alpha == 1.0 else float(gate.alpha),
        None if gate is None or not gate.up_offset else float(gate.up_offset),
        1,
        warps=cut.warps,
        stages=1,
        PIECES=pieces,
        HIGH=1 if given <= 8 else 2,
        W=cut.warps,
        C=cut.chunks,
        STAGES=cut.stages,
        ACT=None if gate is None else gate.kind,
    )
    return made
