"""What every chapter of raw functions sees of the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from ferrum_array.backends import host
from ferrum_array.dtype import Dtype

__all__ = ["RAW_DTYPES", "Chapter"]

#: MLX has no complex128.
RAW_DTYPES: dict[Dtype, mx.Dtype] = {
    d: getattr(mx, "bool_" if d is Dtype.BOOL else d.standard_name) for d in Dtype.all() if d is not Dtype.C128
}


class Chapter:
    """The stream of the device, and constants on it.

    A function NAME is the method ``fn_NAME``, or what ``make_NAME(dtype)`` returns where it depends on the dtype: None
    where MLX's own is right.
    """

    stream: mx.Stream

    @staticmethod
    def constant(value: int, dtype: Dtype) -> mx.array:
        """The number *value* as a 0-d array of *dtype*; by way of the host, because MLX reads Python's in 63 bits."""
        return mx.array(np.asarray(value, host.raw_dtype(dtype)), dtype=RAW_DTYPES[dtype])

    def scalar(self, value: Any, like: mx.array) -> mx.array:
        """The number *value* as a 0-d array in the dtype of *like*."""
        return mx.array(value, dtype=like.dtype)

    def widened(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function* of 16-bit floats, computed in float32 and rounded once."""
        stream = self.stream

        def call(x: mx.array, *args: Any) -> Any:
            narrow = x.dtype
            wide = [
                one.astype(mx.float32, stream=stream) if isinstance(one, mx.array) and one.dtype == narrow else one
                for one in (x, *args)
            ]
            return function(*wide).astype(narrow, stream=stream)

        return call
