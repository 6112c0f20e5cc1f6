"""Products of matrices and vectors. Sums of products accumulate in at least 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from ferrum_array.backends.mlx.chapter import Chapter
from ferrum_array.dtype import Dtype

__all__ = ["Products"]


class Products(Chapter):
    """Products of floats.

    MLX's product of a matrix without rows writes beyond its result, and ruins the memory of other arrays. So nothing
    that has no elements is given to it.
    """

    def make_matmul(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        s, product = self.stream, mx.matmul
        return lambda x1, x2: product(x1, x2, stream=s) if x1.size and x2.size else _of_nothing(np.matmul, x1, x2)

    def make_vecdot(self, dtype: Dtype) -> Callable[[mx.array, mx.array], mx.array]:
        s = self.stream

        def vecdot(x1: mx.array, x2: mx.array) -> mx.array:
            if not (x1.size and x2.size):
                return _of_nothing(np.vecdot, x1, x2)
            # [..., 1, K] @ [..., K, 1]
            left = mx.expand_dims(mx.conj(x1, stream=s) if dtype.is_complex else x1, -2, stream=s)
            product = mx.matmul(left, mx.expand_dims(x2, -1, stream=s), stream=s)
            return mx.squeeze(product, axis=(-2, -1), stream=s)

        return vecdot

    def make_einsum(self, dtype: Dtype) -> Callable[..., mx.array]:
        s = self.stream

        def einsum(subscripts: str, *arrays: mx.array) -> mx.array:
            if all(array.size for array in arrays):
                return mx.einsum(subscripts, *arrays, stream=s)
            return _of_nothing(lambda *hosts: np.einsum(subscripts, *hosts), *arrays)

        return einsum


def _of_nothing(product: Callable[..., Any], *arrays: mx.array) -> mx.array:
    """The product of arrays of which one has no elements: zeros, in the shape that NumPy gives it."""
    zeros = (np.broadcast_to(np.float32(0.0), array.shape) for array in arrays)
    return mx.array(np.asarray(product(*zeros)), dtype=arrays[0].dtype)
