"""Kernels of ``rms_norm``, ``l2_norm`` and ``layer_norm``: two passes over each row, which stays in the cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.cpu.activations import over_one_plus_exp
from ferrum_ops.kernels.cpu.arrays import empty_like, flat, flat_or_nothing, rows
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.intrinsics import get, put
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.threads import crew, rows_each, share
from ferrum_ops.recorded import records

__all__ = ["l2_norm", "layer_norm", "no_float64", "rms_norm", "rms_norm_with", "root_of_squares"]

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@jit(inner=True)
def _add(x: Any, at: int, residual: Any, total: Any, to: int, size: int) -> None:
    for i in range(size):
        put(total, to + i, get(x, at + i) + get(residual, to + i))


@jit(inner=True)
def _scaled(x: Any, at: int, factor: Any, w: Any, offset: Any, out: Any, to: int, size: int) -> None:
    """``x * factor * (offset + w)``, where w may be absent."""
    if w.size:
        for i in range(size):
            put(out, to + i, get(x, at + i) * factor * (get(w, i) + offset))
    else:
        for i in range(size):
            put(out, to + i, get(x, at + i) * factor)


@jit(inner=True)
def root_of_squares(x: Any, at: int, size: int, parts: Any, eps: Any) -> Any:
    """One over the root of the sum of the squares over *parts*, plus eps."""
    total = _ZERO
    for i in range(size):
        number = get(x, at + i)
        total += number * number
    return _ONE / math.sqrt(total / parts + eps)


@jit(inner=True)
def _rms_rows(
    x: Any, step: int, w: Any, parts: Any, eps: Any, offset: Any, out: Any, size: int, first: int, end: int
) -> None:
    for row in range(first, end):
        factor = root_of_squares(x, row * step, size, parts, eps)
        _scaled(x, row * step, factor, w, offset, out, row * size, size)


@jit
def _rms(x: Any, step: int, w: Any, parts: float, eps: float, offset: float, out: Any, size: int, crew: int) -> None:
    numbers = np.float32(parts), np.float32(eps), np.float32(offset)
    if size:
        job = task(_rms_rows, (x, step, w, numbers[0], numbers[1], numbers[2], out, size))
        share(crew, job, out.size // size, rows_each(size))


@records
def rms_norm(x: Tensor, w: Tensor | None, eps: float, offset: float, *_absent: None) -> Tensor:
    """The op without residual and gate."""
    size = x._data.shape[-1]
    line, step = rows(x)
    result, out = empty_like(x)
    launch(_rms, line, step, flat_or_nothing(w, x), size, eps, offset, out, size, crew(2 * out.size))
    return result


@records
def l2_norm(x: Tensor, eps: float) -> Tensor:
    """The op."""
    size = x._data.shape[-1]
    line, step = rows(x)
    result, out = empty_like(x)
    launch(_rms, line, step, flat_or_nothing(None, x), 1, eps, 0.0, out, size, crew(2 * out.size))
    return result


@jit(inner=True)
def _gated(x: Any, at: int, factor: Any, w: Any, offset: Any, gate: Any, out: Any, to: int, size: int) -> None:
    """``x * factor * (offset + w) * gate / (1 + exp(-gate))``, where w may be absent."""
    for i in range(size):
        g = get(gate, to + i)
        open_ = over_one_plus_exp(g, g)
        scale = get(w, i) + offset if w.size else _ONE
        put(out, to + i, get(x, at + i) * factor * scale * open_)


@jit(inner=True)
def _rms_rows_with(
    x: Any,
    step: int,
    w: Any,
    numbers: Any,
    residual: Any,
    total: Any,
    gate: Any,
    out: Any,
    size: int,
    first: int,
    end: int,
) -> None:
    eps, offset = numbers
    parts = np.float32(size)
    for row in range(first, end):
        at, to = row * step, row * size
        if total.size:
            _add(x, at, residual, total, to, size)
            factor = root_of_squares(total, to, size, parts, eps)
            if gate.size:
                _gated(total, to, factor, w, offset, gate, out, to, size)
            else:
                _scaled(total, to, factor, w, offset, out, to, size)
        else:
            factor = root_of_squares(x, at, size, parts, eps)
            if gate.size:
                _gated(x, at, factor, w, offset, gate, out, to, size)
            else:
                _scaled(x, at, factor, w, offset, out, to, size)


@jit
def _rms_with(
    x: Any,
    step: int,
    w: Any,
    eps: float,
    offset: float,
    residual: Any,
    total: Any,
    gate: Any,
    out: Any,
    size: int,
    crew: int,
) -> None:
    if size:
        numbers = np.float32(eps), np.float32(offset)
        job = task(_rms_rows_with, (x, step, w, numbers, residual, total, gate, out, size))
        share(crew, job, out.size // size, rows_each(size))


@records
def rms_norm_with(
    x: Tensor, w: Tensor | None, eps: float, offset: float, residual: Tensor | None, gate: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """The op with any of its operands, of any dtypes that kernels know."""
    size = x._data.shape[-1]
    line, step = rows(x)
    result, out = empty_like(x)
    weights, gates = flat_or_nothing(w, x), flat_or_nothing(gate, x)
    if residual is None:
        nothing = flat_or_nothing(None, x)
        launch(_rms_with, line, step, weights, eps, offset, nothing, nothing, gates, out, size, crew(3 * out.size))
        return result
    summed, total = empty_like(residual)
    launch(_rms_with, line, step, weights, eps, offset, flat(residual), total, gates, out, size, crew(4 * out.size))
    return result, summed


@jit(inner=True)
def _centred(x: Any, at: int, w: Any, b: Any, eps: Any, out: Any, to: int, size: int) -> None:
    """One row, less its mean, over the root of its mean square."""
    parts = np.float32(size)
    total = _ZERO
    for i in range(size):
        total += get(x, at + i)
    mean = total / parts
    total = _ZERO
    for i in range(size):
        number = get(x, at + i) - mean
        total += number * number
    factor = _ONE / math.sqrt(total / parts + eps)
    if w.size and b.size:
        for i in range(size):
            put(out, to + i, (get(x, at + i) - mean) * factor * get(w, i) + get(b, i))
        return
    for i in range(size):
        number = (get(x, at + i) - mean) * factor
        number = number * get(w, i) if w.size else number
        put(out, to + i, number + get(b, i) if b.size else number)


@jit(inner=True)
def _layer_rows(
    x: Any, step: int, w: Any, b: Any, eps: Any, residual: Any, total: Any, out: Any, size: int, first: int, end: int
) -> None:
    for row in range(first, end):
        if total.size:
            _add(x, row * step, residual, total, row * size, size)
            _centred(total, row * size, w, b, eps, out, row * size, size)
        else:
            _centred(x, row * step, w, b, eps, out, row * size, size)


@jit
def _layer(
    x: Any, step: int, w: Any, b: Any, eps: float, residual: Any, total: Any, out: Any, size: int, crew: int
) -> None:
    if size:
        job = task(_layer_rows, (x, step, w, b, np.float32(eps), residual, total, out, size))
        share(crew, job, out.size // size, rows_each(size))


@records
def layer_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, eps: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """The op."""
    size = x._data.shape[-1]
    line, step = rows(x)
    result, out = empty_like(x)
    weights, bias = flat_or_nothing(w, x), flat_or_nothing(b, x)
    if residual is None:
        nothing = flat_or_nothing(None, x)
        launch(_layer, line, step, weights, bias, eps, nothing, nothing, out, size, crew(2 * out.size))
        return result
    summed, total = empty_like(residual)
    launch(_layer, line, step, weights, bias, eps, flat(residual), total, out, size, crew(4 * out.size))
    return result, summed


def no_float64(*arguments: object) -> str | None:
    """Why a kernel cannot take these arguments, if one is a float64."""
    if any(isinstance(one, Tensor) and one.dtype is fa.float64 for one in arguments):
        return "does not take float64 operands"
    return None
