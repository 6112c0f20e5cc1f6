"""Kernels of ``grouped_linear``, ``moe_combine`` and ``moe_ffn``, for processors with AVX-512.

The experts' products are those of ``linear``, one after another, each with all threads. Rows of tokens are gathered
where inputs are brought into the form of a product, so that no expert's rows are copied twice. An expert that nobody
chose costs nothing: its weights are not read.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from ferrum_array import Tensor
from ferrum_ops.kernels.cpu.activations import gated_activation
from ferrum_ops.kernels.cpu.arrays import Array, address, empty, flat, flat_or_nothing, rows
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.gemm import EVERY, no_a8, prepared, refuses, weights_of, written_as
from ferrum_ops.kernels.cpu.intrinsics import get, put
from ferrum_ops.kernels.cpu.jit import EXACT, jit
from ferrum_ops.kernels.cpu.threads import crew, rows_each, share
from ferrum_ops.moe import offsets_in_order
from ferrum_ops.moe_planning import RoutePlan, ids_in_range
from ferrum_ops.quant.tensor import QuantTensor

__all__ = [
    "grouped_linear", "grouped_linear_a8_refuses", "grouped_linear_refuses", "moe_combine", "moe_ffn",
    "moe_ffn_a8_refuses", "moe_ffn_refuses",
]  # fmt: skip

_ZERO = np.float32(0.0)


@jit(fastmath=EXACT, inner=True)
def _combine_part(
    y: Any, places: Any, weights: Any, residual: Any, k: int, size: int, out: Any, sums: int, first: int, end: int
) -> None:
    for token in range(first, end):
        at = token * size
        for start in range(0, size, sums):  # so that the sums stay in registers or the first cache
            for i in range(start, min(start + sums, size)):
                total = get(residual, at + i) if residual.size else _ZERO
                for j in range(token * k, token * k + k):
                    total += get(y, places[j] * size + i) * weights[j]
                put(out, at + i, total)


@jit(fastmath=EXACT)
def _combine(y: Any, places: Any, weights: Any, residual: Any, k: int, size: int, out: Any, crew: int) -> None:
    if out.size:
        job = task(_combine_part, (y, places, weights, residual, k, size, out, 64))
        share(crew, job, out.size // size, rows_each(size * k))


def moe_combine(y: Tensor, plan: RoutePlan, w: Tensor, residual: Tensor | None) -> Tensor:
    """The op; *residual* has the dtype of *y*."""
    places = plan.inverse._data
    return _combined(y, _line(places), places.shape, w, residual)


def _combined(y: Tensor, places: Array, shape: tuple[int, ...], w: Tensor, residual: Tensor | None) -> Tensor:
    size, k = y.shape[1], shape[-1]
    result, out = empty((*shape[:-1], size), y.dtype, y)
    added = flat_or_nothing(residual, y)
    _combine(flat(y), places, flat(w), added, k, size, out, crew(out.size * (k + 1)))
    return result


def _line(places: Array) -> Array:
    """A copy in one axis, which a kernel may take whatever it was copied from."""
    return np.array(places, np.int64).ravel()


def _experts(
    x: Tensor, index: Array, w: Tensor | QuantTensor, bounds: list[int], bias: Tensor | None, target: Array
) -> None:
    """Products of each expert's rows, gathered by *index* if it is not empty, into those rows of *target*."""
    columns, count = w.shape[-2:]
    line, step = rows(x)
    weights = weights_of(x.dtype, w)
    run, numbers, strides = weights.recipe.run, weights.numbers, weights.strides
    biases = None if bias is None else np.ascontiguousarray(bias.astype("f32", copy=False)._data)
    begin, stride = address(target), columns * target.itemsize
    first_bias = 0 if biases is None else address(biases)
    value, value_step, scale, scale_step, zero, zero_step, group = numbers
    for e, (start, stop) in enumerate(pairwise(bounds)):
        given = stop - start
        if not given:
            continue
        if index.size:
            inputs = prepared(line, step, index[start:stop], given, count, x.dtype, weights)
        else:
            inputs = prepared(line[start * step :], step, EVERY, given, count, x.dtype, weights)
        mine = (
            value + e * strides[0], value_step, scale + e * strides[1], scale_step,
            zero + e * strides[2], zero_step, group,
        )  # fmt: skip
        output = (begin + start * stride, stride, written_as(x.dtype), first_bias and first_bias + 4 * e * columns)
        run(inputs.numbers, mine, output, (given, count, columns), crew(given * count * columns))


def grouped_linear_refuses(x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None) -> str | None:
    """Why the kernel does not take a call, or None."""
    return refuses(w)


def grouped_linear_a8_refuses(x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None) -> str | None:
    """The same, where a processor may multiply integers of 8 bits and not bfloat16."""
    return no_a8(w) or refuses(w)


def grouped_linear(x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """The op."""
    bounds = offsets_in_order(x, offsets)
    columns = w.shape[1]
    result, target = empty((x.shape[0], columns), x.dtype, x)
    target[bounds[-1] * columns :] = 0
    _experts(x, EVERY, w, bounds, bias, target)
    return result


def moe_ffn_refuses(x: Tensor, w13: Tensor | QuantTensor, w2: Tensor | QuantTensor, *rest: object) -> str | None:
    """Why the kernel does not take a call, or None."""
    return refuses(w13) or refuses(w2)


def moe_ffn_a8_refuses(x: Tensor, w13: Tensor | QuantTensor, w2: Tensor | QuantTensor, *rest: object) -> str | None:
    """The same, where a processor may multiply integers of 8 bits and not bfloat16."""
    return no_a8(w13, w2) or moe_ffn_refuses(x, w13, w2)


def moe_ffn(
    x: Tensor, w13: Tensor | QuantTensor, w2: Tensor | QuantTensor, ids: Tensor, w: Tensor, kind: str,
    b13: Tensor | None, b2: Tensor | None, limit: float | None, alpha: float, up_offset: float,
) -> Tensor:  # fmt: skip
    """The op; rounded where the reference rounds."""
    experts, k = w13.shape[0], ids.shape[-1]
    ids_in_range("moe_ffn", ids, experts)
    chosen = _line(ids._data)
    order = np.argsort(chosen, kind="stable")
    bounds = [0, *np.bincount(chosen, minlength=experts).cumsum().tolist()]
    places = np.empty_like(order)
    places[order] = np.arange(order.size)
    tokens = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    h, line = empty((order.size, w13.shape[1]), x.dtype, x)
    if order.size:
        _experts(tokens, order // k, w13, bounds, b13, line)
    inner = w2.shape[2]
    h = gated_activation(h[:, :inner], h[:, inner:], kind, limit, alpha, up_offset)
    y, line = empty((order.size, w2.shape[1]), x.dtype, x)
    _experts(h, EVERY, w2, bounds, b2, line)
    return _combined(y, places, ids.shape, w, None)
