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
from ferrum_array.tensor import wrap

__all__ = ["NOTHING", "Array", "bits", "empty", "empty_like", "flat", "flat_or_nothing", "new", "rows"]

Array = np.ndarray[Any, Any]

#: what stands for an absent operand of a type: an array without elements
_BITS: dict[Dtype, Any] = {fa.bfloat16: np.dtype(np.uint16), fa.float16: np.dtype(np.int16)}
_EMPTY: dict[Dtype, Array] = {}
NOTHING: Array = np.empty(0, np.float32)


def bits(data: Array, dtype: Dtype) -> Array:
    """*data* in the type that kernels take for *dtype*: the same memory."""
    as_bits = _BITS.get(dtype)
    found: Array = data if as_bits is None else data.view(as_bits)
    return found


def flat(x: Tensor) -> Array:
    """The elements of *x* in one axis, a copy only where they lie with gaps or in another order."""
    data = x._data
    if not data.flags.c_contiguous:
        data = np.ascontiguousarray(data)
    as_bits = _BITS.get(x._spec.dtype)
    data = data.reshape(-1)
    return data if as_bits is None else data.view(as_bits)


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
    size, strides, item = data.shape[-1], data.strides, data.itemsize
    step = strides[-2]
    # the axes before the last one must be one axis with a single step, at least as long as a row
    regular = strides[-1] == item and step % item == 0 and step >= size * item
    for axis in range(data.ndim - 2):
        regular = regular and strides[axis] == strides[axis + 1] * data.shape[axis + 1]
    if not regular or not data.size:
        return flat(x), size
    count = data.size // size
    length = (count - 1) * (step // item) + size
    line = np.lib.stride_tricks.as_strided(data, (length,), (item,))
    return bits(line, x._spec.dtype), step // item


def empty_like(x: Tensor) -> tuple[Tensor, Array]:
    """A new tensor of the shape, dtype and device of *x*, and its elements in one axis, to be written."""
    return new(x._data.shape, x)


def new(shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Array]:
    """A new tensor of *shape* with the dtype and device of *like*, and its elements in one axis, to be written."""
    data = np.empty(shape, like._data.dtype)
    as_bits = _BITS.get(like._spec.dtype)
    line = data.reshape(-1)
    return wrap(data, like._spec), line if as_bits is None else line.view(as_bits)


def empty(shape: tuple[int, ...], dtype: Dtype, like: Tensor) -> tuple[Tensor, Array]:
    """A new tensor of *shape* and *dtype* on the device of *like*, and its elements in one axis, to be written."""
    result = fa.empty(shape, dtype=dtype, device=like.device)
    return result, bits(result._data.reshape(-1), dtype)
