"""Host arrays and the bytes of files: what ``ferrum_array.io`` reads and writes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ferrum_array.backends import host
from ferrum_array.dtype import Dtype

__all__ = ["byteswapped", "bytes_of", "check_bools", "empty", "from_buffer"]

#: the byte order of this machine, as in file formats
NATIVE = "<" if sys.byteorder == "little" else ">"


def from_buffer(buffer: Any, dtype: Dtype, shape: tuple[int, ...], offset: int) -> Any:
    """The host array in little-endian *buffer* at *offset*, sharing its memory and keeping it alive.

    Memory at odd addresses is copied, since libraries that take the array may not read it there.
    """
    array: Any = np.ndarray(shape, host.raw_dtype(dtype), buffer, offset)
    if NATIVE == ">":
        array = byteswapped(array)
    return array if array.flags.aligned else array.copy()


def empty(dtype: Dtype, shape: tuple[int, ...]) -> Any:
    """A host array with memory of its own that is not set."""
    return np.empty(shape, host.raw_dtype(dtype))


def bytes_of(array: Any) -> memoryview:
    """The memory of a host array as bytes; a copy of it if the array is not C-contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def byteswapped(array: Any) -> Any:
    """A copy of *array* with the bytes of each element reversed (of each part of a complex one)."""
    return array.byteswap()


def check_bools(array: Any) -> None:
    """Raise ValueError if a host array of booleans holds other bytes than 0 and 1.

    NumPy takes any byte for a boolean and then computes nonsense with it.
    """
    if array.size and array.view(np.uint8).max() > 1:
        raise ValueError(f"a boolean is stored as the byte {array.view(np.uint8).max()}; only 0 and 1 are booleans")
