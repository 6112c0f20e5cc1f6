"""Reading and writing parts of arrays. MLX checks no bounds and reads no masks, so keys are made plain here first.

Integers, slices and None go to MLX's own indexing. Integer arrays and masks become places that are worked out on the
host, because an index out of bounds must be an error of the call; the elements themselves stay where they are.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ferrum_array.backends.mlx.arrays import from_numpy, to_numpy
from ferrum_array.backends.mlx.chapter import Chapter
from ferrum_array.backends.mlx.window import compute

__all__ = ["Selection"]

_ALL = slice(None)
_on = mx.stream
#: The types of the parts of a key that need no arrays.
_PLAIN = frozenset((int, slice, type(None), type(Ellipsis)))


class _Rows(NamedTuple):
    """The leading *axes* axes are selected together, by places among their elements; the others are kept."""

    axes: int
    places: Any


class Selection(Chapter):
    """``getitem``, ``setitem``, ``take`` and the like."""

    def fn_getitem(self, x: mx.array, key: Any) -> mx.array:
        s = self.stream
        if key.__class__ is slice and x.ndim:  # the usual key has the shortest way
            start, stop, step = key.indices(x.shape[0])
            if step > 0:
                with _on(s):  # for this thread, and only here: the operator takes no stream
                    return x[start:stop:step]
        parts = key if key.__class__ is tuple else (key,)
        if _PLAIN.issuperset(map(type, parts)):
            plain = _plain(parts, x.shape)
            with _on(s):
                return x[plain]
        parts = self._on_host(parts)
        if _PLAIN.issuperset(map(type, parts)):  # 0-d integer arrays are integers
            return self.fn_getitem(x, parts)
        along = _single_axis(parts, x.ndim)
        if along is not None:
            axis, indices = along
            rest = tuple(_ALL if isinstance(part, np.ndarray) else part for part in parts)
            places = _checked(indices, axis, x.shape[axis])
            source = x if all(part in (_ALL, Ellipsis) for part in rest) else self.fn_getitem(x, rest)
            return mx.take(source, from_numpy(places), axis=axis, stream=s)
        rows = _leading(parts, x.shape)
        if rows is not None:
            shape = (prod(x.shape[: rows.axes]), *x.shape[rows.axes :])
            return mx.take(mx.reshape(x, shape, stream=s), from_numpy(rows.places), axis=0, stream=s)
        return mx.take(mx.reshape(x, (-1,), stream=s), from_numpy(_places(parts, x.shape)), axis=0, stream=s)

    def fn_setitem(self, x: mx.array, key: Any, value: mx.array) -> None:
        parts = key if key.__class__ is tuple else (key,)
        s = self.stream
        if _PLAIN.issuperset(map(type, parts)):
            plain = _plain(parts, x.shape)
            with _on(s):
                x[plain] = value
            return
        if len(parts) == 1 and value.ndim == 0 and _is_mask_of(parts[0], x):
            mask = mx.reshape(parts[0], (*parts[0].shape, *(1,) * (x.ndim - parts[0].ndim)), stream=s)
            written = mx.where(mask, value, x, stream=s)
        else:
            parts = self._on_host(parts)
            if _PLAIN.issuperset(map(type, parts)):
                self.fn_setitem(x, parts, value)
                return
            rows = _leading(parts, x.shape) or _Rows(x.ndim, _places(parts, x.shape))
            written = self._write_rows(x, rows, value)
        with _on(s):
            x[...] = written

    def _write_rows(self, x: mx.array, rows: _Rows, value: mx.array) -> mx.array:
        """*x* with *value*, which broadcasts, in *rows*; of several for one row, the last."""
        s = self.stream
        kept, places = x.shape[rows.axes :], rows.places.reshape(-1)
        new = mx.reshape(mx.broadcast_to(value, (*rows.places.shape, *kept), stream=s), (places.size, *kept), stream=s)
        unique, from_end = np.unique(places[::-1], return_index=True)
        if unique.size < places.size:  # devices write in no certain order
            new = mx.take(new, from_numpy(places.size - 1 - from_end), axis=0, stream=s)
            places = unique
        if not places.size or not x.size:
            return x
        old = mx.reshape(x, (prod(x.shape[: rows.axes]), *kept), stream=s)
        with _on(s):
            written = mx.array(old)  # a handle of its own
            written[from_numpy(places)] = new
        return mx.reshape(written, x.shape, stream=s)

    def _on_host(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        """*parts* with host arrays in place of arrays, and integers in place of 0-d integer arrays."""
        compute(part for part in parts if isinstance(part, mx.array))
        found = [to_numpy(part, self.stream) if isinstance(part, mx.array) else part for part in parts]
        return tuple(
            int(part) if isinstance(part, np.ndarray) and part.ndim == 0 and part.dtype != bool else part
            for part in found
        )

    def fn_take(self, x: mx.array, indices: mx.array, axis: int) -> mx.array:
        return mx.take(x, indices, axis=axis, stream=self.stream)

    def fn_take_along_axis(self, x: mx.array, indices: mx.array, axis: int) -> mx.array:
        return mx.take_along_axis(x, indices, axis=axis, stream=self.stream)

    def fn_repeat(self, x: mx.array, repeats: int | mx.array, axis: int) -> mx.array:
        if isinstance(repeats, mx.array):
            compute((repeats,))
            places = np.repeat(np.arange(x.shape[axis]), to_numpy(repeats, self.stream))
            return mx.take(x, from_numpy(places), axis=axis, stream=self.stream)
        return mx.repeat(x, repeats, axis=axis, stream=self.stream)


def _is_mask_of(part: Any, x: mx.array) -> bool:
    return isinstance(part, mx.array) and part.dtype == mx.bool_ and part.shape == x.shape[: part.ndim]


def _expanded(parts: tuple[Any, ...], ndim: int) -> list[Any]:
    """*parts* without an ellipsis: one for each axis, and None for new ones."""
    if sum(part is Ellipsis for part in parts) > 1:
        raise IndexError("an index has at most one ellipsis")
    taken = sum(
        0 if part is None or part is Ellipsis or part is True or part is False
        else part.ndim if isinstance(part, np.ndarray) and part.dtype == bool
        else 1
        for part in parts
    )  # fmt: skip
    if taken > ndim:
        raise IndexError(f"{taken} indices were given for an array of {ndim} axes")
    where = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    return [*parts[:where], *[_ALL] * (ndim - taken), *parts[where + 1 :]]


def _plain(parts: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Integers within bounds, slices as MLX reads them, and None."""
    plain: list[Any] = []
    axis = 0
    for part in _expanded(parts, len(shape)):
        if part is None:
            plain.append(None)
            continue
        plain.append(_slice(part, shape[axis]) if isinstance(part, slice) else _within(part, axis, shape))
        axis += 1
    return tuple(plain)


def _within(index: int, axis: int, shape: tuple[int, ...]) -> int:
    length = shape[axis]
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of bounds for axis {axis} of length {length}")
    return index % length


def _slice(part: slice, length: int) -> slice:
    start, stop, step = part.indices(length)
    if step > 0:
        return slice(start, stop, step)
    return slice(start, None if stop < 0 else stop, step) if start > stop else slice(0, 0)


def _checked(indices: Any, axis: int, length: int) -> Any:
    """*indices* without negative ones.

    Raises:
        IndexError: for one out of bounds.
    """
    if not indices.size:
        return indices
    low, high = int(indices.min()), int(indices.max())
    if low < -length or high >= length:
        wrong = low if low < -length else high
        raise IndexError(f"index {wrong} is out of bounds for axis {axis} of length {length}")
    return np.where(indices < 0, indices + length, indices) if low < 0 else indices


def _single_axis(parts: tuple[Any, ...], ndim: int) -> tuple[int, Any] | None:
    """The axis and the indices where an integer array is the only part besides slices."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) != 1 or arrays[0].dtype == bool:
        return None
    if any(part is None or isinstance(part, int) for part in parts):
        return None
    axis = next(i for i, part in enumerate(_expanded(parts, ndim)) if part is arrays[0])
    return axis, arrays[0]


def _leading(parts: tuple[Any, ...], shape: tuple[int, ...]) -> _Rows | None:
    """The rows that are selected where arrays and masks stand first and nothing else follows."""
    expanded = _expanded(parts, len(shape))
    while expanded and expanded[-1].__class__ is slice and expanded[-1] == _ALL:
        expanded.pop()
    if not expanded or not all(isinstance(part, np.ndarray) and part.ndim for part in expanded):
        return None
    indices: list[Any] = []
    for part in expanded:
        axis = len(indices)
        if part.dtype != bool:
            indices.append(_checked(part, axis, shape[axis]))
            continue
        if part.shape != shape[axis : axis + part.ndim]:
            return None  # an error, or a mask without elements: NumPy knows
        indices.extend(part.nonzero())
    try:
        together = np.broadcast_arrays(*indices)
    except ValueError:
        raise IndexError(f"index arrays of shapes {[i.shape for i in indices]} do not broadcast") from None
    places = np.zeros(together[0].shape, np.int64)
    for axis, index in enumerate(together):
        places = places * shape[axis] + index
    return _Rows(len(indices), places)


def _places(parts: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """The places of all selected elements of an array of *shape*, by NumPy's rules, in the result's shape."""
    places: Any = np.broadcast_to(np.int64(0), shape)[parts]
    stride = 1
    for axis in reversed(range(len(shape))):
        along = np.arange(shape[axis]).reshape((-1, *(1,) * (len(shape) - 1 - axis)))
        places = places + np.broadcast_to(along, shape)[parts] * stride
        stride *= shape[axis]
    return np.asarray(places)
