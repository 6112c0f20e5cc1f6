"""Making arrays, converting them, and moving their elements."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from ferrum_array.backends import host
from ferrum_array.backends.mlx.chapter import RAW_DTYPES, Chapter
from ferrum_array.backends.mlx.window import check_memory
from ferrum_array.dtype import Dtype

__all__ = ["Arrays", "from_numpy", "to_numpy"]


def from_numpy(array: Any) -> mx.array:
    """An MLX array with a copy of a host array's elements."""
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    return mx.array(array, dtype=RAW_DTYPES[host.dtype_of(array)])


def to_numpy(raw: mx.array, stream: mx.Stream) -> Any:
    """A read-only view of the memory of *raw*, which must have been computed."""
    if raw.dtype == mx.bfloat16:  # no buffer format says bfloat16
        view = np.asarray(mx.view(raw, mx.uint16, stream=stream)).view(host.bfloat16())
    else:
        view = np.asarray(raw)
    view.flags.writeable = False
    return view


class Arrays(Chapter):
    """Creation, conversion, shapes."""

    # Making.

    def make_full(self, dtype: Dtype) -> Callable[..., mx.array]:
        s, raw = self.stream, RAW_DTYPES[dtype]
        numpy_dtype = host.raw_dtype(dtype)

        def full(shape: tuple[int, ...], value: Any) -> mx.array:
            # the number goes through the host, because MLX reads Python's numbers in 32 bits
            with np.errstate(all="ignore"):
                number = mx.array(np.full((), value, dtype=numpy_dtype), dtype=raw)
            return mx.full(_lengths(shape, dtype.bytes_per_elem), number, stream=s) if shape else number

        return full

    def make_empty(self, dtype: Dtype) -> Callable[..., mx.array]:
        s, raw = self.stream, RAW_DTYPES[dtype]
        return lambda shape: mx.zeros(_lengths(shape, dtype.bytes_per_elem), dtype=raw, stream=s)

    def make_eye(self, dtype: Dtype) -> Callable[..., mx.array]:
        s, raw = self.stream, RAW_DTYPES[dtype]

        def eye(rows: int, columns: int, k: int) -> mx.array:
            _lengths((rows, columns), dtype.bytes_per_elem)
            return mx.eye(rows, columns, max(-rows, min(k, columns)), dtype=raw, stream=s)

        return eye

    def make_astype(self, dtype: Dtype) -> Callable[[mx.array], mx.array]:
        s, raw = self.stream, RAW_DTYPES[dtype]

        def astype(x: mx.array) -> mx.array:
            if x.dtype == mx.complex64 and raw != mx.complex64 and raw != mx.bool_:
                x = mx.real(x, stream=s)
            return x.astype(raw, stream=s)

        return astype

    def make_bitcast(self, dtype: Dtype) -> Callable[[mx.array], mx.array]:
        s, raw = self.stream, RAW_DTYPES[dtype]
        return lambda x: mx.view(x, raw, stream=s)

    def fn_copy(self, x: mx.array) -> mx.array:
        # a handle of its own; memory moves only where the elements do not lie in order
        return mx.contiguous(x, stream=self.stream)

    # Shapes.

    def fn_reshape(self, x: mx.array, shape: tuple[int, ...]) -> mx.array:
        return mx.reshape(x, shape, stream=self.stream)

    def fn_broadcast_to(self, x: mx.array, shape: tuple[int, ...]) -> mx.array:
        return mx.broadcast_to(x, _lengths(shape), stream=self.stream)

    def fn_permute_dims(self, x: mx.array, axes: tuple[int, ...]) -> mx.array:
        return mx.permute_dims(x, axes, stream=self.stream)

    def fn_concat(self, arrays: list[mx.array], axis: int) -> mx.array:
        # MLX returns the array itself where there is but one
        return mx.concatenate(arrays, axis=axis, stream=self.stream) if len(arrays) > 1 else self.fn_copy(arrays[0])

    def fn_flip(self, x: mx.array, axes: tuple[int, ...]) -> mx.array:
        return mx.flip(x, axis=axes, stream=self.stream)

    def fn_roll(self, x: mx.array, shifts: tuple[int, ...], axes: tuple[int, ...]) -> mx.array:
        for shift, axis in zip(shifts, axes, strict=True):
            if x.size:
                x = mx.roll(x, shift % x.shape[axis], axis, stream=self.stream)
        return self.fn_copy(x) if not axes else x

    def fn_tril(self, x: mx.array, k: int) -> mx.array:
        return mx.tril(x, _diagonal(x, k), stream=self.stream)

    def fn_triu(self, x: mx.array, k: int) -> mx.array:
        return mx.triu(x, _diagonal(x, k), stream=self.stream)

    def fn_diagonal(self, x: mx.array, k: int) -> mx.array:
        rows, columns = x.shape[-2:]
        if not -rows < k < columns:
            return mx.zeros((*x.shape[:-2], 0), dtype=x.dtype, stream=self.stream)
        return mx.diagonal(x, k, -2, -1, stream=self.stream)


def _diagonal(x: mx.array, k: int) -> int:
    """*k*, not farther out than just beyond the matrices."""
    return max(-x.shape[-2], min(k, x.shape[-1]))


_LONGEST = (1 << 31) - 1


def _lengths(shape: tuple[int, ...], itemsize: int = 0) -> tuple[int, ...]:
    """*shape*, of which MLX must be able to hold each length, and all elements if *itemsize* is given.

    Raises:
        ValueError: for a length beyond 32 bits. MemoryError: for more memory than MLX may use.
    """
    check_memory(shape, prod(shape) * itemsize)
    for length in shape:
        if length > _LONGEST:
            raise ValueError(f"MLX holds axes of up to {_LONGEST} elements, got shape {shape}")
    return shape
