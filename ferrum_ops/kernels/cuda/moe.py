"""Rows of ``grouped_linear`` and ``moe_ffn``: which kernel multiplies, and how it cuts the work.

Many rows are sorted by expert first. Few are not: every program looks up which choices its expert has, so that no
launch comes before the product. Nothing is read back. A choice of no expert makes its token NaN; with
``FERRUM_CUDA_DEBUG=1`` it is an error, as on other devices.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.gemm import address, form_of
from ferrum_ops.kernels.cuda.launch import chains, empty
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
    down,
    few,
    fours,
    many,
    some,
    stack_of,
    widened_stack,
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
_DEEP: Final = 2048  # numbers of K from which on programs have more rows of weights
#: rows of an expert, on average, for which it is worth to widen quantised weights in memory first
_WORTH: Final = {"int4": 256, "int8": 128, "mxfp4": 256}
_ROOM: Final = 2**30  # numbers at most that are widened at once
_TIMED: Final = (fa.bfloat16,)  # dtypes of rows for which ways beside the general ones were found


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
        return few(product, where, _pass(product, where))
    if given > _LONG * w.experts and bulk_refuses(product) is None:
        return bulk(product, where, Bulk(64, 256, 64, 4, 232 if where.order is None else 208))
    return many(product, where, _cut(given, w.experts, w.form, product.gate is not None))


# Of weights without zero points, by form, words that a thread reads together, and whether each thread has scales of its
# own, for rows in bfloat16: ways that were faster than the general ones.

#: first products of up to 8 choices, of up to 16, and of up to 32
_FIRST: Final = {
    ("int4", 4, False): (Pass(1, 2, 4, 1, True), Pass(2, 2, 2, 1, True), Pass(2, 2, 2, 1, True)),
    ("int4", 4, True): (Pass(1, 2, 2, 1, True), Pass(1, 2, 2, 1, True), Pass(2, 4, 1, 1, True)),
    ("int4", 1, False): (Pass(2, 4, 2), Pass(2, 4, 1, 1, True), Pass(2, 4, 1, 1, True)),
    ("mxfp4", 4, True): (Pass(1, 2, 2, 1, True), Pass(2, 2, 1, 1, True), Pass(1, 2, 4)),
    ("int8", 4, False): (Pass(2, 4, 1, 1, True), Pass(2, 4, 1, 1, True), Pass(2, 4, 1, 1, True)),
}
_MANY_EACH: Final = Pass(2, 1, 1, 1, True, 128)
#: products of sorted rows where K is long, and where it is not: of up to 4 of an expert on average, and of more
_SORTED: Final = {
    ("int4", 4, False): ((Pass(2, 2, 2, 1, False, 128), _MANY_EACH), (Pass(2, 1, 2, 1, False, 128), _MANY_EACH)),
    ("int4", 4, True): ((Pass(2, 1, 1, 1, True), _MANY_EACH), (Pass(2, 1, 1, 1, True), _MANY_EACH)),
    ("int4", 1, False): ((Pass(2, 4, 1, 1, True), _MANY_EACH), (Pass(2, 2, 2, 1, True), _MANY_EACH)),
    ("mxfp4", 4, True): ((Pass(2, 2, 1, 1, False, 96), _MANY_EACH), (Pass(2, 1, 2), _MANY_EACH)),
    ("int8", 4, False): ((Pass(2, 2, 2, 1, False, 128), Pass(2, 2, 1, 1, True, 128)), (Pass(1, 2, 1), _MANY_EACH)),
}
#: second products and sums of as many choices; 8 of a token, which have a warp each
_DOWN: Final = {
    ("int4", 4, False): (Pass(1, 8, 2), Pass(1, 8, 2), Pass(2, 8, 1)),
    ("int4", 4, True): (Pass(1, 8, 2, 1, True), Pass(1, 8, 2, 1, True), Pass(1, 8, 2, 1, True)),
    ("int4", 1, False): (Pass(1, 8, 8, 1, True), Pass(1, 8, 4, 1, True), Pass(1, 8, 4, 1, True)),
    ("mxfp4", 4, True): (Pass(1, 8, 2, 1, True), Pass(1, 8, 2), Pass(2, 8, 1)),
    ("int8", 4, False): (Pass(1, 8, 4, 1, True), Pass(1, 8, 2, 1, True), Pass(1, 8, 1)),
}


def _place(choices: int) -> int:
    """Where in the tables of few choices a number of them is."""
    return (choices > 8) + (choices > 16)


def _kind(product: Product) -> tuple[str, int, bool] | None:
    """The key of the tables, or None for what they do not have."""
    w = fours(product).w
    if product.x.dtype not in _TIMED or w.zeros is not None or not w.per or w.form == "dense":
        return None
    return w.form, w.unit // (16 if w.form == "int8" else 32), w.per < 0


def _pass(product: Product, where: Sorted | Listed) -> Pass:
    """How quantised weights are read once, by programs that look up their rows or are told them."""
    w = fours(product).w
    words = w.unit // (16 if w.form == "int8" else 32)
    more = 4 // words  # units of which a thread reads 16 bytes
    kind = _kind(product)
    if isinstance(where, Listed):
        if w.size < _DEEP:
            return Pass(1, 2, more)
        found = _FIRST.get(kind) if kind else None
        return found[_place(where.ids._data.size)] if found else Pass(2, 4, 2 * more)
    known = _SORTED.get(kind) if kind else None
    if known:
        return known[w.size < _DEEP][where.given > 4 * w.experts]
    if w.size < _DEEP:
        return Pass(1, 2, more)
    return Pass(2, 2, 2) if w.form == "mxfp4" else Pass(4, 2, more)


def _together(product: Product, k: int, choices: int) -> Pass | None:
    """How the second product of few tokens is cut that gives weighted sums; None: combining them after it is better."""
    kind = _kind(product)
    cuts = _DOWN.get(kind) if kind and k == 8 and product.w.size < _DEEP else None
    return cuts[_place(choices)] if cuts else None


def _of_listed(product: Product, where: Listed) -> Tensor:
    if product.w.form == "dense":
        return some(product, where, Cut(16, 0, 64, 64, 4, 6, False))
    return few(product, where, _pass(product, where))


def _listed(choices: int, experts: int, plain: bool) -> bool:
    """Whether programs look up their rows: sorting takes two launches, but looking them up grows with the choices."""
    return choices <= min(32, FEW) or (plain and choices <= min(FEW, experts))


def _stack(w: Tensor | QuantTensor, x: Tensor, given: int) -> Stack:
    """Weights for so many rows: very many meet widened ones, where these are not very large."""
    found = stack_of(w)
    if isinstance(w, Tensor) or x.dtype not in _TIMED or math.prod(w.shape) > _ROOM:
        return found
    return widened_stack(w, x) if given >= _WORTH[found.form] * found.experts else found


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
    return _of_sorted(
        Product(x, _stack(w, x, given), bias, w.shape[1], None), Sorted(None, offsets, given, 1, tail=True)
    )


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
    given = choices if kind == "silu" else 0  # others do not have the kernel that makes widening worth it
    first = Product(x, _stack(w13, x, given), b13, inner, gate)
    second = _stack(w2, x, given)
    if _listed(choices, experts, first.w.form == second.form == "dense"):
        chain = chains(x)
        product = Product(_of_listed(first, Listed(ids, k)), second, b2, columns, None)
        cut = _together(product, k, choices)
        if cut is not None:
            return down(product, ids, w, cut, chain)
        chain = chain and second.form == "dense"
        y = _of_listed(product, Listed(ids, 1, chain))
        return combined(y, None, w, ids=ids, experts=experts, chained=chain)
    plan = plan_of(ids, experts)
    h = _of_sorted(first, Sorted(plan.order, plan.offsets, choices, k))
    y = _of_sorted(Product(h, second, b2, columns, None), Sorted(None, plan.offsets, choices, 1))
    return combined(y, plan.inverse, w, ids=ids, experts=experts)
