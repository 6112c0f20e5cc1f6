"""Rows of ``grouped_linear`` and ``moe_ffn``: which kernel multiplies, and how it cuts the work.

Many rows are sorted by expert first. Few are not: every program looks up which choices its expert has, so that no
launch comes before the product. Nothing is read back. A choice of no expert makes its token NaN; with
``FERRUM_CUDA_DEBUG=1`` it is an error, as on other devices.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.gemm import address, form_of
from ferrum_ops.kernels.cuda.launch import empty
from ferrum_ops.kernels.cuda.layouts import in_order
from ferrum_ops.kernels.cuda.moe_products import (
    FEW,
    Bulk,
    Cut,
    Gate,
    Listed,
    Pass,
    Product,
    Sorted,
    Stack,
    bulk,
    bulk_refuses,
    few,
    many,
    some,
    stack_of,
)
from ferrum_ops.kernels.cuda.plans import CHECK
from ferrum_ops.kernels.cuda.routing import combined, plan_of, plan_refuses
from ferrum_ops.moe import offsets_in_order
from ferrum_ops.moe_planning import ids_in_range
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.mxfp4 import Mxfp4Scheme
from ferrum_ops.quant.tensor import QuantTensor

__all__ = ["grouped_linear", "grouped_linear_refuses", "moe_ffn", "moe_ffn_refuses"]

_EXPERTS: Final = 1024  # so many have no kernel
_ONE_PASS: Final = 16  # rows of an expert, on average, for which quantised weights go straight to registers
_LONG: Final = 48  # and from how many on warps copy for others


def _refuses(w: Tensor | QuantTensor) -> str | None:
    if w.shape[0] >= _EXPERTS:
        return f"takes less than {_EXPERTS} experts, not {w.shape[0]}"
    if not math.prod(w.shape):
        return "takes weights of some numbers"
    if isinstance(w, Tensor):
        return None if _by_rows(w) else "the rows of weights have gaps"
    scheme = w.scheme
    if w.layout != "plain" or not isinstance(scheme, IntScheme | Mxfp4Scheme):
        return f"reads integers with scales and mxfp4, not {scheme.name}, {w.layout}"
    form = form_of(scheme, w.shape[2])
    if isinstance(form, str):
        return form
    if not all(_by_rows(part) for part in w.parts.values()):
        return "the rows of weights have gaps"
    values = w.parts["values"]
    if any(step % 4 for step in (*values._data.strides[:2], address(values))):
        return "the rows of weights are not at multiples of 4 bytes"
    return None


def _by_rows(x: Tensor) -> bool:
    """Whether the numbers of each row lie side by side, and rows begin where a number does."""
    data = x._data
    item = data.itemsize
    strides = data.strides
    return bool((strides[2] == item or data.shape[2] == 1) and not strides[0] % item and not strides[1] % item)


# How products are cut was found by trying, on an H200 with 128 experts of 2048 x 768.


@cache
def _cut(given: int, experts: int, form: str, gate: bool) -> Cut:
    """How so many sorted rows are multiplied."""
    each = given / experts
    if each <= 24:
        return Cut(32, 16, 128, 64, 4, 5, True, 2) if form == "dense" else Cut(32, 16, 64, 64, 4, 4, True, 2)
    if form == "dense":
        if each <= 48:
            return Cut(64, 32, 128, 64, 4, 4, True, 2)
        return Cut(128, 64, 64 if gate else 128, 64, 4, 3, True, 2)
    return Cut(128, 64, 64, 64, 4, 3, False, 2) if each <= 96 else Cut(256, 128, 64, 64, 8, 3, False)


def _of_sorted(product: Product, where: Sorted) -> Tensor:
    w, given = product.w, where.given
    if w.form != "dense" and given <= _ONE_PASS * w.experts:
        return few(product, where, _pass(w, False))
    if given > _LONG * w.experts and bulk_refuses(product) is None:
        return bulk(product, where, Bulk(64, 256, 64, 4, 232 if where.order is None else 208))
    return many(product, where, _cut(given, w.experts, w.form, product.gate is not None))


@cache
def _pass_of(form: str, unit: int, size: int, listed: bool) -> Pass:
    words = 4 if form == "mxfp4" else unit // (16 if form == "int8" else 32)
    more = 4 // words  # units of which a thread reads 16 bytes
    if size < 2048:
        return Pass(1, 2, more)
    if listed:
        return Pass(2, 4, 2 * more)
    return Pass(2, 2, 2) if form == "mxfp4" else Pass(4, 2, more)


def _pass(w: Stack, listed: bool) -> Pass:
    """How quantised weights are read once, by programs that look up their rows or are told them."""
    return _pass_of(w.form, w.unit, w.size, listed)


def _of_listed(product: Product, where: Listed) -> Tensor:
    if product.w.form == "dense":
        return some(product, where, Cut(16, 0, 64, 64, 4, 6, False))
    return few(product, where, _pass(product.w, True))


def grouped_linear_refuses(x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None) -> str | None:
    """Why the kernels do not take a call, or None."""
    return _refuses(w)


def grouped_linear(x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """The op; offsets are checked with ``FERRUM_CUDA_DEBUG=1`` alone, and lead nowhere outside *x* in any case."""
    if CHECK:
        offsets_in_order(x, offsets)
    given: int = x._data.shape[0]
    if not given:
        return empty((0, w.shape[1]), x)
    return _of_sorted(Product(x, stack_of(w), bias, w.shape[1], None), Sorted(None, offsets, given, 1))


def moe_ffn_refuses(
    x: Tensor, w13: Tensor | QuantTensor, w2: Tensor | QuantTensor, ids: Tensor, *_: object
) -> str | None:
    """Why the kernels do not take a call, or None."""
    return _refuses(w13) or _refuses(w2) or plan_refuses(ids, w13.shape[0], 1)


def moe_ffn(
    x: Tensor, w13: Tensor | QuantTensor, w2: Tensor | QuantTensor, ids: Tensor, w: Tensor, kind: str,
    b13: Tensor | None, b2: Tensor | None, limit: float | None, alpha: float, up_offset: float,
) -> Tensor:  # fmt: skip
    """The op; what the gate gives is rounded, and so is what the experts give, where it is stored."""
    experts, columns, inner = w2.shape
    if CHECK:
        ids_in_range("moe_ffn", ids, experts)
    ids, w = in_order(ids), in_order(w)
    *lead, k = ids._data.shape
    choices: int = ids._data.size
    if not choices:
        return empty((*lead, columns), x)
    gate = Gate(
        kind,
        None if limit is None else float(limit),
        None if alpha == 1.0 else float(alpha),
        float(up_offset) if up_offset else None,
    )
    first = Product(x, stack_of(w13), b13, inner, gate)
    second = stack_of(w2)
    if choices <= FEW:
        h = _of_listed(first, Listed(ids, k))
        y = _of_listed(Product(h, second, b2, columns, None), Listed(ids, 1))
        return combined(y, None, w, ids=ids, experts=experts)
    plan = plan_of(ids, experts)
    h = _of_sorted(first, Sorted(plan.order, plan.offsets, choices, k))
    y = _of_sorted(Product(h, second, b2, columns, None), Sorted(None, plan.offsets, choices, 1))
    return combined(y, plan.inverse, w, ids=ids, experts=experts)
