"""Kernels of ``sample`` and ``embedding``: where a decode step ends and where it begins.

A row of logits is read twice: for the greatest, and for the sum of the exponentials below it. That sum is made of
pieces of 1024 in float32, which are added in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator
from ferrum_ops.draws import draw, weights_of_logits
from ferrum_ops.kernels.cpu.arrays import empty, flat, rows
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.intrinsics import INFINITE, exp_below, get, magnitude, put
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.recorded import records
from ferrum_ops.sampling import Sampled

__all__ = ["embedding", "sample", "sample_refuses"]

_LEAST = np.int32(-0x80000000)
_ZERO, _NONE, _NAN = np.float32(0.0), np.float32(-math.inf), np.float32(math.nan)
_PIECE = 1024


@jit(inner=True)
def _order(x: Any) -> Any:
    """An integer that is ordered as the numbers are: both zeros are one, and NaN is above all."""
    bits = magnitude(x)
    return np.int32(-bits) if x < _ZERO else bits


@jit(inner=True)
def _greatest(x: Any, at: int, size: int) -> tuple[int, Any]:
    """The place of the first of the greatest, or of the first NaN, and it."""
    best, piece = _LEAST, 0
    for first in range(0, size, _PIECE):
        most = _LEAST
        for i in range(first, min(first + _PIECE, size)):
            most = max(most, _order(get(x, at + i)))
        if most > best and best <= INFINITE:
            best, piece = most, first
    for i in range(piece, min(piece + _PIECE, size)):
        number = get(x, at + i)
        mine = _order(number)
        if mine == best or (mine > INFINITE and best > INFINITE):
            return i, number
    return 0, _NONE


@jit(inner=True)
def _log_total(x: Any, at: int, size: int, top: Any) -> Any:
    """The logarithm of the sum of exp(x - top); where the greatest is infinite, of how many there are."""
    total = 0.0
    if magnitude(top) == INFINITE:
        for i in range(size):
            total += 1.0 if get(x, at + i) == top else 0.0
        return np.float32(math.log(total))
    for first in range(0, size, _PIECE):
        part = _ZERO
        for i in range(first, min(first + _PIECE, size)):
            part += exp_below(get(x, at + i) - top)
        total += float(part)
    return np.float32(math.log(total))


@jit
def _first_of_greatest(x: Any, size: int, ids: Any) -> None:
    for row in range(len(ids)):
        place, top = _greatest(x, row * size, size)
        ids[row] = place if top > _NONE else -1


@jit
def _told(x: Any, size: int, ids: Any, logprobs: Any, best: Any, values: Any) -> None:
    """Logarithms of probabilities: of the tokens *ids*, and of the likeliest."""
    for row in range(len(ids)):
        at = row * size
        place, top = _greatest(x, at, size)
        best[row], values[row], logprobs[row] = place, _NAN, _NAN
        if top > _NONE:  # as no NaN is
            total = _log_total(x, at, size, top)
            values[row] = -total
            if ids[row] >= 0:
                own = get(x, at + ids[row])
                logprobs[row] = (_ZERO if own == top else own - top) - total


def sample_refuses(_logits: Tensor, _u: Tensor | None, logprobs: int, _model: Tensor | None) -> str | None:
    """Why the kernel does not take a call, or None."""
    return "tells of one likeliest token at most" if logprobs > 1 else None


@records
def sample(logits: Tensor, u: Tensor | None, logprobs: int, model: Tensor | None) -> Tensor | Sampled:
    """The op; draws are those of the reference."""
    lead, size = logits.shape[:-1], logits.shape[-1]
    if u is None:
        ids, chosen = empty(lead, fa.int64, logits)
        launch(_first_of_greatest, flat(logits), size, chosen)
    else:
        x = logits.astype(accumulator(logits.dtype), copy=False)
        top = fa.max(x, axis=-1, keepdims=True)
        ids = fa.where((top > -math.inf)[..., 0], draw(weights_of_logits(x, top), u), -1)
    if not logprobs:
        return ids
    told, told_line = empty(lead, fa.float32, logits)
    best, best_line = empty((*lead, 1), fa.int64, logits)
    values, values_line = empty((*lead, 1), fa.float32, logits)
    launch(_told, flat(logits if model is None else model), size, flat(ids), told_line, best_line, values_line)
    return Sampled(ids, told, best, values)


@jit
def _rows(table: Any, step: int, last: int, ids: Any, size: int, scale: float, scaled: bool, out: Any) -> None:
    factor = np.float32(scale)
    for row in range(len(ids)):
        at, to = min(max(ids[row], 0), last) * step, row * size
        if scaled:
            for i in range(size):
                put(out, to + i, get(table, at + i) * factor)
        else:
            for i in range(size):
                out[to + i] = table[at + i]


@records
def embedding(table: Tensor, ids: Tensor, scale: float | None) -> Tensor:
    """The op."""
    count, size = table.shape
    line, step = rows(table)
    chosen = flat(ids if ids.dtype in (fa.int64, fa.int32) else ids.astype(fa.int64))
    result, out = empty((*ids.shape, size), table.dtype, table)
    factor = 0.0 if scale is None else float(scale)
    launch(_rows, line, step, count - 1, chosen, size, factor, scale is not None, out)
    return result
