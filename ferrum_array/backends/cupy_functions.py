"""The functions of ``cupy_fixes.py`` on CuPy arrays: making, elementwise, reductions, order, selection."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from operator import index
from typing import Any

import cupy as cp
import numpy as np

from ferrum_array.backends import cupy_kernels
from ferrum_array.backends.base import Raw
from ferrum_array.backends.shared import SharedBackend
from ferrum_array.dtype import Dtype

__all__ = ["CupyFunctions"]

_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}
_IN_ORDER = 1024  # factors that one thread multiplies
_OF_SLICES = frozenset((int, type(None)))
_FAR = 1 << 62

Axes = tuple[int, ...]


class CupyFunctions(SharedBackend):
    """What CuPy has otherwise than NumPy; the reasons stand in ``cupy_fixes.FIXES``."""

    xp = cp

    # Making arrays.

    def make_full(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        def full(shape: Any, value: Any) -> Raw:
            with np.errstate(all="ignore"):
                one = np.asarray(value, dtype=raw)
            out = cp.empty(shape, raw)
            if one != 0 or not any(one.tobytes()):
                out.fill(one[()])
            elif raw.kind == "c":
                out.real.view(f"u{raw.itemsize // 2}").fill(_bits(one.real))
                out.imag.view(f"u{raw.itemsize // 2}").fill(_bits(one.imag))
            else:
                out.view(f"u{raw.itemsize}").fill(_bits(one))
            return out

        return full

    def make_eye(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return lambda rows, columns, k: cp.eye(rows, columns, k, dtype="int8").astype(raw)

    def make_linspace(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        wide = np.dtype("complex128" if dtype.is_complex else "float64")
        full = self.make_full(wide, dtype)

        def linspace(start: complex, stop: complex, count: int, endpoint: bool) -> Raw:
            places = cp.arange(count, dtype=wide)
            parts = count - 1 if endpoint else count
            span = stop - start
            step = span / parts if parts > 0 else 0
            values = (places * step if step else places / max(parts, 1) * span) + start
            if endpoint and count > 1:
                values[-1:] = full((1,), stop)
            return values.astype(raw)

        return linspace

    # Elementwise.

    # Operands are arrays, or one of them is a Python number: what is to be done is decided by the dtype.

    def make_floor_divide(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return _either(dtype.is_integer, cp.floor_divide, cupy_kernels.FLOOR_DIVIDE)

    def make_remainder(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return _either(dtype.is_integer, cp.remainder, cupy_kernels.REMAINDER)

    def make_bitwise_left_shift(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return cupy_kernels.LEFT_SHIFT

    def make_bitwise_right_shift(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return cupy_kernels.RIGHT_SHIFT

    def make_pow(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        def integers(x1: Any, x2: Any) -> Raw:
            if bool((x2 < 0).any() if isinstance(x2, cp.ndarray) else x2 < 0):
                raise ValueError("pow: integers to negative integer powers are no integers; convert to a float first")
            return cp.power(x1, x2)

        return _either(raw.kind == "i", integers, cp.power)

    def fn_nextafter(self, x1: Raw, x2: Raw) -> Raw:
        bits = f"i{x1.itemsize}"
        return cupy_kernels.NEXT_AFTER(x1.view(bits), x2.view(bits), _INFINITY[x1.dtype.name]).view(x1.dtype)

    def fn_round(self, x: Raw) -> Raw:
        if x.dtype.kind in "biu":
            return x.copy()
        if x.dtype.kind != "c":
            return cp.rint(x)
        out = cp.empty(x.shape, x.dtype)
        out.real, out.imag = cp.rint(x.real), cp.rint(x.imag)
        return out

    def fn_conj(self, x: Raw) -> Raw:
        return cp.conj(x) if x.dtype.kind == "c" else x

    # Reductions.

    def make_total(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return _either(raw.itemsize == 2, cupy_kernels.SUM_16, cp.ndarray.sum)

    def fn_sum(self, x: Raw, axes: Axes, keepdims: bool) -> Raw:
        if not axes:
            return x.copy()
        if x.itemsize == 2 and x.dtype.kind not in "iu":
            return cupy_kernels.SUM_16(x, axis=axes, keepdims=keepdims)
        return cp.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)

    def fn_prod(self, x: Raw, axes: Axes, keepdims: bool) -> Raw:
        if not axes:
            return x.copy()
        count = prod(x.shape[a] for a in axes)
        if x.dtype.kind not in "fc" or count > _IN_ORDER:
            return cp.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype)
        rest = [a for a in range(x.ndim) if a not in axes]
        shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes)
        out = cp.empty(shape, x.dtype)
        rows = cp.ascontiguousarray(x.transpose(*rest, *sorted(axes))).reshape(-1)
        return cupy_kernels.ORDERED_PRODUCT(rows, count, out.reshape(-1)).reshape(shape) if out.size else out

    def fn_max(self, x: Raw, axes: Axes, keepdims: bool) -> Raw:
        return self._extreme(x, axes, keepdims, cp.max, cupy_kernels.MAX)

    def fn_min(self, x: Raw, axes: Axes, keepdims: bool) -> Raw:
        return self._extreme(x, axes, keepdims, cp.min, cupy_kernels.MIN)

    @staticmethod
    def _extreme(x: Raw, axes: Axes, keepdims: bool, integers: Callable[..., Raw], floats: Callable[..., Raw]) -> Raw:
        if not axes:
            return x.copy()
        if not x.size:  # no extreme is asked of an empty axis, so there is none to find
            return cp.empty(
                tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes), x.dtype
            )
        return (floats if x.dtype.kind == "f" else integers)(x, axis=axes, keepdims=keepdims)

    def fn_all(self, x: Raw, axes: Axes, keepdims: bool) -> Raw:
        return cp.all(x != 0, axis=axes, keepdims=keepdims) if axes else x != 0

    def fn_any(self, x: Raw, axes: Axes, keepdims: bool) -> Raw:
        return cp.any(x != 0, axis=axes, keepdims=keepdims) if axes else x != 0

    def fn_count_nonzero(self, x: Raw, axes: Axes, keepdims: bool) -> Raw:
        found = x != 0
        return cp.sum(found, axis=axes, keepdims=keepdims, dtype="int64") if axes else found.astype("int64")

    def fn_var(self, x: Raw, axes: Axes, correction: float, keepdims: bool) -> Raw:
        deviation = x - self.fn_mean(x, axes, True)
        if deviation.dtype.kind == "c":
            deviation = cp.abs(deviation)
        divisor = max(prod(x.shape[a] for a in axes) - correction, 0.0)
        total = self.fn_sum(deviation * deviation, axes, keepdims)
        return total / total.dtype.type(divisor)

    def fn_argmax(self, x: Raw, axis: int, keepdims: bool) -> Raw:
        return self._place(cupy_kernels.ARGMAX, x, axis, keepdims)

    def fn_argmin(self, x: Raw, axis: int, keepdims: bool) -> Raw:
        return self._place(cupy_kernels.ARGMIN, x, axis, keepdims)

    @staticmethod
    def _place(kernel: Callable[..., Raw], x: Raw, axis: int, keepdims: bool) -> Raw:
        if not x.size:
            return cp.empty(
                tuple(1 if a == axis else n for a, n in enumerate(x.shape) if keepdims or a != axis), "int64"
            )
        return kernel(x, axis=axis, keepdims=keepdims)

    # Order.

    @staticmethod
    def _key(x: Raw, descending: bool = False) -> Raw:
        """Integers that sort as *x* shall: all NaN last, or first when descending."""
        infinity = _INFINITY.get(x.dtype.name)
        if infinity is not None:
            bits = x.view(f"i{x.itemsize}")
            return cupy_kernels.SORT_KEY(cp.ascontiguousarray(bits) if x.ndim else bits, infinity, descending)
        x = cp.ascontiguousarray(x) if x.ndim else x  # CuPy sorts nothing else
        if x.dtype.kind == "b":
            x = x.view("uint8")
            return x ^ 1 if descending else x
        return ~x if descending else x

    def fn_sort(self, x: Raw, axis: int, descending: bool) -> Raw:
        if not x.size:
            return x.copy()
        if x.dtype.kind in "biu":  # the key can be turned back
            ordered = cp.sort(self._key(x, descending), axis=axis)
            return self._key(ordered.view(x.dtype), descending).view(x.dtype)
        return self.fn_take_along_axis(x, self.fn_argsort(x, axis, descending), axis)

    def fn_argsort(self, x: Raw, axis: int, descending: bool) -> Raw:
        return cp.argsort(self._key(x, descending), axis=axis) if x.size else cp.empty(x.shape, "int64")

    def fn_searchsorted(self, x: Raw, values: Raw, side: str) -> Raw:
        return cp.searchsorted(self._key(x), self._key(values), side=side)

    def fn_unique_all(self, x: Raw) -> tuple[Raw, ...]:
        flat = x.reshape(-1)
        if not flat.size:
            return (flat.copy(), *(cp.empty(shape, "int64") for shape in ((0,), x.shape, (0,))))
        keys = [self._key(part) for part in ((flat.real, flat.imag) if x.dtype.kind == "c" else (flat,))]
        if x.dtype.kind == "c":  # those with a NaN last, by real parts, those of equal real parts by imaginary ones
            order = cp.argsort(keys[1])
            for key in (keys[0], cp.isnan(flat).view("uint8")):
                order = order[cp.argsort(key[order])]
        else:
            order = cp.argsort(keys[0])
        ordered = flat[order]
        new = cp.ones(flat.shape, "bool")
        new[1:] = ordered[1:] != ordered[1:]  # every NaN is a value of its own
        for key in keys:
            new[1:] |= key[order[1:]] != key[order[:-1]]
        (starts,) = cp.nonzero(new)
        inverse = cp.empty(flat.shape, "int64")
        inverse[order] = cp.cumsum(new, dtype="int64") - 1
        counts = cp.diff(cp.concatenate([starts, cp.full(1, flat.size, "int64")]))
        return ordered[starts], order[starts], inverse.reshape(x.shape), counts

    def fn_nonzero(self, x: Raw) -> tuple[Raw, ...]:
        return tuple(cp.ascontiguousarray(one) for one in cp.nonzero(x))

    # Shape and selection.

    def fn_where(self, condition: Raw, x1: Raw, x2: Raw) -> Raw:
        return cp.where(condition, x1, x2)

    def fn_take(self, x: Raw, indices: Raw, axis: int) -> Raw:
        shape = x.shape[:axis] + indices.shape + x.shape[axis + 1 :]
        return cp.take(x, indices, axis=axis) if prod(shape) else cp.empty(shape, x.dtype)

    def fn_take_along_axis(self, x: Raw, indices: Raw, axis: int) -> Raw:
        return cp.take_along_axis(x, indices, axis) if indices.size else cp.empty(indices.shape, x.dtype)

    def fn_repeat(self, x: Raw, repeats: Any, axis: int) -> Raw:
        if isinstance(repeats, int):
            return cp.repeat(x, repeats, axis)
        ends = cp.cumsum(repeats)
        places = cp.arange(int(ends[-1]) if ends.size else 0, dtype="int64")
        return self.fn_take(x, cp.searchsorted(ends, places, side="right"), axis)

    def fn_flip(self, x: Raw, axes: Axes) -> Raw:
        return x[tuple(slice(None, None, -1 if a in axes else None) for a in range(x.ndim))]

    def fn_roll(self, x: Raw, shifts: Axes, axes: Axes) -> Raw:
        moves = {a: sum(s for s, b in zip(shifts, axes, strict=True) if a == b) for a in axes}
        moved = x
        for axis, shift in moves.items():
            cut = -shift % x.shape[axis] if x.shape[axis] else 0
            if cut:
                head = (slice(None),) * axis
                moved = cp.concatenate([moved[(*head, slice(cut, None))], moved[(*head, slice(cut))]], axis=axis)
        return x.copy() if moved is x else moved

    def fn_diagonal(self, x: Raw, k: int) -> Raw:
        return cp.diagonal(x, k, x.ndim - 2, x.ndim - 1)

    def fn_getitem(self, x: Raw, key: Any) -> Raw:
        if key.__class__ is not int:
            x, key = self._plain_key(x, key)
        try:
            return x[key]
        except OverflowError:
            return x[_near(key)]

    def fn_setitem(self, x: Raw, key: Any, value: Raw) -> None:
        x, key = self._plain_key(x, key)
        try:
            x[key] = value
        except OverflowError:
            x[_near(key)] = value

    def _plain_key(self, x: Raw, key: Any) -> tuple[Raw, Any]:
        """*x* (or a view of it) and a key for it, with masks as places and integer arrays checked."""
        parts = key if key.__class__ is tuple else (key,)
        if len(parts) > x.ndim and sum(map(_axes_taken, parts)) > x.ndim:
            raise IndexError(f"{sum(map(_axes_taken, parts))} indices were given for a tensor of {x.ndim} axes")
        for part in parts:
            if part.__class__ is slice:
                if not {part.start.__class__, part.stop.__class__, part.step.__class__} <= _OF_SLICES:
                    break
            elif part.__class__ is not int and part is not None and part is not Ellipsis:
                break
        else:
            return x, key
        plain: list[Any] = []
        bounds: list[tuple[Raw, int]] = []
        shape = list(x.shape)
        axis = 0  # of the view, where the next part stands
        for position, part in enumerate(parts):
            if part is None:
                plain.append(part)
            elif part is Ellipsis:
                later = sum(_axes_taken(one) for one in parts[position + 1 :])
                plain.extend([slice(None)] * (len(shape) - axis - later))
                axis = len(shape) - later
            elif isinstance(part, bool) or (isinstance(part, cp.ndarray) and part.dtype.kind == "b" and not part.ndim):
                # a mask without axes: a new axis of length one that is taken or not
                x = cp.expand_dims(x, axis)
                shape.insert(axis, 1)
                plain.append(cp.arange(int(bool(part)), dtype="int64"))
                axis += 1
            elif isinstance(part, cp.ndarray) and part.dtype.kind == "b":
                held = tuple(shape[axis : axis + part.ndim])
                if len(held) < part.ndim or any(n not in (0, h) for n, h in zip(part.shape, held, strict=True)):
                    raise IndexError(f"a boolean index of shape {part.shape} does not fit axes of lengths {held}")
                plain.extend(self.fn_nonzero(part))
                axis += part.ndim
            else:
                if isinstance(part, cp.ndarray):
                    bounds.append((part, shape[axis]))
                if isinstance(part, slice):
                    part = slice(*(None if n is None else index(n) for n in (part.start, part.stop, part.step)))
                plain.append(part)
                axis += 1
        _check_arrays([part for part in plain if isinstance(part, cp.ndarray)])
        _check_bounds(bounds)
        return x, tuple(plain)


def _either(condition: bool, yes: Callable[..., Raw], no: Callable[..., Raw]) -> Callable[..., Raw]:
    return yes if condition else no


def _bits(one: np.ndarray[Any, Any]) -> int:
    """The bits of one number, as an unsigned integer of its size."""
    return int.from_bytes(one.tobytes(), "little")


def _near(key: Any) -> Any:
    """*key* with numbers that CuPy can hold: a slice may go far beyond any axis, an index may not."""
    parts = key if key.__class__ is tuple else (key,)
    near = []
    for part in parts:
        if part.__class__ is int and not -_FAR < part < _FAR:
            raise IndexError(f"index {part} is out of bounds for every axis")
        if part.__class__ is slice:
            part = slice(*(n if n is None else max(-_FAR, min(n, _FAR)) for n in (part.start, part.stop, part.step)))
        near.append(part)
    return tuple(near)


def _check_arrays(arrays: list[Raw]) -> None:
    """Raise IndexError if arrays of indices do not broadcast: that is the key's fault, not that of what it indexes."""
    try:
        np.broadcast_shapes(*(one.shape for one in arrays))
    except ValueError:
        raise IndexError(f"indices of shapes {', '.join(str(one.shape) for one in arrays)} do not broadcast") from None


def _axes_taken(part: Any) -> int:
    """How many axes a part of a key stands for."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return part.ndim if isinstance(part, cp.ndarray) and part.dtype.kind == "b" else 1


def _check_bounds(bounds: list[tuple[Raw, int]]) -> None:
    """Raise IndexError if an array of indices leaves its axis; one read from the device for all arrays."""
    outside = [cupy_kernels.ANY_OUTSIDE(indices, length) for indices, length in bounds if indices.size]
    if not outside or not bool(outside[0] if len(outside) == 1 else cp.stack(outside).any()):
        return
    for indices, length in bounds:
        for number in (int(indices.min()), int(indices.max())) if indices.size else ():
            if not -length <= number < length:
                raise IndexError(f"index {number} is out of bounds for an axis of length {length}")
