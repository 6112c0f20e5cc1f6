"""Reductions, running totals, order and search."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import mlx.core as mx

from ferrum_array.backends.mlx.chapter import RAW_DTYPES, Chapter
from ferrum_array.dtype import Dtype

__all__ = ["Reductions"]

#: Sums of more numbers than this are taken in pieces, then of the pieces: MLX's CPU adds one by one, and errors add up.
_PIECE = 256


class Reductions(Chapter):
    """``sum`` and its relatives, ``sort``, ``argmax``, ``searchsorted``."""

    def make_sum(self, dtype: Dtype) -> Callable[..., mx.array]:
        return self._in_dtype(self._sum, dtype)

    def make_prod(self, dtype: Dtype) -> Callable[..., mx.array]:
        return self._in_dtype(self._prod, dtype)

    def _prod(self, x: mx.array, axes: tuple[int, ...], keepdims: bool) -> mx.array:
        return self._of_nothing(x, axes, keepdims, 1) if not x.size else self._reduce(mx.prod, x, axes, keepdims)

    def _reduce(
        self, function: Callable[..., mx.array], x: mx.array, axes: tuple[int, ...], keepdims: bool
    ) -> mx.array:
        return function(x, axis=axes, keepdims=keepdims, stream=self.stream)

    def _of_nothing(self, x: mx.array, axes: tuple[int, ...], keepdims: bool, neutral: int) -> mx.array:
        """The reduction of an *x* without elements. MLX's own never ends for some of their strides."""
        shape = [1 if axis in axes else n for axis, n in enumerate(x.shape) if keepdims or axis not in axes]
        return mx.full(shape, self.scalar(neutral, x), stream=self.stream)

    def _in_dtype(self, reduce: Callable[..., mx.array], dtype: Dtype) -> Callable[..., mx.array]:
        """*reduce* with its result in the dtype of its operand, where MLX has another."""
        s, raw = self.stream, RAW_DTYPES[dtype]
        if dtype in (Dtype.F16, Dtype.BF16):
            return self.widened(reduce)
        if dtype.is_floating or dtype.is_complex or dtype.bits == 64:
            return reduce
        return lambda x, axes, keepdims: reduce(x, axes, keepdims).astype(raw, stream=s)

    def make_total(self, dtype: Dtype) -> Callable[[mx.array], mx.array]:
        sum_, s, function = self.make_sum(dtype), self.stream, mx.sum
        if sum_ != self._sum:
            return lambda x: sum_(x, tuple(range(x.ndim)), False)
        return lambda x: function(x, stream=s) if 0 < x.size <= _PIECE else sum_(x, tuple(range(x.ndim)), False)

    def _sum(self, x: mx.array, axes: tuple[int, ...], keepdims: bool) -> mx.array:
        s = self.stream
        if not x.size:
            return self._of_nothing(x, axes, keepdims, 0)
        count = prod(x.shape[axis] for axis in axes)
        if count <= _PIECE or not mx.issubdtype(x.dtype, mx.inexact):
            return mx.sum(x, axis=axes, keepdims=keepdims, stream=s)
        kept = [axis for axis in range(x.ndim) if axis not in axes]
        lengths = [x.shape[axis] for axis in kept]
        flat = mx.reshape(mx.permute_dims(x, (*kept, *axes), stream=s), (*lengths, count), stream=s)
        whole = count - count % _PIECE
        body, rest = mx.split(flat, [whole], axis=-1, stream=s)
        pieces = mx.sum(mx.reshape(body, (*lengths, -1, _PIECE), stream=s), axis=-1, stream=s)
        total = mx.add(self._sum(pieces, (len(kept),), False), mx.sum(rest, axis=-1, stream=s), stream=s)
        shape = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
        return mx.reshape(total, shape, stream=s) if keepdims else total

    def fn_max(self, x: mx.array, axes: tuple[int, ...], keepdims: bool) -> mx.array:
        return self._of_nothing(x, axes, keepdims, 0) if not x.size else self._reduce(mx.max, x, axes, keepdims)

    def fn_min(self, x: mx.array, axes: tuple[int, ...], keepdims: bool) -> mx.array:
        return self._of_nothing(x, axes, keepdims, 0) if not x.size else self._reduce(mx.min, x, axes, keepdims)

    def _truth(self, x: mx.array) -> mx.array:
        return x if x.dtype == mx.bool_ else mx.not_equal(x, self.scalar(0, x), stream=self.stream)

    def fn_all(self, x: mx.array, axes: tuple[int, ...], keepdims: bool) -> mx.array:
        truth = self._truth(x)
        return self._of_nothing(truth, axes, keepdims, 1) if not x.size else self._reduce(mx.all, truth, axes, keepdims)

    def fn_any(self, x: mx.array, axes: tuple[int, ...], keepdims: bool) -> mx.array:
        truth = self._truth(x)
        return self._of_nothing(truth, axes, keepdims, 0) if not x.size else self._reduce(mx.any, truth, axes, keepdims)

    def fn_count_nonzero(self, x: mx.array, axes: tuple[int, ...], keepdims: bool) -> mx.array:
        truth = self._truth(x).astype(mx.int64, stream=self.stream)
        return self._sum(truth, axes, keepdims)

    def make_mean(self, dtype: Dtype) -> Callable[..., mx.array]:
        return self.widened(self._mean) if dtype in (Dtype.F16, Dtype.BF16) else self._mean

    def _mean(self, x: mx.array, axes: tuple[int, ...], keepdims: bool) -> mx.array:
        s = self.stream
        total = self._sum(x, axes, keepdims)
        count = float(prod(x.shape[axis] for axis in axes))
        if x.dtype != mx.complex64:
            return mx.divide(total, self.scalar(count, total), stream=s)
        number = mx.array(count, dtype=mx.float32)
        parts = [mx.divide(part(total, stream=s), number, stream=s) for part in (mx.real, mx.imag)]
        return mx.reshape(mx.view(mx.stack(parts, axis=-1, stream=s), mx.complex64, stream=s), total.shape, stream=s)

    def make_var(self, dtype: Dtype) -> Callable[..., mx.array]:
        return self.widened(self._var) if dtype in (Dtype.F16, Dtype.BF16) else self._var

    def make_std(self, dtype: Dtype) -> Callable[..., mx.array]:
        def std(x: mx.array, axes: tuple[int, ...], correction: float, keepdims: bool) -> mx.array:
            return mx.sqrt(self._var(x, axes, correction, keepdims), stream=self.stream)

        return self.widened(std) if dtype in (Dtype.F16, Dtype.BF16) else std

    def _var(self, x: mx.array, axes: tuple[int, ...], correction: float, keepdims: bool) -> mx.array:
        s = self.stream
        deviation = mx.subtract(x, self._mean(x, axes, True), stream=s)
        if x.dtype == mx.complex64:
            deviation = mx.abs(deviation, stream=s)
        total = self._sum(mx.square(deviation, stream=s), axes, keepdims)
        count = prod(x.shape[axis] for axis in axes)
        return mx.divide(total, self.scalar(max(count - correction, 0.0), total), stream=s)

    # Running totals.

    def make_cumulative_sum(self, dtype: Dtype) -> Callable[[mx.array, int], mx.array]:
        return self._running(mx.cumsum, dtype)

    def make_cumulative_prod(self, dtype: Dtype) -> Callable[[mx.array, int], mx.array]:
        return self._running(mx.cumprod, dtype)

    def _running(self, function: Callable[..., mx.array], dtype: Dtype) -> Callable[[mx.array, int], mx.array]:
        s, raw = self.stream, RAW_DTYPES[dtype]

        def running(x: mx.array, axis: int) -> mx.array:
            if not x.size:
                return mx.zeros(x.shape, dtype=x.dtype, stream=s)
            return function(x, axis=axis, stream=s).astype(raw if x.dtype == raw else x.dtype, stream=s)

        return self.widened(running) if dtype in (Dtype.F16, Dtype.BF16) else running

    # Order.

    def fn_argmax(self, x: mx.array, axis: int, keepdims: bool) -> mx.array:
        return self._place(mx.argmax, x, axis, keepdims)

    def fn_argmin(self, x: mx.array, axis: int, keepdims: bool) -> mx.array:
        return self._place(mx.argmin, x, axis, keepdims)

    def _place(self, function: Callable[..., mx.array], x: mx.array, axis: int, keepdims: bool) -> mx.array:
        s = self.stream
        if not x.size:  # MLX refuses, though there may be nothing to find
            shape = x.shape[:axis] + ((1,) if keepdims else ()) + x.shape[axis + 1 :]
            return mx.zeros(shape, dtype=mx.int64, stream=s)
        return function(x, axis=axis, keepdims=keepdims, stream=s).astype(mx.int64, stream=s)

    def fn_sort(self, x: mx.array, axis: int, descending: bool) -> mx.array:
        if not x.size:
            return mx.zeros(x.shape, dtype=x.dtype, stream=self.stream)
        result = mx.sort(x, axis=axis, stream=self.stream)
        return mx.flip(result, axis=axis, stream=self.stream) if descending else result

    def fn_argsort(self, x: mx.array, axis: int, descending: bool) -> mx.array:
        s = self.stream
        if not x.size:
            return mx.zeros(x.shape, dtype=mx.int64, stream=s)
        if not descending:
            return mx.argsort(x, axis=axis, stream=s).astype(mx.int64, stream=s)
        # reversed twice, so that equal elements keep their order
        backward = mx.argsort(mx.flip(x, axis=axis, stream=s), axis=axis, stream=s).astype(mx.int64, stream=s)
        last = mx.array(x.shape[axis] - 1, dtype=mx.int64)
        return mx.flip(mx.subtract(last, backward, stream=s), axis=axis, stream=s)

    def fn_searchsorted(self, x: mx.array, values: mx.array, side: str) -> mx.array:
        return mx.searchsorted(x, values, side=side, stream=self.stream).astype(mx.int64, stream=self.stream)
