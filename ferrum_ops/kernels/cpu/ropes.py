"""Kernels of ``rope`` and ``qk_norm_rope``: one pass over each head."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.cpu.arrays import Array, empty_like, flat, flat_or_nothing, heads
from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.intrinsics import get, put
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.norms import root_of_squares
from ferrum_ops.kernels.cpu.threads import crew, rows_each, share
from ferrum_ops.recorded import records

__all__ = ["qk_norm_rope", "rope"]


@cache
def _kernel(pairs: bool, normed: bool, weighted: bool) -> Any:
    """The kernel that turns neighbours or halves, after a norm or not, with weights or not."""
    variant = (pairs, normed, weighted)

    @jit(variant=variant, inner=True)
    def scaled(x: Any, at: int, i: int, factor: Any, w: Any, offset: Any) -> Any:
        number = get(x, at + i)
        if normed:
            number = number * factor
        if weighted:
            number = number * (get(w, i) + offset)
        return number

    @jit(variant=variant, inner=True)
    def part(x: Any, steps: Any, w: Any, numbers: Any, tables: Any, shape: Any, out: Any, first: int, end: int) -> None:
        token_step, head_step = steps
        eps, offset = numbers
        cos, sin, period = tables
        count, size, half = shape
        factor = np.float32(1.0)
        for token in range(first, end):
            turn = token % period * half
            for head in range(count):
                at = token * token_step + head * head_step
                to = (token * count + head) * size
                if normed:
                    factor = root_of_squares(x, at, size, np.float32(size), eps)
                for i in range(half):
                    c, s = get(cos, turn + i), get(sin, turn + i)
                    j, k = (2 * i, 2 * i + 1) if pairs else (i, i + half)
                    a, b = scaled(x, at, j, factor, w, offset), scaled(x, at, k, factor, w, offset)
                    put(out, to + j, a * c - b * s)
                    put(out, to + k, a * s + b * c)
                for i in range(2 * half, size):
                    put(out, to + i, scaled(x, at, i, factor, w, offset))

    @jit(variant=variant)
    def whole(
        x: Any,
        token_step: int,
        head_step: int,
        w: Any,
        eps: float,
        offset: float,
        cos: Any,
        sin: Any,
        count: int,
        size: int,
        half: int,
        out: Any,
        crew: int,
    ) -> None:
        tokens = out.size // max(1, count * size)
        if tokens:
            numbers, shape = (np.float32(eps), np.float32(offset)), (count, size, half)
            tables = cos, sin, cos.size // half
            job = task(part, (x, (token_step, head_step), w, numbers, tables, shape, out))
            share(crew, job, tokens, rows_each(count * size))

    return whole


def _table(table: Tensor, x: Tensor) -> Array:
    """Rows of the table for the tokens of *x*, which go round where the table has fewer."""
    tokens, shape = x._data.shape[:-2], table._data.shape[:-1]
    while shape and shape[0] == 1:
        shape = shape[1:]
    if shape != tokens[len(tokens) - len(shape) :]:
        table = fa.broadcast_to(table, (*tokens, table.shape[-1]))
    return flat(table)


def _turned(
    x: Tensor, w: Tensor | None, cos: Array, sin: Array, half: int, pairs: bool, norm: tuple[float, float] | None
) -> Tensor:
    line, token_step, head_step = heads(x)
    count, size = x._data.shape[-2:]
    result, out = empty_like(x)
    eps, offset = norm or (0.0, 0.0)
    kernel = _kernel(pairs, norm is not None, w is not None)
    weights = flat_or_nothing(w, x)
    work = crew(3 * out.size)
    launch(kernel, line, token_step, head_step, weights, eps, offset, cos, sin, count, size, half, out, work)
    return result


@records
def rope(x: Tensor, cos: Tensor, sin: Tensor, rotary_dim: int, interleaved: bool) -> Tensor:
    """The op."""
    return _turned(x, None, _table(cos, x), _table(sin, x), rotary_dim // 2, interleaved, None)


@records
def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    wq: Tensor | None,
    wk: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    offset: float,
    rotary_dim: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """The op; nothing is rounded between norm and turn."""
    c, s, norm = _table(cos, q), _table(sin, q), (float(eps), float(offset))
    queries = _turned(q, wq, c, s, rotary_dim // 2, interleaved, norm)
    return queries, _turned(k, wk, c, s, rotary_dim // 2, interleaved, norm)
