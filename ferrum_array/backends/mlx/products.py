"""Products of matrices and vectors. Sums of products accumulate in at least 32 bits."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from ferrum_array.backends.mlx.chapter import Chapter
from ferrum_array.dtype import Dtype

__all__ = ["Products"]


class Products(Chapter):
    """``vecdot`` and ``einsum`` of floats; ``matmul`` is MLX's own."""

    def make_vecdot(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        s = self.stream

        def vecdot(x1: mx.array, x2: mx.array) -> mx.array:
            # [..., 1, K] @ [..., K, 1]
            left = mx.expand_dims(mx.conj(x1, stream=s) if dtype.is_complex else x1, -2, stream=s)
            product = mx.matmul(left, mx.expand_dims(x2, -1, stream=s), stream=s)
            return mx.squeeze(product, axis=(-2, -1), stream=s)

        return vecdot

    def make_einsum(self, dtype: Dtype) -> Callable[..., mx.array]:
        s = self.stream
        return lambda subscripts, *arrays: mx.einsum(subscripts, *arrays, stream=s)
