"""Numbers in few bits, and products with them.

The error of ``quantize`` is the distance of what is stored from the numbers before, so it says what a scheme costs.
Those of the others are distances from what the stored numbers stand for.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

import ferrum_array as fa
from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import QuantTensor, dequantize, grouped_linear, linear, moe_ffn, quantize, repack
from ferrum_ops.quant.names import scheme
from ferrum_ops.quant.types import find_layout, layout_names
from ferrum_ops.registry import load_kernels
from tests.array.oracle import wide
from tests.ops.oracle import Array
from tests.ops.test_moe import Choices, Network, exact_ffn
from tests.ops.test_quantize import oracle

#: by row of the table: the schemes of its cases
WEIGHTS = {
    "int8": ("int8", "int8-g64", "int8-g32-asym"),
    "int4": ("int4-g32", "int4-g64-asym-f16", "int4-g128"),
}


def weights(draw: Draw, schemes: tuple[str, ...], *lead: int, inner: int = 0) -> tuple[QuantTensor, Array]:
    """A quantised matrix, or a stack of them, and what it holds by the scheme's description."""
    inner = inner or 128 * draw.one_of(1, 2, 4)
    w, _ = draw.tensor(draw.values(*lead, inner) / inner**0.5, fa.float32)
    q = quantize(w, draw.one_of(*schemes))
    return q, oracle(q).astype(np.float64)


def _register(row: str, schemes: tuple[str, ...]) -> None:
    """The cases of one row."""

    @case("quantize", row)
    def _quantize(draw: Draw) -> Results:
        x, x64 = draw.noise(*draw.one_of((), (2,)), draw.between(1, 64), 128 * draw.one_of(1, 2, 4))
        yield dequantize(draw.call(quantize, x, draw.one_of(*schemes)), "f32"), x64

    @case("dequantize", row)
    def _dequantize(draw: Draw) -> Results:
        q, held = weights(draw, schemes, *draw.one_of((), (2,)), draw.between(1, 64))
        yield draw.call(dequantize, q, draw.dtype), held

    @case("linear", row)
    def _linear(draw: Draw) -> Results:
        q, held = weights(draw, schemes, draw.between(32, 128))
        x, x64 = draw.noise(draw.one_of(1, draw.between(1, 64)), q.shape[1])
        bias, b64 = draw.noise(q.shape[0]) if draw.flag() else (None, np.zeros(()))
        yield draw.call(linear, x, q, bias), x64 @ held.T + b64

    @case("grouped_linear", row)
    def _grouped_linear(draw: Draw) -> Results:
        experts = draw.one_of(1, 4, 16)
        q, held = weights(draw, schemes, experts, draw.between(32, 64))
        offsets = np.cumsum([0, *(draw.one_of(0, 1, 9) for _ in range(experts - 1)), draw.one_of(1, 9)])
        x, x64 = draw.noise(int(offsets[-1]), q.shape[2])
        want = [x64[a:b] @ held[e].T for e, (a, b) in enumerate(pairwise(offsets))]
        yield draw.call(grouped_linear, x, q, draw.integers(offsets)), np.concatenate(want)

    @case("moe_ffn", row)
    def _moe_ffn(draw: Draw) -> Results:
        tokens, experts = draw.between(1, 16), draw.one_of(1, 4)
        k = min(experts, draw.one_of(1, 2))
        ids = np.asarray([draw.rng.permutation(experts)[:k] for _ in range(tokens)])
        q13, held13 = weights(draw, schemes, experts, 256)
        q2, held2 = weights(draw, schemes, experts, draw.between(16, 64), inner=128)
        x, x64 = draw.noise(tokens, q13.shape[2])
        w, w64 = draw.tensor(draw.rng.random(ids.shape), draw.wide)
        exact, _ = exact_ffn(Network(x64, held13, held2, Choices(ids, experts, 0), w64, {}, {}), "silu")
        yield draw.call(moe_ffn, x, q13, q2, draw.integers(ids), w), exact


for _row, _schemes in WEIGHTS.items():
    for _name in _schemes:
        scheme(_name)  # a name that does not exist is found at once
    _register(_row, _schemes)


@case("repack")
def _repack(draw: Draw) -> Results:
    """Into every layout that holds the matrix and back: the bytes must be the same, and what they stand for."""
    q, held = weights(draw, draw.one_of(*WEIGHTS.values()), *draw.one_of((), (2,)), 16 * draw.between(1, 8))
    load_kernels(draw.device.kind)
    for layout in ("plain", *layout_names()):
        if layout == "plain" or find_layout(layout).refusal(q.scheme, *q.shape[-2:]) is None:
            packed = draw.call(repack, q, layout)
            yield dequantize(packed, draw.wide), held
            back = repack(packed, "plain")
            yield from ((back.parts[name], wide(part)) for name, part in q.parts.items())
