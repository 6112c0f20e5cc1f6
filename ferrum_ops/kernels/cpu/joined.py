"""Kernels of ``linears`` and ``gated_linear``: inputs are prepared once, and few rows meet all weights in one job.

With few rows the bits are those of ``linear``, but for gates, which are not rounded before the activation. More rows
are products one after another, of inputs that are prepared once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.cpu.activations import gate_kernel, gated_activation
from ferrum_ops.kernels.cpu.arrays import Array, address, empty, flat, new, rows
from ferrum_ops.kernels.cpu.gemm import EVERY, Recipe, Weights, no_a8, prepared, refuses, weights_of, written_as
from ferrum_ops.kernels.cpu.graph import hold, launch
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.products import F32, FEW, Numbers
from ferrum_ops.kernels.cpu.threads import crew
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.recorded import ACTIVE, records

__all__ = [
    "gated_linear", "gated_linear_a8_refuses", "gated_linear_refuses", "linears", "linears_a8_refuses",
    "linears_refuses",
]  # fmt: skip

Weight = Tensor | QuantTensor


def linears_refuses(_x: Tensor, ws: Sequence[Weight], _biases: object, out: Dtype) -> str | None:
    """Why the kernel does not take a call, or None."""
    if out not in (fa.float32, fa.float16, fa.bfloat16):
        return f"does not give {out}"
    return _refuses(*ws)


def linears_a8_refuses(x: Tensor, ws: Sequence[Weight], biases: object, out: Dtype) -> str | None:
    """The same, where a processor may multiply integers of 8 bits and not bfloat16."""
    return no_a8(*ws) or linears_refuses(x, ws, biases, out)


def gated_linear_refuses(_x: Tensor, gate: Weight, up: Weight, *_rest: object) -> str | None:
    """Why the kernel does not take a call, or None."""
    return _refuses(gate, up)


def gated_linear_a8_refuses(_x: Tensor, gate: Weight, up: Weight, *_rest: object) -> str | None:
    """The same, where a processor may multiply integers of 8 bits and not bfloat16."""
    return no_a8(gate, up) or _refuses(gate, up)


def _refuses(*ws: Weight) -> str | None:
    for w in ws:
        if reason := refuses(w):
            return reason
    return None


def _alike(weights: Sequence[Weights]) -> bool:
    """Whether inputs that are prepared for the first weights serve all."""
    first = weights[0]
    return all(w.recipe is first.recipe and w.group == first.group for w in weights[1:])


def _line(bias: Tensor | None) -> Array | None:
    return None if bias is None else flat(bias.astype("f32", copy=False))


@records
def linears(x: Tensor, ws: Sequence[Weight], biases: Sequence[Tensor | None], out: Dtype) -> tuple[Tensor, ...]:
    """The op."""
    lead = x.shape[:-1]
    found = [empty((*lead, w.shape[0]), out, x) for w in ws]
    _products(x, ws, biases, [target for _, target in found], out)
    return tuple(result for result, _ in found)


def _products(
    x: Tensor, ws: Sequence[Weight], biases: Sequence[Tensor | None], targets: Sequence[Array], out: Dtype
) -> None:
    count, given = x.shape[-1], math.prod(x.shape[:-1])
    line, step = rows(x)
    weights = [weights_of(x.dtype, w) for w in ws]
    lines = [_line(bias) for bias in biases]
    columns = tuple([w.shape[0] for w in ws])
    kind = written_as(out)
    outputs = tuple(
        [
            (address(target), n * target.itemsize, kind, 0 if bias is None else address(bias))
            for target, n, bias in zip(targets, columns, lines, strict=True)
        ]
    )
    alike = _alike(weights)
    inputs = prepared(line, step, EVERY, given, count, x.dtype, weights[0])
    if ACTIVE:
        hold(*ws, *lines, inputs.memory, *(w.memory for w in weights))
    if alike and given <= FEW:
        helpers = crew(sum(columns) * count * given)
        numbers = tuple([w.numbers for w in weights])
        launch(weights[0].recipe.together, inputs.numbers, numbers, outputs, given, count, columns, helpers)
        return
    for i, w in enumerate(weights):
        if i and not alike:
            inputs = prepared(line, step, EVERY, given, count, x.dtype, w)
            if ACTIVE:
                hold(inputs.memory)
        helpers = crew(columns[i] * count * given)
        launch(w.recipe.run, inputs.numbers, w.numbers, outputs[i], (given, count, columns[i]), helpers)


@records
def gated_linear(
    x: Tensor, gate: Weight, up: Weight, kind: str, gate_bias: Tensor | None, up_bias: Tensor | None,
    limit: float | None, alpha: float, up_offset: float,
) -> Tensor:  # fmt: skip
    """The op."""
    shape = (*x.shape[:-1], gate.shape[0])
    given, count, columns = math.prod(x.shape[:-1]), x.shape[-1], gate.shape[0]
    weights = weights_of(x.dtype, gate), weights_of(x.dtype, up)
    if given > FEW or not _alike(weights):
        (opened, first), (passed, second) = new(shape, x), new(shape, x)
        _products(x, (gate, up), (gate_bias, up_bias), (first, second), x.dtype)
        return gated_activation(opened, passed, kind, limit, alpha, up_offset)
    line, step = rows(x)
    result, out = new(shape, x)
    inputs = prepared(line, step, EVERY, given, count, x.dtype, weights[0])
    lines = _line(gate_bias), _line(up_bias)
    biases = tuple([0 if bias is None else address(bias) for bias in lines])
    special = limit is not None or alpha != 1.0 or up_offset != 0.0
    numbers = math.inf if limit is None else float(limit), float(alpha), float(up_offset)
    run = _gated(weights[0].recipe, kind, special)
    helpers = crew(2 * columns * count * given)
    if ACTIVE:
        hold(gate, up, *lines, inputs.memory, weights[0].memory, weights[1].memory)
    both = weights[0].numbers, weights[1].numbers
    launch(run, inputs.numbers, both, biases, (given, count, columns), numbers, out, helpers)
    return result


@cache
def _gated(recipe: Recipe, kind: str, special: bool) -> Any:
    """A function that makes both products as float32, and a gate of them."""
    products, gate = recipe.together, gate_kernel(kind, special)

    @jit(variant=(recipe.variant, kind, special))
    def run(inputs: Numbers, weights: Any, biases: Any, sizes: Numbers, numbers: Any, out: Any, crew: int) -> None:
        rows, count, columns = sizes
        both = np.empty((2, rows * columns), np.float32)
        at, step = np.int64(both.ctypes.data), 4 * columns
        outputs = (at, step, F32, biases[0]), (at + rows * step, step, F32, biases[1])
        products(inputs, weights, outputs, rows, count, (columns, columns), crew)
        limit, alpha, up_offset = numbers
        gate(both[0], columns, both[1], columns, limit, alpha, up_offset, out, columns, 0)

    return run
