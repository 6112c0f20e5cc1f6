"""Several products of one input."""

from __future__ import annotations

from typing import get_args

import numpy as np

from benchmarks.error_cases.stored import stored
from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import ActivationKind, gated_linear, linears
from tests.ops.test_activation import exact_gate


@case("linears")
def _linears(draw: Draw) -> Results:
    rows = draw.one_of((), (draw.between(1, 64),), (2, draw.between(1, 16)))
    inner, count = draw.between(1, 512), draw.between(1, 4)
    x, x64 = draw.noise(*rows, inner)
    ws = [draw.noise(draw.between(32, 256), inner) for _ in range(count)]
    biases = [
        draw.noise(len(w64), dtype=draw.one_of(draw.dtype, draw.wide)) if draw.flag() else (None, np.zeros(()))
        for _, w64 in ws
    ]
    out = draw.one_of(None, draw.wide)
    got = draw.call(linears, x, [w for w, _ in ws], [b for b, _ in biases], dtype=out)
    for one, (_, w64), (_, b64) in zip(got, ws, biases, strict=True):
        yield one, x64 @ w64.T + b64


@case("linears", "int4")
def _linears_int4(draw: Draw) -> Results:
    inner = 128 * draw.one_of(1, 2)
    x, x64 = draw.noise(draw.one_of(1, draw.between(1, 64)), inner)
    ws = [stored(draw, "int4", 32 * draw.one_of(1, 2, 4), inner=inner) for _ in range(draw.between(1, 4))]
    for one, (_, held) in zip(draw.call(linears, x, [q for q, _ in ws]), ws, strict=True):
        yield one, x64 @ held.T


@case("gated_linear")
def _gated_linear(draw: Draw) -> Results:
    rows = draw.one_of((), (draw.between(1, 64),))
    inner, outer = draw.between(1, 512), draw.between(32, 256)
    kind = draw.one_of(*get_args(ActivationKind))
    x, x64 = draw.noise(*rows, inner)
    (gate, g64), (up, u64) = (draw.tensor(draw.values(outer, inner) / inner**0.5) for _ in range(2))
    yield draw.call(gated_linear, x, gate, up, kind), exact_gate(x64 @ g64.T, x64 @ u64.T, kind, None, 1.0, 0.0)


@case("gated_linear", "int4")
def _gated_linear_int4(draw: Draw) -> Results:
    inner, outer = 128 * draw.one_of(1, 2), 32 * draw.one_of(1, 2, 4)
    x, x64 = draw.noise(draw.one_of(1, draw.between(1, 64)), inner)
    (gate, g64), (up, u64) = (stored(draw, "int4", outer, inner=inner) for _ in range(2))
    yield draw.call(gated_linear, x, gate, up), exact_gate(x64 @ g64.T, x64 @ u64.T, "silu", None, 1.0, 0.0)
