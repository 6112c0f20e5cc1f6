"""Arrays of tensors as kernels take them: one axis, no gaps, and a type that tells the dtype.

numba knows neither bfloat16 nor, on the CPU, float16. Their bits go in as integers, of two types, so that one kernel
compiles to the right code for each:

=========  ============
bfloat16   ``uint16``
float16    ``int16``
others     as they are
=========  ============
"""

from __future__ import annotations

from typing import Any

import numpy as np

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_array.backends.tape import ACTIVE, recording
from ferrum_array.spec import spec_of
from ferrum_array.tensor import wrap
from ferrum_ops.kernels.cpu.jit import jit

__all__ = [
    "Array", "address", "bits", "empty", "empty_like", "flat", "flat_or_nothing", "heads", "new", "plain", "rows",
    "written",
]  # fmt: skip

Array = np.ndarray[Any, Any]

_BITS: dict[Dtype, Any] = {fa.bfloat16: np.dtype(np.uint16), fa.float16: np.dtype(np.int16)}
#: what stands for an absent operand of a type: an array without elements
_EMPTY: dict[Dtype, Array] = {}


def bits(data: Array, dtype: Dtype) -> Array:
    """*data* in the type that kernels take for *dtype*: the same memory."""
    as_bits = _BITS.get(dtype)
    return data if as_bits is None else data.view(as_bits)


@jit
def address(line: Any) -> int:
    """Where the elements of an array of a kernel's types begin, in a fifth of the time of ``line.ctypes.data``."""
    found: int = line.ctypes.data
    return found


def flat(x: Tensor) -> Array:
    """The elements of *x* in one axis, a copy only where they lie with gaps or in another order."""
    line: Array = x._data.ravel()
    if ACTIVE and line.base is None and line is not x._data and (tape := recording()) is not None:
        tape.copied(x._data, line.reshape(x._data.shape))
    as_bits = _BITS.get(x._spec.dtype)
    if as_bits is not None:
        line = line.view(as_bits)
    return line if line.flags.writeable else plain(line)


class _Memory:
    """An array's memory, for NumPy to make another array of it."""

    def __init__(self, array: Array) -> None:
        self.array = array  # keeps it alive
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def plain(line: Array) -> Array:
    """The same memory for a kernel that only reads it: numba compiles other code for arrays that cannot be written."""
    return np.asarray(_Memory(line))


def flat_or_nothing(x: Tensor | None, like: Tensor) -> Array:
    """The elements of *x*, or an array without elements of the type of *like*."""
    if x is not None:
        return flat(x)
    dtype = like._spec.dtype
    found = _EMPTY.get(dtype)
    if found is None:
        found = _EMPTY[dtype] = bits(np.empty(0, like._data.dtype), dtype)
    return found


def rows(x: Tensor) -> tuple[Array, int]:
    """The elements of *x* [..., D] from its first to its last in one axis, and how many lie from row to row.

    The rows of a slice such as ``h[..., :n]`` stay where they are, so the axis also has what lies between them.
    """
    data = x._data
    if data.flags.c_contiguous or data.ndim < 2:
        return flat(x), data.shape[-1] if data.ndim else 1
    step = _step(data, 1)
    return (flat(x), data.shape[-1]) if step is None else (_span(data, x.dtype), step)


def heads(x: Tensor) -> tuple[Array, int, int]:
    """The elements of *x* [..., T, H, D] in one axis, and how many lie from token to token and from head to head.

    As with ``rows``, what is a slice of something larger stays where it is.
    """
    data = x._data
    head = data.shape[-1]
    if data.flags.c_contiguous:
        return flat(x), data.shape[-2] * head, head
    between = data.strides[-2]
    if data.strides[-1] == data.itemsize and between >= head * data.itemsize and between % data.itemsize == 0:
        step = _step(data, 2)
        if step is not None:
            return _span(data, x.dtype), step, between // data.itemsize
    return flat(x), data.shape[-2] * head, head


def _step(data: Array, inner: int) -> int | None:
    """How many elements lie from one to the next of the blocks that the last axes make, if always the same number."""
    shape, strides, item = data.shape, data.strides, data.itemsize
    outer = data.ndim - inner
    if not data.size or strides[-1] != item or strides[outer - 1] % item or strides[outer - 1] < item * shape[-1]:
        return None
    for axis in range(outer - 1):
        if strides[axis] != strides[axis + 1] * shape[axis + 1]:
            return None
    return strides[outer - 1] // item


def _span(data: Array, dtype: Dtype) -> Array:
    """One axis from the first to the last element, whose strides are not negative."""
    length = 1 + sum((n - 1) * step for n, step in zip(data.shape, data.strides, strict=True)) // data.itemsize
    line = bits(np.lib.stride_tricks.as_strided(data, (length,), (data.itemsize,)), dtype)
    return line if line.flags.writeable else plain(line)


def empty_like(x: Tensor) -> tuple[Tensor, Array]:
    """A new tensor of the shape, dtype and device of *x*, and its elements in one axis, to be written."""
    return new(x._data.shape, x)


def new(shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Array]:
    """A new tensor of *shape* with the dtype and device of *like*, and its elements in one axis, to be written."""
    spec = like._spec
    data = np.empty(shape, like._data.dtype)
    if ACTIVE and (tape := recording()) is not None:
        tape.own(data)
    as_bits = _BITS.get(spec.dtype)
    line = data.ravel()
    return wrap(data, spec), line if as_bits is None else line.view(as_bits)


def empty(shape: tuple[int, ...], dtype: Dtype, like: Tensor) -> tuple[Tensor, Array]:
    """A new tensor of *shape* and *dtype* on the device of *like*, and its elements in one axis, to be written."""
    spec = like._spec
    if dtype is not spec.dtype:
        spec = spec_of(dtype, spec.device)
    data = spec.call["empty"](shape)
    return wrap(data, spec), bits(data.ravel(), dtype)


def written(x: Tensor) -> Array:
    """The elements of *x* in one axis, to be written: where others see the memory, *x* gets memory of its own first."""
    if ACTIVE and (tape := recording()) is not None:
        if not x._spec.device.backend.exclusive(x):
            copy = x._data.copy(order="C")
            source, x._data = tape.hold(x._data), tape.own(copy)
            tape.items.append(lambda: np.copyto(copy, source))
    elif not (x._spec.device.backend.exclusive(x) and x._data.flags.c_contiguous):
        x._data = x._data.copy(order="C")
    return bits(x._data.reshape(-1), x._spec.dtype)
