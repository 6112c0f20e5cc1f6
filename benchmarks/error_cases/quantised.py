"""Numbers in few bits, and products with them.

The error of ``quantize`` is the distance of what is stored from the numbers before, so it says what a scheme costs.
Those of the others are distances from what the stored numbers stand for.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from benchmarks.error_cases.products import exact_experts
from benchmarks.error_cases.stored import MADE, SCHEMES, stored
from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import dequantize, grouped_linear, linear, moe_ffn, quantize, repack
from ferrum_ops.quant.types import find_layout, layout_names
from ferrum_ops.registry import load_kernels
from tests.array.oracle import wide

#: formats that experts are stored in
EXPERTS = ("int8", "int4", "MXFP4")


def _read(row: str) -> None:
    @case("dequantize", row)
    def _dequantize(draw: Draw) -> Results:
        q, held = stored(draw, row, *draw.one_of((), (2,)), 32)
        yield draw.call(dequantize, q, draw.dtype), held

    @case("linear", row)
    def _linear(draw: Draw) -> Results:
        q, held = stored(draw, row, 32 * draw.one_of(1, 2, 4))
        x, x64 = draw.noise(draw.one_of(1, draw.between(1, 64)), q.shape[1])
        bias, b64 = draw.noise(q.shape[0]) if draw.flag() else (None, np.zeros(()))
        yield draw.call(linear, x, q, bias), x64 @ held.T + b64


def _write(row: str) -> None:
    @case("quantize", row)
    def _quantize(draw: Draw) -> Results:
        x, x64 = draw.noise(*draw.one_of((), (2,)), draw.between(1, 30), 256)
        yield dequantize(draw.call(quantize, x, draw.one_of(*MADE[row])), "f32"), x64


def _experts(row: str) -> None:
    @case("grouped_linear", row)
    def _grouped_linear(draw: Draw) -> Results:
        experts = draw.one_of(1, 4, 8)
        q, held = stored(draw, row, experts, 32 * draw.one_of(1, 2))
        offsets = np.cumsum([0, *(draw.one_of(0, 1, 9) for _ in range(experts - 1)), draw.one_of(1, 9)])
        x, x64 = draw.noise(int(offsets[-1]), q.shape[2])
        want = [x64[a:b] @ held[e].T for e, (a, b) in enumerate(pairwise(offsets))]
        yield draw.call(grouped_linear, x, q, draw.integers(offsets)), np.concatenate(want)

    @case("moe_ffn", row)
    def _moe_ffn(draw: Draw) -> Results:
        tokens, experts = draw.between(1, 16), draw.one_of(1, 4)
        k = min(experts, draw.one_of(1, 2))
        ids = np.asarray([draw.rng.permutation(experts)[:k] for _ in range(tokens)])
        q13, held13 = stored(draw, row, experts, 256, inner=128 * draw.one_of(1, 2))
        q2, held2 = stored(draw, row, experts, 32 * draw.one_of(1, 2), inner=128)
        x, x64 = draw.noise(tokens, q13.shape[2])
        w, w64 = draw.tensor(draw.rng.random(ids.shape), draw.wide)
        got = draw.call(moe_ffn, x, q13, q2, draw.integers(ids), w)
        yield got, exact_experts(x64, held13, held2, ids, w64, "silu")


for _row in SCHEMES:
    _read(_row)
for _row in MADE:
    _write(_row)
for _row in EXPERTS:
    _experts(_row)


@case("repack")
def _repack(draw: Draw) -> Results:
    """Into every layout that holds the matrix and back: the bytes must be the same, and what they stand for."""
    q, held = stored(draw, draw.one_of(*SCHEMES), *draw.one_of((), (2,)), 32)
    load_kernels(draw.device.kind)
    for layout in ("plain", *layout_names()):
        if layout == "plain" or find_layout(layout).refusal(q.scheme, *q.shape[-2:]) is None:
            packed = draw.call(repack, q, layout)
            yield dequantize(packed, draw.wide), held
            back = repack(packed, "plain")
            yield from ((back.parts[name], wide(part)) for name, part in q.parts.items())
