"""Rows of ``activation``, ``gated_activation``, ``sigmoid_gate`` and ``softcap``: a program has a tile of elements."""

from __future__ import annotations

from functools import cache
from typing import Final

from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.launch import Kernel, empty, power_of_two
from ferrum_ops.kernels.cuda.layouts import flat, rows
from ferrum_ops.kernels.cuda.source import activations as source

__all__ = ["activation", "gated_activation", "sigmoid_gate", "softcap"]

_TILE: Final = 1024  # elements
_SHORTEST: Final = 128  # rows of a tile: not every length has its own code
_WARPS: Final = 2

_ACTIVATION = Kernel(source.activation, aligned=("size", "x_step"))
_GATED = Kernel(source.gated_activation, aligned=("size", "gate_step", "up_step"))
_SIGMOID = Kernel(source.sigmoid_gate, aligned=("size", "x_step", "gate_step", "residual_step"))
_SOFTCAP = Kernel(source.softcap, aligned=("size", "x_step"))


@cache
def _tile(size: int) -> tuple[int, int, int]:
    """The rows and the columns of a tile, and how many tiles lie side by side."""
    block = min(_TILE, max(_SHORTEST, power_of_two(size)))
    return _TILE // block, block, -(-size // block)


def _tiles(out: Tensor, whole: bool) -> tuple[tuple[int], tuple[int, int], int, int]:
    """The grid; how many rows there are and how long they are; the rows and columns of a tile.

    Where operands lie without gaps, *whole*, everything is one row, of tiles without rows.
    """
    many = out._data.size
    if whole:
        return (-(-many // _TILE),), (1, many), 0, _TILE
    size = out._data.shape[-1]
    many //= size
    count, block, across = _tile(size)
    return (-(-many // count) * across,), (many, size), count, block


def activation(x: Tensor, kind: str) -> Tensor:
    """The op."""
    out = empty(x._data.shape, x)
    if out._data.size:
        x, step = rows(x)
        grid, extent, count, block = _tiles(out, flat(x))
        _ACTIVATION(grid, x, out, *extent, step, warps=_WARPS, KIND=kind, ROWS=count, BLOCK=block)
    return out


def softcap(x: Tensor, cap: float) -> Tensor:
    """The op."""
    out = empty(x._data.shape, x)
    if out._data.size:
        x, step = rows(x)
        grid, extent, count, block = _tiles(out, flat(x))
        _SOFTCAP(grid, x, out, *extent, step, float(cap), warps=_WARPS, ROWS=count, BLOCK=block)
    return out


def gated_activation(
    gate: Tensor, up: Tensor, kind: str, limit: float | None, alpha: float, up_offset: float
) -> Tensor:
    """The op; halves of one tensor are read where they lie."""
    out = empty(gate._data.shape, gate)
    if out._data.size:
        gate, gate_step = rows(gate)
        up, up_step = rows(up)
        grid, extent, count, block = _tiles(out, flat(gate, up))
        numbers = (
            None if limit is None else float(limit),
            None if alpha == 1.0 else float(alpha),
            float(up_offset) if up_offset else None,
        )
        steps = *extent, gate_step, up_step
        _GATED(grid, gate, up, out, *steps, *numbers, warps=_WARPS, KIND=kind, ROWS=count, BLOCK=block)
    return out


def sigmoid_gate(x: Tensor, gate: Tensor, residual: Tensor | None) -> Tensor:
    """The op."""
    out = empty(x._data.shape, x)
    if out._data.size:
        by_row = gate._data.shape != x._data.shape
        x, x_step = rows(x)
        gate, gate_step = rows(gate)
        residual, residual_step = (None, 0) if residual is None else rows(residual)
        given = (x,) if residual is None else (x, residual)
        grid, extent, count, block = _tiles(out, not by_row and flat(gate, *given))
        steps = *extent, x_step, gate_step, residual_step
        _SIGMOID(
            grid, x, gate, residual, out, *steps, warps=_WARPS, BY_ROW=by_row, ROWS=count, BLOCK=block
        )  # fmt: skip
    return out
