"""Rows of ``rms_norm``, ``l2_norm`` and ``layer_norm``: a program has whole rows in registers, or passes over one."""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.launch import Kernel, empty, power_of_two
from ferrum_ops.kernels.cuda.layouts import in_order, rows
from ferrum_ops.kernels.cuda.source import norms as source

__all__ = ["LONGEST", "l2_norm", "layer_norm", "no_float64", "rms_norm"]

#: the longest block that a program holds; longer rows are passed over twice or more
LONGEST: Final = 1 << 15
_BLOCK: Final = 1 << 13  # of those
_SHORTEST: Final = 64  # so that not every length has its own code
_WASTE: Final = 1.15  # elements of blocks for each of a row
_FEW: Final = 256  # rows, which leave most of a GPU idle

_STEPS: Final = ("size", "x_step", "residual_step")
_RMS = Kernel(source.rms_norm, aligned=(*_STEPS, "gate_step"))
_RMS_WIDE = Kernel(source.rms_norm_wide, aligned=(*_STEPS, "gate_step"))
_LAYER = Kernel(source.layer_norm, aligned=_STEPS)
_LAYER_WIDE = Kernel(source.layer_norm_wide, aligned=_STEPS)


class _Shape(NamedTuple):
    """How many rows a program has, the length of a row's blocks and how many there are, and the warps."""

    rows: int
    block: int
    blocks: int
    warps: int


@cache
def _shape(size: int, few: bool) -> _Shape:
    """The shape of programs for rows of so many elements; with *few* rows more warps share one."""
    block = whole = max(_SHORTEST, power_of_two(size))
    if not few and whole > _WASTE * size:
        smaller = [whole >> n for n in range(4) if whole >> n >= _SHORTEST]
        block = min(smaller, key=lambda one: (-(-size // one) * one, -one))
    blocks = -(-size // block)
    if blocks == 1:
        count = max(1, 2048 // block)
        return _Shape(count, block, 1, min(16, max(4, count * block // (256 if few else 512))))
    count = max(1, 1024 // block)
    return _Shape(count, block, blocks, min(16, count * block // 256))


def no_float64(*arguments: object) -> str | None:
    """Why a kernel cannot take these arguments, if one is a float64."""
    if any(isinstance(one, Tensor) and one.dtype is fa.float64 for one in arguments):
        return "does not take float64 operands"
    return None


def rms_norm(
    x: Tensor, w: Tensor | None, eps: float, offset: float, residual: Tensor | None, gate: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """The op."""
    out = empty(x._data.shape, x)
    total = None if residual is None else empty(x._data.shape, residual)
    _rms(x, w, residual, gate, out, total, float(x._data.shape[-1]), eps, offset)
    return out if total is None else (out, total)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """The op."""
    out = empty(x._data.shape, x)
    _rms(x, None, None, None, out, None, 1.0, eps, 0.0)
    return out


def _rms(
    x: Tensor,
    w: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    out: Tensor,
    total: Tensor | None,
    parts: float,
    eps: float,
    offset: float,
) -> None:
    size, many = x._data.shape[-1], out._data.size
    if not many:
        return
    x, x_step = rows(x)
    residual, residual_step = (None, 0) if residual is None else rows(residual)
    gate, gate_step = (None, 0) if gate is None else rows(gate)
    w = None if w is None else in_order(w)
    many //= size
    steps = size, x_step, residual_step, gate_step
    numbers = parts, float(eps), float(offset) if offset else None
    if size > LONGEST:
        _RMS_WIDE((many,), x, w, residual, gate, out, total, *steps, *numbers, warps=16, BLOCK=_BLOCK)
        return
    shape = _shape(size, many <= _FEW)
    _RMS(
        (-(-many // shape.rows),),
        *(x, w, residual, gate, out, total, many),
        *(*steps, *numbers),
        warps=shape.warps,
        ROWS=shape.rows,
        BLOCK=shape.block,
        BLOCKS=shape.blocks,
        EARLY=w is not None and many <= _FEW and shape.blocks == 1,
    )


def layer_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, eps: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """The op."""
    out = empty(x._data.shape, x)
    total = None if residual is None else empty(x._data.shape, residual)
    size, many = x._data.shape[-1], out._data.size
    if many:
        x, x_step = rows(x)
        residual, residual_step = (None, 0) if residual is None else rows(residual)
        w = None if w is None else in_order(w)
        b = None if b is None else in_order(b)
        many //= size
        steps = size, x_step, residual_step
        numbers = float(size), float(eps)
        if size > LONGEST:
            _LAYER_WIDE((many,), x, w, b, residual, out, total, *steps, *numbers, warps=16, BLOCK=_BLOCK)
        else:
            shape = _shape(size, many <= _FEW)
            _LAYER(
                (-(-many // shape.rows),),
                *(x, w, b, residual, out, total, many),
                *(*steps, *numbers),
                warps=shape.warps,
                ROWS=shape.rows,
                BLOCK=shape.block,
                BLOCKS=shape.blocks,
            )
    return out if total is None else (out, total)
