"""Rows of ``grouped_linear`` and ``moe_ffn``: the products of experts, with offsets and ids in the device's memory.

Many rows are sorted by expert first. Few are not: every program looks up which choices its expert has, so that no
launch comes before the product, and the time is that of reading the weights. Nothing is read back. A choice of no
expert makes its token NaN; with ``FERRUM_CUDA_DEBUG=1`` it is an error, as on other devices.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final, NamedTuple

from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.gemm import address, form_of
from ferrum_ops.kernels.cuda.launch import Kernel, empty, power_of_two, processors
from ferrum_ops.kernels.cuda.layouts import in_order, rows
from ferrum_ops.kernels.cuda.plans import CHECK
from ferrum_ops.kernels.cuda.routing import combined, plan_of
from ferrum_ops.kernels.cuda.source import moe as source
from ferrum_ops.moe import ids_in_range, offsets_in_order
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.mxfp4 import Mxfp4Scheme
from ferrum_ops.quant.tensor import QuantTensor

__all__ = ["FEW", "Cut", "Pass", "grouped_linear", "grouped_linear_refuses", "moe_ffn", "moe_ffn_refuses"]

#: up to so many choices are not sorted
FEW: Final = 512
_SUMMED: Final = 2  # tokens whose experts' results are not stored
_EXPERTS: Final = 1024  # more have no kernel

_STEPS = ("columns", "size", "x_step", "w_expert", "w_step", "s_expert", "s_step", "z_expert", "z_step")
_MANY: Final = Kernel(source.many, aligned=_STEPS)
_FEW: Final = Kernel(source.few, aligned=_STEPS)
_SUM: Final = Kernel(source.few_summed, aligned=_STEPS)


class Cut(NamedTuple):
    """How the kernel for many rows cuts a product.

    Attributes:
        rows: of a tile.
        narrow: of a tile where these are enough; 0: there are none.
        columns: of a tile.
        depth: numbers of K at a time.
        warps: of a program.
        stages: loads that are under way.
        bulk: whether descriptors copy tiles, where addresses allow it.
        programs: on each multiprocessor.
    """

    rows: int
    narrow: int
    columns: int
    depth: int
    warps: int
    stages: int
    bulk: bool
    programs: int


class Pass(NamedTuple):
    """How the kernels for few rows cut a product: tiles of 16 rows of weights, warps, and pieces that each warp has."""

    tiles: int
    warps: int
    chunks: int


class _Weights(NamedTuple):
    """Weights [E, N, K] as kernels take them; *depth* counts the numbers of K, or the units that they form."""

    values: Tensor
    scales: Tensor | None
    zeros: Tensor | None
    steps: tuple[int, int, int, int, int, int]
    form: str
    unit: int
    per: int


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
    return (strides[2] == item or data.shape[2] == 1) and not strides[0] % item and not strides[1] % item


def _weights(w: Tensor | QuantTensor) -> _Weights:
    if isinstance(w, Tensor):
        item = w._data.itemsize
        return _Weights(
            w, None, None, (w._data.strides[0] // item, w._data.strides[1] // item, 0, 0, 0, 0), "dense", 1, 0
        )
    scheme = w.scheme
    assert isinstance(scheme, IntScheme | Mxfp4Scheme)
    form = form_of(scheme, w.shape[2])
    assert not isinstance(form, str), form
    values, scales, zeros = w.parts["values"], w.parts["scales"], w.parts.get("zeros")
    steps = [step // 4 for step in values._data.strides[:2]]
    for part in (scales, zeros):
        steps += [0, 0] if part is None else [step // part._data.itemsize for step in part._data.strides[:2]]
    return _Weights(values, scales, zeros, tuple(steps), form.name, form.unit, form.per)


# Many rows.


@cache
def many_cut(given: int, experts: int, columns: int, size: int, form: str, gate: bool) -> Cut:
    """How so many rows are multiplied with weights [experts, columns, size]; with a gate, two such halves."""
    each = given / experts
    if each <= 16:
        return Cut(16, 0, 64, 128, 4, 4, False, 3)
    if each <= 48:
        return Cut(64, 16, 64, 64, 4, 4, False, 2)
    if form == "dense":
        return Cut(128, 64, 64, 64, 4, 3, True, 2) if gate else Cut(128, 64, 128, 64, 4, 3, True, 2)
    return Cut(128, 64, 64, 64, 4, 3, False, 2)


def _many(
    x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, order: Tensor | None, offsets: Tensor, given: int, k: int,
    columns: int, act: tuple[str, float | None, float | None, float | None] | None, cut: Cut | None,
) -> Tensor:  # fmt: skip
    """Products [given, columns] of rows of *x*, or of those that belong to the choices *order*, sorted by expert."""
    out = empty((given, columns), x)
    if not out._data.size:
        return out
    experts, _, size = w.shape
    x, x_step = rows(x)
    weights = _weights(w)
    if cut is None:
        cut = many_cut(given, experts, columns, size, weights.form, act is not None)
    bm, narrow, bn, bk, warps, stages, bulk, programs = cut
    item = x._data.itemsize
    if bulk:
        bulk = not (
            (x_step * item) % 16 or address(x) % 16 or (weights.steps[1] * item) % 16 or address(weights.values) % 16
            or (weights.form == "dense" and weights.steps[0] != weights.steps[1] * w.shape[1])
        )  # fmt: skip
    blocks = -(-columns // bn)
    tiles = (given // bm + min(experts + 1, given)) * blocks
    kind, limit, alpha, up_offset = act or (None, None, None, None)
    _MANY(
        (min(tiles, processors(x.device) * programs),), x, weights.values, weights.scales, weights.zeros,
        None if bias is None else in_order(bias), order, in_order(offsets), out, given, x._data.shape[0], columns, size,
        x_step, *weights.steps, k, experts, limit, alpha, up_offset, 1, warps=warps, stages=stages, FORM=weights.form,
        GROUP=weights.unit * weights.per, ACT=kind, EXPERTS=power_of_two(experts + 1), BM=bm, NARROW=narrow, BN=bn,
        BK=bk, BULK=bulk, EVEN=size % bk == 0,
    )  # fmt: skip
    return out


def grouped_linear_refuses(x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None) -> str | None:
    """Why the kernel does not take a call, or None."""
    return _refuses(w)


def grouped_linear(
    x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None, cut: Cut | None = None
) -> Tensor:
    """The op; offsets are checked with ``FERRUM_CUDA_DEBUG=1`` alone, and lead nowhere outside *x* in any case."""
    if CHECK:
        offsets_in_order(x, offsets)
    return _many(x, w, bias, None, offsets, x._data.shape[0], 1, w.shape[1], None, cut)


# Few rows.


@cache
def few_pass(given: int, columns: int, form: str, unit: int, gate: bool) -> Pass:
    """How so many choices are multiplied with weights of so many columns."""
    if form == "dense":
        return Pass(1, 8, 4 if given <= 64 else 2)
    return Pass(1, 8, 2 if unit == 128 else 4)


@cache
def summed_pass(columns: int, form: str, unit: int, k: int) -> Pass:
    """How the choices of a token are multiplied with weights of so many columns; each warp has a choice."""
    warps = power_of_two(k)
    if form == "dense":
        return Pass(1, warps, 8)
    return Pass(1, warps, 2 if unit == 128 else 4)


def _constants(weights: _Weights, size: int, cut: Pass, step: int) -> dict[str, Any]:
    depth = size // weights.unit
    piece = 32 if weights.form == "dense" else 1
    words = 0 if weights.form == "dense" else weights.unit // (16 if weights.form == "int8" else 32)
    return {
        "FORM": weights.form, "PER": weights.per, "TILES": cut.tiles, "WARPS": cut.warps, "CHUNKS": cut.chunks,
        "WORDS": words, "EVEN": depth % (piece * cut.chunks * step) == 0,
    }  # fmt: skip


def _few(
    x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, ids: Tensor, k: int, columns: int,
    act: tuple[str, float | None, float | None, float | None] | None, cut: Pass | None,
) -> Tensor:  # fmt: skip
    """Products [choices, columns] of rows of *x*, each for k choices, in the order of the choices."""
    choices: int = ids._data.size
    out = empty((choices, columns), x)
    experts, _, size = w.shape
    x, x_step = rows(x)
    weights = _weights(w)
    if cut is None:
        cut = few_pass(choices, columns, weights.form, weights.unit, act is not None)
    kind, limit, alpha, up_offset = act or (None, None, None, None)
    width = cut.tiles * (16 if kind is None else 8)
    constants = _constants(weights, size, cut, cut.warps)
    _FEW(
        (-(-columns // width), min(choices, experts)), x, weights.values, weights.scales, weights.zeros,
        None if bias is None else in_order(bias), ids, out, choices, columns, size // weights.unit, x_step,
        *weights.steps, k, experts, limit, alpha, up_offset, 1, warps=cut.warps, stages=1, ACT=kind,
        CHOICES=32 if choices <= 32 else FEW, EACH=experts < choices, HIGH=1 if choices <= 4 * experts else 2,
        **constants,
    )  # fmt: skip
    return out


def _summed(
    x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, ids: Tensor, scale: Tensor, cut: Pass | None
) -> Tensor:
    """The weighted sums [tokens, N] of what the experts of each token make of its k rows of *x*."""
    experts, columns, size = w.shape
    k: int = ids._data.shape[-1]
    tokens = ids._data.size // k
    out = empty((tokens, columns), x)
    x, x_step = rows(x)
    weights = _weights(w)
    if cut is None:
        cut = summed_pass(columns, weights.form, weights.unit, k)
    _SUM(
        (-(-columns // (16 * cut.tiles)), tokens), x, weights.values, weights.scales, weights.zeros,
        None if bias is None else in_order(bias), ids, scale, out, columns, size // weights.unit, x_step,
        *weights.steps, k, experts, 1, warps=cut.warps, stages=1, **_constants(weights, size, cut, 1),
    )  # fmt: skip
    return out


def moe_ffn_refuses(x: Tensor, w13: Tensor | QuantTensor, w2: Tensor | QuantTensor, *rest: object) -> str | None:
    """Why the kernels do not take a call, or None."""
    if x.size > 1 << 40:
        return "takes less than 2**40 numbers"
    return _refuses(w13) or _refuses(w2)


def moe_ffn(
    x: Tensor, w13: Tensor | QuantTensor, w2: Tensor | QuantTensor, ids: Tensor, w: Tensor, kind: str,
    b13: Tensor | None, b2: Tensor | None, limit: float | None, alpha: float, up_offset: float,
    cuts: tuple[Any, Any] = (None, None), few: bool | None = None, summed: bool | None = None,
) -> Tensor:  # fmt: skip
    """The op; what the gate gives is rounded, and the results of the experts are."""
    experts, columns, inner = w2.shape
    if CHECK:
        ids_in_range("moe_ffn", ids, experts)
    ids, w = in_order(ids), in_order(w)
    *lead, k = ids._data.shape
    choices: int = ids._data.size
    if not choices:
        return empty((*lead, columns), x)
    act = (
        kind, None if limit is None else float(limit), None if alpha == 1.0 else float(alpha),
        float(up_offset) if up_offset else None,
    )  # fmt: skip
    if few is None:
        few = choices <= FEW
    if few:
        h = _few(x, w13, b13, ids, k, inner, act, cuts[0])
        if choices <= _SUMMED * k if summed is None else summed:
            return _summed(h, w2, b2, ids, w, cuts[1]).reshape((*lead, columns))
        y = _few(h, w2, b2, ids, 1, columns, None, cuts[1])
        return combined(y, None, w, ids=ids, experts=experts)
    plan = plan_of(ids, experts)
    h = _many(x, w13, b13, plan.order, plan.offsets, choices, k, inner, act, cuts[0])
    y = _many(h, w2, b2, None, plan.offsets, choices, 1, columns, None, cuts[1])
    return combined(y, plan.inverse, w, ids=ids, experts=experts)
