"""Experts' weights for tests of their kernels, and how near results must be."""

from __future__ import annotations

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops import QuantTensor, dequantize, quantize
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import lying
from tests.ops.oracle import Array, noise

SCHEMES = ("int4-g32", "int4-g64-asym", "int4-g96-f16", "int4", "int8", "int8-g32", "int8-g64-asym", "mxfp4")
#: with sums of one K in another order, and results rounded to float16
CLOSE = 1e-3


def weights(
    seed: int, shape: tuple[int, int, int], scheme: str | None, gaps: bool = False
) -> tuple[Tensor | QuantTensor, Array]:
    """Weights [E, N, K], and what they are; with gaps there is NaN between experts."""
    values = noise(seed, *shape) / shape[2] ** 0.5
    if scheme is None:
        dense, exact = lying(seed, shape, fa.float16, "whole", shape[2] ** -0.5)
        if gaps:
            dense = fa.concat([dense, fa.full_like(dense, fa.nan)], axis=1)[:, : shape[1]]
        return dense, exact
    found = quantize(fa.asarray(values, dtype="f32", device="cpu"), scheme)
    return found, wide(dequantize(found))
