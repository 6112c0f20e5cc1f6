"""Activations, gates, norms and rotary embedding."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from scipy import special

import ferrum_array as fa
from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import (
    ActivationKind,
    KVCache,
    KVSpec,
    SequenceMeta,
    activation,
    gated_activation,
    l2_norm,
    layer_norm,
    qk_norm_rope,
    rms_norm,
    rope,
    rope_append,
    rope_table,
    sigmoid_gate,
    softcap,
)
from tests.array.oracle import to_dtype, wide
from tests.ops.oracle import Array
from tests.ops.test_activation import EXACT, exact_gate
from tests.ops.test_norm import exact_norm, exact_rms
from tests.ops.test_rope import exact_rope, exact_table

KINDS = get_args(ActivationKind)


def rows(draw: Draw) -> tuple[int, ...]:
    """The axes before the last."""
    return draw.one_of((), (draw.between(1, 30),), (draw.between(1, 4), draw.between(1, 12)))


@case("activation")
def _activation(draw: Draw) -> Results:
    kind = draw.one_of(*KINDS)
    x, exact = draw.tensor(draw.values(*rows(draw), draw.between(16, 1024)) * draw.one_of(0.01, 1.0, 8.0))
    yield draw.call(activation, x, kind), EXACT[kind](exact)


@case("gated_activation")
def _gated_activation(draw: Draw) -> Results:
    kind = draw.one_of(*KINDS)
    shape = (*rows(draw), draw.between(16, 1024))
    gate, gate64 = draw.tensor(draw.values(*shape) * draw.one_of(0.1, 1.0, 8.0))
    up, up64 = draw.noise(*shape)
    limit = draw.one_of(None, None, 7.0, 0.5)
    alpha = draw.one_of(1.0, 1.702) if kind == "silu" else 1.0
    offset = draw.one_of(0.0, 1.0)
    got = draw.call(gated_activation, gate, up, kind, limit=limit, alpha=alpha, up_offset=offset)
    yield got, exact_gate(gate64, up64, kind, limit, alpha, offset)


@case("sigmoid_gate")
def _sigmoid_gate(draw: Draw) -> Results:
    shape = (*rows(draw), draw.between(16, 1024))
    x, x64 = draw.noise(*shape)
    gate, gate64 = draw.noise(*shape[:-1], draw.one_of(shape[-1], 1))
    residual, r64 = draw.noise(*shape) if draw.flag() else (None, np.zeros(()))
    yield draw.call(sigmoid_gate, x, gate, residual=residual), x64 * special.expit(gate64) + r64


@case("softcap")
def _softcap(draw: Draw) -> Results:
    cap = draw.one_of(0.5, 30.0, 50.0)
    x, x64 = draw.tensor(draw.values(*rows(draw), draw.between(16, 1024)) * draw.one_of(0.1, 10.0, 100.0))
    yield draw.call(softcap, x, cap), cap * np.tanh(x64 / cap)


def residual_of(draw: Draw, x64: Array) -> tuple[dict[str, Any], Array]:
    """The argument *residual*, or none, and what is then normalised."""
    if draw.flag():
        return {}, x64
    dtype = draw.one_of(draw.dtype, draw.wide)
    residual, r64 = draw.noise(*x64.shape, dtype=dtype)
    return {"residual": residual}, wide(to_dtype(x64 + r64, dtype))


@case("rms_norm")
def _rms_norm(draw: Draw) -> Results:
    shape = (*rows(draw), draw.between(16, 1024))
    x, x64 = draw.tensor(draw.values(*shape) * draw.one_of(0.1, 1.0, 30.0))
    w, w64 = draw.noise(shape[-1], dtype=draw.one_of(draw.dtype, draw.wide)) if draw.flag() else (None, None)
    gate, gate64 = draw.noise(*shape) if draw.flag() else (None, None)
    options, total = residual_of(draw, x64)
    eps, offset = draw.one_of(1e-6, 1e-5), draw.one_of(0.0, 1.0) if w is not None else 0.0
    got = draw.call(rms_norm, x, w, eps=eps, offset=offset, gate=gate, **options)
    if options:
        got, summed = got
        yield summed, total
    yield got, exact_rms(total, w64, eps, offset, gate64)


@case("layer_norm")
def _layer_norm(draw: Draw) -> Results:
    shape = (*rows(draw), draw.between(16, 1024))
    x, x64 = draw.tensor(draw.values(*shape) + draw.one_of(0.0, 1.0))
    w, w64 = draw.noise(shape[-1]) if draw.flag() else (None, None)
    b, b64 = draw.noise(shape[-1]) if draw.flag() else (None, None)
    options, total = residual_of(draw, x64)
    eps = draw.one_of(1e-12, 1e-5)
    got = draw.call(layer_norm, x, w, b, eps=eps, **options)
    if options:
        got, summed = got
        yield summed, total
    yield got, exact_norm(total, w64, b64, eps)


@case("l2_norm")
def _l2_norm(draw: Draw) -> Results:
    x, x64 = draw.noise(*rows(draw), draw.between(16, 1024))
    eps = draw.one_of(1e-12, 1e-6)
    yield draw.call(l2_norm, x, eps=eps), x64 / np.sqrt((x64 * x64).sum(-1, keepdims=True) + eps)


@case("rope_table")
def _rope_table(draw: Draw) -> Results:
    positions = draw.rng.integers(0, draw.one_of(100, 10_000, 1_000_000), draw.between(1, 100))
    dim, theta = 2 * draw.between(4, 64), draw.one_of(10000.0, 500000.0)
    tables = draw.call(rope_table, draw.integers(positions), dim, theta, dtype=draw.dtype)
    yield from zip(tables, exact_table(positions, dim, theta), strict=True)


def turns(draw: Draw, tokens: int, dim: int) -> tuple[fa.Tensor, fa.Tensor, Array, Array]:
    """A table for *dim* dimensions, in the wide dtype or the case's own, and what it holds."""
    angles = draw.values(tokens, dim // 2) * 3
    dtype = draw.one_of(draw.dtype, draw.wide)
    (cos, cos64), (sin, sin64) = draw.tensor(np.cos(angles), dtype), draw.tensor(np.sin(angles), dtype)
    return cos, sin, cos64, sin64


@case("rope")
def _rope(draw: Draw) -> Results:
    tokens, dim = draw.between(1, 40), 2 * draw.between(4, 64)
    x, x64 = draw.noise(*draw.one_of((), (3,)), tokens, draw.between(1, 8), dim + draw.one_of(0, 0, 6))
    interleaved = draw.flag()
    cos, sin, cos64, sin64 = turns(draw, tokens, dim)
    got = draw.call(rope, x, cos, sin, rotary_dim=dim, interleaved=interleaved)
    yield got, exact_rope(x64, cos64, sin64, dim, interleaved)


@case("qk_norm_rope")
def _qk_norm_rope(draw: Draw) -> Results:
    tokens, dim, heads = draw.between(1, 30), 2 * draw.between(4, 64), draw.between(1, 4)
    q, q64 = draw.noise(tokens, heads * draw.one_of(1, 2, 4), dim)
    k, k64 = draw.noise(tokens, heads, dim)
    (wq, wq64), (wk, wk64) = (draw.noise(dim) for _ in range(2))
    offset, interleaved = draw.one_of(0.0, 1.0), draw.flag()
    cos, sin, cos64, sin64 = turns(draw, tokens, dim)
    got = draw.call(qk_norm_rope, q, k, wq, wk, cos, sin, eps=1e-6, offset=offset, interleaved=interleaved)
    for one, x64, w64 in zip(got, (q64, k64), (wq64, wk64), strict=True):
        yield one, exact_rope(exact_rms(x64, w64, 1e-6, offset, None), cos64, sin64, dim, interleaved)


@case("rope_append")
def _rope_append(draw: Draw) -> Results:
    tokens, dim, heads = draw.between(1, 30), 2 * draw.between(4, 64), draw.between(1, 4)
    q, q64 = draw.noise(tokens, heads * draw.one_of(1, 2, 4), dim)
    k, k64 = draw.noise(tokens, heads, dim)
    v, v64 = draw.noise(tokens, heads, dim)
    cos, sin, cos64, sin64 = turns(draw, tokens, dim)
    cache = KVCache.empty(KVSpec(heads, dim, 1, tokens, dtype=draw.dtype), draw.device)
    meta = SequenceMeta.packed([tokens])
    if draw.flag():
        q = draw.call(rope_append, cache, q, k, v, cos, sin, meta)
    else:
        (wq, wq64), (wk, wk64) = (draw.noise(dim) for _ in range(2))
        q = draw.call(rope_append, cache, q, k, v, cos, sin, meta, wq=wq, wk=wk, eps=1e-6)
        q64, k64 = exact_rms(q64, wq64, 1e-6, 0.0, None), exact_rms(k64, wk64, 1e-6, 0.0, None)
    for got, x64 in ((q, q64), (cache.k, k64)):
        yield got, exact_rope(x64, cos64, sin64, dim, False)
    yield cache.v, v64
